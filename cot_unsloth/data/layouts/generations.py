"""Several responses to one question, with or without a verdict on each (OpenR1-Math, natural_reasoning).

OpenR1-Math has a verdict by math_verify for every generation, and one by a model for those it could not parse. Its column
`answer` is the gold answer; `solution` was written by a person, and is not trained on.
"""

from __future__ import annotations

from collections.abc import Mapping

from cot_unsloth.data.layouts import cells, single_turn
from cot_unsloth.data.layouts.base import (
    Fields,
    Layout,
    build_solution,
    read_gold,
    read_history,
    read_question,
    read_system_prompt,
)
from cot_unsloth.data.layouts.responses import first_right
from cot_unsloth.data.layouts.row import Columns, RowError, describe_value, verdict

_RESPONSE_LISTS = ("generations", "responses", "completions", "samples", "candidates")
_VERDICT_LISTS = (
    "correctnessmathverify",
    "correctnessllama",
    "correctness",
    "iscorrect",
    "rewards",
    "scores",
    "passed",
)


def _matches(columns: Columns) -> bool:
    return (
        columns.question_column() is not None
        and _response_list(columns) is not None
        and single_turn.tagged_column(columns) is None
    )


def _response_list(columns: Columns) -> str | None:
    lists = columns.filled(_RESPONSE_LISTS)
    return next((column for column in lists if isinstance(cells.structure(columns.value(column)), list | tuple)), None)


def _read(columns: Columns) -> Fields:
    """The first response with a verdict of right; without verdicts, the first complete one that ends in the gold answer."""
    asked, column = read_question(columns), _response_list(columns)
    if column is None:
        raise RowError("missing_field", f"there is none of {', '.join(_RESPONSE_LISTS)}")
    texts = [_generation(item, column) for item in cells.structure(columns.use(column, "answer"))]
    gold = read_gold(columns, beside=column)
    selected = _select(columns, len(texts))
    if selected is None:
        complete = _complete(columns, texts)
        text = complete[first_right(complete, gold)]
    else:
        text = texts[selected]
    if len(texts) > 1:
        columns.notes.append(f"further items of {column} left out")
    return Fields(
        asked, build_solution(columns, column, text, gold, None), read_system_prompt(columns), *read_history(columns)
    )


def _generation(item: object, column: str) -> str:
    if isinstance(item, Mapping):
        item = next(
            (item[key] for key in ("response", "text", "content", "generation", "completion") if item.get(key)), ""
        )
    if not isinstance(item, str):
        raise RowError("wrong_type", f"an item of {column} is {describe_value(item)}, not text")
    return item


def _select(columns: Columns, count: int) -> int | None:
    """The first response with a verdict of right, or not of wrong; None if no verdict is known.

    Raises:
        RowError: all verdicts are wrong, or there are more or fewer verdicts than responses.
    """
    wrong: set[int] = set()
    # _VERDICT_LISTS begins with math-verify's verdict, which is more reliable than a model's.
    for name in _VERDICT_LISTS:
        column, verdicts = _verdicts(columns, name, count)
        if True in verdicts:
            return verdicts.index(True)
        wrong.update(at for at, right in enumerate(verdicts) if right is False)
        if len(wrong) == count:
            raise RowError("no_correct_generation", f"{column} says that no response of this row is right")
    return next((at for at in range(count) if at not in wrong), 0) if wrong else None


def _complete(columns: Columns, texts: list[str]) -> list[str]:
    """The responses that are called complete; all of them if none is."""
    _, verdicts = _verdicts(columns, "isreasoningcomplete", len(texts))
    return [text for text, is_complete in zip(texts, verdicts, strict=False) if is_complete] or texts


def _verdicts(columns: Columns, name: str, count: int) -> tuple[str, list[bool | None]]:
    """A column and its verdicts on the responses; no verdicts if it holds none."""
    column = columns.first((name,))
    listed = cells.structure(columns.value(column)) if column else None
    if column is None or not isinstance(listed, list):
        return "", []
    if len(listed) != count:
        raise RowError("wrong_type", f"{column} has {len(listed)} verdicts, and there are {count} responses")
    verdicts = [verdict(value) for value in listed]
    if set(verdicts) == {None}:
        return column, []
    columns.use(column, "chosen by")
    return column, verdicts


GENERATIONS = Layout("generations", _matches, _read)
