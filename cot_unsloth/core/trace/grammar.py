"""The tags of a trace, and the names of everything that can be wrong with one. No other module spells a tag.

Tags are ordinary text, not added tokens: a model can learn them without new embeddings (LoRA on linear layers trains
none), and every runtime shows them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cot_unsloth.core.errors import CotError
from cot_unsloth.core.types import ThinkingTags

Section = Literal["thinking", "reflection", "output"]
SECTIONS: tuple[Section, ...] = ("thinking", "reflection", "output")
Fault = Literal[
    "missing_thinking", "missing_output",
    "unclosed_thinking", "unclosed_reflection", "unclosed_output",
    "repeated_thinking", "repeated_output",
    "empty_thinking", "empty_reflection", "empty_output",
    "reordered", "misnested", "stray_close", "stray_text",
]  # fmt: skip
UNCLOSED: Mapping[Section, Fault] = {
    "thinking": "unclosed_thinking",
    "reflection": "unclosed_reflection",
    "output": "unclosed_output",
}


class TraceError(CotError):
    """A text is not a trace; `fault` names the reason."""

    def __init__(self, fault: str, detail: str) -> None:
        super().__init__(detail)
        self.fault = fault


def tags(section: Section, thinking_tags: ThinkingTags = "thinking") -> tuple[str, str]:
    """The opening and the closing tag of a section.

    >>> tags("thinking"), tags("thinking", "think"), tags("output", "think")
    (('<thinking>', '</thinking>'), ('<think>', '</think>'), ('<output>', '</output>'))
    """
    name = thinking_tags if section == "thinking" else section
    return f"<{name}>", f"</{name}>"


@dataclass(frozen=True)
class TagSet:
    """All tags of a run, ready to search a text for."""

    meaning: Mapping[str, tuple[Section, bool]]
    """For each tag its section, and whether it closes it."""
    pattern: re.Pattern[str]
    longest: int
    """Characters of the longest tag."""


@functools.cache
def tag_set(thinking_tags: ThinkingTags) -> TagSet:
    """The tags of all sections."""
    meaning = {tag: (section, tag.startswith("</")) for section in SECTIONS for tag in tags(section, thinking_tags)}
    return TagSet(meaning, re.compile("|".join(map(re.escape, meaning))), max(map(len, meaning)))
