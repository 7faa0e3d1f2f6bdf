"""Rows that `sample` wrote: a model's own attempt in parts, with a mark on the steps that are wrong.

    {"question": "...", "parts": [{"think": "(1) 7 + 5 = 13", "wrong": true}, {"reflect": "7 + 5 is 12. ..."}], "output": "12",
     "answer": "12"}

A part with `wrong` is a step that the model wrote and that a reflection after it corrects. It carries no loss
(`mask_wrong_steps`), as the corrupted steps of a task. A `task` (`countdown`) is the one that drew the problem, and whose rule decides
which answers are right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cot_unsloth.core.types import Example, Part, Trace
from cot_unsloth.data.layouts.base import (
    Columns,
    Fields,
    Layout,
    RowError,
    Solution,
    read_gold_text,
    read_history,
    read_question,
    read_system_prompt,
    read_text,
)
from cot_unsloth.data.layouts.row import describe_value
from cot_unsloth.tasks import TASKS

_KINDS = ("think", "reflect")


def row_of(example: Example) -> dict[str, object]:
    """An example as a row of this layout."""
    row: dict[str, object] = {"question": example.question}
    row["parts"] = [{part.kind: part.text} | ({"wrong": True} if part.injected else {}) for part in example.trace.parts]
    row |= {"output": example.trace.output, "answer": example.answer}
    row |= {"task": example.task} if example.task in TASKS else {}
    if example.system is not None:
        row["system"] = example.system
    if example.history:
        loss = example.history_loss or (None,) * len(example.history)
        row["history"] = [
            dict(turn) | ({} if may is None or turn["role"] != "assistant" else {"weight": int(may)})
            for turn, may in zip(example.history, loss, strict=True)
        ]
    return row


def _is_part(part: object) -> bool:
    return isinstance(part, Mapping) and sum(isinstance(part.get(kind), str) for kind in _KINDS) == 1


def _matches(columns: Columns) -> bool:
    parts = columns.value("parts")
    return isinstance(parts, Sequence) and not isinstance(parts, str) and bool(parts) and all(map(_is_part, parts))


def _read(columns: Columns) -> Fields:
    if not _matches(columns):
        raise RowError("missing_field", f"parts is {describe_value(columns.value('parts'))}, no list of steps")
    question = read_question(columns)
    parts = tuple(map(_part, columns.use("parts", "reasoning")))
    trace = Trace(parts, read_text(columns, "output", "answer"))
    solution = Solution(trace, read_gold_text(columns, "answer"))
    system, (history, loss) = read_system_prompt(columns), read_history(columns)
    return Fields(question, solution, system, history, loss, _task(columns))


def _task(columns: Columns) -> str:
    name = columns.value("task")
    if not isinstance(name, str) or name not in TASKS:
        return "data"
    columns.used.add("task")
    return name


def _part(part: Mapping[str, object]) -> Part:
    kind = next(kind for kind in _KINDS if isinstance(part.get(kind), str))
    return Part("think" if kind == "think" else "reflect", str(part[kind]), injected=part.get("wrong") is True)


OWN_SAMPLES = Layout("own_samples", _matches, _read)
