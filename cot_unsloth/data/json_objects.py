"""The rows inside one JSON value: a list, or an object with rows under a key, by split, as columns, or by id."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cot_unsloth.core.errors import DataError
from cot_unsloth.core.progress import note
from cot_unsloth.data.rows import SourceRow, rejected
from cot_unsloth.data.split_names import is_split, standard_split

JsonObject = dict[str, object]
"""An object of arbitrary JSON."""


class RepeatedKeyObject(JsonObject):
    """An object that names a key twice. JSON allows that, but nothing says which value was meant."""

    exists = False
    """Whether any has been read; until then, rows need not be searched for one."""

    def __init__(self, content: JsonObject, key: str) -> None:
        super().__init__(content)
        self.key = key
        RepeatedKeyObject.exists = True


def _repeated_key(value: object) -> str | None:
    """The key that some object inside a value names twice; None if there is none."""
    # Not recursive, so that whatever the decoder could read can be searched, however deep it is nested.
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, RepeatedKeyObject):
            return item.key
        if isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
    return None


def reject_repeated_key(row: object, where: str) -> SourceRow:
    """A row, rejected if an object in it names a key twice."""
    repeated = _repeated_key(row) if RepeatedKeyObject.exists else None
    if repeated is None:
        return SourceRow(where, row)
    return rejected(where, "repeated_key", f"it names {repeated!r} twice; keep one of the two", row)


_ROW_KEYS = ("data", "rows", "examples", "instances", "items", "records", "samples")
"""Keys under which an object holds its rows, beside others such as a version."""
_ROLE_KEYS = {"role", "from"}
"""Keys that make an object a turn of a conversation."""
_COLUMN_NAMES = {
    "question", "answer", "prompt", "response", "completion", "instruction", "input", "output", "problem", "solution",
    "query", "text", "reasoning", "rationale", "thinking", "messages", "conversations", "target",
}  # fmt: skip
"""Column names that make an object one row rather than a container of rows."""
_DESCRIPTIONS = {"text", "instruction"}
"""Of these, the ones that describe the rows if an object has rows beside them."""


def rows_in_value(
    value: object, path: Path, split: str, *, line: int = 1, by_line: bool = False
) -> Iterator[SourceRow]:
    """The rows of one JSON value.

    Args:
        value: the value.
        path: the file, for messages and the position of each row.
        split: which split to take if there are several.
        line: the line that the value begins on.
        by_line: whether the suffix says one object a line; an object is then a row unless it clearly holds rows.

    Raises:
        DataError: the value holds no rows, or rows of other splits only.
    """
    if isinstance(value, list):
        is_conversation = bool(value) and all(isinstance(item, dict) and _is_bare_turn(item) for item in value)
        yield from _items([value] if is_conversation else value, str(path))
    elif not isinstance(value, dict):
        raise _no_rows(path, f"holds one {type(value).__name__}, and no list of rows")
    elif isinstance(value, RepeatedKeyObject):
        raise DataError(
            f"names {value.key!r} twice at its top level",
            where=f"{path}:{line}",
            hint="keep one of the two",
            name="repeated_key",
        )
    elif _is_row(value) or (by_line and _has_text(value) and not _may_hold_rows(value, split)):
        yield reject_repeated_key(value, f"{path}:{line}")
    elif (rows := _rows_in_object(value, path, split)) is not None:
        yield from rows
    elif by_line or _has_text(value):
        yield reject_repeated_key(value, f"{path}:{line}")
    else:
        keys = ", ".join(repr(key) for key in list(value)[:10])
        raise _no_rows(path, f"holds no list of rows; its keys are {keys or 'none'}")


def _has_text(tree: JsonObject) -> bool:
    return any(isinstance(value, str) for value in tree.values())


def _may_hold_rows(tree: JsonObject, split: str) -> bool:
    """Whether an object with text may hold rows as well. Columns count only under a usual key: a cell may be an object too."""
    return any(
        _holds_rows(value)
        and (isinstance(value, list) or key in _ROW_KEYS or bool(standard_split(key)) or key == split)
        for key, value in tree.items()
    )


def _is_row(tree: JsonObject) -> bool:
    """Whether an object is one row, whatever lists it contains."""
    named = {key.lower() for key, value in tree.items() if isinstance(value, str)} & _COLUMN_NAMES
    if any(_holds_rows(tree.get(key)) for key in _ROW_KEYS):
        named -= _DESCRIPTIONS
    return bool(named) or _is_dialogue(tree)


def _rows_in_object(tree: JsonObject, path: Path, split: str) -> Iterator[SourceRow] | None:
    """The rows under a key of an object, or in its columns; None if it has none."""
    objects = {key: value for key, value in tree.items() if isinstance(value, dict) and value}
    # Before splits are looked for: cells that are lists of one length would make a column look like a table.
    if _is_columns(tree) or (len(objects) == len(tree) > 0 and _are_numbered_columns(objects)):
        return _items(_rows_from_columns(tree, path) or [], str(path))
    holders = {key: value for key, value in tree.items() if _holds_rows(value)}
    splits = [key for key in holders if standard_split(key) or key == split]
    selected = [key for key in splits if is_split(key, split)]
    if not splits:
        selected = [key for key in _ROW_KEYS if key in holders][:1] or (list(holders) if len(holders) == 1 else [])
    if selected:
        key = split if split in selected else selected[0]
        _announce(tree, key, path, is_split=bool(splits))
        return _items(_as_list(holders[key], path), f"{path}[{key}]" if splits else str(path))
    if holders:
        raise DataError(
            f"has no split {split!r}",
            where=str(path),
            hint=f"it has {', '.join(map(repr, holders))}; choose one: --dataset-split {next(iter(holders))}",
            name="no_such_split",
        )
    inner = next(iter(tree.values()), None)
    if len(tree) == 1 and isinstance(inner, dict) and not _is_row(inner):  # such as {"data": {"train": [...]}}
        rows_inside = _rows_in_object(inner, path, split)
        if rows_inside is not None:
            return rows_inside
    rows = _rows_from_columns(tree, path)
    return None if rows is None else _items(rows, str(path))


def _announce(tree: JsonObject, key: str, path: Path, *, is_split: bool) -> None:
    """Announce which key is read, and which are not."""
    others = ", ".join(repr(name) for name in tree if name != key)
    if others:
        note(f"{path}: reading {key!r}; not read: {others}" + "; choose with --dataset-split" * is_split)


def _no_rows(path: Path, message: str) -> DataError:
    hint = 'write a list of objects, one object a line, or an object such as {"data": [...]}'
    return DataError(message, where=str(path), hint=hint)


def _is_dialogue(tree: JsonObject) -> bool:
    """Whether an object is one conversation, which is a list of objects just like rows."""
    return any(
        isinstance(value, list) and value and all(isinstance(turn, dict) and _is_turn(turn, key) for turn in value)
        for key, value in tree.items()
        if not standard_split(key)
    )


def _is_turn(turn: JsonObject, key: str) -> bool:
    """Whether an object is a turn. Under a key that usually holds rows, it must have a role and a text."""
    complete = {"role", "content"} <= turn.keys() or {"from", "value"} <= turn.keys()
    return complete if key.lower() in _ROW_KEYS else bool(turn.keys() & _ROLE_KEYS)


def _is_bare_turn(item: JsonObject) -> bool:
    """Whether an object is a turn and nothing else; a list of such objects is one conversation, and not its turns as rows."""
    complete = {"role", "content"} <= item.keys() or {"from", "value"} <= item.keys()
    return complete and item.keys() <= {
        "role",
        "content",
        "from",
        "value",
        "name",
        "reasoning_content",
        "thinking",
        "weight",
    }


def _holds_rows(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(row, dict) for row in value)
    return isinstance(value, dict) and bool(value) and _is_columns(value)


def _is_columns(tree: JsonObject) -> bool:
    """Whether an object holds columns: lists of equal length, at least one of them of cells and not of rows."""
    lists = [value for value in tree.values() if isinstance(value, list) and value]
    same = len(lists) == len(tree) > 0 and len({len(value) for value in lists}) == 1
    all_rows = same and all(isinstance(row, dict) for value in lists for row in value)
    return same and not all_rows and not {"columns", "data"} <= tree.keys()


def _as_list(value: object, path: Path) -> list[object]:
    _check_repeated_keys([value], path)
    if isinstance(value, list):
        return value
    return _rows_from_columns(value, path) or [] if isinstance(value, dict) else []


def _check_repeated_keys(values: list[object], path: Path) -> None:
    repeated = next((value.key for value in values if isinstance(value, RepeatedKeyObject)), None)
    if repeated is not None:
        raise DataError(
            f"names {repeated!r} twice in one object", where=str(path), hint="keep one of the two", name="repeated_key"
        )


def _rows_from_columns(tree: JsonObject, path: Path) -> list[object] | None:
    """The rows of an object of columns, or of rows by id; None if it is neither."""
    columns, table = tree.get("columns"), tree.get("data")
    if isinstance(columns, list) and isinstance(table, list):
        return _rows_from_table(columns, table, path)
    lists = {key: value for key, value in tree.items() if isinstance(value, list)}
    if tree and len(lists) == len(tree):
        if len({len(column) for column in lists.values()}) > 1:
            counts = ", ".join(f"{key} {len(column)}" for key, column in lists.items())
            raise DataError(
                f"its columns are not equally long: {counts}",
                where=str(path),
                hint="write one object a row",
                name="uneven_columns",
            )
        return [dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)]
    objects = {key: value for key, value in tree.items() if isinstance(value, dict) and value}
    if tree and len(objects) == len(tree):
        rows: list[object] = list(objects.values())
        if _are_pandas_columns(objects):
            _check_repeated_keys(rows, path)
            indices = next(iter(objects.values()))
            return [{key: column[index] for key, column in objects.items()} for index in indices]
        return rows
    return None


def _rows_from_table(columns: list[object], table: list[object], path: Path) -> list[object]:
    """The rows of `DataFrame.to_json(orient="split")`."""
    for index, cells in enumerate(table):
        if not isinstance(cells, list) or len(cells) != len(columns):
            raise DataError(
                f"is not a list of {len(columns)} cells, as 'columns' is",
                where=f"{path}#{index}",
                name="uneven_columns",
            )
    return [dict(zip(map(str, columns), cells, strict=True)) for cells in table if isinstance(cells, list)]


def _are_numbered_columns(tree: dict[str, JsonObject]) -> bool:
    """Whether all objects have the same keys, which are numbers."""
    first = next(iter(tree.values()))
    return all(value.keys() == first.keys() for value in tree.values()) and all(key.isdecimal() for key in first)


def _are_pandas_columns(tree: dict[str, JsonObject]) -> bool:
    """Whether an object of objects is what `DataFrame.to_json()` writes by default: columns, each by row number."""
    inner = [value.keys() for value in tree.values()]
    if any(keys != inner[0] for keys in inner):
        return False
    if _are_numbered_columns(tree):
        return True
    outer_named = any(key.lower() in _COLUMN_NAMES for key in tree)
    return outer_named and not any(key.lower() in _COLUMN_NAMES for key in inner[0])


def _items(items: list[object], path: str) -> Iterator[SourceRow]:
    # The hub's rows API (datasets-server, /rows) wraps each row: {"row_idx": 0, "row": {...}, "truncated_cells": []}.
    wrapped = bool(items) and all(isinstance(item, dict) and {"row_idx", "row"} <= item.keys() for item in items)
    for index, item in enumerate(items):
        where = f"{path}#{index}"
        if wrapped and isinstance(item, dict):
            cut, item = item.get("truncated_cells"), item["row"]
            if cut:
                detail = (
                    f"the hub's rows API has cut off {', '.join(map(str, cut))}; download the data set's files instead"
                )
                yield rejected(where, "truncated_cells", detail, item)
                continue
        yield reject_repeated_key(item, where)
