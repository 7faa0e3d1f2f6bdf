"""Conversations: lists of turns in the formats of OpenAI, ShareGPT and TRL.

The target is the last assistant turn that may be trained on; the turns before it are its history, with every assistant
turn rewritten in our tags. Turns after it are left out, and counted. A conversation with tools, images or unknown roles is
rejected: without those parts it would mean something else.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from cot_unsloth.core import trace
from cot_unsloth.data.layouts import cells, rendered
from cot_unsloth.data.layouts.base import (
    Fields,
    Layout,
    build_solution,
    earlier_turn,
    read_gold,
    read_history,
    read_system_prompt,
)
from cot_unsloth.data.layouts.column_names import QUESTION, RESPONSE
from cot_unsloth.data.layouts.responses import Solution, parse_response
from cot_unsloth.data.layouts.row import Columns, RowError, is_empty
from cot_unsloth.data.layouts.turns import SPEAKER_KEYS, TEXT_ROLES, Turn, read_turn

LISTS = (
    "messages", "conversations", "conversation", "dialog", "dialogue", "dialogs", "chat", "turns", "chatmessages",
    "conversationhistory", "contents", "items",
)  # fmt: skip


def _matches_messages(columns: Columns) -> bool:
    column = conversation_column(columns)
    return column is not None and not _is_sharegpt(columns, column)


def _matches_sharegpt(columns: Columns) -> bool:
    column = conversation_column(columns)
    return column is not None and _is_sharegpt(columns, column)


def conversation_column(columns: Columns) -> str | None:
    """The column with the conversation; of several, the first that contains reasoning."""
    if columns.named.messages is not None:
        return columns.named.messages
    if columns.named.question is not None:
        return None
    candidates = [column for column in columns.filled(LISTS) if cells.looks_like_list(columns.value(column))]
    if (
        not candidates and columns.first(("prompt",)) is None
    ):  # preference pairs whose `chosen` is the whole conversation
        candidates = [column for column in columns.filled(("chosen",)) if cells.looks_like_list(columns.value(column))]
    if not candidates:
        return rendered.conversation_column(columns)
    if len(candidates) < 2:
        return candidates[0]
    return next((column for column in candidates if _has_reasoning(columns.value(column))), candidates[0])


def _has_reasoning(value: object) -> bool:
    text = str(value)
    return trace.has_tags(text) or "begin_of_thought" in text or "reasoning_content" in text


def _is_sharegpt(columns: Columns, column: str) -> bool:
    try:
        items = rendered.turns(columns.value(column)) or cells.as_list(columns.value(column), column)
    except RowError:
        return False
    first = items[0] if items and isinstance(items[0], Mapping) else {}
    return "from" in {str(key).casefold() for key in first}


def _read_list(columns: Columns) -> Fields:
    column = conversation_column(columns) or columns.first_named(LISTS)
    if column is None:
        raise RowError("missing_field", f"there is none of {', '.join(LISTS[:3])}")
    turns = _turns(columns, column)
    answer = columns.first(RESPONSE, without=(column,)) if turns and turns[-1].role == "user" else None
    if answer is not None and cells.looks_like_list(columns.value(answer)):  # a preference pair of ShareGPT
        turns += _turns(columns, answer)
    return _fields(columns, turns)


def _prompt_and_completion(columns: Columns) -> tuple[str | None, str | None]:
    """The columns of the prompt and of the answer to it; one of them is a list of messages."""
    if columns.named.question is not None:
        return None, None
    conversations = (column for column in columns.filled(QUESTION) if _is_conversation(columns.value(column)))
    prompt = next(conversations, columns.question_column())
    completion = columns.first(("completion", "response", "chosen"))
    if prompt is not None and completion is None and _is_conversation(columns.value(prompt)):
        completion = columns.first(RESPONSE[: RESPONSE.index("solution")])
    return prompt, completion


def _matches_prompt_completion(columns: Columns) -> bool:
    prompt, completion = _prompt_and_completion(columns)
    if prompt is None:
        return False
    listed = completion is not None and cells.looks_like_list(columns.value(completion))
    return listed or _is_conversation(columns.value(prompt))


def _is_conversation(value: object) -> bool:
    return cells.looks_like_list(value) or rendered.has_tokens(value)


def _read_prompt_completion(columns: Columns) -> Fields:
    """TRL's `prompt` and `completion`: both lists of messages, or one a list and the other text."""
    prompt, completion = _prompt_and_completion(columns)
    if prompt is None:
        raise RowError("missing_field", "there is no prompt")
    turns = _turns(columns, prompt, text_role="user")
    if completion is not None:
        answer = _turns(columns, completion, text_role="assistant")
        beginning = [(turn.role, turn.content) for turn in answer[: len(turns)]]
        if beginning == [(turn.role, turn.content) for turn in turns]:  # preference pairs repeat the prompt in `chosen`
            answer = answer[len(turns) :]
        turns += answer
    return _fields(columns, turns)


def _turns(columns: Columns, column: str, text_role: str | None = None) -> list[Turn]:
    """The turns in a column; plain text is one turn with the role `text_role`, if that is given."""
    value = columns.value(column)
    columns.used.add(column)
    templated = (
        rendered.turns(value) if text_role is None or (text_role == "user" and rendered.has_tokens(value)) else None
    )
    if templated is not None:
        turns = [read_turn(columns, item, column) for item in templated]
    elif text_role is not None and isinstance(value, str) and not cells.looks_like_list(value):
        turns = [Turn(text_role, "", value, None, None)]
    else:
        items = [turn for item in cells.as_list(value, column) for turn in _split_turn(item)]
        turns = [read_turn(columns, item, column) for item in items]
    for turn in turns:
        _note_role(columns, turn, column)
    return turns


