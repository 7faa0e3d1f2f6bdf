"""The grammar of a chain of thought; nobody else spells a tag.

    <thinking>
    step text
    <reflection>what was wrong, and the mended step</reflection>
    step text
    </thinking>
    <output>the answer</output>

`nested` is the layout above; `sequential` writes thinking, reflection and output one after the
other. Both parse. A run may write `<think>` in place of `<thinking>` (`data.thinking_tags`): whatever reads
or writes its traces is given that choice as `thinking_tags`, and the other spelling is plain text to it.
Data sets are read in any dialect, and their rows are kept in the tags above. One incremental scanner
(`Scanner`) serves everything that reads a trace: it gives the same events wherever its input is split.
What is wrong with a text is a list of *named* faults, not a boolean.
"""

from __future__ import annotations

import bisect
import functools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cot_unsloth.core.errors import CotError
from cot_unsloth.core.types import Layout, Part, ThinkingTags, Trace

Section = Literal["thinking", "reflection", "output"]
SECTIONS: tuple[Section, ...] = ("thinking", "reflection", "output")
Fault = Literal[
    "missing_thinking", "missing_output",
    "unclosed_thinking", "unclosed_reflection", "unclosed_output",
    "repeated_thinking", "repeated_output",
    "empty_thinking", "empty_reflection", "empty_output",
    "reordered", "misnested", "stray_close", "stray_text",
]  # fmt: skip


def tags(section: Section, thinking_tags: ThinkingTags = "thinking") -> tuple[str, str]:
    """How a section is opened and closed, for those who write it in another language (a template, say).

    >>> tags("thinking"), tags("thinking", "think"), tags("output", "think")
    (('<thinking>', '</thinking>'), ('<think>', '</think>'), ('<output>', '</output>'))
    """
    name = thinking_tags if section == "thinking" else section
    return f"<{name}>", f"</{name}>"


@dataclass(frozen=True)
class _Tags:
    """The tags of all sections, as a text is searched for them."""

    meaning: Mapping[str, tuple[Section, bool]]
    """Of each tag its section, and whether it closes it."""
    any: re.Pattern[str]
    longest: int


@functools.cache
def _tags(thinking_tags: ThinkingTags) -> _Tags:
    meaning = {tag: (section, tag.startswith("</")) for section in SECTIONS for tag in tags(section, thinking_tags)}
    return _Tags(meaning, re.compile("|".join(map(re.escape, meaning))), max(map(len, meaning)))


_TAG = _tags("thinking").any


def join_reasoning(reasoning: str, content: str, thinking_tags: ThinkingTags = "thinking") -> str:
    """An assistant's turn whose reasoning stands apart from its content, as one text.

    >>> join_reasoning("1 + 1 = 2", "two")
    '<thinking>\\n1 + 1 = 2\\n</thinking>\\ntwo'
    """
    opening, closing = tags("thinking", thinking_tags)
    return f"{opening}\n{reasoning}\n{closing}\n{content}"


def assistant_turn(content: str, reasoning: str | None = None, thinking_tags: ThinkingTags = "thinking") -> str:
    """An assistant's turn in our tags, as every earlier turn of a conversation is shown to a model.

    The one dialect of training, chat, server and exported template: content that has none of our tags is the
    output, and reasoning that came apart from it, or in the tags of another dialect, is the thinking.

    >>> assistant_turn("two", "1 + 1 = 2")
    '<thinking>\\n1 + 1 = 2\\n</thinking>\\n<output>two</output>'
    """
    apart = bool(reasoning and reasoning.strip())
    if parse(content, thinking_tags).trace is None and not apart:
        parts, output = _converted(content)
        if parts:
            return render(Trace(parts, output), thinking_tags=thinking_tags)
    if _tags(thinking_tags).any.search(content) is None:
        opening, closing = tags("output")
        content = f"{opening}{content if apart else _converted(content)[1]}{closing}"
    return join_reasoning(reasoning.strip(), content, thinking_tags) if reasoning and reasoning.strip() else content


def _converted(content: str) -> tuple[tuple[Part, ...], str]:
    """The reasoning and the answer of a turn in another dialect; all is the answer where it is in none."""
    try:
        parts, output = split_reasoning(content) or ((), "")
    except TraceError:
        return (), content
    return (tuple(part for part in parts if part.text), output) if output else ((), content)


_REASONING_CLOSED = re.compile(
    r"</\s?(?:think|thinking|thought|thoughts|reasoning|scratchpad|analysis)\s?>", re.IGNORECASE
)


