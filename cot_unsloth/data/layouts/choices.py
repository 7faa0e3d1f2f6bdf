"""Multiple choice: a question, its options in one of many shapes, and which of them is right.

The options are shown in the question, lettered, and the gold answer is the letter.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from cot_unsloth.data.layouts import cells
from cot_unsloth.data.layouts import columns as plain_columns
from cot_unsloth.data.layouts.fields import Fields, Layout, history_pairs, respond, system_prompt
from cot_unsloth.data.layouts.row import OPTIONS, RESPONSE, Columns, Named, Row, RowError, is_empty

Options = list[tuple[str, str]]
"""Label, as the row has it, and text."""

_GROUPS = ("option", "op", "choice", "answer", "sol", "opt", "ending", "qop", "")
"""What columns with one option each begin with, before a letter or a number: option_a, opa, choice1, A."""
_WRONG = ("incorrectanswer", "distractor", "wronganswer")
_RIGHT = (
    "answerkey", "answerletter", "correctletter", "answeridx", "answerindex", "correctoption", "correctidx",
    "correctindex", "correctchoice", "correct", "correctanswer", "cop", "goldindex", "gold", "answer", "label", "target",
    "finalanswer", "groundtruth", "expectedanswer", "ans", "qans",
)  # fmt: skip
_ASK = "Answer with the letter of the right choice."
_LETTERED = re.compile(r"\s*\(?([A-Za-z]|\d{1,2})\s*[).:]\s*(?P<text>.*)", re.DOTALL)
_INLINE = re.compile(r"(?:^|[\s,;|]+)\(?([A-Za-z])\s*[).:]\s+|(?:^|[\s,;|]+)\(?([A-Z])\)")


def options(columns: Columns) -> tuple[Options, tuple[str, ...]] | None:
    """The options of a row and the columns that they stand in; None where there are none."""
    for column in columns.each(OPTIONS):
        shown = _of_cell(cells.plain(columns.value(column)))
        if shown:
            return shown, (column,)
    answers = columns.first(("answers",))  # ReClor: what others call options, beside the number of the right one
    if answers is not None and isinstance(cells.plain(columns.value(columns.first(("label",)))), int):
        shown = _of_cell(cells.plain(columns.value(answers)))
        if shown:
            return shown, (answers,)
    asked = columns.value(columns.question())
    if isinstance(asked, Mapping):
        inside = next((asked[key] for key in ("choices", "options") if key in asked), None)
        shown = _of_cell(cells.plain(inside))
        return (shown, ()) if shown else None
    return _of_columns(columns)


def _of_columns(columns: Columns) -> tuple[Options, tuple[str, ...]] | None:
    for prefix in _GROUPS:
        for signs in (string.ascii_lowercase, tuple(map(str, range(26))), tuple(map(str, range(1, 27)))):
            names = []
            for sign in signs:
                column = columns.first((f"{prefix}{sign}",))
                if column is None:
                    break
                names.append(column)
            if len(names) >= 2:
                texts = [_scalar(columns.value(name)) for name in names]
                if all(text is not None for text in texts):
                    letters = string.ascii_uppercase if signs[0] == "0" else signs
                    return [(sign.upper(), str(text)) for sign, text in zip(letters, texts, strict=False)], tuple(names)
    return _of_distractors(columns)


def _of_distractors(columns: Columns) -> tuple[Options, tuple[str, ...]] | None:
    """A right answer and wrong ones, each in a column: shown in an order that the question decides."""
    right = columns.first(("correctanswer", "bestanswer", "answer"))
    wrong = [c for prefix in _WRONG for n in range(1, 10) if (c := columns.first((f"{prefix}{n}",))) is not None]
    asked = columns.value(columns.question())
    if right is None or len(wrong) < 1 or not isinstance(asked, str):
        return None
    texts = [_scalar(columns.value(name)) for name in (right, *wrong)]
    if any(text is None for text in texts):
        return None
    shown = [str(text) for text in texts]
    random.Random(asked.strip()).shuffle(shown)
    return list(zip(string.ascii_uppercase, shown, strict=False)), (*wrong,)


def _scalar(value: Any) -> str | None:
    value = cells.plain(value)
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return str(value)
    return cells.number(value, "an option") if isinstance(value, int | float) else None


def _of_cell(value: Any) -> Options | None:
    if isinstance(value, str):
        read = cells.literal(value) if value.lstrip().startswith(("[", "{", "array(")) else None
        return _of_cell(read) if read is not None else _of_text(value)
    if isinstance(value, Mapping):
        return _of_object(value)
    if not isinstance(value, Sequence) or len(value) < 2:
        return None
    if all(isinstance(item, Mapping) for item in value):
        pairs = [_of_item(item) for item in value]
        return [pair for pair in pairs if pair] if all(pairs) else None
    texts = [_scalar(item) for item in value]
    return _unlettered([str(text) for text in texts]) if all(text is not None for text in texts) else None


def _of_object(value: Mapping[Any, Any]) -> Options | None:
    by_name = {str(key).casefold(): cells.plain(item) for key, item in value.items()}
    texts, labels = by_name.get("text"), by_name.get("label", by_name.get("labels"))
    if isinstance(texts, Sequence) and not isinstance(texts, str):
        shown = [str(_scalar(text)) for text in texts]
        signs = [str(label) for label in labels] if isinstance(labels, Sequence) else list(string.ascii_uppercase)
        return list(zip(signs, shown, strict=False)) if len(shown) >= 2 else None
    pairs = [(str(key).strip(" ()."), _scalar(item)) for key, item in value.items() if not is_empty(item)]
    if len(pairs) < 2 or any(text is None or len(key) > 2 for key, text in pairs):
        return None  # an object of settings, say
    return [(key, str(text)) for key, text in pairs]


def _of_item(item: Mapping[Any, Any]) -> tuple[str, str] | None:
    by_name = {str(key).casefold(): value for key, value in item.items()}
    label = next((by_name[key] for key in ("label", "key", "letter", "id", "option") if key in by_name), None)
    text = next((by_name[key] for key in ("text", "value", "content", "para", "answer") if key in by_name), None)
    shown = _scalar(text)
    return (str(label), shown) if label is not None and shown is not None else None


def _unlettered(texts: list[str]) -> Options:
    """Options that may be lettered already: `A)32400`."""
    matches = [_LETTERED.fullmatch(text) for text in texts]
    signs = [match[1].upper() if match else "" for match in matches]
    for expected in (list(string.ascii_uppercase), [str(n) for n in range(1, 27)]):
        if signs == expected[: len(texts)]:
            return [(sign, match["text"].strip()) for sign, match in zip(signs, matches, strict=True) if match]
    return list(zip(string.ascii_uppercase, texts, strict=False))


def _of_text(value: str) -> Options | None:
    """Options in one text: a line each, or `a ) 38 , b ) 27`."""
    lines = [line.strip() for line in value.splitlines() if line.strip()]
    if len(lines) >= 2:
        return _unlettered(lines)
    marks, at = [], 0
    for mark in _INLINE.finditer(value):
        if (mark[1] or mark[2]).upper() == string.ascii_uppercase[at : at + 1]:
            marks.append(mark)
            at += 1
    if len(marks) < 2:
        return None
    ends = [*(mark.start() for mark in marks[1:]), len(value)]
    return [
        (string.ascii_uppercase[n], value[mark.end() : end].strip(" ,;|"))
        for n, (mark, end) in enumerate(zip(marks, ends, strict=True))
    ]


def _fits(columns: Columns) -> bool:
    if columns.question() is None or columns.named.messages is not None:
        return False
    return options(columns) is not None and (_right_column(columns) is not None or _tagged(columns) is not None)


def _tagged(columns: Columns) -> str | None:
    column = plain_columns.tagged_column(columns)
    answered = columns.gold(beside=None) is None and _right_column(columns) is not None
    return None if answered and column == columns.reasoning() else column


def _read(columns: Columns) -> Fields:
    there = options(columns)
    if there is None:
        raise RowError("missing_field", "there are no options of this question")
    choices, where = there
    if len(choices) > len(string.ascii_uppercase):
        raise RowError("wrong_type", f"there are {len(choices)} options")
    asked = _question(columns)
    for column in where:
        columns.use(column, "options")
    letter = _gold(columns, choices)
    right = columns.roles.get("gold", [""])[0]
    response = _tagged(columns) or columns.first(RESPONSE, without=(right, *where))
    reasoning = columns.reasoning()
    if response is not None and response == reasoning:
        reasoning = None
    if response is None and letter is None:
        raise RowError("missing_field", "no column says which option is right")
    if response is None:
        columns.roles["answer"] = columns.roles.pop("gold")
    text = str(letter) if response is None else plain_columns.spoken(columns.use(response, "answer"), response)
    solved = respond(columns, None, text, letter, reasoning)
    return Fields(shown(asked, choices), solved, system_prompt(columns), history_pairs(columns))


def _question(columns: Columns) -> str:
    column = str(columns.question())
    asked = columns.value(column)
    if not isinstance(asked, Mapping):
        return plain_columns.question(columns)
    stem = next((asked[key] for key in ("stem", "question", "text") if isinstance(asked.get(key), str)), None)
    if stem is None:
        raise RowError("missing_field", f"{column} is an object without a stem")
    columns.use(column, "question", f"{column}.stem")
    columns.use(column, "options", f"{column}.choices")
    return str(stem)


def shown(question: str, choices: Options) -> str:
    """A question with its options, unless it shows them already."""
    letters = string.ascii_uppercase
    shown_already = sum(
        re.search(rf"\b{letter}\s*[).:]\s*{re.escape(text)}", question, re.IGNORECASE) is not None
        for letter, (_, text) in zip(letters, choices, strict=False)
    )
    if shown_already == len(choices):
        return question
    lines = [f"({letter}) {text}" for letter, (_, text) in zip(letters, choices, strict=False)]
    return "\n".join([question.strip(), "", *lines, "", _ASK])


def _right_column(columns: Columns) -> str | None:
    """The column that says which option is right: a letter outranks an index."""
    if columns.named.answer is not None:
        return columns.named.answer
    reasoning = columns.reasoning()
    there = [c for c in columns.each(_RIGHT, without=(reasoning,)) if not isinstance(columns.value(c), bool)]
    letters = (c for c in there if isinstance(v := columns.value(c), str) and re.fullmatch(r"\s*\(?[A-Z]\)?\.?\s*", v))
    return next(letters, there[0] if there else None)


def _gold(columns: Columns, choices: Options) -> str | None:
    column = _right_column(columns)
    if column is None:
        return None
    value = cells.plain(columns.use(column, "gold"))
    counted = _counted(value)
    if counted is not None and not isinstance(value, str) and columns.named.choices_by != "text":
        at = counted - (columns.named.choices_by == "number")
    else:
        at = _position(cells.gold(value, column), choices, columns.named)
    if not 0 <= at < len(choices):
        raise RowError("wrong_type", f"{column} is {value!r}, and there are {len(choices)} options")
    return string.ascii_uppercase[at]


def _counted(value: Any) -> int | None:
    """A whole number, or text that is one."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit() and len(value.strip()) < 3:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _position(answer: str, choices: Options, named: Named) -> int:
    """Which option an answer names: by its label, its text, its letter in another form, or its index."""
    plain = answer.strip()
    labels = [label.casefold() for label, _ in choices]
    if plain.casefold() in labels:
        return labels.index(plain.casefold())
    texts = [" ".join(text.split()).casefold() for _, text in choices]
    if texts.count(" ".join(plain.split()).casefold()) == 1:
        return texts.index(" ".join(plain.split()).casefold())
    lettered = re.fullmatch(
        r"(?:option|choice|answer|op)?[\s_]*\(?([A-Za-z])(?:\s*[).:].*|\s*)", plain, re.IGNORECASE | re.DOTALL
    )
    if lettered:
        sign = lettered[1].casefold()
        return labels.index(sign) if sign in labels else string.ascii_lowercase.index(sign)
    numbered = re.fullmatch(r"(?:option|choice|answer)[\s_]*(\d{1,2})", plain, re.IGNORECASE)
    if numbered:
        return labels.index(numbered[1]) if numbered[1] in labels else int(numbered[1]) - 1
    counted = _counted(plain)
    return -1 if counted is None else counted - (named.choices_by == "number")


_FEW = 3
"""Rows below which numbers that could be an option's index or its text are taken for the index."""


def choices_by(rows: Iterable[Row], named: Named) -> Literal["index", "number", "text"]:
    """What whole numbers that say which option is right mean in these rows.

    One row does not show it: an index from 0, a number from 1 (none is 0, and one is that of the last option, or the
    options are numbered so), or the text of an option that is a number itself.
    """
    values: list[tuple[int, int, bool, bool]] = []
    for row in rows:
        columns = Columns(row, named)
        there = options(columns)
        column = _right_column(columns) if there else None
        counted = _counted(cells.plain(columns.value(column))) if column else None
        if there is not None and counted is not None:
            pairs = there[0]
            values.append((counted, len(pairs), str(counted) in [text for _, text in pairs], pairs[0][0] == "1"))
    beyond = len(values) >= _FEW or any(value >= count for value, count, _, _ in values)
    if beyond and all(text for _, _, text, _ in values):
        return "text"
    from_one = all(1 <= value <= count for value, count, _, _ in values)
    last = any(value == count or numbered for value, count, _, numbered in values)
    return "number" if from_one and last else "index"


MULTIPLE_CHOICE = Layout("multiple_choice", _fits, _read)
