"""The tags of other data sets and models, and where they occur in a text.

Names are those of published data sets and chat templates: `<think>` (DeepSeek-R1, QwQ, Qwen3), `<|begin_of_thought|>`
(Sky-T1, Bespoke-Stratos), `[THINK]` (Magistral), `◁think▷` (Kimi), `<seed:think>` (Seed-OSS), `<|inner_prefix|>`
(Apertus), `<Thought>` and `<Output>` (reflection data of 2024), channels (gpt-oss).
"""

from __future__ import annotations

import bisect
import functools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cot_unsloth.core.trace.grammar import Section, tag_set
from cot_unsloth.core.types import ThinkingTags

_THINKING_NAMES = (
    "think", "thinking", "thought", "thoughts", "reasoning", "reason", "scratchpad", "analysis", "cot",
    "chain_of_thought", "rationale", "inner_thoughts", "inner_monologue", "thought_process", "seed:think", "working_out",
)  # fmt: skip
_ANSWER_NAMES = ("answer", "final_answer", "output", "response", "solution", "final", "result", "conclusion")
_REFLECTION_NAMES = ("reflection", "reflect")
_NAMES_OF: tuple[tuple[Section, tuple[str, ...]], ...] = (
    ("thinking", _THINKING_NAMES),
    ("output", _ANSWER_NAMES),
    ("reflection", _REFLECTION_NAMES),
)


def _openings() -> dict[str, tuple[str, Section]]:
    openings: dict[str, tuple[str, Section]] = {}
    for section, names in _NAMES_OF:
        for name in names:
            openings[f"<{name}>"] = f"</{name}>", section
            openings[f"<|begin_of_{name}|>"] = f"<|end_of_{name}|>", section
            openings[f"<|start_{name}|>"] = f"<|end_{name}|>", section
            openings[f"<start_{name}>"] = f"<end_{name}>", section
    openings["[think]"] = "[/think]", "thinking"
    openings["◁think▷"] = "◁/think▷", "thinking"
    openings["<|inner_prefix|>"] = "<|inner_suffix|>", "thinking"
    return openings


OPENINGS = _openings()
"""Opening tags in lower case: the closing tag and the section of each."""
_CLOSINGS = {closing: opening for opening, (closing, _) in OPENINGS.items()}
_NAMES = "|".join(name for _, names in _NAMES_OF for name in names)
_ANY_TAG = re.compile(
    rf"<(?:(?:/|start_|end_)?(?:{_NAMES})>|\|(?:(?:(?:begin|end)_of|start|end)_(?:{_NAMES})|inner_(?:pre|suf)fix)\|>)"
    r"|\[/?think\]|◁/?think▷",
    re.IGNORECASE,
)
"""All of `OPENINGS` and `_CLOSINGS`. Few distinct first characters let the engine skip most of a text."""
COMMON_TAGS = "<think> and </think>"
"""The tags around reasoning that most data sets have, for messages about what to write."""
_CODE = re.compile(r"^[ \t]*```.*?^[ \t]*```|`[^`\n]+`", re.DOTALL | re.MULTILINE)
_END_OF_TURN = re.compile(
    r"(?:\s*(?:<\|(?:im_end|endoftext|eot_id|end_of_text|end|return|eom_id)\|>|</s>|<end_of_turn>|<eos>"
    r"|<｜end▁of▁sentence｜>))+\s*\Z"
)
_REASONING_CLOSED = re.compile(
    r"</\s?(?:think|thinking|thought|thoughts|reasoning|scratchpad|analysis)\s?>", re.IGNORECASE
)


@dataclass(frozen=True)
class Mark:
    """A tag of any dialect, and where it is."""

    opening: str
    """The opening tag of its pair, in lower case; identifies the pair."""
    section: Section
    closes: bool
    begin: int
    end: int