def after_reasoning(text: str) -> str:
    """What stands after the last closed block of reasoning, in whatever tags; the whole text where none is closed.

    >>> after_reasoning("<think>2 + 2 = 5? no</think>4")
    '4'
    """
    found = list(_REASONING_CLOSED.finditer(text))
    rest = text[found[-1].end() :] if found else ""
    return rest if rest.strip() else text


def closes_reasoning(text: str) -> bool:
    """Whether a block of reasoning ends in a text, in whatever tags."""
    return _REASONING_CLOSED.search(text) is not None


class TraceError(CotError):
    """A text is not a trace; `fault` says in which way."""

    def __init__(self, fault: str, detail: str) -> None:
        super().__init__(detail)
        self.fault = fault


@dataclass(frozen=True)
class Event:
    """A stretch of text, or a tag. `section` is the innermost one open (None outside)."""

    kind: Literal["text", "open", "close"]
    section: Section | None
    text: str = ""


class _Sections:
    """Sections that are open, outermost first; whether one is takes no search, however many there are."""

    def __init__(self) -> None:
        self._all: list[Section] = []
        self._depth: Counter[Section] = Counter()

    def __contains__(self, section: Section) -> bool:
        return self._depth[section] > 0

    def __iter__(self) -> Iterator[Section]:
        return iter(self._all)

    @property
    def innermost(self) -> Section | None:
        return self._all[-1] if self._all else None

    def opened(self, section: Section) -> None:
        self._all.append(section)
        self._depth[section] += 1

    def closed(self, section: Section) -> list[Section]:
        """Close one that is open; returns it after all inside it, innermost first."""
        ended: list[Section] = []
        while not ended or ended[-1] != section:
            ended.append(self._all.pop())
            self._depth[ended[-1]] -= 1
        return ended


class Scanner:
    """Reads a trace in pieces of any size.

    Text is given on as soon as it cannot be the beginning of a tag. Adjacent text events of one
    section, joined, are the same however the input was cut.

    >>> scanner = Scanner()
    >>> [e.kind for piece in ("<thin", "king>a", "</thinking>") for e in scanner.feed(piece)]
    ['open', 'text', 'close']
    """

    def __init__(self, thinking_tags: ThinkingTags = "thinking") -> None:
        self._tags = _tags(thinking_tags)
        self._held = ""
        self._open = _Sections()

    @property
    def section(self) -> Section | None:
        """The innermost open section."""
        return self._open.innermost

    @property
    def open_sections(self) -> tuple[Section, ...]:
        """All open sections, outermost first."""
        return tuple(self._open)

    def drop_held(self) -> str:
        """Forget what was held back as the possible beginning of a tag; returns it."""
        held, self._held = self._held, ""
        return held

    def feed(self, piece: str) -> list[Event]:
        """The events that `piece` completes."""
        text = self._held + piece
        events: list[Event] = []
        at = 0
        for tag in self._tags.any.finditer(text):
            events += self._text(text[at : tag.start()])
            events.append(self._tag(tag[0]))
            at = tag.end()
        keep = self._possible_tag(text, at)
        events += self._text(text[at:keep])
        self._held = text[keep:]
        return events

    def close(self) -> list[Event]:
        """The end of the input: what was held back was text after all."""
        events = self._text(self._held)
        self._held = ""
        return events

    def _text(self, text: str) -> list[Event]:
        return [Event("text", self.section, text)] if text else []

    def _tag(self, tag: str) -> Event:
        section, closing = self._tags.meaning[tag]
        if not closing:
            self._open.opened(section)
        elif section in self._open:
            self._open.closed(section)
        return Event("close" if closing else "open", section)

    def _possible_tag(self, text: str, start: int) -> int:
        """Where the tail of `text` begins that may yet become a tag (its length if none)."""
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
    """What a text holds, and everything that is wrong with it."""

    parts: tuple[Part, ...]
    output: str | None
    """The last output section; None where there is none, or it never closes."""
    faults: tuple[Fault, ...]
    """In the order they are met, each once."""

    @property
    def trace(self) -> Trace | None:
        """The trace, where the text is a valid one."""
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


