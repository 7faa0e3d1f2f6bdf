"""What every layout reads out of a row, and the readings that layouts share: system prompt, history, response."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cot_unsloth.core import trace
from cot_unsloth.core.types import Message, Part
from cot_unsloth.data.layouts import cells
from cot_unsloth.data.layouts.row import SYSTEM, Columns, RowError, kind
from cot_unsloth.data.layouts.solving import Solved, short_answer, solve


@dataclass(frozen=True)
class Fields:
    """One row, read."""

    question: str
    solved: Solved
    system: str | None = None
    history: tuple[Message, ...] = ()
    history_loss: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Layout:
    """A shape of rows."""

    name: str
    fits: Callable[[Columns], bool]
    """Whether a row has this shape; layouts are asked in the order of the registry, and the first is taken."""
    read: Callable[[Columns], Fields]
    """The row's fields. Raises RowError where the row is not as the layout says."""


def system_prompt(columns: Columns) -> str | None:
    """The row's own system prompt, from a column."""
    named = columns.named.system
    column = named if named is not None else columns.first(SYSTEM)
    if column is None:
        return None
    value = cells.plain(columns.use(column, "system"))
    return cells.text(value, column).strip() or None if value is not None else None


def history_pairs(columns: Columns) -> tuple[Message, ...]:
    """Earlier turns in a `history` column: pairs of a question and an answer (Alpaca), or messages."""
    column = columns.first(("history",))
    if column is None:
        return ()
    turns: list[Message] = []
    for pair in cells.listed(columns.use(column, "history"), column):
        if isinstance(pair, Mapping):
            roles = {str(key).casefold(): value for key, value in pair.items()}
            role, content = roles.get("role", roles.get("from")), roles.get("content", roles.get("value"))
            if role not in ("user", "assistant", "human", "gpt") or not isinstance(content, str):
                raise RowError("wrong_type", f"an item of {column} is no turn of a user or an assistant: {kind(pair)}")
            turns.append(earlier("assistant" if role in ("assistant", "gpt") else "user", content))
            continue
        pair = cells.plain(pair)
        if not isinstance(pair, Sequence) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise RowError("wrong_type", f"an item of {column} is no pair of a question and an answer: {kind(pair)}")
        turns += [earlier("user", pair[0]), earlier("assistant", pair[1])]
    return tuple(turns)


def earlier(role: str, content: str, reasoning: str | None = None) -> Message:
    """An earlier turn of a conversation, an assistant's in our tags whatever the dialect it came in.

    Raises:
        RowError: its tags are not as they should be.
    """
    if role != "assistant":
        return {"role": role, "content": content}
    try:
        trace.split_reasoning(content)
        parts = trace.unwrap_thinking(reasoning) if reasoning else ()
        if parts and trace.is_tagged(content):
            inline, content = trace.split_reasoning(content) or ((), content)
            parts = trace.merge_reasoning(inline, parts)
    except trace.TraceError as error:
        raise RowError(error.fault, f"an earlier turn of the assistant: {error.message}") from error
    if not content.strip():
        raise RowError("empty_turn", "an earlier turn of the assistant is empty")
    return {"role": role, "content": trace.assistant_turn(content, "\n".join(part.text for part in parts))}


def steps(value: Any, column: str) -> tuple[Part, ...]:
    """Reasoning in a cell of its own: text, a list of steps, or such a list written as text.

    Raises:
        RowError: it is none of them.
    """
    value = cells.plain(value)
    if isinstance(value, str):
        if value.lstrip().startswith(("[{", "['", '["')) and value.rstrip().endswith("]"):
            return steps(cells.listed(value, column), column)
        if value.lstrip().startswith('{"') and isinstance(read := cells.literal(value), Mapping):
            return steps(read, column)
        try:
            return trace.unwrap_thinking(value)
        except trace.TraceError as error:
            raise RowError(error.fault, f"{column}: {error.message}") from error
    if value is None:
        return ()
    if isinstance(value, Mapping):
        return (Part("think", _step(value, column)),)
    if not isinstance(value, Sequence):
        raise RowError("wrong_type", f"{column} is {kind(value)}, neither text nor a list of steps")
    if len(value) == 1 and isinstance(value[0], str):
        return steps(value[0], column)
    return tuple(Part("think", text) for item in value if (text := _step(item, column)))


_STEP_KEYS = ("thought", "text", "content", "explanation", "reasoning", "description", "step")


def _step(item: Any, column: str) -> str:
    """One step: text, or an object with its text; of an object with several texts, all of them."""
    if isinstance(item, Mapping):
        by_key = {str(key).casefold(): value for key, value in item.items()}
        texts = [by_key[key] for key in _STEP_KEYS if isinstance(by_key.get(key), str)]
        texts += [value for key, value in by_key.items() if isinstance(value, str) and key not in _STEP_KEYS]
        if not texts:
            raise RowError("wrong_type", f"an item of {column} has no text: {kind(item)}")
        return "\n".join(text.strip() for text in texts if text.strip())
    if not isinstance(item, str):
        raise RowError("wrong_type", f"an item of {column} is {kind(item)}, not text")
    return item.strip()


def gold_answer(columns: Columns, *, beside: str | None) -> str | None:
    """The gold answer in a column of its own; a column that is there and empty is noted.

    Raises:
        RowError: it cannot be read.
    """
    column = columns.gold(beside=beside)
    if column is not None:
        return short_answer(cells.gold(columns.use(column, "gold"), column)) or None
    there = columns.named.answer or columns.present(("finalanswer", "answer", "groundtruth", "expectedanswer"))
    if there is not None and there != beside and beside is not None:
        columns.notes.append(f"{there} is empty, so the row's own output is its gold answer")
    return None


def respond(
    columns: Columns,
    response: str | None,
    text: str,
    gold: str | None,
    reasoning_column: str | None,
    *,
    strict: bool = False,
) -> Solved:
    """Solve a response beside a column that reasons; that column is noted as used only where it was."""
    reasoning = steps(columns.value(reasoning_column), reasoning_column) if reasoning_column is not None else ()
    solved = solve(text, gold=gold, reasoning=reasoning, strict=strict)
    if isinstance(answer := columns.value(columns.named.answer or columns.present(("answer",))), bool):
        _check_truth(answer, solved.trace.output, response)
    if reasoning_column is not None and reasoning and not solved.ignored_field:
        columns.use(reasoning_column, "reasoning")
    columns.notes.extend(solved.notes)
    return solved


def _check_truth(gold: bool, output: str, response: str | None) -> None:
    """A truth value is a gold answer where answers are truth values too, not beside an output such as 7."""
    words = set(output.casefold().replace(".", " ").replace(",", " ").split())
    if response is not None and not words & {"yes", "no", "true", "false"}:
        raise RowError("wrong_type", f"answer is {gold}, a truth value, beside the output {output[:80]!r}")
