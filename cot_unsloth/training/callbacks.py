"""Callbacks for a Hugging Face Trainer: report progress, and stop before a step that would make the weights NaN."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from cot_unsloth.core.errors import DivergedError
from cot_unsloth.core.interrupts import Deferred
from cot_unsloth.storage.run_folder import complete_checkpoints
from cot_unsloth.training.method import TrainingHooks, TrainingStep


class ReportProgress(TrainerCallback):
    """Calls the hooks when the Trainer starts, steps and logs."""

    def __init__(self, trainer: Any, hooks: TrainingHooks) -> None:
        self.trainer = trainer
        self.hooks = hooks

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Call `on_start` with the number of steps."""
        # A checkpoint brings back the logging_steps and save_steps that it was saved with; use those of the settings.
        state.compute_steps(args, state.max_steps)
        self.hooks.on_start(state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Call `on_log` with the row of metrics."""
        logs = logs or {}
        if "eval_loss" in logs:
            row = {"step": state.global_step, "eval_loss": float(logs["eval_loss"])}
            self.hooks.on_log({**row, "num_tokens": int(state.num_input_tokens_seen)})
        if "loss" not in logs:  # the summary at the end of training
            return
        self.hooks.on_log({"step": state.global_step, **logs, "num_tokens": int(state.num_input_tokens_seen)})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Call `on_step`."""
        if state.global_step >= state.max_steps:
            control.should_log = True  # logging_steps may not divide the number of steps; log the last loss anyway
        step = TrainingStep(
            state.global_step, state.max_steps, self.trainer.step_loss, int(state.num_input_tokens_seen)
        )
        self.hooks.on_step(step)


class SaveWhenInterrupted(TrainerCallback):
    """After Ctrl-C or SIGTERM, saves a checkpoint at the end of the step, so that no step is lost, and then raises the signal."""

    def __init__(self, signals: Deferred) -> None:
        self.signals = signals

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint."""
        if self.signals.pending is not None:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End training."""
        self.signals.raise_pending()


class StopAtDivergence(TrainerCallback):
    """Stops before the optimizer step that would make the weights NaN, not at the next row of metrics.

    Looks at the loss of the step's batches and at their gradients. Reading them makes a GPU wait once per step.
    """

    def __init__(self, trainer: Any, hooks: TrainingHooks) -> None:
        self.trainer = trainer
        self.hooks = hooks

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the losses and gradients of the step."""
        losses, self.trainer.losses = self.trainer.losses, []
        loss, step = float(torch.stack([loss.float() for loss in losses]).sum()), state.global_step + 1
        self.trainer.step_loss = loss
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss}", step)
        # With fp16 infinite gradients are normal: GradScaler starts at a scale of 65,536, skips the steps that
        # overflow, and halves the scale each time.
        if self.trainer.accelerator.scaler is None and not self._gradients_are_finite():
            raise self._diverged("the gradient is not finite", step)

    def _gradients_are_finite(self) -> bool:
        gradients = [p.grad for p in self.trainer.model.parameters() if p.grad is not None]
        return bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients)))

    def _diverged(self, message: str, step: int) -> DivergedError:
        is_half = next(self.trainer.model.parameters()).dtype in (torch.float16, torch.bfloat16)
        hint = restart_hint(self.hooks.checkpoints) + ("; or a new run with --dtype float32" if is_half else "")
        return DivergedError(f"{message} at step {step}", step=step, hint=hint)


def restart_hint(checkpoints: Path) -> str:
    """A hint for training that has diverged: the checkpoint to resume from, and how."""
    names = [checkpoint.name for checkpoint in complete_checkpoints(checkpoints)]
    if names:
        return f"the newest checkpoint, {names[-1]}, is finite: --resume from it with a lower --learning-rate"
    return "there is no checkpoint: start again with --resume and a lower --learning-rate"
