"""Keeps many rows in little memory: Examples and Rejects are pickled into a file and read back one at a time.

A row takes 8 bytes of memory here for its position, and 2 to 4 KiB as Python objects. The file is nameless, so the system
removes it with the process, whatever ends that; up to `_BUFFER` bytes there is none. What is taken of the rows (a split,
those without rejects) is a view: a row is unpickled anew each time it is looked at, so rows are compared by their
position or value, never by identity.
"""

from __future__ import annotations

import itertools
import mmap
import pickle
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

from cot_unsloth.core.logs import LOG
from cot_unsloth.storage import cache

T = TypeVar("T")
_BUFFER = 8 * 2**20
"""Bytes that are written at once: about 5,000 rows."""


class _File:
    """Bytes that are appended, and read by their position; the last ones, or all if no file can be written, in memory."""

    def __init__(self) -> None:
        self._file: Any = None
        self._mapped: mmap.mmap | None = None
        self._on_disk = 0
        self._rest = bytearray()
        self._is_full = False

    def append(self, content: bytes) -> int:
        """Write some bytes; returns their position."""
        if len(self._rest) >= _BUFFER and not self._is_full:
            self._write()
        position = self._on_disk + len(self._rest)
        self._rest += content
        return position

    def read(self, position: int) -> memoryview:
        """What was appended at a position, and what follows it."""
        if position >= self._on_disk:
            return memoryview(self._rest)[position - self._on_disk :]
        if self._mapped is None or len(self._mapped) < self._on_disk:
            self._mapped = mmap.mmap(self._file.fileno(), self._on_disk, access=mmap.ACCESS_READ)
        return memoryview(self._mapped)[position:]

    def _write(self) -> None:
        try:
            self._file = self._file or cache.temporary_file()
            self._file.seek(self._on_disk)  # a write that failed may have left some bytes
            self._file.write(self._rest)
            self._file.flush()
        except OSError as error:
            LOG.debug("rows stay in memory: %s", error)
            self._is_full = True
            return
        self._on_disk += len(self._rest)
        self._rest = bytearray()


class Rows(Sequence[T], Generic[T]):
    """A sequence of rows of which parts can be taken without a copy. It equals any sequence of equal rows."""

    def at(self, positions: Iterable[int]) -> Rows[T]:
        """The rows at these positions, in their order."""
        return _Part(self, positions)

    def mapped(self, change: Callable[[T], T]) -> Rows[T]:
        """The rows, each changed by a function when it is looked at."""
        return _Changed(self, change)

    def _row(self, position: int) -> T:
        """The row at a position from 0."""
        raise NotImplementedError

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> Rows[T]: ...
    def __getitem__(self, at: int | slice) -> T | Rows[T]:
        chosen = range(len(self))[at]  # negative ones count from the end; raises IndexError
        return self._row(chosen) if isinstance(chosen, int) else self.at(chosen)

    def __iter__(self) -> Iterator[T]:
        return map(self._row, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Rows | tuple | list):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} rows>"


class StoredRows(Rows[T]):
    """Rows that are appended, and kept on disk; they can be of any type that can be pickled."""

    def __init__(self, rows: Iterable[T] = ()) -> None:
        self._file = _File()
        self._begins = array("Q")
        for row in rows:
            self.append(row)

    def append(self, row: T) -> None:
        """Add a row at the end."""
        self._begins.append(self._file.append(pickle.dumps(row, pickle.HIGHEST_PROTOCOL)))

    def __len__(self) -> int:
        return len(self._begins)

    def _row(self, position: int) -> T:
        row: T = pickle.loads(self._file.read(self._begins[position]))  # written by this process, and by no other
        return row


class JoinedRows(Rows[T]):
    """Several sequences of rows, one after another."""

    def __init__(self, *parts: Sequence[T]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def _row(self, position: int) -> T:
        for part in self._parts:
            if position < len(part):
                return part[position]
            position -= len(part)
        raise IndexError(position)

    def __iter__(self) -> Iterator[T]:
        return itertools.chain.from_iterable(self._parts)


class _Part(Rows[T]):
    """Rows at some positions of others."""

    def __init__(self, rows: Rows[T], positions: Iterable[int]) -> None:
        self._rows = rows
        self._positions: Sequence[int] = positions if isinstance(positions, range) else array("Q", positions)

    def __len__(self) -> int:
        return len(self._positions)

    def _row(self, position: int) -> T:
        return self._rows._row(self._positions[position])


class _Changed(Rows[T]):
    """Rows that are changed when they are looked at."""

    def __init__(self, rows: Rows[T], change: Callable[[T], T]) -> None:
        self._rows, self._change = rows, change

    def __len__(self) -> int:
        return len(self._rows)

    def _row(self, position: int) -> T:
        return self._change(self._rows._row(position))


def rows_at(rows: Sequence[T], positions: Sequence[int]) -> Sequence[T]:
    """The rows at these positions, without a copy where they are `Rows`; all of them in their order are the rows themselves."""
    if len(positions) == len(rows):
        return rows
    return rows.at(positions) if isinstance(rows, Rows) else tuple(rows[position] for position in positions)


def rows_without(rows: Sequence[T], positions: Collection[int]) -> Sequence[T]:
    """The rows that are not at these positions, as `rows_at`."""
    if not len(positions):
        return rows
    dropped = bytearray(len(rows))
    for position in positions:
        dropped[position] = 1
    return rows_at(rows, array("Q", (at for at, is_dropped in enumerate(dropped) if not is_dropped)))


def rows_where(rows: Sequence[T], condition: Callable[[T], bool]) -> Sequence[T]:
    """The rows for which a condition holds; each is looked at once."""
    return rows_at(rows, array("Q", (at for at, row in enumerate(rows) if condition(row))))
