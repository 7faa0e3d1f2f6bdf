"""Intervals and tests for shares of right answers, and the smallest difference that n problems can detect."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence

from cot_unsloth.core.results import Interval, Share

Z95 = 1.959963984540054
"""The 97.5th percentile of the standard normal distribution."""


def mean(values: Sequence[float]) -> float:
    """The mean; 0 if there are no values."""
    return sum(values) / len(values) if values else 0.0


def wilson(right: float, n: int) -> tuple[float, float]:
    """Wilson's 95% score interval for a share (Wilson, JASA 22, 1927).

    It stays inside [0, 1], and covers the true share at small n and near 0 and 1, where the normal approximation does not.
    With n = 0 nothing is known: (0, 1).

    >>> [round(x, 3) for x in wilson(9, 10)]
    [0.596, 0.982]
    """
    if n == 0:
        return 0.0, 1.0
    share, z2 = right / n, Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # The formula gives exactly 0 and 1 here, but floating point may give -7e-18, which prints as -0.0%.
    low = 0.0 if right == 0 else centre - half
    high = 1.0 if right == n else centre + half
    return low, high


def share(k: int, n: int) -> Share:
    """The share k / n with Wilson's 95% interval, rounded to four places.

    >>> share(9, 10)
    Share(share=0.9, of=10, ci95=(0.5958, 0.9821))
    """
    return Share(share=k / n if n else None, of=n, ci95=rounded(wilson(k, n)))


def percent(share: float, digits: int = 1) -> str:
    """A share in per cent; with more digits where fewer would say that it is all or nothing and it is not.

    >>> percent(0.135), percent(1.0), percent(2999 / 3000), percent(0.0001), percent(0.0)
    ('13.5%', '100.0%', '99.97%', '0.01%', '0.0%')
    """
    texts = (f"{share:.{more}%}" for more in range(digits, 16))
    return next((text for text in texts if share in (0, 1) or float(text[:-1]) not in (0, 100)), f"{share:.{digits}%}")


def rounded(interval: Interval) -> Interval:
    """An interval rounded to four places, as in results."""
    low, high = interval
    return round(low, 4), round(high, 4)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact McNemar test of paired answers (McNemar, Psychometrika 12, 1947).

    `gained` problems were wrong before and are right after, `lost` the reverse. If nothing has changed, both directions are
    equally likely, so the smaller count is binomial with p = 1/2.

    >>> round(mcnemar(10, 2), 4), mcnemar(0, 0)
    (0.0386, 1.0)
    """
    n = gained + lost
    # Problems that did not change say nothing about the direction of a change, so n is not the number of problems.
    # The sum stays an integer: as a float, 2**n would overflow from n = 1024.
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1))
    # With gained == lost both tails contain the middle term, and twice one tail exceeds 1.
    return min(1.0, 2 * tail / 2**n)


SIGNIFICANT = 0.05
"""A difference is called significant below this p."""


def holm(ps: Sequence[float]) -> list[float]:
    """P values of several tests, adjusted so that the chance of any false positive stays below the level (Holm 1979).

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(ps)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        # Never below the adjusted value of a smaller p: once a test fails, all tests with a larger p fail.
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = largest
    return adjusted


def paired_interval(n: int, gained: int, lost: int) -> tuple[float, float]:
    """A 95% interval of the difference of two shares on the same problems.

    The adjusted Wald interval of Bonett and Price (J. Educ. Behav. Stat. 37, 2012): one gained and one lost problem are
    added to the counts. Fagerland et al. (Stat. Med. 33, 2014) recommend it for its coverage at any n. A bootstrap over
    problems would give [0, 0] wherever no problem changed, even at n = 1.

    Args:
        n: problems.
        gained: wrong before, right after.
        lost: right before, wrong after.

    >>> [round(x, 2) for x in paired_interval(100, 30, 10)]
    [0.08, 0.31]
    >>> [round(x, 2) for x in paired_interval(1, 0, 0)]
    [-0.92, 0.92]
    """
    # n + 2, as the two added problems count as problems too.
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = Z95 * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return max(-1.0, up - down - half), min(1.0, up - down + half)


Z80 = 0.8416212335729143
"""The 80th percentile of the standard normal distribution."""
FEWEST_DISCORDANT = 6
"""With fewer discordant problems McNemar's exact p is never below 0.05: six of six one way is 2/2^6 = 0.031."""


