"""What a layout is, and the parts of a row that all layouts read alike: system prompt, history, reasoning, gold answer.

A new layout is a file in this folder that defines one `Layout`, and one line in `LAYOUTS` of `config.choices`. Its `read` usually consists
of `read_question`, `read_system_prompt`, `read_history`, `read_gold` and `build_solution`, or splits a text itself with
`parse_response`. It reads columns of its own with `read_text` and `read_gold_text`, not with `str(columns.use(...))`,
which makes the answer "None" of a null and "12.0" of the number 12.0. All it needs can be imported from here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cot_unsloth.core import trace
from cot_unsloth.core.types import Message, Part
from cot_unsloth.data.layouts import cells, rendered
from cot_unsloth.data.layouts.column_names import CONTEXT, INSTRUCTION_INPUT, QUESTION, SYSTEM
from cot_unsloth.data.layouts.responses import Solution, final_answer, parse_response
from cot_unsloth.data.layouts.row import Columns, RowError, describe_value, is_empty, is_null_word, normalize_name

__all__ = [
    "Columns",
    "Fields",
    "Layout",
    "RowError",
    "Solution",
    "build_solution",
    "earlier_turn",
    "is_empty",
    "parse_response",
    "read_gold",
    "read_gold_text",
    "read_history",
    "read_question",
    "read_system_prompt",
    "read_text",
    "reasoning_parts",
]


@dataclass(frozen=True)
class Fields:
    """The fields that a layout reads from one row."""

    question: str
    solution: Solution
    """Reasoning, output and gold answer; without reasoning, its trace has no parts."""
    system: str | None = None
    """The row's own system prompt; None takes the run's, an empty string means none."""
    history: tuple[Message, ...] = ()
    """Earlier turns of the conversation, oldest first."""
    history_loss: tuple[bool, ...] = ()
    """For each turn of `history`, whether it may carry loss; empty if the data does not say."""
    task: str = "data"
    """See `Example.task`."""


@dataclass(frozen=True)
class Layout:
    """A shape of rows: how to recognise it, and how to read it."""

    name: str
    """Its name in `--data-format`."""
    matches: Callable[[Columns], bool]
    """Whether a row has this shape. Layouts are asked in the order of the registry, and the first that matches is used.
    Must not raise, and must not call `columns.use`."""
    read: Callable[[Columns], Fields]
    """The fields of a row, each column it reads marked with `columns.use`. Raises RowError if the row cannot be read.

    Also called for rows that `matches` rejects: if the settings name the layout, and, with `auto`, for a row that matches no
    layout in a file whose rows mostly have this one. So it must itself check for everything that it needs.
    """
    is_conversation: bool = False
    """Whether rows are lists of turns; decides what to suggest if reasoning is missing."""


def read_text(columns: Columns, column: str, role: str) -> str:
    """The text of a column, recorded as used for a role; a number is written out, 12.0 as 12.

    Args:
        columns: the row.
        column: the column.
        role: one of `Columns.roles`.

    Raises:
        RowError: `missing_field` if the column is empty or null, `wrong_type` if it holds an object or a truth value.
    """
    _require(columns, column)
    return cells.text(columns.use(column, role), column)


def read_gold_text(columns: Columns, column: str) -> str:
    """The gold answer of a column, whatever its type, as `cells.gold_text` writes it.

    Raises:
        RowError: `missing_field` if the column is empty or null, `wrong_type` if it holds no answer, or several.
    """
    _require(columns, column)
    answer = cells.gold_text(columns.use(column, "gold"), column)
    if is_empty(answer):
        raise RowError("missing_field", f"{column} is empty")
    return answer


def _require(columns: Columns, column: str) -> None:
    if is_empty(cells.to_python(columns.value(column))):
        exists = columns.first_named((normalize_name(column),)) is not None or columns.value(column) is not None
        raise RowError("missing_field", f"{column} is empty" if exists else f"there is no column {column}")


def read_question(columns: Columns) -> str:
    """The question, preceded by the text it is about.

    Raises:
        RowError: the row has no question.
    """
    column = columns.question_column() or columns.first_named(QUESTION)
    if column is None or columns.value(column) is None or is_null_word(columns.value(column)):
        why = f"{column} is empty" if column else f"none of {', '.join(QUESTION[:6])} is among its columns"
        raise RowError("missing_field", f"there is no question: {why}")
    question = trace.strip_opened_thinking(cells.text(columns.use(column, "question"), column))
    if columns.named.question is not None:
        return question
    if normalize_name(column) == "instruction":
        input_column = next(_beside(columns, INSTRUCTION_INPUT, column), None)
        instruction_input = _input_text(columns.use(input_column, "question"), input_column) if input_column else ""
        return question if instruction_input.strip().casefold() in _NO_INPUT else f"{question}\n\n{instruction_input}"
    more = _text_column(columns, ("sent2",), without=column) if normalize_name(column) == "sent1" else None
    if more is not None:  # SWAG: a sentence, and the beginning of the next one
        question = f"{question.strip()} {columns.use(more, 'question')}"
    context = next((c for c in _beside(columns, CONTEXT, column) if _is_context(columns, c, question)), None)
    query = columns.first(("query",), without=(column, context))
    if query is not None and "?" not in question and _asks_more(columns.value(query), question):
        question = f"{question.strip()}\n\n{columns.use(query, 'question').strip()}"  # ProntoQA: facts in `question`, the question itself in `query`
    if context is None:
        return question
    text = cells.passage_text(columns.use(context, "question"))
    columns.roles["question"].sort(key=lambda name: name != context)
    return f"{text}{' ' if normalize_name(context) == 'body' else chr(10) * 2}{question.strip()}"


_NO_INPUT = ("", "<noinput>", "<no input>", "noinput", "none", "null", "n/a")
"""How files in the shape of Self-Instruct write that an instruction has no input."""


def _input_text(value: object, column: str) -> str:
    """What an instruction is applied to: text, a number, passages, or any other value as JSON."""
    value = cells.to_python(value)
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return cells.number_text(value, column)
    passages = cells.passage_text(value) if normalize_name(column) == "context" else ""
    return passages or json.dumps(value, ensure_ascii=False, default=str)


def _is_context(columns: Columns, column: str, asked: str) -> bool:
    """Whether a column holds text that the question is about, and not the whole row, question and answer, as one text."""
    text = " ".join(cells.passage_text(columns.value(column)).split())
    return bool(text) and " ".join(asked.split())[:200] not in text and rendered.turns(text) is None


def _asks_more(query: object, asked: str) -> bool:
    return isinstance(query, str) and ("?" in query or ":" in query) and query not in asked and asked not in query


def _beside(columns: Columns, names: Sequence[str], column: str) -> Iterator[str]:
    return columns.filled(names, without=(column, columns.named.reasoning, columns.named.answer))


def _text_column(columns: Columns, names: Sequence[str], *, without: str) -> str | None:
    candidates = _beside(columns, names, without)
    return next((column for column in candidates if isinstance(columns.value(column), str)), None)


def read_system_prompt(columns: Columns) -> str | None:
    """The row's own system prompt, from a column."""
    named = columns.named.system
    column = named if named is not None else columns.first(SYSTEM)
    if column is None:
        return None
    value = cells.to_python(columns.use(column, "system"))
    if value is None or is_null_word(value):
        return None
    try:
        text = cells.text(cells.structure(value), column)
    except RowError:
        text = cells.text(value, column)
    return text.strip() or None


