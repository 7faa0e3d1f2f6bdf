"""`init` writes settings that can be read, that check accepts, and in which every line has its reason."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import get_args

import pytest
from helpers import run_cli, started_environment

from cot_unsloth import config
from cot_unsloth.config.starter import Machine


@pytest.mark.parametrize("machine", get_args(Machine))
@pytest.mark.parametrize(
    "dataset", ["my data/rows #1.jsonl", "openai/gsm8k", "world:chains,words", "a.jsonl,b.jsonl", "007"]
)
@pytest.mark.parametrize("model", ["Qwen/Qwen2.5-1.5B-Instruct", "./a: folder", "tiny-base"])
def test_the_file_says_what_was_chosen(
    model: str, dataset: str, machine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new" / "mine.yaml"
    assert run_cli("init", str(file), "--model", model, "--dataset", dataset, "--machine", machine) == 0
    written = config.load(file)
    assert (written.model.model_name_or_path, written.data.dataset) == (model, dataset)
    assert written.model.load_in_4bit is (machine == "t4" and model != "tiny-base")
    if model == "tiny-base":
        demo = config.load(None, {"dataset": dataset})
        assert written.fingerprint() == demo.fingerprint()
    else:
        settings = [line for line in file.read_text().splitlines() if re.match(r"  \w", line)]
        assert all("  # " in line for line in settings)
        assert written.train.learning_rate == 1e-4
    shown = capsys.readouterr().out
    assert f"{file}" in shown
    assert " train " in shown
    assert run_cli("init", str(file)) == 2
    assert "exists already" in capsys.readouterr().err
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
