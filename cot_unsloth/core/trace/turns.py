"""Reading an assistant's turn, in our tags or in any dialect, into reasoning and answer.

Two rules guide every decision here. Nothing is lost: text before and between blocks of reasoning is reasoning too. And a
tag that a text only *mentions* is not markup: an answer may explain HTML, and reasoning may talk about its own tags.
"""

from __future__ import annotations

import functools
import re
from collections import Counter

from cot_unsloth.core.trace.dialects import OPENINGS, Mark, tag_marks
from cot_unsloth.core.trace.grammar import UNCLOSED, Fault, TraceError, tag_set, tags
from cot_unsloth.core.trace.parser import parse
from cot_unsloth.core.trace.writing import join_reasoning, render
from cot_unsloth.core.types import Part, ThinkingTags, Trace

_OPENING_OPTIONAL = ("think", "thinking")
"""Templates of reasoning models (DeepSeek-R1, QwQ) put the opening tag into the prompt, so their answers begin without."""
_ANSWER_ALONE = ("answer", "final_answer", "output", "solution")
"""Tags that mark an answer in a text without tags around its reasoning; the other names are common in XML and HTML."""
_CHANNEL = re.compile(
    r"(?:<\|start\|>assistant)?<\|channel\|>(?P<name>analysis|commentary|final)[^<\n]*<\|message\|>"
    r"(?P<text>(?:(?!<\|(?:end|return|call|start|channel)\|>).)*)(?P<end><\|(?:end|return|call)\|>)?\s*",
    re.DOTALL,
)
"""A message of gpt-oss (its "harmony" format)."""
_HEADED = re.compile(
    r"\s*(?:#{1,4} ?|\*\*)(?:thinking|thoughts?|thought process|reasoning)[:*]*[ \t]*\n(?P<thinking>.*)"
    r"\n(?:#{1,4} ?|\*\*)(?:final )?(?:response|answer|output)[:*]*[ \t]*\n(?P<output>.*)",
    re.DOTALL | re.IGNORECASE,
)
"""Reasoning and answer under headings of their own, as HuatuoGPT-o1 writes them."""
_MAX_LEAD = 300
"""Characters that may precede the first tag; after more, the text is an answer that only mentions a tag."""
_UNTAGGED = Mark("<think>", "thinking", closes=False, begin=0, end=0)
"""Stands in for the opening tag of reasoning that has none."""


def assistant_turn(content: str, reasoning: str | None = None, thinking_tags: ThinkingTags = "thinking") -> str:
    """An assistant's turn in our tags, as every earlier turn of a conversation is shown to a model.

    Training, chat, server and exported template all use this one form. Content without our tags is the output;
    reasoning that is stored apart, or is in the tags of another dialect, is the thinking.

    >>> assistant_turn("two", "1 + 1 = 2")
    '<thinking>\\n1 + 1 = 2\\n</thinking>\\n<output>two</output>'
    """
    reasoning = (reasoning or "").strip()
    if parse(content, thinking_tags).trace is None and not reasoning:
        parts, output = _convert(content)
        if parts:
            return render(Trace(parts, output), thinking_tags=thinking_tags)
    if tag_set(thinking_tags).pattern.search(content) is None:
        opening, closing = tags("output")
        content = f"{opening}{content if reasoning else _convert(content)[1]}{closing}"
    return join_reasoning(reasoning, content, thinking_tags) if reasoning else content


def _convert(content: str) -> tuple[tuple[Part, ...], str]:
    """The reasoning and the answer of a turn in another dialect; if it is in none, all of it is the answer."""
    try:
        parts, output = split_reasoning(content) or ((), "")
    except TraceError:
        return (), content
    return (tuple(part for part in parts if part.text), output) if output else ((), content)


def from_text(text: str, reasoning: str | None = None) -> Trace:
    """Read an assistant's turn in any known dialect, with its reasoning inline or in a field of its own.

    Raises:
        TraceError: it is in no dialect, or has a fault, which is named.
    """
    inline = split_reasoning(text)
    field = unwrap_thinking(reasoning) if reasoning is not None else ()
    if inline is None and not field:
        faults = parse(text).faults
        raise TraceError(faults[0], f"faults: {', '.join(faults)}")
    if inline is None:
        parts, output = field, text.strip()
    else:
        parts, output = merge_reasoning(inline[0], field) if field else inline[0], inline[1]
    parts = tuple(part for part in parts if part.text)
    if not parts:
        empty = tags("thinking")[0] in text or tags("output")[0] not in text
        raise TraceError("empty_thinking" if empty else "missing_thinking", "there is no reasoning")
    if not output:
        ours = tags("thinking")[0] in text
        raise TraceError("missing_output" if ours else "empty_output", "there is no answer after the reasoning")
    return Trace(parts, output)


