"""Finds rows in files, on hubs and in worlds, and says where each stands.

JSONL is read line by line, so that a broken line is one reject with its line number, not the end
of the run. JSON, CSV and Parquet are read whole. A hub id goes through `datasets`; the network is
used only there.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cot_unsloth import tasks
from cot_unsloth.config import DataConfig
from cot_unsloth.data import formats, splits
from cot_unsloth.errors import DataError
from cot_unsloth.values import Example, Reject, Split

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LONGEST_ROW_KEPT = 2000


@dataclass(frozen=True)
class Loaded:
    """Every row accounted for: `rows == len(examples) + len(rejects)`."""

    rows: int
    examples: tuple[Example, ...]
    rejects: tuple[Reject, ...]

    def of(self, split: Split) -> list[Example]:
        """The examples of one split."""
        return [example for example in self.examples if example.split == split]


def load_examples(data: DataConfig, *, seed: int, eval_samples: int, eval_seed: int) -> Loaded:
    """All examples of a data set, each with its split.

    Worlds give `world_samples` training and `eval_samples` test problems. A file's or hub's
    questions are split by hash, seeded by `eval_seed` and grouped by question.

    Raises:
        DataError: it cannot be read, is empty, or every row of it is rejected.
        ConfigError: a world is not understood.
    """
    if tasks.is_world(data.dataset):
        return _world(data, seed, eval_samples, eval_seed)
    loaded = _read(data)
    held_out = splits.held_out(loaded.examples, data.test_fraction, eval_samples, eval_seed)
    examples = tuple(replace(e, split="test" if e.id in held_out else "train") for e in loaded.examples)
    return replace(loaded, examples=examples)


def load_problems(
    data: DataConfig, *, eval_samples: int, eval_seed: int, without: Collection[str] = ()
) -> list[Example]:
    """Problems to score a model on that is not trained on this data: all of a file's questions are in play.

    Args:
        data: the data set.
        eval_samples: the most problems to take.
        eval_seed: chooses among them.
        without: ids of questions to leave out.

    Raises:
        DataError: as `load_examples`.
    """
    if tasks.is_world(data.dataset):
        return tasks.generate(data.dataset, split="test", n=eval_samples, seed=eval_seed)
    found = (example for example in _read(data).examples if example.id not in without)
    return splits.distinct(found, eval_samples, eval_seed)


def _read(data: DataConfig) -> Loaded:
    """All rows of a file or hub data set, not yet split."""
    loaded = _rows_to_examples(rows(data), data)
    if not loaded.rows:
        raise DataError("holds no rows", where=data.dataset)
    if not loaded.examples:
        raise _all_rejected(loaded, data)
    return loaded


def _world(data: DataConfig, seed: int, eval_samples: int, eval_seed: int) -> Loaded:
    train = tasks.generate(
        data.dataset,
        split="train",
        n=data.world_samples,
        seed=seed,
        error_rate=data.world_error_rate,
        clean_first=data.world_clean_first,
    )
    test = tasks.generate(data.dataset, split="test", n=eval_samples, seed=eval_seed) if eval_samples else []
    return Loaded(len(train) + len(test), (*train, *test), ())


def tally(rejects: Iterable[Reject]) -> str:
    """How many rows were rejected for what, the most frequent reason first.

    >>> tally([Reject("f:1", "too_long", ""), Reject("f:2", "too_long", ""), Reject("f:3", "broken_json", "")])
    '2 too_long, 1 broken_json'
    """
    return ", ".join(f"{n} {reason}" for reason, n in Counter(r.reason for r in rejects).most_common())


def _all_rejected(loaded: Loaded, data: DataConfig) -> DataError:
    first = loaded.rejects[0]
    return DataError(
        f"all {loaded.rows} rows were rejected: {tally(loaded.rejects)}",
        where=data.dataset,
        hint=f"the first, {first.where}: {first.detail}; if the layout was guessed wrong, set --data-format",
    )


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
                yield where, Reject(where, "broken_json", str(error), _shorten(raw.decode("utf-8", "replace")))


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
                        Reject(where, "ragged_row", "it has more or fewer cells than the header", _shorten(row)),
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


def _rows_to_examples(given: Iterable[Numbered], data: DataConfig) -> Loaded:
    """Read each row in the layout asked for, or the one that the first rows suggest."""
    stream = iter(given)
    head = _head(stream)
    layout = data.data_format if data.data_format != "auto" else _detect(head, data)
    count, examples, rejects = 0, [], []
    for where, row in (item for part in (head, stream) for item in part):
        count += 1
        if isinstance(row, Reject):
            rejects.append(row)
            continue
        try:
            if not isinstance(row, dict):
                raise formats.RowError("not_an_object", f"the row is {type(row).__name__}, not an object")
            examples.append(formats.example(row, layout, where))
        except formats.RowError as error:
            rejects.append(Reject(where, error.reason, str(error), _shorten(row)))
    return Loaded(count, tuple(examples), tuple(rejects))


def _head(stream: Iterator[Numbered], objects: int = 50) -> list[Numbered]:
    """Rows up to the 50th that can be looked at."""
    head: list[Numbered] = []
    for numbered in stream:
        head.append(numbered)
        objects -= isinstance(numbered[1], dict)
        if not objects:
            break
    return head


def _detect(head: list[Numbered], data: DataConfig) -> str:
    objects = [row for _, row in head if isinstance(row, dict)]
    guesses = Counter(guess for row in objects if (guess := formats.detect(row)))
    if guesses:
        return guesses.most_common(1)[0][0]
    if objects:
        raise DataError(
            f"its columns are no layout we know: {', '.join(map(str, objects[0]))}",
            where=data.dataset,
            hint=f"rename them, or set --data-format to one of {', '.join(formats.LAYOUTS)}",
        )
    return "messages"


def _shorten(row: Any) -> str:
    text = row if isinstance(row, str) else json.dumps(row, ensure_ascii=False, default=str)
    return text[:_LONGEST_ROW_KEPT].encode("utf-8", "backslashreplace").decode()
