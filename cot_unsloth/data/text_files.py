"""Data files as UTF-8 lines, whatever they are compressed with and whichever Unicode encoding they are in.

Handles decompression (recognised by the first bytes, never by the suffix), byte order marks, UTF-16, UTF-32 and old line
ends. Text in any other encoding is never decoded by guess: it is an error that names the line, the byte, the encoding it
looks like and a command that converts the file. Everything is streamed: memory holds one block or one line.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import itertools
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
from cot_unsloth.data import expansion
from cot_unsloth.data.rows import shorten

_BLOCK = 1 << 20
"""Bytes to read at a time."""


# --- bytes -----------------------------------------------------------------------------------------------------------


class _Stream(io.RawIOBase):
    """An iterator of blocks as a raw file, so that `io.BufferedReader` can split it into lines."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._unread = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._unread:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._unread = memoryview(block)
        size = min(len(buffer), len(self._unread))
        buffer[:size] = self._unread[:size]
        self._unread = self._unread[size:]
        return size


def _zstd(file: BinaryIO) -> Any:
    import pyarrow  # bundles a zstd codec; the standard library has one only from Python 3.14 on

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")


_COMPRESSED: dict[bytes, tuple[str, Callable[[BinaryIO], Any]]] = {
    b"\x1f\x8b": ("gzip", lambda file: gzip.GzipFile(fileobj=file)),
    b"BZh": ("bzip2", bz2.BZ2File),
    b"\xfd7zXZ\x00": ("xz", lzma.LZMAFile),
    b"\x28\xb5\x2f\xfd": ("zstd", _zstd),
}
"""First bytes of a compressed file → the program that decompresses it, and how it is opened here."""
_UNSUPPORTED: dict[bytes, tuple[str, str]] = {
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
"""First bytes of files that cannot be read directly → what they are, and what to do."""
_WEB_PAGE = re.compile(rb"\s*<(!doctype html|html|\?xml)", re.IGNORECASE)


def _compression(head: bytes) -> tuple[str, Callable[[BinaryIO], Any]] | None:
    return next((codec for magic, codec in _COMPRESSED.items() if head.startswith(magic)), None)


def _decompressed_blocks(path: Path) -> Generator[bytes, None, None]:
    """The content of a file, decompressed, a block at a time."""
    program = None
    try:
        with path.open("rb") as file:
            codec = _compression(file.read(8))
            file.seek(0)
            program, content = (codec[0], codec[1](file)) if codec else (None, file)
            yield from expansion.counted(path, iter(lambda: content.read(_BLOCK), b""))
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        if program is None:
            raise DataError(f"cannot be read: {error}", where=str(path)) from error
        raise DataError(
            f"is {program} data that is cut off or damaged: {error}",
            where=str(path),
            hint=f"download it again, or see what {program} says: {_decompress_command(path)} > /dev/null",
            name="damaged_file",
        ) from error


def _decompress_command(path: Path) -> str:
    """The command that writes a compressed file's content to standard output."""
    with path.open("rb") as file:
        codec = _compression(file.read(8))
    return f"{codec[0] if codec else 'cat'} {'-dc ' if codec else ''}{shlex.quote(str(path))}"


def head(path: Path, size: int = 4096) -> bytes:
    """The first bytes of a file's content, decompressed.

    Raises:
        DataError: the file cannot be read, or is of a kind that holds no rows, such as a workbook or a web page.
    """
    blocks = _decompressed_blocks(path)
    start = next(blocks, b"")
    blocks.close()
    _check_supported(path, start)
    return start[:size]


def _check_supported(path: Path, start: bytes) -> None:
    if start.startswith(b"PK\x03\x04") and (path.suffix.lower() in (".xlsx", ".xlsm") or b"[Content_Types]" in start):
        raise DataError(
            "is an Excel workbook, not a text file",
            where=str(path),
            hint="in Excel: Save As, 'CSV UTF-8 (comma delimited)'; or with pandas: python -c \"import pandas; "
            f'pandas.read_excel({str(path)!r}).to_csv({str(path.with_suffix(".csv"))!r}, index=False)"',
            name="excel_workbook",
        )
    for magic, (kind, hint) in _UNSUPPORTED.items():
        if start.startswith(magic):
            raise DataError(f"is {kind}", where=str(path), hint=hint, name="not_data")
    if _WEB_PAGE.match(start):
        hint = "download the file itself: on a hub or GitHub page, its 'download' or 'raw' link"
        raise DataError("is a web page (HTML or XML), not data", where=str(path), hint=hint, name="web_page")


def read_bytes(path: Path) -> bytes:
    """The whole content of a file, decompressed.

    Raises:
        DataError: the file cannot be read.
    """
    return b"".join(_decompressed_blocks(path))


# --- text ------------------------------------------------------------------------------------------------------------

_BYTE_ORDER_MARKS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def _detect_unicode(start: bytes) -> tuple[str, int]:
    """The Unicode encoding that the first bytes suggest, and the length of the byte order mark (0: none)."""
    for mark, encoding in _BYTE_ORDER_MARKS:
        if start.startswith(mark):
            return encoding, len(mark)
    even, odd = start[:64:2], start[1:64:2]
    if (
        len(odd) > 2 and not odd.strip(b"\0") and b"\0" not in even
    ):  # every second byte is NUL: ASCII in UTF-16 without a mark
        return "utf-16-le", 0
    if len(odd) > 2 and not even.strip(b"\0") and b"\0" not in odd:
        return "utf-16-be", 0
    return "utf-8", 0


def _utf8_blocks(path: Path, *, announce: bool) -> Iterator[bytes]:
    blocks = _decompressed_blocks(path)
    start = next(blocks, b"")
    encoding, mark = _detect_unicode(start)
    stream: Iterator[bytes] = itertools.chain([start[mark:]], blocks)
    if encoding != "utf-8":
        if announce:
            note(f"{path}: is {encoding[:6].upper()} text; read as such")
        stream = _to_utf8(path, stream, encoding, mark)
        start = next(stream, b"")
        stream = itertools.chain([start], stream)
    old_mac = _ends_lines_with_cr(start)
    return (block.replace(b"\r", b"\n") for block in stream) if old_mac else stream


def _ends_lines_with_cr(start: bytes) -> bool:
    """Whether carriage returns alone end the lines, as in Excel's "CSV (Macintosh)", whose cells may have line feeds inside."""
    # A block may end between \r and \n: hence [:-1].
    first = re.search(rb"[\r\n]+", start[:-1])
    return first is not None and (first[0] == b"\r" or b"\n" not in start)


def _to_utf8(path: Path, blocks: Iterator[bytes], encoding: str, offset: int) -> Iterator[bytes]:
    # Incremental: a block may end in the middle of a character.
    decoder = codecs.getincrementaldecoder(encoding)()
    for block in itertools.chain(blocks, [b""]):
        try:
            yield decoder.decode(block, final=not block).encode("utf-8")
        except UnicodeError as error:
            at = offset + getattr(error, "start", 0)
            raise DataError(
                f"is incomplete {encoding[:6].upper()} text: {getattr(error, 'reason', error)} near byte {at}",
                where=str(path),
                hint="it is cut off or damaged; write or download it again",
                name="damaged_text",
            ) from error
        offset += len(block)


def open_utf8(path: Path, *, announce: bool = False) -> io.BufferedReader:
    """A file's text as UTF-8 without a byte order mark, to be read line by line; whether it is UTF-8 is not checked.

    Raises:
        DataError: while reading, if the file cannot be read or is cut off.
    """
    return io.BufferedReader(_Stream(_utf8_blocks(path, announce=announce)), _BLOCK)


# --- text in other encodings -----------------------------------------------------------------------------------------

_NON_ASCII = re.compile(rb"[\x80-\xff]+")
_ICONV_NAMES = {"euc_kr": "EUC-KR", "shift_jis": "SHIFT_JIS", "mac_roman": "MACINTOSH"}


def _script_share(text: str, first: str, last: str) -> float:
    """Share of the non-ASCII characters of a text that lie in a range."""
    non_ascii = [char for char in text if char > "\x7f"]
    return sum(first <= char <= last for char in non_ascii) / max(len(non_ascii), 1)


def guess_encoding(text: bytes) -> str:
    """The encoding that non-UTF-8 text looks like: a guess, used only in messages.

    >>> guess_encoding("café crème".encode("latin-1")), guess_encoding("сколько яблок".encode("cp1251"))
    ('cp1252', 'cp1251')
    """
    runs = _NON_ASCII.findall(text)
    if sum(len(run) > 1 for run in runs) * 2 > len(runs):  # non-ASCII letters mostly adjoin: not a Latin script
        # The range must hold most of the letters: any bytes decode as gb18030 or cp1251.
        for encoding, first, last, least in (
            ("euc_kr", "\uac00", "\ud7a3", 0.8),
            ("shift_jis", "\u3040", "\u30ff", 0.2),
            ("gb18030", "\u4e00", "\u9fff", 0.8),
            ("cp1251", "\u0430", "\u044f", 0.6),
        ):
            try:
                if _script_share(text.decode(encoding), first, last) >= least:
                    return encoding
            except UnicodeDecodeError:
                continue
    try:
        text.decode("cp1252")
    except UnicodeDecodeError:
        return "mac_roman"
    return "cp1252"


def conversion_command(path: Path, encoding: str) -> str:
    """A command that writes a UTF-8 copy of a file that is in another encoding."""
    bare = path.with_suffix("") if path.suffix.lower() in COMPRESSED_SUFFIXES else path
    new = str(bare.with_name(f"{bare.stem}-utf8{bare.suffix}"))
    if os.name == "nt":
        return (
            f"python -c \"import pathlib; pathlib.Path(r'{new}').write_text("
            f"pathlib.Path(r'{path}').read_text('{encoding}'), 'utf-8')\""
        )
    name = _ICONV_NAMES.get(encoding, encoding)
    if path.suffix.lower() in COMPRESSED_SUFFIXES:
        return f"{_decompress_command(path)} | iconv -f {name} -t utf-8 > {shlex.quote(new)}"
    return f"iconv -f {name} -t utf-8 {shlex.quote(str(path))} > {shlex.quote(new)}"


COMPRESSED_SUFFIXES = (".gz", ".zst", ".zstd", ".bz2", ".xz")
"""Suffixes of compressed files, which follow another suffix."""


def suffix_of(path: Path) -> str:
    """The suffix that says what a file holds, without that of a compressor.

    >>> suffix_of(Path("rows.JSONL.gz")), suffix_of(Path("rows.csv")), suffix_of(Path("rows"))
    ('.jsonl', '.csv', '')
    """
    return (Path(path.stem) if path.suffix.lower() in COMPRESSED_SUFFIXES else path).suffix.lower()


class LineDecoder:
    """Decodes the lines of one file. A single line that is not UTF-8 is rejected; a file in another encoding is an error."""

    def __init__(self, path: Path, *, tolerant: bool) -> None:
        self._path = path
        self._tolerant = tolerant
        """Whether a few bad lines may be rejected even if no other line has non-ASCII text to show that it is UTF-8."""
        self._scanned = self._has_utf8 = False

    def decode(self, line: bytes, number: int) -> str | Reject:
        """The text of a line, or its Reject.

        Raises:
            DataError: at the first line that is not UTF-8, if the whole file is in another encoding.
        """
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            where = f"{self._path}:{number}"
            if error.reason == "unexpected end of data" and not line.endswith(b"\n") and len(line) - error.start < 4:
                detail = f"the file ends in the middle of a character (byte {error.start + 1} of the line)"
                return Reject(where, "broken_json", detail, shorten(line.decode("utf-8", "replace")))
            if not self._scanned:
                self._scan(line, number)
            detail = f"{describe_non_utf8(line, error.start)}; {self._fix_hint(line)}"
            return Reject(where, "not_utf8", detail, shorten(line.decode("utf-8", "backslashreplace")))

    def _fix_hint(self, line: bytes) -> str:
        if self._has_utf8:
            return "other lines are UTF-8, so write this one again"
        return f"convert the file: {conversion_command(self._path, guess_encoding(line))}"

    def _scan(self, line: bytes, number: int) -> None:
        """Read the whole file once, to distinguish one bad line in a UTF-8 file from a file in another encoding.

        Raises:
            DataError: the file is in another encoding.
        """
        self._scanned = True
        lines = bad = 0
        with open_utf8(self._path) as file:
            for other in file:
                lines += bool(other.strip())
                if other.isascii():
                    continue
                try:
                    other.decode("utf-8")
                    self._has_utf8 = True
                    return
                except UnicodeDecodeError:
                    bad += 1
        if self._tolerant and (bad == 1 or (bad < 10 and bad * 2 <= lines)):
            return
        raise wrong_encoding_error(self._path, line, number)


def describe_non_utf8(line: bytes, at: int) -> str:
    """Describes a byte that is not UTF-8: position, value and likely encoding."""
    encoding = guess_encoding(line)
    around = line[max(0, at - 12) : at + 12].decode(encoding, "replace").strip()
    return f"byte {at + 1} of the line (0x{line[at]:02x}) is not UTF-8; it looks like {encoding} ({around!r})"


def wrong_encoding_error(path: Path, line: bytes, number: int) -> DataError:
    """The error for a file that is not UTF-8.

    Args:
        path: the file.
        line: the first line that shows it.
        number: its number, from 1.
    """
    try:
        line.decode("utf-8")
        start = 0
    except UnicodeDecodeError as error:
        start = error.start
    return DataError(
        f"is not UTF-8 text: {describe_non_utf8(line, start)}",
        where=f"{path}:{number}",
        hint=f"convert it and name the new file: {conversion_command(path, guess_encoding(line))}",
        name="not_utf8",
    )
