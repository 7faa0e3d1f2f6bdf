"""CSV and other delimited text: the header decides the delimiter (comma, semicolon, tab or bar).

`csv_records` splits records; `csv_recovery` decides where the next row begins after one that cannot be split. A row
that cannot be used is one reject with its lines, and the rows around it are kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

from cot_unsloth.core.errors import DataError
from cot_unsloth.core.json_text import first_repeated
from cot_unsloth.core.types import Reject
from cot_unsloth.data.csv_records import DELIMITERS, Dialect, LineBuffer, Record, SplitError, split_record
from cot_unsloth.data.csv_recovery import LOOKAHEAD, Recovery
from cot_unsloth.data.rows import SourceRow, rejected, shorten
from cot_unsloth.data.text_files import LineDecoder, open_utf8

SUFFIXES = (".csv", ".tsv", ".tab", ".psv")


def read_rows(path: Path) -> Iterator[SourceRow]:
    """The rows of a CSV file, each with the line it begins on.

    Raises:
        DataError: the file is not UTF-8, or its header cannot be used.
    """
    decoder = LineDecoder(path, tolerant=False)
    with open_utf8(path, announce=True) as file:
        lines = LineBuffer(file, decoder)
        table = _Table.open(path, lines)
        if table is not None:
            yield from table.rows()


def looks_delimited(lines: Iterable[str]) -> bool:
    """Whether the first lines of a text are a header and a row with as many cells, at least two.

    >>> looks_delimited(["question,answer", "3 + 4?,7"]), looks_delimited(["some text", "and more"])
    (True, False)
    """
    first_lines = [line for line in itertools.islice(lines, 20) if line.strip()]
    for delimiter in DELIMITERS:
        buffer = LineBuffer(line.encode() for line in first_lines)
        try:
            header = split_record(buffer, 0, delimiter)
            if len(header.cells) > 1 and len(split_record(buffer, header.end, delimiter).cells) == len(header.cells):
                return True
        except SplitError:
            continue
    return False


def _detect_delimiter(path: Path, lines: LineBuffer) -> str:
    """The delimiter: of the candidates in the header, the one with which most of the next rows have as many cells as it."""
    header = lines.peek() or ""
    candidates = [delimiter for delimiter in DELIMITERS if delimiter in header]
    if len(candidates) < 2:
        return candidates[0] if candidates else ","
    preferred = "\t" if ".tsv" in path.name.lower() or ".tab" in path.name.lower() else ","
    return max(candidates, key=lambda delimiter: (*_agreement(lines, delimiter), delimiter == preferred))


def _agreement(lines: LineBuffer, delimiter: str) -> tuple[int, int]:
    """How many of the first records have as many cells as the header (0 if it has one), and the header's cells."""
    try:
        header = split_record(lines, 0, delimiter)
    except SplitError:
        return 0, 0
    ahead, agreeing = header.end, 0
    while ahead < 20 and lines.peek(ahead) is not None and len(header.cells) > 1:
        try:
            record = split_record(lines, ahead, delimiter)
            ahead = record.end
            agreeing += len(record.cells) == len(header.cells)
        except SplitError:
            ahead += 1
    return agreeing, len(header.cells)


