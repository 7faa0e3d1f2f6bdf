"""`evaluate`: score arms on held-out problems, before and after.

Owns how arms are asked and scored, the four arms' order, the files they leave, and the gate.
All arms answer the same problems; every completion is kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cot_unsloth import tasks
from cot_unsloth.config import HOW_LOADED, AnyArm, Arm, ModelConfig, RunConfig, load_tree
from cot_unsloth.core import verdict
from cot_unsloth.core.errors import ConfigError, DataError, GateError, ModelError, RunDirError
from cot_unsloth.core.progress import note
from cot_unsloth.core.results import (
    VERSION,
    Contamination,
    Decoding,
    Gate,
    Reading,
    Recovery,
    Scorecard,
    Settings,
)
from cot_unsloth.core.types import Example, SamplingParams, Score
from cot_unsloth.data import benchmarks, decontaminate, distinct_questions, load_problems, with_comparable_answers
from cot_unsloth.evaluation import reflection, score
from cot_unsloth.evaluation.error_injection import own_traces
from cot_unsloth.models import openai_api, registry
from cot_unsloth.models.generation import answers, draft_of, identity
from cot_unsloth.models.llamacpp import LlamaCpp
from cot_unsloth.models.protocols import Generator, Trainable
from cot_unsloth.models.target import exported_from_run, exported_with, refuse_loading
from cot_unsloth.prompts.render import Prompter, Renderer
from cot_unsloth.reporting import report
from cot_unsloth.storage import atomic, environment, records
from cot_unsloth.storage.run_folder import RunDir

Arms = dict[str, list[Score]]


def reading_of(arm: str, trained: bool) -> Reading:
    """How an arm's answers are read.

    The base is read leniently, under our system prompt too, so that a gain is never one of format alone. So is any model
    that no run of ours trained: it was never taught to answer inside `<output>`.
    """
    return "last <output>" if trained and arm in ("tuned", "gguf") else "lenient"


def score_arm(
    engine: Generator,
    renderer: Prompter,
    examples: Sequence[Example],
    arm: AnyArm,
    sampling: SamplingParams,
    place: RunDir | None = None,
    model: str = "",
    trained: bool = True,
) -> list[Score]:
    """Ask one arm every problem, and judge its answers.

    Args:
        engine: who answers.
        renderer: what is asked.
        examples: the problems.
        arm: how they are asked.
        sampling: how the engine generates.
        place: keeps the completions there, and goes on from those that a killed process has left.
        model: tells one model from another in that place.
        trained: whether a run of ours trained the model; see `reading_of`.
    """
    prompts = [renderer.prompt(example, arm) for example in examples]
    draft = draft_of(place, arm, prompts, sampling, model) if place else None
    completions = answers(engine, prompts, sampling, f"score {arm}", draft)
    tagged = reading_of(arm, trained) == "last <output>"
    names = renderer.data.thinking_tags
    scores = [score.judge(e, c, tagged=tagged, thinking_tags=names) for e, c in zip(examples, completions, strict=True)]
    if place:
        records.write_jsonl(place.completions(arm), [dataclasses.asdict(s) for s in scores])
    return scores


def score_and_keep(
    engine: Trainable,
    renderer: Renderer,
    examples: Sequence[Example],
    arms: Iterable[Arm],
    config: RunConfig,
    run: RunDir,
    fitted: Path | None,
    trained: bool = True,
) -> Arms:
    """Score arms in their order, base arms as the base, and keep every completion of them."""
    found: Arms = {}
    # A base may have to be loaded, so it is held for all of its arms.
    for tuned, group in itertools.groupby(arms, lambda arm: arm == "tuned"):
        with contextlib.nullcontext() if tuned else engine.as_base():
            for arm in group:
                model = identity(config, fitted)
                found[arm] = score_arm(engine, renderer, examples, arm, config.sampling_params, run, model, trained)
    return found


def score_file(
    file: Path,
    prompter: Prompter,
    examples: Sequence[Example],
    sampling: SamplingParams,
    run: RunDir,
    trained: bool = True,
) -> list[Score]:
    """Score a GGUF file in llama.cpp, and keep every completion of it.

    Raises:
        ModelError: it cannot be loaded.
    """
    longest = max((len(example.question) for example in examples), default=0)
    engine = LlamaCpp(file, context=longest + prompter.data.max_seq_length + sampling.max_new_tokens)
    try:
        model = f"{file.stat().st_mtime_ns} {file.name}"
        return score_arm(engine, prompter, examples, "gguf", sampling, run, model, trained)
    finally:
        engine.close()


def read_scores(path: Path, examples: Sequence[Example]) -> list[Score] | None:
    """An arm that was scored before, if it was scored on exactly these problems."""
    rows = [Score(**row) for row in records.read_jsonl(path)]
    same = [(s.id, s.question, s.gold) for s in rows] == [(e.id, e.question, e.answer) for e in examples]
    return rows if rows and same else None


def settings_of(config: RunConfig, arms: Mapping[str, Sequence[Score]], trained: bool) -> Settings:
    """What the figures of a scorecard depend on."""
    e, n = config.evaluate, len(next(iter(arms.values()))) if arms else 0
    return Settings(
        version=VERSION,
        n=n,
        seed=e.eval_seed,
        model=config.model.model_name_or_path,
        loaded={leaf: getattr(config.model, leaf) for leaf in (*HOW_LOADED, "fast_inference")},
        dataset=config.evaluate.benchmark or config.data.dataset,
        thinking_tags=config.data.thinking_tags,
        train_seed=config.train.seed,
        decoding=Decoding(temperature=e.temperature, top_p=e.top_p, max_new_tokens=e.max_new_tokens),
        interval="Wilson, 95%",
        paired_interval="Bonett-Price, 95%",
        test="exact McNemar, two-sided",
        extraction={arm: reading_of(arm, trained) for arm in arms},
        versions=environment.versions(),
    )


def recovered(
    engine: Trainable,
    renderer: Renderer,
    examples: Sequence[Example],
    arms: Mapping[str, Sequence[Score]],
    config: RunConfig,
    place: RunDir,
    fitted: Path | None,
) -> Recovery | None:
    """What the tuned arm makes of its own right answers with a step made wrong; None where that is not asked for."""
    if not config.evaluate.recovery or "tuned" not in arms:
        return None
    return own_traces(
        engine,
        renderer,
        examples,
        arms["tuned"],
        sampling=config.sampling_params,
        seed=config.evaluate.eval_seed,
        place=place,
        model=identity(config, fitted),
    )


def write_scorecard(
    place: RunDir,
    config: RunConfig,
    examples: Sequence[Example],
    arms: Mapping[str, Sequence[Score]],
    contamination: Contamination | None = None,
    recovery: Recovery | None = None,
    trained: bool = True,
) -> Scorecard:
    """Make and keep the scorecard of the arms that were scored; with it the scoring is finished."""
    measured = {arm: reflection.summary(examples, scores, config.data.thinking_tags) for arm, scores in arms.items()}
    card = score.scorecard(arms, settings_of(config, arms, trained)).model_copy(
        update={
            "reflection": {arm: metrics for arm, (metrics, _) in measured.items()},
            "aims": {arm: aims for arm, (_, aims) in measured.items()},
            "contamination": contamination,
            "recovery": recovery,
        }
    )
    card = card.model_copy(update={"verdict": verdict.of(card), "gate": gate(config, card)})
    card.write(place.scorecard)
    atomic.remove_tree(place.unfinished)
    report.write(place)
    return card


def gate(config: RunConfig, card: Scorecard) -> Gate:
    """Whether the scores are what was asked of them, and what is not.

    It fails where the tuned arm is worse beyond noise than the base under the same prompt, or under the fullest prompt
    that was scored, and where too few completions are whole traces. It passes where the verdict is `better`.
    """
    failed: list[str] = []
    e, tuned = config.evaluate, card.arms.get("tuned")
    pair = next(iter(verdict.base_pairs(card.paired)), None)
    if pair and verdict.is_worse(pair):
        failed.append(
            f"the tuned arm is worse than {pair.before} by {-100 * pair.difference:.1f} points "
            f"(McNemar p = {pair.mcnemar_p:.2g}, n = {card.n})"
        )
    if tuned and tuned.format_valid < e.min_format_valid:
        failed.append(
            f"{tuned.format_valid:.1%} of the tuned arm's completions are whole traces; "
            f"min_format_valid is {e.min_format_valid:.1%}"
        )
    outcome = verdict.outcome(failed, verdict.of(card))
    return Gate(asked=e.gate, min_format_valid=e.min_format_valid, outcome=outcome, failed=tuple(failed))


def hold_to_gate(card: Scorecard) -> None:
    """End in failure where the scores are not what was asked of them.

    Raises:
        GateError: with all that failed.
    """
    if card.gate is not None and card.gate.asked and card.gate.failed:
        raise GateError("; ".join(card.gate.failed), where="gate", hint="everything was kept; --no-gate ends in 0")


_SCORED_UNDER = ("model", "data", "evaluate")
"""Sections whose settings change what a scoring comes to."""


def evaluate_run(path: Path, flags: Mapping[str, Any], out: Path | None = None) -> Scorecard:
    """Score a finished run again, on its own held-out rows or (with flags) under other settings.

    Results go into the run's folder; under other settings into `evaluations/HASH` in it, so that
    figures of different settings never stand in one folder.

    Raises:
        RunDirError: there is no run, or it has no trained weights yet.
    """
    run = RunDir.open(path)
    config = run.read_config()
    fitted = run.require_trained_weights()
    if "dataset" in flags and "benchmark" not in flags:  # other data are asked for, not the run's benchmark
        flags = {**flags, "benchmark": None, "benchmark_path": None}
    changed = config.overridden(flags)
    place = run
    if out is not None:
        place = _free(out, changed, fitted)
    elif changed.fingerprint(*_SCORED_UNDER) != config.fingerprint(*_SCORED_UNDER):
        place = RunDir(run.path / "evaluations" / changed.fingerprint(*_SCORED_UNDER))
    examples = problems_of(run, config, changed)
    return _score_all(changed, examples, fitted, place, contamination_of(run, place, examples))


def contamination_of(run: RunDir, place: RunDir, examples: Sequence[Example]) -> Contamination | None:
    """How far the rows that a run was trained on overlap with these problems; None where they come from a task.

    Of the run's own problems it is what was found, and dropped, before training.
    """
    manifest = run.read_manifest() if place is run else None
    if manifest is not None:
        return manifest.contamination
    rows = [records.kept_example(row) for row in records.read_jsonl(run.kept) if row["split"] == "train"]
    if not rows or all(tasks.is_task_dataset(row.where) for row in rows):
        return None
    return decontaminate.find_overlap(rows, examples).counts(0)


_WHICH_ROWS = (
    "dataset", "dataset_config_name", "dataset_split", "dataset_revision", "data_format",
    "question_column", "reasoning_column", "answer_column", "system_column", "messages_column",
)  # fmt: skip
"""Settings that decide which rows a file or hub data set gives."""


def problems_of(run: RunDir, config: RunConfig, changed: RunConfig) -> list[Example]:
    """Problems that the run was not trained on.

    A file that the run was trained on gives the rows that were held out of it then, and no others.
    """
    e, rows = changed.evaluate, records.read_jsonl(run.kept)
    own_file = not tasks.is_task_dataset(config.data.dataset)
    if (
        own_file
        and not e.benchmark
        and all(getattr(changed.data, leaf) == getattr(config.data, leaf) for leaf in _WHICH_ROWS)
    ):
        held_out = [records.kept_example(row) for row in rows if row["split"] == "test"]
        found = distinct_questions(with_comparable_answers(held_out), e.eval_samples, e.eval_seed)
        if not found:
            raise DataError(
                "the run held nothing out of it to score on",
                where=config.data.dataset,
                hint="name other data with --dataset, or train again with --eval-samples above 0",
            )
        note(
            f"scoring on {len(found)} of the {len(held_out)} rows held out of {config.data.dataset} when it was trained on"
        )
        return found
    return _problems_named(changed, run.question_ids("train"))


def _problems_named(config: RunConfig, without: Collection[str]) -> list[Example]:
    """Problems of the benchmark, or else of the data set, that the settings name."""
    e = config.evaluate
    if e.benchmark:
        return benchmarks.load(e, without)
    return load_problems(config.data, eval_samples=e.eval_samples, eval_seed=e.eval_seed, without=without)


def evaluate_model(config: RunConfig, adapter: Path | None, out: Path) -> Scorecard:
    """Score a model on the data set that the settings name.

    Without an adapter the tuned arm is the model itself under our system prompt, so it is left out.
    Where the adapter lies in a run's folder, the questions it was trained on are left out too; one that no run of ours
    trained is read leniently.
    """
    arms = tuple(arm for arm in config.evaluate.arms if adapter is not None or arm != "tuned")
    if not arms:
        raise ConfigError(
            "the tuned arm needs a tuned model", where="--arms", hint="add --adapter DIR, or name base arms"
        )
    only = config.replaced(arms=arms)
    run = RunDir.of_weights(adapter) if adapter is not None else None
    if (
        adapter is not None
        and (run is None or not run.kept.is_file())
        and not tasks.is_task_dataset(config.data.dataset)
    ):
        note("what the adapter was trained on is not known here: some of these questions may be among it")
    problems = _problems_named(config, run.question_ids("train") if run else set())
    return _score_all(only, problems, adapter, _free(out, only, adapter), trained=run is not None)


def evaluate_api(
    addresses: Sequence[str],
    model: str | None,
    flags: Mapping[str, Any],
    out: Path,
    *,
    api_key: str | None,
    concurrency: int,
    run: Path | None = None,
) -> Scorecard:
    """Score a model that servers answer for, asked as the arms are.

    Args:
        addresses: of the servers, each ending in /v1.
        model: what they call it; None where they have but one.
        flags: the data set or benchmark, and the arms: one model answers for all of them.
        out: where the scores go.
        api_key: for the servers.
        concurrency: prompts asked at a time.
        run: the run that the served model came from: its settings, and it is asked nothing that it was trained on.
            Without one the model is read leniently, in every arm.

    Raises:
        ConfigError: the servers do not have that model, or several; or what is asked for needs the weights here.
        EngineError: a server does not answer; what was answered is kept, and the same call goes on from there.
    """
    if flags.get("recovery"):
        raise ConfigError("needs the weights here, not a server", where="--recovery")
    refuse_loading(flags, "--api")
    home = RunDir.open(run) if run else None
    before = home.read_config() if home else RunConfig()
    config = before.overridden({"arms": "tuned", **flags})
    for address in addresses:
        served = openai_api.served_models(address, api_key)
        model = served[0] if model is None and len(served) == 1 else model
        if model not in served:
            raise ConfigError(
                f"serves {', '.join(served) or 'nothing'}" + (f", not {model}" if model else "; say which"),
                where=f"--api {address}",
                hint="--model NAME",
            )
    assert model is not None
    config = config.model_copy(update={"model": ModelConfig(model_name_or_path=model)})
    place = _free(out, config)
    examples = problems_of(home, before, config) if home else _problems_named(config, set())
    if not examples:
        raise DataError("no rows are held out to score on", where=config.data.dataset, hint="raise --eval-samples")
    tags = config.data.thinking_tags
    engine = openai_api.OpenAiApi(addresses, model, api_key=api_key, concurrency=concurrency, thinking_tags=tags)
    note(f"engine {engine.name}: {model} at {', '.join(addresses)}, {concurrency} prompts at a time")
    prompter = Prompter(config.data)
    arms: Arms = {}
    for arm in config.evaluate.arms_in_order:
        arms[arm] = score_arm(
            engine, prompter, examples, arm, config.sampling_params, place, model, trained=home is not None
        )
    contamination = contamination_of(home, place, examples) if home else None
    card = write_scorecard(place, config, examples, arms, contamination, trained=home is not None)
    note(f"scores: {place.path}")
    return card


def evaluate_file(file: Path, flags: Mapping[str, Any], out: Path | None) -> Scorecard:
    """Score a GGUF file, on the held-out problems of the run that it was exported from where it lies in one.

    Raises:
        ModelError: there is no such file.
        ConfigError: it lies in no run, and no place is named for the scores.
    """
    refuse_loading(flags, file.name)
    if not file.is_file():
        raise ModelError("there is no such file", where=str(file), name="file_missing")
    home = RunDir.of_export(file)
    if home:
        before = home.read_config()
        config = before.overridden(flags)
        examples = problems_of(home, before, config)
        key = config.fingerprint("data", "evaluate")
        place = _free(out, config) if out else RunDir(home.path / "evaluations" / f"{file.stem}-{key}")
    else:
        if out is None:
            raise ConfigError("say where the scores go", where="--out", hint="--out scores/NAME")
        config = load_tree(exported_with(file.parent), flags)
        place = _free(out, config)
        examples = _problems_named(config, set())
    if config.evaluate.recovery:
        note("a file is scored without --recovery: that needs the run")
    trained = home is not None or exported_from_run(file)
    if not trained:
        note(f"{file.name} is not known to come from a run of ours: its answers are read leniently, as a base's are")
    arms = {"gguf": score_file(file, Prompter(config.data), examples, config.sampling_params, place, trained)}
    named = config.model_copy(update={"model": ModelConfig(model_name_or_path=file.name)})
    card = write_scorecard(place, named, examples, arms, trained=trained)
    note(f"scores: {place.path}")
    return card


def _free(out: Path, config: RunConfig, fitted: Path | None = None) -> RunDir:
    """A folder for scores that holds none yet, or the beginning of these, so that figures of two settings never mix."""
    place, key = RunDir(out), f"{config.fingerprint('data', 'evaluate')} {identity(config, fitted)}"
    begun = place.unfinished / "settings"
    taken = any(path.exists() for path in (place.config, place.scorecard, place.completions("x").parent))
    same = begun.is_file() and begun.read_text(encoding="utf-8") == key
    if (taken or begun.is_file()) and not same:
        raise RunDirError("holds scores or a run already", where=str(out), hint="name another --out")
    atomic.write_text(begun, key)
    return place


def _score_all(
    config: RunConfig,
    examples: Sequence[Example],
    fitted: Path | None,
    place: RunDir,
    contamination: Contamination | None = None,
    trained: bool = True,
) -> Scorecard:
    if not examples:
        raise DataError("no rows are held out to score on", where=config.data.dataset, hint="raise --eval-samples")
    renderer, engine = registry.opened(config, fitted)
    arms = score_and_keep(engine, renderer, examples, config.evaluate.arms_in_order, config, place, fitted, trained)
    exported = read_scores(place.completions("gguf"), examples)
    if exported is not None:  # the file was scored on these problems, and stands as it did
        arms["gguf"] = exported
    found = recovered(engine, renderer, examples, arms, config, place, fitted)
    card = write_scorecard(place, config, examples, arms, contamination, found, trained)
    note(f"scores: {place.path}")
    return card
