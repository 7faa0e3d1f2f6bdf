"""The parser: one incremental scanner for scoring, chat and server, and the reading of a complete text.

The scanner gives the same events wherever its input is split, so a streamed answer is parsed like a stored one. What is
wrong with a text is a list of named faults, not a boolean: a report can say which fault a model makes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from cot_unsloth.core.trace.grammar import UNCLOSED, Fault, Section, tag_set, tags
from cot_unsloth.core.types import Part, ThinkingTags, Trace


@dataclass(frozen=True)
class Event:
    """A piece of text, or a tag."""

    kind: Literal["text", "open", "close"]
    section: Section | None
    """For text, the innermost open section, or None outside all sections; for a tag, its section."""
    text: str = ""


class _OpenSections:
    """The open sections, outermost first.

    Counting them as well makes `in` take constant time: a model caught in a loop may open thousands.
    """

    def __init__(self) -> None:
        self._stack: list[Section] = []
        self._depth: Counter[Section] = Counter()

    def __contains__(self, section: Section) -> bool:
        return self._depth[section] > 0

    def __iter__(self) -> Iterator[Section]:
        return iter(self._stack)

    @property
    def innermost(self) -> Section | None:
        return self._stack[-1] if self._stack else None

    def open(self, section: Section) -> None:
        self._stack.append(section)
        self._depth[section] += 1

    def close(self, section: Section) -> list[Section]:
        """Close an open section and everything inside it; returns what was closed, innermost first."""
        closed: list[Section] = []
        while not closed or closed[-1] != section:
            closed.append(self._stack.pop())
            self._depth[closed[-1]] -= 1
        return closed


class Scanner:
    """Reads a trace in pieces of any size.

    Text is returned as soon as it cannot be the beginning of a tag. How many text events a stretch of text becomes
    depends on the pieces; joined, adjacent text events of one section are the same for any split of the input.

    >>> scanner = Scanner()
    >>> [e.kind for piece in ("<thin", "king>a</think", "ing>") for e in scanner.feed(piece)]
    ['open', 'text', 'close']
    """

    def __init__(self, thinking_tags: ThinkingTags = "thinking") -> None:
        self._tags = tag_set(thinking_tags)
        self._pending = ""
        self._open = _OpenSections()

    @property
    def section(self) -> Section | None:
        """The innermost open section."""
        return self._open.innermost

    @property
    def open_sections(self) -> tuple[Section, ...]:
        """All open sections, outermost first."""
        return tuple(self._open)

    def discard_pending(self) -> str:
        """Discard the text that is held back because a tag may begin with it; returns it."""
        pending, self._pending = self._pending, ""
        return pending

    def feed(self, piece: str) -> list[Event]:
        """The events that `piece` completes."""
        text = self._pending + piece
        events: list[Event] = []
        at = 0
        for tag in self._tags.pattern.finditer(text):
            events += self._text(text[at : tag.start()])
            events.append(self._tag(tag[0]))
            at = tag.end()
        end = self._possible_tag(text, at)
        events += self._text(text[at:end])
        self._pending = text[end:]
        return events

    def close(self) -> list[Event]:
        """The end of the input: what was held back is text."""
        return self._text(self.discard_pending())

    def _text(self, text: str) -> list[Event]:
        return [Event("text", self.section, text)] if text else []

    def _tag(self, tag: str) -> Event:
        section, closing = self._tags.meaning[tag]
        if not closing:
            self._open.open(section)
        elif section in self._open:
            self._open.close(section)
        return Event("close" if closing else "open", section)

    def _possible_tag(self, text: str, start: int) -> int:
        """Where, at the end of `text`, an incomplete tag begins; its length if there is none."""
        # A tag that is still incomplete is shorter than the longest one, so only the end of the text can hold it.
        at = text.rfind("<", max(start, len(text) - self._tags.longest + 1))
        if at >= 0 and any(tag.startswith(text[at:]) for tag in self._tags.meaning):
            return at
        return len(text)


def scan(pieces: Iterable[str], thinking_tags: ThinkingTags = "thinking") -> Iterator[Event]:
    """All events of a text given in pieces."""
    scanner = Scanner(thinking_tags)
    for piece in pieces:
        yield from scanner.feed(piece)
    yield from scanner.close()


@dataclass(frozen=True)
class Parsed:
    """The content of a text, and everything that is wrong with it."""

    parts: tuple[Part, ...]
    output: str | None
    """The last output section; None if there is none, or it is not closed."""
    faults: tuple[Fault, ...]
    """In the order in which they occur, without repetitions."""

    @property
    def trace(self) -> Trace | None:
        """The trace, if the text is a valid one."""
        return None if self.faults or self.output is None else Trace(self.parts, self.output)


def parse(text: str, thinking_tags: ThinkingTags = "thinking") -> Parsed:
    """Read a completion; never raises.

    >>> parse("<thinking>a</thinking><output>1</output>").faults
    ()
    >>> parse("<output>1</output>").faults
    ('missing_thinking',)
    >>> parse("<think>a</think><output>1</output>", "think").faults
    ()
    """
    return _Reader().read(scan([text], thinking_tags))


def without_incomplete_end(text: str, thinking_tags: ThinkingTags = "thinking") -> str:
    """A text that was cut off at the token limit, without the incomplete line or reflection that its thinking ends in.

    >>> without_incomplete_end("<thinking>\\n1 + 1 = 2\\n2 + ")
    '<thinking>\\n1 + 1 = 2\\n'
    >>> without_incomplete_end("<thinking>\\n1 + 1 = 3\\n<reflection>1 + ")
    '<thinking>\\n1 + 1 = 3\\n'
    >>> without_incomplete_end("<thinking>\\n1 + 1 = 2\\n</thinking>\\n<output>")
    '<thinking>\\n1 + 1 = 2\\n</thinking>\\n<output>'
    """
    scanner = Scanner(thinking_tags)
    scanner.feed(text)
    opening, closing = tags("reflection", thinking_tags)
    if "reflection" in scanner.open_sections:
        return text[: text.rfind(opening)]
    if "thinking" not in scanner.open_sections or text.rstrip().endswith(closing):
        return text
    return text[: text.rfind("\n") + 1]


def section_spans(text: str, thinking_tags: ThinkingTags = "thinking") -> list[tuple[Section | None, int, int]]:
    """A text divided into (section, begin, end), without gaps; a tag belongs to the section that it opens or closes.

    >>> [(s, b, e) for s, b, e in section_spans("<output>1</output>.")]
    [('output', 0, 8), ('output', 8, 9), ('output', 9, 18), (None, 18, 19)]
    """
    spans: list[tuple[Section | None, int, int]] = []
    all_tags, open_sections, at = tag_set(thinking_tags), _OpenSections(), 0
    for tag in all_tags.pattern.finditer(text):
        if tag.start() > at:
            spans.append((open_sections.innermost, at, tag.start()))
        section, closing = all_tags.meaning[tag[0]]
        spans.append((section, *tag.span()))
        if not closing:
            open_sections.open(section)
        elif section in open_sections:
            open_sections.close(section)
        at = tag.end()
    return [*spans, (open_sections.innermost, at, len(text))] if at < len(text) else spans


def thinking_lines(text: str, thinking_tags: ThinkingTags = "thinking") -> Iterator[tuple[int, int]]:
    r"""Begin and end of each complete line of thinking: one with a line break, without a tag, and not in a reflection.

    >>> text = "<thinking>\na\n<reflection>b</reflection>\nc\nd"
    >>> [text[begin:end] for begin, end in thinking_lines(text)]
    ['a', 'c']
    """
    scanner, begin = Scanner(thinking_tags), 0
    for line in text.splitlines(keepends=True):
        events = scanner.feed(line)
        plain = all(event.kind == "text" and event.section == "thinking" for event in events)
        if plain and line.endswith("\n") and line.strip():
            yield begin, begin + len(line) - 1
        begin += len(line)


class _Reader:
    """Turns the events of one text into parts and faults."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.parts: list[Part] = []
        self.outputs: list[str] = []
        self.open = _OpenSections()
        self.seen: dict[Section, None] = {}
        """Sections in the order in which they were first opened; a dict, because sets have no order."""
        self.has_thinking = False
        """Whether any part has text."""
        self.buffer: dict[Section, str] = {}

    def read(self, events: Iterable[Event]) -> Parsed:
        for event in events:
            match event.kind:
                case "text":
                    self._on_text(event.text)
                case "open":
                    self._on_open(event.section)
                case "close":
                    self._on_close(event.section)
        self._on_end()
        # An earlier output does not stand in for a last one that was cut off: the model was still answering.
        output = self.outputs[-1] if self.outputs and "output" not in self.open else None
        return Parsed(tuple(self.parts), output, tuple(dict.fromkeys(self.faults)))

    def _on_text(self, text: str) -> None:
        if self.open.innermost:
            self.buffer[self.open.innermost] += text
        elif text.strip():
            self.faults.append("stray_text")

    def _on_open(self, section: Section | None) -> None:
        assert section is not None
        inside = self.open.innermost
        if inside and (inside, section) != ("thinking", "reflection"):
            self.faults.append("misnested")
        if section == "thinking" and "thinking" in self.seen:
            self.faults.append("repeated_thinking")
        if section == "output" and "output" in self.seen:
            self.faults.append("repeated_output")
        reflected_first = section == "thinking" and next(iter(self.seen), None) == "reflection"
        if reflected_first or (section != "output" and "output" in self.seen):
            self.faults.append("reordered")
        if inside == "thinking":
            self._flush_thinking()
        self.open.open(section)
        # After the checks above, which ask what was open before.
        self.seen[section] = None
        self.buffer[section] = ""

    def _on_close(self, section: Section | None) -> None:
        assert section is not None
        if section not in self.open:
            self.faults.append("stray_close")
            return
        *inside, itself = self.open.close(section)
        # A closing tag closes everything inside its section: after `<thinking><reflection>...</thinking>`, which is one
        # fault, the output can still be read.
        for inner in inside:
            self.faults.append(UNCLOSED[inner])
            self._finish(inner)
        self._finish(itself)

    def _finish(self, section: Section) -> None:
        if section == "thinking":
            self._flush_thinking()
            if not self.has_thinking:
                self.faults.append("empty_thinking")
            return
        text = self.buffer[section].strip()
        if not text:
            self.faults.append("empty_reflection" if section == "reflection" else "empty_output")
        if section == "reflection":
            self.parts.append(Part("reflect", text))
            self.has_thinking |= bool(text)
        else:
            self.outputs.append(text)

    def _flush_thinking(self) -> None:
        text = self.buffer["thinking"].strip()
        if text:
            self.parts.append(Part("think", text))
            self.has_thinking = True
        self.buffer["thinking"] = ""

    def _on_end(self) -> None:
        for section in reversed(tuple(self.open)):
            self.faults.append(UNCLOSED[section])
            if section == "thinking":
                self._flush_thinking()
        # Missing is not the same as empty or unclosed, which are reported where they occur.
        if "thinking" not in self.seen:
            self.faults.append("missing_thinking")
        if "output" not in self.seen:
            self.faults.append("missing_output")
