"""JSON files: one object a line (JSONL), objects one after another, a list, or an object that holds the rows.

The content decides which of these a file is, not the suffix: `.json` files are often JSONL, and the other way round.
JSONL is streamed, and a broken line is one reject. Anything else is read into memory; if it is not JSON, that is one error
with line, column and the text around it. `json_objects` finds the rows inside one JSON value.

Whole numbers keep all their digits: Python's integers have no limit at 2^53, unlike those of JavaScript or pandas.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

from cot_unsloth.core.errors import DataError
from cot_unsloth.core.json_text import first_repeated
from cot_unsloth.core.types import Reject
from cot_unsloth.data.json_objects import JsonObject, RepeatedKeyObject, reject_repeated_key, rows_in_value
from cot_unsloth.data.rows import SourceRow, rejected
from cot_unsloth.data.text_files import LineDecoder, open_utf8, wrong_encoding_error

_LINE_SUFFIXES = (".jsonl", ".ndjson", ".jsonlines")
SUFFIXES = (*_LINE_SUFFIXES, ".json")


def _object(pairs: list[tuple[str, object]]) -> JsonObject:
    """An object from its pairs. Python's decoder would keep the last of two values without a word."""
    plain = dict(pairs)
    # Equal lengths mean distinct keys; only otherwise are the keys searched for the repeated one.
    if len(plain) == len(pairs):
        return plain
    return RepeatedKeyObject(plain, first_repeated(key for key, _ in pairs) or "")


def _constant(name: str) -> None:
    """NaN, which pandas and numpy write for a missing value, is null; Infinity is not JSON."""
    if name != "NaN":
        raise ValueError(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
_SPACE = re.compile(r"[ \t\n\r]*")


def read_rows(path: Path, split: str) -> Iterator[SourceRow]:
    """The rows of a JSON file.

    Args:
        path: the file.
        split: which split to take if the file is one object of splits.

    Raises:
        DataError: the file is not JSON, or holds no rows.
    """
    with open_utf8(path, announce=True) as file:
        by_line = _is_line_by_line(file)
    yield from _read_lines(path) if by_line else _read_document(path, split)


# --- one object a line -----------------------------------------------------------------------------------------------


def _is_line_by_line(file: Iterable[bytes]) -> bool:
    """Whether a file has one value a line, as opposed to values of several lines or one for the whole file."""
    lines = (line for line in file if line.strip())
    first, second = next(lines, b""), next(lines, b"")
    if not second:
        return first.lstrip()[:1] not in (b"{", b"[")
    if _is_complete_value(first):
        return True
    # A broken first line is one reject, if the next line shows that every line is a row of its own.
    continues = first.rstrip()[-1:] in (b"[", b"{", b":", b",")
    return not continues and second[:1] == b"{"


def _is_complete_value(line: bytes) -> bool:
    try:
        return isinstance(_DECODER.decode(line.decode("utf-8", "replace").strip().rstrip(",")), dict | list)
    except (ValueError, RecursionError):
        return False


def _read_lines(path: Path) -> Iterator[SourceRow]:
    decoder = LineDecoder(path, tolerant=True)
    with open_utf8(path) as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            # Lines are split as bytes, at \n only: str.splitlines() would also split at U+2028, U+2029 and U+0085,
            # which JSON allows inside strings.
            line = decoder.decode(raw, number)
            where = f"{path}:{number}"
            yield from [SourceRow(where, line)] if isinstance(line, Reject) else _parse_line(line, where, path)


_JOINED = re.compile(r"\}\s*,?\s*(?=\{)")


def _parse_line(text: str, where: str, path: Path) -> list[SourceRow]:
    """The row of a line, or its Reject; or several rows, as `cat` joins files of which one does not end its last line."""
    row = _parse_row(text, where, path)
    if not isinstance(row.row, Reject) or _JOINED.search(text) is None:
        return [row]
    rows: list[SourceRow] = []
    text, position = text.strip(), 0
    try:
        while position < len(text):
            value, end = _DECODER.raw_decode(text, position)
            if not isinstance(value, dict):
                return [row]
            rows.append(reject_repeated_key(value, where))
            position = len(text) - len(text[end:].lstrip(" \t,"))
    except (ValueError, RecursionError):
        return [row]
    return rows


def _parse_row(text: str, where: str, path: Path) -> SourceRow:
    """One line as a row, or its Reject."""
    text = text.strip()
    try:
        row = _DECODER.decode(text.rstrip(",") if text.endswith("},") else text)
    except json.JSONDecodeError as error:
        detail = f"column {error.colno}: {error.msg}, at {_excerpt(text, error.pos)}; {_fix_hint(text, error, path)}"
        return rejected(where, "broken_json", detail, text)
    except (ValueError, RecursionError) as error:  # an integer of over 4,300 digits (sys.int_info), or nested too deep
        return rejected(where, "broken_json", _plain_reason(error), text)
    return reject_repeated_key(row, where)


def _plain_reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "its lists and objects are nested too deep"
    return "a number in it is too long to read" if "integer string conversion" in str(error) else str(error)


# --- whole documents -------------------------------------------------------------------------------------------------


def _read_document(path: Path, split: str) -> Iterator[SourceRow]:
    text = _read_text(path)
    start = _SPACE.match(text).end()  # type: ignore[union-attr]
    if start == len(text):
        return
    try:
        # raw_decode stops at the end of the first value, so that what follows it can be read as well; json.loads
        # fails with "Extra data".
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        if _has_rows_by_line(text):
            yield from _read_lines(path)
            return
        raise _not_json(path, text, error) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"is not JSON: {_plain_reason(error)}", where=str(path), name="not_json") from error
    rest = text[end:].lstrip(" \t\r\n,")
    if not rest:
        line = text.count("\n", 0, start) + 1
        yield from rows_in_value(value, path, split, line=line, by_line=_is_named_jsonl(path))
    elif isinstance(value, dict) and rest[0] == "{":
        yield from _read_consecutive(path, text)
    elif isinstance(value, list) and rest[0] == "[":
        yield from rows_in_value(value + _further_lists(path, text, end), path, split)
    else:
        extra = json.JSONDecodeError("there is more after its end", text, len(text) - len(rest))
        raise _not_json(path, text, extra)


