"""Rows with a question and its answer in columns: one function that reads them all, and the named layouts that use it.

The layouts differ mainly in what they require of a row (`matches`), hardly in how they read it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cot_unsloth.core import trace
from cot_unsloth.core.types import Part
from cot_unsloth.data.layouts import cells, conversations
from cot_unsloth.data.layouts.base import (
    Fields,
    Layout,
    build_solution,
    read_gold,
    read_history,
    read_question,
    read_system_prompt,
    reasoning_parts,
)
from cot_unsloth.data.layouts.column_names import GOLD, OPTIONS, RESPONSE
from cot_unsloth.data.layouts.responses import (
    Solution,
    first_right,
    marked_answer,
    parse_response,
    shows_work,
    split_at_mark,
)
from cot_unsloth.data.layouts.row import Columns, RowError, normalize_name


def tagged_column(columns: Columns) -> str | None:
    """The column whose text has its reasoning in tags; None if there is none."""
    named, reasoning = columns.named, columns.reasoning_column()
    reasoning_only = reasoning if reasoning is not None and _is_answered_elsewhere(columns, reasoning) else None
    if named.answer is not None:
        names: Sequence[str] = (normalize_name(named.answer),)
    else:
        names = (
            *RESPONSE,
            *GOLD,
            *((normalize_name(reasoning),) if reasoning is not None and reasoning_only is None else ()),
        )
    for column in columns.filled(names, without=(named.question, columns.question_column(), reasoning_only)):
        value = columns.value(column)
        if isinstance(value, str) and trace.is_tagged(value):
            return column
    others = columns.other_response_columns() if named.answer is None and named.reasoning is None else iter(())
    others = (column for column in others if column not in (columns.question_column(), reasoning_only))
    return next((column for column in others if trace.closes_reasoning(str(columns.value(column)))), None)


def _is_answered_elsewhere(columns: Columns, reasoning: str) -> bool:
    """Whether another column holds the answer, so that text after a closing tag in the reasoning is not it.

    If both give the same answer, the reasoning column holds the whole response of a model.
    """
    answer = columns.response_column() or columns.gold_column(beside=None)
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


def read_answer(columns: Columns, *extra_reasoning: str) -> Solution:
    """Reasoning and answer from their columns.

    Args:
        columns: the row.
        extra_reasoning: columns to take the reasoning from if no other holds it.

    Raises:
        RowError: there is no answer, or it cannot be read.
    """
    reasoning = columns.reasoning_column() or columns.first(extra_reasoning)
    response = tagged_column(columns) or columns.response_column()
    if response is not None and response == reasoning:
        reasoning = None
    if response is not None and (solution_column := _swapped_solution(columns, response)) is not None:
        columns.use(response, "gold")
        text = str(columns.use(solution_column, "answer"))
        return build_solution(
            columns, solution_column, text, cells.gold_text(columns.value(response), response), reasoning
        )
    gold = read_gold(columns, beside=response) if response is not None else None
    column = response if response is not None else columns.gold_column(beside=None)
    responses = _responses(columns.value(response))
    if (
        response is not None
        and isinstance(responses, list)
        and len(responses) > 1
        and all(isinstance(t, str) for t in responses)
    ):
        columns.notes.append(f"further items of {response} left out")
        columns.use(response, "answer")
        return build_solution(columns, response, responses[first_right(responses, gold)], gold, reasoning)
    if column is None:
        empty = columns.first_named((*RESPONSE, *GOLD))
        raise RowError("missing_field", f"there is no answer: {f'{empty} is empty' if empty else 'no column holds it'}")
    response_object = _object(columns.value(column))
    if response_object is not None and (fields := Columns(response_object)).reasoning_column() is not None:
        columns.use(column, "answer")
        solution = read_answer(fields)
        return replace(solution, gold=gold or solution.gold)
    text = response_text(columns.use(column, "answer"), column)
    chain = reasoning is not None and normalize_name(reasoning) == "reasoningchains"
    prose = columns.first(("reasoning",)) if chain else None
    if prose is not None and reasoning is not None and not trace.is_tagged(text):
        return _steps_and_reflection(columns, reasoning, prose, text, gold)
    return build_solution(columns, response, text, gold, reasoning)


def _responses(value: object) -> object:
    """Several responses as a list, also if they are written as text; a short list in JSON is itself a response."""
    value, written = cells.to_python(value), cells.structure(value)
    is_list = isinstance(written, list) and all(isinstance(text, str) for text in written)
    return written if is_list and any(len(text.split()) > 3 for text in written) else value


def _object(value: object) -> dict[str, object] | None:
    """A response that is an object, or JSON text of one, with reasoning and answer as its fields; else None."""
    value = cells.to_python(value)
    if isinstance(value, str):
        value = cells.parse_literal(value) if value.lstrip().startswith('{"') else None
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else None


def _swapped_solution(columns: Columns, response: str) -> str | None:
    """The gold answer's column if it holds the worked solution, and the response only its short result; else None."""
    column = columns.gold_column(beside=response)
    short, long = columns.value(response), columns.value(column)
    if not isinstance(short, str) or not isinstance(long, str) or columns.named.answer is not None:
        return None
    contains = len(long) > 3 * len(short) and short.strip() in long and not trace.is_tagged(short)
    return column if contains and shows_work(long, short) and not shows_work(short, "") else None


