"""Rows of files and of hub data sets, each with where it stands.

Owns what a data file is and how it is read: JSONL line by line, so that a broken line is one reject with its line
number and not the end of the run; JSON, CSV and Parquet whole. A hub id goes through `datasets`, and the network is
used only there.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cot_unsloth.config import DataConfig
from cot_unsloth.errors import DataError
from cot_unsloth.values import Reject

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LONGEST_ROW_KEPT = 2000


Numbered = tuple[str, Any]
"""Where a row stands, and the row (or the Reject it already is)."""


def rows(data: DataConfig) -> Iterator[Numbered]:
    """Every row of a file or of a hub data set as it stands there, with where it stands.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    path = Path(data.dataset).expanduser()
    if path.is_file():
        reader = _READERS.get(path.suffix.lower())
        if reader is None:
            raise DataError(
                f"{path.suffix or 'a file without a suffix'} is not a data file",
                where=str(path),
                hint=f"known: {', '.join(_READERS)}",
            )
        return reader(path)
    if path.is_dir():
        raise DataError("is a folder; name one file in it", where=str(path))
    if path.suffix.lower() in _READERS or not HUB_ID.fullmatch(data.dataset):
        raise DataError("there is no such file", where=data.dataset)
    return _hub(data)


def _jsonl(path: Path) -> Iterator[Numbered]:
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            where = f"{path}:{number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if line:
                    yield where, json.loads(line)
            except (ValueError, RecursionError) as error:  # not text, not JSON, or a number too long to read
                yield where, Reject(where, "broken_json", str(error), shorten(raw.decode("utf-8", "replace")))


def _json(path: Path) -> Iterator[Numbered]:
    try:
        tree = json.loads(path.read_bytes().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(f"is not JSON: {error.msg}", where=f"{path}:{error.lineno}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"is not JSON: {error}", where=str(path)) from error
    if isinstance(tree, dict):
        tree = next((tree[key] for key in ("data", "rows", "examples") if key in tree), None)
    if not isinstance(tree, list):
        raise DataError("holds no list of rows", where=str(path), hint="write a list of objects, or one under 'data'")
    yield from ((f"{path}#{index}", row) for index, row in enumerate(tree))


def _csv(path: Path) -> Iterator[Numbered]:
    import csv

    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            names = reader.fieldnames or []
            repeated = [name for name in dict.fromkeys(names) if list(names).count(name) > 1]
            if repeated:
                raise DataError(f"has two columns named {repeated[0]!r}", where=f"{path}:1")
            for row in reader:
                where = f"{path}:{reader.line_num}"
                if None in row or None in row.values():
                    yield (
                        where,
                        Reject(where, "ragged_row", "it has more or fewer cells than the header", shorten(row)),
                    )
                else:
                    yield where, row
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"is not CSV: {error}", where=str(path)) from error


def _parquet(path: Path) -> Iterator[Numbered]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        index = 0
        for batch in file.iter_batches(1000):
            for row in batch.to_pylist():
                yield f"{path}#{index}", row
                index += 1
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(f"is not Parquet: {error}", where=str(path)) from error


def _hub(data: DataConfig) -> Iterator[Numbered]:
    import datasets

    try:
        found = datasets.load_dataset(
            data.dataset, data.dataset_config_name, split=data.dataset_split, revision=data.dataset_revision
        )
    except Exception as error:  # hub, network, cache and builder faults share no base class
        raise DataError(
            f"is no file here, and cannot be loaded as a hub data set: {error}",
            where=data.dataset,
            hint="check the name, --dataset-split, --dataset-config-name and the network",
        ) from error
    yield from ((f"{data.dataset}[{data.dataset_split}]#{index}", row) for index, row in enumerate(found))


_READERS = {".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}


def shorten(row: Any) -> str:
    """A row as text, cut to what a Reject keeps of it."""
    text = row if isinstance(row, str) else json.dumps(row, ensure_ascii=False, default=str)
    return text[:_LONGEST_ROW_KEPT].encode("utf-8", "backslashreplace").decode()
