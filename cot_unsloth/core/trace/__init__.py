"""The grammar of a trace, a chain-of-thought solution in tags.

    <thinking>
    step text
    <reflection>what was wrong, and the corrected step</reflection>
    step text
    </thinking>
    <output>the answer</output>

This is the `nested` layout; `sequential` writes thinking, reflections and output one after the other. Both parse. A run
may write `<think>` in place of `<thinking>` (`data.thinking_tags`): functions that read or write its traces take that
choice as `thinking_tags`, and to them the other spelling is plain text. Data sets are read in any dialect, and their rows
are stored with the tags above.

`grammar` has the tags and the names of faults, `parser` the incremental scanner, `writing` renders and continues traces,
`dialects` lists the tags of others, and `turns` reads an assistant's turn in any of them.
"""

from cot_unsloth.core.trace.dialects import (
    COMMON_TAGS,
    after_reasoning,
    asks_for_other_tags,
    closes_reasoning,
    find_tag,
    has_tags,
    strip_end_of_turn,
    strip_opened_thinking,
)
from cot_unsloth.core.trace.grammar import SECTIONS, Fault, Section, TraceError, tags
from cot_unsloth.core.trace.parser import (
    Event,
    Parsed,
    Scanner,
    parse,
    scan,
    section_spans,
    thinking_lines,
    without_incomplete_end,
)
from cot_unsloth.core.trace.turns import (
    assistant_turn,
    from_text,
    is_tagged,
    merge_reasoning,
    split_reasoning,
    stray_closing,
    unwrap_answer,
    unwrap_thinking,
)
from cot_unsloth.core.trace.writing import (
    corrupted_spans,
    end_thinking,
    join_reasoning,
    lines_as_steps,
    render,
    reopen_thinking,
    rewrite_turn,
    strip_partial_tag,
    trimmed_lines,
    with_tags,
)

__all__ = [
    "COMMON_TAGS",
    "SECTIONS",
    "Event",
    "Fault",
    "Parsed",
    "Scanner",
    "Section",
    "TraceError",
    "after_reasoning",
    "asks_for_other_tags",
    "assistant_turn",
    "closes_reasoning",
    "corrupted_spans",
    "end_thinking",
    "find_tag",
    "from_text",
    "has_tags",
    "is_tagged",
    "join_reasoning",
    "lines_as_steps",
    "merge_reasoning",
    "parse",
    "render",
    "reopen_thinking",
    "rewrite_turn",
    "scan",
    "section_spans",
    "split_reasoning",
    "stray_closing",
    "strip_end_of_turn",
    "strip_opened_thinking",
    "strip_partial_tag",
    "tags",
    "thinking_lines",
    "trimmed_lines",
    "unwrap_answer",
    "unwrap_thinking",
    "with_tags",
    "without_incomplete_end",
]
