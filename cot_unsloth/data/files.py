"""Rows of files and of hub data sets, each with where it is.

Owns what a data file is: its content decides how it is read, and the suffix only where the content does not. The formats
have modules of their own (`json_files`, `csv_files`, `arrow_files`), and `sources` knows which files a name, a list, a
glob or a folder stands for. A hub id goes through `datasets`, and the network is used only there.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cot_unsloth.config import DataConfig
from cot_unsloth.core.errors import DataError
from cot_unsloth.core.progress import note
from cot_unsloth.data import arrow_files, csv_files, json_files, sources
from cot_unsloth.data.text_files import Numbered, head, open_utf8, shorten, suffix_of

__all__ = ["Numbered", "rows", "shorten"]


def rows(data: DataConfig) -> Iterator[Numbered]:
    """Every row of the files, or of the hub data sets, that are named, with where it is.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    for source in sources.find(data):
        if isinstance(source, str):
            yield from _hub(source, data)
        elif source.is_dir():
            yield from arrow_files.saved_rows(source, data.dataset_split)
        else:
            yield from file_rows(source, data.dataset_split)


def file_rows(path: Path, split: str) -> Iterator[Numbered]:
    """The rows of one file.

    Args:
        path: the file.
        split: which split to take where the file holds several.

    Raises:
        DataError: it cannot be read, or holds no rows.
    """
    start, suffix = head(path), suffix_of(path)
    if not start:
        return
    kind = arrow_files.kind_of(start)
    if kind is not None and suffix not in csv_files.SUFFIXES:
        with path.open("rb") as file:
            compressed = file.read(6) != start[:6]
        yield from arrow_files.rows(path, kind, compressed=compressed)
        return
    if suffix and suffix not in sources.SUFFIXES:
        raise _unknown(path, suffix)
    with open_utf8(path) as text:
        lines = _first_lines(text)
    if suffix in csv_files.SUFFIXES and not json_files.is_first_line_json(lines):
        yield from csv_files.rows(path)
    elif any(line.lstrip()[:1] in ("{", "[") for line in lines) or not any(line.strip() for line in lines):
        yield from json_files.rows(path, split)
    elif suffix in arrow_files.SUFFIXES:
        hint = "it is cut off or damaged, or another kind of file; download or write it again"
        raise DataError(
            f"is not {suffix[1:].capitalize()}: its first bytes are {start[:8]!r}",
            where=str(path),
            hint=hint,
            name="not_parquet" if "parquet" in suffix else "not_arrow",
        )
    elif csv_files.looks_delimited(lines):
        note(f"{path}: holds no JSON; read as delimited text (CSV)")
        yield from csv_files.rows(path)
    else:
        raise _not_data(path, suffix, lines)


def _first_lines(text: io.BufferedReader) -> list[str]:
    """The first lines of a text, for a look at what it is."""
    return [line.decode("utf-8", "replace") for line in text.peek(1 << 16)[: 1 << 16].splitlines()[:100]]


def _unknown(path: Path, suffix: str) -> DataError:
    with open_utf8(path) as text:
        lines = _first_lines(text)
    hint = f"known: {', '.join(sources.SUFFIXES)}, each also compressed (.gz, .zst, .bz2, .xz)"
    if json_files.is_first_line_json(lines):
        hint = f"it looks like JSON; name it {path.with_suffix('.jsonl')}"
    elif csv_files.looks_delimited(lines):
        hint = f"it looks like CSV; name it {path.with_suffix('.csv')}"
    return DataError(f"{suffix} is not a data file", where=str(path), hint=hint, name="unknown_file_type")


def _not_data(path: Path, suffix: str, lines: list[str]) -> DataError:
    number, first = next((number, line) for number, line in enumerate(lines, start=1) if line.strip())
    hint = "write one object a line (JSONL), a list of objects (JSON), or a header and rows of cells (CSV)"
    kind = "JSON" if suffix else "JSON, CSV, Parquet or Arrow"
    return DataError(
        f"is not {kind}: it begins {first.strip()[:40]!r}", where=f"{path}:{number}:1", hint=hint, name="not_data"
    )


def _hub(name: str, data: DataConfig) -> Iterator[Numbered]:
    import datasets

    try:
        found: Any = datasets.load_dataset(
            name, data.dataset_config_name, split=data.dataset_split, revision=data.dataset_revision
        )
    except Exception as error:  # hub, network, cache and builder faults share no base class
        hint = "check the name, --dataset-split, --dataset-config-name and the network"
        raise DataError(
            f"is no file here, and cannot be loaded as a hub data set: {error}",
            where=name,
            hint="; ".join(filter(None, [sources.near(Path(name)), hint])),
            name="not_on_the_hub",
        ) from error
    yield from ((f"{name}[{data.dataset_split}]#{index}", row) for index, row in enumerate(found))
