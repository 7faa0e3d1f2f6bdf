"""Layouts of rows: which columns hold the question, the reasoning and the answer.

One function a layout, row → Example; a row that does not fit raises RowError with a short reason,
which becomes its line in the ledger of rejects. Every section of a row that holds reasoning goes
into the trace: nothing of the source is dropped silently.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from cot_unsloth import trace
from cot_unsloth.values import Example, Message, Part, Trace

Row = Mapping[str, Any]


class RowError(Exception):
    """A row that does not fit its layout."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


QUESTION_KEYS = ("prompt", "question", "instruction", "problem", "query", "input")
"""In order of preference."""
RESPONSE_KEYS = ("response", "completion", "output", "solution", "answer")


def detect(row: Row) -> str | None:
    """The layout that a row suggests, or None.

    >>> detect({"question": "?", "answer": "1 + 1 = 2\\n#### 2"})
    'gsm8k'
    >>> detect({"instruction": "?", "reasoning": "...", "output": "2"})
    'reasoning_columns'
    """
    names = set(row)
    if "messages" in names:
        return "messages"
    if names & {"reasoning_chains", "reasoning"} and "output" in names and names & set(QUESTION_KEYS):
        return "reasoning_columns"
    if {"question", "answer"} <= names and "####" in str(row["answer"]):
        return "gsm8k"
    if names & set(QUESTION_KEYS) and names & set(RESPONSE_KEYS):
        return "prompt_response"
    return None


def example(row: Row, layout: str, where: str) -> Example:
    """One row as an Example.

    Raises:
        RowError: the row does not fit the layout.
    """
    if not _encodable(row):
        raise RowError("bad_unicode", "it holds half of a surrogate pair")
    question, solved, extra = LAYOUTS[layout](row)
    if not question.strip():
        raise RowError("empty_question", "the question is empty")
    if trace.parse(trace.render(solved)).trace is None:
        raise RowError("misnested", "the reasoning or the answer holds tags of its own")
    return Example(
        id=question_id(question, extra.get("history", ())),
        question=question.strip(),
        trace=solved,
        answer=_gold(row, layout) or solved.output,
        where=where,
        **extra,
    )


def _encodable(row: Row) -> bool:
    try:
        json.dumps(row, ensure_ascii=False, default=str).encode()
    except (UnicodeEncodeError, RecursionError):
        return False
    return True


def _gold(row: Row, layout: str) -> str | None:
    """An answer in a column of its own, beside a response that reasons its way to it."""
    if layout not in ("messages", "prompt_response", "think"):
        return None
    if layout != "messages" and "messages" not in row and _response_key(row) == "answer":
        return None
    answer = row.get("answer")
    if isinstance(answer, bool) or (isinstance(answer, float) and not math.isfinite(answer)):
        raise RowError("wrong_type", f"answer is {answer!r}")
    return str(answer).strip() if isinstance(answer, str | int | float) else None


def question_id(question: str, history: Sequence[Message] = ()) -> str:
    """A stable id: the same question after the same turns has the same, whatever its spacing and case.

    >>> question_id("How  many?") == question_id("how many? ")
    True
    """
    said = "\n".join([*(turn["content"] for turn in history), question])
    return "q-" + hashlib.sha256(" ".join(said.split()).casefold().encode()).hexdigest()[:12]


Solved = tuple[str, Trace, dict[str, Any]]
"""Question, trace, and further fields of the Example."""

_GSM8K_MARK = re.compile(r"<<[^<>]*>>")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")


def _gsm8k(row: Row) -> Solved:
    """Steps a line, calculator marks `<<...>>`, then `#### answer` (openai/grade-school-math)."""
    question, answer = _text(row, "question"), _text(row, "answer")
    before, mark, final = answer.rpartition("####")
    if not mark or not final.strip():
        raise RowError("no_answer_mark", "there is no '#### answer'")
    steps = trace.steps_of(_GSM8K_MARK.sub("", before))
    if not steps:
        raise RowError("empty_thinking", "there are no steps before ####")
    return question, Trace(steps, _THOUSANDS.sub("", final.strip())), {}


def _prompt_response(row: Row) -> Solved:
    """A question and one answer with inline tags (ours, or `<think>`)."""
    solved = _read_trace(_text(row, _response_key(row)))
    extra = {"system": _text(row, "system")} if row.get("system") else {}
    return _question(row), solved, extra


def _response_key(row: Row) -> str:
    """The column that reasons; a bare answer often stands beside it."""
    tagged = [key for key in RESPONSE_KEYS if isinstance(row.get(key), str) and trace.has_tags(row[key])]
    return tagged[0] if tagged else _first_key(row, RESPONSE_KEYS)


def _question(row: Row) -> str:
    """The question, with the `input` that an `instruction` is about, if there is one."""
    question = _text(row, _first_key(row, QUESTION_KEYS))
    about = row.get("input")
    if row.get("instruction") == question and isinstance(about, str) and about.strip():
        return f"{question}\n\n{about}"
    return question


