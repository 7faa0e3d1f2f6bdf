"""Splits delimited text into records, strictly by RFC 4180.

Python's csv module does not say where a record is broken, not even with strict=True, and at a stray quote it either stops or
reads the rest of the file into one cell. Here a record that cannot be split is a `SplitError` with line and column.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cot_unsloth.core.types import Reject
from cot_unsloth.data.text_files import LineDecoder

DELIMITERS = (",", ";", "\t", "|")


class SplitError(Exception):
    """A record that cannot be split."""

    def __init__(self, line: int, column: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        """Line of the file, from 1."""
        self.column = column
        """Column of the line, from 1."""


class LineBuffer:
    """Lines of a file with unlimited lookahead.

    One quoted cell may span millions of lines, so each line is kept as its text and nothing else.
    """

    def __init__(self, lines: Iterable[bytes], decoder: LineDecoder | None = None) -> None:
        self._lines = iter(lines)
        self._decoder = decoder
        self._buffer: list[str] = []
        self._next = 0
        """Index in the buffer of the next line."""
        self._discarded = 0
        """Lines taken and no longer in the buffer."""
        self._faults: dict[int, Reject] = {}

    def number(self, ahead: int = 0) -> int:
        """Line number in the file, from 1, of a line ahead; 0 is the next line."""
        return self._discarded + self._next + ahead + 1

    def fault(self, ahead: int) -> Reject | None:
        """Why a line ahead is not valid text; None if it is."""
        return self._faults.get(self.number(ahead)) if self._faults else None

    def peek(self, ahead: int = 0) -> str | None:
        """A line ahead, with its line end; None after the last line."""
        index = self._next + ahead
        while len(self._buffer) <= index:
            raw = next(self._lines, None)
            if raw is None:
                return None
            self._buffer.append(self._decode(raw))
        return self._buffer[index]

    def _decode(self, raw: bytes) -> str:
        if self._decoder is None or raw.isascii():
            return raw.decode("utf-8", "replace")
        number = self._discarded + len(self._buffer) + 1
        text = self._decoder.decode(raw, number)
        if isinstance(text, str):
            return text
        self._faults[number] = text
        return raw.decode("utf-8", "replace")

    def take(self, count: int = 1) -> list[str]:
        """Consume the next lines."""
        taken = self._buffer[self._next : self._next + count]
        self._next += count
        if self._next >= min(1000, len(self._buffer)):  # deleting from the front of a list is linear: do it rarely
            del self._buffer[: self._next]
            self._discarded += self._next
            self._next = 0
        return taken


@dataclass
class Dialect:
    """How a file is delimited and quoted, as inferred from its header and the rows so far."""

    delimiter: str
    padded: bool = False
    """Whether a space follows each delimiter, as in `question, answer`; it is not part of the cell."""
    all_quoted: bool = False
    """Whether the header and every row so far begin with a quote, as when a program quotes every cell."""
    bare_quotes: bool = False
    """Whether unquoted cells contain quotes, such as `5" pipe`: quotes then do not show where cells begin and end."""

    def opens_cell(self, text: str) -> bool | None:
        """Whether the first quote of a line opens a cell; None if the line has no quote."""
        at = text.find('"')
        if at < 0:
            return None
        before = text[:at].rstrip(" ") if self.padded else text[:at]
        return not before or before.endswith(self.delimiter)


@dataclass(frozen=True)
class Record:
    """One record: a row of the table, or the header."""

    cells: list[str]
    end: int
    """The line after the record, as a number of lines ahead."""
    bare_quotes: bool = False
    """Whether an unquoted cell contains a quote."""
    quoted_end: bool = False
    """Whether the last cell is quoted."""


def split_record(
    lines: LineBuffer, ahead: int, delimiter: str, *, padded: bool = False, last: int | None = None
) -> Record:
    """Split the record that begins at a line ahead.

    Args:
        lines: the file.
        ahead: the line, 0 being the next one.
        delimiter: the separator of cells.
        padded: whether to drop spaces after a delimiter.
        last: the last line ahead that the record may take; None for no limit.

    Raises:
        SplitError: there is no such line, a quote is not closed, or text follows a closing quote.
    """
    text = _line_text(lines, ahead)
    if text is None:
        raise SplitError(0, 0, "there is no line")
    # Most lines have no quote, and str.split is far faster than the loop below.
    if '"' not in text:
        cells = text.rstrip("\r\n").split(delimiter)
        return Record([cell.lstrip(" ") for cell in cells] if padded else cells, ahead + 1)
    cells = []
    position, bare_quotes = 0, False
    while True:
        while padded and text[position : position + 1] == " ":
            position += 1
        # RFC 4180: only a quote at the very beginning of a cell opens a quoted one; 5" pipe is text.
        if text[position : position + 1] != '"':
            end = text.find(delimiter, position)
            cell = text[position:] if end < 0 else text[position:end]
            bare_quotes = bare_quotes or '"' in cell
            if end < 0:
                return Record([*cells, cell.rstrip("\r\n")], ahead + 1, bare_quotes)
            cells.append(cell)
            position = end + 1
            continue
        cell, ahead, end = _quoted_cell(lines, ahead, position, last)
        cells.append(cell)
        text = lines.peek(ahead) or ""
        if text[end + 1 : end + 2] == delimiter:
            position = end + 2
        elif not text[end + 1 :].rstrip("\r\n"):
            return Record(cells, ahead + 1, bare_quotes, quoted_end=True)
        else:
            # JSON-style escaping (\") is not CSV; name it, since the next character alone would not explain it.
            escaped = text[end - 1 : end] == "\\"
            message = "a quote follows a backslash" if escaped else f"{text[end + 1]!r} follows a closing quote"
            raise SplitError(lines.number(ahead), end + 1, message)


def _quoted_cell(lines: LineBuffer, ahead: int, position: int, last: int | None) -> tuple[str, int, int]:
    """The text of a quoted cell, the line ahead that its closing quote is on, and the quote's position there.

    Raises:
        SplitError: the quote is never closed.
    """
    opening = lines.number(ahead), position + 1
    text, position = lines.peek(ahead) or "", position + 1
    parts: list[str] = []
    while True:
        end = text.find('"', position)
        if end >= 0 and text[end + 1 : end + 2] != '"':
            parts.append(text[position:end])
            return "".join(parts), ahead, end
        if end >= 0:
            parts.append(text[position : end + 1])
            position = end + 2
            continue
        parts.append(text[position:])
        ahead, position = ahead + 1, 0
        following = _line_text(lines, ahead) if last is None or ahead <= last else None
        if following is None:
            raise SplitError(*opening, "the quote that opens here is never closed")
        text = following


def _line_text(lines: LineBuffer, ahead: int) -> str | None:
    """The text of a line ahead; None after the last line.

    Raises:
        SplitError: the line is not text.
    """
    text = lines.peek(ahead)
    fault = lines.fault(ahead)
    if fault is not None:
        raise SplitError(lines.number(ahead), 1, fault.detail)
    if text is not None and "\0" in text:
        raise SplitError(lines.number(ahead), text.index("\0") + 1, "there is a NUL byte here: the file is damaged")
    return text
