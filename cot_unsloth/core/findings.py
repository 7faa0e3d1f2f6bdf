"""A result of `check`: what is wrong or worth knowing, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["fault", "warning", "note"]
LEVELS: tuple[Level, ...] = ("fault", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One result of a check."""

    level: Level
    """`fault`: a run would stop, or train the wrong thing; `warning`: a run would likely give a poor result; `note`: worth
    knowing."""
    name: str
    """In snake case and stable: scripts rely on it."""
    message: str
    where: str = ""
    """`file:line`, a setting, or a row."""
    hint: str = ""
    """What to do about it; faults and warnings always have one."""


def faults(findings: Iterable[Finding]) -> list[Finding]:
    """The findings that stop a run."""
    return [finding for finding in findings if finding.level == "fault"]


def summary(findings: Sequence[Finding]) -> str:
    """How many faults and warnings there are.

    >>> summary([Finding("fault", "no_rows", "holds no rows", hint="..."), Finding("note", "layout", "gsm8k")])
    '1 fault, 0 warnings'
    """
    counts = {level: sum(finding.level == level for finding in findings) for level in LEVELS}
    return ", ".join(f"{counts[level]} {level}{'' if counts[level] == 1 else 's'}" for level in ("fault", "warning"))