def response_text(value: Any, column: str) -> str:
    """A cell with a response, as text."""
    value = cells.to_python(value)
    if isinstance(value, str) and not value.lstrip().startswith("["):
        return value
    return cells.gold_text(value, column)


def _steps_and_reflection(columns: Columns, chain: str, prose: str, text: str, gold: str | None) -> Solution:
    """Columns `reasoning_chains` and `reasoning` of reasoning-0.01: steps, and prose that reflects on them."""
    parts = (
        *reasoning_parts(columns.use(chain, "reasoning"), chain),
        Part("reflect", cells.text(columns.use(prose, "reasoning"), prose).strip()),
    )
    return parse_response(text, gold=gold, reasoning=parts)


def _read(columns: Columns, *extra_reasoning: str) -> Fields:
    asked = read_question(columns)
    solution = _with_truth_value(asked, read_answer(columns, *extra_reasoning), columns)
    unread = columns.first(OPTIONS, without=tuple(columns.used))
    if unread is not None and _LETTER.fullmatch(solution.gold) and not _SHOWS_OPTIONS.search(asked):
        raise RowError(
            "broken_list",
            f"the answer is a letter, and the options in {unread} cannot be read; write them as a JSON list",
        )
    return Fields(asked, solution, read_system_prompt(columns), *read_history(columns))


_LETTER = re.compile(r"\(?[A-H]\)?\.?")
_SHOWS_OPTIONS = re.compile(r"\bB\s*[).:]")
_TRUE_OR_FALSE = re.compile(r"\btrue\b.*\bfalse\b", re.IGNORECASE | re.DOTALL)


def _with_truth_value(asked: str, solution: Solution, columns: Columns) -> Solution:
    """The gold answer of a JSON truth value in the words of the question or response: true and false, or yes and no."""
    roles = (*columns.roles.get("gold", ()), *columns.roles.get("answer", ()))
    value = next((v for column in roles if isinstance(v := cells.to_python(columns.value(column)), bool)), None)
    output = solution.trace.output
    if value is None or not (_TRUE_OR_FALSE.search(asked) or re.search(r"\b(true|false)\b", output, re.IGNORECASE)):
        return solution
    gold = "true" if value else "false"
    new_trace = replace(solution.trace, output=gold) if output == solution.gold else solution.trace
    return replace(solution, trace=new_trace, gold=gold)


def _has_question(columns: Columns) -> bool:
    return columns.question_column() is not None


