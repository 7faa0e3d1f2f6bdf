"""Text of data, models and servers cannot control the terminal it is printed to."""

from __future__ import annotations

import dataclasses
import io
import re
import sys
from pathlib import Path

import pytest
from helpers import run_cli, started_environment
from speaking import ASK, Speaker

from cot_unsloth.cli import chat_session, help_pages
from cot_unsloth.cli.app import group
from cot_unsloth.core import arm_names, terminal
from cot_unsloth.core.progress import bar as progress_bar
from cot_unsloth.core.progress import note
from cot_unsloth.core.results import Aims, ReflectionMetrics, Scorecard, Settings, Share
from cot_unsloth.core.types import SamplingParams, Score
from cot_unsloth.evaluation.scorecard import compare
from cot_unsloth.models.streaming import Turn
from cot_unsloth.reporting import tables, wording
from cot_unsloth.storage import records

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


def test_the_answer_that_training_ends_with_is_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score = Score("0", "t", EVIL, EVIL, EVIL, None, False, None, 1, "stop")
    records.write_jsonl(tmp_path / "tuned.jsonl", [dataclasses.asdict(score)])
    tables.print_answer(tmp_path / "tuned.jsonl")
    written = capsys.readouterr().out
    assert written.count(SHOWN.partition("\\r")[0]) == 3
    for sequence in ("\x1b", "\x07", "\x9b", "\u202e"):
        assert sequence not in written


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


ARMS = (
    "base_direct",
    "base_cot",
    "base_tags",
    "start",
    "tuned",
    "gguf",
    "an-adapter-of-somebody-else-with-a-long-name",
)
TASKS = ("chains", "countdown", "conversions")


def scorecard_of(right: dict[str, int], n: int = 240) -> Scorecard:
    one = Score("0", "chains", "0 and 4?", "4", "", "4", True, None, 99, "stop")
    arms = {
        arm: [
            dataclasses.replace(
                one, id=str(i), task=TASKS[i % 3], correct=i < count, fault=None if i < count else "no_output"
            )
            for i in range(n)
        ]
        for arm, count in right.items()
    }
    return compare(arms, Settings(version="0", n=n, model="m" * 70, dataset="world:chains,countdown,conversions"))


@pytest.mark.parametrize("arms", [ARMS, ARMS[:1], ARMS[:3], ("base_direct", "tuned")])
def test_the_scorecard_fits_80_columns_whole(arms: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_scorecard(scorecard_of(dict.fromkeys(arms, 240) | {"base_direct": 60}))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines), "something was cut"
    joined = "".join(line.split("  ")[0].strip() for line in lines)
    for arm in arms:
        assert arm_names.title(arm).replace(" ", "") in joined.replace(" ", ""), arm
    for task in TASKS:
        assert any(line.startswith(task) for line in lines)


