"""The run folder: atomic writes, one run per folder, one process at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cot_unsloth.config import RunConfig, load
from cot_unsloth.core.errors import RunDirError
from cot_unsloth.core.types import Example, Part, Trace
from cot_unsloth.storage import atomic, records, run_names
from cot_unsloth.storage.run_folder import RunDir


def test_the_run_of_an_exported_file_is_detected(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("base_model: somebody's\n")
    file = tmp_path / "out" / "m.gguf"
    assert RunDir.of_export(file) is None
    (tmp_path / "manifest.json").write_text("{}")
    result = RunDir.of_export(file)
    assert result is not None
    assert result.path == tmp_path.resolve()


@pytest.mark.parametrize(
    "folder",
    ["adapter", "checkpoints/checkpoint-2", "export/merged", "rounds/1/adapter", "rounds/2/checkpoints/checkpoint-4"],
)
def test_the_run_that_trained_an_adapter_is_known(folder: str, tmp_path: Path) -> None:
    """It says what the adapter was trained on; of a round, nothing was left out of what is scored."""
    for name in ("config.yaml", "manifest.json"):
        (tmp_path / name).write_text("{}")
    run = RunDir.of_weights(tmp_path / folder)
    assert run is not None
    assert run.path == tmp_path.resolve()
    assert RunDir.of_weights(tmp_path / "other" / "1" / "adapter") is None


def test_a_file_that_was_not_verified_is_not_named_to_chat_with(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.export.mkdir()
    for name in ("m-F16.unverified.gguf", "m-LORA.gguf", "m-Q8_0.gguf"):
        (run.export / name).touch()
    assert run.exported_models() == [run.export / "m-Q8_0.gguf"]


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a" / "file.json"
    atomic.write_json(path, {"v": 1})

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic.write_json(path, {"v": 2})
    assert path.read_text() == '{\n  "v": 1\n}\n'
    assert list(path.parent.iterdir()) == [path]


def test_what_a_symbolic_link_points_to_is_written_and_the_link_stays(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "folder").mkdir(parents=True)
    for name in ("file.json", "folder", "item"):
        (tmp_path / name).symlink_to(elsewhere / name)
    atomic.write_json(tmp_path / "file.json", {"a": 1})
    with atomic.staged(tmp_path / "folder") as folder:
        (folder / "b").touch()
    assert json.loads((elsewhere / "file.json").read_text()) == {"a": 1}
    assert (elsewhere / "folder" / "b").is_file()
    assert (tmp_path / "file.json").is_symlink()
    assert (tmp_path / "folder").is_symlink()
    (elsewhere / "item").mkdir()
    with atomic.staged_into(tmp_path, "item") as aside:
        (aside / "item").mkdir()
        (aside / "item" / "c").touch()
    assert (tmp_path / "item" / "c").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere", "file.json", "folder", "item"}
    assert {path.name for path in elsewhere.iterdir()} == {"file.json", "folder", "item"}


def test_a_full_disk_leaves_no_incomplete_folder(tmp_path: Path) -> None:
    final = tmp_path / "adapter"

    def interrupted() -> None:
        with atomic.staged(final) as aside:
            (aside / "half").write_text("x")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    with atomic.staged(final) as aside:
        (aside / "whole").write_text("x")
        (aside / "whole").chmod(0o600)
    (tmp_path / "plain").touch()
    assert (final / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert [p.name for p in final.iterdir()] == ["whole"]


def test_a_folder_with_a_run_is_refused(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with run.locked(RunConfig(), resume=False):
        pass
    with pytest.raises(RunDirError, match="already holds a run"), run.locked(RunConfig(), resume=False):
        pass
    other = load(None, {"learning_rate": "1"})
    with (
        pytest.raises(RunDirError, match=r"holds another run: .*train.learning_rate was 0.0002, now 1.0"),
        run.locked(other, resume=True),
    ):
        pass
    assert run.read_config() == RunConfig()


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunDirError, match="is not empty"), RunDir(tmp_path).locked(RunConfig(), resume=False):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_process_killed_before_its_run_started_does_not_block_the_folder(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".aside-config.yaml").write_text("half")
    with RunDir(tmp_path).locked(RunConfig(), resume=False):
        assert RunDir(tmp_path).config.is_file()


@pytest.mark.parametrize(
    ("named", "meant"),
    [
        ("runs/first/export", "did you mean {}/runs/first/export/a.gguf?"),
        ("runs/first/adapter", "write --adapter {}/runs/first/adapter"),
        ("runs/first/completions", "did you mean the run that it is in, {}/runs/first?"),
        ("runs/first/scorecard.json", "did you mean the run that it is in, {}/runs/first?"),
        ("runs", "did you mean a run in it, such as {}/runs/first?"),
        ("runs/fir", "did you mean {}/runs/first?"),
        ("runs/frist", "did you mean {}/runs/first?"),
        ("base", "write --model {}/base"),
        ("other", "give the folder that train wrote"),
    ],
)
def test_a_path_that_is_no_run_gets_the_one_that_was_meant(tmp_path: Path, named: str, meant: str) -> None:
    for file in (
        "config.yaml",
        "manifest.json",
        "scorecard.json",
        "export/a.gguf",
        "adapter/adapter_config.json",
        "completions/a",
    ):
        path = tmp_path / "runs" / "first" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "tokenizer_config.json").touch()
    with pytest.raises(RunDirError) as caught:
        RunDir.open(tmp_path / named)
    assert meant.format(tmp_path) in str(caught.value.hint)


def test_resuming_a_missing_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="holds no run to resume"), RunDir(tmp_path).locked(RunConfig(), resume=True):
        pass


def test_an_unwritable_folder_gives_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(RunDirError, match="cannot be written"),
        RunDir(tmp_path / "file" / "run").locked(RunConfig(), resume=False),
    ):
        pass


def test_two_processes_cannot_use_the_same_folder(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    code = (
        "import sys; from cot_unsloth.storage.run_folder import RunDir; from cot_unsloth.config import RunConfig\n"
        "with RunDir(sys.argv[1]).locked(RunConfig(), resume=True): pass"
    )
    with run.locked(RunConfig(), resume=False):
        done = subprocess.run([sys.executable, "-c", code, str(run.path)], capture_output=True, text=True, check=False)
    assert "is in use by another process" in done.stderr


@pytest.mark.parametrize("successor", ["none", "another process's"])
def test_nothing_is_written_into_a_folder_that_took_the_place_of_a_locked_one(successor: str, tmp_path: Path) -> None:
    """As after `rm -rf runs/x` and a new run, while the old process still ends: its checkpoint got into the new run."""
    run = RunDir(tmp_path / "run")
    code = (
        "import os, sys; from cot_unsloth.storage.run_folder import RunDir; from cot_unsloth.config import RunConfig\n"
        "with RunDir(sys.argv[1]).locked(RunConfig(), resume=False): os._exit(0)"
    )
    with run.locked(RunConfig(), resume=False):
        run.path.rename(tmp_path / "old")
        if successor != "none":
            subprocess.run([sys.executable, "-c", code, str(run.path)], check=True)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(RunDirError, match="was deleted, moved or replaced"):
            atomic.write_text(run.metrics, "")
        with pytest.raises(RunDirError, match="was deleted, moved or replaced"):
            records.append_jsonl(run.completions("tuned"), [])
        with pytest.raises(RunDirError, match="was deleted, moved or replaced"), atomic.staged(run.adapter):
            pass
        with pytest.raises(RunDirError, match="was deleted, moved or replaced"):
            atomic.remove_tree(run.path)
        atomic.write_text(tmp_path / "elsewhere", "")
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "elsewhere"])


def test_a_folder_that_is_replaced_while_it_is_written_stays_as_it_is(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")

    def moved_while_it_is_written() -> None:
        with atomic.staged(run.adapter) as aside:
            (aside / "weights").write_text("1")
            run.path.rename(tmp_path / "old")

    with run.locked(RunConfig(), resume=False):
        with pytest.raises(RunDirError, match="was deleted, moved or replaced"):
            moved_while_it_is_written()
        assert not run.path.exists()
    with run.locked(RunConfig(), resume=False):
        (run.path / ".lock").unlink()  # by hand, for example; nothing took its place
        atomic.write_text(run.metrics, "")


def test_incomplete_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with run.locked(RunConfig(), resume=False):
        pass
    (run.checkpoints / ".aside-checkpoint-5").mkdir(parents=True)
    (run.checkpoints / "checkpoint-4").mkdir()
    with run.locked(RunConfig(), resume=True):
        assert [p.name for p in run.checkpoints.iterdir()] == ["checkpoint-4"]


def test_checkpoints_are_ordered_by_step(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-x"):
        (run.checkpoints / name).mkdir(parents=True)
    assert [p.name for p in run.complete_checkpoints()] == ["checkpoint-9", "checkpoint-10"]


def test_a_kept_row_is_read_back_as_its_example() -> None:
    example = Example(
        "i", "q?", Trace((Part("think", "a"), Part("reflect", "b"), Part("think", "c")), "7"), "7.0", "t", "test", "f:1",
        "sys", ({"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}), (False, True),
    )  # fmt: skip
    assert records.kept_example(records.kept_row(example, "nested")) == example


def test_appended_rows_are_read_back_without_an_incomplete_last_line(tmp_path: Path) -> None:
    rows = [{"text": "a\u2028b\u0085c\u2029\n"}, {"text": "next"}]
    records.append_jsonl(tmp_path / "x.jsonl", rows)
    with (tmp_path / "x.jsonl").open("ab") as file:
        file.write('{"text": "half \u2028'.encode())
    assert records.read_appended(tmp_path / "x.jsonl") == rows
    records.append_jsonl(tmp_path / "x.jsonl", rows[:1])
    assert records.read_appended(tmp_path / "x.jsonl") == [*rows, rows[0]]


@pytest.mark.parametrize(
    ("dataset", "named"),
    [
        ("world:chains:4-8,words,countdown", "tiny-base-chains-words-countdown"),
        ("openai/gsm8k", "tiny-base-gsm8k"),
        ("data/My Rows, v2.jsonl", "tiny-base-my rows, v2"),
    ],
)
def test_a_run_is_named_after_its_model_and_all_of_its_data(
    dataset: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load(None, {"dataset": dataset})
    first = run_names.default_run_dir(config)
    assert first.parent == Path("runs")
    assert first.name.endswith(named)


def test_a_resume_may_only_lower_the_step_size(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with run.locked(load(None, {}), resume=False):
        pass
    for flags in ({"learning_rate": "1e-5"}, {"max_grad_norm": "0.1"}, {"save_steps": "7"}, {"logging_steps": "1"}):
        run.check(load(None, flags), resume=True)
    for flags in ({"max_grad_norm": "2"}, {"warmup_ratio": "0.5"}, {"learning_rate": "1e-5", "lora_r": "4"}):
        with pytest.raises(RunDirError, match="holds another run"):
            run.check(load(None, flags), resume=True)
    run.adapter.mkdir()
    with pytest.raises(RunDirError, match=r"its training is finished.*learning_rate was \S+, now 1e-05"):
        run.check(load(None, {"learning_rate": "1e-5"}), resume=True)