def merge_reasoning(inline: tuple[Part, ...], field: tuple[Part, ...]) -> tuple[Part, ...]:
    """The reasoning of a turn that has some in its text and some in a field of its own.

    Raises:
        TraceError: they differ in more than white space.
    """
    inline = tuple(part for part in inline if part.text)
    inline_text, field_text = (" ".join(" ".join(part.text for part in parts).split()) for parts in (inline, field))
    if inline and inline_text != field_text:
        raise TraceError("two_reasonings", "the reasoning in the text is not the one in the field beside it")
    return inline or field


def is_tagged(text: str) -> bool:
    """Whether reasoning or answer of a text are in tags of any known dialect, valid or not.

    >>> is_tagged("3 + 4 = 7</think>7"), is_tagged("<Thought>3 + 4</Thought>7"), is_tagged("3 + 4 = 7")
    (True, True, False)
    """
    try:
        return split_reasoning(text) is not None
    except TraceError:
        return True


def split_reasoning(text: str) -> tuple[tuple[Part, ...], str] | None:
    r"""The reasoning and the answer of an assistant's turn in any known inline dialect; None if it has no tags.

    Dialects: our own tags in either layout; tags around the reasoning (`<think>`, `<Thought>`, `<reasoning>`,
    `<|begin_of_thought|>` and others, in upper or lower case), one block or several, also without the opening tag; the
    rest is the answer, in tags of its own (`<answer>`, `<Output>`, `<|begin_of_solution|>`) or without. Text before the
    first block and between blocks is reasoning. Either result may be empty.

    >>> split_reasoning("<Thought>3 + 4 = 7</Thought><Output>7</Output>")
    ((Part(kind='think', text='3 + 4 = 7', injected=False),), '7')

    Raises:
        TraceError: a tag is not closed, or there is text where none may be.
    """
    result = _split(text)
    if isinstance(result, TraceError):
        raise TraceError(result.fault, result.message)
    return result


@functools.lru_cache(maxsize=8)
def _split(text: str) -> tuple[tuple[Part, ...], str] | TraceError | None:
    """As `split_reasoning`, cached: layouts ask for the same row several times while they are being detected."""
    try:
        return _split_uncached(text)
    except TraceError as error:
        return error


def _split_uncached(text: str) -> tuple[tuple[Part, ...], str] | None:
    parsed = parse(text)
    if parsed.trace is not None:
        return parsed.parts, parsed.trace.output
    if parsed.faults == ("missing_thinking",) and parsed.output is not None:
        return (), parsed.output
    # With both of our opening tags the text is in our dialect, and its fault is reported. Other texts may be in
    # another one.
    present = {tag[0] for tag in tag_set("thinking").pattern.finditer(text)}
    if {tags("thinking")[0], tags("output")[0]} <= present:
        # Thinking that is not closed makes the sections after it misnested: name the cause, not the consequence.
        cause: Fault = "unclosed_thinking" if "unclosed_thinking" in parsed.faults else parsed.faults[0]
        raise TraceError(cause, f"faults: {', '.join(parsed.faults)}")
    if _CHANNEL.match(text.lstrip()):
        return _read_channels(text.lstrip())
    blocks, rest = _read_blocks(text)
    if not blocks and not _ends_in_tagged_answer(rest):
        headed = _HEADED.fullmatch(text)
        return (_thinking(headed["thinking"]), headed["output"].strip()) if headed else None
    lead, output = _read_answer(rest)
    return (*blocks, *_thinking(lead)), output


