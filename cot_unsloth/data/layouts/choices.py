"""Multiple choice: a question, its options in one of many shapes, and which of them is right.

The options are added to the question with letters, and the gold answer is the letter.
"""

from __future__ import annotations

import math
import random
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from cot_unsloth.data.layouts import cells, single_turn
from cot_unsloth.data.layouts.base import (
    Fields,
    Layout,
    build_solution,
    read_history,
    read_question,
    read_system_prompt,
)
from cot_unsloth.data.layouts.column_names import OPTIONS, RESPONSE
from cot_unsloth.data.layouts.row import Columns, NamedColumns, Row, RowError, is_empty

Options = list[tuple[str, str]]
"""Pairs of a label, as in the row, and the option's text."""

_OPTION_PREFIXES = ("option", "op", "choice", "answer", "sol", "opt", "ending", "qop", "")
"""Prefixes of columns with one option each, before a letter or number: option_a, opa, choice1, A."""
_WRONG_PREFIXES = ("incorrectanswer", "distractor", "wronganswer")
_RIGHT_COLUMNS = (
    "answerkey", "answerletter", "correctletter", "answeridx", "answerindex", "correctoption", "correctidx",
    "correctindex", "correctchoice", "correct", "correctanswer", "cop", "goldindex", "gold", "answer", "label", "target",
    "finalanswer", "groundtruth", "expectedanswer", "ans", "qans",
)  # fmt: skip
_INSTRUCTION = "Answer with the letter of the right choice."
_LETTER = re.compile(r"\s*\(?[A-Z]\)?\.?\s*")
_LETTERED = re.compile(r"\s*\(?([A-Za-z]|\d{1,2})\s*[).:]\s*(?P<text>.*)", re.DOTALL)
_INLINE = re.compile(r"(?:^|[\s,;|]+)\(?([A-Za-z])\s*[).:]\s+|(?:^|[\s,;|]+)\(?([A-Z])\)")


def read_options(columns: Columns) -> tuple[Options, tuple[str, ...]] | None:
    """The options of a row, and their columns; None if it has none."""
    for column in columns.filled(OPTIONS):
        options = _options_in_cell(cells.to_python(columns.value(column)))
        if options:
            return options, (column,)
    answers = columns.first(("answers",))  # ReClor: `answers` are the options, `label` the index
    if answers is not None and _whole_number(cells.to_python(columns.value(columns.first(("label",))))) is not None:
        options = _options_in_cell(cells.structure(columns.value(answers)))
        if options:
            return options, (answers,)
    asked = columns.value(columns.question_column())
    if isinstance(asked, Mapping):
        nested = next((asked[key] for key in ("choices", "options") if key in asked), None)
        options = _options_in_cell(cells.to_python(nested))
        return (options, ()) if options else None
    return _options_in_columns(columns)


def _options_in_columns(columns: Columns) -> tuple[Options, tuple[str, ...]] | None:
    for prefix in _OPTION_PREFIXES:
        for signs in (string.ascii_lowercase, tuple(map(str, range(26))), tuple(map(str, range(1, 27)))):
            names = []
            for sign in signs:
                column = columns.first((f"{prefix}{sign}",))
                if column is None:
                    break
                names.append(column)
            if len(names) >= 2:
                texts = [_scalar(columns.value(name)) for name in names]
                if all(text is not None for text in texts) and (prefix or not _are_operands(columns, texts)):
                    letters = string.ascii_uppercase if signs[0] == "0" else signs
                    return [(sign.upper(), str(text)) for sign, text in zip(letters, texts, strict=False)], tuple(names)
    return _options_with_distractors(columns)


def _are_operands(columns: Columns, texts: Sequence[str | None]) -> bool:
    """Whether columns named a, b, ... hold the numbers of a problem: then its answer is no letter."""
    right = columns.value(_right_column(columns))
    numbers = all(re.fullmatch(r"[-+]?\d+(?:\.\d+)?", text or "") for text in texts)
    return numbers and not (isinstance(right, str) and _LETTER.fullmatch(right))


