"""One row as an Example: its layout is detected or given, the row is read, and the result is checked.

Checks that hold for every layout are here: text that can be encoded, no images, no response that the row itself calls
wrong, and a trace that parses back into the same sections.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from cot_unsloth.core import trace
from cot_unsloth.core.types import Example, Message, ThinkingTags, Trace
from cot_unsloth.data.layouts import chatgpt, choices
from cot_unsloth.data.layouts.base import Fields
from cot_unsloth.data.layouts.column_names import MEDIA
from cot_unsloth.data.layouts.registry import BY_NAME, LAYOUTS
from cot_unsloth.data.layouts.row import Columns, NamedColumns, Row, RowError, has_column


@dataclass(frozen=True)
class ReadRow:
    """One row as an Example, and which of its columns were used."""

    example: Example
    roles: dict[str, tuple[str, ...]]
    """Role → columns it was read from."""
    unused: tuple[str, ...]
    """Columns that are not empty and were not used."""
    notes: tuple[str, ...]
    """Anything else that was left out."""
    layout: str
    """Name of the layout it was read with."""


def detect(row: Row, named: NamedColumns = NamedColumns()) -> str | None:  # noqa: B008
    """The name of the first layout that a row matches; None if there is none.

    >>> detect({"question": "?", "answer": "1 + 1 = 2\\n#### 2"})
    'gsm8k'
    >>> detect({"Instruction": "?", "Complex_CoT": "...", "output": "2"})
    'reasoning_columns'
    """
    columns = Columns(row, named)
    return next((layout.name for layout in LAYOUTS if layout.matches(columns)), None)


def unwrap_conversation(row: object) -> object:
    """A bare list of turns, or a conversation of a ChatGPT export, as a row with `messages`; any other row unchanged.

    >>> unwrap_conversation([{"role": "user", "content": "?"}])
    {'messages': [{'role': 'user', 'content': '?'}]}
    """
    if isinstance(row, list) and row and all(isinstance(t, Mapping) and {"role", "from"} & t.keys() for t in row):
        return {"messages": row}
    return chatgpt.as_messages(row) if isinstance(row, dict) and chatgpt.is_export(row) else row


def question_and_answer_columns(row: Row, named: NamedColumns) -> tuple[str | None, str | None]:
    """The columns of question and answer, for messages about rows of no known layout."""
    columns = Columns(row, named)
    return columns.question_column(), columns.response_column() or columns.gold_column(beside=None)


def explain_missing_reasoning(row: Row, layout: str, named: NamedColumns, reasoning_columns: Iterable[str]) -> str:
    """Why a row has no reasoning, and what to do about it: a cause, a colon, and the advice.

    Args:
        row: the row.
        layout: the layout it was read with.
        named: columns that the settings name.
        reasoning_columns: columns with the reasoning of other rows in the file.
    """
    if (column := Columns(row, named).empty_reasoning_column()) is not None:
        return f"its {column} column is empty: fill it in, or leave the row out"
    if BY_NAME[layout].is_conversation:
        return (
            "it holds an answer and no reasoning: put the reasoning into the assistant's turn, "
            f"between {trace.COMMON_TAGS} before the answer or as its reasoning_content"
        )
    other = next((column for column in reasoning_columns if not has_column(row, column)), None)
    if other is not None:
        return f"it has no {other}, which holds the reasoning of other rows: add it, or leave the row out"
    return "it holds an answer and no reasoning: name the column of the reasoning with --reasoning-column"


def with_choice_numbering(rows: Iterable[Row], named: NamedColumns) -> NamedColumns:
    """The named columns, with the meaning of a whole number as the right choice, decided from the first rows of a file."""
    return replace(named, choice_numbering=choices.detect_numbering(rows, named))


def is_choice_numbering_open(rows: Iterable[Row], named: NamedColumns) -> bool:
    """Whether these rows do not show what a whole number as the right choice means, so that more are needed."""
    return choices.is_numbering_open(rows, named)


def read(
    row: Row,
    layout: str,
    where: str,
    named: NamedColumns = NamedColumns(),  # noqa: B008
    *,
    strictly: bool = True,
    thinking_tags: ThinkingTags = "thinking",
) -> ReadRow:
    """One row as an Example; without reasoning, its trace has no parts.

    Args:
        row: the row.
        layout: the name of its layout.
        where: its position, `file:line`.
        named: columns that the settings name.
        strictly: whether to read the row with this layout even if it does not match; else the layout it matches is used.
        thinking_tags: the tags that are trained: a system prompt that asks for others is noted.

    Raises:
        RowError: the row cannot be read.
    """
    if not _encodable(row):
        raise RowError("bad_unicode", "it holds half of a surrogate pair")
    columns = Columns(row, named)
    media = columns.first(MEDIA)
    if media is not None and not isinstance(columns.value(media), bool):
        raise RowError("image_part", f"{media} holds an image, audio or video, which cannot be trained on")
    selected = BY_NAME[layout]
    if not strictly and not selected.matches(columns):
        detected = detect(row, named)
        selected = BY_NAME[detected] if detected is not None else selected
    columns = Columns(row, named)
    fields = _with_plain_line_ends(selected.read(columns), columns)
    _check_verdict(columns, fields)
    _check_has_answer(columns, fields)
    if selected.name != layout:
        why = "" if fields.solution.trace.parts else "without reasoning, "
        columns.notes.append(f"{why}read as {selected.name}")
    if fields.system and trace.asks_for_other_tags(fields.system, thinking_tags):
        columns.notes.append("system prompts ask for tags other than those that are trained")
    return ReadRow(
        _example(fields, where),
        {role: tuple(names) for role, names in columns.roles.items()},
        tuple(columns.unused()),
        tuple(columns.notes),
        selected.name,
    )


def _with_plain_line_ends(fields: Fields, columns: Columns) -> Fields:
    """The fields with line ends as chats and prompts have them; a model would learn to write the carriage returns of Windows."""
    solution, history = fields.solution, fields.history
    texts = [fields.question, fields.system or "", solution.trace.output, solution.gold]
    texts += [*(part.text for part in solution.trace.parts), *(turn["content"] for turn in history)]
    if not any("\r\n" in text for text in texts):
        return fields
    columns.notes.append("line ends of Windows read as \\n")
    parts = tuple(replace(part, text=_plain(part.text)) for part in solution.trace.parts)
    solution = replace(solution, trace=Trace(parts, _plain(solution.trace.output)), gold=_plain(solution.gold))
    turns = tuple(_turn(turn) for turn in history)
    system = None if fields.system is None else _plain(fields.system)
    return replace(fields, question=_plain(fields.question), solution=solution, system=system, history=turns)


def _turn(turn: Message) -> Message:
    return {**turn, "content": _plain(turn["content"])}


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n")


def example(row: Row, layout: str, where: str) -> Example:
    """One row as an Example, read with the given layout.

    Raises:
        RowError: as in `read`.
    """
    return read(row, layout, where).example


def _check_verdict(columns: Columns, fields: Fields) -> None:
    """Reject a response that its own row calls wrong.

    A column `label`, or one with a word, is not a verdict if the answer is a truth value: it is the gold answer then.
    """
    column = columns.negative_verdict() if fields.solution.trace.parts else None
    if column is None or (_states_truth(fields.solution.trace.output) and _may_be_truth(column, columns.value(column))):
        return
    raise RowError("wrong_response", f"{column} ({columns.value(column)!r}) says that its response is wrong")


_NO_ANSWER = ("proof", "not found", "notfound")
"""What NuminaMath-1.5 writes in place of an answer, for proofs and where none was found."""
_ASKS_FOR_PROOF = re.compile(r"\b(?:prov(?:e|ing)|proofs?|show|demonstrate|verify|establish|justify)\b", re.IGNORECASE)


def _check_has_answer(columns: Columns, fields: Fields) -> None:
    """Reject a row whose answer column says that there is no answer: a model that learns to say so would be scored as right."""
    gold = fields.solution.gold.strip().casefold()
    if gold not in _NO_ANSWER or not columns.roles.keys() & {"gold", "answer"}:
        return
    types = (str(value).casefold() for name, value in columns.row.items() if str(name).casefold().endswith("type"))
    if gold != "proof" or _ASKS_FOR_PROOF.search(fields.question) or "proof" in types:
        raise RowError("no_answer", f"its answer is {gold!r}, which says that it has none")


def _may_be_truth(column: str, value: object) -> bool:
    return column.casefold() == "label" or (isinstance(value, str) and column.casefold() == "correct")


def _states_truth(output: str) -> bool:
    return not {"yes", "no", "true", "false"}.isdisjoint(re.findall(r"\w+", output.casefold()))


def _example(fields: Fields, where: str) -> Example:
    solution, question = fields.solution, fields.question.strip()
    if not question:
        raise RowError("empty_question", "the question is empty")
    parsed = trace.parse(trace.render(solution.trace))
    if parsed.trace is None and (solution.trace.parts or parsed.faults != ("empty_thinking",)):
        inside = next((tag for part in solution.trace.parts if (tag := trace.find_tag(part.text))), None)
        location = (
            f"the reasoning holds {inside}" if inside else f"the answer holds {trace.find_tag(solution.trace.output)}"
        )
        raise RowError("misnested", f"{location}; take the tag out")
    return Example(
        id=question_id(question, fields.history),
        question=question,
        trace=solution.trace,
        answer=solution.gold,
        task=fields.task,
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
    """A stable id of a question and the turns before it; spacing, case and how accents are composed do not count.

    >>> question_id("How  many?") == question_id("how many? ")
    True
    """
    turns = "\n".join([*(turn["content"] for turn in history), question])
    # Many tokenizers (Qwen's) compose accents, so that both spellings of é are one question to the model.
    text = unicodedata.normalize("NFC", " ".join(turns.split()).casefold())
    return "q-" + hashlib.sha256(text.encode()).hexdigest()[:12]
