"""Conversations: lists of turns in the ways of OpenAI, ShareGPT and TRL.

The last assistant turn that may be trained on is learnt; the turns before it are its history, the assistant's in one
dialect. Turns after it cannot influence it, are left out, and are counted. What would change the meaning of a
conversation and cannot be trained on (tools, images, unknown roles) rejects the row.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cot_unsloth.core import trace
from cot_unsloth.data.layouts import cells, rendered
from cot_unsloth.data.layouts.fields import (
    Fields,
    Layout,
    earlier,
    gold_answer,
    history_pairs,
    respond,
    steps,
    system_prompt,
)
from cot_unsloth.data.layouts.row import QUESTION, RESPONSE, Columns, RowError, is_empty, kind
from cot_unsloth.data.layouts.solving import Solved, solve

LISTS = (
    "messages", "conversations", "conversation", "dialog", "dialogue", "dialogs", "chat", "turns", "chatmessages",
    "conversationhistory", "contents", "items",
)  # fmt: skip
_ROLES = {
    **dict.fromkeys(("user", "human", "prompter", "usr", "customer"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "model", "chatgpt", "bot", "ai", "bing", "bard", "claude", "gpt4", "llm"), "assistant"
    ),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(
        (
            "tool", "function", "function_call", "function-call", "tool_call", "tool-call", "tool_calls", "observation",
            "tool_response", "function_response", "function-response", "ipython", "tool_result",
        ),
        "tool",
    ),
}  # fmt: skip
_SIDES = {**_ROLES, "input": "user", "output": "assistant"}
"""What an item with a key for each side calls them (XTuner, Capybara)."""
_ROLE_KEYS, _CONTENT_KEYS = (
    ("role", "from", "speaker", "author"),
    ("content", "value", "text", "message", "utterance", "parts"),
)
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking", "thought", "thinking_content", "think")
_LOSS_KEYS = ("weight", "train", "trainable", "training", "loss", "loss_weight", "train_on_turn")
_CALL_KEYS = ("tool_calls", "function_call", "tool_call_id")
_SPOKEN = ("user", "assistant", "system")
_TRUTHS = {"true": True, "1": True, "1.0": True, "yes": True, "false": False, "0": False, "0.0": False, "no": False}


@dataclass(frozen=True)
class Turn:
    """One turn, read."""

    role: str
    name: str
    """The role as the row calls it."""
    content: str
    reasoning: str | None
    trained: bool | None
    """Whether the row says that it may carry loss; None where it does not say."""


def _fits_messages(columns: Columns) -> bool:
    column = list_column(columns)
    return column is not None and not _is_sharegpt(columns, column)


def _fits_sharegpt(columns: Columns) -> bool:
    column = list_column(columns)
    return column is not None and _is_sharegpt(columns, column)


def list_column(columns: Columns) -> str | None:
    """The column with the conversation; of several, one whose reasoning stands in it."""
    if columns.named.messages is not None:
        return columns.named.messages
    if columns.named.question is not None:
        return None
    there = [column for column in columns.each(LISTS) if cells.looks_listed(columns.value(column))]
    if not there and columns.first(("prompt",)) is None:  # a preference pair's whole talk
        there = [column for column in columns.each(("chosen",)) if cells.looks_listed(columns.value(column))]
    if not there:
        return rendered.column(columns)
    if len(there) < 2:
        return there[0]
    return next((column for column in there if _reasons(columns.value(column))), there[0])


def _reasons(value: Any) -> bool:
    written = str(value)
    return trace.has_tags(written) or "begin_of_thought" in written or "reasoning_content" in written


def _is_sharegpt(columns: Columns, column: str) -> bool:
    try:
        items = rendered.turns(columns.value(column)) or cells.listed(columns.value(column), column)
    except RowError:
        return False
    first = items[0] if items and isinstance(items[0], Mapping) else {}
    return "from" in {str(key).casefold() for key in first}


def _read_list(columns: Columns) -> Fields:
    column = list_column(columns) or columns.present(LISTS)
    if column is None:
        raise RowError("missing_field", f"there is none of {', '.join(LISTS[:3])}")
    turns = _turns(columns, column)
    answer = columns.first(RESPONSE, without=(column,)) if turns and turns[-1].role == "user" else None
    if answer is not None and cells.looks_listed(columns.value(answer)):  # a preference pair of ShareGPT
        turns += _turns(columns, answer)
    return _read(columns, turns)


def _prompt_and_completion(columns: Columns) -> tuple[str | None, str | None]:
    """The columns that hold what comes before the answer, and the answer; one of them is a list of messages."""
    if columns.named.question is not None:
        return None, None
    lists = (column for column in columns.each(QUESTION) if _is_talk(columns.value(column)))
    prompt = next(lists, columns.question())
    completion = columns.first(("completion", "response", "chosen"))
    if prompt is not None and completion is None and _is_talk(columns.value(prompt)):
        completion = columns.first(RESPONSE[: RESPONSE.index("solution")])
    return prompt, completion


def _fits_prompt_completion(columns: Columns) -> bool:
    prompt, completion = _prompt_and_completion(columns)
    if prompt is None:
        return False
    listed = completion is not None and cells.looks_listed(columns.value(completion))
    return listed or _is_talk(columns.value(prompt))


def _is_talk(value: Any) -> bool:
    return cells.looks_listed(value) or rendered.has_tokens(value)


def _read_prompt_completion(columns: Columns) -> Fields:
    """Lists of messages in `prompt` and `completion` (TRL), or a list in one of them and text in the other."""
    prompt, completion = _prompt_and_completion(columns)
    if prompt is None:
        raise RowError("missing_field", "there is no prompt")
    turns = _turns(columns, prompt, lone="user")
    if completion is not None:
        answer = _turns(columns, completion, lone="assistant")
        whole = [(turn.role, turn.content) for turn in answer[: len(turns)]]
        if whole == [(turn.role, turn.content) for turn in turns]:  # a preference pair repeats its prompt
            answer = answer[len(turns) :]
        turns += answer
    return _read(columns, turns)


def _turns(columns: Columns, column: str, lone: str | None = None) -> list[Turn]:
    """The turns of a column; of text that is no list, one turn of the role `lone`."""
    value = columns.value(column)
    columns.used.add(column)
    written = rendered.turns(value) if lone is None or (lone == "user" and rendered.has_tokens(value)) else None
    if written is not None:
        turns = [_turn(columns, item, column) for item in written]
    elif lone is not None and isinstance(value, str) and not cells.looks_listed(value):
        turns = [Turn(lone, "", value, None, None)]
    else:
        items = [turn for item in cells.listed(value, column) for turn in _split_turn(item)]
        turns = [_turn(columns, item, column) for item in items]
    for turn in turns:
        _note_role(columns, turn, column)
    return turns


def _split_turn(item: Any) -> list[Any]:
    """An item such as `{"human": ..., "assistant": ...}` as a turn for each role."""
    if isinstance(item, Mapping) and item and all(_SIDES.get(str(key).casefold()) in _SPOKEN for key in item):
        said = [(_SIDES[str(role).casefold()], text) for role, text in item.items() if not is_empty(text)]
        order = ("system", "user", "assistant")
        return [{"role": side, "content": text} for side, text in sorted(said, key=lambda turn: order.index(turn[0]))]
    return [item]


def _note_role(columns: Columns, turn: Turn, name: str) -> None:
    role = {"user": "question", "assistant": "answer", "system": "system"}[turn.role]
    label = f"{name}[{turn.name}]" if turn.name else name
    labels = columns.roles.setdefault(role, [])
    if label not in labels:
        labels.append(label)


def _turn(columns: Columns, item: Any, name: str) -> Turn:
    if not isinstance(item, Mapping):
        raise RowError("wrong_type", f"an item of {name} is {kind(item)}, not a message")
    fields = {str(key).casefold(): value for key, value in item.items() if value is not None}
    role_key = next((key for key in _ROLE_KEYS if key in fields), None)
    if role_key is None:
        raise RowError("unknown_role", f"a message of {name} has no role (role, from); it has {', '.join(fields)}")
    called = str(fields[role_key])
    role = _ROLES.get(called.strip().casefold())
    if role is None:
        raise RowError("unknown_role", f"a message has the role {called!r}")
    if role == "tool" or any(not is_empty(fields.get(key)) for key in _CALL_KEYS):
        raise RowError("tool_turn", f"a turn of {called!r} calls a tool or answers a call, which cannot be trained on")
    if any(not is_empty(fields.get(key)) for key in ("images", "image", "audio", "video")):
        raise RowError("image_part", "a message holds an image, audio or video")
    content_key = next((key for key in _CONTENT_KEYS if key in fields and key != role_key), None)
    content, inside = _content(columns, fields.get(content_key) if content_key else "", called)
    reasoning_key = next((key for key in _REASONING_KEYS if not is_empty(fields.get(key))), None)
    reasoning = _reasoning(fields[reasoning_key], reasoning_key) if reasoning_key else inside
    if content_key is None and reasoning is None:
        raise RowError("wrong_type", f"a message of {called!r} has no content")
    loss_key = next((key for key in _LOSS_KEYS if key in fields), None)
    known = {role_key, content_key, reasoning_key, loss_key}
    columns.unused_fields |= {f"{name}[].{key}" for key in fields if key not in known and not is_empty(fields[key])}
    return Turn(role, called, content, reasoning, _trained(fields[loss_key], loss_key) if loss_key else None)


def _reasoning(value: Any, key: str) -> str:
    if isinstance(value, str):
        return value
    return "\n".join(part.text for part in steps(value, key))


def _trained(value: Any, key: str) -> bool:
    value = cells.plain(value)
    if isinstance(value, bool | int | float):
        return bool(value)
    truth = _TRUTHS.get(str(value).strip().casefold())
    if truth is None:
        raise RowError("wrong_type", f"{key} of a message is {value!r}, neither true nor false")
    return truth


def _a(role: str) -> str:
    return f"{'an' if role[:1].lower() in 'aeiou' else 'a'} {role}"


_PART_TEXT = ("text", "thinking", "reasoning", "content", "value")


def _content(columns: Columns, value: Any, role: str) -> tuple[str, str | None]:
    """A message's text, and its reasoning where parts of the content hold it."""
    value = cells.plain(value)
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, str):
        return value, None
    if not isinstance(value, Sequence):
        raise RowError("wrong_type", f"the content of {_a(role)} message is {kind(value)}, not text")
    texts: list[str] = []
    thoughts: list[str] = []
    for part in value:
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, Mapping):
            raise RowError("wrong_type", f"a part of {_a(role)} message is {kind(part)}, not an object")
        type_ = str(part.get("type") or "text")
        text = next((part[key] for key in _PART_TEXT if isinstance(part.get(key), str)), None)
        if (type_ in ("thinking", "reasoning", "thought") or part.get("thought") is True) and text is not None:
            thoughts.append(text)
        elif type_ == "redacted_thinking":
            columns.notes.append("redacted_thinking, which nobody can read, left out")
        elif type_ in ("text", "output_text", "input_text") and text is not None:
            texts.append(text)
        elif "tool" in type_ or "function" in type_ or {"functionCall", "functionResponse"} & part.keys():
            raise RowError(
                "tool_turn", f"a part of a message of {role!r} is of type {type_!r}, which cannot be trained on"
            )
        else:
            raise RowError("image_part", f"a part of a message of {role!r} is of type {type_!r}, not text")
    return "".join(texts), "\n".join(thoughts) or None


