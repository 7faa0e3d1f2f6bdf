"""One turn of a conversation, streamed and split into thinking, reflection and output.

Used by chat and server. Thinking may have a budget: when it is spent, the thinking is closed and an output opened for
the model, which continues from there (budget forcing: Muennighoff et al., "s1", 2025, arXiv 2501.19393).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from cot_unsloth.core import trace
from cot_unsloth.core.types import Message, Prompt, SamplingParams, StreamedText, ThinkingTags, WrittenToken
from cot_unsloth.models.protocols import Streamer, TokenStreamer


@dataclass(frozen=True)
class TextPiece:
    """Some text of a turn, and its section (None outside all sections)."""

    section: trace.Section | None
    text: str
    tokens: tuple[WrittenToken, ...] = ()
    """Only of a piece without text: the tokens of the pieces that follow, tags included."""


@dataclass
class Turn:
    """One answer of a model; iterate over it to generate it."""

    generator: Streamer
    messages: Sequence[Message]
    sampling: SamplingParams
    max_thinking: int | None = None
    """Budget of thinking in tokens, reflections included; None for no limit."""
    thinking_tags: ThinkingTags = "thinking"
    """The tags around the model's thinking."""
    stops: Sequence[str] = ()
    """Texts at which the answer ends, without them."""
    most_likely: int | None = None
    """Give each token with its log-probability, and so many of the likeliest in its place; None for no tokens."""
    text: str = ""
    """The text so far, tags included, as the history of the next turn needs it."""
    tokens: int = 0
    cut: bool = False
    """Whether its thinking was ended at the budget."""
    _scanner: trace.Scanner = field(init=False)
    _until: _UntilStop = field(init=False)

    def __post_init__(self) -> None:
        self._scanner = trace.Scanner(self.thinking_tags)
        self._until = _UntilStop(self.stops)

    @property
    def finish_reason(self) -> str:
        """Why it ended, as in the OpenAI API: "length" at max_new_tokens, else "stop"."""
        return _finish_reason(self.tokens, self.sampling, self._until)

    def __iter__(self) -> Iterator[TextPiece]:
        yield from self._generate()
        if self.cut and self.finish_reason == "stop":
            self._drop_incomplete_tag()
            yield from self._add(trace.end_thinking(self.text, self.thinking_tags))
            yield from self._generate()
        yield from self._add(self._until.rest())
        if self.finish_reason == "length":  # the last token may be in the middle of a tag
            self._drop_incomplete_tag()
        for event in self._scanner.close():
            yield TextPiece(event.section, event.text)

    def _generate(self) -> Iterator[TextPiece]:
        sampling = replace(self.sampling, max_new_tokens=self.sampling.max_new_tokens - self.tokens)
        limited = self.max_thinking is not None and not self.cut
        with closing(self._stream(sampling)) as pieces:
            for piece in pieces:
                self.tokens += piece.count
                if piece.tokens:
                    yield TextPiece(None, "", piece.tokens)
                yield from self._add(self._until.feed(piece.text))
                if self._until.reached:
                    return
                if limited and self.tokens >= (self.max_thinking or 0) and self._is_thinking():
                    yield from self._add(self._until.rest())
                    self.cut = True
                    return

    def _drop_incomplete_tag(self) -> None:
        self.text = self.text.removesuffix(self._scanner.discard_pending())

    def _stream(self, sampling: SamplingParams) -> Any:
        return _stream(self.generator, Prompt("", tuple(self.messages), self.text), sampling, self.most_likely)

    def _is_thinking(self) -> bool:
        return "thinking" in self._scanner.open_sections

    def _add(self, piece: str) -> Iterator[TextPiece]:
        self.text += piece
        for event in self._scanner.feed(piece):
            if event.kind == "text":
                yield TextPiece(event.section, event.text)


@dataclass
class Continuation:
    """Text that a model continues as it is, without sections; iterate over it to generate it."""

    generator: Streamer
    prompt: Prompt
    """Without messages: its prefix is the text."""
    sampling: SamplingParams
    stops: Sequence[str] = ()
    """Texts at which it ends, without them."""
    most_likely: int | None = None
    """As of a `Turn`."""
    tokens: int = 0
    _until: _UntilStop = field(init=False)

    def __post_init__(self) -> None:
        self._until = _UntilStop(self.stops)

    @property
    def finish_reason(self) -> str:
        """As of a `Turn`."""
        return _finish_reason(self.tokens, self.sampling, self._until)

    def __iter__(self) -> Iterator[TextPiece]:
        with closing(_stream(self.generator, self.prompt, self.sampling, self.most_likely)) as pieces:
            for piece in pieces:
                self.tokens += piece.count
                if piece.tokens:
                    yield TextPiece(None, "", piece.tokens)
                text = self._until.feed(piece.text)
                if text:
                    yield TextPiece(None, text)
                if self._until.reached:
                    return
        if rest := self._until.rest():
            yield TextPiece(None, rest)


def _stream(
    engine: Streamer, prompt: Prompt, sampling: SamplingParams, most_likely: int | None
) -> Generator[StreamedText]:
    """What an engine streams, with the tokens where they are asked for."""
    if most_likely is None:
        texts: Any = engine.stream(prompt, sampling)
        with closing(texts):
            for text in texts:
                yield StreamedText(text, (), getattr(text, "tokens", 1))
        return
    assert isinstance(engine, TokenStreamer)
    pieces: Any = engine.stream_tokens(prompt, sampling, most_likely)
    with closing(pieces):
        yield from pieces


def _finish_reason(tokens: int, sampling: SamplingParams, until: _UntilStop) -> str:
    return "length" if tokens >= sampling.max_new_tokens and not until.reached else "stop"


class _UntilStop:
    """Passes text on up to the first of some stop texts; holds back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.reached = False
        """Whether a stop text has come."""

    def feed(self, piece: str) -> str:
        """The text that is certain to come before any stop text."""
        text = self._held + piece
        ends = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            self.reached, self._held = True, ""
            return text[: min(ends)]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def rest(self) -> str:
        """What was held back, once no more text follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of a text that a stop text begins with, less than all of it."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def history(message: Mapping[str, Any], thinking_tags: ThinkingTags = "thinking") -> Message:
    """A client's message in the form that the model was trained on.

    Clients keep an assistant's reasoning in a field of its own, or drop it: the tags are written again.
    """
    content = message["content"]
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content)
    if message["role"] != "assistant":
        return {"role": message["role"], "content": content}
    text = trace.assistant_turn(content, message.get("reasoning_content"), thinking_tags)
    return {"role": "assistant", "content": text}