def section_spans(text: str, thinking_tags: ThinkingTags = "thinking") -> list[tuple[Section | None, int, int]]:
    """A text from end to end in stretches of one section; a tag belongs to the section that it opens or closes.

    >>> [(s, b, e) for s, b, e in section_spans("<output>1</output>.")]
    [('output', 0, 8), ('output', 8, 9), ('output', 9, 18), (None, 18, 19)]
    """
    spans: list[tuple[Section | None, int, int]] = []
    open_, at = _Sections(), 0
    for tag in _tags(thinking_tags).any.finditer(text):
        if tag.start() > at:
            spans.append((open_.innermost, at, tag.start()))
        section, closing = _tags(thinking_tags).meaning[tag[0]]
        spans.append((section, *tag.span()))
        if not closing:
            open_.opened(section)
        elif section in open_:
            open_.closed(section)
        at = tag.end()
    return [*spans, (open_.innermost, at, len(text))] if at < len(text) else spans


def thinking_lines(text: str, thinking_tags: ThinkingTags = "thinking") -> Iterator[tuple[int, int]]:
    r"""Where the whole lines of thinking stand: ended by a line break, without a tag, outside reflections.

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


def cut_thinking(text: str, thinking_tags: ThinkingTags = "thinking") -> str:
    """What to write after an unfinished text so that its thinking is over and its output begins.

    >>> cut_thinking("<thinking>\\n1 + 1 = 2\\n<reflection>no")
    '</reflection>\\n</thinking>\\n<output>'
    """
    scanner = Scanner(thinking_tags)
    scanner.feed(text)
    if "output" in scanner.open_sections:
        return ""
    closing = "".join(tags(section, thinking_tags)[1] + "\n" for section in reversed(scanner.open_sections))
    begun = "" if text.endswith("\n") or closing.startswith(tags("reflection")[1]) else "\n"
    return f"{begun}{closing}{tags('output')[0]}"


def without_half_a_tag(text: str, thinking_tags: ThinkingTags = "thinking") -> str:
    """A text without what may be the beginning of a tag at its end, as a budget may have cut it off there.

    >>> without_half_a_tag("1 + 1 = 2</thin")
    '1 + 1 = 2'
    """
    scanner = Scanner(thinking_tags)
    scanner.feed(text)
    return text.removesuffix(scanner.drop_held())


def think_again(text: str, thinking_tags: ThinkingTags = "thinking") -> str | None:
    """A finished text up to where its thinking ended, with a reflection begun; None where its thinking never ended.

    >>> think_again("<thinking>\\n1 + 1 = 2\\n</thinking>\\n<output>2</output>")
    '<thinking>\\n1 + 1 = 2\\n<reflection>'
    """
    before, closing, _ = text.rpartition(tags("thinking", thinking_tags)[1])
    return f"{before.rstrip()}\n{tags('reflection')[0]}" if closing else None


class _Reader:
    """Turns events into parts and faults. Lives for one text."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.parts: list[Part] = []
        self.outputs: list[str] = []
        self.open = _Sections()
        self.seen: dict[Section, None] = {}
        """In the order in which each was first opened."""
        self.thought = False
        """Whether any part has text."""
        self.buffer: dict[Section, str] = {}

    def read(self, events: Iterable[Event]) -> Parsed:
        for event in events:
            match event.kind:
                case "text":
                    self._text(event.text)
                case "open":
                    self._opened(event.section)
                case "close":
                    self._closed(event.section)
        self._ended()
        output = self.outputs[-1] if self.outputs and "output" not in self.open else None
        return Parsed(tuple(self.parts), output, tuple(dict.fromkeys(self.faults)))

    def _text(self, text: str) -> None:
        if self.open.innermost:
            self.buffer[self.open.innermost] += text
        elif text.strip():
            self.faults.append("stray_text")

    def _opened(self, section: Section | None) -> None:
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
        self.open.opened(section)
        self.seen[section] = None
        self.buffer[section] = ""

    def _closed(self, section: Section | None) -> None:
        assert section is not None
        if section not in self.open:
            self.faults.append("stray_close")
            return
        *inside, itself = self.open.closed(section)
        for inner in inside:
            self.faults.append(_unclosed(inner))
            self._finish(inner)
        self._finish(itself)

    def _finish(self, section: Section) -> None:
        if section == "thinking":
            self._flush_thinking()
            if not self.thought:
                self.faults.append("empty_thinking")
            return
        text = self.buffer[section].strip()
        if not text:
            self.faults.append("empty_reflection" if section == "reflection" else "empty_output")
        if section == "reflection":
            self.parts.append(Part("reflect", text))
            self.thought |= bool(text)
        else:
            self.outputs.append(text)

    def _flush_thinking(self) -> None:
        text = self.buffer["thinking"].strip()
        if text:
            self.parts.append(Part("think", text))
            self.thought = True
        self.buffer["thinking"] = ""

    def _ended(self) -> None:
        for section in reversed(tuple(self.open)):
            self.faults.append(_unclosed(section))
            if section == "thinking":
                self._flush_thinking()
        if "thinking" not in self.seen:
            self.faults.append("missing_thinking")
        if "output" not in self.seen:
            self.faults.append("missing_output")