def _read(columns: Columns, turns: list[Turn]) -> Fields:
    system = _system(columns, turns)
    spoken = turns[sum(1 for _ in _leading(turns)) :]
    last, answered = _learnt(columns, spoken)
    question_at = last - 1
    if question_at < 0 or spoken[question_at].role != "user":
        raise RowError("no_user_turn", "no turn of a user stands before the assistant's turn that would be learnt")
    before = spoken[:question_at]
    has_loss_marks = any(turn.trained is not None for turn in turns)
    pairs = history_pairs(columns)
    history = (*pairs, *(earlier(turn.role, turn.content, turn.reasoning) for turn in before))
    loss = tuple(turn.role == "assistant" and turn.trained is not False for turn in before)
    if has_loss_marks:
        loss = (*(turn["role"] == "assistant" for turn in pairs), *loss)
    question = spoken[question_at].content
    return Fields(question, answered, system, history, loss if has_loss_marks else ())


def _system(columns: Columns, turns: list[Turn]) -> str | None:
    column = system_prompt(columns)
    leading = [turn.content.strip() for turn in _leading(turns)]
    prompt = "\n\n".join(text for text in leading if text)
    if column and prompt and column != prompt:
        raise RowError(
            "two_system_prompts", f"the system column and the system turn differ: {column[:40]!r} and {prompt[:40]!r}"
        )
    return column or prompt or ("" if leading else None)


