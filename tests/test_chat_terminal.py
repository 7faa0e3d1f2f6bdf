"""`chat` in a real pseudo-terminal: pasted text, Ctrl-C, the commands, history, and how an answer looks without colour."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import started_environment

pexpect = pytest.importorskip("pexpect")

SCRIPT = """
import sys, time
from speaking import TEXT, Speaker
from cot_unsloth.cli import chat_session
from cot_unsloth.config import load_tree
from cot_unsloth.core.types import Example, Trace
from cot_unsloth.models.switching import NamedModel

class Told(Speaker):
    def stream(self, prompt, sampling):
        last = prompt.messages[-1]["content"]
        said = [turn["content"] for turn in prompt.messages if turn["role"] == "system"]
        print(f"<<asked {last!r} of {len(prompt.messages)} at {sampling.temperature:g} system {said!r}>>", flush=True)
        if last == "slow":
            for _ in range(400):
                time.sleep(0.05)
                yield "word "
        yield from super().stream(prompt, sampling)

config = load_tree({}, {})
models = {"m": NamedModel(Told(), config), "other": NamedModel(Told("<output>5</output>"), config)}
example = Example("1", "Start with 4.\\n(1) add 2", Trace((), "6"), "6", where="world:x#1")
chat_session.chat(models, None, None, lambda seed: example)
print("<<ended>>")
"""
PASTE = "\x1b[200~{}\x1b[201~"
READY = "\x1b[?2004h"
"""A prompt turns bracketed paste on."""
CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Any]:
    environment = started_environment(tests=True) | {
        "TERM": "xterm-256color",
        "NO_COLOR": "1",
        "PROMPT_TOOLKIT_NO_CPR": "1",
    }
    process = pexpect.spawn(
        sys.executable, ["-c", SCRIPT], cwd=str(tmp_path), dimensions=(40, 100), timeout=40, encoding="utf-8", env=environment
    )  # fmt: skip
    process.expect_exact(READY)
    yield process
    process.close(force=True)


def say(child: Any, text: str, then: str) -> str:
    """Type a line, wait for a text, and return what was shown before it, without codes."""
    child.send(text + "\r")
    child.expect_exact(then)
    return CODES.sub("", child.before)


def test_a_pasted_text_of_several_lines_is_one_question(child: Any) -> None:
    say(child, PASTE.format("one\ntwo\n\nthree"), "of 2 at")
    assert "asked 'one\\ntwo\\n\\nthree'" in CODES.sub("", child.before)
    child.expect_exact(READY)
    say(child, "a \\\rb", "of 4 at")
    assert "asked 'a \\nb'" in CODES.sub("", child.before)


def test_ctrl_c_stops_an_answer_and_twice_ends(child: Any) -> None:
    say(child, "slow", "word word")
    child.sendintr()
    child.expect_exact("(stopped)")
    child.expect_exact(READY)
    say(child, "next", "of 4 at")
    child.expect_exact(READY)
    child.sendintr()
    child.expect_exact("(Ctrl-C again, or Ctrl-D, ends)")
    child.expect_exact(READY)
    child.sendintr()
    child.expect_exact("<<ended>>")


def test_an_answer_is_readable_without_colour(child: Any) -> None:
    say(child, "1 + 1?", " at 0 system")
    child.expect_exact(READY)
    lines = [line.rstrip() for line in CODES.sub("", child.before).splitlines()]
    assert "│ 1 + 1 = 3" in lines
    assert "│ ↺ it is 2" in lines
    assert "│ so 2" in lines
    assert lines[lines.index("│ so 2") + 1 :][:2] == ["", "2"]


def test_the_commands(child: Any, tmp_path: Path) -> None:
    say(child, "/help", "/save FILE")
    say(child, "/nothing", "there is no command /nothing")
    say(child, "/retry", "nothing has been asked yet")
    say(child, "/temperature abc", "'abc' is not a number, such as 0.7")
    say(child, "/budget lots", "'lots' is not a whole number, such as 200, or none")
    say(child, "/temperature 9", "must be from 0 to 2")
    say(child, "/temperature 0.5", "temperature: 0.5")
    say(child, "/system Be brief.", "system prompt: Be brief.")
    say(child, "/budget 3", "thinking budget: 3")
    assert "asked 'hello' of 2" in say(child, "hello", " at 0.5 system ['Be brief.']")
    child.expect_exact("(thinking was stopped at its budget)")
    assert "asked 'hello' of 2" in say(child, "/retry", " at 0.5")
    child.expect_exact(READY)
    say(child, "/save said.jsonl", "appended to said.jsonl")
    row = json.loads((tmp_path / "said.jsonl").read_text())
    assert [turn["role"] for turn in row["messages"]] == ["system", "user", "assistant"]
    say(child, "/adapter other", "other answers now")
    say(child, "/budget none", "thinking budget: none")
    say(child, "short", "(no valid trace: there is no reasoning)")
    say(child, "/save said.jsonl", "1 of its answers cannot be trained on (there is no reasoning)")
    say(child, "/adapter", "* other")
    say(child, "/reset", "starting a new conversation")
    assert "asked 'again' of 2" in say(child, "again", " at 0.5")
    child.expect_exact(READY)
    assert "(1) add 2" in say(child, "/example", "(wrong; the right answer: 6)")


def test_arrow_keys_bring_back_earlier_questions(child: Any) -> None:
    say(child, "first", "of 2 at")
    child.expect_exact(READY)
    assert "asked 'first'" in say(child, "\x1b[A", "of 4 at")
    child.expect_exact(READY)
    child.sendeof()
    child.expect_exact("<<ended>>")
