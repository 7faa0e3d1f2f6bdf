"""Sample answers for a report: a few of each group, each split into blocks of thinking and output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cot_unsloth.core import trace
from cot_unsloth.core.types import Score, ThinkingTags

GROUPS = {
    "won": "wrong before, right now",
    "both right": "right before and now",
    "both wrong": "wrong before and now",
    "lost": "right before, wrong now",
}
_OF_A_GROUP = 3


@dataclass(frozen=True)
class Pair:
    """Two answers to one problem."""

    base: Score | None
    """None where only one arm was scored."""
    tuned: Score


@dataclass(frozen=True)
class Group:
    """Problems with the same change from base to tuned."""

    name: str
    says: str
    count: int
    pairs: list[Pair]
    """A few of them."""

    @property
    def css(self) -> str:
        """The class of its colour."""
        return self.name.replace(" ", "-")


@dataclass(frozen=True)
class Piece:
    """Some text of a block of thinking."""

    kind: str
    """`thinking`, `reflection`, or `questioned`: the line before a reflection, which the reflection reconsiders."""
    text: str


@dataclass
class Block:
    """A part of an answer: thinking with its reflections, the output, or text outside all sections."""

    kind: str
    pieces: list[Piece] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All of it, without the empty lines around it."""
        return "".join(piece.text for piece in self.pieces).strip("\n")

    @property
    def lines(self) -> int:
        """Lines that are not empty."""
        return sum(bool(line.strip()) for line in self.text.splitlines())

    @property
    def reflections(self) -> int:
        """How many reflections it has."""
        return sum(piece.kind == "reflection" for piece in self.pieces)


def groups(arms: Mapping[str, Sequence[Score]], before: str | None, corrected: Sequence[str] = ()) -> list[Group]:
    """A few answers of each group: won, right twice, wrong twice, lost; of a single arm the first ones.

    Args:
        arms: scores by arm.
        before: the arm that the tuned one is compared with, which is that of the verdict.
        corrected: ids of the tuned arm's answers that correct an error.
    """
    if before is None or before not in arms or "tuned" not in arms:
        rows = next(iter(arms.values()), [])
        return [Group("answers", "the first ones", len(rows), [Pair(None, score) for score in rows[:_OF_A_GROUP]])]
    group_of = {(False, True): "won", (True, False): "lost", (True, True): "both right", (False, False): "both wrong"}
    pairs_of: dict[str, list[Pair]] = {name: [] for name in GROUPS}
    for base, tuned in zip(arms[before], arms["tuned"], strict=True):
        pairs_of[group_of[base.correct, tuned.correct]].append(Pair(base, tuned))
    return [Group(name, GROUPS[name], len(pairs), _spread(pairs, corrected)) for name, pairs in pairs_of.items()]


def _spread(pairs: Sequence[Pair], corrected: Sequence[str]) -> list[Pair]:
    """A few pairs, of different tasks where there are several.

    Of right answers the best examples come first. Wrong ones are often malformed, which must not be hidden: of them those
    with a reflection come first.
    """

    def rank(pair: Pair) -> tuple[object, ...]:
        tuned = pair.tuned
        return _rank(tuned, corrected) if tuned.correct else (trace.tags("reflection")[0] not in tuned.text,)

    ordered = sorted(pairs, key=rank)
    first_of: dict[str, Pair] = {}
    for pair in ordered:
        first_of.setdefault(pair.tuned.task, pair)
    rest = [pair for pair in ordered if not any(pair is first for first in first_of.values())]
    return [*first_of.values(), *rest][:_OF_A_GROUP]


def example(scores: Iterable[Score], corrected: Sequence[str] = ()) -> Score | None:
    """The answer that best shows what a model learned: right, complete, ended by itself, and with a corrected error.

    Args:
        scores: the answers.
        corrected: ids of those that correct an error, the best first; see `ReflectionMetrics.corrected_ids`.
    """
    return min(scores, key=lambda score: _rank(score, corrected), default=None)


def blemishes(score: Score) -> list[str]:
    """Why an answer is not an example of what was trained; empty for a right, complete answer that ended by itself.

    >>> blemishes(Score("0", "sums", "1 + 1?", "2", "2", "2", True, "no_output", 1, "length"))
    ['no output', 'cut off']
    """
    wrong, fault = ["wrong"] * (not score.correct), [score.fault.replace("_", " ")] if score.fault else []
    return [*wrong, *fault, *["cut off"] * (score.stopped == "length")]


def _rank(score: Score, corrected: Sequence[str]) -> tuple[bool, bool, bool, int]:
    """The larger, the worse an example."""
    at = corrected.index(score.id) if score.id in corrected else len(corrected)
    return not score.correct, score.fault is not None, score.stopped == "length", at


def shown_first(groups: Sequence[Group]) -> Pair | None:
    """The pair of a report that is open: the first of the right answers, those that were wrong before first."""
    right = [group for group in groups if group.name in ("won", "both right") and group.pairs]
    return min((group.pairs[0] for group in right), key=lambda pair: bool(blemishes(pair.tuned)), default=None)


def blocks(text: str, thinking_tags: ThinkingTags) -> list[Block]:
    """An answer as blocks, in its own sequence."""
    result: list[Block] = []
    for section, part in _sections(text, thinking_tags):
        kind = "thinking" if section == "reflection" else section
        if not result or result[-1].kind != kind:
            if not part.strip():
                continue
            result.append(Block(kind))
        pieces = result[-1].pieces
        if section == "reflection" and pieces and pieces[-1].kind == "thinking":
            pieces[-1:] = _questioned(pieces[-1].text)
        if pieces and pieces[-1].kind == section:
            pieces[-1] = Piece(section, pieces[-1].text + part)
        else:
            pieces.append(Piece(section, part.lstrip("\n") if not pieces else part))
    return result


def _questioned(text: str) -> list[Piece]:
    """Thinking before a reflection: its last line by itself."""
    body = text.rstrip()
    start = body.rfind("\n") + 1
    parts = [("thinking", text[:start]), ("questioned", text[start : len(body)]), ("thinking", text[len(body) :])]
    return [Piece(kind, part) for kind, part in parts if part]


def _sections(text: str, thinking_tags: ThinkingTags) -> Iterator[tuple[str, str]]:
    """A completion in segments, each with the name of its section."""
    for event in trace.scan([text], thinking_tags):
        if event.kind == "text":
            yield event.section or "outside", event.text