def resolvable(n: int, discordant: float) -> float | None:
    """The smallest difference of paired shares that n problems detect with a power of 80% at p < 0.05, two-sided.

    Solves Connor's sample size for McNemar's test (Biometrics 43, 1987) for the difference. Where that is above
    `discordant`, all discordant problems have to go the same way, and the exact test needs six of them.

    Args:
        n: problems.
        discordant: share of problems on which the two differ, either way.

    Returns:
        The difference; None for fewer than six problems, which cannot show any.

    >>> round(resolvable(1319, 0.2), 3), round(resolvable(20, 0.0), 2), resolvable(5, 0.2)
    (0.034, 0.37, None)
    """
    if n < FEWEST_DISCORDANT:
        return None

    def connor(difference: float) -> bool:
        spread = Z95 * math.sqrt(discordant) + Z80 * math.sqrt(max(0.0, discordant - difference**2))
        return (spread / difference) ** 2 <= n

    # All changes go the same way: the test is significant as soon as six problems change.
    def one_way(difference: float) -> bool:
        fewer = sum(
            math.comb(n, k) * difference**k * (1 - difference) ** (n - k) for k in range(min(n, FEWEST_DISCORDANT))
        )
        return fewer <= 0.2

    if discordant > 0 and connor(discordant):
        return _least(connor, 0.0, discordant)
    return _least(one_way, discordant, 1.0)


def _least(enough: Callable[[float], bool], low: float, high: float) -> float:
    """The smallest value for which `enough` is true, by bisection; `enough` must be monotonic."""
    # 60 halvings of an interval within [0, 1] reach 2^-60, beyond the 53 bits of a double.
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


MOST_SUBSETS = 2_000
"""A majority is averaged over at most this many subsets; where there are more, this many are drawn."""


def majority_at_k(votes: Sequence[int | None], right: Collection[int], k: int, *, seed: int = 0) -> float:
    """The probability that the most frequent of k answers, drawn from all without replacement, is right (Wang et al. 2023).

    Args:
        votes: for each sample the number of its answer; equal answers have equal numbers, and a sample without an
            answer (None) does not vote.
        right: the numbers of right answers, of which a problem may have several.
        k: samples that vote. Ties are broken at random, so k = 1 and k = 2 give the same.
        seed: random seed for drawing subsets, if there are too many to enumerate.

    Raises:
        ValueError: k is not between 1 and the number of samples.

    >>> majority_at_k([0, 0, 1], right={0}, k=3), round(majority_at_k([0, 0, 1], right={0}, k=1), 3)
    (1.0, 0.667)
    """
    n = len(votes)
    if not 1 <= k <= n:
        raise ValueError(f"k = {k} is not between 1 and n = {n}")
    if math.comb(n, k) <= MOST_SUBSETS:
        subsets: Iterable[Sequence[int | None]] = itertools.combinations(votes, k)
    else:
        rng = random.Random(seed)
        subsets = (rng.sample(list(votes), k) for _ in range(MOST_SUBSETS))
    chances = [_chance(subset, right) for subset in subsets]
    return sum(chances) / len(chances)


def _chance(subset: Sequence[int | None], right: Collection[int]) -> float:
    counts = Counter(vote for vote in subset if vote is not None)
    most = max(counts.values(), default=0)
    leading = [vote for vote, count in counts.items() if count == most]
    # The expectation over random tie-breaking, not one draw: the estimate has no noise of its own.
    return sum(vote in right for vote in leading) / len(leading) if leading else 0.0


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95% interval for the mean of a few independent values, such as the accuracies of several seeds.

    Limited to [0, 1], because the values are shares; (0, 1) for fewer than two values, which have no variance.

    >>> [round(x, 3) for x in t_interval([0.5, 0.6, 0.7])]
    [0.352, 0.848]
    """
    n = len(values)
    if n < 2:
        return 0.0, 1.0
    middle = sum(values) / n
    spread = math.sqrt(sum((value - middle) ** 2 for value in values) / (n - 1) / n)
    free = n - 1
    # Beyond the table, the expansion in 1/n (Cornish and Fisher 1938): to within 0.1%.
    far = Z95 + (Z95**3 + Z95) / (4 * free) + (5 * Z95**5 + 16 * Z95**3 + 3 * Z95) / (96 * free**2)
    half = _T95.get(free, far) * spread
    return max(0.0, middle - half), min(1.0, middle + half)


_T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""The 97.5th percentile of Student's t distribution by its degrees of freedom."""


def scaling(points: Sequence[tuple[float, float]]) -> float | None:
    """Mean slope over all pairs of points of a curve (Muennighoff et al. 2025, "s1", section 3.2).

    Args:
        points: (budget, accuracy), the budgets all different.

    Returns:
        Accuracy per unit of budget; None for fewer than two points.

    >>> scaling([(0, 0.0), (1, 0.5), (2, 0.6)])
    0.3
    """
    pairs = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.combinations(points, 2)]
    return round(sum(pairs) / len(pairs), 9) if pairs else None


def pass_at_k(n: int, right: int, k: int) -> float:
    """The probability that k answers drawn from n include a right one, an unbiased estimate (Chen et al. 2021).

    Raises:
        ValueError: k is not between 1 and n.

    >>> round(pass_at_k(10, 3, 1), 6), round(pass_at_k(10, 3, 5), 4)
    (0.3, 0.9167)
    """
    if not 1 <= k <= n or not 0 <= right <= n:
        raise ValueError(f"k = {k} and {right} right are not possible with n = {n}")
    # Not 1 - (1 - right/n)^k, which draws with replacement and is too low.
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)