def _options_with_distractors(columns: Columns) -> tuple[Options, tuple[str, ...]] | None:
    """The right answer and wrong ones, each in a column, in an order drawn with the question as seed: equal in every run."""
    right = columns.first(("correctanswer", "bestanswer", "answer"))
    wrong = [
        c for prefix in _WRONG_PREFIXES for n in range(1, 10) if (c := columns.first((f"{prefix}{n}",))) is not None
    ]
    question = columns.value(columns.question_column())
    if right is None or len(wrong) < 1 or not isinstance(question, str):
        return None
    texts = [_scalar(columns.value(name)) for name in (right, *wrong)]
    if any(text is None for text in texts):
        return None
    options = [str(text) for text in texts]
    random.Random(question.strip()).shuffle(options)
    return list(zip(string.ascii_uppercase, options, strict=False)), (*wrong,)


def _scalar(value: Any) -> str | None:
    value = cells.to_python(value)
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return str(value)
    is_number = isinstance(value, int | float) and math.isfinite(value)  # NaN is a gap in a column of numbers
    return cells.number_text(value, "an option") if is_number else None


def _options_in_cell(value: Any) -> Options | None:
    if isinstance(value, str):
        parsed = cells.parse_literal(value) if value.lstrip().startswith(("[", "{", "array(")) else None
        return _options_in_cell(parsed) if parsed is not None else _options_in_text(value)
    if isinstance(value, Mapping):
        return _options_in_object(value)
    if not isinstance(value, Sequence) or len(value) < 2:
        return None
    if all(isinstance(item, Mapping) for item in value):
        pairs = [_option_in_item(item) for item in value]
        return [pair for pair in pairs if pair] if all(pairs) else None
    texts = [_scalar(item) for item in value]
    return _without_letters([str(text) for text in texts]) if all(text is not None for text in texts) else None


def _options_in_object(value: Mapping[Any, Any]) -> Options | None:
    by_name = {str(key).casefold(): cells.to_python(item) for key, item in value.items()}
    texts, labels = by_name.get("text"), by_name.get("label", by_name.get("labels"))
    if isinstance(texts, Sequence) and not isinstance(texts, str):
        shown = [text for item in texts if (text := _scalar(item)) is not None]
        if len(shown) < max(2, len(texts)):
            return None
        signs = [str(label) for label in labels] if isinstance(labels, Sequence) else list(string.ascii_uppercase)
        return list(zip(signs, shown, strict=False))
    pairs = [(str(key).strip(" ()."), _scalar(item)) for key, item in value.items() if not is_empty(item)]
    if len(pairs) < 2 or any(text is None or len(key) > 2 for key, text in pairs):
        return None  # some other object, such as settings
    return [(key, str(text)) for key, text in pairs]


def _option_in_item(item: Mapping[Any, Any]) -> tuple[str, str] | None:
    by_name = {str(key).casefold(): value for key, value in item.items()}
    label = next((by_name[key] for key in ("label", "key", "letter", "id", "option") if key in by_name), None)
    text = next((by_name[key] for key in ("text", "value", "content", "para", "answer") if key in by_name), None)
    shown = _scalar(text)
    return (str(label), shown) if label is not None and shown is not None else None


def _without_letters(texts: list[str]) -> Options:
    """Options from texts that may already have letters or numbers, such as `A)32400`."""
    matches = [_LETTERED.fullmatch(text) for text in texts]
    signs = [match[1].upper() if match else "" for match in matches]
    for expected in (list(string.ascii_uppercase), [str(n) for n in range(1, 27)]):
        if signs == expected[: len(texts)]:
            return [(sign, match["text"].strip()) for sign, match in zip(signs, matches, strict=True) if match]
    return list(zip(string.ascii_uppercase, texts, strict=False))


def _options_in_text(value: str) -> Options | None:
    """Options in one text: a line each, or as in MathQA, `a ) 38 , b ) 27`."""
    lines = [line.strip() for line in value.splitlines() if line.strip()]
    if len(lines) >= 2:
        return _without_letters(lines)
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


