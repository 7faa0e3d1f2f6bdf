"""Layouts of rows: which columns hold the question, the reasoning and the answer.

A layout says whether a row has its shape and reads it; a row that does not fit raises RowError with a short reason,
which becomes its line among the rejects. To add one, write it in a file here and put it into
LAYOUTS. Nothing of a row is dropped silently: what a layout did not use is named in the announcement.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cot_unsloth.core import trace
from cot_unsloth.core.types import Example, Message, ThinkingTags
from cot_unsloth.data.layouts import chatgpt, choices, columns, conversations, generations, prm800k, rated_steps
from cot_unsloth.data.layouts.fields import Fields, Layout
from cot_unsloth.data.layouts.row import MEDIA, Columns, Named, Row, RowError, has, is_empty, kind

__all__ = [
    "LAYOUTS",
    "Layout",
    "Named",
    "Reading",
    "RowError",
    "as_object",
    "asking_and_answering",
    "detect",
    "example",
    "has",
    "is_empty",
    "kind",
    "no_reasoning",
    "question_id",
    "read",
    "settled",
]

_REGISTRY: tuple[Layout, ...] = (
    prm800k.PRM800K,
    rated_steps.RATED_STEPS,
    conversations.MESSAGES,
    conversations.SHAREGPT,
    conversations.PROMPT_COMPLETION,
    choices.MULTIPLE_CHOICE,
    columns.SVAMP,
    generations.GENERATIONS,
    columns.GSM8K,
    columns.REASONING_COLUMNS,
    columns.PROBLEM_SOLUTION,
    columns.ALPACA,
    columns.THINK,
    columns.PROMPT_RESPONSE,
    columns.QUESTION_ANSWER,
)
"""In the order they are asked whether a row is theirs: the more a layout demands, the earlier."""
LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in _REGISTRY}


@dataclass(frozen=True)
class Reading:
    """One row as an Example, and what of it was used."""

    example: Example
    roles: dict[str, tuple[str, ...]]
    """Each role, and the columns that it was read from."""
    unused: tuple[str, ...]
    """Columns that hold something, and were used for nothing."""
    notes: tuple[str, ...]
    """What was left out and is no column."""
    layout: str
    """The layout that it was read in."""


def detect(row: Row, named: Named = Named()) -> str | None:  # noqa: B008
    """The layout that a row suggests, or None.

    >>> detect({"question": "?", "answer": "1 + 1 = 2\\n#### 2"})
    'gsm8k'
    >>> detect({"Instruction": "?", "Complex_CoT": "...", "output": "2"})
    'reasoning_columns'
    """
    seen = Columns(row, named)
    return next((layout.name for layout in _REGISTRY if layout.fits(seen)), None)


def as_object(row: Any) -> Any:
    """A row that is a conversation in a shape of its own as one with a list of messages; any other as it is.

    >>> as_object([{"role": "user", "content": "?"}])
    {'messages': [{'role': 'user', 'content': '?'}]}
    """
    if isinstance(row, list) and row and all(isinstance(t, Mapping) and {"role", "from"} & t.keys() for t in row):
        return {"messages": row}
    return chatgpt.as_messages(row) if isinstance(row, dict) and chatgpt.is_export(row) else row


def asking_and_answering(row: Row, named: Named) -> tuple[str | None, str | None]:
    """The columns that ask and that answer, for messages about rows of no known layout."""
    columns = Columns(row, named)
    return columns.question(), columns.response() or columns.gold(beside=None)


_CONVERSATIONS = (conversations.MESSAGES.name, conversations.SHAREGPT.name, conversations.PROMPT_COMPLETION.name)


def no_reasoning(row: Row, layout: str, named: Named, elsewhere: Iterable[str]) -> str:
    """Why a row that was read has no reasoning, and what to do: a cause, a colon, and the way out.

    Args:
        row: the row.
        layout: the layout that it was read in.
        named: columns that the settings name.
        elsewhere: columns that other rows of the file reason in.
    """
    if (column := Columns(row, named).empty_reasoning()) is not None:
        return f"its {column} column is empty: fill it in, or leave the row out"
    if layout in _CONVERSATIONS:
        place = f"between {trace.COMMON_TAGS}"
        return (
            "it holds an answer and no reasoning: put the reasoning into the assistant's turn, "
            f"{place} before the answer or as its reasoning_content"
        )
    other = next((column for column in elsewhere if not has(row, column)), None)
    if other is not None:
        return f"it has no {other}, where other rows reason: add it, or leave the row out"
    return "it holds an answer and no reasoning: name the column that reasons with --reasoning-column"


def settled(rows: Iterable[Row], named: Named) -> Named:
    """What the first rows of a file settle for all: what numbers of choices mean."""
    return replace(named, choices_by=choices.choices_by(rows, named))


def read(
    row: Row,
    layout: str,
    where: str,
    named: Named = Named(),  # noqa: B008
    *,
    strictly: bool = True,
    thinking_tags: ThinkingTags = "thinking",
) -> Reading:
    """One row as an Example; of a row without reasoning, the trace has no parts.

    Args:
        row: the row.
        layout: the name of its layout.
        where: where it stands.
        named: columns that the settings name.
        strictly: whether a row of another shape is one of this layout all the same, as where the settings name it.
        thinking_tags: what is trained, so that a system prompt that asks for other tags is noted.

    Raises:
        RowError: the row does not fit the layout.
    """
    if not _encodable(row):
        raise RowError("bad_unicode", "it holds half of a surrogate pair")
    seen = Columns(row, named)
    media = seen.first(MEDIA)
    if media is not None and not isinstance(seen.value(media), bool):
        raise RowError("image_part", f"{media} holds an image, audio or video, which cannot be trained on")
    chosen = LAYOUTS[layout]
    if not strictly and not chosen.fits(seen):
        other = detect(row, named)
        chosen = LAYOUTS[other] if other is not None else chosen
    seen = Columns(row, named)
    fields = chosen.read(seen)
    _check_verdict(seen, fields)
    if chosen.name != layout:
        seen.notes.append(f"read as {chosen.name}")
    if fields.system and trace.asks_for_other_tags(fields.system, thinking_tags):
        seen.notes.append("system prompts ask for tags other than those that are trained")
    made = _example(fields, where)
    return Reading(
        made, {k: tuple(v) for k, v in seen.roles.items()}, tuple(seen.unused()), tuple(seen.notes), chosen.name
    )


def example(row: Row, layout: str, where: str) -> Example:
    """One row as an Example.

    Raises:
        RowError: as `read`.
    """
    return read(row, layout, where).example


def _check_verdict(columns: Columns, fields: Fields) -> None:
    """No response that its own row calls wrong is learnt."""
    column = columns.found_wrong() if fields.solved.trace.parts else None
    a_truth_value = fields.solved.trace.output.strip(" .").casefold() in ("yes", "no", "true", "false")
    if column is not None and not (a_truth_value and column.casefold() == "label"):
        raise RowError("wrong_response", f"{column} ({columns.value(column)!r}) says that its response is wrong")


def _example(fields: Fields, where: str) -> Example:
    solved, question = fields.solved, fields.question.strip()
    if not question:
        raise RowError("empty_question", "the question is empty")
    written = trace.parse(trace.render(solved.trace))
    if written.trace is None and (solved.trace.parts or written.faults != ("empty_thinking",)):
        inside = next((tag for part in solved.trace.parts if (tag := trace.find_tag(part.text))), None)
        where_it_is = (
            f"the reasoning holds {inside}" if inside else f"the answer holds {trace.find_tag(solved.trace.output)}"
        )
        raise RowError("misnested", f"{where_it_is}; take the tag out")
    return Example(
        id=question_id(question, fields.history),
        question=question,
        trace=solved.trace,
        answer=solved.gold,
        where=where,
        system=fields.system,
        history=fields.history,
        history_loss=fields.history_loss,
    )


def _encodable(row: Row) -> bool:
    try:
        json.dumps(row, ensure_ascii=False, default=str).encode()
    except (UnicodeEncodeError, RecursionError):
        return False
    return True


def question_id(question: str, history: Sequence[Message] = ()) -> str:
    """A stable id: the same question after the same turns has the same, whatever its spacing and case.

    >>> question_id("How  many?") == question_id("how many? ")
    True
    """
    turns = "\n".join([*(turn["content"] for turn in history), question])
    return "q-" + hashlib.sha256(" ".join(turns.split()).casefold().encode()).hexdigest()[:12]
