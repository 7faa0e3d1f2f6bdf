"""Where the questions of `chat` come from: the command line, a pipe, or a terminal, which is edited with prompt_toolkit.

In a terminal, pasted text of several lines is one question, the arrow keys bring back earlier questions, and Ctrl-C must be
pressed twice to end the conversation: the first may have been meant for an answer that had just ended by itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cot_unsloth.core.errors import ConfigError

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyPressEvent

_PROMPT, _CONTINUED = "> ", "… "


class Questions:
    """The user's questions, until the input ends or the user types `/exit` or `/quit`."""

    def __init__(self, question: str | None = None) -> None:
        self._question = question
        self.interrupted = False
        """Whether the user's last key press was Ctrl-C."""
        self.in_conversation = question is None and sys.stdin.isatty()
        """Whether more questions may come."""

    def __iter__(self) -> Iterator[str]:
        """The questions, one at a time.

        Raises:
            ConfigError: none was asked.
        """
        if self.in_conversation:
            yield from self._typed()
            return
        # All of standard input is one question.
        question = (sys.stdin.read() if self._question is None else self._question).strip()
        if not question:
            source = "standard input" if self._question is None else "the argument"
            raise ConfigError(f"there is no question: {source} is empty", hint='ask one: chat RUN "What is 2 + 3?"')
        yield question

    def _typed(self) -> Iterator[str]:
        lines = _edited_lines() if _can_edit() else _plain_lines()
        while True:
            try:
                question = next(lines).strip()
            except StopIteration:
                return
            except KeyboardInterrupt:
                if self.interrupted:
                    return
                self.interrupted = True
                print("(Ctrl-C again, or Ctrl-D, ends)", file=sys.stderr)
                lines = _edited_lines() if _can_edit() else _plain_lines()
                continue
            self.interrupted = False
            if question in ("/exit", "/quit"):
                return
            if question:
                yield question


def _can_edit() -> bool:
    """Whether both ends are a terminal that understands escape sequences."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown") and _has_descriptor()


def _has_descriptor() -> bool:
    try:
        sys.stdin.fileno()
    except (OSError, ValueError):
        return False
    return True


_SESSIONS: list[PromptSession[str]] = []
"""The session of this process, which keeps its history."""


def _edited_lines() -> Iterator[str]:
    if not _SESSIONS:
        _SESSIONS.append(_session())
    while True:
        try:
            yield _SESSIONS[0].prompt()
        except EOFError:
            return


def _session() -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings

    bindings = KeyBindings()

    @bindings.add("enter")
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return PromptSession(_PROMPT, multiline=True, prompt_continuation=_CONTINUED, key_bindings=bindings)


def _plain_lines() -> Iterator[str]:
    """Lines as the terminal delivers them; a line that ends in a backslash continues on the next."""
    question = ""
    while True:
        try:
            line = input(_CONTINUED if question else _PROMPT)
        except EOFError:
            yield question
            return
        if line.endswith("\\"):
            question += line[:-1] + "\n"
            continue
        yield question + line
        question = ""
