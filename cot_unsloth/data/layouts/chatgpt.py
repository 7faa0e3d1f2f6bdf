"""Conversations as ChatGPT exports them: a tree of messages, in which every edit and retry starts a branch.

The conversation is the branch that ends in `current_node`, the one the user saw last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def is_export(row: Mapping[str, object]) -> bool:
    """Whether a row is one conversation of a ChatGPT export."""
    nodes = row.get("mapping")
    return isinstance(nodes, Mapping) and any(
        isinstance(node, Mapping) and "message" in node for node in nodes.values()
    )


def as_messages(row: Mapping[str, object]) -> dict[str, object]:
    """The title of an exported conversation, and its messages as a list."""
    nodes = row["mapping"]
    assert isinstance(nodes, Mapping)
    return {"title": row.get("title"), "messages": list(_turns(nodes, row.get("current_node")))}


def _turns(nodes: Mapping[object, Any], current: object) -> Iterator[dict[str, object]]:
    if current not in nodes:
        current = list(nodes)[-1]
    branch: dict[object, object] = {}
    while current in nodes and current not in branch:
        branch[current] = nodes[current].get("message")
        current = nodes[current].get("parent")
    thoughts: list[str] = []
    for message in reversed(branch.values()):
        if not isinstance(message, Mapping) or _is_hidden(message):
            continue
        content = _object(message, "content")
        content_type, role = content.get("content_type", "text"), _object(message, "author").get("role")
        text = "".join(part for part in content.get("parts") or () if isinstance(part, str))
        if content_type == "thoughts":
            items = content.get("thoughts") or ()
            thoughts += [str(item.get("content") or "") for item in items if isinstance(item, Mapping)]
        elif message.get("recipient", "all") != "all":
            yield {"role": "tool", "content": text}
        elif content_type != "text":
            yield {"role": role, "content": [{"type": content_type}]}
        elif text.strip():
            yield {"role": role, "content": text, "reasoning_content": "\n".join(thoughts)}
            thoughts = []


def _is_hidden(message: Mapping[str, object]) -> bool:
    """Whether a message is not part of the dialogue: a setting, or "Thought for 5 seconds"."""
    hidden = _object(message, "metadata").get("is_visually_hidden_from_conversation")
    return bool(hidden) or _object(message, "content").get("content_type") == "reasoning_recap"


def _object(message: Mapping[Any, object], key: str) -> Mapping[Any, Any]:
    value = message.get(key)
    return value if isinstance(value, Mapping) else {}
