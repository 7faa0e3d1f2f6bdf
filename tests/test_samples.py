"""Samples in an arrow table: the same rows as in tuples, in less memory."""

from __future__ import annotations

import random

import pytest

from cot_unsloth.core.samples import Samples
from cot_unsloth.core.types import IGNORE, Sample


def rows(n: int) -> list[Sample]:
    draw = random.Random(1)
    lengths = [draw.randrange(1, 9) for _ in range(n)]
    ids = [tuple(draw.randrange(200_000) for _ in range(length)) for length in lengths]
    return [Sample(row, tuple(draw.choice((IGNORE, id_)) for id_ in row), f"é{at}") for at, row in enumerate(ids)]


def test_samples_are_a_sequence_of_the_rows_they_were_made_of() -> None:
    made = rows(5000)  # more than one chunk
    samples = Samples.of(made)
    assert list(samples) == made
    assert (samples[0], samples[-1], samples[4096]) == (made[0], made[-1], made[4096])
    for part in (slice(4000, 4200), slice(None, None, -3), slice(3, 3), slice(-5, None)):
        assert list(samples[part]) == made[part]
    with pytest.raises(IndexError):
        samples[5000]
    assert Samples.of(samples) is samples


@pytest.mark.parametrize("part", [slice(None), slice(4090, 4110), slice(2, 2)])
def test_lengths_and_supervised_tokens_are_counted_in_every_part(part: slice) -> None:
    made = rows(5000)
    samples = Samples.of(made)[part]
    assert samples.lengths.tolist() == [len(sample.ids) for sample in made[part]]
    assert samples.supervised.tolist() == [sample.supervised for sample in made[part]]
    assert list(samples.last_tokens()) == [(sample.ids[-1], sample.labels[-1]) for sample in made[part]]


def test_a_token_takes_eight_bytes() -> None:
    samples = Samples.of(rows(1000))
    tokens = int(samples.lengths.sum())
    assert samples.columns.nbytes == pytest.approx(8 * tokens + 8 * 1000, rel=0.02)
