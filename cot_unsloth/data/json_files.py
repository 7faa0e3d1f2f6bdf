"""Rows of JSON text: one object a line, objects one after another, a list, or an object that holds rows.

Owns which of these a text is (its content decides, not the suffix); `json_objects` finds the rows inside one value. Objects one a line are a stream, and a broken line is one reject with its line.
Anything else is read whole, and is one error with line, column and the place quoted where it is not JSON.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cot_unsloth.core.errors import DataError
from cot_unsloth.core.types import Reject
from cot_unsloth.data.json_objects import Repeated, checked, rows_of
from cot_unsloth.data.text_files import Decoder, Numbered, another_encoding, open_utf8, shorten

LINE_SUFFIXES = (".jsonl", ".ndjson", ".jsonlines")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    if len(plain) == len(pairs):
        return plain
    names = [name for name, _ in pairs]
    repeated = Repeated(plain)
    Repeated.made += 1
    repeated.key = next(name for name in names if names.count(name) > 1)
    return repeated


def _constant(name: str) -> None:
    """NaN is how pandas and numpy write a missing value; an infinity is no value that a row can have."""
    if name != "NaN":
        raise ValueError(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
_SPACE = re.compile(r"[ \t\n\r]*")


def rows(path: Path, split: str) -> Iterator[Numbered]:
    """The rows of a file of JSON text.

    Args:
        path: the file.
        split: which split to take where the text is one object of splits.

    Raises:
        DataError: it is no JSON, or holds no rows.
    """
    with open_utf8(path, announce=True) as file:
        by_line = _is_line_by_line(file)
    yield from _lines(path) if by_line else _document(path, split)


# --- one object a line -----------------------------------------------------------------------------------------------


def _is_line_by_line(file: Iterable[bytes]) -> bool:
    """Whether a text is one value a line. It is not where one value takes several lines, or the whole text."""
    lines = (line for line in file if line.strip())
    first, second = next(lines, b""), next(lines, b"")
    if not second:
        return first.lstrip()[:1] not in (b"{", b"[")
    if _complete(first):
        return True
    # A first line that is broken is a reject, where the lines after it show that each is a row of its own.
    opens = first.rstrip()[-1:] in (b"[", b"{", b":", b",")
    return not opens and second[:1] == b"{"


def _complete(line: bytes) -> bool:
    try:
        return isinstance(_DECODER.decode(line.decode("utf-8", "replace").strip().rstrip(",")), dict | list)
    except (ValueError, RecursionError):
        return False


def _lines(path: Path) -> Iterator[Numbered]:
    decoder = Decoder(path, tolerant=True)
    with open_utf8(path) as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            line = decoder.decode(raw, number)
            where = f"{path}:{number}"
            yield where, line if isinstance(line, Reject) else _row(line, where, path)


def _row(text: str, where: str, path: Path) -> Any:
    """The row that a text is, or why it is none."""
    text = text.strip()
    try:
        row = _DECODER.decode(text.rstrip(",") if text.endswith("},") else text)
    except json.JSONDecodeError as error:
        detail = f"column {error.colno}: {error.msg}, at {_quoted(text, error.pos)}; {_way_out(text, error, path)}"
        return Reject(where, "broken_json", detail, shorten(text))
    except (ValueError, RecursionError) as error:  # a number too long to read, or nested too deep
        return Reject(where, "broken_json", _plain_reason(error), shorten(text))
    return checked(row, where)


def _plain_reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "its lists and objects are nested too deep"
    return "a number in it is too long to read" if "integer string conversion" in str(error) else str(error)


# --- whole documents -------------------------------------------------------------------------------------------------


def _document(path: Path, split: str) -> Iterator[Numbered]:
    text = _text(path)
    start = _SPACE.match(text).end()  # type: ignore[union-attr]
    if start == len(text):
        return
    try:
        tree, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        if _has_rows_by_line(text):
            yield from _lines(path)
            return
        raise _not_json(path, text, error) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"is not JSON: {_plain_reason(error)}", where=str(path), name="not_json") from error
    rest = text[end:].lstrip(" \t\r\n,")
    if not rest:
        line = text.count("\n", 0, start) + 1
        yield from rows_of(tree, path, split, line=line, by_line=suffix_is_by_line(path))
    elif isinstance(tree, dict) and rest[0] == "{":
        yield from _one_after_another(path, text)
    elif isinstance(tree, list) and rest[0] == "[":
        yield from rows_of(tree + _more_lists(path, text, end), path, split)
    else:
        extra = json.JSONDecodeError("there is more after its end", text, len(text) - len(rest))
        raise _not_json(path, text, extra)


def suffix_is_by_line(path: Path) -> bool:
    """Whether a file is named as one that holds an object a line."""
    return any(suffix.lower() in LINE_SUFFIXES for suffix in path.suffixes[-2:])


def _text(path: Path) -> str:
    with open_utf8(path) as file:
        raw = file.read()
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        begin = raw.rfind(b"\n", 0, error.start) + 1
        line = raw[begin:].partition(b"\n")[0]
        raise another_encoding(path, line, raw.count(b"\n", 0, begin) + 1) from error


def _more_lists(path: Path, text: str, position: int) -> list[Any]:
    """The items of the lists that follow the first one, as where files were joined."""
    items: list[Any] = []
    while rest := text[position:].lstrip(" \t\r\n,"):
        start = len(text) - len(rest)
        try:
            more, position = _DECODER.raw_decode(text, start)
        except json.JSONDecodeError as error:
            raise _not_json(path, text, error) from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"is not JSON: {_plain_reason(error)}", where=str(path), name="not_json") from error
        if not isinstance(more, list):
            raise _not_json(path, text, json.JSONDecodeError("there is more after the list's end", text, start))
        items += more
    return items


def _one_after_another(path: Path, text: str) -> Iterator[Numbered]:
    """Objects that take several lines each. After a broken one, reading goes on at the next line that begins one."""
    position = 0
    line, counted = 1, 0
    while True:
        position = _SPACE.match(text, position).end()  # type: ignore[union-attr]
        if text[position : position + 1] == ",":
            position = _SPACE.match(text, position + 1).end()  # type: ignore[union-attr]
        if position >= len(text):
            return
        line, counted = line + text.count("\n", counted, position), position
        where = f"{path}:{line}"
        try:
            row, end = _DECODER.raw_decode(text, position)
            yield where, checked(row, where)
        except (ValueError, RecursionError) as error:
            following = text.find("\n{", position + 1)
            end = len(text) if following < 0 else following
            broken = text[position:end]
            if isinstance(error, json.JSONDecodeError):
                detail = f"line {error.lineno}, column {error.colno}: {error.msg}, at {_quoted(text, error.pos)}"
                detail += f"; {_way_out(text, error, path)}"
            else:
                detail = _plain_reason(error)
            yield where, Reject(where, "broken_json", detail, shorten(broken))
        position = end


def _has_rows_by_line(text: str) -> bool:
    """Whether text that is not JSON as a whole has lines that are rows of their own."""
    lines = [line for line in text.split("\n", 2000)[:2000] if line.strip()]
    if lines[0].strip() in ("[", "{"):
        return False
    whole = sum(line[0] == "{" and line.rstrip()[-1] == "}" and _complete(line.encode()) for line in lines)
    of_a_list = sum(line.rstrip()[-2:] == "}," for line in lines)
    return whole > of_a_list and sum(line[0] in "{[" for line in lines) * 2 > len(lines)


def _quoted(text: str, position: int) -> str:
    """The place of a fault, with a little text on either side."""
    begin, end = max(0, position - 20), position + 20
    return repr(("…" if begin else "") + text[begin:end] + ("…" if end < len(text) else ""))


def _not_json(path: Path, text: str, error: json.JSONDecodeError) -> DataError:
    return DataError(
        f"is not JSON: {error.msg}, at {_quoted(text, error.pos)}",
        where=f"{path}:{error.lineno}:{error.colno}",
        hint=_way_out(text, error, path),
        name="not_json",
    )


def _way_out(text: str, error: json.JSONDecodeError, path: Path) -> str:
    at, before = text[error.pos : error.pos + 1], text[: error.pos].rstrip()[-1:]
    if not text[error.pos :].strip() or error.msg.startswith("Unterminated string"):
        return "the text ends in the middle of a value: it was cut off, or a closing quote or bracket is missing"
    if error.msg.startswith("Invalid control character"):
        return "a line break or tab inside a string is written \\n or \\t"
    if before == "," and at in ("]", "}"):
        return f"remove the comma before {at}"
    if at == "'" or text[error.pos : error.pos + 4] in ("None", "True", "Fals"):
        new = path.with_name(f"{path.stem}-json.jsonl")
        return (
            'it is written as Python, not as JSON; where each line is a row: python -c "import ast, json, sys; '
            "[print(json.dumps(ast.literal_eval(line))) for line in open(sys.argv[1], encoding='utf-8') if line.strip()]\" "
            f"{shlex.quote(str(path))} > {shlex.quote(str(new))}"
        )
    if error.msg.startswith("Invalid \\escape"):
        return "a backslash inside a string is written \\\\ (LaTeX needs that too)"
    if text.startswith("//", error.pos) or at == "#":
        return "JSON has no comments; remove it"
    return "correct it there, or write one object a line (JSONL), where a broken line is one reject and not the end"


def is_first_line_json(lines: Iterable[str]) -> bool:
    """Whether the first line of a text that is not blank begins as JSON does, and is none of CSV's."""
    first = next((line.strip() for line in lines if line.strip()), "")
    return first[:1] == "{" or first[:2] in ("[", "[{", "[[") or (first[:1] == "[" and first[-1:] in ("]", ","))