def _unclosed(section: Section) -> Fault:
    faults: dict[Section, Fault] = {
        "thinking": "unclosed_thinking",
        "reflection": "unclosed_reflection",
        "output": "unclosed_output",
    }
    return faults[section]


def render(trace: Trace, layout: Layout = "nested", thinking_tags: ThinkingTags = "thinking") -> str:
    """Write a trace out.

    >>> print(render(Trace((Part("think", "1 + 1 = 2"),), "2")))
    <thinking>
    1 + 1 = 2
    </thinking>
    <output>2</output>
    """
    return "".join(text for text, _ in _pieces(trace, layout, thinking_tags))


def as_written(text: str, layout: Layout, thinking_tags: ThinkingTags) -> str:
    """An earlier turn of the assistant, written as a run writes traces: in its layout, with its tags.

    Only the sequential layout moves anything: turns are stored nested, with the default tags. A text that is no valid
    trace is not moved.

    >>> as_written("<thinking>\\na\\n<reflection>b</reflection>\\n</thinking>\\n<output>1</output>", "sequential", "think")
    '<think>\\na\\n</think>\\n<reflection>b</reflection>\\n<output>1</output>'
    """
    read = parse(text).trace if layout == "sequential" else None
    if read is not None and any(part.kind == "reflect" for part in read.parts):
        text = render(read, layout)
    return with_tags(text, thinking_tags)


def with_tags(text: str, thinking_tags: ThinkingTags) -> str:
    """A text in which the default tags stand, with those of a run in their place.

    >>> with_tags("Reason inside <thinking> tags.", "think")
    'Reason inside <think> tags.'
    """
    for default, written in zip(tags("thinking"), tags("thinking", thinking_tags), strict=True):
        text = text.replace(default, written)
    return text


def wrong_spans(
    trace: Trace, layout: Layout = "nested", thinking_tags: ThinkingTags = "thinking"
) -> list[tuple[int, int]]:
    """Where, in the rendered text, the steps stand that were made wrong on purpose; their mends are not among them.

    >>> trace = Trace((Part("think", "1 + 1 = 3", injected=True), Part("reflect", "it is 2", injected=True)), "2")
    >>> [render(trace)[begin:end] for begin, end in wrong_spans(trace)]
    ['1 + 1 = 3']
    """
    spans, at = [], 0
    for text, part in _pieces(trace, layout, thinking_tags):
        if part is not None and part.injected and part.kind == "think":
            spans.append((at, at + len(text)))
        at += len(text)
    return spans


def _pieces(trace: Trace, layout: Layout, thinking_tags: ThinkingTags) -> Iterator[tuple[str, Part | None]]:
    """A rendered trace in pieces, each with the part it writes out."""
    nested = layout == "nested"
    inside = [part for part in trace.parts if nested or part.kind == "think"]
    opening, closing = tags("thinking", thinking_tags)
    yield opening, None
    for part in inside:
        yield "\n", None
        yield _written(part), part
    yield f"\n{closing}" if inside else f"\n\n{closing}", None
    for part in trace.parts:
        if not nested and part.kind == "reflect":
            yield "\n", None
            yield _written(part), part
    yield f"\n<output>{trace.output}</output>", None


def _written(part: Part) -> str:
    return f"<reflection>{part.text}</reflection>" if part.kind == "reflect" else part.text


def steps_of(text: str) -> tuple[Part, ...]:
    """Lines of prose as thinking parts, blank ones left out."""
    return tuple(Part("think", line.strip()) for line in text.splitlines() if line.strip())


