"""Several responses to one question, with or without a verdict on each (OpenR1-Math, natural_reasoning)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cot_unsloth.data.layouts import cells
from cot_unsloth.data.layouts import columns as plain_columns
from cot_unsloth.data.layouts.fields import Fields, Layout, gold_answer, history_pairs, respond, system_prompt
from cot_unsloth.data.layouts.row import Columns, RowError, kind

_SEVERAL = ("generations", "responses", "completions", "samples", "candidates")
_CORRECT = ("correctnessmathverify", "correctnessllama", "correctness", "iscorrect")


def _fits(columns: Columns) -> bool:
    return (
        columns.question() is not None
        and _several(columns) is not None
        and plain_columns.tagged_column(columns) is None
    )


def _several(columns: Columns) -> str | None:
    there = (column for column in columns.each(_SEVERAL) if not isinstance(columns.value(column), str))
    return next((column for column in there if isinstance(cells.plain(columns.value(column)), list | tuple)), None)


def _read(columns: Columns) -> Fields:
    """The first response that the row says is right; the first whole one where it does not say."""
    asked, column = plain_columns.question(columns), _several(columns)
    if column is None:
        raise RowError("missing_field", f"there is none of {', '.join(_SEVERAL)}")
    texts = [_generation(item, column) for item in cells.plain(columns.use(column, "answer"))]
    text = texts[_chosen(columns, len(texts))]
    if len(texts) > 1:
        columns.notes.append(f"further items of {column} left out")
    gold = gold_answer(columns, beside=column)
    return Fields(asked, respond(columns, column, text, gold, None), system_prompt(columns), history_pairs(columns))


def _generation(item: Any, column: str) -> str:
    if isinstance(item, Mapping):
        item = next(
            (item[key] for key in ("response", "text", "content", "generation", "completion") if item.get(key)), ""
        )
    if not isinstance(item, str):
        raise RowError("wrong_type", f"an item of {column} is {kind(item)}, not text")
    return item


def _chosen(columns: Columns, count: int) -> int:
    for names, judged in ((_CORRECT, True), (("isreasoningcomplete",), False)):
        column = columns.first(names)
        verdicts = cells.plain(columns.value(column)) if column else None
        if not isinstance(verdicts, list) or len(verdicts) != count or any(v is None for v in verdicts):
            continue
        columns.use(str(column), "chosen by")
        if any(verdicts):
            return verdicts.index(True)
        if judged:
            raise RowError("no_correct_generation", f"{column} says that no response of this row is right")
    return 0


GENERATIONS = Layout("generations", _fits, _read)
