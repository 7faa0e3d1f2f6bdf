"""`train`: the journey from a data set to a scored model, top to bottom.

preflight → score the base → fit → score again, paired → save (→ merge). Every stage leaves its
result whole in the run's folder, so a killed run resumes at the stage it was in, and its fit at
the newest whole checkpoint; what is done is not done again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cot_unsloth.config import Arm, RunConfig
from cot_unsloth.core import trace
from cot_unsloth.core.errors import ConfigError, DivergedError, InputError
from cot_unsloth.core.progress import bar, memory, note
from cot_unsloth.core.results import (
    VERSION,
    EngineChoice,
    FitReport,
    Manifest,
    Resumption,
    RowCounts,
    Scorecard,
    SectionAccuracy,
    TokenAccuracy,
)
from cot_unsloth.core.statistics import share
from cot_unsloth.evaluation import scorecard
from cot_unsloth.evaluation.arms import Arms, read_scores, score_arms, score_gguf
from cot_unsloth.evaluation.error_injection import score_recovery
from cot_unsloth.export import hub
from cot_unsloth.models import estimate, registry
from cot_unsloth.models.protocols import Trainable
from cot_unsloth.models.registry import Choice
from cot_unsloth.prompts import inspection
from cot_unsloth.storage import atomic, environment, records, run_folder, run_names
from cot_unsloth.storage.run_folder import RunDir
from cot_unsloth.training import checks, preparation
from cot_unsloth.training.method import TrainingHooks, TrainingStep, training_method
from cot_unsloth.training.preparation import Prepared


def train(config: RunConfig, *, resume: bool = False) -> tuple[RunDir, Scorecard]:  # noqa: PLR0915
    """Run the journey; returns the run's folder and its scorecard.

    Raises:
        InputError: before anything is written.
        EngineError: in the middle; what was done is kept, and `resume` goes on from there.
    """
    began = time.monotonic()
    if resume and config.train.run_dir is None:
        raise ConfigError("there is no run to resume", where="train.run_dir", hint="name it: runs/NAME")
    run = RunDir(config.train.run_dir or run_names.default_run_dir(config))
    config = config.replaced(run_dir=str(run.path))
    run.check(config, resume=resume)
    finished = _finished(run, config) if resume else None
    if not finished:
        hub.check_access(config)
    choice = registry.choose(config.model)
    registry.check_optimizer(config.train)
    registry.prepare(choice, None if finished else run.compiled)
    prepared = preparation.prepare(config, run.template if resume else None)
    if not finished:
        _check(config, prepared)
    identity = _identity(prepared)
    if resume:
        run.check_identity(identity)  # of a finished run too: whoever changed its data expects something to come of it
    if finished:
        note(f"{run.path} is finished; nothing to do")
        return run, finished
    # Loaded before anything is written, so that a model that cannot be used leaves no folder behind.
    engine = registry.load(config, prepared.renderer.chat, choice, run.trained_weights)
    if config.export.asks:
        from cot_unsloth.export import run as exporting  # imports numpy

        exporting.check_base(config, prepared.renderer.chat)  # of a model on the hub `_check` has not looked at it
    with run.locked(config, resume=resume):
        note(f"run folder {run.path}; engine {choice.engine}: {choice.why}")
        preparation.announce(prepared, config)
        if not run.template.is_file():
            atomic.write_text(run.template, str(prepared.renderer.chat.tokenizer.chat_template))
        _write_ledger(run, prepared, config)
        # Before the settings: a kill in between leaves a change recorded and not made, rather than made and not recorded.
        _began(run, config, _manifest(config, prepared, choice, identity)).write(run.manifest)
        if resume:
            run.write_config(config)
        arms = _journey(config, run, prepared, engine)
        _token_accuracy(run, prepared, engine)
        found = score_recovery(engine, prepared.renderer, prepared.problems, arms, config, run, run.trained_weights)
        card = scorecard.write(run, config, prepared.problems, arms, prepared.contamination, found)
        engine.close()  # an export loads a model to compare with
        if config.export.asks:
            card = _export(config, run, prepared, arms, card)
        manifest = run.read_manifest() or Manifest()
        manifest.model_copy(update={"finished": environment.now()}).write(run.manifest)
    note(f"done in {time.monotonic() - began:.0f} s")
    return run, card


def _check(config: RunConfig, prepared: Prepared) -> None:
    """What `check` finds in settings and data, said before anything is loaded.

    Raises:
        InputError: something would stop the run, or teach the wrong thing.
    """
    shape = estimate.shape_of(config.model)
    found = [
        *checks.check_model_files(config),
        *checks.check_prepared(config, prepared, shape),
        *checks.check_machine(config, shape, prepared),
    ]
    for finding in found:
        if finding.level == "warning" and finding.name not in _SAID:
            place = f"{finding.where}: " if finding.where else ""
            note(f"warning, {finding.name}: {place}{finding.message}" + (f" ({finding.hint})" if finding.hint else ""))
    stopping = checks.faults(found)
    if stopping:
        first, *others = stopping
        more = f" (and {', '.join(finding.name for finding in others)}: `check` shows them all)" if others else ""
        raise InputError(
            f"{first.name}: {first.message}{more}", where=first.where or None, hint=first.hint, name=first.name
        )


_SAID = frozenset({"few_steps", "prose_answers", "unused_columns"})
"""Warnings that `preparation` says in its own lines."""


def _finished(run: RunDir, config: RunConfig) -> Scorecard | None:
    """The scorecard of a run that is complete under these settings, with every file it made; else None."""
    manifest = run.read_manifest()
    if manifest is None or manifest.finished is None or run.changed(config):
        return None
    if run.trained_weights is None or not (run.scorecard.is_file() and run.report.is_file()):
        return None
    card = Scorecard.read(run.scorecard)
    if not all(run.completions(arm).is_file() for arm in card.arms):
        return None
    if not config.export.asks:
        return card
    from cot_unsloth.export import run as exporting  # imports numpy

    return None if exporting.remaining(run, config).export.asks else card


def _journey(config: RunConfig, run: RunDir, prepared: Prepared, engine: Trainable) -> Arms:
    """Score, fit, score, export: each stage is skipped where its result is already whole."""
    wanted = config.evaluate.arms_in_order if prepared.problems else ()
    arms = _scored(config, run, prepared, engine, [arm for arm in wanted if arm != "tuned"])
    if run.trained_weights is None:
        _fit(config, run, prepared, engine)
    return arms | _scored(config, run, prepared, engine, [arm for arm in wanted if arm == "tuned"])


def _scored(config: RunConfig, run: RunDir, prepared: Prepared, engine: Trainable, wanted: Sequence[Arm]) -> Arms:
    """Arms as they were scored before, the others scored now."""
    kept = {arm: read_scores(run.completions(arm), prepared.problems) for arm in wanted}
    new = [arm for arm in wanted if kept[arm] is None]
    made = score_arms(engine, prepared.renderer, prepared.problems, new, config, run, run.trained_weights)
    return {arm: kept[arm] or made[arm] for arm in wanted}


SCORED_ROWS = 64
"""Held-out rows whose next-token accuracy is measured before and after."""


def _token_accuracy(run: RunDir, prepared: Prepared, engine: Trainable) -> None:
    """Of held-out solutions, the share of tokens that the model would have written too, by section, before and after."""
    chosen = [(e, s) for e, s in zip(prepared.test, prepared.test_samples, strict=True) if e.trace.parts][:SCORED_ROWS]
    if run.token_accuracy.is_file() or not chosen:
        return
    samples = [sample for _, sample in chosen]
    where = [prepared.renderer.sections(example, sample) for example, sample in chosen]
    with engine.as_base():
        base = engine.next_token_accuracy(samples)
    tuned = engine.next_token_accuracy(samples)
    sections = {}
    for section in trace.SECTIONS:
        shares = {
            model: share(sum(hits), len(hits))
            for model, rows in (("base", base), ("tuned", tuned))
            if (hits := _hits_in(section, rows, where))
        }
        if shares:
            sections[section] = SectionAccuracy(**shares)
    TokenAccuracy(version=VERSION, rows=len(samples), sections=sections).write(run.token_accuracy)


def _hits_in(
    section: str, rows: Sequence[Sequence[bool | None]], sections: Sequence[Sequence[str | None]]
) -> list[bool]:
    """Of the scored tokens in one section, whether each was predicted."""
    return [
        hit
        for hits, names in zip(rows, sections, strict=True)
        for hit, name in zip(hits, names, strict=True)
        if name == section and hit is not None
    ]


def _export(config: RunConfig, run: RunDir, prepared: Prepared, arms: Arms, card: Scorecard) -> Scorecard:
    """Export what is not there yet, score the first of the GGUF files as an arm, then push.

    Returns:
        The scorecard with that arm, or `card` where no file was scored.
    """
    from cot_unsloth.export import run as exporting  # imports numpy

    left = exporting.remaining(run, config)
    if left.export.asks:
        exporting.export_run(run, left)
    with_file = _score_export(config, run, prepared, arms, exporting.gguf_names(config), card)
    if with_file is not None:
        exporting.update_cards(run, config)
    if config.export.push_to_hub is not None:
        exporting.push_run(run, config)
    return with_file or card


def _score_export(
    config: RunConfig, run: RunDir, prepared: Prepared, arms: Arms, names: Sequence[str], card: Scorecard
) -> Scorecard | None:
    file = next((run.export / name for name in names), None)
    if file is None or not file.is_file() or not arms:
        return None
    known = read_scores(run.completions("gguf"), prepared.problems)
    if known is None:
        known = score_gguf(file, prepared.renderer, prepared.problems, config.sampling_params, run)
    return scorecard.write(
        run, config, prepared.problems, {**arms, "gguf": known}, prepared.contamination, card.recovery
    )


def _fit(config: RunConfig, run: RunDir, prepared: Prepared, engine: Trainable) -> FitReport:
    """Train the adapter or every weight, from the newest whole checkpoint that can be gone on from."""
    while True:
        resume_from = next(reversed(run.complete_checkpoints()), None)
        try:
            return _fit_from(resume_from, config, run, prepared, engine)
        except DivergedError as error:
            if resume_from is None or error.step != run_folder.checkpoint_step(resume_from) + 1:
                raise
            # The checkpoint's weights and the next rows alone decide this: it would stop here at any learning rate.
            note(f"{resume_from.name} is removed: {error.message}, the first after it, whatever the learning rate")
            atomic.remove_tree(resume_from)
            manifest = run.read_manifest()
            if manifest is not None and manifest.resumed:
                *earlier, last = manifest.resumed
                last = last.model_copy(update={"from_step": _newest_step(run)})
                manifest.model_copy(update={"resumed": (*earlier, last)}).write(run.manifest)


def _fit_from(
    resume_from: Path | None, config: RunConfig, run: RunDir, prepared: Prepared, engine: Trainable
) -> FitReport:
    done = run_folder.checkpoint_step(resume_from) if resume_from else 0
    if resume_from:
        note(f"fit: goes on from step {done}")
    rows = [row for row in records.read_jsonl(run.metrics) if row["step"] <= done]
    before, seen = (rows[-1]["seconds"], rows[-1]["num_tokens"]) if rows else (0.0, 0)
    began = time.monotonic()
    with bar("fit") as progress:

        def on_step(step: TrainingStep) -> None:
            facts = {"memory": memory()}
            if step.loss is not None:
                rate = (step.tokens - seen) / (time.monotonic() - began)
                facts |= {"loss": f"{step.loss:.4f}", "tokens/s": f"{rate:.0f}"}
            progress.advance(1, **facts)

        def on_log(row: Mapping[str, Any]) -> None:
            rows.append({**row, "seconds": round(before + time.monotonic() - began, 2)})
            records.write_jsonl(run.metrics, rows)
            if "loss" in row:
                progress.advance(0, loss=f"{row['loss']:.4f}")

        hooks = TrainingHooks(
            checkpoints=run.checkpoints,
            resume_from=resume_from,
            on_start=lambda total: progress.restart(total, done),
            on_step=on_step,
            on_log=on_log,
        )
        report = training_method("sft").train(engine, prepared, hooks)
    report.write(run.fit_report)
    engine.save(run.model if config.train.full_finetuning else run.adapter)
    return report


def _write_ledger(run: RunDir, prepared: Prepared, config: RunConfig) -> None:
    layout = config.data.trace_layout
    kept = [records.kept_row(e, s, layout) for e, s in zip(prepared.train, prepared.samples, strict=True)]
    kept += [records.kept_row(e, None, layout) for e in prepared.test]
    records.write_jsonl(run.kept, kept)
    records.write_jsonl(run.rejected, map(records.reject_row, prepared.rejects))


def _identity(prepared: Prepared) -> dict[str, str]:
    """Hashes of what the model sees: a run whose hashes have changed is another run."""
    tokenizer = prepared.renderer.chat.tokenizer
    rows = (f"{s.id}{s.ids}{s.labels}" for s in prepared.samples)
    problems = (f"{e.id}{e.question}{e.answer}{e.system}{e.history}" for e in prepared.test)
    return {
        "data_hash": environment.text_hash(*rows, *problems),
        "template_hash": environment.text_hash(str(tokenizer.chat_template)),
        "tokenizer_hash": environment.text_hash(tokenizer.backend_tokenizer.to_str()),
    }


def _manifest(config: RunConfig, prepared: Prepared, choice: Choice, identity: Mapping[str, str]) -> Manifest:
    """What it takes to get the same figures again."""
    measured_in = environment.environment()
    return Manifest(
        version=VERSION,
        started=environment.now(),
        cot_unsloth=measured_in.cot_unsloth,
        python=measured_in.python,
        platform=measured_in.platform,
        cpu=measured_in.cpu,
        cpu_count=measured_in.cpu_count,
        versions=measured_in.versions,
        git=measured_in.git,
        command=(Path(sys.argv[0]).name, *sys.argv[1:]),
        engine=EngineChoice(engine=choice.engine, why=choice.why),
        seed=config.train.seed,
        eval_seed=config.evaluate.eval_seed,
        config_hash=config.fingerprint(),
        date_string=config.model.date_string,
        contamination=prepared.contamination,
        rows=RowCounts(
            read=prepared.loaded.rows,
            train=len(prepared.train),
            test=len(prepared.test),
            rejected=len(prepared.rejects),
        ),
        **identity,
    )


def _began(run: RunDir, config: RunConfig, facts: Manifest) -> Manifest:
    """The manifest of a run that begins or is resumed: the first command's facts stay, later commands are appended.

    Of a later one: what differed from the first, so that a figure's versions can be traced whenever it was made.
    """
    before = run.read_manifest()
    if before is None:
        return facts
    old, new = before.as_json(), facts.as_json()
    differing = {name: value for name, value in new.items() if old.get(name) != value}
    for name in ("started", "command", "version"):  # `started` is equal where both began within the same second
        differing.pop(name, None)
    if "versions" in differing:
        names = {**before.versions, **facts.versions}
        differing["versions"] = {
            name: facts.versions.get(name) for name in names if before.versions.get(name) != facts.versions.get(name)
        }
    resumption = Resumption(
        at=facts.started or "",
        command=facts.command,
        from_step=None if run.trained_weights else _newest_step(run),
        changed={name: (old, new) for name, (old, new) in run.changed(config).items()},
        environment=differing,
    )
    return before.without("finished").model_copy(update={"resumed": (*before.resumed, resumption)})


def _newest_step(run: RunDir) -> int:
    """The step that a resumed fit goes on from."""
    return max(map(run_folder.checkpoint_step, run.complete_checkpoints()), default=0)


def dry_run(config: RunConfig) -> str:
    """Everything up to loading the model: what would be trained, and one row as the model sees it.

    Raises:
        InputError: as `train` would.
    """
    run = RunDir(config.train.run_dir or run_names.default_run_dir(config))
    choice = registry.choose(config.model)
    registry.prepare(choice)
    prepared = preparation.prepare(config)
    preparation.announce(prepared, config)
    obstacle = registry.obstacle(config.model)
    row = inspection.inspect_rows(prepared.renderer, prepared.train[:1], 1)[0]
    return "\n".join(
        [
            f"would write to {run.path}",
            f"engine {choice.engine}: {choice.why}",
            f"steps: {preparation.describe_steps(config.train, len(prepared.samples))}",
            *([f"this machine cannot train it: {obstacle.message}"] if obstacle else []),
            f"row {row.where}:",
            row.as_blocks(),
        ]
    )