_THINKING_NAMES = (
    "think", "thinking", "thought", "thoughts", "reasoning", "reason", "scratchpad", "analysis", "cot",
    "chain_of_thought", "rationale", "inner_thoughts", "inner_monologue", "thought_process", "seed:think", "working_out",
)  # fmt: skip
_ANSWER_NAMES = ("answer", "final_answer", "output", "response", "solution", "final", "result", "conclusion")
_REFLECTION_NAMES = ("reflection", "reflect")
_OPENING_OPTIONAL = ("think", "thinking")
"""Templates of reasoning models (DeepSeek-R1, QwQ) put the opening tag into the prompt, so that answers begin without."""
_ANSWER_ALONE = ("answer", "final_answer", "output", "solution")
"""Tags that mark an answer in a text whose reasoning has no tags; the other names are common in XML and HTML."""
_OPENINGS: dict[str, tuple[str, Section]] = {}
"""Each way of opening a section that data sets use, in small letters: how it is closed, and the section it is."""
for _section, _names in (
    ("thinking", _THINKING_NAMES),
    ("output", _ANSWER_NAMES),
    ("reflection", _REFLECTION_NAMES),
):
    for _name in _names:
        _OPENINGS[f"<{_name}>"] = f"</{_name}>", _section  # type: ignore[assignment]
        _OPENINGS[f"<|begin_of_{_name}|>"] = f"<|end_of_{_name}|>", _section  # type: ignore[assignment]
        _OPENINGS[f"<|start_{_name}|>"] = f"<|end_{_name}|>", _section  # type: ignore[assignment]
        _OPENINGS[f"<start_{_name}>"] = f"<end_{_name}>", _section  # type: ignore[assignment]
_OPENINGS |= {
    "[think]": ("[/think]", "thinking"),
    "◁think▷": ("◁/think▷", "thinking"),
    "<|inner_prefix|>": ("<|inner_suffix|>", "thinking"),
}
_CLOSINGS = {closing: opening for opening, (closing, _) in _OPENINGS.items()}
_NAMES = "|".join((*_THINKING_NAMES, *_ANSWER_NAMES, *_REFLECTION_NAMES))
_ANY_TAG = re.compile(
    rf"<(?:(?:/|start_|end_)?(?:{_NAMES})>|\|(?:(?:(?:begin|end)_of|start|end)_(?:{_NAMES})|inner_(?:pre|suf)fix)\|>)"
    r"|\[/?think\]|◁/?think▷",
    re.IGNORECASE,
)
"""Each of `_OPENINGS` and `_CLOSINGS`; few first characters make the search fast."""
_CHANNEL = re.compile(
    r"(?:<\|start\|>assistant)?<\|channel\|>(?P<name>analysis|commentary|final)[^<\n]*<\|message\|>"
    r"(?P<text>(?:(?!<\|(?:end|return|call|start|channel)\|>).)*)(?P<end><\|(?:end|return|call)\|>)?\s*",
    re.DOTALL,
)
"""A message of gpt-oss."""
_HEADED = re.compile(
    r"\s*(?:#{1,4} ?|\*\*)(?:thinking|thoughts?|thought process|reasoning)[:*]*[ \t]*\n(?P<thinking>.*)"
    r"\n(?:#{1,4} ?|\*\*)(?:final )?(?:response|answer|output)[:*]*[ \t]*\n(?P<output>.*)",
    re.DOTALL | re.IGNORECASE,
)
"""Reasoning and answer under a heading each, as HuatuoGPT-o1 writes them."""
_CODE = re.compile(r"^[ \t]*```.*?^[ \t]*```|`[^`\n]+`", re.DOTALL | re.MULTILINE)
_END_OF_TURN = re.compile(
    r"(?:\s*(?:<\|(?:im_end|endoftext|eot_id|end_of_text|end|return|eom_id)\|>|</s>|<end_of_turn>|<eos>"
    r"|<｜end▁of▁sentence｜>))+\s*\Z"
)
_LONGEST_LEAD = 300
"""Characters that may stand before the first tag; more is an answer that only mentions a tag."""


def has_tags(text: str) -> bool:
    """Whether a text is written in our tags or with `<think>`, faults aside."""
    return "<think>" in text or _TAG.search(text) is not None


COMMON_TAGS = "<think> and </think>"
"""The tags around reasoning that most data sets have, for messages about what to write."""


def own_tag(text: str, thinking_tags: ThinkingTags = "thinking") -> str | None:
    """One of our tags that stands in a text, with a little of what is around it."""
    found = _tags(thinking_tags).any.search(text)
    return None if found is None else f"{found[0]} (in {text[max(0, found.start() - 20) : found.end() + 20]!r})"


def is_tagged(text: str) -> bool:
    """Whether a text's reasoning or answer stands in tags of any dialect we know, faults aside.

    >>> is_tagged("3 + 4 = 7</think>7"), is_tagged("<Thought>3 + 4</Thought>7"), is_tagged("3 + 4 = 7")
    (True, True, False)
    """
    try:
        return split_reasoning(text) is not None
    except TraceError:
        return True


