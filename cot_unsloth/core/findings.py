"""One thing that was found, and a list of them for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["fault", "warning", "note"]
LEVELS: tuple[Level, ...] = ("fault", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that was found."""

    level: Level
    """`fault`: a run would stop on it, or teach the wrong thing; `warning`: it would run, and likely disappoint; `note`:
    worth knowing."""
    name: str
    """Stable, in snake case: scripts may rely on it."""
    message: str
    where: str = ""
    """`file:line`, a setting, or a row."""
    hint: str = ""
    """What to do about it; a fault and a warning always have one."""


def faults(findings: Iterable[Finding]) -> list[Finding]:
    """Those that stop a run."""
    return [finding for finding in findings if finding.level == "fault"]


def summary(findings: Sequence[Finding]) -> str:
    """How many there are of each level.

    >>> summary([Finding("fault", "no_rows", "holds no rows", hint="..."), Finding("note", "layout", "gsm8k")])
    '1 fault, 0 warnings'
    """
    counts = {level: sum(finding.level == level for finding in findings) for level in LEVELS}
    return ", ".join(f"{counts[level]} {level}{'' if counts[level] == 1 else 's'}" for level in ("fault", "warning"))