def _split_turn(item: object) -> list[object]:
    """An item such as `{"human": ..., "assistant": ...}` as one turn for each role; any other item unchanged."""
    if isinstance(item, Mapping) and item and all(SPEAKER_KEYS.get(str(key).casefold()) in TEXT_ROLES for key in item):
        turns = [(SPEAKER_KEYS[str(role).casefold()], text) for role, text in item.items() if not is_empty(text)]
        order = ("system", "user", "assistant")
        return [{"role": role, "content": text} for role, text in sorted(turns, key=lambda turn: order.index(turn[0]))]
    return [item]


def _note_role(columns: Columns, turn: Turn, name: str) -> None:
    role = {"user": "question", "assistant": "answer", "system": "system"}[turn.role]
    label = f"{name}[{turn.name}]" if turn.name else name
    labels = columns.roles.setdefault(role, [])
    if label not in labels:
        labels.append(label)


def _fields(columns: Columns, turns: list[Turn]) -> Fields:
    system = _system(columns, turns)
    dialogue = turns[sum(1 for _ in _leading(turns)) :]
    target, solution = _target_turn(columns, dialogue)
    question_at = target - 1
    if question_at < 0 or dialogue[question_at].role != "user":
        raise RowError("no_user_turn", "there is no user turn before the assistant turn that would be trained on")
    before = dialogue[:question_at]
    pairs, pairs_loss = read_history(columns)
    has_loss_marks = bool(pairs_loss) or any(turn.trained is not None for turn in turns)
    history = (*pairs, *(earlier_turn(turn.role, turn.content, turn.reasoning) for turn in before))
    loss = tuple(turn.role == "assistant" and turn.trained is not False for turn in before)
    if has_loss_marks:
        loss = (*(pairs_loss or (turn["role"] == "assistant" for turn in pairs)), *loss)
    question = dialogue[question_at].content
    return Fields(question, solution, system, history, loss if has_loss_marks else ())


def _system(columns: Columns, turns: list[Turn]) -> str | None:
    column = read_system_prompt(columns)
    leading = [turn.content.strip() for turn in _leading(turns)]
    prompt = "\n\n".join(text for text in leading if text)
    if column and prompt and column != prompt:
        raise RowError(
            "two_system_prompts", f"the system column and the system turn differ: {column[:40]!r} and {prompt[:40]!r}"
        )
    return column or prompt or ("" if leading else None)


def _leading(turns: list[Turn]) -> Iterator[Turn]:
    """The system turns at the beginning of a conversation; later ones stay in its history."""
    return itertools.takewhile(lambda turn: turn.role == "system", turns)


def _target_turn(columns: Columns, dialogue: list[Turn]) -> tuple[int, Solution]:
    """Index and content of the turn to train on; after the last turn if other columns hold it."""
    assistants = [at for at, turn in enumerate(dialogue) if turn.role == "assistant"]
    response = None
    if not dialogue or dialogue[-1].role != "assistant":
        response = columns.first(RESPONSE, without=_lists(columns))
        reasoning = columns.reasoning_column() if response is None else None
        if (
            response is not None
            or not assistants
            or (reasoning is not None and columns.gold_column(beside=None) is not None)
        ):
            return len(dialogue), _answer_in_columns(columns, response)
    trainable = [at for at in assistants if dialogue[at].trained is not False]
    if not trainable:
        raise RowError("no_loss", "no assistant turn may be trained: each has a weight of 0 or train: false")
    last = trainable[-1]
    cut = len(dialogue) - 1 - last
    if cut:
        columns.notes.append("turns after the last assistant turn that may be trained left out")
    turn = dialogue[last]
    gold = read_gold(columns, beside=_lists(columns)[0] if _lists(columns) else "")
    try:
        parts = trace.unwrap_thinking(turn.reasoning) if turn.reasoning else ()
    except trace.TraceError as error:
        raise RowError(error.fault, f"the reasoning of the assistant's turn: {error.message}") from error
    solution = parse_response(turn.content, gold=gold, reasoning=parts, strict=True)
    if not solution.trace.parts and (column := columns.reasoning_column()) is not None:
        solution = build_solution(columns, None, turn.content, gold, column)
    else:
        columns.notes.extend(solution.notes)
    return last, solution


def _lists(columns: Columns) -> list[str]:
    return [name for name in columns.used if name in columns.row and cells.looks_like_list(columns.value(name))]


def _answer_in_columns(columns: Columns, response: str | None) -> Solution:
    """The answer to a conversation that ends in a question, from other columns."""
    gold = read_gold(columns, beside=response)
    if response is None and gold is None:
        raise RowError("no_assistant_turn", "the conversation has no turn of an assistant, and no column answers it")
    text = "" if response is None else cells.text(columns.use(response, "answer"), response)
    if response is None:
        column = columns.gold_column(beside=None)
        value = columns.value(column)
        if isinstance(value, str):  # it may have tags or a mark itself
            text, gold = value, None
    return build_solution(columns, response, text, gold, columns.reasoning_column())


MESSAGES = Layout("messages", _matches_messages, _read_list, is_conversation=True)
SHAREGPT = Layout("sharegpt", _matches_sharegpt, _read_list, is_conversation=True)
PROMPT_COMPLETION = Layout(
    "prompt_completion", _matches_prompt_completion, _read_prompt_completion, is_conversation=True
)
