"""The training curve: accuracy at the checkpoints of runs that differ only in their seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cot_unsloth.config import RunConfig
from cot_unsloth.core import statistics
from cot_unsloth.core.errors import InputError, RunDirError
from cot_unsloth.core.progress import note
from cot_unsloth.core.results.curves import CheckpointPoint, MeanPoint, TrainingCurve
from cot_unsloth.core.statistics import mean
from cot_unsloth.core.types import Example
from cot_unsloth.evaluation import score
from cot_unsloth.models.adapter_files import starting_adapter
from cot_unsloth.models.generation import complete_prompts, draft_of, identity
from cot_unsloth.models.target import Target
from cot_unsloth.storage import records, run_folder
from cot_unsloth.storage.run_folder import RunDir


def training_curve(
    runs: Sequence[RunDir], config: RunConfig, examples: Sequence[Example], checkpoints: int, folder: RunDir
) -> TrainingCurve:
    """Accuracy at each run's checkpoints, and over the runs.

    The interval over runs is Student's t of their accuracies, so it covers the effect of the seed; for a single run it is
    Wilson's, which covers only the choice of problems.

    Raises:
        RunDirError: a run has no checkpoints.
    """
    curves = {str(run.path): _checkpoints(run, config, examples, checkpoints, folder) for run in runs}
    first, *others = [{point.step: point for point in curve} for curve in curves.values()]
    steps = [step for step in first if all(step in other for other in others)]
    return TrainingCurve(
        runs=curves, mean=tuple(_mean_point([points[step] for points in (first, *others)]) for step in steps)
    )


def _mean_point(points: Sequence[CheckpointPoint]) -> MeanPoint:
    """Several runs at one step; before training, all are one model, and its interval is Wilson's."""
    step, accuracies = points[0].step, [point.accuracy for point in points]
    several = step and len(points) > 1
    return MeanPoint(
        step=step,
        training_tokens=mean([point.training_tokens for point in points]),
        accuracy=mean(accuracies),
        ci95=statistics.rounded(statistics.t_interval(accuracies) if several else points[0].ci95),
        runs=len(points),
    )


def scored_models(run: RunDir, most: int) -> dict[int, Path | None]:
    """By step, at most `most` checkpoints of a run, evenly spaced, including the last; at 0 the model it began with.

    That is the base (None), or the adapter that it continued; there is none if that adapter no longer exists.

    Raises:
        RunDirError: it has no checkpoints.
    """
    checkpoints = run.complete_checkpoints()
    if not checkpoints:
        raise RunDirError(
            "has no checkpoints", where=str(run.path), hint="train with --save-steps N --save-total-limit 100"
        )
    if len(checkpoints) > most:
        checkpoints = [checkpoints[round((i + 1) * len(checkpoints) / most) - 1] for i in range(most)]
    models: dict[int, Path | None] = {}
    try:
        models[0] = starting_adapter(run.read_config())
    except InputError as error:
        note(f"the adapter that {run.path.name} began with is not scored: {error}")
    return models | {run_folder.checkpoint_step(checkpoint): checkpoint for checkpoint in checkpoints}


def _checkpoints(
    run: RunDir, config: RunConfig, examples: Sequence[Example], most: int, folder: RunDir
) -> tuple[CheckpointPoint, ...]:
    """Accuracy of the models that `scored_models` lists."""
    tokens = {row["step"]: row["num_tokens"] for row in records.read_jsonl(run.metrics)}
    config = config.replaced(fast_inference=False)  # starting vLLM for each checkpoint takes longer than it saves
    points = []
    for step, checkpoint in scored_models(run, most).items():
        right = _count_right(checkpoint, config, examples, folder, step, run.path.name)
        points.append(
            CheckpointPoint(
                step=step,
                training_tokens=_tokens_at(tokens, step),
                accuracy=right / len(examples),
                ci95=statistics.rounded(statistics.wilson(right, len(examples))),
            )
        )
    return tuple(points)


def _count_right(
    checkpoint: Path | None, config: RunConfig, examples: Sequence[Example], folder: RunDir, step: int, run: str
) -> int:
    """Right answers of a checkpoint, or of the model that training began with."""
    renderer, engine = Target(config, checkpoint).load()
    prompts = [renderer.prompt(example, "tuned") for example in examples]
    draft = draft_of(folder, f"step{step}", prompts, config.sampling_params, identity(config, checkpoint))
    completions = complete_prompts(engine, prompts, config.sampling_params, f"score {run} at step {step}", draft)
    engine.close()
    tags = renderer.data.thinking_tags
    return sum(
        score.judge(e, c, tagged=True, thinking_tags=tags).correct for e, c in zip(examples, completions, strict=True)
    )


def _tokens_at(tokens: Mapping[int, int], step: int) -> float:
    """Tokens trained on at a step, interpolated between the log rows around it where that step was not logged."""
    known = {0: 0} | dict(tokens)
    below, above = max(s for s in known if s <= step), min((s for s in known if s >= step), default=max(known))
    if below == above:
        return float(known[below])
    return known[below] + (known[above] - known[below]) * (step - below) / (above - below)
