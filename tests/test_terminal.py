"""Text of data, models and servers cannot control the terminal it is printed to."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from helpers import run_cli
from speaking import ASK, Speaker

from cot_unsloth.cli import chat_session
from cot_unsloth.core import terminal
from cot_unsloth.core.progress import bar as progress_bar
from cot_unsloth.core.progress import note
from cot_unsloth.core.types import SamplingParams
from cot_unsloth.models.streaming import Turn
from cot_unsloth.reporting import tables

EVIL = "\x1b]0;title\x07\x1b[2Jcleared\x9b31m\rover\u202eback"
SHOWN = "\\x1b]0;title\\x07\\x1b[2Jcleared\\x9b31m\\rover\\u202eback"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def to_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """From now on, what is printed goes to this; not in a fixture, after which pytest captures again."""
    stream = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_chat_prints_an_answer_as_text_with_our_own_styles_only(monkeypatch: pytest.MonkeyPatch) -> None:
    out = to_terminal(monkeypatch)
    text = f"<thinking>\n{EVIL}\n<reflection>{EVIL}</reflection>\n</thinking>\n<output>{EVIL}</output>"
    chat_session.show(Turn(Speaker(text, size=1), ASK, SamplingParams(5000)))
    written = out.getvalue()
    shown = SHOWN.replace("\\x07", "").replace("\\r", "")  # rich drops these itself
    assert shown in re.sub(r"\x1b\[[0-9;]*m", "", written)
    for sequence in ("\x1b]0;", "\x1b[2J", "\x07", "\x9b", "\r", "\u202e"):
        assert sequence not in written
    assert "\x1b[1m" in written  # the output is bold


def test_notes_bars_and_tables_are_text(monkeypatch: pytest.MonkeyPatch) -> None:
    out = to_terminal(monkeypatch)
    note(EVIL)
    with progress_bar(EVIL, 1) as bar:
        bar.advance(1, name=EVIL)
    tables.print_lines([EVIL])
    assert SHOWN in out.getvalue()
    for sequence in ("\x1b]0;", "\x1b[2J", "\x07", "\x9b", "\u202e"):
        assert sequence not in out.getvalue()


def test_errors_and_rows_are_text(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "rows.jsonl"
    row = '{"question": "What is 3 and 4 \\u001b[2J?", "reasoning": "3 + 4 = 7 \\u001b]0;t\\u0007", "answer": "7"}\n'
    data.write_text(row * 6)
    assert run_cli("train", "--dataset", str(data), "--dry-run", "--test-fraction", "0.2") == 0
    assert run_cli("train", "--dataset", f"{tmp_path}/\x1b[2Jmissing.jsonl") == 2
    written = "".join(capfd.readouterr())
    assert "\\x1b[2J" in written
    assert "\x1b" not in written


def test_new_lines_tabs_and_letters_of_all_scripts_stay() -> None:
    text = "a\tb\nπ ≤ 4, 日本語, עברית, e\u0301, 👍🏽"
    assert terminal.printable(text) == text
