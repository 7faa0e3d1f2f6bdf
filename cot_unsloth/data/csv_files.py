"""Rows of delimited text: commas, semicolons, tabs or bars, found in the header line.

Python's csv module ends at the first stray quote, or takes the rest of the file into one cell. Here a record is split
strictly (RFC 4180), and one that cannot be is one reject with its lines. Where the next row begins then is a guess: of
all ways to divide the lines that follow into rows, the one with the fewest faults is taken (`_Resync`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cot_unsloth.core.errors import DataError
from cot_unsloth.core.types import Reject
from cot_unsloth.data.text_files import Decoder, Numbered, open_utf8, shorten

SUFFIXES = (".csv", ".tsv", ".tab", ".psv")
_DELIMITERS = (",", ";", "\t", "|")
_LOOK_AHEAD = 500
"""Lines that are looked at to see whether a place is inside a quoted cell."""
_ROW_SWALLOWED = 1.5
"""What a fault costs that takes in a line which is a row by itself."""
_SURE = 3
"""Good rows with quoted cells, one after another, that show that what is before them decides nothing after them."""


class _SplitError(Exception):
    """A record that cannot be split."""

    def __init__(self, line: int, column: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.column = column


class _Lines:
    """Lines of a file, any of which can be looked at before it is taken.

    A cell may take millions of lines, so that a line is kept as its text and nothing else.
    """

    def __init__(self, lines: Iterable[bytes], decoder: Decoder | None = None) -> None:
        self._lines = iter(lines)
        self._decoder = decoder
        self._read: list[str] = []
        self._next = 0
        self._behind = 0
        """Lines that are no longer kept."""
        self._faults: dict[int, Reject] = {}

    def number(self, index: int = 0) -> int:
        """The number in the file of a line ahead."""
        return self._behind + self._next + index + 1

    def fault(self, index: int) -> Reject | None:
        """Why the bytes of a line ahead are no text, if they are none."""
        return self._faults.get(self.number(index)) if self._faults else None

    def peek(self, index: int = 0) -> str | None:
        """A line ahead, 0 being the next one; None after the last."""
        at = self._next + index
        while len(self._read) <= at:
            raw = next(self._lines, None)
            if raw is None:
                return None
            self._read.append(self._decoded(raw))
        return self._read[at]

    def _decoded(self, raw: bytes) -> str:
        if self._decoder is None or raw.isascii():
            return raw.decode("utf-8", "replace")
        number = self._behind + len(self._read) + 1
        text = self._decoder.decode(raw, number)
        if isinstance(text, str):
            return text
        self._faults[number] = text
        return raw.decode("utf-8", "replace")

    def take(self, count: int = 1) -> list[str]:
        """The next lines, which are then behind."""
        taken = self._read[self._next : self._next + count]
        self._next += count
        if self._next >= min(1000, len(self._read)):
            del self._read[: self._next]
            self._behind += self._next
            self._next = 0
        return taken


@dataclass(frozen=True)
class _Record:
    cells: list[str]
    after: int
    """The index, among the lines ahead, of the line after it."""
    bare_quotes: bool = False
    """Whether a cell that is not quoted has a quote in it, such as `5" pipe`."""
    quoted_end: bool = False
    """Whether its last cell is quoted."""


def rows(path: Path) -> Iterator[Numbered]:
    """The rows of a file of delimited text; a row is where its first line is.

    Raises:
        DataError: it is not UTF-8, or its header cannot be used.
    """
    decoder = Decoder(path, tolerant=False)
    with open_utf8(path, announce=True) as file:
        lines = _Lines(file, decoder)
        table = _Table.open(path, lines)
        if table is not None:
            yield from table.rows()


def looks_delimited(lines: Iterable[str]) -> bool:
    """Whether the first lines of a text are a header and rows of as many cells, two at least.

    >>> looks_delimited(["question,answer", "3 + 4?,7"]), looks_delimited(["some text", "and more"])
    (True, False)
    """
    head = [line for line in itertools.islice(lines, 20) if line.strip()]
    for delimiter in _DELIMITERS:
        numbered = _Lines(line.encode() for line in head)
        try:
            first = _record(numbered, 0, delimiter)
            if len(first.cells) > 1 and len(_record(numbered, first.after, delimiter).cells) == len(first.cells):
                return True
        except _SplitError:
            continue
    return False


def _record(lines: _Lines, index: int, delimiter: str, padded: bool = False, last: int | None = None) -> _Record:
    """The record that begins at a line ahead; `padded` leaves out the spaces after a delimiter, `last` is the last line.

    Raises:
        _SplitError: there is no such line, a quote is not closed, or is where none can be.
    """
    text = _text(lines, index)
    if text is None:
        raise _SplitError(0, 0, "there is no line")
    if '"' not in text:
        plain = text.rstrip("\r\n").split(delimiter)
        return _Record([cell.lstrip(" ") for cell in plain] if padded else plain, index + 1)
    cells: list[str] = []
    position, bare = 0, False
    while True:
        while padded and text[position : position + 1] == " ":
            position += 1
        if text[position : position + 1] != '"':
            end = text.find(delimiter, position)
            cell = text[position:] if end < 0 else text[position:end]
            bare = bare or '"' in cell
            if end < 0:
                return _Record([*cells, cell.rstrip("\r\n")], index + 1, bare)
            cells.append(cell)
            position = end + 1
            continue
        cell, index, end = _quoted(lines, index, position, last)
        cells.append(cell)
        text = lines.peek(index) or ""
        if text[end + 1 : end + 2] == delimiter:
            position = end + 2
        elif not text[end + 1 :].rstrip("\r\n"):
            return _Record(cells, index + 1, bare, quoted_end=True)
        else:
            escaped = text[end - 1 : end] == "\\"
            found = (
                "a quote follows a backslash here"
                if escaped
                else f"a quote closes the cell, and {text[end + 1]!r} follows"
            )
            raise _SplitError(lines.number(index), end + 1, found)


def _quoted(lines: _Lines, index: int, position: int, last: int | None) -> tuple[str, int, int]:
    """The cell that a quote opens, the index of the line it closes on, and where in that line.

    Raises:
        _SplitError: it is never closed.
    """
    opened, text, position = (lines.number(index), position + 1), lines.peek(index) or "", position + 1
    parts: list[str] = []
    while True:
        end = text.find('"', position)
        if end >= 0 and text[end + 1 : end + 2] != '"':
            parts.append(text[position:end])
            return "".join(parts), index, end
        if end >= 0:
            parts.append(text[position : end + 1])
            position = end + 2
            continue
        parts.append(text[position:])
        index, position = index + 1, 0
        following = _text(lines, index) if last is None or index <= last else None
        if following is None:
            raise _SplitError(*opened, "the quote that opens here is never closed")
        text = following


def _text(lines: _Lines, index: int) -> str | None:
    """The text of a line ahead, None after the last.

    Raises:
        _SplitError: it is no text.
    """
    text = lines.peek(index)
    fault = lines.fault(index)
    if fault is not None:
        raise _SplitError(lines.number(index), 1, fault.detail)
    if text is not None and "\0" in text:
        raise _SplitError(lines.number(index), text.index("\0") + 1, "there is a NUL byte here: the file is damaged")
    return text


def _delimiter(path: Path, lines: _Lines) -> str:
    """The delimiter of the header line: the one that also splits the rows after it into as many cells."""
    header = lines.peek() or ""
    found = [delimiter for delimiter in _DELIMITERS if delimiter in header]
    if len(found) < 2:
        return found[0] if found else ","
    suffix_first = "\t" if ".tsv" in path.name.lower() or ".tab" in path.name.lower() else ","
    return max(found, key=lambda delimiter: (*_agreement(lines, delimiter), delimiter == suffix_first))


def _agreement(lines: _Lines, delimiter: str) -> tuple[int, int]:
    """How many of the first records have as many cells as the header, where that is two or more; and that number."""
    try:
        header = _record(lines, 0, delimiter)
    except _SplitError:
        return 0, 0
    index, agreeing = header.after, 0
    while index < 20 and lines.peek(index) is not None and len(header.cells) > 1:
        try:
            record = _record(lines, index, delimiter)
            index = record.after
            agreeing += len(record.cells) == len(header.cells)
        except _SplitError:
            index += 1
    return agreeing, len(header.cells)


class _Table:
    """A header, and the rows below it."""

    def __init__(
        self, path: Path, lines: _Lines, delimiter: str, names: list[str], padded: bool, quoted_names: bool
    ) -> None:
        self._path = path
        self._lines = lines
        self._delimiter = delimiter
        self._names = names
        self._padded = padded
        """Whether a space follows each delimiter, as in `question, answer`."""
        self._all_quoted = quoted_names
        """Whether the header and every row so far begin with a quote, as where a program quotes every cell."""
        self._bare_quotes = False
        """Whether cells that are not quoted have quotes in them, such as `5" pipe`, so that they prove nothing."""
        self._divided: dict[int, int] = {}
        """By line: how many lines of a fault begin there, 0 of a row, as far as `_Resync` last looked."""

    @classmethod
    def open(cls, path: Path, lines: _Lines) -> _Table | None:
        """Read the header.

        Raises:
            DataError: it cannot be split, or names a column twice.
        """
        declared = None
        while (line := lines.peek()) is not None:
            stripped = line.strip("\r\n")
            if stripped.lower().startswith("sep=") and len(stripped) == 5:  # Excel's own note of the delimiter
                declared = stripped[4]
            elif stripped.strip():
                break
            lines.take()
        if line is None:
            return None
        number = lines.number()
        delimiter = declared or _delimiter(path, lines)
        try:
            record = _record(lines, 0, delimiter, padded=_is_padded(line, delimiter))
        except _SplitError as error:
            hint = "the first line names the columns; quote a name that has a quote or a line break in it"
            where = f"{path}:{error.line}:{error.column}"
            raise DataError(
                f"has a header that cannot be read: {error}", where=where, hint=hint, name="broken_header"
            ) from error
        lines.take(record.after)
        header = record.cells
        padded = _is_padded(line, delimiter)
        quoted = line.count('"') == 2 * len(header)
        return cls(path, lines, delimiter, _column_names(header, f"{path}:{number}"), padded, quoted)

    def rows(self) -> Iterator[Numbered]:
        """Every row, or the Reject that it is."""
        while (line := self._lines.peek()) is not None:
            if not line.strip(" \r\n"):
                self._lines.take()
                continue
            where = f"{self._path}:{self._lines.number()}"
            try:
                record = _record(self._lines, 0, self._delimiter, self._padded)
            except _SplitError:
                record = None
            if record is None or not self._is_certain(record):
                count = self._lines_of_fault(record)
                if count:
                    yield where, self._left_out(count)
                    continue
            assert record is not None
            self._lines.take(record.after)
            self._bare_quotes |= record.bare_quotes
            self._all_quoted = self._all_quoted and line.startswith('"')
            yield where, dict(zip(self._names, record.cells, strict=True))

    def _lines_of_fault(self, record: _Record | None) -> int:
        """How many of the next lines are at fault; 0 where they begin with the record, as a row."""
        number = self._lines.number()
        if number not in self._divided:
            self._divided = {number + index: count for index, count in _Resync(self, record).divided()}
        return self._divided[number]

    def _left_out(self, count: int) -> Reject:
        """The reject for the next lines, which are taken."""
        first = self._lines.number()
        where = f"{self._path}:{first}"
        fault = next((found for index in range(count) if (found := self._lines.fault(index))), None)
        span = f"; lines {first} to {first + count - 1} are left out" if count > 1 else ""
        try:
            record = _record(self._lines, 0, self._delimiter, self._padded, count - 1)
            error = None
        except _SplitError as found_error:
            record, error = None, found_error
        ends = len((self._lines.peek(record.after - 1) or "").rstrip("\r\n")) if record is not None else 0
        used = self._lines.take(count)
        kept = shorten("".join(used[:50]))
        if fault is not None:
            return Reject(
                where, "broken_csv", f"line {error.line if error else first}: {fault.detail}{span}", fault.row
            )
        if record is not None and record.after == count:
            return Reject(where, "ragged_row", self._ragged(record, first, count), kept)
        if record is not None:
            error = _SplitError(first + record.after - 1, ends, "a quote closes the cell, and its text goes on")
        assert error is not None
        detail = (
            f"line {error.line}, column {error.column}: {error}{span}; inside a quoted cell, a quote is written twice"
        )
        return Reject(where, "broken_csv", detail, kept)

    def _ragged(self, record: _Record, first: int, count: int) -> str:
        span = f", from line {first} to {first + count - 1}" if count > 1 else ""
        detail = f"it has {_cells(len(record.cells))}{span}; the header has {len(self._names)}"
        if len(record.cells) > len(self._names):
            detail += f"; a cell that contains {self._delimiter!r} must be quoted"
        return detail

    def _is_certain(self, record: _Record) -> bool:
        """Whether a record is a row without doubt: as long as the header, and no stray quote ended or stretched it."""
        if len(record.cells) != len(self._names):
            return False
        if any(self.opens(self._lines.peek(index) or "") for index in range(1, min(record.after, _LOOK_AHEAD))):
            return False  # a line that begins a row, inside a cell
        if self._bare_quotes or not record.quoted_end:
            return True
        for ahead in range(record.after, record.after + _LOOK_AHEAD):
            line = self._lines.peek(ahead)
            opens = True if line is None else self.opens(line)
            if opens is not None:
                return opens
        return True

    def opens(self, text: str) -> bool | None:
        """Whether the first quote of a line opens a cell; None where it has none."""
        at = text.find('"')
        if at < 0:
            return None
        before = text[:at].rstrip(" ") if self._padded else text[:at]
        return not before or before.endswith(self._delimiter)


class _Resync:
    """Where the next row begins, after lines that may hold a stray quote: the reading with the fewest faults.

    Lines ahead are divided into rows and faults. A fault costs 1, a row nothing; a line that a fault takes in costs
    little where it can only be the rest of a cell, and more than a fault of its own where it is a row by itself. Only a
    line that has a quote which can close a cell ends a fault of several lines.
    """

    def __init__(self, table: _Table, first: _Record | None) -> None:
        self._table = table
        self._lines = table._lines
        self._width = len(table._names)
        self._records: dict[int, _Record | None] = {0: first if first and len(first.cells) == self._width else None}
        self._swallowed: dict[int, float] = {}

    def divided(self) -> Iterator[tuple[int, int]]:
        """Lines ahead at which a row or a fault begins, and how many lines a fault has (a row: 0).

        Only as far as enough lines follow to tell; at least the first.
        """
        end = self._end()
        best: dict[int, tuple[float, int]] = {}
        for index in range(end - 1, -1, -1):
            best[index] = min(self._choices(index, end, best))
        index = 0
        while index < max(1, end // 2):
            count = best[index][1]
            yield index, count
            record = self._good(index)
            index += count or (record.after - index if record is not None else 1)

    def _end(self) -> int:
        """The line ahead from which on nothing depends on what is before it."""
        index, sure = 1, 0
        while index < _LOOK_AHEAD and self._lines.peek(index) is not None and sure < _SURE:
            record = self._good(index)
            quoted = record is not None and not record.bare_quotes and self._table.opens(self._peek(index)) is not None
            sure = 0 if record is None else sure + quoted
            index = index + 1 if record is None else record.after
        return index

    def _choices(self, index: int, end: int, best: dict[int, tuple[float, int]]) -> Iterator[tuple[float, int]]:
        """The cost of each reading of the lines from one on, and the lines of the fault that it begins with, if any."""
        record, line = self._good(index), self._peek(index)
        if record is not None or not line.strip(" \r\n"):
            after = index + 1 if record is None else record.after
            inside = sum(self._swallow(at) >= _ROW_SWALLOWED for at in range(index + 1, min(after, end)))
            yield self._cost(record, line) + 0.6 * inside + best.get(after, (0.0, 0))[0], 0
        closes_only = self._table.opens(line) is False and not self._table._bare_quotes
        cost = 1.1 if closes_only else 1.0
        yield cost + best.get(index + 1, (0.0, 0))[0], 1
        if '"' not in line:
            return
        for last in range(index + 1, end):
            cost += self._swallow(last)
            if cost > 4:
                return
            if self._may_close(self._peek(last)):
                yield cost + best.get(last + 1, (0.0, 0))[0], last + 1 - index

    def _cost(self, record: _Record | None, line: str) -> float:
        if record is None:
            return 0
        unusual = self._table._all_quoted and not line.startswith('"') and '"' in line
        return 0.9 if unusual else 0.5 * (record.bare_quotes and not self._table._bare_quotes)

    def _swallow(self, index: int) -> float:
        """The cost of a line as the rest of a broken cell."""
        if index not in self._swallowed:
            self._swallowed[index] = self._swallow_anew(index)
        return self._swallowed[index]

    def _swallow_anew(self, index: int) -> float:
        line, record = self._peek(index), self._good(index)
        if '"' not in line:
            return 0.001 if record is None else 0.05
        if not self._table.opens(line):
            quoted = record is not None and not record.bare_quotes
            return _ROW_SWALLOWED if quoted else 0.001
        if self._table._all_quoted and not line.startswith('"'):
            return 0.3
        if record is not None:
            return _ROW_SWALLOWED
        return 1.2 if self._table._delimiter in line else 0.4

    def _may_close(self, line: str) -> bool:
        text = line.rstrip("\r\n")
        return text.endswith('"') or f'"{self._table._delimiter}' in text

    def _peek(self, index: int) -> str:
        return self._lines.peek(index) or ""

    def _good(self, index: int) -> _Record | None:
        """The row that begins at a line ahead, where there is one."""
        if index not in self._records:
            table = self._table
            try:
                record = _record(self._lines, index, table._delimiter, table._padded, index + _LOOK_AHEAD)
            except _SplitError:
                record = None
            whole = record is not None and len(record.cells) == self._width
            self._records[index] = record if whole else None
        return self._records[index]


def _is_padded(header: str, delimiter: str) -> bool:
    """Whether a space follows every delimiter of a header, as in `question, answer`."""
    rest = header.split(delimiter)[1:]
    return delimiter != "\t" and bool(rest) and all(name.startswith(" ") for name in rest)


def _column_names(header: list[str], where: str) -> list[str]:
    """The names of the columns; one without a name is called as pandas calls it (the index of `to_csv` is one)."""
    names = [name.strip() or f"Unnamed: {index}" for index, name in enumerate(header)]
    repeated = next((name for name in names if names.count(name) > 1), None)
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
