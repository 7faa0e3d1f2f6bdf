"""Conversations as ChatGPT exports them: a tree of messages, of which the branch that was shown last is the conversation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def is_export(row: Mapping[str, Any]) -> bool:
    """Whether a row is one conversation of a ChatGPT export."""
    nodes = row.get("mapping")
    return isinstance(nodes, Mapping) and any(
        isinstance(node, Mapping) and "message" in node for node in nodes.values()
    )


def as_messages(row: Mapping[str, Any]) -> dict[str, Any]:
    """Such a row with its conversation as a list of messages, and its title."""
    return {"title": row.get("title"), "messages": list(_turns(row["mapping"], row.get("current_node")))}


def _turns(nodes: Mapping[str, Any], current: Any) -> Iterator[dict[str, Any]]:
    if current not in nodes:
        current = list(nodes)[-1]
    branch: dict[Any, Any] = {}
    while current in nodes and current not in branch:
        branch[current] = nodes[current].get("message")
        current = nodes[current].get("parent")
    thoughts: list[str] = []
    for message in reversed(branch.values()):
        if not isinstance(message, Mapping) or _is_hidden(message):
            continue
        content = _object(message, "content")
        type_, role = content.get("content_type", "text"), _object(message, "author").get("role")
        text = "".join(part for part in content.get("parts") or () if isinstance(part, str))
        if type_ == "thoughts":
            items = content.get("thoughts") or ()
            thoughts += [str(item.get("content") or "") for item in items if isinstance(item, Mapping)]
        elif message.get("recipient", "all") != "all":
            yield {"role": "tool", "content": text}
        elif type_ != "text":
            yield {"role": role, "content": [{"type": type_}]}
        elif text.strip():
            yield {"role": role, "content": text, "reasoning_content": "\n".join(thoughts)}
            thoughts = []


def _is_hidden(message: Mapping[str, Any]) -> bool:
    """Whether a message is none of the talk: a setting, or how long a model thought."""
    hidden = _object(message, "metadata").get("is_visually_hidden_from_conversation")
    return bool(hidden) or _object(message, "content").get("content_type") == "reasoning_recap"


def _object(message: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = message.get(key)
    return value if isinstance(value, Mapping) else {}
