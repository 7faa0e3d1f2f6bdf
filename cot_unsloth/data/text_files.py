"""Data files as UTF-8 lines, whatever they are compressed with and whichever Unicode encoding they are in.

Owns decompression (recognised by the first bytes, never by the suffix), byte order marks, UTF-16 and UTF-32, line ends,
and what is said of text in another encoding: its line, its byte, the encoding it looks like, and a command that
converts it. Everything is a stream: memory holds one block or one line.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import itertools
import json
import lzma
import os
import re
import shlex
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from cot_unsloth.core.errors import DataError
from cot_unsloth.core.progress import note
from cot_unsloth.core.types import Reject

Numbered = tuple[str, Any]
"""Where a row is, and the row (or the Reject it already is)."""

_BLOCK = 1 << 20
_LONGEST_ROW_KEPT = 2000


def shorten(row: Any) -> str:
    """A row as text, cut to what a Reject keeps of it."""
    text = row if isinstance(row, str) else json.dumps(row, ensure_ascii=False, default=str)
    return text[:_LONGEST_ROW_KEPT].encode("utf-8", "backslashreplace").decode()


# --- bytes -----------------------------------------------------------------------------------------------------------


class _Stream(io.RawIOBase):
    """An iterator of blocks as a file, so that `io.BufferedReader` can read lines from it."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._rest = memoryview(block)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _zstd(file: BinaryIO) -> Any:
    import pyarrow  # carries a zstd codec, so that no further dependency is needed (Python has one from 3.14 on)

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")


_COMPRESSED: dict[bytes, tuple[str, Callable[[BinaryIO], Any]]] = {
    b"\x1f\x8b": ("gzip", lambda file: gzip.GzipFile(fileobj=file)),
    b"BZh": ("bzip2", bz2.BZ2File),
    b"\xfd7zXZ\x00": ("xz", lzma.LZMAFile),
    b"\x28\xb5\x2f\xfd": ("zstd", _zstd),
}
"""First bytes of compressed files: the program that undoes each, and how it is read here."""
_REFUSED: dict[bytes, tuple[str, str]] = {
    b"PK\x03\x04": ("a zip archive", "unpack it and name the file in it"),
    b"\xd0\xcf\x11\xe0": ("an old Excel workbook", "save the sheet as 'CSV UTF-8' and name that file"),
    b"SQLite format 3": ("an SQLite database", "write the rows to a JSONL or Parquet file"),
    b"\x80\x04\x95": (
        "a Python pickle, which can run code when it is read",
        "write the rows to a JSONL or Parquet file",
    ),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "unpack it and name the file in it"),
    b"%PDF": ("a PDF", "write the rows to a JSONL file"),
    b"version https://git-lfs": ("a Git LFS pointer, not the data", "fetch the file itself: git lfs pull"),
}
_PAGE = re.compile(rb"\s*<(!doctype html|html|\?xml)", re.IGNORECASE)


def _compression(head: bytes) -> tuple[str, Callable[[BinaryIO], Any]] | None:
    return next((known for magic, known in _COMPRESSED.items() if head.startswith(magic)), None)


def _plain_blocks(path: Path) -> Generator[bytes, None, None]:
    """The bytes of a file, decompressed."""
    program = None
    try:
        with path.open("rb") as file:
            known = _compression(file.read(8))
            file.seek(0)
            program, opened = (known[0], known[1](file)) if known else (None, file)
            while block := opened.read(_BLOCK):
                yield block
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        if program is None:
            raise DataError(f"cannot be read: {error}", where=str(path)) from error
        raise DataError(
            f"is {program} data that is cut off or damaged: {error}",
            where=str(path),
            hint=f"download it again, or see what {program} says: {_unpacking(path)} > /dev/null",
            name="damaged_file",
        ) from error


def _unpacking(path: Path) -> str:
    """The command that writes a compressed file's content to standard output."""
    with path.open("rb") as file:
        known = _compression(file.read(8))
    return f"{known[0] if known else 'cat'} {'-dc ' if known else ''}{shlex.quote(str(path))}"


def head(path: Path, size: int = 4096) -> bytes:
    """The first bytes of what a file holds, decompressed.

    Raises:
        DataError: it cannot be read, or is of a kind that holds no rows as it is.
    """
    blocks = _plain_blocks(path)
    start = next(blocks, b"")
    blocks.close()
    _refuse(path, start)
    return start[:size]


