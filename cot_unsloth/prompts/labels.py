"""Which tokens carry loss. No other module decides it.

Loss is taken on the assistant's last turn and the token that ends it; with `loss_on: all`, on its earlier turns too.
Within these, steps that were corrupted on purpose carry none (`mask_wrong_steps`): the model learns to correct an error
that it sees, not to make one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from cot_unsloth.config import DataConfig
from cot_unsloth.core import trace
from cot_unsloth.core.types import IGNORE, Example


@dataclass(frozen=True)
class Turn:
    """A turn of the assistant that carries loss, in a rendered conversation."""

    prompt: str
    """The rendered conversation up to the turn's content."""
    first: int
    """Position of its first token."""
    end: int
    """Position after the stop token that ends it."""


def labels_for(ids: Sequence[int], turns: Iterable[tuple[int, int]], masked: Collection[int] = ()) -> list[int]:
    """Labels of a row: its ids in the turns, given as (first, end) positions, and IGNORE elsewhere and in `masked`.

    Labels are not shifted: position i holds id i. Models of transformers shift them inside, so that the logits at i are
    compared with label i + 1.

    >>> labels_for([1, 2, 7, 8, 9], [(2, 5)], masked={3})
    [-100, -100, 7, -100, 9]
    """
    labels = [IGNORE] * len(ids)
    for first, end in turns:
        # The stop token is the last position of a turn and keeps its label: without it the model never learns to stop.
        labels[first:end] = ids[first:end]
    for at in masked:
        labels[at] = IGNORE
    return labels


def trained_messages(example: Example, messages: int, data: DataConfig) -> Iterator[int]:
    """Which messages of a row's conversation carry loss: the last, and with `loss_on: all` earlier assistant turns.

    The data may exempt a turn. Turns without text are left out: they would teach the model to say nothing.

    Args:
        example: the row.
        messages: number of messages of the conversation; the last two are the question and the answer.
        data: the settings.
    """
    # A system message may come first, so positions are counted from the end.
    first_of_history = messages - 2 - len(example.history)
    for at, turn in enumerate(example.history if data.loss_on == "all" else ()):
        exempt = at < len(example.history_loss) and not example.history_loss[at]
        if turn["role"] == "assistant" and turn["content"].strip() and not exempt:
            yield first_of_history + at
    yield messages - 1


def positions_in(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> frozenset[int]:
    """Positions of the tokens that overlap one of the spans of characters, even by one character.

    Tokens do not end where steps do: a byte-level BPE joins a step's last character with the line break after it, and
    one character of several bytes (é, 🙂) may be several tokens, all with its offsets. Masking every token that overlaps
    leaks nothing of a corrupted step, at the price of a line break now and then.

    >>> sorted(positions_in([(0, 3), (3, 5), (5, 8), (8, 9)], [(4, 6)]))
    [1, 2]
    """
    return frozenset(
        at
        for span_begin, span_end in spans
        for at, (begin, end) in enumerate(offsets)
        if begin < span_end and end > span_begin
    )


def corrupted_spans(example: Example, data: DataConfig, start: int) -> list[tuple[int, int]]:
    """Begin and end of a row's corrupted steps in its rendered conversation, whose answer begins at character `start`."""
    spans = trace.corrupted_spans(example.trace, data.trace_layout, data.thinking_tags)
    # In characters, not tokens: only the tokenizer's offsets say which tokens a step became in its context.
    return [(start + begin, start + end) for begin, end in spans]