def _matches(columns: Columns) -> bool:
    if columns.question_column() is None or columns.named.messages is not None:
        return False
    return read_options(columns) is not None and (_right_column(columns) is not None or _tagged(columns) is not None)


def _tagged(columns: Columns) -> str | None:
    column = single_turn.tagged_column(columns)
    answered = columns.gold_column(beside=None) is None and _right_column(columns) is not None
    return None if answered and column == columns.reasoning_column() else column


def _read(columns: Columns) -> Fields:
    found_options = read_options(columns)
    if found_options is None:
        raise RowError("missing_field", "this question has no options")
    choices, option_columns = found_options
    if len(choices) > len(string.ascii_uppercase):
        raise RowError("wrong_type", f"there are {len(choices)} options")
    asked = _question(columns)
    for column in option_columns:
        columns.use(column, "options")
    letter = _gold(columns, choices)
    right = columns.roles.get("gold", [""])[0]
    response = _tagged(columns) or columns.first(RESPONSE, without=(right, *option_columns))
    reasoning = columns.reasoning_column()
    if response is not None and response == reasoning:
        reasoning = None
    if response is None and letter is None:
        raise RowError("missing_field", "no column says which option is right")
    if response is None:
        columns.roles["answer"] = columns.roles.pop("gold")
    text = str(letter) if response is None else single_turn.response_text(columns.use(response, "answer"), response)
    solution = build_solution(columns, None, text, letter, reasoning)
    return Fields(with_options(asked, choices), solution, read_system_prompt(columns), *read_history(columns))


def _question(columns: Columns) -> str:
    column = str(columns.question_column())
    asked = columns.value(column)
    if not isinstance(asked, Mapping):
        return read_question(columns)
    stem = next((asked[key] for key in ("stem", "question", "text") if isinstance(asked.get(key), str)), None)
    if stem is None:
        raise RowError("missing_field", f"{column} is an object without a stem")
    columns.use(column, "question", f"{column}.stem")
    columns.use(column, "options", f"{column}.choices")
    return str(stem)


def with_options(question: str, choices: Options) -> str:
    """A question with its options, unless it contains them already."""
    letters = string.ascii_uppercase
    shown = sum(
        re.search(rf"\b{letter}\s*[).:]\s*{re.escape(text)}", question, re.IGNORECASE) is not None
        for letter, (_, text) in zip(letters, choices, strict=False)
    )
    if shown == len(choices):
        return question
    lines = [f"({letter}) {text}" for letter, (_, text) in zip(letters, choices, strict=False)]
    return "\n".join([question.strip(), "", *lines, "", _INSTRUCTION])


def _right_column(columns: Columns) -> str | None:
    """The column that says which option is right; one with a letter is preferred to one with an index."""
    if columns.named.answer is not None:
        return columns.named.answer
    reasoning = columns.reasoning_column()
    candidates = [
        # `correct: true` judges the row; it is not the position of an option, although bool is an int in Python.
        c
        for c in columns.filled(_RIGHT_COLUMNS, without=(reasoning,))
        if not isinstance(columns.value(c), bool)
    ]
    letters = (c for c in candidates if isinstance(v := columns.value(c), str) and _LETTER.fullmatch(v))
    return next(letters, candidates[0] if candidates else None)


def _gold(columns: Columns, choices: Options) -> str | None:
    column = _right_column(columns)
    if column is None:
        return None
    value = _single(columns.use(column, "gold"))
    number = _whole_number(value)
    if number is not None and not isinstance(value, str) and columns.named.choice_numbering != "text":
        index = number - (columns.named.choice_numbering == "number")
    else:
        index = _position(cells.gold_text(value, column), choices, columns.named)
    if not 0 <= index < len(choices):
        raise RowError("wrong_type", f"{column} is {value!r}, and there are {len(choices)} options")
    return string.ascii_uppercase[index]