def _refuse(path: Path, start: bytes) -> None:
    if start.startswith(b"PK\x03\x04") and (path.suffix.lower() in (".xlsx", ".xlsm") or b"[Content_Types]" in start):
        raise DataError(
            "is an Excel workbook, not a text file",
            where=str(path),
            hint="in Excel: Save As, 'CSV UTF-8 (comma delimited)'; or with pandas: python -c \"import pandas; "
            f'pandas.read_excel({str(path)!r}).to_csv({str(path.with_suffix(".csv"))!r}, index=False)"',
            name="excel_workbook",
        )
    for magic, (kind, hint) in _REFUSED.items():
        if start.startswith(magic):
            raise DataError(f"is {kind}", where=str(path), hint=hint, name="not_data")
    if _PAGE.match(start):
        hint = "download the file itself: on a hub or GitHub page, its 'download' or 'raw' link"
        raise DataError("is a web page (HTML or XML), not data", where=str(path), hint=hint, name="web_page")


def read_bytes(path: Path) -> bytes:
    """Everything a file holds, decompressed.

    Raises:
        DataError: it cannot be read.
    """
    return b"".join(_plain_blocks(path))


# --- text ------------------------------------------------------------------------------------------------------------

_MARKS = (  # UTF-32 first: its little-endian mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def _unicode_of(start: bytes) -> tuple[str, int]:
    """The Unicode encoding that the first bytes show, and the length of their byte order mark."""
    for mark, encoding in _MARKS:
        if start.startswith(mark):
            return encoding, len(mark)
    even, odd = start[:64:2], start[1:64:2]
    if len(odd) > 2 and not odd.strip(b"\0") and b"\0" not in even:  # ASCII characters in UTF-16 without a mark
        return "utf-16-le", 0
    if len(odd) > 2 and not even.strip(b"\0") and b"\0" not in odd:
        return "utf-16-be", 0
    return "utf-8", 0


def _utf8_blocks(path: Path, *, announce: bool) -> Iterator[bytes]:
    blocks = _plain_blocks(path)
    start = next(blocks, b"")
    encoding, mark = _unicode_of(start)
    stream: Iterator[bytes] = itertools.chain([start[mark:]], blocks)
    if encoding != "utf-8":
        if announce:
            note(f"{path}: is {encoding[:6].upper()} text; read as such")
        stream = _transcoded(path, stream, encoding, mark)
        start = next(stream, b"")
        stream = itertools.chain([start], stream)
    # Only lone carriage returns: the line ends of old Macs, and of some of Excel's "CSV (Macintosh)".
    lone = b"\n" not in start and b"\r" in start[:-1]
    return (block.replace(b"\r", b"\n") for block in stream) if lone else stream


def _transcoded(path: Path, blocks: Iterator[bytes], encoding: str, done: int) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)()
    for block in itertools.chain(blocks, [b""]):
        try:
            yield decoder.decode(block, final=not block).encode("utf-8")
        except UnicodeError as error:
            at = done + getattr(error, "start", 0)
            raise DataError(
                f"is not whole {encoding[:6].upper()} text: {getattr(error, 'reason', error)} near byte {at}",
                where=str(path),
                hint="it is cut off or damaged; write or download it again",
                name="damaged_text",
            ) from error
        done += len(block)


def open_utf8(path: Path, *, announce: bool = False) -> io.BufferedReader:
    """A file's text as UTF-8 bytes without a byte order mark, to be read line by line; not yet checked to be UTF-8.

    Raises:
        DataError: (as it is read) it cannot be read, or is cut off.
    """
    return io.BufferedReader(_Stream(_utf8_blocks(path, announce=announce)), _BLOCK)


# --- text in other encodings -----------------------------------------------------------------------------------------

_HIGH = re.compile(rb"[\x80-\xff]+")
_ICONV = {"euc_kr": "EUC-KR", "shift_jis": "SHIFT_JIS", "mac_roman": "MACINTOSH"}


def _share(text: str, first: str, last: str) -> float:
    other = [char for char in text if char > "\x7f"]
    return sum(first <= char <= last for char in other) / max(len(other), 1)


def guess_encoding(text: bytes) -> str:
    """The encoding that text which is not UTF-8 looks like: a guess, for messages alone.

    >>> guess_encoding("café crème".encode("latin-1")), guess_encoding("сколько яблок".encode("cp1251"))
    ('cp1252', 'cp1251')
    """
    runs = _HIGH.findall(text)
    if sum(len(run) > 1 for run in runs) * 2 > len(runs):  # letters of another script stand side by side
        for encoding, first, last, least in (
            ("euc_kr", "\uac00", "\ud7a3", 0.8),
            ("shift_jis", "\u3040", "\u30ff", 0.2),
            ("gb18030", "\u4e00", "\u9fff", 0.8),
            ("cp1251", "\u0430", "\u044f", 0.6),
        ):
            try:
                if _share(text.decode(encoding), first, last) >= least:
                    return encoding
            except UnicodeDecodeError:
                continue
    try:
        text.decode("cp1252")
    except UnicodeDecodeError:
        return "mac_roman"
    return "cp1252"


