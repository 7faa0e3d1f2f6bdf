"""Intervals and tests for shares of right answers."""

from __future__ import annotations

import math

Z95 = 1.959963984540054
"""The 97.5th percentile of the standard normal distribution."""


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95% score interval for a share (E. B. Wilson, JASA 22, 1927).

    Stays inside [0, 1] and is honest at small n and at shares near 0 and 1, where the normal
    approximation is not. With n = 0 nothing is known: (0, 1).

    >>> [round(x, 3) for x in wilson(9, 10)]
    [0.596, 0.982]
    """
    if n == 0:
        return 0.0, 1.0
    share, z2 = right / n, Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low = 0.0 if right == 0 else centre - half
    high = 1.0 if right == n else centre + half
    return low, high


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact McNemar test of paired answers (Q. McNemar, Psychometrika 12, 1947).

    `gained` were wrong before and are right after, `lost` the reverse; under the null each is as
    likely, so the smaller is binomial with p = 1/2.

    >>> round(mcnemar(10, 2), 4), mcnemar(0, 0)
    (0.0386, 1.0)
    """
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**n)
