"""`evaluate`: score a run again, a model, a GGUF file, or a model behind a server. One function each.

Each function resolves its target to settings, problems and an engine, scores the arms, and writes the scorecard.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cot_unsloth import tasks
from cot_unsloth.config import AnyArm, Flags, ModelConfig, RunConfig
from cot_unsloth.core import arm_names
from cot_unsloth.core.errors import ConfigError, InputError, RunDirError
from cot_unsloth.core.progress import note
from cot_unsloth.core.results import Contamination, Scorecard
from cot_unsloth.core.types import Example
from cot_unsloth.evaluation import forgetting, scorecard
from cot_unsloth.evaluation.arms import Arms, read_scores, score_arm, score_arms, score_gguf
from cot_unsloth.evaluation.error_injection import score_recovery
from cot_unsloth.evaluation.named_adapters import NONE, NamedAdapters
from cot_unsloth.evaluation.problems import (
    contamination_of,
    held_out_problems,
    named_problems,
    naming_problems,
    require_problems,
    settings_to_score,
    trained_questions,
)
from cot_unsloth.evaluation.scorecard import Further
from cot_unsloth.models.adapter_files import starting_adapter, training_runs
from cot_unsloth.models.generation import identity
from cot_unsloth.models.switching import require_switching
from cot_unsloth.models.target import Target, resolve_server, resolve_target
from cot_unsloth.prompts.arms import Prompter
from cot_unsloth.storage import atomic
from cot_unsloth.storage.run_folder import RunDir

_PROBLEMS_AND_SCORING = ("data", "evaluate", "development")
"""Sections of the settings that can change a score of one model."""
_SCORED_UNDER = ("model", *_PROBLEMS_AND_SCORING)
"""Sections of the settings that can change a score."""


def evaluate_run(
    path: Path, flags: Flags, out: Path | None = None, adapters: Mapping[str, Path] | None = None
) -> Scorecard:
    """Score a finished run again, on its own held-out rows or (with flags) under other settings.

    Results go into the run's folder. With other settings, or with additional adapters (which are arms under their names),
    they go into `evaluations/HASH` inside it, so that one folder never mixes figures of different settings.

    Raises:
        RunDirError: there is no run, or it has no trained weights yet.
        ModelError: an adapter belongs to another base than the run's.
    """
    flags = naming_problems(flags)
    target = resolve_target(path, flags=flags, use="score")
    run, trained = RunDir(path), target.before_flags
    config = settings_to_score(trained, target.config)
    target = replace(target, config=config)
    named = NamedAdapters.resolve(target, adapters or {}, flags)
    folder, key = run, named.key(config)
    if out is not None:
        folder = _scores_folder(out, config, target.weights, key)
    elif key or config.fingerprint(*_SCORED_UNDER) != trained.fingerprint(*_SCORED_UNDER):
        name = config.fingerprint(*_SCORED_UNDER) + (f"-{key}" if key else "")
        folder = RunDir(run.path / "evaluations" / name)
    problems = held_out_problems(run, trained, config)
    return _score_weights(target, problems, folder, contamination_of(run, folder, problems), named)


def evaluate_model(target: Target, out: Path, named: NamedAdapters = NONE) -> Scorecard:
    """Score a model on the data set that the settings name.

    Without an adapter, the tuned arm would be the base under our system prompt, so it is left out. If the adapter is in a
    run's folder, the questions it was trained on are left out too; an adapter that cot_unsloth did not train is read
    leniently.

    Raises:
        ConfigError: only the tuned arm is asked for, and no adapter is named.
        RunDirError: `out` holds other scores.
    """
    config, adapter = target.config, target.weights
    arms = tuple(arm for arm in config.evaluate.arms if adapter is not None or arm != "tuned")
    if not arms:
        raise ConfigError(
            "the tuned arm needs a tuned model", where="--arms", hint="add --adapter DIR, or name base arms"
        )
    config = config.replaced(arms=arms)
    runs = training_runs(adapter) if adapter is not None else []
    trained_on_is_known = bool(runs) and all(run.kept.is_file() for run in runs)
    if adapter is not None and not trained_on_is_known and not tasks.is_task_dataset(config.data.dataset):
        note("it is not known what the adapter was trained on: some of these questions may be in its training data")
    problems = named_problems(config, trained_questions(runs))
    folder = _scores_folder(out, config, adapter, named.key(config))
    return _score_weights(replace(target, config=config), problems, folder, named=named)


def evaluate_api(
    addresses: Sequence[str],
    model: str | None,
    flags: Flags,
    out: Path,
    *,
    api_key: str | None,
    concurrency: int,
    run: Path | None = None,
) -> Scorecard:
    """Score a model behind one server or several.

    Args:
        addresses: the servers' addresses, each ending in /v1.
        model: the model's name there; None if the servers have a single model.
        flags: the data set or benchmark, and the arms: one model answers for all of them.
        out: where the scores go.
        api_key: for the servers.
        concurrency: prompts in flight.
        run: the run that the served model comes from: its settings apply, and questions it was trained on are left out.
            Without a run, the model's answers are read leniently in every arm.

    Raises:
        ConfigError: the servers do not have that model, or several; or a flag needs the weights on this machine.
        EngineError: a server does not answer; the answers so far are kept, and the same call continues from there.
    """
    if flags.get("recovery"):
        raise ConfigError("needs the weights here, not a server", where="--recovery")
    flags = {"arms": "tuned", **naming_problems(flags)}
    target = resolve_server(addresses, model, run=run, flags=flags, api_key=api_key)
    config, served_run = settings_to_score(target.before_flags, target.config), target.run
    folder = _scores_folder(out, config)
    problems = held_out_problems(served_run, target.before_flags, config) if served_run else named_problems(config)
    require_problems(problems, config)
    engine, name = target.connect(api_key, concurrency), config.model.model_name_or_path
    prompter, sampling, trained = Prompter(config.data), config.sampling_params, target.trained
    arms: Arms = {}
    with folder.locked_for_scores():
        for arm in config.evaluate.arms_in_order:
            arms[arm] = score_arm(engine, prompter, problems, arm, sampling, folder, name, trained)
        contamination = contamination_of(served_run, folder, problems) if served_run else None
        card = scorecard.write(folder, config, problems, arms, Further(contamination), trained)
    _announce(folder)
    return card


def evaluate_file(file: Path, flags: Flags, out: Path | None) -> Scorecard:
    """Score a GGUF file; one in a run's `export/` is scored on the run's held-out problems.

    Raises:
        ModelError: there is no such file.
        ConfigError: it is not in a run's folder, and `out` is not given.
    """
    target = resolve_target(file, flags=naming_problems(flags), use="score")
    run, config = target.run, settings_to_score(target.before_flags, target.config)
    if run:
        problems = held_out_problems(run, target.before_flags, config)
        key = config.fingerprint(*_PROBLEMS_AND_SCORING)
        folder = _scores_folder(out, config) if out else RunDir(run.path / "evaluations" / f"{file.stem}-{key}")
    else:
        if out is None:
            raise ConfigError("say where the scores go", where="--out", hint="--out scores/NAME")
        folder = _scores_folder(out, config)
        problems = named_problems(config)
    if config.evaluate.recovery:
        note("--recovery is ignored for a file: it needs the run")
    if not target.trained:
        note(
            f"{file.name} is not known to come from a run of cot-unsloth: its answers are read leniently, like those of a base"
        )
    prompter, sampling = Prompter(config.data), config.sampling_params
    named_after_file = config.model_copy(update={"model": ModelConfig(model_name_or_path=file.name)})
    with folder.locked_for_scores():
        arms = {"gguf": score_gguf(file, prompter, problems, sampling, folder, target.trained)}
        card = scorecard.write(folder, named_after_file, problems, arms, trained=target.trained)
    _announce(folder)
    return card


def _score_weights(
    target: Target,
    problems: Sequence[Example],
    folder: RunDir,
    contamination: Contamination | None = None,
    named: NamedAdapters = NONE,
) -> Scorecard:
    """Score a base and its adapter, or a full model, on this machine."""
    config, weights, trained = target.config, target.weights, target.trained
    require_problems(problems, config)
    arms_to_score = _arms(config)
    renderer, engine = target.load()
    switching = require_switching(engine) if named.targets else None
    with folder.locked_for_scores():
        arms = score_arms(engine, renderer, problems, arms_to_score, config, folder, weights, trained)
        exported = read_scores(folder.completions("gguf"), problems)
        if exported is not None:  # `train` has scored the file on the same problems; its scores are still valid
            arms["gguf"] = exported
        recovery = score_recovery(engine, renderer, problems, arms, config, folder, weights)
        if switching is not None:
            arms |= named.score(switching, problems, config, folder)
        # The adapter that training continued is available, and the tuned arm was scored to compare it with.
        comparable = "tuned" in arms_to_score and (config.train.init_adapter is None or "start" in arms_to_score)
        untrained_task = forgetting.problems(config) if comparable and trained and weights is not None else []
        forgotten = forgetting.measure(engine, renderer, untrained_task, config, folder, weights)
        card = scorecard.write(
            folder,
            config,
            problems,
            arms,
            Further(contamination, recovery, forgotten),
            named.trained(trained),
            written={name: one.config.data for name, one in named.targets.items()},
        )
    _announce(folder)
    return card


def _arms(config: RunConfig) -> tuple[AnyArm, ...]:
    """The arms to score, without `start` if the adapter that training continued no longer exists."""
    try:
        starting_adapter(config)
    except InputError as error:
        note(f"{arm_names.in_sentence('start')} is not scored: {error}")
        return config.evaluate.arms_in_order
    return config.scored_arms


def _announce(folder: RunDir) -> None:
    note(f"scores: {folder.path}")
    note(f"report: {folder.report}")


def _scores_folder(out: Path, config: RunConfig, weights: Path | None = None, beside: str = "") -> RunDir:
    """A folder for scores: a new one, or one left by an interrupted command with the same settings and model.

    Raises:
        RunDirError: it holds a run, or scores of other settings.
    """
    folder, key = RunDir(out), f"{config.fingerprint(*_PROBLEMS_AND_SCORING)} {identity(config, weights)}"
    key += f" {beside}" if beside else ""
    settings = folder.unfinished / "settings"
    if out.is_dir():
        atomic.remove_left_behind(folder.unfinished)  # also where the scores were complete and only this was left to do
    is_taken = any(path.exists() for path in (folder.config, folder.scorecard, folder.completions("x").parent))
    same = settings.is_file() and settings.read_text(encoding="utf-8") == key
    if (is_taken or settings.is_file()) and not same:
        raise RunDirError("already holds scores or a run", where=str(out), hint="name another --out")
    atomic.write_text(settings, key)
    return folder