def converting(path: Path, encoding: str) -> str:
    """A command that writes a UTF-8 copy of a file in another encoding."""
    bare = path.with_suffix("") if path.suffix.lower() in PACKED else path
    new = str(bare.with_name(f"{bare.stem}-utf8{bare.suffix}"))
    if os.name == "nt":
        return (
            f"python -c \"import pathlib; pathlib.Path(r'{new}').write_text("
            f"pathlib.Path(r'{path}').read_text('{encoding}'), 'utf-8')\""
        )
    name = _ICONV.get(encoding, encoding)
    if path.suffix.lower() in PACKED:
        return f"{_unpacking(path)} | iconv -f {name} -t utf-8 > {shlex.quote(new)}"
    return f"iconv -f {name} -t utf-8 {shlex.quote(str(path))} > {shlex.quote(new)}"


PACKED = (".gz", ".zst", ".zstd", ".bz2", ".xz")
"""Suffixes of compressed files, which go around another suffix."""


def suffix_of(path: Path) -> str:
    """The suffix that says what a file holds, a compressor's left out.

    >>> suffix_of(Path("rows.JSONL.gz")), suffix_of(Path("rows.csv")), suffix_of(Path("rows"))
    ('.jsonl', '.csv', '')
    """
    return (Path(path.stem) if path.suffix.lower() in PACKED else path).suffix.lower()


class Decoder:
    """Lines of one file as text. A line that is not UTF-8 is a reject; a file in another encoding is an error."""

    def __init__(self, path: Path, *, tolerant: bool) -> None:
        self._path = path
        self._tolerant = tolerant
        """Whether a single bad line may be that row's reject where no line shows that the rest is UTF-8."""
        self._judged = self._mixed = False

    def decode(self, line: bytes, number: int) -> str | Reject:
        """A line's text, or why it has none.

        Raises:
            DataError: this is the first line that is not UTF-8, and the file as a whole is not.
        """
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            where = f"{self._path}:{number}"
            if error.reason == "unexpected end of data" and not line.endswith(b"\n") and len(line) - error.start < 4:
                detail = f"the file ends in the middle of a character (byte {error.start + 1} of the line)"
                return Reject(where, "broken_json", detail, shorten(line.decode("utf-8", "replace")))
            if not self._judged:
                self._judge(line, number)
            detail = f"{not_utf8(line, error.start)}; {self._way_out(line)}"
            return Reject(where, "not_utf8", detail, shorten(line.decode("utf-8", "backslashreplace")))

    def _way_out(self, line: bytes) -> str:
        if self._mixed:
            return "other lines are UTF-8, so write this one again"
        return f"convert the file: {converting(self._path, guess_encoding(line))}"

    def _judge(self, line: bytes, number: int) -> None:
        """Look through the whole file once: is it one bad line in a UTF-8 file, or a file in another encoding?"""
        self._judged = True
        lines = bad = 0
        with open_utf8(self._path) as file:
            for other in file:
                lines += bool(other.strip())
                if other.isascii():
                    continue
                try:
                    other.decode("utf-8")
                    self._mixed = True
                    return
                except UnicodeDecodeError:
                    bad += 1
        if self._tolerant and (bad == 1 or (bad < 10 and bad * 2 <= lines)):
            return
        raise another_encoding(self._path, line, number)


def not_utf8(line: bytes, at: int) -> str:
    """What is said of a byte that is not UTF-8."""
    encoding = guess_encoding(line)
    around = line[max(0, at - 12) : at + 12].decode(encoding, "replace").strip()
    return f"byte {at + 1} of the line (0x{line[at]:02x}) is not UTF-8; it looks like {encoding} ({around!r})"


def another_encoding(path: Path, line: bytes, number: int) -> DataError:
    """The error for a file whose text is not UTF-8, from the first line that shows it."""
    try:
        line.decode("utf-8")
        start = 0
    except UnicodeDecodeError as error:
        start = error.start
    return DataError(
        f"is not UTF-8 text: {not_utf8(line, start)}",
        where=f"{path}:{number}",
        hint=f"convert it and name the new file: {converting(path, guess_encoding(line))}",
        name="not_utf8",
    )