def _single(value: Any) -> Any:
    """The only item of a list, as in the `gold: [2]` of AGIEval; any other value unchanged."""
    value = cells.to_python(value)
    return cells.to_python(value[0]) if isinstance(value, list) and len(value) == 1 else value


def _whole_number(value: Any) -> int | None:
    """A whole number, or text of one with at most two digits; else None."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit() and len(value.strip()) < 3:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _position(answer: str, choices: Options, named: NamedColumns) -> int:
    """Index of the option that an answer names by label, text, letter in some form, or number; -1 if by none."""
    plain = answer.strip()
    labels = [label.casefold() for label, _ in choices]
    texts = [" ".join(text.split()).casefold() for _, text in choices]
    # Options of numbers may be numbered too: "4" is option 4, unless all rows answer with the text of an option.
    in_order = (texts, labels) if named.choice_numbering == "text" else (labels, texts)
    number = _whole_number(plain)
    # All cells of a CSV file are text: "2" is then what the number 2 is in JSON, unless all rows answer with texts.
    position = -1 if number is None else number - (named.choice_numbering == "number")
    in_range = named.choice_numbering != "text" and 0 <= position < len(choices)
    for names in in_order:
        if names is texts and in_range:
            return position
        if names.count(" ".join(plain.split()).casefold()) == 1:
            return names.index(" ".join(plain.split()).casefold())
    lettered = re.fullmatch(
        r"(?:option|choice|answer|op)?[\s_]*\(?([A-Za-z])(?:\s*[).:].*|\s*)", plain, re.IGNORECASE | re.DOTALL
    )
    if lettered:
        sign = lettered[1].casefold()
        return labels.index(sign) if sign in labels else string.ascii_lowercase.index(sign)
    numbered = re.fullmatch(r"(?:option|choice|answer)[\s_]*(\d{1,2})", plain, re.IGNORECASE)
    if numbered:
        return labels.index(numbered[1]) if numbered[1] in labels else int(numbered[1]) - 1
    return position


_MIN_ROWS = 3
"""With fewer rows, a number that may be an option's index or its text is taken as the index."""


def detect_numbering(rows: Iterable[Row], named: NamedColumns) -> Literal["index", "number", "text"]:
    """What whole numbers that say which option is right mean in these rows.

    They may be an index from 0, a number from 1 (no row says 0, and some row names the last option that way, or the
    options themselves are numbered from 1), or the text of an option that is a number.
    """
    values = _whole_numbers(rows, named)
    beyond = len(values) >= _MIN_ROWS or any(value >= count for value, count, _, _ in values)
    if beyond and (
        all(text for _, _, text, _ in values) or any(text and value > count for value, count, text, _ in values)
    ):
        return "text"
    from_one = all(1 <= value <= count for value, count, _, _ in values)
    last = any(value == count or numbered for value, count, _, numbered in values)
    return "number" if from_one and last else "index"


def is_numbering_open(rows: Iterable[Row], named: NamedColumns) -> bool:
    """Whether these rows do not show if choices are numbered from 0 or 1: none names the first as 0, or the last as their count.

    Such rows are common in files sorted by the answer.
    """
    values = _whole_numbers(rows, named)
    if not values or all(text for _, _, text, _ in values):
        return False
    return all(1 <= value < count and not numbered for value, count, _, numbered in values)


def _whole_numbers(rows: Iterable[Row], named: NamedColumns) -> list[tuple[int, int, bool, bool]]:
    """For each row whose right choice is a whole number, what `detect_numbering` decides by.

    That number, how many choices there are, whether one of them is this number, and whether they are numbered from 1.
    """
    values: list[tuple[int, int, bool, bool]] = []
    for row in rows:
        columns = Columns(row, named)
        options = read_options(columns)
        column = _right_column(columns) if options else None
        number = _whole_number(_single(columns.value(column))) if column else None
        if options is not None and number is not None:
            pairs = options[0]
            values.append((number, len(pairs), str(number) in [text for _, text in pairs], pairs[0][0] == "1"))
    return values


MULTIPLE_CHOICE = Layout("multiple_choice", _matches, _read)
