"""Parquet, Arrow and Feather files, and the folders that `datasets` writes with `save_to_disk`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cot_unsloth.core.errors import DataError
from cot_unsloth.core.json_text import first_repeated
from cot_unsloth.data.expansion import check_parquet, require_plausible
from cot_unsloth.data.json_objects import JsonObject
from cot_unsloth.data.rows import SourceRow
from cot_unsloth.data.split_names import is_split
from cot_unsloth.data.text_files import head, read_bytes

SUFFIXES = (".parquet", ".arrow", ".feather")
_BATCH_ROWS = 1000


def kind_of(start: bytes) -> str | None:
    """The format that a file's first bytes indicate; None for any other format."""
    if start.startswith(b"PAR1"):
        return "Parquet"
    if start.startswith(b"ARROW1"):
        return "Arrow"
    if start.startswith(b"\xff\xff\xff\xff"):
        return "an Arrow stream"  # the continuation marker of the first message
    return "Feather" if start.startswith(b"FEA1") else None


def read_rows(path: Path) -> Iterator[SourceRow]:
    """The rows of a file, read a batch at a time.

    Raises:
        DataError: the file is cut off or damaged, or has two columns of one name.
    """
    import pyarrow

    start = head(path)
    kind = kind_of(start) or "Parquet"
    # `head` has decompressed what it returns: if the file itself begins otherwise, it is compressed.
    with path.open("rb") as file:
        compressed = file.read(6) != start[:6]

    index = expanded = 0
    try:
        for batch in _batches(path, kind, compressed=compressed):
            _check_names(batch.schema.names, path)
            # Arrow files have no checksums, and following a damaged offset is a segmentation fault: validate first.
            batch.validate(full=True)
            expanded += batch.nbytes
            require_plausible(path, expanded)
            # Python objects, so that integers keep their digits and missing values are None; pandas would make 1 with
            # a gap 1.0 with NaN.
            short, classes = _short_floats(batch.schema), _class_names(batch.schema)
            for row in batch.to_pylist():
                yield SourceRow(f"{path}#{index}", _as_written(row, short, classes))
                index += 1
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, KeyError, TypeError, MemoryError) as error:
        position = f" after row {index - 1}" if index else ""
        hint = "it is cut off or damaged; download or write it again"
        name = "not_parquet" if kind == "Parquet" else "not_arrow"
        raise DataError(f"is not {kind}{position}: {error}", where=str(path), hint=hint, name=name) from error


def _batches(path: Path, kind: str, *, compressed: bool) -> Iterable[Any]:
    import pyarrow
    import pyarrow.feather
    import pyarrow.parquet

    source = pyarrow.BufferReader(read_bytes(path)) if compressed else pyarrow.OSFile(str(path))
    if kind == "Parquet":
        # In batches, because a row group may hold the whole file, and its rows as Python objects take many times its
        # size.
        file = pyarrow.parquet.ParquetFile(source)
        if not compressed:
            check_parquet(path, file)
        return file.iter_batches(_BATCH_ROWS)
    if kind == "an Arrow stream":
        return pyarrow.ipc.open_stream(source)
    if kind == "Arrow":
        file = pyarrow.ipc.open_file(source)
        return (file.get_batch(number) for number in range(file.num_record_batches))
    return pyarrow.feather.read_table(source).to_batches(_BATCH_ROWS)


def _short_floats(schema: Any) -> list[Any]:
    """The fields with numbers of 16 or 32 bits."""
    return [field for field in schema if re.search(r"\b(halffloat|float)\b", str(field.type))]


def _class_names(schema: Any) -> dict[str, Sequence[str]]:
    """The columns of classes, with the names of their classes, as `datasets` writes them into a schema (`ClassLabel`)."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        kinds = {name: kind for name, kind in features.items() if isinstance(kind, dict) and name in schema.names}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}
    named = {name: kind.get("names") for name, kind in kinds.items() if kind.get("_type") == "ClassLabel"}
    return {name: names for name, names in named.items() if isinstance(names, list) and all(map(_is_text, names))}


def _is_text(name: object) -> bool:
    return isinstance(name, str)


def _as_written(row: JsonObject, short: Sequence[Any], classes: Mapping[str, Sequence[str]]) -> JsonObject:
    """A row with its numbers of 16 and 32 bits as they were written, and the names of its classes in place of their numbers.

    A Python float has 0.10000000149011612 for the 0.1 of 32 bits. No reader could know that class 2 is `contradiction`, and
    no class, -1, is null.
    """
    if not short and not classes:
        return row
    changed = {field.name: _shortest(row[field.name], field.type) for field in short}
    return row | changed | {name: _class_name(row[name], names) for name, names in classes.items()}


def _class_name(value: object, names: Sequence[str]) -> object:
    if not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None if value == -1 else value


def _shortest(value: Any, kind: Any) -> Any:
    import numpy as np
    import pyarrow.types as types

    if value is None:
        return None
    if types.is_float32(kind) or types.is_float16(kind):
        return float(str((np.float32 if types.is_float32(kind) else np.float16)(value)))
    if types.is_struct(kind):
        return {field.name: _shortest(value[field.name], field.type) for field in kind}
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return [_shortest(item, kind.value_type) for item in value]
    return value


def _check_names(names: list[str], path: Path) -> None:
    repeated = first_repeated(names)
    if repeated is not None:
        raise DataError(
            f"has two columns named {repeated!r}",
            where=str(path),
            hint="rename or remove one of them",
            name="repeated_column",
        )


def is_saved(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of `datasets`."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def read_saved(folder: Path, split: str) -> Iterator[SourceRow]:
    """The rows of a folder that `save_to_disk` wrote.

    Raises:
        DataError: the folder cannot be loaded, or has no such split.
    """
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # errors of files, JSON and Arrow share no base class
        hint = "it is cut off or damaged; write it again with save_to_disk"
        raise DataError(
            f"cannot be loaded as a saved data set: {error}", where=str(folder), hint=hint, name="not_a_data_set"
        ) from error
    label = str(folder)
    if isinstance(loaded, datasets.DatasetDict):
        selected = next((name for name in loaded if is_split(name, split)), None)
        if selected is None:
            names = ", ".join(loaded)
            hint = f"it has {names}; choose one: --dataset-split {next(iter(loaded), 'NAME')}"
            raise DataError(f"has no split called {split!r}", where=label, hint=hint, name="no_such_split")
        loaded, label = loaded[selected], f"{folder}[{selected}]"
    yield from rows_of(loaded, label)


def rows_of(loaded: Any, label: str) -> Iterator[SourceRow]:
    """The rows of a data set of the library `datasets`."""
    schema = loaded.features.arrow_schema
    short, classes = _short_floats(schema), _class_names(schema)
    yield from (SourceRow(f"{label}#{index}", _as_written(row, short, classes)) for index, row in enumerate(loaded))
