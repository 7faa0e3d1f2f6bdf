"""Decides which questions of a file are held out for scoring.

The split is a hash of the question and `eval_seed`: it depends neither on the order of the rows nor on the training seed,
and all rows of one question are on one side.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterable, Sequence

from cot_unsloth.core.types import Example


def held_out_ids(examples: Sequence[Example], fraction: float, most: int, seed: int) -> frozenset[str]:
    """The ids of the questions to score on.

    They are a `fraction` of the distinct questions, rounded up, at most `most`, with at least one left to train on. A smaller
    fraction selects a subset of a larger one.
    """
    import numpy as np

    # 8 bytes per row instead of its id as text. Two of a million ids begin alike with a probability of 3e-8.
    begins = array("Q", (int.from_bytes(_digest(example.id, seed)[:8], "big") for example in examples))
    distinct = np.unique(np.frombuffer(begins, np.uint64))
    # Of questions, not rows: a question with ten solutions counts once.
    count = min(math.ceil(fraction * len(distinct)), most, len(distinct) - 1)
    if count <= 0:
        return frozenset()
    first = np.flatnonzero(np.frombuffer(begins, np.uint64) <= distinct[count - 1])
    return frozenset(_shuffled({examples[at].id for at in first.tolist()}, seed)[:count])


def distinct_questions(examples: Iterable[Example], most: int, seed: int) -> list[Example]:
    """Each question once, at most `most` of them, drawn with `seed` and kept in their order."""
    first: dict[str, Example] = {}
    for example in examples:
        first.setdefault(example.id, example)
    selected = set(_shuffled(first, seed)[:most])
    return [example for id_, example in first.items() if id_ in selected]


def _shuffled(ids: Iterable[str], seed: int) -> list[str]:
    # Sorted by hash, not random.shuffle: the sequence of two questions does not depend on which others there are, so
    # adding rows moves only the few questions at the border of the split.
    return sorted(ids, key=lambda id_: _digest(id_, seed))


def _digest(id_: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}|{id_}".encode()).digest()
