"""The conversation of `chat`: questions from the terminal or a pipe, answers printed as they are generated.

Thinking is dim, a reflection is marked with ↺, and the output is bold. The conversation ends with the input; `/reset`
starts it again, and `/adapter` switches between adapters.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping

from cot_unsloth.core import terminal
from cot_unsloth.core.types import Message
from cot_unsloth.models.streaming import Turn
from cot_unsloth.models.switching import NamedModel
from cot_unsloth.prompts.arms import system_turn

_STYLES = {"thinking": "dim", "reflection": "yellow", "output": "bold", None: "default"}


def chat(models: Mapping[str, NamedModel], max_thinking: int | None = None) -> None:
    """Answer every question, each with the conversation so far.

    Args:
        models: by name; the first answers until another is chosen.
        max_thinking: end the thinking of an answer after this many tokens; None for no limit.
    """
    active = next(iter(models))
    messages: list[Message] = []
    for question in questions():
        if question == "/reset":
            messages = []
            continue
        if question.split()[0] == "/adapter" and len(models) > 1:
            active = _chosen(question, models, active)
            continue
        messages.append({"role": "user", "content": question})
        engine, config = models[active].engine, models[active].config
        asked = (*system_turn(config.data.system_prompt), *messages)
        turn = Turn(engine, asked, config.sampling_params, max_thinking, config.data.thinking_tags)
        show(turn)
        messages.append({"role": "assistant", "content": turn.text})


def _chosen(command: str, models: Mapping[str, NamedModel], active: str) -> str:
    """The model that `/adapter NAME` chooses; without a name that there is, the active one, and all are listed."""
    name = command.removeprefix("/adapter").strip()
    if name in models:
        print(f"{name} answers now; the conversation goes on, /reset starts again", file=sys.stderr)
        return name
    if name:
        print(f"there is no adapter {name}", file=sys.stderr)
    for each in models:
        print(f"{'*' if each == active else ' '} {each}", file=sys.stderr)
    return active


def questions() -> Iterable[str]:
    """The user's questions until the input ends. A line that ends in a backslash continues on the next.

    All of a piped input is one question.
    """
    if not sys.stdin.isatty():
        piped = sys.stdin.read().strip()
        if piped:
            yield piped
        return
    print("a line that ends in \\ continues on the next; /reset starts again; Ctrl-D ends", file=sys.stderr)
    question = ""
    while True:
        try:
            line = input("… " if question else "> ")
        except EOFError:
            if question.strip():
                yield question.strip()
            return
        if line.endswith("\\"):
            question += line[:-1] + "\n"
            continue
        if (question + line).strip() == "/exit":
            return
        if (question + line).strip():
            yield (question + line).strip()
        question = ""


def show(turn: Turn) -> None:
    """Print a turn while it is generated."""
    console = terminal.console(markup=False, soft_wrap=True)
    section: str | None = None
    for piece in turn:
        text = piece.text
        if piece.section != section:
            text = text.lstrip("\n") if piece.section in ("thinking", "output") and not section else text
            if piece.section == "reflection":
                console.print("↺ ", end="", style=_STYLES["reflection"])
            if piece.section == "output":
                console.print()
            section = piece.section
        if piece.section is None and not text.strip():
            continue
        console.print(text, end="", style=_STYLES[piece.section])
    console.print()
    if turn.cut:
        console.print("(thinking was stopped at --max-thinking-tokens)", style="dim")
    if turn.finish_reason == "length":
        console.print("(cut off at --max-new-tokens)", style="dim")
    console.print()
