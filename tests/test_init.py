"""`init` writes settings that can be read, that check accepts, and in which every line has its reason."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pytest
from helpers import run_cli, started_environment

from cot_unsloth import config
from cot_unsloth.config.starter import Machine


@pytest.mark.parametrize("machine", get_args(Machine))
@pytest.mark.parametrize(
    "dataset",
    [
        "my data/rows #1.jsonl",
        "openai/gsm8k",
        "world:chains,words",
        "a.jsonl,b.jsonl",
        "007",
        "2024-01-02",
        "1_000",
        "0x10",
        "no",
    ],
)
@pytest.mark.parametrize("model", ["Qwen/Qwen2.5-1.5B-Instruct", "./a: folder", "tiny-base"])
def test_the_file_says_what_was_chosen(
    model: str, dataset: str, machine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new folder" / "mine.yaml"
    assert run_cli("init", str(file), "--model", model, "--dataset", dataset, "--machine", machine) == 0
    written = config.load(file)
    assert (written.model.model_name_or_path, written.data.dataset) == (model, dataset)
    assert written.model.load_in_4bit is (machine == "t4" and model != "tiny-base")
    if model == "tiny-base" and dataset.startswith("world:"):
        demo = config.load(None, {"dataset": dataset})
        assert written.fingerprint() == demo.fingerprint()
    else:
        settings = [line for line in file.read_text().splitlines() if re.match(r"  \w", line)]
        assert all("  # " in line for line in settings)
        assert written.train.learning_rate == (4e-3 if model == "tiny-base" else 1e-4)
    assert f"# cot-unsloth train '{file}'" in file.read_text()
    shown = capsys.readouterr().out
    assert f"{file}" in shown
    assert " train " in shown
    assert run_cli("init", str(file)) == 2
    assert "already exists" in capsys.readouterr().err
    assert run_cli("init", str(file), "--force") == 0  # nothing is asked where nobody can answer
    assert config.load(file).model.model_name_or_path == "tiny-base"


def test_three_questions_in_a_terminal(tmp_path: Path) -> None:
    pexpect = pytest.importorskip("pexpect")
    command = ["-m", "cot_unsloth", "init", "mine.yaml"]
    child = pexpect.spawn(
        sys.executable, command, cwd=str(tmp_path), timeout=60, encoding="utf-8", env=started_environment()
    )
    for question, answer in (("Which model", "some/model"), ("Which data", "rows.jsonl"), ("Where will it run", "t4")):
        child.expect_exact(question)
        child.sendline(answer)
    child.expect(pexpect.EOF)
    written = config.load(tmp_path / "mine.yaml")
    assert (written.model.model_name_or_path, written.data.dataset) == ("some/model", "rows.jsonl")
    assert written.model.load_in_4bit


def _asked(folder: Path, dialogue: Sequence[tuple[str, str | None]]) -> str:
    """What `init` prints at the end of a dialogue in a terminal: texts that it prints, each with the answer to it, if any."""
    pexpect = pytest.importorskip("pexpect")
    command = ["-m", "cot_unsloth", "init", "mine.yaml", "--model", "some/model", "--machine", "t4"]
    child = pexpect.spawn(
        sys.executable, command, cwd=str(folder), timeout=60, encoding="utf-8", env=started_environment()
    )
    for question, answer in (("Which data", "mine.jsonl"), *dialogue):
        child.expect_exact(question)
        if answer is not None:
            child.sendline(answer)
    child.expect(pexpect.EOF)
    return str(child.before)


def test_columns_that_are_not_known_are_asked_for_in_a_terminal(tmp_path: Path) -> None:
    _write(
        tmp_path / "mine.jsonl", [{"zap": f"{n} + 3?", "zip": f"{n} + 3 = {n + 3}", "zop": n + 3} for n in range(20)]
    )
    dialogue = (
        ("match no known layout: zap, zip, zop", None),
        ("holds the question", "zup"), ("the reasoning? Empty for none", ""), ("the answer", "zop"),
        ("there is no such column: --question-column zup", None),
        ("holds the question", "zap"), ("the reasoning? Empty for none", "zip"), ("the answer", "zop"),
    )  # fmt: skip
    assert "reasoning ← zip" in _asked(tmp_path, dialogue)
    written = config.load(tmp_path / "mine.yaml")
    assert (written.model.model_name_or_path, written.data.dataset) == ("some/model", "mine.jsonl")
    named = written.data.question_column, written.data.reasoning_column, written.data.answer_column
    assert named == ("zap", "zip", "zop")


@pytest.mark.parametrize("role", ["user", "guest"])
def test_a_column_of_messages_can_be_named_in_a_terminal(tmp_path: Path, role: str) -> None:
    turns = [{"role": role, "content": "3 + 4?"}, {"role": "assistant", "content": "<think>3 + 4 = 7</think>7"}]
    _write(tmp_path / "mine.jsonl", [{"zap": turns, "n": n} for n in range(20)])
    said = _asked(tmp_path, [("match no known layout: zap, n", None), ("the messages of a conversation", "zap")])
    if role == "user":
        assert config.load(tmp_path / "mine.yaml").data.messages_column == "zap"
    else:  # the file has to be changed, so nothing more is asked
        assert "has the role 'guest'" in said
        assert not (tmp_path / "mine.yaml").exists()


def test_few_held_out_problems_and_rows_without_reasoning_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, object]] = [
        {"question": f"{n} + 3?", "reasoning": "" if n == 5 else f"{n} + 3 = {n + 3}", "answer": str(n + 3)}
        for n in range(100)
    ]
    file, data = tmp_path / "mine.yaml", _write(tmp_path / "mine.jsonl", rows)
    assert run_cli("init", str(file), "--dataset", str(data)) == 0
    said = capsys.readouterr().err
    assert "mine.jsonl:6: 1 row of 100 cannot be used: its reasoning column is empty" in said
    assert "read as" not in said
    few = re.search(r"(\d+) held-out problems will be scored, which detects only differences of \d+ points", said)
    assert few is not None
    assert run_cli("check", str(file)) == 0
    assert few[0] in " ".join(capsys.readouterr().out.split())
    prose = [{**row, "answer": "It depends on whom you ask, " + "and on how they are asked, " * 9} for row in rows]
    assert run_cli("init", str(file), "--force", "--dataset", str(_write(tmp_path / "prose.jsonl", prose))) == 0
    assert "no question is held out that can be scored" in capsys.readouterr().err
    many = [{**row, "question": f"{n} and {n}?"} for n, row in enumerate(rows * 6)]
    assert run_cli("init", str(file), "--force", "--dataset", str(_write(tmp_path / "many.jsonl", many))) == 0
    assert "held-out problem" not in capsys.readouterr().err


def _write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_own_data_get_passes_and_a_held_out_share_that_suit_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, object]] = [
        {"ask": {"q": f"What is {n} + 3?"}, "how": f"{n} + 3 = {n + 3}", "result": str(n + 3)} for n in range(20)
    ]
    file, data = tmp_path / "mine.yaml", _write(tmp_path / "mine.jsonl", rows)
    assert run_cli("init", str(file), "--dataset", str(data)) == 2
    assert "--question-column" in capsys.readouterr().err
    assert not file.exists()
    columns = ("--question-column", "ask.q", "--reasoning-column", "how", "--answer-column", "result")
    assert run_cli("init", str(file), "--dataset", str(data), *columns) == 0
    assert "question ← ask.q" in capsys.readouterr().err
    written = config.load(file)
    assert (written.train.num_train_epochs, written.data.test_fraction) == (50, 0.2)
    assert written.data.question_column == "ask.q"
    assert run_cli("check", str(file)) == 0
    assert "too few" not in capsys.readouterr().out
    instruct = ("--model", "Qwen/Qwen2.5-1.5B-Instruct", "--machine", "t4", "--force")
    assert run_cli("init", str(file), "--dataset", str(data), *columns, *instruct) == 0
    assert config.load(file).train.num_train_epochs == 5


def test_answers_alone_call_for_rejection_sampling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = _write(tmp_path / "mine.jsonl", [{"question": f"{n} + 3?", "answer": str(n + 3)} for n in range(3000)])
    file = tmp_path / "mine.yaml"
    assert run_cli("init", str(file), "--dataset", str(data), "--model", "some/model", "--machine", "gpu") == 0
    written = config.load(file)
    assert (written.train.method, written.data.test_fraction) == ("rft", 0.05)
    assert run_cli("init", str(file), "--force", "--dataset", str(data)) == 0
    assert "choose an instruct model" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mine.json", "mine", "mine.jsonl"])
def test_a_name_that_other_commands_would_not_read_as_yaml_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It wrote YAML to mine.json, and ended with "is not JSON"; `check mine` took the settings for data."""
    assert run_cli("init", str(tmp_path / name), "--model", "tiny-base", "--dataset", "world:words") == 2
    assert f"{name}: must end in .yaml" in capsys.readouterr().err
    assert not (tmp_path / name).exists()


def test_a_task_that_does_not_exist_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    assert run_cli("init", str(file), "--dataset", "world:nothing") == 2
    assert "nothing" in capsys.readouterr().err
    assert not file.exists()
    assert run_cli("init", str(file), "--dataset", "gym:chain_sum", "--model", "some/model") == 0
    assert config.load(file).train.method == "rft"  # its problems have no solutions


def test_a_data_set_that_is_not_here_is_said_to_be_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("init", str(tmp_path / "a.yaml"), "--dataset", str(tmp_path / "rows.jsonl")) == 0
    assert "does not exist yet" in capsys.readouterr().err
    assert run_cli("init", str(tmp_path / "b.yaml"), "--dataset", "openai/gsm8k") == 0
    assert "hub id" in capsys.readouterr().err
    assert "world" not in (tmp_path / "b.yaml").read_text().split("data:")[1].split("#")[0]
