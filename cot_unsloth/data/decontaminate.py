"""Training rows that overlap with the test set.

A model that was trained on a test question scores too well on it. An overlap is an equal question, or 13 consecutive
words of a test question anywhere in a row (T. Brown and others, 2020, appendix C); 8 consecutive words are only counted,
since they also coincide by chance. Rows of one file often share phrases, so 13 words drop a row only if the test set is a
benchmark, not if it is held out from the same file.
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
class Overlap:
    """Indices of the training rows that overlap with the test set, by kind; a row can be in all three."""

    rows: int
    exact: frozenset[int]
    ngram_13: frozenset[int]
    ngram_8: frozenset[int]

    def dropped(self, *, ngrams: bool) -> frozenset[int]:
        """Rows not to train on; with `ngrams`, also those that share 13 consecutive words."""
        return self.exact | (self.ngram_13 if ngrams else frozenset())

    def counts(self, dropped: int) -> results.Contamination:
        """Counts for `scorecard.json`; `dropped` is how many rows were left out of training."""
        return results.Contamination(
            training_rows=self.rows,
            exact=len(self.exact),
            ngram_13=len(self.ngram_13),
            ngram_8=len(self.ngram_8),
            dropped=dropped,
        )


def words(text: str) -> tuple[str, ...]:
    """The words and numbers of a text, in lower case.

    >>> words("How many? 1,000 -- or x_2!")
    ('how', 'many', '1', '000', 'or', 'x', '2')
    """
    return tuple(_WORD.findall(text.casefold()))


def _normalized(question: str) -> str:
    """A question without differences of case and spacing. Signs are kept: 3 + 4 is not 3 - 4."""
    return " ".join(question.split()).casefold()


def ngrams(tokens: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """Every n consecutive words.

    >>> list(ngrams(("a", "b", "c"), 2))
    [('a', 'b'), ('b', 'c')]
    """
    return (tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def find_overlap(train: Sequence[Example], test: Sequence[Example]) -> Overlap:
    """Which training rows (question, earlier turns or solution) overlap with a test question."""
    questions = [words(example.question) for example in test]
    equal = {_normalized(example.question) for example in test}
    # The n-grams of the test set are in memory, and training rows are streamed past them: the test set is the small
    # one.
    long, short = ({gram for question in questions for gram in ngrams(question, n)} for n in (LONG, SHORT))
    exact, by_long, by_short = set(), set(), set()
    for index, example in enumerate(train):
        texts = [example.question, *(turn["content"] for turn in example.history)]
        # The solution as well as the question: traces often restate the problem in full.
        row_words = words("\n".join([*texts, *(part.text for part in example.trace.parts), example.trace.output]))
        if _normalized(example.question) in equal:
            exact.add(index)
        if not long.isdisjoint(ngrams(row_words, LONG)):
            by_long.add(index)
        if not short.isdisjoint(ngrams(row_words, SHORT)):
            by_short.add(index)
    return Overlap(len(train), frozenset(exact), frozenset(by_long), frozenset(by_short))


def remove_overlap(train: Sequence[Example], overlap: Overlap, *, ngrams: bool) -> tuple[list[Example], list[Reject]]:
    """The training rows to keep, and the rejects; see `Overlap.dropped`."""
    dropped = overlap.dropped(ngrams=ngrams)
    details = dict.fromkeys(overlap.exact, "its question is one of the test set")
    rejects = [
        Reject(
            train[index].where,
            "contaminated",
            details.get(index, f"it shares {LONG} words in a row with a question of the test set"),
            train[index].question[:2000],
        )
        for index in sorted(dropped)
    ]
    return [example for index, example in enumerate(train) if index not in dropped], rejects
