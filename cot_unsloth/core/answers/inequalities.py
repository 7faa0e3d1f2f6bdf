r"""Inequalities and unions of intervals: `x < -1 or x > 3` is `(-\infty, -1) \cup (3, \infty)`.

math-verify reads one inequality as an interval; several joined by "or" or "and", and chains from the larger end, are
compared here, interval by interval.
"""

from __future__ import annotations

import re
from typing import TypeAlias

from cot_unsloth.core.answers.rule import Comparison
from cot_unsloth.core.answers.symbolic import ComparisonResult
from cot_unsloth.core.answers.text import cleaned

_Interval: TypeAlias = tuple[str, str, str, str]
"""Opening bracket, lower end, upper end, closing bracket."""
_SIGN = r"\s*(<=|>=|<|>|\\le\b|\\ge\b|\\lt\b|\\gt\b)\s*"
_BOUND = re.compile(rf"([A-Za-z]){_SIGN}([^<>=,;]+)")
_BOUND_FIRST = re.compile(rf"([^<>=,;]+){_SIGN}([A-Za-z])")
_CHAIN = re.compile(rf"([^<>=,;]+){_SIGN}([A-Za-z]){_SIGN}([^<>=,;]+)")
_WRITTEN = re.compile(r"([(\[])([^,()\[\]]+),([^,()\[\]]+)([)\]])")
_SET = re.compile(
    r"(?:\\?\{\s*)?[A-Za-z]\s*(?:\\in\s*\\mathbb\s*\{?R\}?\s*)?(?:\\mid\b|\\vert\b|\||:)\s*(.+?)\s*(?:\\?\})?"
)
r"""`\{x \mid 3 \le x \le 7\}`"""
_MEMBER = re.compile(r"[A-Za-z]\s*\\in\s*")
_OR = re.compile(r"\s*(?:,?\s*\bor\b|\\cup\b|\\lor\b|\\vee\b)\s*", re.IGNORECASE)
_AND = re.compile(r"\s*(?:,?\s*\band\b|\\cap\b|\\land\b|\\wedge\b)\s*", re.IGNORECASE)
_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}


def inequalities(gold: str, answer: str, comparison: Comparison) -> ComparisonResult | None:
    """Two unions of intervals, either written as intervals or as inequalities in one variable, in any order."""
    sets = [_SET.fullmatch(cleaned(text)) for text in (gold, answer)]
    texts = [match[1] if match else cleaned(text) for match, text in zip(sets, (gold, answer), strict=True)]
    if not any(sets) and not any(_OR.search(text) or _AND.search(text) or ">" in text for text in texts):
        return None  # a single inequality is read by math-verify
    (left, letters), (right, others) = (_union(text) for text in texts)
    if not left or not right or len(letters | others) > 1:
        return None
    if len(left) != len(right):
        return "different"
    left_over = list(right)
    for interval in left:
        match = next((other for other in left_over if _same(interval, other, comparison)), None)
        if match is None:
            return "too_costly" if comparison.time_limit.exceeded else "different"
        left_over.remove(match)
    return "same"


def _same(gold: _Interval, answer: _Interval, comparison: Comparison) -> bool:
    return (gold[0], gold[3]) == (answer[0], answer[3]) and all(
        comparison.compare(first, second) == "same" for first, second in zip(gold[1:3], answer[1:3], strict=True)
    )


def _union(text: str) -> tuple[list[_Interval], set[str]]:
    """The intervals of a text, and the variables that it names; no intervals if it is anything else."""
    intervals: list[_Interval] = []
    letters: set[str] = set()
    for part in _OR.split(_MEMBER.sub("", text)):
        bounds = [_interval(bound) for bound in _AND.split(part)]
        interval = _meet([bound[0] for bound in bounds if bound])
        if interval is None or not all(bounds):
            return [], set()
        intervals.append(interval)
        letters |= {bound[1] for bound in bounds if bound and bound[1]}
    return intervals, letters


def _interval(text: str) -> tuple[_Interval, str] | None:
    """The interval that one inequality, chain or interval describes, and its variable ("" for an interval)."""
    text = text.strip()
    chain, bound, first = (pattern.fullmatch(text) for pattern in (_CHAIN, _BOUND, _BOUND_FIRST))
    if chain:
        low, one, letter, other, high = (group.strip() for group in chain.groups())
        if _sign(one)[0] != _sign(other)[0]:
            return None
        if _sign(one)[0] == ">":
            low, one, other, high = high, other, one, low
        return ("[" if "=" in _sign(one) else "(", low, high, "]" if "=" in _sign(other) else ")"), letter
    if bound:
        return _half_line(_sign(bound[2]), bound[3]), bound[1]
    if first:
        return _half_line(_MIRRORED[_sign(first[2])], first[1]), first[3]
    written = _WRITTEN.fullmatch(text)
    return ((written[1], written[2].strip(), written[3].strip(), written[4]), "") if written else None


def _sign(text: str) -> str:
    return {"\\le": "<=", "\\ge": ">=", "\\lt": "<", "\\gt": ">"}.get(text, text)


def _half_line(sign: str, end: str) -> _Interval:
    """The interval of `x < end` and the like."""
    if sign[0] == "<":
        return "(", "-\\infty", end.strip(), "]" if "=" in sign else ")"
    return "[" if "=" in sign else "(", end.strip(), "\\infty", ")"


def _meet(bounds: list[_Interval]) -> _Interval | None:
    """A single interval unchanged; a lower and an upper bound as one interval; None for anything else."""
    if len(bounds) == 1:
        return bounds[0]
    if len(bounds) != 2:
        return None
    lower = next((bound for bound in bounds if bound[2] == "\\infty"), None)
    upper = next((bound for bound in bounds if bound[1] == "-\\infty"), None)
    return (lower[0], lower[1], upper[2], upper[3]) if lower and upper and lower is not upper else None
