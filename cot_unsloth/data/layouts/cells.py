"""What single cells hold: a gold answer of any type, text, lists written as text.

A gold answer is read or its row rejected by name; it is never replaced by something else without a word.
"""

from __future__ import annotations

import ast
import datetime
import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

from cot_unsloth.core import trace
from cot_unsloth.data.layouts.row import RowError, kind, normal

_ANSWER_KEYS = (
    "answer", "finalanswer", "groundtruth", "value", "text", "target", "gold", "label", "content", "number",
    "normalizedvalue", "spans",
)  # fmt: skip
"""Where an object holds its answer, in order of preference."""


def gold(value: Any, name: str) -> str:
    """A gold answer as text; `51.0` is `51`.

    Raises:
        RowError: it is of a type, or of a number of answers, that no answer can be compared with.
    """
    value = plain(value)
    if isinstance(value, str):
        return _gold_text(value, name)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float | Decimal | Fraction):
        return number(value, name)
    if isinstance(value, datetime.date | datetime.datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return _gold_of_object(value, name)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return _gold_of_list(value, name)
    raise RowError("wrong_type", f"{name} is {kind(value)}")


def _gold_text(value: str, name: str) -> str:
    text = trace.unwrap_answer(value).strip()
    listed = literal(text) if re.fullmatch(r"""\[\s*(".*"|'.*')\s*\]""", text, re.DOTALL) else None
    if isinstance(listed, list):
        return _gold_of_list(listed, name)
    return text.removeprefix("####").strip() if text.startswith("####") and "\n" not in text else text


def number(value: int | float | Decimal | Fraction, name: str) -> str:
    """A number as people write it.

    >>> number(51.0, "answer"), number(Decimal("51.50"), "answer"), number(1e21, "answer")
    ('51', '51.5', '1000000000000000000000')
    """
    if isinstance(value, float | Decimal) and not math.isfinite(value):
        raise RowError("wrong_type", f"{name} is {value!r}")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, Decimal):
        return f"{value.normalize():f}"
    return str(value)


def _gold_of_object(value: Mapping[Any, Any], name: str) -> str:
    keys = {normal(str(key)): key for key in value if value[key] is not None}
    held = next((keys[key] for key in _ANSWER_KEYS if key in keys), None)
    if held is None and len(keys) == 1:
        held = next(iter(keys.values()))
    if held is None:
        raise RowError("wrong_type", f"{name} is an object with {', '.join(map(str, value)) or 'nothing in it'}")
    return gold(value[held], f"{name}.{held}")


def _gold_of_list(value: Sequence[Any], name: str) -> str:
    answers = list(dict.fromkeys(gold(item, name) for item in value))
    if len(answers) != 1:
        raise RowError("wrong_type", f"{name} is a list of {len(answers)} answers: {str(list(value))[:200]}")
    return answers[0]


def plain(value: Any) -> Any:
    """A value of numpy as Python's own; tuples stay sequences."""
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        return value.tolist()
    return value


def text(value: Any, name: str) -> str:
    """A cell that must be text; a number is written out.

    Raises:
        RowError: it is no text.
    """
    value = plain(value)
    if isinstance(value, str):
        return value
    if isinstance(value, int | float | Decimal | Fraction) and not isinstance(value, bool):
        return number(value, name)
    if isinstance(value, Sequence) and len(value) == 1 and isinstance(value[0], str):
        return str(value[0])
    parts = value.get("parts") if isinstance(value, Mapping) else value
    if isinstance(value, Mapping) and isinstance(value.get("text"), str):
        return str(value["text"])
    if isinstance(parts, list) and all(
        isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in parts
    ):
        return "".join(part["text"] for part in parts)
    raise RowError("wrong_type", f"{name} is {kind(value)}, not text")


_PASSAGE_KEYS = ("contexts", "context", "sentences", "paragraphs", "text", "passage")


def passage(value: Any) -> str:
    """Text that a question is about: text, a list of sentences, or an object with them; "" of anything else.

    >>> passage({"title": ["Pens"], "sentences": [["A pen writes.", "It is blue."]]})
    'A pen writes. It is blue.'
    """
    value = plain(value)
    if isinstance(value, Mapping):
        value = plain(next((value[key] for key in _PASSAGE_KEYS if value.get(key) is not None), None))
    if isinstance(value, str):
        return value.strip()
    if not isinstance(value, Sequence):
        return ""
    return "\n".join(filter(None, (_sentences(plain(item)) for item in value)))


def _sentences(item: Any) -> str:
    if isinstance(item, Sequence) and not isinstance(item, str) and all(isinstance(text, str) for text in item):
        return " ".join(text.strip() for text in item)
    return passage(item)


_QUOTED = re.compile(r"'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\"")
_PRINTED_TEXTS = re.compile(rf"\[\s*(?:{_QUOTED.pattern})(?:\s+(?:{_QUOTED.pattern}))+\s*\]")
_ARRAY = re.compile(r"\barray\((\[[^\[\]]*\])(?:,\s*dtype=[^()]*)?\)")


def literal(written: str) -> Any:
    """A value written as JSON or as a Python literal, or texts as numpy prints them; None where it is none of these.

    >>> literal("['a' 'b c']"), literal("{'text': array(['a', 'b'], dtype=object)}")
    (['a', 'b c'], {'text': ['a', 'b']})
    """
    if _PRINTED_TEXTS.fullmatch(written.strip()):  # Python would join them to one text
        return [ast.literal_eval(found[0]) for found in _QUOTED.finditer(written)]
    if "array(" in written:
        written = _ARRAY.sub(r"\1", written)
    for read in (json.loads, ast.literal_eval):
        try:
            return read(written)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            continue
    return None


_PRINTED = re.compile(r"\}\s*\n?\s*\{")
"""Items without a comma between them: how numpy and pandas print an array of objects."""


def listed(value: Any, name: str) -> list[Any]:
    """A cell that must be a list, or is one written as text.

    Raises:
        RowError: it is no list.
    """
    value = plain(value)
    if isinstance(value, str):
        read = literal(value)
        if read is None:
            raise RowError(*_unreadable(value, name))
        value = read
    if _is_message(value):
        return [value]
    if isinstance(value, Mapping) and value and all(isinstance(column, list) for column in value.values()):
        value = [dict(zip(value, items, strict=False)) for items in zip(*value.values(), strict=False)]
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise RowError("wrong_type", f"{name} is {kind(value)}, not a list")
    return list(value)


def _unreadable(value: str, name: str) -> tuple[str, str]:
    if value.lstrip().startswith("[") and (_PRINTED.search(value) or "array(" in value):
        return (
            "printed_array",
            f"{name} is an array as numpy or pandas prints it, without commas between its items, which cannot be read "
            'back; write the file again with df.to_json(FILE, orient="records", lines=True) or df.to_parquet(FILE)',
        )
    return "broken_list", f"{name} is text, but neither JSON nor a Python list: {value[:80]!r}"


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and any(
        isinstance(value.get(role), str) and content in value
        for role, content in (("role", "content"), ("from", "value"))
    )


def looks_listed(value: Any) -> bool:
    """Whether a cell is a list of objects, or written as one; a single message is a list of one."""
    value = plain(value)
    if _is_message(value):
        return True
    if isinstance(value, str):
        return re.match(r"\s*\[\s*(\{|array\()", value) is not None
    if isinstance(value, Mapping):
        return len(value) >= 2 and all(isinstance(column, list) for column in value.values())
    return isinstance(value, Sequence) and len(value) > 0 and all(isinstance(item, Mapping) for item in value)
