"""What the rules of equality have in common: their signature, and how they compare a part of an answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cot_unsloth.core.answers.symbolic import ComparisonResult, TimeLimit


@dataclass(frozen=True)
class Comparison:
    """The comparison of one answer with its gold answer, as a rule sees it."""

    time_limit: TimeLimit
    compare: Callable[[str, str], ComparisonResult]
    """Compares parts of the two, such as the items of a list, with all rules and the same time limit.

    Rules are given it, because they cannot import the module that imports them.
    """


Rule = Callable[[str, str, Comparison], ComparisonResult | None]
"""A rule takes gold and answer and returns its result, or None to leave the decision to the rules after it."""


def decided(equal: bool) -> ComparisonResult:
    """The result of a comparison, "same" or "different"."""
    return "same" if equal else "different"
