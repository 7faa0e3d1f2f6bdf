"""The values that the packages pass to one another.

`Example(question, trace, answer) → Sample(ids, labels) → Completion → Score → Scorecard`. All are frozen and plain: no
tensor, no open file, no model. Functions take values and return values, so they can be tested with literals.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict

IGNORE = -100
"""The label of a token that carries no loss: the default `ignore_index` of torch's cross entropy."""

Split = Literal["train", "validation", "test"]

PartKind = Literal["think", "reflect"]
TraceLayout = Literal["nested", "sequential"]
ThinkingTags = Literal["thinking", "think"]
"""The name of the tags around reasoning: `<thinking>`, or `<think>` as in DeepSeek-R1 and Qwen3."""
StopReason = Literal["stop", "length"]


class Message(TypedDict):
    """One turn of a chat, in the form that chat templates and servers use."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str
    reasoning_content: NotRequired[str]
    """The reasoning of an assistant's turn, if a client stores it separately; in training it is part of `content`."""


@dataclass(frozen=True)
class Part:
    """A piece of reasoning: steps, or a reflection on the steps before it."""

    kind: PartKind
    text: str
    injected: bool = False
    """True for a wrong step that carries no loss: one that a task corrupted on purpose, and its correction; or a wrong step
    of a model's own that `sample` has marked."""


@dataclass(frozen=True)
class Trace:
    """A chain of thought and its answer."""

    parts: tuple[Part, ...]
    """Empty if only the answer is known: the problem can be used for scoring, not for training."""
    output: str

    @property
    def injected(self) -> int:
        """Number of steps that were corrupted on purpose."""
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
    """The task whose accuracy this problem counts towards; "data" for rows of files."""
    split: Split = "train"
    where: str = ""
    """`file:line` or `world:NAME#index`."""
    system: str | None = None
    """The row's own system prompt; None takes the run's."""
    history: tuple[Message, ...] = ()
    """Earlier turns of the conversation, oldest first."""
    history_loss: tuple[bool, ...] = ()
    """For each turn of `history`, whether it may carry loss with `loss_on: all`; empty if the data does not say, and then
    every assistant turn may."""
    problem: Any = None
    """The problem that a task drew, for examples that a task generated; its type is the task's own."""


@dataclass(frozen=True)
class Reject:
    """A row that was not used, and why."""

    where: str
    reason: str
    """A short name in snake case; rejected rows are counted by it."""
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
    """The input of a model: messages, and the beginning of its answer."""

    id: str
    messages: tuple[Message, ...]
    """The conversation; without messages, `prefix` is continued as it is, without a chat template."""
    prefix: str = ""
    """Text that the answer already starts with; the model continues it."""


@dataclass(frozen=True)
class SamplingParams:
    """How completions are generated."""

    max_new_tokens: int = 512
    """Most tokens of a completion, not counting the prompt."""
    temperature: float = 0.0
    """0 is greedy decoding."""
    top_p: float = 1.0
    seed: int = 0
    batch_size: int | None = None
    """Most prompts generated at a time; None leaves it to the engine. Greedy results do not depend on it, unless two tokens are so
    nearly equal that another order of summation decides between them."""

    def seed_of(self, prompt_id: str) -> int:
        """A 31-bit seed for one prompt, independent of the other prompts.

        It depends on the prompt's id, not on its position: after a kill only the remaining prompts are asked, at other positions,
        and two samples of one problem could get the same seed and the same answer.
        """
        return random.Random(f"{self.seed}|{prompt_id}").getrandbits(31)


@dataclass(frozen=True)
class Completion:
    """A model's answer to a prompt."""

    id: str
    text: str
    tokens: int
    """Generated tokens, including the stop token."""
    stopped: StopReason
    """`stop`: the model ended its turn; `length`: it reached `max_new_tokens`."""


@dataclass(frozen=True)
class TokenLogprob:
    """A token and the logarithm of its probability."""

    text: str
    logprob: float
    """In nats, by the model's own distribution: before temperature and top_p."""


@dataclass(frozen=True)
class WrittenToken:
    """A token of an answer; the texts of all its tokens joined are the answer."""

    text: str
    """Empty for a token that ends inside a character; the token that completes it has all of it."""
    logprob: float
    """As in `TokenLogprob`."""
    most_likely: tuple[TokenLogprob, ...] = ()
    """The most likely tokens at this position, most likely first."""


class CountedText(str):
    """A piece of an answer's text of another number of tokens than one: a character may take several, a control token has none."""

    __slots__ = ("tokens",)
    tokens: int

    def __new__(cls, text: str, tokens: int) -> CountedText:
        """The text, of so many tokens."""
        piece = super().__new__(cls, text)
        piece.tokens = tokens
        return piece


@dataclass(frozen=True)
class StreamedText:
    """A piece of an answer's text, and its tokens."""

    text: str
    tokens: tuple[WrittenToken, ...]
    """Empty if they were not asked for."""
    count: int
    """Number of its tokens."""


@dataclass(frozen=True)
class Score:
    """One completion, compared with the gold answer."""

    id: str
    task: str
    question: str
    gold: str
    text: str
    answer: str | None
    """The answer read from the text; None if there is none."""
    correct: bool
    fault: str | None
    """The first fault of its format (`core.trace.Fault`), or None if the format is valid."""
    tokens: int
    stopped: StopReason
    steps: int | None = None
    """Steps of the gold solution; None if it has none."""
    tries: int | None = None
    """Attempts in the solution, including the first; None for tasks that are solved in one attempt."""
    strict: bool | None = None
    """Whether its last `<output>` is right."""
    lenient: bool | None = None
    """Whether any final answer that can be read from it is right. `correct` is one of the two, depending on the arm."""
    too_costly: bool = False
    """Whether comparing it with the gold answer exceeded the time limit; such an answer counts as wrong."""
