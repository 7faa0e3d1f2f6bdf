"""What a loaded model can do, in two protocols.

A `Generator` answers prompts; a `Trainable` is a Generator that can also be fitted and saved.
Everything above this floor speaks to these, so that one evaluation scores every kind of model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from cot_unsloth.core.results import FitReport
from cot_unsloth.core.types import Completion, Prompt, Sample, SamplingParams
from cot_unsloth.prompts.render import ChatTemplate

Advance = Callable[[Sequence[Completion]], None]
"""Called with the completions that have become whole since the last call."""


@runtime_checkable
class Generator(Protocol):
    """Answers prompts."""

    name: str

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams, advance: Advance = ...) -> list[Completion]:
        """One completion a prompt, in the order of the prompts."""
        ...


@runtime_checkable
class Streamer(Generator, Protocol):
    """A Generator that can be listened to while it speaks."""

    def stream(self, prompt: Prompt, sampling: SamplingParams) -> Iterator[str]:
        """The completion piece by piece, about a token each, the prompt's prefix left out."""
        ...

    def prompt_tokens(self, prompt: Prompt) -> int:
        """Tokens of a prompt."""
        ...


@dataclass(frozen=True)
class FitStep:
    """What a fit tells after each optimizer step."""

    step: int
    total: int
    loss: float | None
    """Mean loss a supervised token since the last report; None between reports."""
    tokens: int
    """Tokens seen since the fit began (padding not counted)."""


@dataclass(frozen=True)
class FitPlan:
    """Where a fit keeps itself, and who watches."""

    checkpoints: Path
    resume_from: Path | None = None
    on_start: Callable[[int], None] = lambda total: None
    on_step: Callable[[FitStep], None] = lambda step: None
    on_log: Callable[[Mapping[str, Any]], None] = lambda row: None
    """A row of metrics, with the `step` it belongs to."""


@runtime_checkable
class Trainable(Generator, Protocol):
    """A Generator that can be fitted."""

    chat: ChatTemplate

    def fit(self, samples: Sequence[Sample], plan: FitPlan) -> FitReport:
        """Train a fresh adapter, or with `full_finetuning` every weight, from the base or from the checkpoint resumed from.

        Raises:
            InvariantError: the trainer's rows, tokens or supervised tokens are not ours.
            DivergedError: the loss or the gradient is no finite number; what was trained until then can be trained anew.
            EngineError: it ran out of memory.
        """
        ...

    def foreseen(self, samples: Sequence[Sample]) -> list[list[bool | None]]:
        """Of each token of each sample, whether the model gives it the most after those before it; None where it carries no loss."""
        ...

    def save(self, folder: Path) -> None:
        """Write what was trained, an adapter as plain PEFT does or a whole model as transformers does, and its tokenizer."""
        ...

    def close(self) -> None:
        """Give back the memory it holds; it can be asked nothing afterwards."""
        ...

    def as_base(self) -> AbstractContextManager[None]:
        """Within, the model answers as its base."""
        ...
