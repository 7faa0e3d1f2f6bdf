"""Where the next row of a CSV file begins, after a line that cannot be split or a stray quote.

One stray quote shifts the meaning of every quote after it, so the question has no certain answer. Of all ways to divide
the lines ahead into rows and faults, the cheapest is taken, by dynamic programming from the last line to the first:

- a row costs nothing, a fault 1;
- a line inside a fault of several lines costs little if it can only be the continuation of a quoted cell, and more than
  a fault of its own if it is a valid row by itself;
- a fault of several lines must end in a line with a quote that can close a cell.
"""

from __future__ import annotations

from collections.abc import Iterator

from cot_unsloth.data.csv_records import Dialect, LineBuffer, Record, SplitError, split_record

LOOKAHEAD = 500
"""Lines to look at in order to decide whether a line is inside a quoted cell."""
_VALID_ROW = 1.5
"""Cost of a fault that includes a line which is a valid row by itself; more than a fault of one line."""
_CERTAIN_ROWS = 3
"""Consecutive valid rows with quoted cells after which the lines before them decide nothing."""
_MAX_FAULT_COST = 4


class Recovery:
    """The division of the lines ahead into rows and faults with the lowest cost."""

    def __init__(self, lines: LineBuffer, dialect: Dialect, width: int, first: Record | None) -> None:
        """`width` is the number of columns; `first` the record that begins at the next line, if it can be split."""
        self._lines = lines
        self._dialect = dialect
        self._width = width
        self._records: dict[int, Record | None] = {0: first if first and len(first.cells) == width else None}
        self._inclusion_costs: dict[int, float] = {}

    def divide(self) -> Iterator[tuple[int, int]]:
        """Pairs of a line ahead where a row or a fault begins, and the number of lines of the fault (0 for a row).

        Stops where too few lines follow to be sure, but yields at least one pair.
        """
        end = self._horizon()
        best: dict[int, tuple[float, int]] = {}
        # From the last line to the first, so that the best division of everything after a line is known when it is
        # needed.
        for index in range(end - 1, -1, -1):
            best[index] = min(self._choices(index, end, best))
        index = 0
        # Near the horizon the division may still change when more lines are read, so only its first half is trusted.
        while index < max(1, end // 2):
            count = best[index][1]
            yield index, count
            record = self._row(index)
            index += count or (record.end - index if record is not None else 1)

    def _horizon(self) -> int:
        """The line ahead from which on nothing depends on the lines before it."""
        index, certain = 1, 0
        while index < LOOKAHEAD and self._lines.peek(index) is not None and certain < _CERTAIN_ROWS:
            record = self._row(index)
            dialect = self._dialect
            quoted = record is not None and not record.bare_quotes and dialect.opens_cell(self._text(index)) is not None
            certain = 0 if record is None else certain + quoted
            index = index + 1 if record is None else record.end
        return index

    def _choices(self, index: int, end: int, best: dict[int, tuple[float, int]]) -> Iterator[tuple[float, int]]:
        """The cost of each way to divide the lines from `index` on, and how many lines of fault it begins with."""
        record, line = self._row(index), self._text(index)
        if record is not None or not line.strip(" \r\n"):
            after = index + 1 if record is None else record.end
            rows_inside = sum(self._inclusion_cost(at) >= _VALID_ROW for at in range(index + 1, min(after, end)))
            yield self._row_cost(record, line) + 0.6 * rows_inside + best.get(after, (0.0, 0))[0], 0
        only_closes = self._dialect.opens_cell(line) is False and not self._dialect.bare_quotes
        cost = 1.1 if only_closes else 1.0
        yield cost + best.get(index + 1, (0.0, 0))[0], 1
        if '"' not in line:
            return
        for last in range(index + 1, end):
            cost += self._inclusion_cost(last)
            if cost > _MAX_FAULT_COST:
                return
            if self._may_close_cell(self._text(last)):
                yield cost + best.get(last + 1, (0.0, 0))[0], last + 1 - index

    def _row_cost(self, record: Record | None, line: str) -> float:
        """The cost of a row; more than 0 if it is quoted unlike the rows before it."""
        if record is None:
            return 0
        unusual = self._dialect.all_quoted and not line.startswith('"') and '"' in line
        return 0.9 if unusual else 0.5 * (record.bare_quotes and not self._dialect.bare_quotes)

    def _inclusion_cost(self, index: int) -> float:
        """The cost of a line as the continuation of a broken cell."""
        if index not in self._inclusion_costs:
            self._inclusion_costs[index] = self._compute_inclusion_cost(index)
        return self._inclusion_costs[index]

    def _compute_inclusion_cost(self, index: int) -> float:
        line, record = self._text(index), self._row(index)
        if '"' not in line:
            return 0.001 if record is None else 0.05
        if not self._dialect.opens_cell(line):
            quoted = record is not None and not record.bare_quotes
            return _VALID_ROW if quoted else 0.001
        if self._dialect.all_quoted and not line.startswith('"'):
            return 0.3
        if record is not None:
            return _VALID_ROW
        return 1.2 if self._dialect.delimiter in line else 0.4

    def _may_close_cell(self, line: str) -> bool:
        text = line.rstrip("\r\n")
        return text.endswith('"') or f'"{self._dialect.delimiter}' in text

    def _text(self, index: int) -> str:
        return self._lines.peek(index) or ""

    def _row(self, index: int) -> Record | None:
        """The record that begins at a line ahead; None unless it has as many cells as the header."""
        if index not in self._records:
            dialect = self._dialect
            try:
                record = split_record(
                    self._lines, index, dialect.delimiter, padded=dialect.padded, last=index + LOOKAHEAD
                )
            except SplitError:
                record = None
            self._records[index] = record if record is not None and len(record.cells) == self._width else None
        return self._records[index]
