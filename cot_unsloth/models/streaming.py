"""One turn of a conversation, as it is spoken: told apart into thinking, reflection and output.

What the terminal and the server have in common. Thinking may be given a budget; when that is spent, it
is ended and the output begun for the model, which goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from cot_unsloth.core import trace
from cot_unsloth.core.types import Message, Prompt, SamplingParams, ThinkingTags
from cot_unsloth.models.protocols import Streamer


@dataclass(frozen=True)
class Said:
    """A stretch of text, and the section that it stands in (None outside all)."""

    section: trace.Section | None
    text: str


@dataclass
class Turn:
    """A turn that is being spoken; iterate over it to hear it."""

    generator: Streamer
    messages: Sequence[Message]
    sampling: SamplingParams
    max_thinking: int | None = None
    """Tokens of thinking, reflections counted, before it is ended; None lets it end by itself."""
    thinking_tags: ThinkingTags = "thinking"
    """What the model's thinking stands between."""
    text: str = ""
    """All that was said so far, tags included: what the next turn's history holds."""
    tokens: int = 0
    cut: bool = False
    """Whether its thinking was ended for it."""
    _scanner: trace.Scanner = field(init=False)

    def __post_init__(self) -> None:
        self._scanner = trace.Scanner(self.thinking_tags)

    @property
    def finish_reason(self) -> str:
        """Why it ended, in the words of the OpenAI interface: length where the budget ran out, else stop."""
        return "length" if self.tokens >= self.sampling.max_new_tokens else "stop"

    def __iter__(self) -> Iterator[Said]:
        yield from self._hear()
        if self.cut and self.finish_reason == "stop":
            self._drop_half_a_tag()
            yield from self._say(trace.end_thinking(self.text, self.thinking_tags))
            yield from self._hear()
        if self.finish_reason == "length":  # which may be in the middle of a tag
            self._drop_half_a_tag()
        for event in self._scanner.close():
            yield Said(event.section, event.text)

    def _hear(self) -> Iterator[Said]:
        sampling = replace(self.sampling, max_new_tokens=self.sampling.max_new_tokens - self.tokens)
        limited = self.max_thinking is not None and not self.cut
        with closing(self._stream(sampling)) as pieces:
            for piece in pieces:
                self.tokens += 1
                yield from self._say(piece)
                if limited and self.tokens >= (self.max_thinking or 0) and self._thinks():
                    self.cut = True
                    return

    def _drop_half_a_tag(self) -> None:
        self.text = self.text.removesuffix(self._scanner.discard_pending())

    def _stream(self, sampling: SamplingParams) -> Any:
        return self.generator.stream(Prompt("", tuple(self.messages), self.text), sampling)

    def _thinks(self) -> bool:
        return "thinking" in self._scanner.open_sections

    def _say(self, piece: str) -> Iterator[Said]:
        self.text += piece
        for event in self._scanner.feed(piece):
            if event.kind == "text":
                yield Said(event.section, event.text)


def history(message: Mapping[str, Any], thinking_tags: ThinkingTags = "thinking") -> Message:
    """A message as a client keeps it, as the model was trained to read it.

    An assistant's turn whose reasoning stands apart, or was left out, gets its tags again.
    """
    content = message["content"]
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content)
    if message["role"] != "assistant":
        return {"role": message["role"], "content": content}
    whole = trace.assistant_turn(content, message.get("reasoning_content"), thinking_tags)
    return {"role": "assistant", "content": whole}