def read_history(columns: Columns) -> tuple[tuple[Message, ...], tuple[bool, ...]]:
    """Earlier turns in a `history` column: pairs of a question and an answer (Alpaca), or messages.

    Returns:
        The turns, and for each whether it may carry loss; the second is empty if no message says so.

    Raises:
        RowError: an item is neither.
    """
    column = columns.first(("history",))
    if column is None:
        return (), ()
    turns: list[Message] = []
    marks: list[bool | None] = []
    for pair in cells.as_list(columns.use(column, "history"), column):
        if isinstance(pair, Mapping):
            roles = {str(key).casefold(): value for key, value in pair.items()}
            role, content = roles.get("role", roles.get("from")), roles.get("content", roles.get("value"))
            if role not in ("user", "assistant", "human", "gpt") or not isinstance(content, str):
                raise RowError(
                    "wrong_type", f"an item of {column} is not a turn of a user or an assistant: {describe_value(pair)}"
                )
            turns.append(earlier_turn("assistant" if role in ("assistant", "gpt") else "user", content))
            marks.append(cells.may_be_trained(roles))
            continue
        pair = cells.to_python(pair)
        if not isinstance(pair, Sequence) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise RowError(
                "wrong_type", f"an item of {column} is not a pair of a question and an answer: {describe_value(pair)}"
            )
        turns += [earlier_turn("user", pair[0]), earlier_turn("assistant", pair[1])]
        marks += [None, None]
    loss = tuple(turn["role"] == "assistant" and mark is not False for turn, mark in zip(turns, marks, strict=True))
    return tuple(turns), loss if any(mark is not None for mark in marks) else ()


def earlier_turn(role: str, content: str, reasoning: str | None = None) -> Message:
    """An earlier turn of a conversation; an assistant's is rewritten in our tags, whatever tags it came in.

    Raises:
        RowError: its tags do not match, or it is empty.
    """
    if role != "assistant":
        return {"role": role, "content": content}
    try:
        _, output = trace.split_reasoning(content) or ((), content)
        if (stray := trace.stray_closing(output)) is not None:
            raise trace.TraceError("stray_close", f"it holds {stray}, which closes nothing")
        parts = trace.unwrap_thinking(reasoning) if reasoning else ()
        if parts and trace.is_tagged(content):
            inline, content = trace.split_reasoning(content) or ((), content)
            parts = trace.merge_reasoning(inline, parts)
    except trace.TraceError as error:
        raise RowError(error.fault, f"an earlier turn of the assistant: {error.message}") from error
    if not content.strip():
        raise RowError("empty_turn", "an earlier turn of the assistant is empty")
    return {"role": role, "content": trace.assistant_turn(content, "\n".join(part.text for part in parts))}


