"""Solutions whose steps carry a label each: Math-Shepherd (`ки` in the text, `+` and `-` in the label) and TRL's lists.

A solution is learnt only where every step is labelled right: it goes on from its wrong steps as if they were right.
"""

from __future__ import annotations

import re

from cot_unsloth.data.layouts import cells
from cot_unsloth.data.layouts import columns as plain_columns
from cot_unsloth.data.layouts.fields import Fields, Layout, gold_answer, system_prompt
from cot_unsloth.data.layouts.row import Columns, RowError
from cot_unsloth.data.layouts.solving import Solved, solve

_MARK = "ки"
_FIRST_STEP = re.compile(r"\s*\bStep 1\b\s*:")


def _shepherd(columns: Columns) -> bool:
    text, label = columns.value("input"), columns.value("label")
    return isinstance(text, str) and isinstance(label, str) and _MARK in text and _FIRST_STEP.search(text) is not None


def _lists(columns: Columns) -> tuple[list[str], list[bool]] | None:
    texts, labels = (cells.plain(columns.value(columns.first((name,)))) for name in ("completions", "labels"))
    if not isinstance(texts, list) or not isinstance(labels, list) or not labels or len(texts) != len(labels):
        return None
    whole = all(isinstance(text, str) for text in texts) and all(isinstance(label, bool) for label in labels)
    return (texts, labels) if whole else None


def _fits(columns: Columns) -> bool:
    return _shepherd(columns) or (columns.question() is not None and _lists(columns) is not None)


def _read(columns: Columns) -> Fields:
    rated = _lists(columns)
    if rated is not None:
        asked, (texts, labels) = plain_columns.question(columns), rated
        columns.use("completions", "answer")
        columns.use("labels", "chosen by")
        gold = gold_answer(columns, beside="completions")
        return Fields(
            asked, _solved("\n".join(text.strip() for text in texts), all(labels), gold), system_prompt(columns)
        )
    if not _shepherd(columns):
        raise RowError("missing_field", "there are no completions with labels, and no steps marked ки")
    text, label = str(columns.use("input", "question")), str(columns.use("label", "chosen by"))
    columns.roles["answer"] = ["input"]
    begins = _FIRST_STEP.search(text)
    assert begins is not None
    signs = [line.rstrip()[-1:] for line in label.splitlines() if line.strip()]
    steps = text[begins.start() :].replace(_MARK, "").strip()
    return Fields(
        text[: begins.start()], _solved("\n".join(map(str.rstrip, steps.splitlines())), "-" not in signs, None)
    )


def _solved(text: str, is_right: bool, gold: str | None) -> Solved:
    if not is_right:
        raise RowError("wrong_response", "a step of it is labelled wrong")
    return solve(text, gold=gold)


RATED_STEPS = Layout("rated_steps", _fits, _read)