def _read_channels(text: str) -> tuple[tuple[Part, ...], str]:
    messages = list(_CHANNEL.finditer(text))
    parts = tuple(part for message in messages if message["name"] != "final" for part in _thinking(message["text"]))
    # Without the tool's answer, what follows would be learnt as a guess.
    if any(message["end"] == "<|call|>" for message in messages):
        raise TraceError("misnested", "a message of gpt-oss calls a tool")
    final = [message for message in messages if message["name"] == "final"]
    if not final:
        raise TraceError("unclosed_thinking", "there is no final channel after the analysis")
    return parts, final[-1]["text"].strip()


def _thinking(text: str) -> tuple[Part, ...]:
    return (Part("think", text.strip()),) if text.strip() else ()


def _read_blocks(text: str) -> tuple[list[Part], str]:
    """The reasoning in tags, with the text before and between the blocks, and the text after the last block."""
    reader = _Blocks(text)
    for index, mark in enumerate(reader.marks):
        reader.read(index, mark)
    if reader.blocks and not reader.parts:
        return [Part("think", "")], text[reader.at :]  # tags around nothing: still a text with tags
    return reader.parts, text[reader.at :]


class _Blocks:
    """Reads the blocks of reasoning in a text, one tag after the other.

    A tag counts only where a block can begin or end; inside a block, other tags are words of the reasoning.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.marks = tag_marks(text)
        self.parts: list[Part] = []
        self.at = 0
        """Where the text begins that has not been read."""
        self.blocks = 0
        """Blocks that have been closed."""
        self._opened: Mark | None = None
        self._depth = 0
        """Blocks of the same tags that are open inside the open one."""
        self._last_closing = {mark.opening: index for index, mark in enumerate(self.marks) if mark.closes}
        self._to_close = Counter[str]()
        """Closing minus opening tags that are still to come, per pair; kept up to date, so that reading stays linear."""
        for mark in self.marks:
            self._to_close[mark.opening] += 1 if mark.closes else -1

    def read(self, index: int, mark: Mark) -> None:
        """Read the next tag.

        Raises:
            TraceError: it opens a block that is not closed.
        """
        self._to_close[mark.opening] -= 1 if mark.closes else -1
        if mark.section == "output":
            return
        if self._opened is not None:
            if mark.opening == self._opened.opening:
                self._read_inside(self._opened, mark)
        elif not mark.closes:
            self._open(index, mark)
        elif not self.blocks and mark.opening.strip("<>") in _OPENING_OPTIONAL:
            self.parts += _thinking(self.text[: mark.begin])
            self.at, self.blocks = mark.end, 1

    def _read_inside(self, opened: Mark, mark: Mark) -> None:
        if not mark.closes:
            # A nested block if enough closing tags follow for it and all that are open; else the text mentions a tag.
            self._depth += self._to_close[mark.opening] >= self._depth + 2
        elif self._depth:
            self._depth -= 1
        else:
            self.parts += _read_block(opened, self.text[opened.end : mark.begin])
            self.at, self._opened = mark.end, None
            self.blocks += 1

    def _open(self, index: int, mark: Mark) -> None:
        is_closed = self._last_closing.get(mark.opening, -1) > index
        if self.blocks and not is_closed:
            return  # the answer mentions a tag
        # Text up to </think> is reasoning however long the text before <think> is.
        ends_anyway = is_closed and mark.opening.strip("<>") in _OPENING_OPTIONAL
        is_far = len(self.text[: mark.begin].strip()) > _MAX_LEAD and not ends_anyway
        if not self.blocks and (mark.section == "reflection" or is_far):
            return
        if not is_closed:
            raise TraceError(UNCLOSED[mark.section], f"{self.text[mark.begin : mark.end]} is not closed")
        self.parts += _thinking(self.text[self.at : mark.begin])
        self.at, self._opened = mark.end, mark


def _read_block(opening: Mark, text: str) -> list[Part]:
    """The content of a block as parts; reflections inside thinking are parts of their own."""
    if opening.section == "reflection":
        return [Part("reflect", text.strip())] if text.strip() else []
    parts: list[Part] = []
    at = 0
    opened: Mark | None = None
    for mark in tag_marks(text):
        if mark.section != "reflection":
            continue
        if opened is None and not mark.closes:
            parts += _thinking(text[at : mark.begin])
            opened = mark
        elif opened is not None and mark.closes and mark.opening == opened.opening:
            parts += _read_block(opened, text[opened.end : mark.begin])
            at, opened = mark.end, None
    if opened is not None:
        raise TraceError("unclosed_reflection", f"{text[opened.begin : opened.end]} is not closed")
    return [*parts, *_thinking(text[at:])]


def _answer_pairs(text: str) -> list[tuple[Mark, Mark]]:
    """The opening and closing tags around answers, in their order."""
    pairs: list[tuple[Mark, Mark]] = []
    opened: Mark | None = None
    for mark in tag_marks(text):
        if mark.section != "output":
            continue
        if opened is None and not mark.closes:
            opened = mark
        elif opened is not None and mark.closes and mark.opening == opened.opening:
            pairs.append((opened, mark))
            opened = None
    return pairs


def _ends_in_tagged_answer(text: str) -> bool:
    """Whether a text without tags around its reasoning ends in a tagged answer."""
    pairs = _answer_pairs(text)
    return bool(pairs) and pairs[-1][0].opening.strip("<>") in _ANSWER_ALONE and not text[pairs[-1][1].end :].strip()


def _read_answer(text: str) -> tuple[str, str]:
    """The text before a tagged answer, and the answer; a text without tags is the answer."""
    pairs = _answer_pairs(text)
    stripped = text.strip()
    first = next(iter(tag_marks(stripped)), None)
    leads = first is not None and first.begin == 0 and first.section == "output" and not first.closes
    if not pairs:
        if leads and first is not None:
            raise TraceError("unclosed_output", f"{stripped[first.begin : first.end]} is not closed")
        return "", stripped
    (opening, closing), after = pairs[-1], text[pairs[-1][1].end :].strip()
    if after:
        if leads:
            raise TraceError("stray_text", f"text follows {text[closing.begin : closing.end]}: {after[:80]!r}")
        return "", stripped  # the answer mentions a pair of tags
    lead, at = "", 0
    for begin, end in pairs[:-1]:
        lead += text[at : begin.begin] + text[begin.end : end.begin]
        at = end.end
    return lead + text[at : opening.begin], text[opening.end : closing.begin].strip()


def stray_closing(text: str) -> str | None:
    """The first `</think>` or `</thinking>` that closes nothing; None if there is none. Code does not count.

    >>> stray_closing("more </think> 7"), stray_closing("<think> is closed by </think>"), stray_closing("`</think>`")
    ('</think>', None, None)
    """
    depth = 0
    for mark in tag_marks(text):
        if mark.opening.strip("<>") in _OPENING_OPTIONAL:
            depth += -1 if mark.closes else 1
            if depth < 0:
                return text[mark.begin : mark.end]
    return None


def unwrap_answer(text: str) -> str:
    """An answer without the tags around it, if there are any.

    >>> unwrap_answer("<answer> 7 </answer>"), unwrap_answer("7")
    ('7', '7')
    """
    pairs = _answer_pairs(text)
    if len(pairs) == 1 and not text[: pairs[0][0].begin].strip() and not text[pairs[0][1].end :].strip():
        return text[pairs[0][0].end : pairs[0][1].begin].strip()
    return text.strip()


def unwrap_thinking(text: str) -> tuple[Part, ...]:
    """Reasoning from a field of its own, without the tags that some data sets leave around it.

    >>> [part.text for part in unwrap_thinking("<think>3 + 4 = 7</think>")]
    ['3 + 4 = 7']

    Tags are removed if they surround it, or if it ends in a closing tag alone, whose opening tag was in the prompt.

    Raises:
        TraceError: a tag is not closed, or there is text outside the tags, which may be an answer.
    """
    stripped = text.strip()
    marks = [mark for mark in tag_marks(stripped) if mark.section == "thinking"]
    if marks and not marks[0].closes and marks[0].begin == 0:
        first, closing = marks[0], OPENINGS[marks[0].opening][0]
        if closing not in stripped.lower():  # the closing tag is in another field, with the answer
            return tuple(_read_block(first, stripped[first.end :]))
    elif not any(mark.closes for mark in marks):
        return tuple(_read_block(_UNTAGGED, stripped))
    elif len(marks) == 1 and marks[0].end == len(stripped):
        return tuple(_read_block(_UNTAGGED, stripped[: marks[0].begin]))
    blocks, rest = _read_blocks(stripped)
    parts = tuple(part for part in blocks if part.text)
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
    return parts
