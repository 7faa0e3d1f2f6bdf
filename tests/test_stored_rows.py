"""Rows on disk: the same rows as in a list, whatever part is taken, and in memory where no file can be written."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from cot_unsloth import tasks
from cot_unsloth.core.types import Example
from cot_unsloth.storage import cache, stored_rows
from cot_unsloth.storage.stored_rows import JoinedRows, StoredRows, rows_at, rows_where, rows_without

ROWS: list[Example] = list(tasks.generate("world:chains:2-4,countdown", split="train", n=40, seed=1, error_rate=0.5))


@pytest.fixture(params=[1, 3000, 10**9])
def stored(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> StoredRows[Example]:
    """The rows, with each on disk, some, or none."""
    monkeypatch.setattr(stored_rows, "_BUFFER", request.param)
    return StoredRows(ROWS)


def test_stored_rows_are_a_sequence_of_the_rows_they_were_made_of(stored: StoredRows[Example]) -> None:
    assert list(stored) == ROWS
    assert stored == ROWS
    assert tuple(ROWS) == stored
    assert stored != ROWS[1:]
    assert stored != [*ROWS[1:], ROWS[0]]
    assert (stored[0], stored[-1], stored[7]) == (ROWS[0], ROWS[-1], ROWS[7])
    for part in (slice(3, 9), slice(None, None, -3), slice(3, 3), slice(-5, None)):
        assert stored[part] == ROWS[part]
    with pytest.raises(IndexError):
        stored[len(ROWS)]


def test_rows_can_be_read_while_more_are_written(stored: StoredRows[Example]) -> None:
    for n, row in enumerate(ROWS, start=len(ROWS)):
        assert stored[n - len(ROWS)] == row
        stored.append(row)
        assert stored[-1] == row
    assert stored == [*ROWS, *ROWS]


def test_parts_of_parts_are_views(stored: StoredRows[Example]) -> None:
    ids = stored.mapped(lambda row: row.id)  # type: ignore[arg-type,return-value]
    assert ids == [row.id for row in ROWS]
    both: list[Any] = [stored, ROWS]
    for rows in both:
        assert list(rows_at(rows, [1, 3, 8])) == [ROWS[1], ROWS[3], ROWS[8]]
        assert list(rows_without(rows_at(rows, [1, 3, 8]), [1])) == [ROWS[1], ROWS[8]]
        assert list(rows_where(rows, lambda row: row.task == "chains")) == [r for r in ROWS if r.task == "chains"]
        assert rows_without(rows, ()) is rows
    joined = JoinedRows(stored[:3], ROWS[3:5], stored[5:])
    assert joined == ROWS
    assert [joined[at] for at in range(len(ROWS))] == ROWS
    assert joined.at([4, 5]) == [ROWS[4], ROWS[5]]


def test_a_position_beyond_the_rows_is_an_error(stored: StoredRows[Example]) -> None:
    with pytest.raises(IndexError):
        rows_without(stored, [len(ROWS)])


def test_rows_stay_in_memory_where_no_file_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stored_rows, "_BUFFER", 3000)
    opened = cache.temporary_file
    monkeypatch.setattr(cache, "temporary_file", full)
    assert StoredRows(ROWS) == ROWS

    class FullLater:
        """A file that takes two writes, and half of a third."""

        def __init__(self) -> None:
            self.file, self.writes = opened(), itertools.count()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, content: bytes) -> None:
            half = next(self.writes) >= 2
            self.file.write(content[: len(content) // 2] if half else content)
            if half:
                full()

    monkeypatch.setattr(cache, "temporary_file", FullLater)
    rows = StoredRows(ROWS)
    assert 0 < rows._file._on_disk < rows._begins[-1]
    assert rows == ROWS


def test_the_file_is_in_the_cache_folder_and_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(stored_rows, "_BUFFER", 1)
    rows = StoredRows(ROWS)
    assert rows == ROWS
    assert (tmp_path / "cache" / "rows").is_dir()
    assert list((tmp_path / "cache" / "rows").iterdir()) == []
