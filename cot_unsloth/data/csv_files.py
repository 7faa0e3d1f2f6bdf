"""Rows of delimited text: commas, semicolons, tabs or bars, found in the header line.

Python's csv module ends at the first stray quote, or takes the rest of the file into one cell. Here a record is split
strictly (RFC 4180), and one that cannot be is one reject with its lines; reading goes on at the next line from which a
whole record can be split.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cot_unsloth.data.text_files import Decoder, Numbered, open_utf8, shorten
from cot_unsloth.errors import DataError
from cot_unsloth.values import Reject

SUFFIXES = (".csv", ".tsv", ".tab", ".psv")
_DELIMITERS = (",", ";", "\t", "|")
_LOOK_AHEAD = 500
"""Lines that are looked at to see whether a place is inside a quoted cell."""


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


def _record(lines: _Lines, index: int, delimiter: str, padded: bool = False) -> _Record:
    """The record that begins at a line ahead; `padded` leaves out the spaces after a delimiter.

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
        cell, index, end = _quoted(lines, index, position)
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


def _quoted(lines: _Lines, index: int, position: int) -> tuple[str, int, int]:
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
        following = _text(lines, index)
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

    def __init__(self, path: Path, lines: _Lines, delimiter: str, names: list[str], padded: bool) -> None:
        self._path = path
        self._lines = lines
        self._delimiter = delimiter
        self._names = names
        self._padded = padded
        """Whether a space follows each delimiter, as in `question, answer`."""
        self._all_quoted: bool | None = None
        """Whether every row so far begins with a quote, as where a program quotes every cell; None before the first."""
        self._bare_quotes = False
        """Whether cells that are not quoted have quotes in them, such as `5" pipe`, so that they prove nothing."""

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
        return cls(path, lines, delimiter, _column_names(header, f"{path}:{number}"), padded)

    def rows(self) -> Iterator[Numbered]:
        """Every row, or the Reject that it is."""
        while (line := self._lines.peek()) is not None:
            if not line.strip(" \r\n"):
                self._lines.take()
                continue
            number = self._lines.number()
            where = f"{self._path}:{number}"
            try:
                record = _record(self._lines, 0, self._delimiter, self._padded)
            except _SplitError as error:
                yield where, self._broken(error)
                continue
            early = self._closed_early(record) if record.quoted_end else None
            if early is not None:
                at = (self._lines.number(record.after - 1), len(self._lines.peek(record.after - 1) or ""))
                yield where, self._left_out(_SplitError(*at, "a quote closes the cell, and its text goes on"), early)
                continue
            used = self._lines.take(record.after)
            if len(record.cells) == len(self._names):
                self._bare_quotes |= record.bare_quotes
                self._all_quoted = self._all_quoted is not False and line.startswith('"')
                yield where, dict(zip(self._names, record.cells, strict=True))
            else:
                span = f", from line {number} to {number + len(used) - 1}" if len(used) > 1 else ""
                detail = f"it has {_cells(len(record.cells))}{span}; the header has {len(self._names)}"
                if len(record.cells) > len(self._names):
                    detail += f"; a cell that contains {self._delimiter!r} must be quoted"
                yield where, Reject(where, "ragged_row", detail, shorten("".join(used[:50])))

    def _broken(self, error: _SplitError) -> Reject:
        """Take the lines of a record that cannot be split, up to the next that can."""
        count = 1
        while self._lines.peek(count) is not None and not self._begins_row(count):
            count += 1
        return self._left_out(error, count)

    def _left_out(self, error: _SplitError, count: int) -> Reject:
        """The reject for the next lines, which are taken."""
        first = self._lines.number()
        fault = next((found for index in range(count) if (found := self._lines.fault(index))), None)
        used = self._lines.take(count)
        where = f"{self._path}:{first}"
        span = f"; lines {first} to {first + count - 1} are left out" if count > 1 else ""
        if fault is not None:
            return Reject(where, "broken_csv", f"line {error.line}: {fault.detail}{span}", fault.row)
        detail = (
            f"line {error.line}, column {error.column}: {error}{span}; inside a quoted cell, a quote is written twice"
        )
        return Reject(where, "broken_csv", detail, shorten("".join(used[:50])))

    def _closed_early(self, record: _Record) -> int | None:
        """The lines of a record that a stray quote at a line's end closes too early; None where none does.

        Then the lines after it are not rows, and the first of them that has a quote closes a cell that nothing opened.
        """
        if self._bare_quotes or len(record.cells) != len(self._names):
            return None
        ragged = False
        for ahead in range(record.after, record.after + _LOOK_AHEAD):
            line = self._lines.peek(ahead)
            if line is None:
                return None
            ragged = ragged or line.count(self._delimiter) != len(self._names) - 1
            opens = self._opens(line)
            if opens is not None:
                closes = line[line.index('"') + 1 : line.index('"') + 2] in (self._delimiter, "\r", "\n", "")
                return ahead + 1 if not opens and closes and ragged and line.count('"') % 2 else None
        return None

    def _begins_row(self, index: int) -> bool:
        """Whether a line, after a broken record, begins a row: it can be split, and is not inside a quoted cell.

        Inside one, the next quote closes it, so that no delimiter stands before that quote.
        """
        line = self._lines.peek(index) or ""
        try:
            record = _record(self._lines, index, self._delimiter, self._padded)
        except _SplitError:
            # The next row is broken too. Where its first quote opens a cell, or it has none, it is a row of its own.
            if '"' not in line:
                return line.count(self._delimiter) == len(self._names) - 1
            return self._delimiter in line and self._opens(line) is True
        if len(record.cells) != len(self._names) or (self._all_quoted and not line.startswith('"')):
            return False
        if self._bare_quotes:
            return True
        if self._opens(line) is False:
            return False
        for ahead in range(record.after, record.after + _LOOK_AHEAD):
            following = self._lines.peek(ahead)
            opens = True if following is None else self._opens(following)
            if opens is not None:
                return opens and self._is_whole(ahead)
        return True

    def _is_whole(self, index: int) -> bool:
        """Whether the record that begins at a line ahead has as many cells as the header, where it can be split."""
        try:
            record = _record(self._lines, index, self._delimiter, self._padded)
        except _SplitError:
            return True
        return len(record.cells) == len(self._names)

    def _opens(self, text: str) -> bool | None:
        """Whether the first quote of a line opens a cell; None where it has none."""
        at = text.find('"')
        if at < 0:
            return None
        before = text[:at].rstrip(" ") if self._padded else text[:at]
        return not before or before.endswith(self._delimiter)


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
