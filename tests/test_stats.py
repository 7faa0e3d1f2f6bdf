"""Intervals and tests, against published values and an independent reckoning."""

from __future__ import annotations

import itertools

import pytest

from cot_unsloth.stats import mcnemar, wilson


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(right: int, n: int, low: float, high: float) -> None:
    assert wilson(right, n) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_wilson_knows_nothing_of_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(20, 20)[1] == 1.0


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (5, 0), (7, 3), (6, 6)])
def test_mcnemar_counts_the_ways(gained: int, lost: int) -> None:
    n = gained + lost
    extreme = abs(gained - lost)
    ways = sum(abs(n - 2 * sum(toss)) >= extreme for toss in itertools.product((0, 1), repeat=n))
    assert mcnemar(gained, lost) == pytest.approx(ways / 2**n)