def _leading(turns: list[Turn]) -> Iterator[Turn]:
    """The system turns that a conversation begins with; later ones are turns of its history."""
    return itertools.takewhile(lambda turn: turn.role == "system", turns)


def _learnt(columns: Columns, spoken: list[Turn]) -> tuple[int, Solved]:
    """Where the turn that is learnt stands (or would stand, where columns hold it), and what it says."""
    assistants = [at for at, turn in enumerate(spoken) if turn.role == "assistant"]
    response = None
    if not spoken or spoken[-1].role != "assistant":
        response = columns.first(RESPONSE, without=_lists(columns))
        apart = columns.reasoning() if response is None else None
        if response is not None or not assistants or (apart is not None and columns.gold(beside=None) is not None):
            return len(spoken), _from_columns(columns, response)
    trainable = [at for at in assistants if spoken[at].trained is not False]
    if not trainable:
        raise RowError("no_loss", "no assistant turn may be trained: each has a weight of 0 or train: false")
    last = trainable[-1]
    cut = len(spoken) - 1 - last
    if cut:
        columns.notes.append("turns after the last assistant turn that may be trained left out")
    turn = spoken[last]
    gold = gold_answer(columns, beside=_lists(columns)[0] if _lists(columns) else "")
    try:
        parts = trace.unwrap_thinking(turn.reasoning) if turn.reasoning else ()
    except trace.TraceError as error:
        raise RowError(error.fault, f"the reasoning of the assistant's turn: {error.message}") from error
    solved = solve(turn.content, gold=gold, reasoning=parts, strict=True)
    if not solved.trace.parts and (column := columns.reasoning()) is not None:
        solved = respond(columns, None, turn.content, gold, column)
    else:
        columns.notes.extend(solved.notes)
    return last, solved


def _lists(columns: Columns) -> list[str]:
    return [name for name in columns.used if name in columns.row and cells.looks_listed(columns.value(name))]


def _from_columns(columns: Columns, response: str | None) -> Solved:
    """The answer to a conversation that ends in a question, from the columns beside it."""
    gold = gold_answer(columns, beside=response)
    if response is None and gold is None:
        raise RowError("no_assistant_turn", "the conversation has no turn of an assistant, and no column answers it")
    text = "" if response is None else cells.text(columns.use(response, "answer"), response)
    if response is None:
        column = columns.gold(beside=None)
        value = columns.value(column)
        if isinstance(value, str):  # it may be tagged, or marked
            text, gold = value, None
    return respond(columns, response, text, gold, columns.reasoning())


MESSAGES = Layout("messages", _fits_messages, _read_list)
SHAREGPT = Layout("sharegpt", _fits_sharegpt, _read_list)
PROMPT_COMPLETION = Layout("prompt_completion", _fits_prompt_completion, _read_prompt_completion)
