"""The protocol of training methods, and how to add one.

An engine (`models`) loads a base, puts an adapter on it, generates, scores tokens and saves. A training method changes
the weights: it chooses the rows to train on and the trainer, checks both, and returns a report. The training stage
depends on neither: it calls `train` and lets the engine save.

To add a method, write one module here with a class that has `name` and `train`, and one line in
`config.choices.METHODS`. `sft` imitates rows, `grpo` draws attempts from the model and reinforces them. What they share:

- model: `engine.attach_trainable_weights()` gives the model to train, on top of `train.init_adapter` where that is set;
  `engine.chat.tokenizer` is its tokenizer.
- data: `data.samples` are rows as token ids with labels; `data.renderer.prompt(example, "tuned")` for each of `data.train`
  is a prompt as in scoring, which `engine.answer_ids` answers.
- settings: a section of its own in `config`, from which it makes the trainer's arguments. Pass them through
  `engine.adapt_arguments`, because Unsloth does gradient checkpointing itself.
- checkpoints, resuming, divergence: `class Trainer(StagedCheckpoints, trl.XTrainer)`, `trainers.configure_trainer`, then
  `trainers.run`. It enters `trainer.context`, in which the model computes faster and must not answer: pause it for that.
- report: `trainers.report`, with the rows that were trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cot_unsloth.config.choices import METHODS, import_object
from cot_unsloth.core.results import FitReport
from cot_unsloth.models.protocols import Trainable
from cot_unsloth.storage.run_folder import RunDir
from cot_unsloth.training.preparation import Prepared


@dataclass(frozen=True)
class TrainingStep:
    """The state of training after an optimizer step."""

    step: int
    total: int
    loss: float | None
    """Loss of this step: with `sft`, the mean per supervised token; None if the trainer does not report it."""
    tokens: int
    """Tokens seen since training began, those before a resume included; padding is not counted."""


@dataclass(frozen=True)
class TrainingHooks:
    """Where training keeps its checkpoints, and the callbacks while it runs."""

    checkpoints: Path
    """The folder of `checkpoint-N`."""
    resume_from: Path | None = None
    """The checkpoint to resume from; None starts at step 0."""
    on_start: Callable[[int], None] = lambda total: None
    """Called with the number of optimizer steps."""
    on_step: Callable[[TrainingStep], None] = lambda step: None
    on_log: Callable[[Mapping[str, float]], None] = lambda row: None
    """Called with a row of metrics: those of the trainer, with `step` and `num_tokens`."""

    @property
    def run(self) -> RunDir:
        """The run folder that holds the checkpoints; a method with files of its own keeps them there too."""
        return RunDir(self.checkpoints.parent)


class TrainingMethod(Protocol):
    """A way to train the weights of an engine."""

    name: str
    """The value of `train.method`."""

    def train(self, engine: Trainable, data: Prepared, hooks: TrainingHooks) -> FitReport:
        """Train the engine's weights, from the base or from `hooks.resume_from`; the engine holds the result.

        Checkpoints appear complete or not at all, and training resumed from one gives the same weights to the bit.

        Raises:
            InvariantError: the trainer would not train on the rows it was given.
            DivergedError: the loss or the gradient is not finite; the step it carries is the one that failed.
            GuardError: a method that draws attempts no longer improves the model.
            EngineError: it ran out of memory.
        """
        ...


def training_method(name: str) -> TrainingMethod:
    """The training method of that name."""
    method: TrainingMethod = import_object(METHODS[name])()
    return method
