"""Solutions with a label on every step: Math-Shepherd, and TRL's lists for process supervision.

Math-Shepherd ends each step with `ки` in `input`, and replaces that with `+` or `-` in `label`. A solution is kept only if all its steps are labelled right: those after a wrong step build on it as if it were right.
"""

from __future__ import annotations

import re

from cot_unsloth.data.layouts import cells
from cot_unsloth.data.layouts.base import Fields, Layout, read_gold, read_question, read_system_prompt
from cot_unsloth.data.layouts.responses import Solution, parse_response
from cot_unsloth.data.layouts.row import Columns, RowError

_MARK = "ки"
_FIRST_STEP = re.compile(r"\s*\bStep 1\b\s*:")


def _shepherd(columns: Columns) -> bool:
    text, label = columns.value("input"), columns.value("label")
    return isinstance(text, str) and isinstance(label, str) and _MARK in text and _FIRST_STEP.search(text) is not None


def _lists(columns: Columns) -> tuple[list[str], list[bool]] | None:
    texts, labels = (cells.structure(columns.value(columns.first((name,)))) for name in ("completions", "labels"))
    if not isinstance(texts, list) or not isinstance(labels, list) or not labels or len(texts) != len(labels):
        return None
    well_typed = all(isinstance(text, str) for text in texts) and all(label in (-1, 0, 1) for label in labels)
    return (texts, [label == 1 for label in labels]) if well_typed else None


def _matches(columns: Columns) -> bool:
    return _shepherd(columns) or (columns.question_column() is not None and _lists(columns) is not None)


def _read(columns: Columns) -> Fields:
    lists = _lists(columns)
    if lists is not None:
        asked, (texts, labels) = read_question(columns), lists
        columns.use("completions", "answer")
        columns.use("labels", "chosen by")
        gold = read_gold(columns, beside="completions")
        return Fields(
            asked, _solution("\n".join(text.strip() for text in texts), all(labels), gold), read_system_prompt(columns)
        )
    if not _shepherd(columns):
        raise RowError("missing_field", "there are no completions with labels, and no steps marked ки")
    text, label = str(columns.use("input", "question")), str(columns.use("label", "chosen by"))
    columns.roles["answer"] = ["input"]
    first_step = _FIRST_STEP.search(text)
    assert first_step is not None
    signs = [line.rstrip()[-1:] for line in label.splitlines() if line.strip()]
    steps = text[first_step.start() :].replace(_MARK, "").strip()
    return Fields(
        text[: first_step.start()], _solution("\n".join(map(str.rstrip, steps.splitlines())), "-" not in signs, None)
    )


def _solution(text: str, is_right: bool, gold: str | None) -> Solution:
    if not is_right:
        raise RowError("wrong_response", "one of its steps is labelled wrong")
    return parse_response(text, gold=gold)


RATED_STEPS = Layout("rated_steps", _matches, _read)
