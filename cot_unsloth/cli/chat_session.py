"""`chat`: talk to a model in the terminal, and see it think.

Thinking is dim, a reflection is marked, the output is plain. The conversation goes on until the input
ends; `/reset` begins it anew.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from cot_unsloth.config import RunConfig
from cot_unsloth.core.types import Message
from cot_unsloth.models.protocols import Streamer
from cot_unsloth.models.streaming import Turn
from cot_unsloth.prompts.render import opening

_STYLES = {"thinking": "dim", "reflection": "yellow", "output": "bold", None: "default"}


def chat(engine: Streamer, config: RunConfig, max_thinking: int | None = None) -> None:
    """Ask, answer, and ask again."""
    messages: list[Message] = [*opening(config.data.system_prompt)]
    for question in questions():
        if question == "/reset":
            messages = [*opening(config.data.system_prompt)]
            continue
        messages.append({"role": "user", "content": question})
        turn = Turn(engine, tuple(messages), config.sampling_params, max_thinking, config.data.thinking_tags)
        show(turn)
        messages.append({"role": "assistant", "content": turn.text})


def questions() -> Iterable[str]:
    """What the user says, until the input ends; a line that ends in a backslash goes on in the next.

    What is piped in is one question, whole.
    """
    if not sys.stdin.isatty():
        piped = sys.stdin.read().strip()
        if piped:
            yield piped
        return
    print("a line ending in \\ goes on in the next; /reset begins anew; Ctrl-D ends", file=sys.stderr)
    held = ""
    while True:
        try:
            line = input("… " if held else "> ")
        except EOFError:
            if held.strip():
                yield held.strip()
            return
        if line.endswith("\\"):
            held += line[:-1] + "\n"
            continue
        if (held + line).strip() == "/exit":
            return
        if (held + line).strip():
            yield (held + line).strip()
        held = ""


def show(turn: Turn) -> None:
    """Print a turn as it is spoken."""
    from rich.console import Console

    console: Any = Console(highlight=False, emoji=False, markup=False, soft_wrap=True)
    before: str | None = None
    for said in turn:
        text = said.text
        if said.section != before:
            text = text.lstrip("\n") if said.section in ("thinking", "output") and not before else text
            if said.section == "reflection":
                console.print("↺ ", end="", style=_STYLES["reflection"])
            if said.section == "output":
                console.print()
            before = said.section
        if said.section is None and not text.strip():
            continue
        console.print(text, end="", style=_STYLES[said.section])
    console.print()
    if turn.cut:
        console.print("(its thinking was ended at --max-thinking-tokens)", style="dim")
    if turn.finish_reason == "length":
        console.print("(cut off at --max-new-tokens)", style="dim")
    console.print()