def _think(row: Row) -> Solved:
    """As prompt_response or messages, but a row whose answer has no `<think>` is rejected."""
    if "messages" in row:
        turns = [_turn(item) for item in _list(row, "messages")]
        answer = turns[-1][1] if turns else ""
    else:
        answer = _text(row, _response_key(row))
    if "<think>" not in answer:
        raise RowError("missing_thinking", "the answer has no <think>")
    return _messages(row) if "messages" in row else _prompt_response(row)


def _reasoning_columns(row: Row) -> Solved:
    """Columns `instruction, reasoning_chains, reasoning, output` (reasoning-0.01).

    The chain's steps are the thinking; the prose of `reasoning` looks back on them, so it is a
    reflection, or the thinking itself where there is no chain.
    """
    question = _question(row)
    output = _text(row, "output")
    if not output.strip():
        raise RowError("empty_output", "the output is empty")
    steps = _chain(row.get("reasoning_chains"))
    prose = row.get("reasoning") or ""
    if not isinstance(prose, str):
        raise RowError("wrong_type", f"reasoning is {type(prose).__name__}, not text")
    if steps and prose.strip():
        return question, Trace((*steps, Part("reflect", prose.strip())), output.strip()), {}
    parts = steps or trace.steps_of(prose)
    if not parts:
        raise RowError("empty_thinking", "reasoning_chains and reasoning are both empty")
    return question, Trace(tuple(parts), output.strip()), {}


def _chain(chain: Any) -> tuple[Part, ...]:
    """Steps given as `{"step": 1, "thought": ...}`, as text, or as either written into a string."""
    if isinstance(chain, str):
        chain = _literal(chain)
    if chain is None:
        return ()
    if not isinstance(chain, list):
        raise RowError("wrong_type", f"reasoning_chains is {type(chain).__name__}, not a list")
    return tuple(Part("think", thought) for item in chain if (thought := _thought(item)))


def _thought(item: Any) -> str:
    thought = item.get("thought") if isinstance(item, Mapping) else item
    if not isinstance(thought, str):
        raise RowError("wrong_type", "an item of reasoning_chains has no thought")
    return thought.strip()


def _literal(text: str) -> Any:
    if not text.strip():
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            continue
    raise RowError("broken_chain", "reasoning_chains is text, but neither JSON nor a Python list")


def _messages(row: Row) -> Solved:
    """A conversation; its last assistant turn is learnt, the turns before are its history."""
    turns = [_turn(item) for item in _list(row, "messages")]
    system = None
    if turns and turns[0][0] == "system":
        system, turns = turns[0][1], turns[1:]
    if len(turns) < 2 or turns[-1][0] != "assistant" or turns[-2][0] != "user":
        raise RowError("no_assistant_turn", "the conversation does not end in a user turn and an assistant turn")
    history: tuple[Message, ...] = tuple({"role": role, "content": text} for role, text, _ in turns[:-2])
    _, text, reasoning = turns[-1]
    return turns[-2][1], _read_trace(text, reasoning), {"system": system, "history": history}


def _turn(item: Any) -> tuple[str, str, str | None]:
    if not isinstance(item, Mapping):
        raise RowError("wrong_type", "a message is not an object")
    role, content = item.get("role"), item.get("content")
    if role not in ("system", "user", "assistant"):
        raise RowError("unknown_role", f"a message has the role {role!r}")
    if not isinstance(content, str):
        raise RowError("wrong_type", f"the content of a {role} message is {type(content).__name__}, not text")
    reasoning = item.get("reasoning_content")
    return role, content, reasoning if isinstance(reasoning, str) else None


def _read_trace(text: str, reasoning: str | None = None) -> Trace:
    try:
        return trace.from_text(text, reasoning)
    except trace.TraceError as error:
        raise RowError(error.fault, error.message) from error


def _text(row: Row, key: str) -> str:
    if key not in row or row[key] is None:
        raise RowError("missing_field", f"there is no {key!r}")
    if not isinstance(row[key], str):
        raise RowError("wrong_type", f"{key} is {type(row[key]).__name__}, not text")
    return str(row[key])


def _list(row: Row, key: str) -> list[Any]:
    value = row.get(key)
    if isinstance(value, str):
        value = _literal(value)
    if not isinstance(value, list):
        raise RowError("wrong_type" if key in row else "missing_field", f"{key} is not a list")
    return value


def _first_key(row: Row, keys: Collection[str]) -> str:
    for key in keys:
        if row.get(key) is not None:
            return key
    raise RowError("missing_field", f"there is none of {', '.join(keys)}")


LAYOUTS: dict[str, Callable[[Row], Solved]] = {
    "messages": _messages,
    "prompt_response": _prompt_response,
    "gsm8k": _gsm8k,
    "reasoning_columns": _reasoning_columns,
    "think": _think,
}
