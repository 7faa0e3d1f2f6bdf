"""Training rows that give a test set away: found by words in a row, and by the whole question.

A model that has seen a test question scores too well on it. Owns how text is made comparable and what
counts as an overlap: an equal question, or 13 words in a row (T. Brown and others, 2020, appendix C), for
which a row is dropped where the test set is a benchmark; 8 words in a row are counted beside them, as they also
meet by chance. Rows of one file often share a wording, so of held-out rows of the same file words in a row are
counted and cost no row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cot_unsloth.core import results
from cot_unsloth.core.types import Example, Reject

_WORD = re.compile(r"[^\W_]+")
LONG, SHORT = 13, 8


@dataclass(frozen=True)
class Contamination:
    """What was found, by the training rows' places in their list; one row can be in all three."""

    rows: int
    exact: frozenset[int]
    ngram_13: frozenset[int]
    ngram_8: frozenset[int]

    def dropped(self, *, ngrams: bool) -> frozenset[int]:
        """Rows that must not be trained on; with `ngrams`, those that share 13 words in a row too."""
        return self.exact | (self.ngram_13 if ngrams else frozenset())

    def counts(self, dropped: int) -> results.Contamination:
        """As `scorecard.json` holds it; `dropped`: how many rows were left out of training."""
        return results.Contamination(
            training_rows=self.rows,
            exact=len(self.exact),
            ngram_13=len(self.ngram_13),
            ngram_8=len(self.ngram_8),
            dropped=dropped,
        )


def words(text: str) -> tuple[str, ...]:
    """Letters and digits alone, in small letters.

    >>> words("How many? 1,000 -- or x_2!")
    ('how', 'many', '1', '000', 'or', 'x', '2')
    """
    return tuple(_WORD.findall(text.casefold()))


def _whole(question: str) -> str:
    """A question but for case and spacing; its signs stay, as 3 + 4 is not 3 - 4."""
    return " ".join(question.split()).casefold()


def ngrams(said: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """Every n words in a row.

    >>> list(ngrams(("a", "b", "c"), 2))
    [('a', 'b'), ('b', 'c')]
    """
    return (tuple(said[i : i + n]) for i in range(len(said) - n + 1))


def find_overlap(train: Sequence[Example], test: Sequence[Example]) -> Contamination:
    """Which training rows (question, earlier turns and solution) overlap with a test question."""
    asked = [words(example.question) for example in test]
    whole = {_whole(example.question) for example in test}
    long, short = ({gram for said in asked for gram in ngrams(said, n)} for n in (LONG, SHORT))
    exact, by_long, by_short = set(), set(), set()
    for at, example in enumerate(train):
        told = [example.question, *(turn["content"] for turn in example.history)]
        said = words("\n".join([*told, *(part.text for part in example.trace.parts), example.trace.output]))
        if _whole(example.question) in whole:
            exact.add(at)
        if not long.isdisjoint(ngrams(said, LONG)):
            by_long.add(at)
        if not short.isdisjoint(ngrams(said, SHORT)):
            by_short.add(at)
    return Contamination(len(train), frozenset(exact), frozenset(by_long), frozenset(by_short))


def remove_overlap(
    train: Sequence[Example], found: Contamination, *, ngrams: bool
) -> tuple[list[Example], list[Reject]]:
    """The training rows that may stay, and those that may not; see `Contamination.dropped`."""
    gone = found.dropped(ngrams=ngrams)
    why = dict.fromkeys(found.exact, "its question is one of the test set")
    rejects = [
        Reject(
            train[at].where,
            "contaminated",
            why.get(at, f"{LONG} words in a row stand in a question of the test set"),
            train[at].question[:2000],
        )
        for at in sorted(gone)
    ]
    return [example for at, example in enumerate(train) if at not in gone], rejects
