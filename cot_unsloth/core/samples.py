"""Many Samples in little memory: the token ids and labels of all rows as arrow columns of 32-bit integers.

A token takes 8 bytes here and about 50 as an int in two tuples, so a million rows of 220 tokens are 1.8 GB and not 11.
`Sample` objects exist only while one is looked at. The trainer's data set is the same table, without a copy.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from cot_unsloth.core.types import IGNORE, Sample

if TYPE_CHECKING:
    import numpy as np

BATCH = 4096
"""Most rows of an arrow batch. Arrow counts the tokens of a batch in 32 bits."""


class Samples(Sequence[Sample]):
    """A sequence of Samples, kept as an arrow table with the columns `id`, `input_ids` and `labels`."""

    def __init__(self, table: Any) -> None:
        self.table = table

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> Samples:
        """The samples as a table; those that are one already are returned as they are."""
        return samples if isinstance(samples, Samples) else cls.of_batches(_batches(samples))

    @classmethod
    def of_batches(cls, batches: Iterable[Any]) -> Samples:
        """Batches of `batch_of` as one table."""
        import pyarrow as pa

        return cls(pa.Table.from_batches(batches, schema=_schema()))

    @classmethod
    def written(cls, batches: Iterable[Any], path: Path) -> Samples:
        """Write batches of `batch_of` to an arrow file as they come, and open it as `read` does.

        Raises:
            OSError: the file cannot be written.
        """
        import pyarrow as pa

        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, _schema()) as writer:
            for batch in batches:
                writer.write_batch(batch)
        return cls.read(path)

    @classmethod
    def read(cls, path: Path) -> Samples:
        """The samples of an arrow file. The file is mapped into memory: the system drops what is not in use."""
        import pyarrow as pa

        with pa.memory_map(str(path)) as file:
            return cls(pa.ipc.open_file(file).read_all())

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, at: int) -> Sample: ...
    @overload
    def __getitem__(self, at: slice) -> Samples: ...
    def __getitem__(self, at: int | slice) -> Sample | Samples:
        if isinstance(at, slice):
            first, end, step = at.indices(len(self))
            rows = range(first, end, step)
            return Samples(self.table.slice(first, len(rows)) if step == 1 else self.table.take(list(rows)))
        position = range(len(self))[at]  # negative ones count from the end; raises IndexError
        return next(iter(Samples(self.table.slice(position, 1))))

    def __iter__(self) -> Iterator[Sample]:
        for batch in self.table.to_batches():
            ids, labels = _Lists(batch.column("input_ids")), _Lists(batch.column("labels"))
            for row, id_ in enumerate(batch.column("id").to_pylist()):
                yield Sample(tuple(ids.row(row)), tuple(labels.row(row)), id_)

    def last_tokens(self) -> Iterator[tuple[int, int]]:
        """The id and the label of each row's last token."""
        for batch in self.table.to_batches():
            ids, labels = _Lists(batch.column("input_ids")).last, _Lists(batch.column("labels")).last
            yield from zip(ids.tolist(), labels.tolist(), strict=True)

    @property
    def columns(self) -> Any:
        """The arrow table that is trained on: `input_ids` and `labels`."""
        return self.table.select(["input_ids", "labels"])

    @property
    def ids(self) -> Iterator[str]:
        """The ids of the Examples."""
        for batch in self.table.to_batches():
            yield from batch.column("id").to_pylist()

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each row."""
        return self._of_each_row(lambda batch: _Lists(batch.column("input_ids")).lengths)

    @functools.cached_property
    def supervised(self) -> np.ndarray:
        """Number of tokens of each row that carry loss."""
        return self._of_each_row(lambda batch: _Lists(batch.column("labels")).count_other_than(IGNORE))

    def _of_each_row(self, counts: Any) -> np.ndarray:
        import numpy as np

        return np.concatenate([np.zeros(0, np.int64), *map(counts, self.table.to_batches())])


class _Lists:
    """A list column of one arrow batch, as numpy arrays that share its memory."""

    def __init__(self, column: Any) -> None:
        # A slice of a batch keeps the values of the whole batch, and its offsets point into them.
        self.values = column.values.to_numpy(zero_copy_only=True)
        self.offsets = column.offsets.to_numpy(zero_copy_only=True)

    def row(self, at: int) -> list[int]:
        return list(self.values[self.offsets[at] : self.offsets[at + 1]].tolist())

    @property
    def lengths(self) -> np.ndarray:
        import numpy as np

        return np.diff(self.offsets).astype(np.int64)

    @property
    def last(self) -> np.ndarray:
        """The last value of each row; rows are not empty."""
        last: np.ndarray = self.values[self.offsets[1:] - 1]
        return last

    def count_other_than(self, value: int) -> np.ndarray:
        """For each row, how many of its values differ from one."""
        import numpy as np

        first = self.offsets[0]
        different = self.values[first : self.offsets[-1]] != value
        before = np.concatenate([[0], np.cumsum(different, dtype=np.int64)])
        return before[self.offsets[1:] - first] - before[self.offsets[:-1] - first]


def _schema() -> Any:
    import pyarrow as pa

    integers = pa.list_(pa.int32())
    return pa.schema([("id", pa.string()), ("input_ids", integers), ("labels", integers)])


def _batches(samples: Iterable[Sample]) -> Iterator[Any]:
    rows = iter(samples)
    return map(batch_of, iter(lambda: list(itertools.islice(rows, BATCH)), []))


def batch_of(samples: Sequence[Sample]) -> Any:
    """Some samples, at most `BATCH`, as an arrow batch."""
    import pyarrow as pa

    columns = [s.id for s in samples], [s.ids for s in samples], [s.labels for s in samples]
    return pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, _schema(), strict=True)], schema=_schema())
