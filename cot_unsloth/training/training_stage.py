"""The training stage of a run: resume from the newest checkpoint, log metrics, save weights and fit report."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path

from cot_unsloth.config import RunConfig
from cot_unsloth.core.errors import DivergedError
from cot_unsloth.core.progress import Bar, bar, memory, note
from cot_unsloth.core.results import FitReport
from cot_unsloth.models.protocols import Trainable
from cot_unsloth.storage import atomic, checkpoints, records, run_folder
from cot_unsloth.storage.run_folder import RunDir
from cot_unsloth.training import run_record
from cot_unsloth.training.method import TrainingHooks, TrainingStep, training_method
from cot_unsloth.training.preparation import Prepared


def train_weights(config: RunConfig, run: RunDir, prepared: Prepared, engine: Trainable) -> FitReport:
    """Train the adapter, or every weight, from the newest checkpoint; save it and the fit report.

    Raises:
        DivergedError: the loss or the gradient is not finite.
        EngineError: memory ran out.
    """
    while True:
        resume_from = checkpoints.newest_whole(run)
        try:
            return _train_from(resume_from, config, run, prepared, engine)
        except DivergedError as error:
            if resume_from is None or error.step != run_folder.checkpoint_step(resume_from) + 1:
                raise
            # The first step depends only on the checkpoint's weights and the next rows, so no learning rate avoids this.
            note(
                f"{resume_from.name} is removed: {error.message}, the first after it, which no learning rate would avoid"
            )
            atomic.remove_tree(resume_from)
            run_record.write_resumed_from(run)


def _train_from(
    resume_from: Path | None, config: RunConfig, run: RunDir, prepared: Prepared, engine: Trainable
) -> FitReport:
    done = run_folder.checkpoint_step(resume_from) if resume_from else 0
    if resume_from:
        note(f"training resumes from step {done}")
    rows = [row for row in records.read_jsonl(run.metrics) if row["step"] <= done]
    before, tokens_before = (rows[-1]["seconds"], rows[-1]["num_tokens"]) if rows else (0.0, 0)
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        progress: Bar

        def on_start(total: int) -> None:
            # Not earlier: a method with several stages has a bar for each, and a terminal shows one bar at a time.
            nonlocal progress
            progress = stack.enter_context(bar("fit"))
            progress.restart(total, done)

        def on_step(step: TrainingStep) -> None:
            facts = {"loss": f"{step.loss:.4f}"} if step.loss is not None and config.train.method != "grpo" else {}
            speed = f"{(step.tokens - tokens_before) / (time.monotonic() - began):.0f}"
            progress.advance(1, **facts, **{"tokens/s": speed, "memory": memory()})

        def on_log(row: Mapping[str, float]) -> None:
            rows.append({**row, "seconds": round(before + time.monotonic() - began, 2)})
            records.write_jsonl(run.metrics, rows)
            progress.advance(0, **_shown(row))

        hooks = TrainingHooks(
            checkpoints=run.checkpoints,
            resume_from=resume_from,
            on_start=on_start,
            on_step=on_step,
            on_log=on_log,
        )
        report = training_method(config.train.method).train(engine, prepared, hooks)
    from cot_unsloth.models.devices import free_memory  # imports torch

    free_memory()  # the optimizer and activations, before the model answers
    report = report.model_copy(update={"seconds": round(before + report.seconds, 2)})
    report.write(run.fit_report)
    engine.save(run.model if config.train.full_finetuning else run.adapter)
    return report


_SHOWN = {
    "reward": "reward",
    "rewards/correct/mean": "right",
    "completions/mean_length": "tokens",
    "entropy": "entropy",
}


def _shown(row: Mapping[str, float]) -> dict[str, str]:
    """The metrics that the progress line shows: for reinforcement learning, figures about its attempts.

    >>> _shown({"loss": 0.5, "entropy": 0.2})
    {}
    """
    if "reward" not in row:  # supervised fine-tuning has an entropy too, but it is of no use there
        return {}
    return {label: f"{row[name]:.3g}" for name, label in _SHOWN.items() if row.get(name) is not None}
