"""Guards against files that become much larger as they are read: compressed text, and Parquet whose cells repeat a long value.

A Parquet file of 1.1 kB can hold 50 GB of text. Real data sets shrink to between a fifth and a fiftieth of their size. A file is
rejected if it expands more than 500 times, and to more than 256 MiB.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cot_unsloth.core.errors import DataError
from cot_unsloth.core.progress import size

MOST_TIMES = 500
ALWAYS_ALLOWED = 256 << 20
"""Bytes."""
_MOST_SCANNED = 64 << 20
"""Bytes of a Parquet file up to which its cells are measured before they are read."""


def require_plausible(path: Path, expanded: int) -> None:
    """Check how much data a file has expanded to so far.

    Raises:
        DataError: it is implausibly large for the file.
    """
    if expanded > ALWAYS_ALLOWED and expanded > MOST_TIMES * path.stat().st_size:
        raise DataError(
            f"expands to more than {size(expanded)}, over {MOST_TIMES} times its size",
            where=str(path),
            hint="this is unlikely to be a data set; if it is, write it uncompressed",
            name="expands_too_much",
        )


def check_parquet(path: Path, file: Any) -> None:
    """Check a Parquet file before its cells are read, by the lengths in its dictionaries.

    Args:
        path: the file.
        file: the same file as an open `pyarrow.parquet.ParquetFile`.

    Raises:
        DataError: its cells are far above the size of the file.
    """
    columns = _repeating(file.metadata)
    if not columns or path.stat().st_size > _MOST_SCANNED:
        return
    import pyarrow.parquet

    total = 0
    dictionaries = pyarrow.parquet.ParquetFile(str(path), read_dictionary=columns)
    for batch in dictionaries.iter_batches(1000, columns=columns):
        total += sum(_text_size(column) for column in batch.columns)
        require_plausible(path, total)


def _repeating(metadata: Any) -> list[str]:
    """Paths of the text columns whose cells may take more than is always allowed."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
    return sorted(
        {
            chunk.path_in_schema
            for chunk in chunks
            if chunk.physical_type == "BYTE_ARRAY"
            and chunk.has_dictionary_page
            and chunk.num_values * chunk.total_uncompressed_size > ALWAYS_ALLOWED
        }
    )


def _text_size(array: Any) -> int:
    """Bytes of the texts in an array, without making them."""
    import pyarrow
    import pyarrow.compute as pc

    kind = array.type
    if pyarrow.types.is_dictionary(kind):
        lengths = pc.binary_length(array.dictionary)
        return int(pc.sum(pc.take(pc.cast(lengths, pyarrow.int64()), array.indices)).as_py() or 0)
    if pyarrow.types.is_struct(kind):
        return sum(_text_size(part) for part in array.flatten())
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind) or pyarrow.types.is_map(kind):
        return _text_size(array.flatten()) if not pyarrow.types.is_map(kind) else _text_size(array.items)
    return int(array.nbytes)


def counted(path: Path, blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Pass on the blocks of a decompressed file, checking that their total size stays plausible.

    Raises:
        DataError: it does not.
    """
    total = 0
    for block in blocks:
        total += len(block)
        require_plausible(path, total)
        yield block
