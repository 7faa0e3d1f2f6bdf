"""Intervals and tests compared with published values and independent calculations."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from cot_unsloth.core.statistics import mcnemar, paired_interval, pass_at_k, resolvable, wilson


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(right: int, n: int, low: float, high: float) -> None:
    assert wilson(right, n) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_wilson_gives_0_to_1_without_observations() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(20, 20)[1] == 1.0


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (5, 0), (7, 3), (6, 6)])
def test_mcnemar_equals_a_count_of_all_outcomes(gained: int, lost: int) -> None:
    n = gained + lost
    extreme = abs(gained - lost)
    ways = sum(abs(n - 2 * sum(toss)) >= extreme for toss in itertools.product((0, 1), repeat=n))
    assert mcnemar(gained, lost) == pytest.approx(ways / 2**n)


@pytest.mark.parametrize(
    ("n", "gained", "lost", "low", "high"),
    # M. W. Fagerland and others, Statistics in Medicine 33 (2014): airway hyper-responsiveness before and after stem
    # cell transplantation (Bentur, 2009), complete response before and after consolidation (Cavo, 2012).
    [(21, 1, 7, -0.5084, -0.0134), (161, 6, 16, -0.1195, -0.0032)],
)
def test_the_paired_interval_gives_the_published_ones(n: int, gained: int, lost: int, low: float, high: float) -> None:
    assert paired_interval(n, gained, lost) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    assert paired_interval(n, lost, gained) == (pytest.approx(-high, abs=5e-5), pytest.approx(-low, abs=5e-5))


def test_the_paired_interval_is_wide_for_few_problems() -> None:
    """Resampling one problem gives [0, 0] or [1, 1]; resampling fifty that did not change gives [0, 0]."""
    assert paired_interval(0, 0, 0) == (-1.0, 1.0)
    for gained in (0, 1):
        low, high = paired_interval(1, gained, 0)
        assert low < -0.7
        assert high > 0.9
    low, high = paired_interval(50, 0, 0)
    assert -low == pytest.approx(high) == pytest.approx(0.053, abs=5e-4)


def test_the_paired_interval_contains_the_estimate_and_agrees_with_the_test() -> None:
    for n, gained, lost in ((m, g, k) for m in (6, 20, 80) for g in range(m + 1) for k in range(m - g + 1)):
        low, high = paired_interval(n, gained, lost)
        assert -1 <= low <= (gained - lost) / n <= high <= 1
        if mcnemar(gained, lost) < 0.05:  # the exact test is the stricter of the two
            assert not low <= 0 <= high, (n, gained, lost)


@pytest.mark.parametrize("n", [1, 5, 20, 60])
@pytest.mark.parametrize(("up", "down"), [(0.01, 0.01), (0.1, 0.02), (0.2, 0.2), (0.4, 0.1), (0.9, 0.02)])
def test_the_paired_interval_has_its_nominal_coverage_at_any_n(n: int, up: float, down: float) -> None:
    """Exact coverage: over all outcomes of n problems, weighted with their multinomial probability."""
    same, held = 1 - up - down, 0.0
    for gained in range(n + 1):
        for lost in range(n - gained + 1):
            low, high = paired_interval(n, gained, lost)
            if low <= up - down <= high:
                ways = math.comb(n, gained) * math.comb(n - gained, lost)
                held += ways * up**gained * down**lost * same ** (n - gained - lost)
    assert held >= 0.945


def test_intervals_have_their_nominal_coverage() -> None:
    """Simulated: Wilson's interval contains the true share, and the paired one the true difference, in 95% of samples."""
    rng = random.Random(2)
    for share, n in ((0.5, 50), (0.9, 80), (0.97, 300)):
        held = sum(
            low <= share <= high
            for low, high in (wilson(sum(rng.random() < share for _ in range(n)), n) for _ in range(1000))
        )
        assert 0.925 <= held / 1000 <= 0.985, (share, n)
    up, down, n = 0.25, 0.1, 200
    held = 0
    for _ in range(400):
        outcomes = [rng.random() for _ in range(n)]
        gained, lost = sum(x < up for x in outcomes), sum(up <= x < up + down for x in outcomes)
        low, high = paired_interval(n, gained, lost)
        held += low <= up - down <= high
    assert 0.92 <= held / 400 <= 0.98


def test_the_smallest_detectable_difference_is_detected_with_80_percent_power() -> None:
    rng, n, discordant = random.Random(3), 300, 0.3
    least = resolvable(n, discordant)
    assert least is not None
    up = (discordant + least) / 2
    result = 0
    for _ in range(600):
        outcomes = [rng.random() for _ in range(n)]
        result += mcnemar(sum(x < up for x in outcomes), sum(up <= x < discordant for x in outcomes)) < 0.05
    assert 0.72 <= result / 600 <= 0.86  # the exact test is a little stricter than the formula's normal one
    assert resolvable(0, 0.5) is None
    assert resolvable(5, 1.0) is None, "five problems, all changed one way: p = 0.0625"


@pytest.mark.parametrize("n", [6, 10, 20, 78, 200])
def test_if_few_problems_change_six_of_them_are_needed(n: int) -> None:
    least = resolvable(n, 0.0)
    assert least is not None
    power = sum(math.comb(n, k) * least**k * (1 - least) ** (n - k) for k in range(n + 1) if mcnemar(k, 0) < 0.05)
    assert power == pytest.approx(0.8, abs=1e-6)


def test_more_problems_detect_smaller_differences() -> None:
    for discordant in (0.0, 0.05, 0.2, 0.5, 1.0):
        result = [resolvable(n, discordant) for n in range(6, 400)]
        assert all(a is not None and b is not None and b <= a + 0.02 for a, b in itertools.pairwise(result))
        assert result[-1] is not None
        assert result[-1] < 0.15


@pytest.mark.parametrize(("n", "right", "k"), [(5, 2, 1), (5, 2, 3), (6, 0, 2), (6, 6, 4), (7, 3, 7)])
def test_pass_at_k_is_the_share_of_draws_with_a_right_answer(n: int, right: int, k: int) -> None:
    draws = list(itertools.combinations([True] * right + [False] * (n - right), k))
    assert pass_at_k(n, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize(("n", "right", "k"), [(5, 2, 0), (5, 2, 6), (5, 6, 2), (5, -1, 2)])
def test_pass_at_k_refuses_impossible_counts(n: int, right: int, k: int) -> None:
    with pytest.raises(ValueError, match="are not possible with"):
        pass_at_k(n, right, k)