def split_reasoning(text: str) -> tuple[tuple[Part, ...], str] | None:
    r"""The reasoning of an assistant's turn and its answer, in any inline dialect we know; None where it has no tags.

    Dialects: our own tags in either layout; tags around the reasoning (`<think>`, `<Thought>`, `<reasoning>`,
    `<|begin_of_thought|>` and others, in any case), one block or several, without the opening tag too; the rest is
    the answer, in tags of its own (`<answer>`, `<Output>`, `<|begin_of_solution|>`) or bare. Text before the first
    block, and between blocks, is reasoning, so that nothing is lost. Either part may be empty.

    >>> split_reasoning("<Thought>3 + 4 = 7</Thought><Output>7</Output>")
    ((Part(kind='think', text='3 + 4 = 7', injected=False),), '7')

    Raises:
        TraceError: a tag is not closed, or text stands where none may.
    """
    found = _split(text)
    if isinstance(found, TraceError):
        raise TraceError(found.fault, found.message)
    return found


@functools.lru_cache(maxsize=8)
def _split(text: str) -> tuple[tuple[Part, ...], str] | TraceError | None:
    """As `split_reasoning`; a row is asked for it several times while its layout is found out."""
    try:
        return _split_anew(text)
    except TraceError as error:
        return error


def _split_anew(text: str) -> tuple[tuple[Part, ...], str] | None:
    parsed = parse(text)
    if parsed.trace is not None:
        return parsed.parts, parsed.trace.output
    if parsed.faults == ("missing_thinking",) and parsed.output is not None:
        return (), parsed.output
    opened = {tag[0] for tag in _TAG.finditer(text)}
    if {tags("thinking")[0], tags("output")[0]} <= opened:
        # Thinking that never closes makes the sections after it misnested: it is the cause to name.
        cause: Fault = "unclosed_thinking" if "unclosed_thinking" in parsed.faults else parsed.faults[0]
        raise TraceError(cause, f"faults: {', '.join(parsed.faults)}")
    if _CHANNEL.match(text.lstrip()):
        return _channels(text.lstrip())
    blocks, rest = _blocks(text)
    if not blocks and not _answer_alone(rest):
        headed = _HEADED.fullmatch(text)
        return (_thinking(headed["thinking"]), headed["output"].strip()) if headed else None
    lead, output = _answer(rest)
    return (*blocks, *_thinking(lead)), output


def _channels(text: str) -> tuple[tuple[Part, ...], str]:
    messages = list(_CHANNEL.finditer(text))
    parts = tuple(part for found in messages if found["name"] != "final" for part in _thinking(found["text"]))
    if any(found["end"] == "<|call|>" for found in messages):
        raise TraceError("misnested", "a message of gpt-oss calls a tool")
    final = [found for found in messages if found["name"] == "final"]
    if not final:
        raise TraceError("unclosed_thinking", "there is no final channel after the analysis")
    return parts, final[-1]["text"].strip()


def without_end_of_turn(text: str) -> str:
    """A turn without the special tokens that end it, which some exports leave in.

    >>> without_end_of_turn("7<|im_end|>\\n")
    '7'
    """
    found = _END_OF_TURN.search(text, max(0, len(text) - 200))
    return text[: found.start()] if found else text


def _thinking(text: str) -> tuple[Part, ...]:
    return (Part("think", text.strip()),) if text.strip() else ()


@dataclass(frozen=True)
class _Mark:
    """A tag of any dialect, where it stands."""

    opening: str
    """How its section is opened, in small letters: what a pair of tags is known by."""
    section: Section
    closes: bool
    begin: int
    end: int


@functools.lru_cache(maxsize=8)
def _marks(text: str) -> tuple[_Mark, ...]:
    """The tags of a text; those that code only quotes are words."""
    marks = _all_marks(text)
    if not marks or "`" not in text:
        return marks
    quoted: set[_Mark] = set()
    begins = [mark.begin for mark in marks]
    for code in _CODE.finditer(text):
        inside = marks[bisect.bisect_left(begins, code.start()) : bisect.bisect_left(begins, code.end())]
        # A fence that is not closed in the reasoning ends at one in the answer: the tag between them is none that it quotes.
        if not code[0].lstrip().startswith("```") or _is_balanced(inside):
            quoted.update(inside)
    return tuple(mark for mark in marks if mark not in quoted)


def _is_balanced(marks: Sequence[_Mark]) -> bool:
    depth: Counter[str] = Counter()
    for mark in marks:
        depth[mark.opening] += -1 if mark.closes else 1
        if depth[mark.opening] < 0:
            return False
    return not any(depth.values())


def _all_marks(text: str) -> tuple[_Mark, ...]:
    marks: list[_Mark] = []
    for found in _ANY_TAG.finditer(text):
        tag = found[0].lower()
        opening = _CLOSINGS.get(tag, tag)
        if opening in _OPENINGS:
            marks.append(_Mark(opening, _OPENINGS[opening][1], tag in _CLOSINGS, *found.span()))
    return tuple(marks)


