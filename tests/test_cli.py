"""The command line: its commands, the old spellings of `evaluate`, and what is printed and logged."""

from __future__ import annotations

import errno
import json
import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from helpers import run_cli

from cot_unsloth import config
from cot_unsloth.cli import app, curves, lm_eval, next_steps, old_spellings
from cot_unsloth.config import RunConfig
from cot_unsloth.core import logs
from cot_unsloth.core.errors import EngineError
from cot_unsloth.core.progress import note
from cot_unsloth.storage.run_folder import RunDir

COMMANDS = {
    "init", "train", "check", "inspect", "sample", "evaluate", "curves", "lm-eval", "combine", "compare", "runs", "sweep",
    "export", "chat", "serve", "doctor", "transfer",
}  # fmt: skip


def test_each_command_has_help_that_opens_with_examples() -> None:
    assert set(app.group.commands) == COMMANDS
    for name, command in app.group.commands.items():
        lines = (command.help or "").splitlines()
        assert len(lines[0]) <= 64, f"the list of commands cuts the summary of {name}"
        assert lines[3].strip().startswith(f"cot-unsloth {name}"), name
        for option in command.params:
            assert not isinstance(option, click.Option) or option.hidden or option.help, (name, option.name)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom cot_unsloth.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'numpy', 'rich', 'datasets') if name in sys.modules])"
    )
    for name in COMMANDS:
        done = subprocess.run([sys.executable, "-c", code, name, "-h"], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]", name


