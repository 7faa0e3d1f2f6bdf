"""Rows of Parquet, Arrow and Feather files, and of data sets that `save_to_disk` wrote."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cot_unsloth.core.errors import DataError
from cot_unsloth.data.split_names import is_split
from cot_unsloth.data.text_files import Numbered, read_bytes

SUFFIXES = (".parquet", ".arrow", ".feather")
_BATCH = 1000


def kind_of(start: bytes) -> str | None:
    """What the first bytes of a file are, if it is one of these kinds."""
    if start.startswith(b"PAR1"):
        return "Parquet"
    if start.startswith(b"ARROW1"):
        return "Arrow"
    if start.startswith(b"\xff\xff\xff\xff"):
        return "an Arrow stream"
    return "Feather" if start.startswith(b"FEA1") else None


def rows(path: Path, kind: str, *, compressed: bool) -> Iterator[Numbered]:
    """The rows of a file, a batch at a time.

    Raises:
        DataError: it is cut off or damaged, or names a column twice.
    """
    import pyarrow

    index = 0
    try:
        for batch in _batches(path, kind, compressed=compressed):
            _check_names(batch.schema.names, path)
            # Arrow files carry no checksums, and offsets that are damaged would end the process when they are followed.
            batch.validate(full=True)
            for row in batch.to_pylist():
                yield f"{path}#{index}", row
                index += 1
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, KeyError, TypeError, MemoryError) as error:
        read = f" after row {index - 1}" if index else ""
        hint = "it is cut off or damaged; download or write it again"
        name = "not_parquet" if kind == "Parquet" else "not_arrow"
        raise DataError(f"is not {kind}{read}: {error}", where=str(path), hint=hint, name=name) from error


def _batches(path: Path, kind: str, *, compressed: bool) -> Iterable[Any]:
    import pyarrow
    import pyarrow.feather
    import pyarrow.parquet

    source = pyarrow.BufferReader(read_bytes(path)) if compressed else pyarrow.OSFile(str(path))
    if kind == "Parquet":
        return pyarrow.parquet.ParquetFile(source).iter_batches(_BATCH)
    if kind == "an Arrow stream":
        return pyarrow.ipc.open_stream(source)
    if kind == "Arrow":
        file = pyarrow.ipc.open_file(source)
        return (file.get_batch(number) for number in range(file.num_record_batches))
    return pyarrow.feather.read_table(source).to_batches(_BATCH)


def _check_names(names: list[str], path: Path) -> None:
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise DataError(
            f"has two columns named {repeated!r}",
            where=str(path),
            hint="rename or remove one of them",
            name="repeated_column",
        )


def is_saved(folder: Path) -> bool:
    """Whether `datasets` wrote a folder with `save_to_disk`."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def saved_rows(folder: Path, split: str) -> Iterator[Numbered]:
    """The rows of a folder that `save_to_disk` wrote.

    Raises:
        DataError: it cannot be loaded, or has no such split.
    """
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # faults of files, JSON and Arrow share no base class
        hint = "it is cut off or damaged; write it again with save_to_disk"
        raise DataError(
            f"cannot be loaded as a saved data set: {error}", where=str(folder), hint=hint, name="not_a_data_set"
        ) from error
    label = str(folder)
    if isinstance(loaded, datasets.DatasetDict):
        chosen = next((name for name in loaded if is_split(name, split)), None)
        if chosen is None:
            names = ", ".join(loaded)
            hint = f"it has {names}; choose one: --dataset-split {next(iter(loaded), 'NAME')}"
            raise DataError(f"has no split called {split!r}", where=label, hint=hint, name="no_such_split")
        loaded, label = loaded[chosen], f"{folder}[{chosen}]"
    yield from ((f"{label}#{index}", row) for index, row in enumerate(loaded))