class _Table:
    """The header of a file, and the rows below it."""

    def __init__(self, path: Path, lines: LineBuffer, dialect: Dialect, names: list[str]) -> None:
        self._path = path
        self._lines = lines
        self._dialect = dialect
        self._names = names
        self._divided: dict[int, int] = {}
        """Line number → length in lines of the fault that begins there (0: a row), as `Recovery` last decided."""

    @classmethod
    def open(cls, path: Path, lines: LineBuffer) -> _Table | None:
        """Read the header; None if the file has no lines.

        Raises:
            DataError: the header cannot be split, or names a column twice.
        """
        declared = None
        while (line := lines.peek()) is not None:
            stripped = line.strip("\r\n")
            if stripped.lower().startswith("sep=") and len(stripped) == 5:  # Excel's own way to declare the delimiter
                declared = stripped[4]
            elif stripped.strip():
                break
            lines.take()
        if line is None:
            return None
        number = lines.number()
        delimiter = declared or _detect_delimiter(path, lines)
        padded = _is_padded(line, delimiter)
        try:
            record = split_record(lines, 0, delimiter, padded=padded)
        except SplitError as error:
            hint = "the first line names the columns; quote a name that has a quote or a line break in it"
            where = f"{path}:{error.line}:{error.column}"
            raise DataError(
                f"has a header that cannot be read: {error}", where=where, hint=hint, name="broken_header"
            ) from error
        lines.take(record.end)
        # Some programs quote every cell (QUOTE_ALL in pandas): a line without a leading quote is then inside a cell.
        all_quoted = line.count('"') == 2 * len(record.cells)
        dialect = Dialect(delimiter, padded, all_quoted)
        return cls(path, lines, dialect, _column_names(record.cells, f"{path}:{number}"))

    def rows(self) -> Iterator[SourceRow]:
        """Every row, or the Reject for the lines that are not one."""
        while (line := self._lines.peek()) is not None:
            if not line.strip(" \r\n"):
                self._lines.take()
                continue
            where = f"{self._path}:{self._lines.number()}"
            try:
                record = self._split()
            except SplitError:
                record = None
            if record is None or not self._is_certain(record):
                count = self._lines_of_fault(record)
                if count:
                    yield SourceRow(where, self._reject(count))
                    continue
            assert record is not None
            self._lines.take(record.end)
            self._dialect.bare_quotes |= record.bare_quotes
            self._dialect.all_quoted = self._dialect.all_quoted and line.startswith('"')
            if [cell.strip() for cell in record.cells] == self._names:
                yield rejected(where, "repeated_header", "the header again, as in files joined with cat", line)
                continue
            # Cells stay text: guessing types would make 007 into 7 and NA into a missing value, as pandas does.
            yield SourceRow(where, dict(zip(self._names, record.cells, strict=True)))

    def _split(self, last: int | None = None) -> Record:
        return split_record(self._lines, 0, self._dialect.delimiter, padded=self._dialect.padded, last=last)

    def _lines_of_fault(self, record: Record | None) -> int:
        """How many of the next lines are one fault; 0 if `record` is a row after all."""
        number = self._lines.number()
        if number not in self._divided:
            recovery = Recovery(self._lines, self._dialect, len(self._names), record)
            self._divided = {number + index: count for index, count in recovery.divide()}
        return self._divided[number]

    def _reject(self, count: int) -> Reject:
        """Consume the next `count` lines, and say why they are not a row."""
        first = self._lines.number()
        where = f"{self._path}:{first}"
        undecodable = next((fault for ahead in range(count) if (fault := self._lines.fault(ahead))), None)
        span = f"; lines {first} to {first + count - 1} are left out" if count > 1 else ""
        record, error = None, None
        try:
            record = self._split(count - 1)
        except SplitError as split_error:
            error = split_error
        end_column = len((self._lines.peek(record.end - 1) or "").rstrip("\r\n")) if record is not None else 0
        kept = shorten("".join(self._lines.take(count)[:50]))
        if undecodable is not None:
            line = error.line if error else first
            return Reject(where, "broken_csv", f"line {line}: {undecodable.detail}{span}", undecodable.row)
        if record is not None and record.end == count:
            return Reject(where, "ragged_row", self._describe_ragged(record, first, count), kept)
        if record is not None:
            error = SplitError(first + record.end - 1, end_column, "text continues after a closing quote")
        assert error is not None
        detail = (
            f"line {error.line}, column {error.column}: {error}{span}; inside a quoted cell, a quote is written twice"
        )
        return Reject(where, "broken_csv", detail, kept)

    def _describe_ragged(self, record: Record, first: int, count: int) -> str:
        span = f", from line {first} to {first + count - 1}" if count > 1 else ""
        detail = f"it has {_cells(len(record.cells))}{span}; the header has {len(self._names)}"
        if len(record.cells) > len(self._names):
            detail += f"; a cell that contains {self._dialect.delimiter!r} must be quoted"
        return detail

    def _is_certain(self, record: Record) -> bool:
        """Whether a record is a row beyond doubt: as long as the header, and no stray quote ended or extended it."""
        if len(record.cells) != len(self._names):
            return False
        opens_cell = self._dialect.opens_cell
        if any(opens_cell(self._lines.peek(ahead) or "") for ahead in range(1, min(record.end, LOOKAHEAD))):
            return False  # a cell contains a line that looks like the beginning of a row
        if self._dialect.bare_quotes or not record.quoted_end:
            return True
        # The next quote in the file shows it: after a properly closed cell it must open another one.
        for ahead in range(record.end, record.end + LOOKAHEAD):
            line = self._lines.peek(ahead)
            opens = True if line is None else opens_cell(line)
            if opens is not None:
                return opens
        return True


def _is_padded(header: str, delimiter: str) -> bool:
    """Whether a space follows every delimiter of a header, as in `question, answer`."""
    rest = header.split(delimiter)[1:]
    return delimiter != "\t" and bool(rest) and all(name.startswith(" ") for name in rest)


def _column_names(header: list[str], where: str) -> list[str]:
    """Column names; an empty one gets the name pandas gives it (`to_csv` writes its index without a name)."""
    names = [name.strip() or f"Unnamed: {index}" for index, name in enumerate(header)]
    repeated = first_repeated(names)
    if repeated is not None:
        raise DataError(
            f"has two columns named {repeated!r}",
            where=where,
            hint="rename or remove one of them",
            name="repeated_column",
        )
    return names


def _cells(count: int) -> str:
    return f"{count} cell{'s' * (count != 1)}"
