"""File formats: which reader reads a file.

To add a format, write a module with its suffixes and a function that yields a `SourceRow` for every row, and add one
`FileFormat` to FORMATS. Content outranks the suffix: Parquet named .json is read as Parquet, JSON named .csv as JSON.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cot_unsloth.core.errors import DataError
from cot_unsloth.core.progress import note
from cot_unsloth.data import arrow_files, csv_files, json_files
from cot_unsloth.data.rows import SourceRow
from cot_unsloth.data.text_files import head, open_utf8, suffix_of


@dataclass(frozen=True)
class FileStart:
    """Facts about a file that are known before it is read."""

    path: Path
    head: bytes
    """Its first 4,096 bytes, decompressed; never empty."""

    @property
    def suffix(self) -> str:
        """Its suffix in lower case, without that of a compressor; empty if it has none."""
        return suffix_of(self.path)

    @property
    def is_text(self) -> bool:
        """Whether it may be read as text: its suffix is known, or it has none."""
        return not self.suffix or self.suffix in SUFFIXES

    @functools.cached_property
    def lines(self) -> list[str]:
        """Its first lines, at most 100 of at most 64 KiB together."""
        with open_utf8(self.path) as text:
            return [line.decode("utf-8", "replace") for line in text.peek(1 << 16)[: 1 << 16].splitlines()[:100]]


@dataclass(frozen=True)
class FileFormat:
    """A file format, and the function that reads it."""

    name: str
    """For messages."""
    suffixes: tuple[str, ...]
    """In lower case, with the dot. Files of a folder are found by their suffix."""
    matches: Callable[[FileStart], bool]
    """Whether a file has this format; formats are tried in the order of FORMATS."""
    read: Callable[[Path, str], Iterator[SourceRow]]
    """The rows of a file; the second argument is the split to take if the file holds several. Raises DataError if the
    file cannot be read; a single row that cannot be read is a SourceRow with a Reject."""


def _is_arrow(start: FileStart) -> bool:
    # A CSV header may begin with PAR1, so its suffix outranks the first bytes.
    return start.suffix not in csv_files.SUFFIXES and arrow_files.kind_of(start.head) is not None


def _is_json(start: FileStart) -> bool:
    if not start.is_text or _is_arrow(start):
        return False
    if start.suffix in csv_files.SUFFIXES:
        return json_files.is_first_line_json(start.lines)
    # Any line, not the first: a broken or commented first line must not turn JSONL into an unknown file.
    begins = any(line.lstrip()[:1] in ("{", "[") for line in start.lines)
    return begins or not any(line.strip() for line in start.lines)


def _is_csv(start: FileStart) -> bool:
    return start.suffix in csv_files.SUFFIXES


def _is_unnamed_csv(start: FileStart) -> bool:
    return start.is_text and start.suffix not in arrow_files.SUFFIXES and csv_files.looks_delimited(start.lines)


def _read_unnamed_csv(path: Path, split: str) -> Iterator[SourceRow]:
    note(f"{path}: holds no JSON; read as delimited text (CSV)")
    yield from csv_files.read_rows(path)


FORMATS: tuple[FileFormat, ...] = (
    FileFormat("JSON", json_files.SUFFIXES, _is_json, json_files.read_rows),
    FileFormat("CSV", csv_files.SUFFIXES, _is_csv, lambda path, split: csv_files.read_rows(path)),
    FileFormat("Parquet or Arrow", arrow_files.SUFFIXES, _is_arrow, lambda path, split: arrow_files.read_rows(path)),
    FileFormat("CSV without its suffix", (), _is_unnamed_csv, _read_unnamed_csv),
)
"""Formats in the order in which they are tried."""
SUFFIXES: tuple[str, ...] = tuple(suffix for file_format in FORMATS for suffix in file_format.suffixes)


def read_file(path: Path, split: str) -> Iterator[SourceRow]:
    """The rows of one file.

    Args:
        path: the file, compressed or not.
        split: which split to take if the file holds several.

    Raises:
        DataError: the file is of no known format, or cannot be read.
    """
    first_bytes = head(path)
    if not first_bytes:
        return
    start = FileStart(path, first_bytes)
    file_format = next((candidate for candidate in FORMATS if candidate.matches(start)), None)
    if file_format is None:
        raise _unreadable(start)
    yield from file_format.read(path, split)


def _unreadable(start: FileStart) -> DataError:
    if not start.is_text:
        return _unknown_suffix(start)
    if start.suffix in arrow_files.SUFFIXES:
        return DataError(
            f"is not {start.suffix[1:].capitalize()}: its first bytes are {start.head[:8]!r}",
            where=str(start.path),
            hint="it is cut off or damaged, or another kind of file; download or write it again",
            name="not_parquet" if "parquet" in start.suffix else "not_arrow",
        )
    number, first = next((number, line) for number, line in enumerate(start.lines, start=1) if line.strip())
    expected = "JSON" if start.suffix else "JSON, CSV, Parquet or Arrow"
    return DataError(
        f"is not {expected}: it begins {first.strip()[:40]!r}",
        where=f"{start.path}:{number}:1",
        hint="write one object a line (JSONL), a list of objects (JSON), or a header and rows of cells (CSV)",
        name="not_data",
    )


def _unknown_suffix(start: FileStart) -> DataError:
    hint = f"known: {', '.join(SUFFIXES)}, each also compressed (.gz, .zst, .bz2, .xz)"
    if json_files.is_first_line_json(start.lines):
        hint = f"it looks like JSON; name it {start.path.with_suffix('.jsonl')}"
    elif csv_files.looks_delimited(start.lines):
        hint = f"it looks like CSV; name it {start.path.with_suffix('.csv')}"
    return DataError(f"{start.suffix} is not a data file", where=str(start.path), hint=hint, name="unknown_file_type")