def _is_named_jsonl(path: Path) -> bool:
    """Whether the suffix says that the file has one object a line."""
    return any(suffix.lower() in _LINE_SUFFIXES for suffix in path.suffixes[-2:])


def _read_text(path: Path) -> str:
    with open_utf8(path) as file:
        raw = file.read()
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        begin = raw.rfind(b"\n", 0, error.start) + 1
        line = raw[begin:].partition(b"\n")[0]
        raise wrong_encoding_error(path, line, raw.count(b"\n", 0, begin) + 1) from error


def _further_lists(path: Path, text: str, position: int) -> list[object]:
    """The items of the lists after the first one, as in files joined with `cat`."""
    items: list[object] = []
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


def _read_consecutive(path: Path, text: str) -> Iterator[SourceRow]:
    """Objects of several lines each. After a broken one, reading resumes at the next line that begins with a brace."""
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
            yield reject_repeated_key(row, where)
        except (ValueError, RecursionError) as error:
            following = text.find("\n{", position + 1)
            end = len(text) if following < 0 else following
            broken = text[position:end]
            if isinstance(error, json.JSONDecodeError):
                detail = f"line {error.lineno}, column {error.colno}: {error.msg}, at {_excerpt(text, error.pos)}"
                detail += f"; {_fix_hint(text, error, path)}"
            else:
                detail = _plain_reason(error)
            yield rejected(where, "broken_json", detail, broken)
        position = end


def _has_rows_by_line(text: str) -> bool:
    """Whether most lines of a text that is not one JSON document are rows of their own."""
    lines = [line for line in text.split("\n", 2000)[:2000] if line.strip()]
    if lines[0].strip() in ("[", "{"):
        return False
    complete = sum(line[0] == "{" and line.rstrip()[-1] == "}" and _is_complete_value(line.encode()) for line in lines)
    of_a_list = sum(line.rstrip()[-2:] == "}," for line in lines)
    return complete > of_a_list and sum(line[0] in "{[" for line in lines) * 2 > len(lines)


def _excerpt(text: str, position: int) -> str:
    """The text around a fault, for messages."""
    begin, end = max(0, position - 20), position + 20
    return repr(("…" if begin else "") + text[begin:end] + ("…" if end < len(text) else ""))


def _not_json(path: Path, text: str, error: json.JSONDecodeError) -> DataError:
    return DataError(
        f"is not JSON: {error.msg}, at {_excerpt(text, error.pos)}",
        where=f"{path}:{error.lineno}:{error.colno}",
        hint=_fix_hint(text, error, path),
        name="not_json",
    )


def _fix_hint(text: str, error: json.JSONDecodeError, path: Path) -> str:
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
    """Whether the first line that is not blank begins like JSON, and not like a CSV header that begins with a bracket."""
    first = next((line.strip() for line in lines if line.strip()), "")
    return first[:1] == "{" or first[:2] in ("[", "[{", "[[") or (first[:1] == "[" and first[-1:] in ("]", ","))
