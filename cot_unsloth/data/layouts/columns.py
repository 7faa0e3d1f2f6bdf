"""Rows whose question, reasoning and answer stand in columns: one reading for all, and the layouts that it has names for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from cot_unsloth.core import trace
from cot_unsloth.core.types import Part
from cot_unsloth.data.layouts import cells, conversations, rendered
from cot_unsloth.data.layouts.fields import (
    Fields,
    Layout,
    gold_answer,
    history_pairs,
    respond,
    steps,
    system_prompt,
)
from cot_unsloth.data.layouts.row import ABOUT, BEFORE, GOLD, OPTIONS, QUESTION, RESPONSE, Columns, RowError, normal
from cot_unsloth.data.layouts.solving import Solved, gsm8k_mark, is_worked, marked_answer, solve


def question(columns: Columns) -> str:
    """The question, with the text that it is about.

    Raises:
        RowError: there is none.
    """
    column = columns.question() or columns.present(QUESTION)
    if column is None or columns.value(column) is None:
        why = f"{column} is empty" if column else f"none of {', '.join(QUESTION[:6])} is among its columns"
        raise RowError("missing_field", f"there is no question: {why}")
    asked = cells.text(columns.use(column, "question"), column)
    if columns.named.question is not None:
        return asked
    if normal(column) == "instruction":
        about = _text_column(columns, ABOUT, without=column)
        return f"{asked}\n\n{columns.use(about, 'question')}" if about else asked
    more = columns.first(("sent2",)) if normal(column) == "sent1" else None
    if more is not None:  # SWAG: a sentence, and how the next one begins
        asked = f"{asked.strip()} {columns.use(more, 'question')}"
    before = next((c for c in _beside(columns, BEFORE, column) if _is_about(columns, c, asked)), None)
    query = columns.first(("query",), without=(column, before))
    if query is not None and "?" not in asked and _asks_more(columns.value(query), asked):
        asked = (
            f"{asked.strip()}\n\n{columns.use(query, 'question').strip()}"  # ProntoQA: what is known, and what is asked
        )
    if before is None:
        return asked
    text = cells.passage(columns.use(before, "question"))
    columns.roles["question"].sort(key=lambda name: name != before)
    return f"{text}{' ' if normal(before) == 'body' else chr(10) * 2}{asked.strip()}"


def _is_about(columns: Columns, column: str, asked: str) -> bool:
    """Whether a column holds text that the question is about, and not the row written out, question and answer and all."""
    text = " ".join(cells.passage(columns.value(column)).split())
    return bool(text) and " ".join(asked.split())[:200] not in text and rendered.turns(text) is None


def _asks_more(query: object, asked: str) -> bool:
    return isinstance(query, str) and ("?" in query or ":" in query) and query not in asked and asked not in query


def _beside(columns: Columns, names: Sequence[str], column: str) -> Iterator[str]:
    return columns.each(names, without=(column, columns.named.reasoning, columns.named.answer))


def _text_column(columns: Columns, names: Sequence[str], *, without: str) -> str | None:
    there = _beside(columns, names, without)
    return next((column for column in there if isinstance(columns.value(column), str)), None)


def tagged_column(columns: Columns) -> str | None:
    """The column whose text has its reasoning in tags."""
    named, reasoning = columns.named, columns.reasoning()
    reasons_only = reasoning if reasoning is not None and _is_answered_apart(columns, reasoning) else None
    if named.answer is not None:
        names: Sequence[str] = (normal(named.answer),)
    else:
        names = (*RESPONSE, *GOLD, *((normal(reasoning),) if reasoning is not None and reasons_only is None else ()))
    for column in columns.each(names, without=(named.question, columns.question(), reasons_only)):
        value = columns.value(column)
        if isinstance(value, str) and trace.is_tagged(value):
            return column
    others = columns.tagged_elsewhere() if named.answer is None and named.reasoning is None else iter(())
    others = (column for column in others if column not in (columns.question(), reasons_only))
    return next((column for column in others if trace.closes_reasoning(str(columns.value(column)))), None)


def _is_answered_apart(columns: Columns, reasoning: str) -> bool:
    """Whether another column answers, so that what follows a closing tag in the reasoning is no answer.

    Where both give the same answer, the reasoning column holds a model's whole response.
    """
    answer = columns.response() or columns.gold(beside=None)
    if answer is None or answer == reasoning:
        return False
    text, gold = columns.value(reasoning), columns.value(answer)
    try:
        _, output = (trace.split_reasoning(text) if isinstance(text, str) else None) or ((), "")
    except trace.TraceError:
        return True
    return not output or not _same(output, gold)


def _same(output: str, gold: object) -> bool:
    return isinstance(gold, str | int | float) and " ".join(output.split()).casefold() == str(gold).strip().casefold()


def answering(columns: Columns, *extra_reasoning: str) -> Solved:
    """Reasoning and answer out of their columns.

    Args:
        columns: the row.
        extra_reasoning: columns that reason where no other does.

    Raises:
        RowError: there is no answer, or it cannot be read.
    """
    reasoning = columns.reasoning() or columns.first(extra_reasoning)
    response = tagged_column(columns) or columns.response()
    if response is not None and response == reasoning:
        reasoning = None
    if response is not None and (worked := _worked_answer(columns, response)) is not None:
        columns.use(response, "gold")
        text = str(columns.use(worked, "answer"))
        return respond(columns, worked, text, cells.gold(columns.value(response), response), reasoning)
    gold = gold_answer(columns, beside=response) if response is not None else None
    column = response if response is not None else columns.gold(beside=None)
    worked = cells.plain(columns.value(response))
    if (
        response is not None
        and isinstance(worked, list)
        and len(worked) > 1
        and all(isinstance(t, str) for t in worked)
    ):
        columns.notes.append(f"further items of {response} left out")
        columns.use(response, "answer")
        return respond(columns, response, worked[0], gold, reasoning)
    if column is None:
        empty = columns.present((*RESPONSE, *GOLD))
        raise RowError("missing_field", f"there is no answer: {f'{empty} is empty' if empty else 'no column holds it'}")
    inside = _object(columns.value(column))
    if inside is not None and (there := Columns(inside)).reasoning() is not None:
        columns.use(column, "answer")
        solved = answering(there)
        return replace(solved, gold=gold or solved.gold)
    text = spoken(columns.use(column, "answer"), column)
    chain = reasoning is not None and normal(reasoning) == "reasoningchains"
    prose = columns.first(("reasoning",)) if chain else None
    if prose is not None and reasoning is not None and not trace.is_tagged(text):
        return _chain_and_prose(columns, reasoning, prose, text, gold)
    return respond(columns, response, text, gold, reasoning)


def _object(value: object) -> dict[str, object] | None:
    """A response that is an object, or JSON text of one: its reasoning and answer stand in its fields."""
    value = cells.plain(value)
    if isinstance(value, str):
        value = cells.literal(value) if value.lstrip().startswith('{"') else None
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else None


def _worked_answer(columns: Columns, response: str) -> str | None:
    """The column of the gold answer, where the two are the other way round: it works out what the response gives."""
    column = columns.gold(beside=response)
    short, long = columns.value(response), columns.value(column)
    if not isinstance(short, str) or not isinstance(long, str) or columns.named.answer is not None:
        return None
    contains = len(long) > 3 * len(short) and short.strip() in long and not trace.is_tagged(short)
    return column if contains and is_worked(long, short) and not is_worked(short, "") else None


def spoken(value: Any, column: str) -> str:
    """A cell that answers, as text."""
    value = cells.plain(value)
    if isinstance(value, str) and not value.lstrip().startswith("["):
        return value
    return cells.gold(value, column)


def _chain_and_prose(columns: Columns, chain: str, prose: str, text: str, gold: str | None) -> Solved:
    """Columns `reasoning_chains` and `reasoning` (reasoning-0.01): the prose looks back on the steps."""
    parts = (
        *steps(columns.use(chain, "reasoning"), chain),
        Part("reflect", cells.text(columns.use(prose, "reasoning"), prose).strip()),
    )
    return solve(text, gold=gold, reasoning=parts)


def _read(columns: Columns, *extra_reasoning: str) -> Fields:
    asked = question(columns)
    solved = _truth(asked, answering(columns, *extra_reasoning), columns)
    unread = columns.first(OPTIONS, without=tuple(columns.used))
    if unread is not None and _LETTER.fullmatch(solved.gold) and not _SHOWS_OPTIONS.search(asked):
        raise RowError(
            "broken_list",
            f"the answer is a letter, and the options in {unread} cannot be read; write them as a JSON list",
        )
    return Fields(asked, solved, system_prompt(columns), history_pairs(columns))


_LETTER = re.compile(r"\(?[A-H]\)?\.?")
_SHOWS_OPTIONS = re.compile(r"\bB\s*[).:]")
_TRUE_OR_FALSE = re.compile(r"\btrue\b.*\bfalse\b", re.IGNORECASE | re.DOTALL)


def _truth(asked: str, solved: Solved, columns: Columns) -> Solved:
    """A truth value in the words that the question or the response uses: true and false, or else yes and no."""
    roles = (*columns.roles.get("gold", ()), *columns.roles.get("answer", ()))
    value = next((v for column in roles if isinstance(v := cells.plain(columns.value(column)), bool)), None)
    output = solved.trace.output
    if value is None or not (_TRUE_OR_FALSE.search(asked) or re.search(r"\b(true|false)\b", output, re.IGNORECASE)):
        return solved
    gold = "true" if value else "false"
    written = replace(solved.trace, output=gold) if output == solved.gold else solved.trace
    return replace(solved, trace=written, gold=gold)


def _asks(columns: Columns) -> bool:
    return columns.question() is not None


# GSM8K: `question`, and steps that end in `#### answer`.


def _answer_text(columns: Columns) -> str:
    column = columns.response() or columns.gold(beside=None)
    value = columns.value(column)
    return value if isinstance(value, str) else ""


def _fits_gsm8k(columns: Columns) -> bool:
    text = _answer_text(columns)
    marked = gsm8k_mark(text) if _asks(columns) else None
    return marked is not None and bool(marked.before.strip()) and not trace.is_tagged(text)


def _read_gsm8k(columns: Columns) -> Fields:
    asked, text = question(columns), _answer_text(columns)
    marked = None if trace.is_tagged(text) else gsm8k_mark(text)
    if marked is None:
        raise RowError("no_answer_mark", "the answer does not end in a line '#### answer'")
    if not marked.before.strip():
        raise RowError("empty_thinking", "there are no steps before ####")
    return Fields(asked, answering(columns), system_prompt(columns), history_pairs(columns))


# A column that reasons beside one that answers.


def _fits_reasoning(columns: Columns) -> bool:
    answers = columns.response() or columns.gold(beside=None)
    apart = _asks(columns) and columns.reasoning() is not None and answers is not None
    return apart and tagged_column(columns) is None


def _read_reasoning(columns: Columns) -> Fields:
    if columns.reasoning() is None and tagged_column(columns) is None:
        raise RowError("empty_thinking", "no column of this row reasons")
    return _read(columns)


# One response, its reasoning in tags.


def _fits_response(columns: Columns) -> bool:
    return _asks(columns) and (columns.response() or tagged_column(columns)) is not None


def _read_think(columns: Columns) -> Fields:
    conversation = conversations.list_column(columns) is not None
    if not conversation and tagged_column(columns) is None:
        raise RowError("missing_thinking", "the answer has no <think>")
    fields = conversations.MESSAGES.read(columns) if conversation else _read(columns)
    if not fields.solved.trace.parts:
        raise RowError("missing_thinking", "the answer has no <think>")
    return fields


# A worked solution without tags, whose answer is known.


def _fits_solution(columns: Columns) -> bool:
    response = columns.response()
    value = columns.value(response)
    if not _asks(columns) or response is None or not isinstance(value, str) or trace.is_tagged(value):
        return False
    return columns.gold(beside=response) is not None or marked_answer(value) is not None


# SVAMP: a story and a question about it.


def _fits_svamp(columns: Columns) -> bool:
    return columns.first(("body",)) is not None and columns.first(("question",)) is not None


def _read_svamp(columns: Columns) -> Fields:
    """The equation is all the reasoning that such a row has."""
    return _read(columns, "equation", "formula")


# Alpaca: an instruction, its input, and earlier turns in `history`.


def _fits_alpaca(columns: Columns) -> bool:
    return columns.first(("instruction",)) is not None and columns.first(("output", "response")) is not None


# A question and the bare answer.


def _fits_answer(columns: Columns) -> bool:
    return _asks(columns) and columns.gold(beside=None) is not None


SVAMP = Layout("svamp", _fits_svamp, _read_svamp)
GSM8K = Layout("gsm8k", _fits_gsm8k, _read_gsm8k)
REASONING_COLUMNS = Layout("reasoning_columns", _fits_reasoning, _read_reasoning)
PROBLEM_SOLUTION = Layout("problem_solution", _fits_solution, _read)
ALPACA = Layout("alpaca", _fits_alpaca, _read)
THINK = Layout("think", lambda columns: False, _read_think)
"""Only where it is named: rows without tags are rejected."""
PROMPT_RESPONSE = Layout("prompt_response", _fits_response, _read)
QUESTION_ANSWER = Layout("question_answer", _fits_answer, _read)
