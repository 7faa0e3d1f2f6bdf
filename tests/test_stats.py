"""Intervals and tests, against published values and an independent reckoning."""

from __future__ import annotations

import itertools
import random

import pytest

from cot_unsloth.stats import mcnemar, paired_bootstrap, pass_at_k, resolvable, wilson


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


def test_the_bootstrap_is_that_of_resampled_problems() -> None:
    """Against resampling the problems themselves, one by one."""
    n, gained, lost = 60, 20, 7
    differences = [1] * gained + [-1] * lost + [0] * (n - gained - lost)
    rng = random.Random(1)
    drawn = sorted(sum(rng.choices(differences, k=n)) / n for _ in range(4000))
    low, high = paired_bootstrap(n, gained, lost)
    assert low == pytest.approx(drawn[100], abs=0.02)
    assert high == pytest.approx(drawn[3899], abs=0.02)
    assert paired_bootstrap(0, 0, 0) == (-1.0, 1.0)
    assert paired_bootstrap(50, 0, 0) == (0.0, 0.0)
    assert paired_bootstrap(60, 20, 7) == paired_bootstrap(60, 20, 7)


def test_intervals_cover_at_their_nominal_rate() -> None:
    """Simulated: Wilson's interval holds the true share, the bootstrap's the true difference, 95 times of 100."""
    rng = random.Random(2)
    for share, n in ((0.5, 50), (0.9, 80), (0.97, 300)):
        held = sum(
            low <= share <= high
            for low, high in (wilson(sum(rng.random() < share for _ in range(n)), n) for _ in range(1000))
        )
        assert 0.925 <= held / 1000 <= 0.985, (share, n)
    up, down, n = 0.25, 0.1, 200
    held = 0
    for seed in range(400):
        outcomes = [rng.random() for _ in range(n)]
        gained, lost = sum(x < up for x in outcomes), sum(up <= x < up + down for x in outcomes)
        low, high = paired_bootstrap(n, gained, lost, seed=seed)
        held += low <= up - down <= high
    assert 0.92 <= held / 400 <= 0.98


def test_what_n_can_resolve_is_what_the_test_finds_four_times_of_five() -> None:
    rng, n, discordant = random.Random(3), 300, 0.3
    least = resolvable(n, discordant)
    assert least is not None
    up = (discordant + least) / 2
    found = 0
    for _ in range(600):
        outcomes = [rng.random() for _ in range(n)]
        found += mcnemar(sum(x < up for x in outcomes), sum(up <= x < discordant for x in outcomes)) < 0.05
    assert 0.72 <= found / 600 <= 0.86  # the exact test is a little stricter than the formula's normal one
    assert resolvable(0, 0.5) is None
    assert resolvable(10, 0.0) is None
    assert resolvable(5, 0.2) is None


@pytest.mark.parametrize(("n", "right", "k"), [(5, 2, 1), (5, 2, 3), (6, 0, 2), (6, 6, 4), (7, 3, 7)])
def test_pass_at_k_is_the_share_of_all_draws_that_hold_a_right_one(n: int, right: int, k: int) -> None:
    draws = list(itertools.combinations([True] * right + [False] * (n - right), k))
    assert pass_at_k(n, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize(("n", "right", "k"), [(5, 2, 0), (5, 2, 6), (5, 6, 2), (5, -1, 2)])
def test_pass_at_k_refuses_what_cannot_be(n: int, right: int, k: int) -> None:
    with pytest.raises(ValueError, match="do not go with"):
        pass_at_k(n, right, k)
