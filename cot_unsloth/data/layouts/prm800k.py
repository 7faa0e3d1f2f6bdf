"""prm800k: steps of a solution, each with a rating by people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cot_unsloth.core.types import Part, Trace
from cot_unsloth.data.layouts import cells
from cot_unsloth.data.layouts.fields import Fields, Layout
from cot_unsloth.data.layouts.row import Columns, RowError, kind
from cot_unsloth.data.layouts.solving import Solved


def _fits(columns: Columns) -> bool:
    asked, label = columns.value("question"), columns.value("label")
    return isinstance(asked, Mapping) and "problem" in asked and isinstance(label, Mapping) and "steps" in label


def _read(columns: Columns) -> Fields:
    """The steps rated 1; the gold answer is the problem's, whatever the labelled solution came to."""
    if not _fits(columns):
        raise RowError("missing_field", "there is no question.problem, or no label.steps")
    asked = columns.use("question", "question", "question.problem")
    columns.use("label", "reasoning", "label.steps")
    columns.roles["answer"] = ["question.ground_truth_answer"]
    answer = cells.gold(asked.get("ground_truth_answer"), "question.ground_truth_answer")
    written = list(columns.value("label")["steps"] or ())
    parts = tuple(Part("think", text) for step in written if (text := _rated_step(step)))
    if len(parts) < len(written):
        columns.notes.append("steps that are not rated 1 left out")
    ended = columns.value("label").get("finish_reason")
    if ended in ("found_error", "give_up", "bad_problem"):
        columns.notes.append(f"steps that do not reach the answer (finish_reason {ended})")
    return Fields(cells.text(asked["problem"], "question.problem"), Solved(Trace(parts, answer), answer))


def _rated_step(step: Any) -> str:
    """The chosen completion of a step, or else the first, that is rated 1; or a step that a labeller wrote."""
    if not isinstance(step, Mapping):
        raise RowError("wrong_type", f"a step of label.steps is {kind(step)}, not an object")
    completions = [item for item in step.get("completions") or () if isinstance(item, Mapping)]
    chosen = step.get("chosen_completion")
    first = [completions[chosen]] if isinstance(chosen, int) and 0 <= chosen < len(completions) else []
    for completion in (*first, *completions):
        if completion.get("rating") == 1 and isinstance(completion.get("text"), str):
            return str(completion["text"]).strip()
    human = step.get("human_completion")
    text = human.get("text") if isinstance(human, Mapping) else human
    return text.strip() if isinstance(text, str) and chosen is None else ""


PRM800K = Layout("prm800k", _fits, _read)
