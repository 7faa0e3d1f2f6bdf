"""One message of a conversation: its role, its text and its reasoning, whatever their keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cot_unsloth.data.layouts import cells
from cot_unsloth.data.layouts.base import reasoning_parts
from cot_unsloth.data.layouts.row import Columns, RowError, describe_value, is_empty

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
SPEAKER_KEYS = {**_ROLES, "input": "user", "output": "assistant"}
"""Keys of an item with a question and its answer, `{"human": ..., "assistant": ...}` (XTuner, Capybara)."""
_ROLE_KEYS, _CONTENT_KEYS = (
    ("role", "from", "speaker", "author"),
    ("content", "value", "text", "message", "utterance", "parts"),
)
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking", "thought", "thinking_content", "think")
_CALL_KEYS = ("tool_calls", "function_call", "tool_call_id")
TEXT_ROLES = ("user", "assistant", "system")


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation."""

    role: str
    name: str
    """The role's name in the row."""
    content: str
    reasoning: str | None
    trained: bool | None
    """Whether the row allows loss on it (`weight`, `train`); None if it does not say."""


def read_turn(columns: Columns, item: object, name: str) -> Turn:
    """One message as a turn.

    Args:
        columns: the row, whose notes and unused fields are added to.
        item: the message.
        name: the column that it is in, for messages of errors.

    Raises:
        RowError: it has no role or content that is known, or holds what cannot be trained on.
    """
    if not isinstance(item, Mapping):
        raise RowError("wrong_type", f"an item of {name} is {describe_value(item)}, not a message")
    fields = {str(key).casefold(): value for key, value in item.items() if value is not None}
    role_key = next((key for key in _ROLE_KEYS if key in fields), None)
    role_name = str(fields[role_key]) if role_key else ""
    role = _ROLES.get(role_name.strip().casefold())
    content_key = next((key for key in _CONTENT_KEYS if key in fields and key != role_key), None)
    reasoning_key = next((key for key in _REASONING_KEYS if not is_empty(fields.get(key))), None)
    if role is None:
        problem = f"the role {role_name!r}" if role_key else "no role"
        nothing = "" if content_key or reasoning_key else " and no content" if role_key else " or content"
        has = f"; it has {_listed(fields)}" if nothing or not role_key else ""
        raise RowError("unknown_role", f"a message of {name} has {problem}{nothing}{has}")
    if role == "tool" or any(not is_empty(fields.get(key)) for key in _CALL_KEYS):
        raise RowError(
            "tool_turn", f"a turn of {role_name!r} calls a tool or answers a call, which cannot be trained on"
        )
    if any(not is_empty(fields.get(key)) for key in ("images", "image", "audio", "video")):
        raise RowError("image_part", "a message holds an image, audio or video")
    content, reasoning_part = _content(columns, fields.get(content_key) if content_key else "", role_name)
    reasoning = _reasoning(fields[reasoning_key], reasoning_key) if reasoning_key else reasoning_part
    if content_key is None and reasoning is None:
        if any(str(key).casefold() in _CONTENT_KEYS for key in item):
            raise RowError("wrong_type", f"the content of {_with_article(role_name)} message is null, not text")
        raise RowError("no_content", f"a message of {role_name!r} has no content; it has {_listed(fields)}")
    loss_key = cells.loss_key(fields)
    used_keys = {role_key, content_key, reasoning_key, loss_key}
    columns.unused_fields |= {f"{name}[].{key}" for key in fields if key not in used_keys and not is_empty(fields[key])}
    return Turn(role, role_name, content, reasoning, cells.may_be_trained(fields))


def _listed(fields: Mapping[str, object]) -> str:
    return ", ".join(map(repr, fields)) or "no keys"


def _named(role: str) -> str:
    first, *others = [name for name, meaning in _ROLES.items() if meaning == role]
    return f"{first} (or {', '.join(others)})"


_TEXT_KEYS = f"the key of a message's text is {', '.join(_CONTENT_KEYS[:-1])} or {_CONTENT_KEYS[-1]}"
_RENAME = "rename yours in the file (docs/data.md#conversations has a script)"
REMEDIES = {
    "unknown_role": f"roles are {_named('user')}, {_named('assistant')} and {_named('system')}; "
    f"the key of the role is {', '.join(_ROLE_KEYS[:-1])} or {_ROLE_KEYS[-1]}; {_TEXT_KEYS}; {_RENAME}",
    "no_content": f"{_TEXT_KEYS}; {_RENAME}",
    "tool_turn": "leave such conversations out, or write what the tool returned into the assistant's reasoning",
}
"""Reason of a rejected row → what to do about it."""


def _reasoning(value: object, key: str) -> str:
    if isinstance(value, str):
        return value
    return "\n".join(part.text for part in reasoning_parts(value, key))


def _with_article(role: str) -> str:
    return f"{'an' if role[:1].lower() in 'aeiou' else 'a'} {role}"


_PART_TEXT = ("text", "thinking", "reasoning", "content", "value")


def _content(columns: Columns, value: object, role: str) -> tuple[str, str | None]:
    """The text of a message, and its reasoning if parts of the content are of type `thinking` or the like."""
    value = cells.to_python(value)
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, str):
        return value, None
    if not isinstance(value, Sequence):
        raise RowError(
            "wrong_type", f"the content of {_with_article(role)} message is {describe_value(value)}, not text"
        )
    texts: list[str] = []
    thoughts: list[str] = []
    for part in value:
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, Mapping):
            raise RowError(
                "wrong_type", f"a part of {_with_article(role)} message is {describe_value(part)}, not an object"
            )
        part_type = str(part.get("type") or "text")
        text = next((part[key] for key in _PART_TEXT if isinstance(part.get(key), str)), None)
        if (part_type in ("thinking", "reasoning", "thought") or part.get("thought") is True) and text is not None:
            thoughts.append(text)
        elif part_type == "redacted_thinking":
            columns.notes.append("redacted_thinking, which is encrypted, left out")
        elif part_type in ("text", "output_text", "input_text") and text is not None:
            texts.append(text)
        elif "tool" in part_type or "function" in part_type or {"functionCall", "functionResponse"} & part.keys():
            raise RowError(
                "tool_turn", f"a part of a message of {role!r} is of type {part_type!r}, which cannot be trained on"
            )
        else:
            raise RowError("image_part", f"a part of a message of {role!r} is of type {part_type!r}, not text")
    return "".join(texts), "\n".join(thoughts) or None
