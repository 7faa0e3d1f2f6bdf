"""Reports how rows were read: columns by role, unused columns, and what else was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from cot_unsloth.data.layouts import ReadRow

_ROLE_ORDER = ("system", "history", "question", "options", "reasoning", "answer", "gold")


@dataclass(frozen=True)
class ColumnReport:
    """How the rows of a data set were read."""

    layout: str
    """The layout of most rows."""
    rows: int
    """Rows that were read."""
    roles: Mapping[str, tuple[str, ...]]
    """Role → columns it was read from."""
    unused: Mapping[str, int]
    """Column that was not used → rows in which it is not empty."""
    notes: Mapping[str, int]
    """Anything else that was left out → number of rows."""

    def __str__(self) -> str:
        """One line to announce it.

        >>> print(ColumnReport("alpaca", 9, {"question": ("instruction", "input")}, {"id": 9, "tags": 2}, {}))
        layout alpaca: question ← instruction + input; not used: id, tags (in 2 of 9 rows)
        """
        roles = sorted(
            self.roles, key=lambda role: _ROLE_ORDER.index(role) if role in _ROLE_ORDER else len(_ROLE_ORDER)
        )
        read = ", ".join(f"{role} ← {' + '.join(self.roles[role])}" for role in roles)
        unused = ", ".join(column + self._share(count) for column, count in self.unused.items())
        notes = "".join(f"; {text}{self._share(count, always=True)}" for text, count in self.notes.items())
        return f"layout {self.layout}: {read}" + (f"; not used: {unused}" if unused else "") + notes

    def _share(self, count: int, *, always: bool = False) -> str:
        return f" (in {count} of {self.rows} rows)" if always or count < self.rows else ""


@dataclass
class ColumnCounts:
    """Collects the counts of a `ColumnReport`, row by row."""

    rows: int = 0
    roles: dict[str, Counter[str]] = field(default_factory=dict)
    unused: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def add(self, row: ReadRow) -> None:
        """Count one row."""
        self.rows += 1
        for role, columns in row.roles.items():
            self.roles.setdefault(role, Counter()).update(columns)
        self.unused.update(row.unused)
        self.notes.update(set(row.notes))

    @property
    def reasoning_columns(self) -> list[str]:
        """The columns that reasoning was read from."""
        return list(self.roles.get("reasoning", ()))

    def report(self, layout: str) -> ColumnReport:
        """The counts so far."""
        roles = {role: tuple(columns) for role, columns in self.roles.items()}
        return ColumnReport(layout, self.rows, roles, dict(self.unused), dict(self.notes))