@pytest.mark.parametrize(
    ("command", "left_out"),
    [
        (["train", "--print-config"], "torch transformers numpy datasets trl peft jinja2 rich"),
        (["evaluate", "--api", "http://127.0.0.1:9/v1", "--model", "x"], "torch transformers numpy datasets trl peft jinja2"),
        (["check", "rows.jsonl"], "datasets trl peft gguf xllamacpp matplotlib math_verify"),
    ],
)  # fmt: skip
def test_commands_import_only_what_they_use(command: list[str], left_out: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "1 + 1?", "response": "1 + 1 = 2\n#### 2"}) + "\n")
    code = (
        "import sys\nfrom cot_unsloth.cli import main\ntry: main(sys.argv[2:])\nexcept SystemExit: pass\n"
        "print([name for name in sys.argv[1].split() if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, left_out, *command], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_the_old_spelling_of_curves_does_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(curves, "measure_curves", lambda *args: calls.append(args))
    monkeypatch.setattr(old_spellings, "measure_curves", lambda *args: calls.append(args))
    options = ["--budgets", "64,16", "--samples", "3", "--sample-temperature", "0.5", "--think-again", "1"]
    rest = ["--checkpoints", "0", "--eval-samples", "7", "--out", "o"]
    assert run_cli("curves", "a", "b", *options, *rest) == 0
    assert run_cli("evaluate", "a", "b", "--curves", *options, *rest) == 0
    given = {"budgets": (16, 64), "samples": 3, "sample_temperature": 0.5, "think_again": 1, "checkpoints": 0}
    expected = ((Path("a"), Path("b")), Path("o"), given, {"eval_samples": "7"})
    assert calls == [expected, expected]


def test_no_option_of_curves_has_the_name_of_a_setting_that_it_takes() -> None:
    taken = {leaf for leaf, section in config.LEAVES.items() if section in ("model", "data", "evaluate")}
    assert not set(curves.OPTIONS) & taken


def test_the_old_spelling_of_lm_eval_does_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(lm_eval, "print_command", lambda *args: calls.append(args))
    monkeypatch.setattr(old_spellings, "print_command", lambda *args: calls.append(args))
    assert run_cli("lm-eval", "a", "gsm8k") == run_cli("evaluate", "a", "--lm-eval", "gsm8k") == 0
    assert calls == [((Path("a"),), "gsm8k")] * 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["evaluate", "--curves"], "name a run, or several"),
        (["evaluate", "a", "--curves", "--model", "m"], "name a run, or several"),
        (["evaluate", "a", "b"], "several runs, budgets and samples go with --curves"),
        (["evaluate", "a", "--samples", "3"], "several runs, budgets and samples go with --curves"),
        (["evaluate", "--api", "http://x", "--samples", "3"], "--api: cannot be combined with --curves"),
        (["evaluate", "a", "b", "--api", "http://x", "--out", "o"], "--api: takes the settings of one run"),
        (["evaluate", "a", "--adapter", "d"], "--adapter: cannot be combined with a run"),
        (["evaluate", "a", "--model", "m"], "--model: cannot be combined with a run"),
        (["evaluate", "a", "--lm-eval", "gsm9k"], "must be one of gsm8k"),
        (["curves"], "name a run, or several"),
        (["curves", "a", "--budgets", "4,x"], "'4,x' is not a list of numbers"),
        (["lm-eval", "a", "gsm9k"], "must be one of gsm8k"),
        (["train", "--debgu"], "there is no option --debgu; did you mean --debug?"),
        (["train", "--lr", "1"], "there is no option --lr; did you mean --learning-rate?"),
        (["doctor", "--learning-rate", "1"], "doctor has no option --learning-rate (other commands do)"),
        (["train", "a.yaml", "--config", "b.yaml"], "two config files are given"),
        (["chatt"], "error: no such command 'chatt'; did you mean 'chat'?\n  hint: cot-unsloth --help"),
        (["serve", "--port", "70000"], "error: invalid value for '--port': 70000 is not"),
        (["chat", "a", "b", "c"], "error: got unexpected extra argument (c)\n  hint: cot-unsloth chat --help"),
    ],
)
def test_wrong_use_is_explained(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(*args) == 2
    assert message in capsys.readouterr().err


def test_flags_and_commands_are_also_known_with_underscores(capsys: pytest.CaptureFixture[str]) -> None:
    """As other trainers write them: `--max_steps` was answered with "train has no option --max_steps (other commands do)"."""
    assert run_cli("train", "--print-config", "--max_steps", "3", "--no-load_in_4bit") == 0
    assert "max_steps: 3" in capsys.readouterr().out
    assert run_cli("train", "--max_stps", "3") == 2
    assert "did you mean --max-steps?" in capsys.readouterr().err
    assert run_cli("lm_eval", "--help") == 0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mine.jsonl", '{"question": "1 + 1?"}\n' * 2),
        ("one.jsonl", '{"question": "1 + 1?"}\n'),
        ("big.jsonl", '{"question": "1 + 1?"}\n' * 10_000),
        ("mine.csv", "question;answer\n1 + 1?;2\n"),
        ("mine.parquet", "PAR1\0\xff"),
        ("list.json", '[{"question": "1 + 1?"}]'),
    ],
)
def test_train_with_data_in_place_of_settings_names_the_flag(
    name: str, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    for target in (tmp_path / name, tmp_path):
        assert run_cli("train", str(target)) == 2
        assert "a data set is named with --dataset" in capsys.readouterr().err
    (tmp_path / "config.yaml").touch()
    assert run_cli("train", str(tmp_path)) == 2
    assert f"--run-dir {tmp_path} --resume" in capsys.readouterr().err


def test_without_a_command_the_help_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli() == 2
    assert capsys.readouterr().err.startswith("Usage: cot-unsloth")


def test_an_interrupted_command_that_keeps_its_progress_says_how_it_continues(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["transfer", "--dataset", "world:words", "--dataset", "world:chains", "--out", str(tmp_path / "a b")]
    for error, code, before in (
        (KeyboardInterrupt(), 130, "interrupted; "),
        (OSError(errno.ENOSPC, "full"), 1, "hint: make room; "),
    ):

        def stop(*args: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr("cot_unsloth.lab.transfer.transfer", stop)
        assert run_cli(*arguments) == code
        assert f"{before}{next_steps.command(*arguments)} continues it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["chat"], ["evaluate"], ["inspect"], ["export", "--gguf", "q8_0"], ["curves"], ["serve"]], ids=str
)
def test_a_text_in_the_place_of_a_file_is_an_input_error(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(*arguments, "What is 1 + 1? " * 20) == 2
    message = capsys.readouterr().err
    assert "too long for the name of a file" in message
    assert len(message) < 150


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_no_error(closed: str, tmp_path: Path) -> None:
    """Under a service manager without an output, a run ended with a traceback once it was to print its scores."""
    init = ["init", str(tmp_path / "mine.yaml"), "--model", "tiny-base", "--dataset", "world:words"]
    for arguments in (["runs", str(tmp_path)], init):
        command = shlex.join([sys.executable, "-m", "cot_unsloth", *arguments])
        assert subprocess.run(["sh", "-c", f"{command} {closed}"], check=False).returncode == 0
    assert (tmp_path / "mine.yaml").is_file()


def test_a_traceback_is_printed_with_debug_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("evaluate", "nowhere") == 2
    plain = capsys.readouterr().err
    assert plain.startswith("error: nowhere: there is no such folder")
    for args in (["--debug", "evaluate", "nowhere"], ["evaluate", "nowhere", "--debug"]):
        assert run_cli(*args) == 2
        printed = capsys.readouterr().err
        assert "Traceback" in printed
        assert printed.endswith(plain)


def test_verbose_prints_only_records_that_are_not_already_printed(capsys: pytest.CaptureFixture[str]) -> None:
    logs.begin()
    logs.LOG.info("quiet")
    logs.print_level(logging.INFO)
    logs.LOG.info("loaded in 3 s")
    logs.LOG.debug("a detail")
    note("shown once")
    lines = capsys.readouterr().err.splitlines()
    logs.begin()
    assert [line.partition("INFO")[2].strip() or line for line in lines] == ["loaded in 3 s", "shown once"]


def fail(run: RunDir) -> None:
    with run.locked(RunConfig(), resume=False):
        note("reading rows")
        raise EngineError("out of memory, with hf_abcdefghijklmnopqrstuv")


def test_a_failed_run_writes_its_log_and_traceback_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "correct horse battery")
    logs.begin()
    logs.LOG.info("cot-unsloth train --api-key swordfish-77")
    run = RunDir(tmp_path / "run")
    note("the key is correct horse battery")
    with pytest.raises(EngineError):
        fail(run)
    log = run.log.read_text(encoding="utf-8")
    logs.begin()
    for text in ("train --api-key [removed]", "the key is [removed]", "reading rows", "Traceback", "with [removed]"):
        assert text in log
    assert "in fail" in log
    for secret in ("swordfish", "horse", "hf_abc"):
        assert secret not in log


def test_a_log_that_cannot_be_written_does_not_stop_a_run(tmp_path: Path) -> None:
    with logs.log_to(tmp_path / "no such folder" / "log.txt"):
        note("goes on")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a file that is always full")
def test_a_log_on_a_full_disk_neither_stops_a_run_nor_hides_its_error(capsys: pytest.CaptureFixture[str]) -> None:
    logs.begin()
    logs.LOG.info("begun")
    with logs.log_to(Path("/dev/full")):
        logs.LOG.info("a step")
    with pytest.raises(ValueError, match="the run's own"), logs.log_to(Path("/dev/full")):
        raise ValueError("the run's own")
    assert "Logging error" not in capsys.readouterr().err


def test_only_a_run_is_exported_without_adapter_and_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert run_cli("export", str(tmp_path / "a.gguf"), "--gguf", "q8_0") == 2
    assert "holds no run" in capsys.readouterr().err


def test_api_without_an_address_is_an_input_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("evaluate", "--api", ",", "--out", str(tmp_path / "scores")) == 2
    assert "--api: names no server" in capsys.readouterr().err


_MAIN_AND_HEAVY_IMPORTS = """
import sys
from cot_unsloth.cli import main
try:
    main(sys.argv[1:])
except SystemExit as ended:
    print(f"exit code {ended.code}, imported {[n for n in ('torch', 'transformers', 'datasets') if n in sys.modules]}")
"""


@pytest.mark.parametrize(
    "args",
    [
        ["train", "--model-name-or-path", "someone/model", "--run-dir", "run", "--world-samples", "8"],
        ["train", "--model-name-or-path", "someone/model", "--dry-run"],
        ["evaluate", "--model", "someone/model", "--out", "scores"],
        ["chat", "--adapter", "someone/adapter", "hello"],
        ["train", "--dataset", "someone/rows", "--run-dir", "run"],
    ],
)
def test_a_hub_that_cannot_be_reached_is_reported_at_once(args: list[str], tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-c", _MAIN_AND_HEAVY_IMPORTS, *args]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
    assert done.stdout == "exit code 2, imported []\n"  # importing them takes seconds
    assert "127.0.0.1 cannot be reached: only what was downloaded before can be used" in done.stderr
    assert "Retry" not in done.stderr  # the libraries try five times, for a minute
    assert "error: someone/" in done.stderr
