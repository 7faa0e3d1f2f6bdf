"""`train`: a run from the data set to the exported model, top to bottom.

Prepare and check the data, score the base, train, score the tuned model on the same problems, write scorecard and
report, export. Each stage leaves a complete result in the run's folder, so a killed run resumes at the stage it was in;
training resumes at its newest checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from cot_unsloth.config import AnyArm, RunConfig
from cot_unsloth.core import network
from cot_unsloth.core.errors import ConfigError, InputError
from cot_unsloth.core.progress import note
from cot_unsloth.core.results import Scorecard
from cot_unsloth.evaluation import forgetting, scorecard
from cot_unsloth.evaluation.arms import Arms, read_scores, score_arms, score_gguf
from cot_unsloth.evaluation.error_injection import score_recovery
from cot_unsloth.evaluation.scorecard import Further
from cot_unsloth.export import hub
from cot_unsloth.models import estimate, registry, techniques
from cot_unsloth.models.protocols import Trainable
from cot_unsloth.prompts import inspection
from cot_unsloth.prompts.tokenizer import model_path
from cot_unsloth.storage import run_names
from cot_unsloth.storage.run_folder import RunDir
from cot_unsloth.training import checks, preparation, run_record, token_accuracy, trackers
from cot_unsloth.training.preparation import Prepared
from cot_unsloth.training.training_stage import train_weights


def train(config: RunConfig, *, resume: bool = False) -> tuple[RunDir, Scorecard]:
    """Train, and score before and after.

    Args:
        config: the settings.
        resume: continue the run in `train.run_dir`.

    Returns:
        The run's folder, and its scorecard.

    Raises:
        InputError: before anything is written.
        EngineError: during the run; what was done is kept, and `resume` continues from there.
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
        network.require("model", model_path(config.model.model_name_or_path))
    choice = registry.choose(config.model)
    registry.check_optimizer(config.train)
    trackers.check(config.train)
    techniques.check(config, choice.engine)
    registry.apply_patches(choice, None if finished else run.compiled)
    prepared = preparation.prepare(config, run.template if resume else None)
    if not finished:
        _check(config, prepared)
    identity = run_record.identity(prepared)
    if resume:
        run.check_identity(identity)  # also of a finished run: who changed its data expects it to be trained again
    if finished:
        note(f"{run.path} is finished; nothing to do")
        return run, finished
    # Loaded before anything is written, so that a model that cannot be used leaves no folder behind.
    engine = registry.load(config, prepared.renderer.chat, choice, run.trained_weights)
    if config.export.asks:
        from cot_unsloth.export import run as exporting  # imports numpy

        exporting.check_base(config, prepared.renderer.chat)  # `_check` has not seen the weights of a model on the hub
    with run.locked(config, resume=resume):
        note(f"run folder {run.path}; engine {choice.engine}: {choice.why}")
        preparation.announce(prepared, config)
        run_record.write(run, config, prepared, run_record.manifest(config, prepared, choice, identity), resume=resume)
        card = _run_stages(config, run, prepared, engine)
        run_record.write_finished(run)
    note(f"done in {time.monotonic() - began:.0f} s")
    return run, card


def _run_stages(config: RunConfig, run: RunDir, prepared: Prepared, engine: Trainable) -> Scorecard:
    """Base scores, training, tuned scores, report, export. A stage whose result is complete is skipped."""
    problems, arms = prepared.problems, config.scored_arms if prepared.problems else ()
    scores = _score(config, run, prepared, engine, [arm for arm in arms if arm != "tuned"])
    untrained_task = forgetting.problems(config)
    forgetting.score_before(engine, prepared.renderer, untrained_task, config, run)
    if run.trained_weights is None:
        train_weights(config, run, prepared, engine)
    scores |= _score(config, run, prepared, engine, [arm for arm in arms if arm == "tuned"])
    token_accuracy.measure(run, prepared, engine)
    recovery = score_recovery(engine, prepared.renderer, problems, scores, config, run, run.trained_weights)
    forgotten = forgetting.measure(engine, prepared.renderer, untrained_task, config, run, run.trained_weights)
    card = scorecard.write(run, config, problems, scores, Further(prepared.contamination, recovery, forgotten))
    trackers.log_scorecard(config, run, card)
    engine.close()  # the export loads a model of its own to compare with
    return _export(config, run, prepared, scores, card) if config.export.asks else card


def _check(config: RunConfig, prepared: Prepared) -> None:
    """Run the same checks as `check`, before the model is loaded; print warnings.

    Raises:
        InputError: a fault was found that would stop the run later or train on the wrong tokens.
    """
    shape = estimate.shape_of(config.model)
    findings = [
        *checks.check_model_files(config),
        *checks.forgetting_task(config),
        *checks.check_prepared(config, prepared, shape),
        *checks.check_machine(config, shape, prepared),
    ]
    for finding in findings:
        if finding.level == "warning" and finding.name not in _ANNOUNCED:
            where = f"{finding.where}: " if finding.where else ""
            note(f"warning, {finding.name}: {where}{finding.message}" + (f" ({finding.hint})" if finding.hint else ""))
    if shape is not None and not {finding.name for finding in findings} & {"takes_long", "tight_memory"}:
        note(checks.in_short(config, shape, prepared))
    errors = checks.faults(findings)
    if errors:
        first, *others = errors
        more = f" (and {', '.join(finding.name for finding in others)}: `check` shows them all)" if others else ""
        raise InputError(
            f"{first.name}: {first.message}{more}", where=first.where or None, hint=first.hint, name=first.name
        )


_ANNOUNCED = frozenset({"few_steps", "prose_answers", "unused_columns"})
"""Warnings that `preparation.announce` prints in lines of its own."""


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


def _score(config: RunConfig, run: RunDir, prepared: Prepared, engine: Trainable, arms: Sequence[AnyArm]) -> Arms:
    """The scores of these arms: complete ones are read, the others are computed."""
    known = {arm: read_scores(run.completions(arm), prepared.problems) for arm in arms}
    missing = [arm for arm in arms if known[arm] is None]
    made = score_arms(engine, prepared.renderer, prepared.problems, missing, config, run, run.trained_weights)
    return {arm: known[arm] or made[arm] for arm in arms}


def _export(config: RunConfig, run: RunDir, prepared: Prepared, arms: Arms, card: Scorecard) -> Scorecard:
    """Export what is still missing, score the first GGUF file as an arm, then push.

    Returns:
        The scorecard with that arm, or `card` if no file was scored.
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
        run,
        config,
        prepared.problems,
        {**arms, "gguf": known},
        Further(prepared.contamination, card.recovery, card.forgetting),
    )


def dry_run(config: RunConfig) -> str:
    """Do everything up to loading the model; returns what would be trained, and one row as the model sees it.

    Raises:
        InputError: as `train` would.
    """
    run = RunDir(config.train.run_dir or run_names.default_run_dir(config))
    network.require("model", model_path(config.model.model_name_or_path))
    choice = registry.choose(config.model)
    techniques.check(config, choice.engine)
    registry.apply_patches(choice)
    prepared = preparation.prepare(config)
    preparation.announce(prepared, config)
    obstacle = registry.obstacle(config.model)
    row = inspection.inspect_rows(prepared.renderer, prepared.train[:1], 1)[0]
    return "\n".join(
        [
            f"would write to {run.path}",
            f"engine {choice.engine}: {choice.why}",
            f"steps: {preparation.describe_steps(config, preparation.examples_per_epoch(config, prepared))}",
            *([f"this machine cannot train it: {obstacle.message}"] if obstacle else []),
            f"row {row.where}:",
            row.as_blocks(),
        ]
    )
