"""Rows inside one JSON value: a list, or an object that holds them under a key, split by split, as columns, or by id."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cot_unsloth.core.errors import DataError
from cot_unsloth.core.progress import note
from cot_unsloth.core.types import Reject
from cot_unsloth.data.split_names import is_split, split_called
from cot_unsloth.data.text_files import Numbered, shorten


class Repeated(dict[str, Any]):
    """An object that names a key twice: JSON's parser would keep the last value without a word."""

    key = ""
    made = 0
    """How many there are; while there is none, no row needs to be searched for one."""


def _repeated_key(value: Any) -> str | None:
    """The key that an object in a value names twice, if one does."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, Repeated):
            return item.key
        if isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
    return None


def checked(row: Any, where: str) -> Any:
    """A row, or its Reject where an object in it names a key twice."""
    repeated = _repeated_key(row) if Repeated.made else None
    if repeated is None:
        return row
    return Reject(where, "repeated_key", f"it names {repeated!r} twice; keep one of the two", shorten(row))


_LISTS = ("data", "rows", "examples", "instances", "items", "records", "samples")
"""Keys that hold the rows in an object beside others, such as a version."""
_DIALOGUE_KEYS = {"role", "from"}
_COLUMN_NAMES = {
    "question", "answer", "prompt", "response", "completion", "instruction", "input", "output", "problem", "solution",
    "query", "text", "reasoning", "rationale", "thinking", "messages", "conversations", "target",
}  # fmt: skip


def rows_of(tree: Any, path: Path, split: str, *, line: int = 1, by_line: bool = False) -> Iterator[Numbered]:
    """The rows that one JSON value holds.

    Args:
        tree: the value.
        path: the file, for messages and for where each row is.
        split: which split to take, where there are several.
        line: the line it begins on.
        by_line: whether the file is named as one that holds an object a line, so that an object is first of all a row.

    Raises:
        DataError: it holds no rows, or the rows of several splits and not of this one.
    """
    if isinstance(tree, list):
        yield from _items(tree, str(path))
    elif not isinstance(tree, dict):
        raise _no_rows(path, f"holds one {type(tree).__name__}, and no list of rows")
    elif isinstance(tree, Repeated):
        raise DataError(
            f"names {tree.key!r} twice at its top",
            where=f"{path}:{line}",
            hint="keep one of the two",
            name="repeated_key",
        )
    elif _is_row(tree) or (by_line and _has_text(tree) and not _may_hold_rows(tree, split)):
        yield f"{path}:{line}", checked(tree, f"{path}:{line}")
    elif (items := _of_object(tree, path, split)) is not None:
        yield from items
    elif by_line or _has_text(tree):
        yield f"{path}:{line}", checked(tree, f"{path}:{line}")
    else:
        keys = ", ".join(repr(key) for key in list(tree)[:10])
        raise _no_rows(path, f"holds no list of rows; its keys are {keys or 'none'}")


def _has_text(tree: dict[str, Any]) -> bool:
    return any(isinstance(value, str) for value in tree.values())


def _may_hold_rows(tree: dict[str, Any], split: str) -> bool:
    """Whether rows stand under a key beside text: as columns only under a usual name, as a cell may be an object too."""
    return any(
        _holds_rows(value) and (isinstance(value, list) or key in _LISTS or bool(split_called(key)) or key == split)
        for key, value in tree.items()
    )


def _is_row(tree: dict[str, Any]) -> bool:
    """Whether an object is one row, whatever lists it has."""
    named = any(isinstance(value, str) and key.lower() in _COLUMN_NAMES for key, value in tree.items())
    return named or _is_dialogue(tree)


def _of_object(tree: dict[str, Any], path: Path, split: str) -> Iterator[Numbered] | None:
    """The rows under a key of an object, or in its columns; None where it has none."""
    if _is_columns(tree):
        return _items(_columnar(tree, path) or [], str(path))
    holders = {key: value for key, value in tree.items() if _holds_rows(value)}
    splits = [key for key in holders if split_called(key) or key == split]
    chosen = [key for key in splits if is_split(key, split)]
    if not splits:
        chosen = [key for key in _LISTS if key in holders][:1] or (list(holders) if len(holders) == 1 else [])
    if chosen:
        key = split if split in chosen else chosen[0]
        _announce(tree, key, path, is_split=bool(splits))
        return _items(_listed(holders[key], path), f"{path}[{key}]" if splits else str(path))
    if holders:
        raise DataError(
            f"has no rows called {split!r}",
            where=str(path),
            hint=f"it has {', '.join(map(repr, holders))}; choose one: --dataset-split {next(iter(holders))}",
            name="no_such_split",
        )
    inner = next(iter(tree.values()), None)
    if len(tree) == 1 and isinstance(inner, dict) and not _is_row(inner):  # such as {"data": {"train": [...]}}
        items = _of_object(inner, path, split)
        if items is not None:
            return items
    listed = _columnar(tree, path)
    return None if listed is None else _items(listed, str(path))


def _announce(tree: dict[str, Any], key: str, path: Path, *, is_split: bool) -> None:
    """Say what of an object is read, and what is not."""
    others = ", ".join(repr(name) for name in tree if name != key)
    if others:
        note(f"{path}: reading {key!r}; not read: {others}" + "; choose with --dataset-split" * is_split)


def _no_rows(path: Path, message: str) -> DataError:
    hint = 'write a list of objects, one object a line, or an object such as {"data": [...]}'
    return DataError(message, where=str(path), hint=hint)


def _is_dialogue(tree: dict[str, Any]) -> bool:
    """Whether an object is one row: a conversation, which is a list of objects too."""
    return any(
        isinstance(value, list) and value and all(isinstance(turn, dict) and _is_turn(turn, key) for turn in value)
        for key, value in tree.items()
        if not split_called(key)
    )


def _is_turn(turn: dict[str, Any], key: str) -> bool:
    """Whether an object is a turn; under a key that rows stand under, only one that has its text too."""
    whole = {"role", "content"} <= turn.keys() or {"from", "value"} <= turn.keys()
    return whole if key.lower() in _LISTS else bool(turn.keys() & _DIALOGUE_KEYS)


def _holds_rows(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(row, dict) for row in value)
    return isinstance(value, dict) and bool(value) and _is_columns(value)


def _is_columns(tree: dict[str, Any]) -> bool:
    """Whether an object is columns: lists of one length, at least one of which holds cells and not rows."""
    lists = [value for value in tree.values() if isinstance(value, list) and value]
    same = len(lists) == len(tree) > 0 and len({len(value) for value in lists}) == 1
    all_rows = same and all(isinstance(row, dict) for value in lists for row in value)
    return same and not all_rows and not {"columns", "data"} <= tree.keys()


def _listed(value: Any, path: Path) -> list[Any]:
    _check_once([value], path)
    return value if isinstance(value, list) else _columnar(value, path) or []


def _check_once(columns: list[Any], path: Path) -> None:
    repeated = next((column.key for column in columns if isinstance(column, Repeated)), None)
    if repeated is not None:
        raise DataError(
            f"names {repeated!r} twice in one object", where=str(path), hint="keep one of the two", name="repeated_key"
        )


def _columnar(tree: dict[str, Any], path: Path) -> list[Any] | None:
    """The rows of an object of columns, or of one that names each row; None where it is neither."""
    values = list(tree.values())
    if {"columns", "data"} <= tree.keys() and all(isinstance(tree[key], list) for key in ("columns", "data")):
        return _of_table(tree["columns"], tree["data"], path)
    if values and all(isinstance(value, list) for value in values):
        lengths = {key: len(value) for key, value in tree.items()}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{key} {length}" for key, length in lengths.items())
            raise DataError(
                f"its columns are not equally long: {counts}",
                where=str(path),
                hint="write one object a row",
                name="uneven_columns",
            )
        return [dict(zip(tree, cells, strict=True)) for cells in zip(*values, strict=True)]
    if values and all(isinstance(value, dict) and value for value in values):
        if _are_pandas_columns(tree):
            _check_once(values, path)
            return [{key: column[index] for key, column in tree.items()} for index in values[0]]
        return values
    return None


def _of_table(columns: list[Any], table: list[Any], path: Path) -> list[Any]:
    """The rows that `DataFrame.to_json(orient="split")` writes."""
    for index, cells in enumerate(table):
        if not isinstance(cells, list) or len(cells) != len(columns):
            raise DataError(
                f"is not a list of {len(columns)} cells, as 'columns' is",
                where=f"{path}#{index}",
                name="uneven_columns",
            )
    return [dict(zip(map(str, columns), cells, strict=True)) for cells in table]


def _are_pandas_columns(tree: dict[str, Any]) -> bool:
    """Whether an object of objects is `DataFrame.to_json()`: of columns, each an object by row number."""
    inner = [value.keys() for value in tree.values()]
    if any(keys != inner[0] for keys in inner):
        return False
    if all(key.isdecimal() for key in inner[0]):
        return True
    outer_named = any(key.lower() in _COLUMN_NAMES for key in tree)
    return outer_named and not any(key.lower() in _COLUMN_NAMES for key in inner[0])


def _items(items: list[Any], path: str) -> Iterator[Numbered]:
    # What the hub's rows API answers (datasets-server): each row is wrapped, with its number.
    wrapped = bool(items) and all(isinstance(item, dict) and {"row_idx", "row"} <= item.keys() for item in items)
    for index, item in enumerate(items):
        where = f"{path}#{index}"
        yield where, checked(item["row"] if wrapped else item, where)
