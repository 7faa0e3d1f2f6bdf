"""The values that flow between rooms.

`Example(question, trace, answer) → Sample(ids, labels) → Completion → Score → Scorecard`.
All are frozen and plain: no tensor, no open file, no model. A verb takes values in and gives
values out, so each can be tested with literals.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

IGNORE = -100
"""The label of a token that carries no loss (the convention of torch's cross entropy)."""

Split = Literal["train", "validation", "test"]

PartKind = Literal["think", "reflect"]
Layout = Literal["nested", "sequential"]
ThinkingTags = Literal["thinking", "think"]
"""What the tags around reasoning are called: `<thinking>`, or `<think>` as in DeepSeek-R1 and Qwen3."""
StopReason = Literal["stop", "length"]
Message = Mapping[str, str]
"""One chat turn, `{"role": ..., "content": ...}`."""


@dataclass(frozen=True)
class Part:
    """One stretch of reasoning: a step, or a reflection on the steps before it."""

    kind: PartKind
    text: str
    injected: bool = False
    """True where a task wrote a wrong step (or its mend) on purpose. Never set for real data."""


@dataclass(frozen=True)
class Trace:
    """A chain of thought and what it ends in."""

    parts: tuple[Part, ...]
    """Empty for a problem of which only the answer is known: it can be scored on, not trained on."""
    output: str

    @property
    def injected(self) -> int:
        """How many steps were made wrong on purpose."""
        return sum(p.injected for p in self.parts if p.kind == "think")


@dataclass(frozen=True)
class Example:
    """One problem with a worked solution."""

    id: str
    """Stable across runs: a task's own id, or a hash of the question."""
    question: str
    trace: Trace
    answer: str
    """The gold answer that `<output>` is compared with."""
    task: str = "data"
    """The family it is scored under."""
    split: Split = "train"
    where: str = ""
    """`file:line` or `world:NAME#index`."""
    system: str | None = None
    """The row's own system prompt; None takes the run's."""
    history: tuple[Message, ...] = ()
    """Earlier turns of the conversation, oldest first."""
    history_loss: tuple[bool, ...] = ()
    """Of each turn of `history`, whether it may carry loss with `loss_on: all`; empty where the data says nothing
    of it, and then every assistant turn may."""
    problem: Any = None
    """The task's own problem, where it comes from a task."""


@dataclass(frozen=True)
class Reject:
    """A row that was not used, and why."""

    where: str
    reason: str
    """A short name: counts are kept by it."""
    detail: str
    row: str = ""
    """The row itself, shortened to 2,000 characters."""


@dataclass(frozen=True)
class Sample:
    """One training row, ready for the model."""

    ids: tuple[int, ...]
    """Token ids, prompt then completion; length <= max_seq_length."""
    labels: tuple[int, ...]
    """Same length as ids; IGNORE (-100) where no loss is taken."""
    id: str = ""
    """The id of the Example it came from."""

    @functools.cached_property
    def supervised(self) -> int:
        """Number of tokens that carry loss."""
        return sum(label != IGNORE for label in self.labels)


@dataclass(frozen=True)
class Prompt:
    """What a Generator answers: messages, and how the assistant's turn begins."""

    id: str
    messages: tuple[Message, ...]
    prefix: str = ""
    """Text the assistant's turn already starts with."""


@dataclass(frozen=True)
class SamplingParams:
    """How to generate."""

    max_new_tokens: int = 512
    """Budget in tokens, the prompt not counted."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 32
    """Prompts at a time; memory grows with it, results do not depend on it when greedy
    (up to floating-point ties)."""


@dataclass(frozen=True)
class Completion:
    """What a Generator said."""

    id: str
    text: str
    tokens: int
    """Generated tokens, the stop token counted."""
    stopped: StopReason
    """"stop": it ended its turn; "length": the budget ran out."""


@dataclass(frozen=True)
class Score:
    """One completion judged."""

    id: str
    task: str
    question: str
    gold: str
    text: str
    answer: str | None
    """What was extracted; None where nothing could be."""
    correct: bool
    fault: str | None
    """The first named fault of the format, or None where it is valid."""
    tokens: int
    stopped: StopReason
    steps: int | None = None
    """Steps of the gold solution."""
    tries: int | None = None
    """How often the solution began anew, the first time counted; None where there is but one go."""
    strict: bool | None = None
    """Whether its last `<output>` is right."""
    lenient: bool | None = None
    """Whether any final answer that can be read out of it is right. One of the two is `correct`, by the arm."""
    too_costly: bool = False
    """Whether comparing it with the gold answer ran over the time limit; what was not compared counts as wrong."""
