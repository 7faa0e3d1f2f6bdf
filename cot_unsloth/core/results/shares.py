"""Shares and their intervals, which all results have in common."""

from __future__ import annotations

from cot_unsloth.core.results.record import Value

Interval = tuple[float, float]
"""Lower and upper bound of a 95% interval."""


class Accuracy(Value):
    """Share of problems that were answered correctly."""

    accuracy: float
    """0 to 1; unanswered problems count as wrong."""
    ci95: Interval
    """Wilson's interval unless the field that holds it says otherwise."""


class Share(Value):
    """A share of something that can be counted."""

    share: float | None
    """0 to 1; None where there was nothing to count."""
    of: int
    """What it is a share of."""
    ci95: Interval | None = None
    """Wilson's interval; None for a difference of two shares, which has none."""
