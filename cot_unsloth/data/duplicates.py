"""Rows that occur twice, questions with different answers, and questions that are nearly the same.

Rows are compared by hashes, of which a row takes 48 bytes in all; only rows whose hashes agree are looked at again. Two of a
million texts have the same hash of 64 bits with a probability of 3e-8.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from cot_unsloth.core import answers
from cot_unsloth.core.types import Example
from cot_unsloth.data.decontaminate import folded_words
from cot_unsloth.storage.stored_rows import rows_at

if TYPE_CHECKING:
    import numpy as np

_NEAR_DUPLICATE = 0.8
"""Jaccard similarity of word triples from which two questions are near duplicates. K. Lee and others (2022,
arXiv 2107.06499) use 0.8 of 5-grams for documents; questions are shorter."""
_HASHES, _BANDS = 24, 8
"""MinHash with 8 bands of 3 hashes finds a pair of similarity 0.8 with probability 1 - (1 - 0.8^3)^8 = 99.7%."""
_REMEMBERED = 256
"""Questions whose triples are kept while pairs are compared."""
_AT_ONCE = 128
"""Questions that are hashed at once: their 24 hashes of each triple take about 1 MB."""


class Duplicates:
    """The duplicates among some examples."""

    def __init__(self, examples: Sequence[Example]) -> None:
        import numpy as np

        self._examples = examples
        hashes = array("Q")
        for example in examples:
            hashes.append(_hash(example.id))
            hashes.append(_hash(f"{example.id} {' '.join(_text(example).split())}"))
        ids, rows = np.frombuffer(hashes, np.uint64).reshape(-1, 2).T
        self._first, first_of = _first_of_each(ids)
        self.exact = rows_at(examples, array("Q", _repeats(rows).tolist()))
        """Rows that repeat an earlier row word for word."""
        repeated = np.flatnonzero(first_of != np.arange(len(ids)))
        pairs = zip(repeated.tolist(), first_of[repeated].tolist(), strict=True)
        self.differing = rows_at(examples, array("Q", (at for at, first in pairs if self._differ(first, at))))
        """Rows that repeat a question with a different answer than its first."""

    def _differ(self, first: int, at: int) -> bool:
        before, answer = self._examples[first].answer, self._examples[at].answer
        # Without the symbolic comparison, which is too slow for all rows.
        return before != answer and answers.compare(before, answer, answers.TimeLimit(0.0)) != "same"

    def near(self) -> tuple[int, list[tuple[Example, Example]]]:
        """How many pairs of questions share most of their word triples, numbers included, and the first three of them.

        By MinHash (A. Broder, 1997).
        """
        questions = rows_at(self._examples, array("Q", self._first.tolist()))

        @functools.lru_cache(maxsize=_REMEMBERED)
        def triples_of(position: int) -> set[tuple[str, ...]]:
            return _triples(questions[position].question)

        def alike(pair: int) -> bool:
            first, second = map(triples_of, divmod(pair, len(questions)))
            return len(first & second) >= _NEAR_DUPLICATE * len(first | second)

        pairs = array("Q", filter(alike, _candidates(questions)))
        named = (divmod(pair, len(questions)) for pair in pairs[:3])
        return len(pairs), [(questions[first], questions[second]) for first, second in named]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _text(example: Example) -> str:
    return "\n".join([*(part.text for part in example.trace.parts), example.trace.output])


def _first_of_each(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The positions of the first occurrences of values, ascending; and for each value, where it occurs first."""
    import numpy as np

    order = np.argsort(values, kind="stable")
    begins = np.flatnonzero(np.append(True, values[order[1:]] != values[order[:-1]])[: len(values)])
    first_of = np.empty_like(order)
    first_of[order] = np.repeat(order[begins], np.diff(np.append(begins, len(values))))
    return np.sort(order[begins]), first_of


def _repeats(values: np.ndarray) -> np.ndarray:
    """The positions of values that occurred before, ascending."""
    import numpy as np

    return np.flatnonzero(_first_of_each(values)[1] != np.arange(len(values)))


def _triples(question: str) -> set[tuple[str, ...]]:
    question_words = folded_words(question)
    return set(zip(question_words, question_words[1:], question_words[2:], strict=False)) or {question_words}


def _candidates(questions: Sequence[Example]) -> Iterator[int]:
    """Pairs that may be alike, `n * one + other` for n questions, ascending."""
    import numpy as np

    bands = _bands(questions)
    pairs = np.zeros(0, np.uint64)
    for band in range(_BANDS):
        order = np.argsort(bands[:, band], kind="stable").astype(np.uint64)
        values = bands[order, band]
        # Neighbours only: enough to report each member of a cluster. 0 stands for questions of too few triples.
        same = np.flatnonzero((values[1:] == values[:-1]) & (values[1:] != 0))
        pairs = np.union1d(pairs, order[same] * np.uint64(len(questions)) + order[same + 1])
    return iter(pairs.tolist())


def _bands(questions: Iterable[Example]) -> np.ndarray:
    """For each question, the hashes of its 8 bands, 32 bits each; 0 for one of fewer than three triples.

    Short questions, such as "What is 3 plus 4?", share most triples by chance.
    """
    import numpy as np

    # Odd factors of 64 bits, of whose products the upper half is taken (M. Dietzfelbinger and others, 1997).
    factors = np.random.default_rng(1).integers(0, 1 << 63, size=_HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    hashes = bytearray()
    texts = (question.question for question in questions)
    for some in iter(lambda: list(itertools.islice(texts, _AT_ONCE)), []):
        hashes += _bands_of(some, factors).tobytes()
    return np.frombuffer(hashes, np.uint32).reshape(-1, _BANDS)


def _bands_of(questions: Sequence[str], factors: np.ndarray) -> np.ndarray:
    import numpy as np

    triples = [_triples(question) for question in questions]
    values = np.array([zlib.crc32(" ".join(triple).encode()) for some in triples for triple in some], np.uint64)
    counts = np.array([len(some) for some in triples])
    hashed = ((values + np.uint64(1))[:, None] * factors) >> np.uint64(32)
    # The minima of two sets are equal with a probability that is their Jaccard similarity.
    least = np.minimum.reduceat(hashed, np.cumsum(counts) - counts, axis=0).reshape(-1, _BANDS, _HASHES // _BANDS)
    mixed = (least * factors[: _HASHES // _BANDS]).sum(axis=2, dtype=np.uint64) >> np.uint64(32)
    return np.where(counts[:, None] < 3, 0, mixed | np.uint64(1)).astype(np.uint32)
