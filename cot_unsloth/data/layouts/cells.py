"""Values of single cells: gold answers of any type, text, and lists written as text.

A gold answer that cannot be read rejects its row; it is never replaced silently by something else.
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
from cot_unsloth.data.layouts.row import RowError, describe_value, is_empty, is_null_word, normalize_name

_ANSWER_KEYS = (
    "answer", "finalanswer", "groundtruth", "value", "text", "target", "gold", "label", "content", "number",
    "normalizedvalue", "spans",
)  # fmt: skip
"""Keys under which an object holds its answer, in order of preference."""


_WRITTEN_ANSWER_KEYS = {"answer", "finalanswer", "groundtruth", "answerstart"}
"""Keys by which a text is an object with an answer in it, and not an answer in JSON that the question asks for."""


def gold_text(value: object, name: str) -> str:
    """A gold answer as text; `51.0` is `51`.

    Raises:
        RowError: no answer can be compared with it, because of its type, or because it is several answers.
    """
    value = to_python(value)
    if isinstance(value, str):
        return _gold_text(value, name)
    if isinstance(value, bool):
        # Before numbers, because bool is a subclass of int.
        return "yes" if value else "no"
    if isinstance(value, int | float | Decimal | Fraction):
        return number_text(value, name)
    if isinstance(value, datetime.date | datetime.datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return _gold_of_object(value, name)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return _gold_of_list(value, name)
    raise RowError("wrong_type", f"{name} is {describe_value(value)}")


def _gold_text(value: str, name: str) -> str:
    text = trace.unwrap_answer(value).strip()
    items = parse_literal(text) if re.fullmatch(r"""\[\s*(".*"|'.*')\s*\]""", text, re.DOTALL) else None
    if isinstance(items, list):
        return _gold_of_list(items, name)
    fields = structure(text) if text.startswith("{") else None
    if isinstance(fields, dict) and _WRITTEN_ANSWER_KEYS & {normalize_name(str(key)) for key in fields}:
        return _gold_of_object(fields, name)
    return text.removeprefix("####").strip() if text.startswith("####") and "\n" not in text else text


def number_text(value: int | float | Decimal | Fraction, name: str) -> str:
    """A number without exponent and trailing zeros, so that 51.0 equals the text 51.

    >>> number_text(51.0, "answer"), number_text(Decimal("51.50"), "answer"), number_text(1e21, "answer")
    ('51', '51.5', '1000000000000000000000')
    """
    if isinstance(value, float | Decimal) and not math.isfinite(value):
        raise RowError("wrong_type", f"{name} is {value!r}")
    if isinstance(value, float) and value.is_integer():
        # str() of a float has an exponent from 1e16 on.
        return str(int(value))
    if isinstance(value, Decimal):
        # normalize() alone makes 100 into 1E+2.
        return f"{value.normalize():f}"
    return str(value)


def _gold_of_object(value: Mapping[Any, Any], name: str) -> str:
    # DROP has `number`, `date` and `spans` in each answer, of which two are empty.
    keys = {normalize_name(str(key)): key for key in value if not is_empty(to_python(value[key]))}
    key = next((keys[key] for key in _ANSWER_KEYS if key in keys), None)
    if key is None and len(keys) == 1:
        key = next(iter(keys.values()))
    if key is None:
        raise RowError("wrong_type", f"{name} is an object with {', '.join(map(str, value)) or 'nothing in it'}")
    answer, unit = gold_text(value[key], f"{name}.{key}"), value.get(keys.get("unit", keys.get("units")))
    has_unit = isinstance(unit, str) and not is_null_word(unit) and not re.search(r"[^\W\d_%]", answer)
    return f"{answer} {unit.strip()}" if has_unit and isinstance(unit, str) else answer


def _gold_of_list(value: Sequence[Any], name: str) -> str:
    answers = list(dict.fromkeys(gold_text(item, name) for item in value))
    if len(answers) != 1:
        raise RowError("wrong_type", f"{name} is a list of {len(answers)} answers: {str(list(value))[:200]}")
    return answers[0]


def to_python(value: Any) -> Any:
    """A numpy scalar or array as a Python value; anything else unchanged. Arrow gives lists as arrays to pandas."""
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        return value.tolist()
    return value


def structure(value: Any) -> Any:
    """A list or an object, also one that is written as text, as in every CSV file; any other value as `to_python` gives it.

    >>> structure("[{'text': 'a'}]"), structure('{"a": 1}'), structure("[sic] a")
    ([{'text': 'a'}], {'a': 1}, '[sic] a')
    """
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{") and value.rstrip()[-1:] in ("]", "}"):
        parsed = parse_literal(value)
        return parsed if isinstance(parsed, list | dict) else value
    return to_python(value)


def text(value: object, name: str) -> str:
    """A cell that must be text. Numbers are written out, and content parts joined.

    Raises:
        RowError: it is not text.
    """
    value = to_python(value)
    if isinstance(value, str):
        return value
    if isinstance(value, int | float | Decimal | Fraction) and not isinstance(value, bool):
        return number_text(value, name)
    if isinstance(value, Sequence) and len(value) == 1 and isinstance(value[0], str):
        return str(value[0])
    parts = value.get("parts") if isinstance(value, Mapping) else value
    if isinstance(value, Mapping) and isinstance(value.get("text"), str):
        return str(value["text"])
    if isinstance(parts, list) and all(
        isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in parts
    ):
        return "".join(part["text"] for part in parts)
    raise RowError("wrong_type", f"{name} is {describe_value(value)}, not text")


_PASSAGE_KEYS = ("contexts", "context", "sentences", "paragraphs", "text", "passage")


def passage_text(value: object) -> str:
    """Text that a question is about: text, a list of sentences, or an object with them; "" for anything else.

    >>> passage_text({"title": ["Pens"], "sentences": [["A pen writes.", "It is blue."]]})
    'A pen writes. It is blue.'
    """
    value = to_python(value)
    if isinstance(value, str) and _is_passages(written := structure(value)):
        value = written
    if isinstance(value, Mapping):
        value = to_python(next((value[key] for key in _PASSAGE_KEYS if value.get(key) is not None), None))
    if isinstance(value, str):
        return value.strip()
    if not isinstance(value, Sequence):
        return ""
    return "\n".join(filter(None, (_sentences(to_python(item)) for item in value)))


def _is_passages(value: object) -> bool:
    """Whether a structure that was written as text holds sentences, and is not itself what a question is about, such as a table in JSON."""
    if isinstance(value, dict):
        return not {"contexts", "context", "sentences", "paragraphs", "passage"}.isdisjoint(value)
    return (
        isinstance(value, list) and bool(value) and all(isinstance(item, str) and " " in item.strip() for item in value)
    )


def _sentences(item: object) -> str:
    if isinstance(item, Sequence) and not isinstance(item, str) and all(isinstance(text, str) for text in item):
        return " ".join(text.strip() for text in item)
    return passage_text(item)


_QUOTED = re.compile(r"'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\"")
_NUMPY_STRINGS = re.compile(rf"\[\s*(?:{_QUOTED.pattern})(?:\s+(?:{_QUOTED.pattern}))+\s*\]")
_ARRAY = re.compile(r"\barray\((\[[^\[\]]*\])(?:,\s*dtype=[^()]*)?\)")


def parse_literal(written: str) -> Any:
    """A value written as JSON, as a Python literal, or as numpy prints an array of strings; None for anything else.

    >>> parse_literal("['a' 'b c']"), parse_literal("{'text': array(['a', 'b'], dtype=object)}")
    (['a', 'b c'], {'text': ['a', 'b']})
    """
    if _NUMPY_STRINGS.fullmatch(written.strip()):  # Python would concatenate adjacent literals
        return [ast.literal_eval(match[0]) for match in _QUOTED.finditer(written)]
    if "array(" in written:
        written = _ARRAY.sub(r"\1", written)
    # literal_eval reads literals only and runs no code.
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(written)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            continue
    return None


_NO_COMMA = re.compile(r"\}\s*\n?\s*\{")
"""Objects without a comma between them, as numpy and pandas print an array of objects."""


def as_list(value: object, name: str) -> list[Any]:
    """A cell that must be a list, a list written as text, one message, or columns of equal length.

    Raises:
        RowError: it is none of these.
    """
    value = to_python(value)
    if isinstance(value, str):
        parsed = parse_literal(value)
        if parsed is None:
            raise RowError(*_unreadable_list(value, name))
        value = parsed
    if _is_message(value):
        return [value]
    if isinstance(value, Mapping) and value and all(isinstance(column, list) for column in value.values()):
        # `datasets` stores a list of objects as an object of lists where the feature is a Sequence of a dict.
        value = [dict(zip(value, items, strict=False)) for items in zip(*value.values(), strict=False)]
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise RowError("wrong_type", f"{name} is {describe_value(value)}, not a list")
    return list(value)


def _unreadable_list(value: str, name: str) -> tuple[str, str]:
    if value.lstrip().startswith("[") and (_NO_COMMA.search(value) or "array(" in value):
        return (
            "printed_array",
            f"{name} is an array as numpy or pandas prints it, without commas between its items, which cannot be read "
            'back; write the file again with df.to_json(FILE, orient="records", lines=True) or df.to_parquet(FILE)',
        )
    return "broken_list", f"{name} is text, but neither JSON nor a Python list: {value[:80]!r}"


def _is_message(value: object) -> bool:
    return isinstance(value, Mapping) and any(
        isinstance(value.get(role), str) and content in value
        for role, content in (("role", "content"), ("from", "value"))
    )


def looks_like_list(value: object) -> bool:
    """Whether a cell is a list of objects, or is written as one; a single message counts as a list of one."""
    value = to_python(value)
    if _is_message(value):
        return True
    if isinstance(value, str):
        return re.match(r"\s*\[\s*(\{|array\()", value) is not None or (
            re.match(r"""\s*\{\s*['"](?:role|from|content|value)['"]""", value) is not None
            and _is_message(structure(value))
        )
    if isinstance(value, Mapping):
        return len(value) >= 2 and all(isinstance(column, list) for column in value.values())
    return isinstance(value, Sequence) and len(value) > 0 and all(isinstance(item, Mapping) for item in value)


_LOSS_KEYS = ("weight", "train", "trainable", "training", "loss", "loss_weight", "train_on_turn")
_TRUE_OR_FALSE = {
    "true": True,
    "1": True,
    "1.0": True,
    "yes": True,
    "false": False,
    "0": False,
    "0.0": False,
    "no": False,
}


def loss_key(message: Mapping[str, object]) -> str | None:
    """The key by which a message says whether it may carry loss; None if it does not say. Keys are in lower case."""
    return next((key for key in _LOSS_KEYS if message.get(key) is not None), None)


def may_be_trained(message: Mapping[str, object]) -> bool | None:
    """Whether a message may carry loss (`weight`, `train`); None if it does not say.

    Raises:
        RowError: what it says is neither true nor false.
    """
    key = loss_key(message)
    if key is None:
        return None
    value = to_python(message[key])
    if isinstance(value, bool | int | float):
        return bool(value)
    truth = _TRUE_OR_FALSE.get(str(value).strip().casefold())
    if truth is None:
        raise RowError("wrong_type", f"{key} of a message is {value!r}, neither true nor false")
    return truth
