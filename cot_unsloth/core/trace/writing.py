"""Writing traces: rendering them, locating corrupted steps in the rendered text, and continuing an unfinished trace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from cot_unsloth.core.trace.grammar import tags
from cot_unsloth.core.trace.parser import Scanner, parse
from cot_unsloth.core.types import Part, ThinkingTags, Trace, TraceLayout


def render(trace: Trace, layout: TraceLayout = "nested", thinking_tags: ThinkingTags = "thinking") -> str:
    """A trace as text.

    >>> print(render(Trace((Part("think", "1 + 1 = 2"),), "2")))
    <thinking>
    1 + 1 = 2
    </thinking>
    <output>2</output>
    """
    return "".join(text for text, _ in _pieces(trace, layout, thinking_tags))


def _pieces(trace: Trace, layout: TraceLayout, thinking_tags: ThinkingTags) -> Iterator[tuple[str, Part | None]]:
    """A rendered trace in pieces, with the part that each piece renders."""
    nested = layout == "nested"
    inside = [part for part in trace.parts if nested or part.kind == "think"]
    opening, closing = tags("thinking", thinking_tags)
    yield opening, None
    for part in inside:
        yield "\n", None
        yield _part_text(part), part
    yield f"\n{closing}" if inside else f"\n\n{closing}", None
    for part in trace.parts:
        if not nested and part.kind == "reflect":
            yield "\n", None
            yield _part_text(part), part
    opening, closing = tags("output")
    yield f"\n{opening}{trace.output}{closing}", None


def _part_text(part: Part) -> str:
    if part.kind == "think":
        return part.text
    opening, closing = tags("reflection")
    return f"{opening}{part.text}{closing}"


def corrupted_spans(
    trace: Trace, layout: TraceLayout = "nested", thinking_tags: ThinkingTags = "thinking"
) -> list[tuple[int, int]]:
    """Begin and end, in the rendered text, of the steps that were corrupted on purpose; their corrections are not included.

    >>> trace = Trace((Part("think", "1 + 1 = 3", injected=True), Part("reflect", "it is 2", injected=True)), "2")
    >>> [render(trace)[begin:end] for begin, end in corrupted_spans(trace)]
    ['1 + 1 = 3']
    """
    # Offsets are counted while rendering, not searched for afterwards: a wrong step may also be quoted in its correction.
    spans, at = [], 0
    for text, part in _pieces(trace, layout, thinking_tags):
        if part is not None and part.injected and part.kind == "think":
            spans.append((at, at + len(text)))
        at += len(text)
    return spans


def join_reasoning(reasoning: str, content: str, thinking_tags: ThinkingTags = "thinking") -> str:
    """An assistant's turn whose reasoning is stored apart from its content, as one text.

    >>> join_reasoning("1 + 1 = 2", "two")
    '<thinking>\\n1 + 1 = 2\\n</thinking>\\ntwo'
    """
    opening, closing = tags("thinking", thinking_tags)
    return f"{opening}\n{reasoning}\n{closing}\n{content}"


def rewrite_turn(text: str, layout: TraceLayout, thinking_tags: ThinkingTags) -> str:
    """An earlier turn of the assistant in the layout and with the tags of a run; turns are stored nested, with `<thinking>`.

    A text that is not a valid trace keeps its order.

    >>> text = "<thinking>\\na\\n<reflection>b</reflection>\\n</thinking>\\n<output>1</output>"
    >>> rewrite_turn(text, "sequential", "think")
    '<think>\\na\\n</think>\\n<reflection>b</reflection>\\n<output>1</output>'
    """
    trace = parse(text).trace if layout == "sequential" else None
    if trace is not None and any(part.kind == "reflect" for part in trace.parts):
        text = render(trace, layout)
    return with_tags(text, thinking_tags)


def with_tags(text: str, thinking_tags: ThinkingTags) -> str:
    """A text with the thinking tags of a run in place of the default ones.

    >>> with_tags("Reason inside <thinking> tags.", "think")
    'Reason inside <think> tags.'
    """
    for default, tag in zip(tags("thinking"), tags("thinking", thinking_tags), strict=True):
        text = text.replace(default, tag)
    return text


def lines_as_steps(text: str) -> tuple[Part, ...]:
    """The lines of a text as steps of thinking, without blank ones."""
    return tuple(Part("think", line.strip()) for line in text.splitlines() if line.strip())


def trimmed_lines(parts: Iterable[Part]) -> list[Part]:
    """Parts without blank lines, and without white space at the ends of lines: neither is a step, nor makes one wrong.

    >>> trimmed_lines([Part("think", "1 + 1 = 2 \\n\\n2 + 1 = 3")])[0].text.splitlines()
    ['1 + 1 = 2', '2 + 1 = 3']
    """
    texts = ((part, [line.rstrip() for line in part.text.splitlines() if line.strip()]) for part in parts)
    return [replace(part, text="\n".join(lines)) for part, lines in texts if lines]


# Continuing an unfinished trace (budget forcing, Muennighoff et al. 2025, arXiv 2501.19393) ---------------------------


def end_thinking(text: str, thinking_tags: ThinkingTags = "thinking") -> str:
    """What to append to an unfinished text so that its thinking ends and its output begins; "" if it is in its output.

    >>> end_thinking("<thinking>\\n1 + 1 = 2\\n<reflection>no")
    '</reflection>\\n</thinking>\\n<output>'
    """
    scanner = Scanner(thinking_tags)
    scanner.feed(text)
    if "output" in scanner.open_sections:
        return ""
    closing = "".join(tags(section, thinking_tags)[1] + "\n" for section in reversed(scanner.open_sections))
    # Written as training rows are: a closing reflection follows its text at once, all other tags are on a new line.
    line_break = "" if text.endswith("\n") or closing.startswith(tags("reflection")[1]) else "\n"
    return f"{line_break}{closing}{tags('output')[0]}"


def strip_partial_tag(text: str, thinking_tags: ThinkingTags = "thinking") -> str:
    """A text without an incomplete tag at its end, where a token budget may have cut it.

    >>> strip_partial_tag("1 + 1 = 2</thin")
    '1 + 1 = 2'
    """
    scanner = Scanner(thinking_tags)
    scanner.feed(text)
    return text.removesuffix(scanner.discard_pending())


def reopen_thinking(text: str, thinking_tags: ThinkingTags = "thinking", layout: TraceLayout = "nested") -> str | None:
    """A finished text up to the end of its thinking, with a new reflection opened; None if its thinking did not end.

    In the layout `sequential`, reflections follow the thinking: up to the output.

    >>> text = "<thinking>\\n1 + 1 = 2\\n</thinking>\\n<output>2</output>"
    >>> reopen_thinking(text), reopen_thinking(text, layout="sequential")
    ('<thinking>\\n1 + 1 = 2\\n<reflection>', '<thinking>\\n1 + 1 = 2\\n</thinking>\\n<reflection>')
    """
    before, closing, after = text.rpartition(tags("thinking", thinking_tags)[1])
    if layout == "sequential":
        before += closing + after.partition(tags("output")[0])[0]
    return f"{before.rstrip()}\n{tags('reflection')[0]}" if closing else None