# GSM8K: the answer is the solution, one step a line, ending in a line "#### 72". Its calculator annotations, <<48/2=24>>,
# are removed in `responses`.


def _answer_text(columns: Columns) -> str:
    column = columns.response_column() or columns.gold_column(beside=None)
    value = columns.value(column)
    return value if isinstance(value, str) else ""


def _matches_gsm8k(columns: Columns) -> bool:
    text = _answer_text(columns)
    split = split_at_mark(text) if _has_question(columns) else None
    return split is not None and bool(split.before.strip()) and not trace.is_tagged(text)


def _read_gsm8k(columns: Columns) -> Fields:
    asked, text = read_question(columns), _answer_text(columns)
    split = None if trace.is_tagged(text) else split_at_mark(text)
    if split is None:
        raise RowError("no_answer_mark", "the answer does not end in a line '#### answer'")
    if not split.before.strip():
        raise RowError("empty_thinking", "there are no steps before ####")
    return Fields(asked, read_answer(columns), read_system_prompt(columns), *read_history(columns))


# A column with the reasoning beside one with the answer.


def _matches_reasoning(columns: Columns) -> bool:
    answer = columns.response_column() or columns.gold_column(beside=None)
    separate = _has_question(columns) and columns.reasoning_column() is not None and answer is not None
    return separate and tagged_column(columns) is None


def _read_reasoning(columns: Columns) -> Fields:
    if columns.reasoning_column() is None and tagged_column(columns) is None:
        raise RowError("empty_thinking", "no column of this row holds reasoning")
    return _read(columns)


# One response, its reasoning in tags.


def _matches_response(columns: Columns) -> bool:
    return _has_question(columns) and (columns.response_column() or tagged_column(columns)) is not None


def _read_think(columns: Columns) -> Fields:
    conversation = conversations.conversation_column(columns) is not None
    if not conversation and tagged_column(columns) is None:
        raise RowError("missing_thinking", "the answer has no <think>")
    fields = conversations.MESSAGES.read(columns) if conversation else _read(columns)
    if not fields.solution.trace.parts:
        raise RowError("missing_thinking", "the answer has no <think>")
    return fields


# A worked solution without tags, whose final answer is marked, or known from another column.


def _matches_solution(columns: Columns) -> bool:
    response = columns.response_column()
    value = columns.value(response)
    if not _has_question(columns) or response is None or not isinstance(value, str) or trace.is_tagged(value):
        return False
    return columns.gold_column(beside=response) is not None or marked_answer(value) is not None


# SVAMP: a story and a question about it.


def _matches_svamp(columns: Columns) -> bool:
    return columns.first(("body",)) is not None and columns.first(("question",)) is not None


def _read_svamp(columns: Columns) -> Fields:
    """SVAMP's rows have no reasoning but their equation."""
    return _read(columns, "equation", "formula")


# Alpaca: an instruction, its input, and earlier turns in `history`.


def _matches_alpaca(columns: Columns) -> bool:
    return columns.first(("instruction",)) is not None and columns.first(("output", "response")) is not None


# A question and nothing but its answer: for scoring.


def _matches_answer(columns: Columns) -> bool:
    return _has_question(columns) and columns.gold_column(beside=None) is not None


SVAMP = Layout("svamp", _matches_svamp, _read_svamp)
GSM8K = Layout("gsm8k", _matches_gsm8k, _read_gsm8k)
REASONING_COLUMNS = Layout("reasoning_columns", _matches_reasoning, _read_reasoning)
PROBLEM_SOLUTION = Layout("problem_solution", _matches_solution, _read)
ALPACA = Layout("alpaca", _matches_alpaca, _read)
THINK = Layout("think", lambda columns: False, _read_think)
"""Only used if the settings name it: rows without tags are rejected."""
PROMPT_RESPONSE = Layout("prompt_response", _matches_response, _read)
QUESTION_ANSWER = Layout("question_answer", _matches_answer, _read)
