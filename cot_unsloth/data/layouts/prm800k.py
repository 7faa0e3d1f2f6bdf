"""PRM800K (OpenAI): solutions step by step, each step rated -1, 0 or 1 by people (H. Lightman and others, 2023)."""

from __future__ import annotations

from collections.abc import Mapping

from cot_unsloth.core.types import Part, Trace
from cot_unsloth.data.layouts import cells
from cot_unsloth.data.layouts.base import Fields, Layout
from cot_unsloth.data.layouts.responses import Solution
from cot_unsloth.data.layouts.row import Columns, RowError, describe_value


def _matches(columns: Columns) -> bool:
    problem, label = columns.value("question"), columns.value("label")
    return isinstance(problem, Mapping) and "problem" in problem and isinstance(label, Mapping) and "steps" in label


def _read(columns: Columns) -> Fields:
    """The steps rated 1. The gold answer is the problem's, even if the rated solution ends in another.

    Labelling stopped at the first step rated -1, so many solutions do not reach an answer (`finish_reason`).
    """
    if not _matches(columns):
        raise RowError("missing_field", "there is no question.problem, or no label.steps")
    problem = columns.use("question", "question", "question.problem")
    columns.use("label", "reasoning", "label.steps")
    columns.roles["answer"] = ["question.ground_truth_answer"]
    answer = cells.gold_text(problem.get("ground_truth_answer"), "question.ground_truth_answer")
    steps = list(columns.value("label")["steps"] or ())
    parts = tuple(Part("think", text) for step in steps if (text := _rated_step(step)))
    if len(parts) < len(steps):
        columns.notes.append("steps that are not rated 1 left out")
    finish_reason = columns.value("label").get("finish_reason")
    if finish_reason in ("found_error", "give_up", "bad_problem"):
        columns.notes.append(f"steps that do not reach the answer (finish_reason {finish_reason})")
    return Fields(cells.text(problem["problem"], "question.problem"), Solution(Trace(parts, answer), answer))


def _rated_step(step: object) -> str:
    """The text of a step: the chosen completion if rated 1, else the first rated 1, else the one a labeller wrote."""
    if not isinstance(step, Mapping):
        raise RowError("wrong_type", f"a step of label.steps is {describe_value(step)}, not an object")
    completions = [item for item in step.get("completions") or () if isinstance(item, Mapping)]
    chosen = step.get("chosen_completion")
    first = [completions[chosen]] if isinstance(chosen, int) and 0 <= chosen < len(completions) else []
    for completion in (*first, *completions):
        if completion.get("rating") == 1 and isinstance(completion.get("text"), str):
            return str(completion["text"]).strip()
    human = step.get("human_completion")
    text = human.get("text") if isinstance(human, Mapping) else human
    return text.strip() if isinstance(text, str) and chosen is None else ""


PRM800K = Layout("prm800k", _matches, _read)