@pytest.mark.parametrize("width", [80, 120])
def test_measures_of_reasoning_and_columns_are_explained_and_fit(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    card = scorecard_of({"base_direct": 60, "base_tags": 50, "tuned": 240})
    whole = Share(share=1.0, of=240)
    shares = ("first", "final", "repair_rate", "corruption_rate", "only_confirm", "alarm_precision", "alarm_recall")
    reflection = ReflectionMetrics(
        n=240, share=1.0, accuracy=1.0, repaired=240, corrupted=100, **dict.fromkeys(shares, whole)
    )
    aims = Aims(decomposition=whole, sequential_reasoning=whole, transparency=whole, self_correction=whole)
    card = card.model_copy(update={"aims": {"tuned": aims}, "reflection": {"tuned": reflection}})
    out = to_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    tables.print_scorecard(card)
    lines = re.sub(r"\x1b\[[\d;]*m", "", out.getvalue()).splitlines()
    assert max(map(len, lines)) <= width
    for name in ("decomposition", "sequential_reasoning", "transparency"):
        (line,) = (line for line in lines if wording.aim(name) in line)
        assert line.split() == [*wording.aim(name).split(), "100.0%", "of", "240", *wording.MEASURES[name].split()]
    assert any("+100.0 of 240   points: 240 repaired, 100 corrupted" in line for line in lines)
    joined = " ".join(" ".join(lines).split())
    assert "format: answers with every section, opened and closed; cut: answers that reached the token limit" in joined


@pytest.mark.parametrize(
    ("tuned", "n", "word", "code"), [(200, 240, "better", "32"), (20, 240, "worse", "31"), (4, 9, "too few", None)]
)
def test_better_and_worse_have_a_word_and_a_colour_and_too_few_has_none(
    tuned: int, n: int, word: str, code: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = scorecard_of({"base_direct": n // 4, "tuned": tuned}, n)
    out = to_terminal(monkeypatch)
    tables.print_scorecard(card)
    (cell,) = re.findall(rf"\x1b\[([\d;]+)m[^\x1b]*{word}\x1b", out.getvalue())
    assert set(cell.split(";")) & {"31", "32", "33"} == ({code} if code else set())
    monkeypatch.setenv("NO_COLOR", "1")
    plain = to_terminal(monkeypatch)
    tables.print_scorecard(card)
    assert word in plain.getvalue()
    assert not re.search(r"\x1b\[[\d;]*3[0-7]", plain.getvalue())


def test_a_bar_keeps_to_a_line_of_80_columns_and_shows_the_most_important_facts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = to_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "80")
    with progress_bar("fit", 1240) as bar:
        bar.advance(317, loss="0.1234", **{"tokens/s": "12345", "memory": "1.2 GiB", "more": "x" * 60})
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).replace("\r", "\n").splitlines()
    shown = [line.rstrip() for line in lines if "317/1240" in line]
    assert shown
    assert max(map(len, lines)) <= 80
    assert "loss 0.1234  tokens/s 12345  memory 1.2 GiB" in shown[-1]
    assert "xxx" not in shown[-1]


def test_quiet_prints_neither_notes_nor_bars(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"question": "What is 3 and 4?", "reasoning": "3 + 4 = 7", "answer": "7"}\n' * 6)
    assert run_cli("train", "--dataset", str(data), "--dry-run", "--test-fraction", "0.2", "--quiet") == 0
    out, err = capfd.readouterr()
    assert "would write to" in out
    assert err == ""
    assert run_cli("--quiet", "train", "--dataset", str(tmp_path / "missing.jsonl")) == 2
    assert capfd.readouterr().err.startswith("error: ")
    assert run_cli("train", "--dataset", str(data), "--dry-run", "--test-fraction", "0.2") == 0
    assert capfd.readouterr().err, "quiet for ever"


@pytest.mark.parametrize("command", sorted(group.commands))
def test_help_lists_every_option_once_and_the_first_ones_first(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(command, "--help") == 0
    text = capsys.readouterr().out
    listed = re.findall(r"^  (?:-\w, )?(--[\w-]+)", text, re.MULTILINE)
    assert len(listed) == len(set(listed))
    shown = {option.opts[-1] for option in group.commands[command].params if not getattr(option, "hidden", False)}
    assert {option for option in shown if option.startswith("--")} <= {*listed, *re.findall(r"--[\w-]+", text)}
    first = help_pages.FIRST.get(command, ())
    names = {option.name for option in group.commands[command].params}
    assert set(first) <= names
    assert not first or text.index("Used first:") < text.index("Output:")


def test_the_commands_are_grouped_and_all_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("--help") == 0
    listed = re.findall(r"^  ([a-z][\w-]*)  ", capsys.readouterr().out, re.MULTILINE)
    assert sorted(listed) == sorted(group.commands)


def drawn(output: str) -> list[str]:
    """Lines of a terminal's output, each state of a line that was redrawn as one."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output).replace("\r", "\n").splitlines()


def test_a_run_in_a_terminal_of_80_columns(tmp_path: Path) -> None:
    pexpect = pytest.importorskip("pexpect")
    small = [
        "--world-samples", "32", "--max-steps", "3", "--eval-samples", "2", "--max-new-tokens", "8", "--gguf", "q8_0",
        "--export-samples", "1", "--run-dir", "run",
    ]  # fmt: skip
    child = pexpect.spawn(
        sys.executable, ["-m", "cot_unsloth", "train", *small], cwd=str(tmp_path), dimensions=(30, 80), timeout=120,
        encoding="utf-8", env=started_environment() | {"TERM": "xterm-256color"},
    )  # fmt: skip
    child.expect(pexpect.EOF)
    child.close()
    lines = drawn(child.before)
    assert child.exitstatus in (0, 3)
    assert lines[0].startswith("train ")  # before torch is imported
    fit = [line for line in lines if line.startswith("fit") and "3/3" in line]
    assert re.search(r"loss \d+\.\d{4}  tokens/s \d+", fit[-1])
    assert not any("0/?" in line for line in lines)
    assert any(line.startswith("verify") and "5/5" in line for line in lines)
    bars = [line for line in lines if "━" in line]
    assert max(map(len, bars)) <= 80
    chat = next(line for line in lines if line.startswith("chat: "))
    assert chat.endswith(".gguf")


def test_a_command_is_shown_as_it_can_be_typed_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an activated environment, with the script's own path, relative to the current folder."""
    from cot_unsloth.cli import next_steps

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(next_steps.shutil, "which", lambda name: None)
    python = tmp_path / ".venv" / "bin" / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    assert next_steps.command("chat", "my run") == ".venv/bin/python -m cot_unsloth chat 'my run'"
    python.parent.mkdir(parents=True)
    python.with_name("cot-unsloth").touch()
    assert next_steps.command("chat", "run") == ".venv/bin/cot-unsloth chat run"
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert next_steps.command("chat", "run") == f"{python.with_name('cot-unsloth')} chat run"


def test_the_help_of_chat_fits_80_columns() -> None:
    text = chat_session._EXAMPLE_HELP + chat_session._HELP
    assert max(map(len, text.splitlines())) <= 80
