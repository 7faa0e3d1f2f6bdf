"""Answers in the forms of the OpenAI API.

`reasoning_content` has the text between the thinking tags with its reflection tags, so that a client can mark reflections,
and can send the reasoning back as it was; `content` has the output.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cot_unsloth.core import trace
from cot_unsloth.core.errors import CotError
from cot_unsloth.core.logs import LOG
from cot_unsloth.core.progress import note
from cot_unsloth.core.types import ThinkingTags
from cot_unsloth.models.streaming import TextPiece
from cot_unsloth.server.requests import RequestError

Json = dict[str, object]


@dataclass(frozen=True)
class Usage:
    """Tokens of a request."""

    prompt: int
    completion: int

    def as_json(self) -> Json:
        """As the API has it."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        }


@dataclass(frozen=True)
class Envelope:
    """What all objects of one response begin with."""

    kind: str
    model: str
    id: str
    created: int

    @classmethod
    def new(cls, kind: str, model: str) -> Envelope:
        """Of a new response."""
        prefix = "cmpl" if kind == "text_completion" else "chatcmpl"
        return cls(kind, model, f"{prefix}-{uuid.uuid4().hex}", int(time.time()))

    def wrap(self, choices: Sequence[Mapping[str, object]], usage: Usage | None = None) -> Json:
        """A response, or a chunk of one."""
        body: Json = {
            "id": self.id, "object": self.kind, "created": self.created, "model": self.model, "choices": list(choices),
        }  # fmt: skip
        return body | {"usage": usage.as_json()} if usage else body


class Fields:
    """Divides an answer into `reasoning_content` and `content`, without white space around them, piece by piece."""

    def __init__(self, thinking_tags: ThinkingTags) -> None:
        self._tags = trace.tags("reflection", thinking_tags)
        self._in_reflection = False
        self._trimmed = {"reasoning_content": _Trimmed(), "content": _Trimmed()}

    def feed(self, piece: TextPiece) -> list[tuple[str, str]]:
        """The fields that a piece adds to, and the text to add to each, which may be empty."""
        added = []
        is_reflection = piece.section == "reflection"
        if is_reflection != self._in_reflection:
            added.append(("reasoning_content", self._tags[0] if is_reflection else self._tags[1]))
            self._in_reflection = is_reflection
        name = "reasoning_content" if piece.section in ("thinking", "reflection") else "content"
        added.append((name, piece.text))
        return [(name, self._trimmed[name].feed(text)) for name, text in added]


class _Trimmed:
    """Strips white space around a streamed text: inner white space is passed on once more text follows."""

    def __init__(self) -> None:
        self._pending = ""
        self._has_text = False

    def feed(self, text: str) -> str:
        text = self._pending + text
        text = text if self._has_text else text.lstrip()
        ready = text.rstrip()
        self._pending = text[len(ready) :]
        self._has_text = self._has_text or bool(ready)
        return ready


def message_of(pieces: Sequence[TextPiece], thinking_tags: ThinkingTags) -> dict[str, str]:
    """The assistant's message that the pieces of an answer are."""
    fields = Fields(thinking_tags)
    message = {"role": "assistant", "content": "", "reasoning_content": ""}
    for piece in pieces:
        for name, text in fields.feed(piece):
            message[name] += text
    return message


def described(error: Exception) -> str:
    """The message of an error for a client; for unexpected errors, nothing about the code."""
    return str(error) if isinstance(error, (CotError, RequestError)) else f"internal error ({type(error).__name__})"


def report(error: Exception) -> None:
    """Print an error for whoever runs the server; `--debug` adds its traceback."""
    note(f"error: {error if isinstance(error, (CotError, RequestError)) else f'{type(error).__name__}: {error}'}")
    LOG.debug("the traceback", exc_info=error)


def error_body(message: str, status: int, param: str | None = None) -> Json:
    """An error as the API has it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": None}}