def reasoning_parts(value: Any, column: str) -> tuple[Part, ...]:
    """Reasoning in a column of its own: text, a list of steps, or such a list written as text.

    Raises:
        RowError: it is none of these.
    """
    value = cells.to_python(value)
    if isinstance(value, str):
        if value.lstrip().startswith(("[{", "['", '["')) and value.rstrip().endswith("]"):
            return reasoning_parts(cells.as_list(value, column), column)
        if value.lstrip().startswith('{"') and isinstance(read := cells.parse_literal(value), Mapping):
            return reasoning_parts(read, column)
        try:
            return trace.unwrap_thinking(value)
        except trace.TraceError as error:
            raise RowError(error.fault, f"{column}: {error.message}") from error
    if value is None:
        return ()
    if isinstance(value, Mapping):
        return (Part("think", _step_text(value, column)),)
    if not isinstance(value, Sequence):
        raise RowError("wrong_type", f"{column} is {describe_value(value)}, neither text nor a list of steps")
    if len(value) == 1 and isinstance(value[0], str):
        return reasoning_parts(value[0], column)
    return tuple(Part("think", text) for item in value if (text := _step_text(item, column)))


_STEP_KEYS = ("thought", "text", "content", "explanation", "reasoning", "description", "step")


def _step_text(item: Any, column: str) -> str:
    """One step: text, or an object with texts, which are joined."""
    if isinstance(item, Mapping):
        by_key = {str(key).casefold(): value for key, value in item.items()}
        texts = [by_key[key] for key in _STEP_KEYS if isinstance(by_key.get(key), str)]
        texts += [value for key, value in by_key.items() if isinstance(value, str) and key not in _STEP_KEYS]
        if not texts:
            raise RowError("wrong_type", f"an item of {column} has no text: {describe_value(item)}")
        return "\n".join(text.strip() for text in texts if text.strip())
    if not isinstance(item, str):
        raise RowError("wrong_type", f"an item of {column} is {describe_value(item)}, not text")
    return item.strip()


def read_gold(columns: Columns, *, beside: str | None) -> str | None:
    """The gold answer in a column of its own; a column that exists and is empty is noted.

    Args:
        columns: the row.
        beside: the column of the response, if there is one.

    Raises:
        RowError: the answer cannot be read.
    """
    column = columns.gold_column(beside=beside)
    if column is not None and _is_null(columns.value(column), columns.value(beside)):
        columns.use(column, "gold")
        columns.notes.append(f"{column} says null, so the row's own output is its gold answer")
        return None
    if column is not None:
        return final_answer(cells.gold_text(columns.use(column, "gold"), column)) or None
    empty = columns.named.answer or columns.first_named(("finalanswer", "answer", "groundtruth", "expectedanswer"))
    if empty is not None and empty != beside and beside is not None:
        columns.notes.append(f"{empty} is empty, so the row's own output is its gold answer")
    return None


def _is_null(gold: object, response: object) -> bool:
    """Whether a gold answer is a null written as text; "none" may also be an answer, and a response then says so."""
    return is_null_word(gold) and response is not None and str(gold).strip().casefold() not in str(response).casefold()


def build_solution(
    columns: Columns,
    response: str | None,
    text: str,
    gold: str | None,
    reasoning_column: str | None,
    *,
    strict: bool = False,
) -> Solution:
    """A response and a reasoning column as one solution; the column counts as used only if its reasoning is.

    Args:
        columns: the row.
        response: the column of the response; None if `text` is the gold answer itself.
        text: the response.
        gold: the gold answer, if a column holds it.
        reasoning_column: the column with the reasoning, if there is one.
        strict: whether to reject a row whose response reasons differently from that column.

    Raises:
        RowError: the response cannot be read.
    """
    reasoning = (
        reasoning_parts(columns.value(reasoning_column), reasoning_column) if reasoning_column is not None else ()
    )
    solution = parse_response(text, gold=gold, reasoning=reasoning, strict=strict)
    if isinstance(answer := columns.value(columns.named.answer or columns.first_named(("answer",))), bool):
        _check_truth(answer, solution.trace.output, response)
    if reasoning_column is not None and reasoning and not solution.ignored_reasoning:
        columns.use(reasoning_column, "reasoning")
    columns.notes.extend(solution.notes)
    return solution


def _check_truth(gold: bool, output: str, response: str | None) -> None:
    """Reject a truth value as the gold answer of an output such as 7: it is then a verdict."""
    words = set(output.casefold().replace(".", " ").replace(",", " ").split())
    if response is not None and not words & {"yes", "no", "true", "false"}:
        raise RowError("wrong_type", f"answer is {gold}, a truth value, beside the output {output[:80]!r}")