@functools.lru_cache(maxsize=8)
def tag_marks(text: str) -> tuple[Mark, ...]:
    """The tags of a text, without those that code quotes."""
    marks = _all_marks(text)
    if not marks or "`" not in text:
        return marks
    quoted: set[Mark] = set()
    begins = [mark.begin for mark in marks]
    for code in _CODE.finditer(text):
        inside = marks[bisect.bisect_left(begins, code.start()) : bisect.bisect_left(begins, code.end())]
        # A fence left open in the reasoning ends at the first one of the answer. Unbalanced tags between them, such as
        # the </think> that separates the two, are real; code that quotes tags quotes them in pairs.
        if not code[0].lstrip().startswith("```") or _is_balanced(inside):
            quoted.update(inside)
    return tuple(mark for mark in marks if mark not in quoted)


def _is_balanced(marks: Sequence[Mark]) -> bool:
    depth: Counter[str] = Counter()
    for mark in marks:
        depth[mark.opening] += -1 if mark.closes else 1
        if depth[mark.opening] < 0:
            return False
    return not any(depth.values())


def _all_marks(text: str) -> tuple[Mark, ...]:
    marks: list[Mark] = []
    for match in _ANY_TAG.finditer(text):
        tag = match[0].lower()
        opening = _CLOSINGS.get(tag, tag)
        if opening in OPENINGS:
            marks.append(Mark(opening, OPENINGS[opening][1], tag in _CLOSINGS, *match.span()))
    return tuple(marks)


def has_tags(text: str) -> bool:
    """Whether a text contains tags of ours or `<think>`, valid or not."""
    return "<think>" in text or tag_set("thinking").pattern.search(text) is not None


def find_tag(text: str, thinking_tags: ThinkingTags = "thinking") -> str | None:
    """The first of our tags in a text, with 20 characters of context on both sides, for messages."""
    tag = tag_set(thinking_tags).pattern.search(text)
    return None if tag is None else f"{tag[0]} (in {text[max(0, tag.start() - 20) : tag.end() + 20]!r})"


def asks_for_other_tags(system_prompt: str, thinking_tags: ThinkingTags = "thinking") -> bool:
    """Whether a system prompt names tags of another dialect, which answers in our tags would not follow.

    >>> asks_for_other_tags("Reason in <think> tags."), asks_for_other_tags("Reason in <thinking> tags.")
    (True, False)
    """
    ours = tag_set(thinking_tags).meaning
    return any(system_prompt[mark.begin : mark.end] not in ours for mark in _all_marks(system_prompt))


def strip_end_of_turn(text: str) -> str:
    """A turn without the special tokens at its end, which some exported data sets contain.

    >>> strip_end_of_turn("7<|im_end|>\\n")
    '7'
    """
    end = _END_OF_TURN.search(text, max(0, len(text) - 200))
    return text[: end.start()] if end else text


def strip_opened_thinking(prompt: str) -> str:
    """A prompt without the tag at its end that opens the reasoning, which templates of reasoning models write there.

    >>> strip_opened_thinking("3 + 4?\\n<think>\\n"), strip_opened_thinking("What is <think>?")
    ('3 + 4?', 'What is <think>?')
    """
    marks = tag_marks(prompt)
    last = marks[-1] if marks else None
    opens = last is not None and last.section == "thinking" and not last.closes and not prompt[last.end :].strip()
    return prompt[: last.begin].rstrip() if last is not None and opens else prompt


def after_reasoning(text: str) -> str:
    """The text after the last closed block of reasoning, in tags of any dialect; all of it if none is closed.

    >>> after_reasoning("<think>2 + 2 = 5? no</think>4")
    '4'
    """
    closed = list(_REASONING_CLOSED.finditer(text))
    rest = text[closed[-1].end() :] if closed else ""
    return rest if rest.strip() else text


def closes_reasoning(text: str) -> bool:
    """Whether a text contains the closing tag of a block of reasoning, of any dialect."""
    return _REASONING_CLOSED.search(text) is not None