def _blocks(text: str) -> tuple[list[Part], str]:  # noqa: C901, PLR0912, PLR0915
    """The reasoning that stands in tags (and what stands before and between them), and the text after the last.

    A tag counts where a block can begin or end; inside a block, other tags are words of the reasoning.
    """
    parts: list[Part] = []
    at = 0
    began: _Mark | None = None
    marks = _marks(text)
    last_closing = {mark.opening: index for index, mark in enumerate(marks) if mark.closes}
    blocks = inner = 0
    to_close = Counter[str]()
    for mark in marks:
        to_close[mark.opening] += 1 if mark.closes else -1
    for index, mark in enumerate(marks):
        to_close[mark.opening] -= 1 if mark.closes else -1
        if mark.section == "output":
            continue
        if began is not None:
            if mark.opening != began.opening:
                continue
            if (
                not mark.closes
            ):  # a block inside it, if there are tags left to close both; else it only mentions the tag
                inner += to_close[mark.opening] >= inner + 2
            elif inner:
                inner -= 1
            else:
                parts += _block(began, text[began.end : mark.begin])
                at, began, blocks = mark.end, None, blocks + 1
        elif not mark.closes:
            closed = last_closing.get(mark.opening, -1) > index
            if blocks and not closed:
                continue  # the answer mentions a tag
            if not blocks and len(text[: mark.begin].strip()) > _LONGEST_LEAD:
                continue
            if mark.section == "reflection" and not blocks:
                continue
            if not closed:
                raise TraceError(_unclosed(mark.section), f"{text[mark.begin : mark.end]} is not closed")
            parts += _thinking(text[at : mark.begin])
            at, began = mark.end, mark
        elif not blocks and mark.opening.strip("<>") in _OPENING_OPTIONAL:
            parts += _thinking(text[: mark.begin])
            at, blocks = mark.end, 1
    if blocks and not parts:
        parts = [Part("think", "")]  # tags around nothing: still a text with tags
    return parts, text[at:]


def _block(mark: _Mark, text: str) -> list[Part]:
    """One block as parts: the reflections in it stand apart."""
    if mark.section == "reflection":
        return [Part("reflect", text.strip())] if text.strip() else []
    parts: list[Part] = []
    at = 0
    began: _Mark | None = None
    for inner in _marks(text):
        if inner.section != "reflection":
            continue
        if began is None and not inner.closes:
            parts += _thinking(text[at : inner.begin])
            began = inner
        elif began is not None and inner.closes and inner.opening == began.opening:
            parts += _block(began, text[began.end : inner.begin])
            at, began = inner.end, None
    if began is not None:
        raise TraceError("unclosed_reflection", f"{text[began.begin : began.end]} is not closed")
    return [*parts, *_thinking(text[at:])]


def _answer_pairs(text: str) -> list[tuple[_Mark, _Mark]]:
    pairs: list[tuple[_Mark, _Mark]] = []
    began: _Mark | None = None
    for mark in _marks(text):
        if mark.section != "output":
            continue
        if began is None and not mark.closes:
            began = mark
        elif began is not None and mark.closes and mark.opening == began.opening:
            pairs.append((began, mark))
            began = None
    return pairs


def _answer_alone(text: str) -> bool:
    """Whether a text without tags around its reasoning ends in a tagged answer."""
    pairs = _answer_pairs(text)
    return bool(pairs) and pairs[-1][0].opening.strip("<>") in _ANSWER_ALONE and not text[pairs[-1][1].end :].strip()


def _answer(text: str) -> tuple[str, str]:
    """What stands before a tagged answer, and the answer; a bare text is the answer."""
    pairs = _answer_pairs(text)
    begins = text.strip()
    first = next(iter(_marks(begins)), None)
    leads = first is not None and first.begin == 0 and first.section == "output" and not first.closes
    if not pairs:
        if leads and first is not None:
            raise TraceError("unclosed_output", f"{begins[first.begin : first.end]} is not closed")
        return "", begins
    (opening, closing), after = pairs[-1], text[pairs[-1][1].end :].strip()
    if after:
        if leads:
            raise TraceError("stray_text", f"text follows {text[closing.begin : closing.end]}: {after[:80]!r}")
        return "", begins  # the answer mentions a pair of tags
    lead, at = "", 0
    for began, ended in pairs[:-1]:
        lead += text[at : began.begin] + text[began.end : ended.begin]
        at = ended.end
    return lead + text[at : opening.begin], text[opening.end : closing.begin].strip()


def asks_for_other_tags(system_prompt: str, thinking_tags: ThinkingTags = "thinking") -> bool:
    """Whether a system prompt names tags of another dialect, which an answer in our tags would not follow.

    >>> asks_for_other_tags("Reason in <think> tags."), asks_for_other_tags("Reason in <thinking> tags.")
    (True, False)
    """
    ours = _tags(thinking_tags).meaning
    return any(system_prompt[mark.begin : mark.end] not in ours for mark in _all_marks(system_prompt))


def unwrap_answer(text: str) -> str:
    """An answer without the tags around it, if it stands in some.

    >>> unwrap_answer("<answer> 7 </answer>"), unwrap_answer("7")
    ('7', '7')
    """
    pairs = _answer_pairs(text)
    if len(pairs) == 1 and not text[: pairs[0][0].begin].strip() and not text[pairs[0][1].end :].strip():
        return text[pairs[0][0].end : pairs[0][1].begin].strip()
    return text.strip()


def unwrap_thinking(text: str) -> tuple[Part, ...]:
    """Reasoning that came in a field of its own, without the tags that some data sets leave around it.

    >>> [part.text for part in unwrap_thinking("<think>3 + 4 = 7</think>")]
    ['3 + 4 = 7']

    Tags are taken off where they wrap it, or where it ends in a closing tag alone, whose opening one was in the prompt.

    Raises:
        TraceError: a tag is not closed, or text stands outside the tags: it may be an answer, or the tag a stray one.
    """
    stripped = text.strip()
    marks = [mark for mark in _marks(stripped) if mark.section == "thinking"]
    if marks and not marks[0].closes and marks[0].begin == 0:
        first, closing = marks[0], _OPENINGS[marks[0].opening][0]
        if closing not in stripped.lower():  # the answer, and with it the closing tag, is in another field
            return tuple(_block(first, stripped[first.end :]))
    elif not any(mark.closes for mark in marks):
        return tuple(_block(_Mark("<think>", "thinking", False, 0, 0), stripped))
    elif len(marks) == 1 and marks[0].end == len(stripped):
        return tuple(_block(_Mark("<think>", "thinking", False, 0, 0), stripped[: marks[0].begin]))
    parts, rest = _blocks(stripped)
    parts = [part for part in parts if part.text]
    if not parts and rest.strip():
        stray = next(mark for mark in marks if mark.closes)
        raise TraceError("misnested", f"{stripped[stray.begin : stray.end]} closes what nothing opens")
    if rest.strip():
        last = next(mark for mark in reversed(marks) if mark.closes and mark.end <= len(stripped) - len(rest))
        raise TraceError(
            "stray_text",
            f"text follows {stripped[last.begin : last.end]} inside the reasoning: {rest.strip()[:80]!r}; "
            "take the tag out, or the text after it",
        )
    return tuple(parts)


def from_text(text: str, reasoning: str | None = None) -> Trace:
    """Read an assistant's turn in any inline dialect we know, or with its reasoning in a field of its own.

    Raises:
        TraceError: it is none of them, or one with a fault, which is named.
    """
    found = split_reasoning(text)
    field = unwrap_thinking(reasoning) if reasoning is not None else ()
    if found is None:
        if not field:
            parsed = parse(text)
            raise TraceError(parsed.faults[0], f"faults: {', '.join(parsed.faults)}")
        found = field, text.strip()
    elif field:
        found = one_reasoning(found[0], field), found[1]
    parts, output = tuple(part for part in found[0] if part.text), found[1]
    if not parts:
        empty = tags("thinking")[0] in text or tags("output")[0] not in text
        raise TraceError("empty_thinking" if empty else "missing_thinking", "there is no reasoning")
    if not output:
        ours = tags("thinking")[0] in text
        raise TraceError("missing_output" if ours else "empty_output", "there is no answer after the reasoning")
    return Trace(parts, output)


def one_reasoning(inline: tuple[Part, ...], field: tuple[Part, ...]) -> tuple[Part, ...]:
    """The reasoning of a turn that has some in its text and some in a field of its own.

    Raises:
        TraceError: they are not the same.
    """
    inline = tuple(part for part in inline if part.text)
    inline_text, field_text = (" ".join(" ".join(part.text for part in parts).split()) for parts in (inline, field))
    if inline and inline_text != field_text:
        raise TraceError("two_reasonings", "the reasoning in the text is not the one in the field beside it")
    return inline or field
