"""A run of `train`: the files it writes, resuming after a kill, and bad input, which leaves nothing behind."""

from __future__ import annotations

import functools
import json
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import Forked, forked, run_cli
from safetensors.torch import load_file

from cot_unsloth.config import load_tree
from cot_unsloth.core.results import Manifest
from cot_unsloth.models import registry
from cot_unsloth.models.hf import HfEngine
from cot_unsloth.models.llamacpp import LlamaCpp
from cot_unsloth.storage import environment, records
from cot_unsloth.storage.run_folder import RunDir
from cot_unsloth.training.preparation import describe_steps

SMALL = [
    "--world-samples", "48", "--max-steps", "12", "--per-device-train-batch-size", "2", "--save-steps", "3",
    "--lora-r", "4", "--lora-alpha", "8", "--eval-samples", "6", "--max-new-tokens", "12", "--logging-steps", "2",
]  # fmt: skip


def run(*args: str) -> int:
    return run_cli("train", *args)


def adapter(path: Path) -> dict[str, Any]:
    return load_file(path / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    path = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        for engine in (HfEngine, LlamaCpp):
            patch.setattr(engine, "__init__", _counting(engine.__init__, LOADS))
        assert run("--run-dir", str(path), *SMALL) == 0
    return RunDir(path)


LOADS: list[str] = []
"""The engines that the run of `finished` has loaded a model in."""


def _counting(load: Callable[..., None], loads: list[str]) -> Callable[..., None]:
    def counted(self: Any, *args: Any, **kwargs: Any) -> None:
        loads.append(self.name)
        load(self, *args, **kwargs)

    return counted


def test_a_run_loads_its_model_once(finished: RunDir) -> None:
    """Once for all arms and for training; the exported file once to verify it and once to score it."""
    assert LOADS == ["hf", "llamacpp", "llamacpp"]


def test_a_checkpoint_holds_the_trained_weights_and_their_two_moments(finished: RunDir) -> None:
    weights = (finished.adapter / "adapter_model.safetensors").stat().st_size
    for checkpoint in finished.complete_checkpoints():
        files = [file.stat().st_size for file in checkpoint.iterdir()]
        assert 3 * weights <= sum(files) < 3 * weights + 2**17
        assert len(files) <= 12  # the eleven of the trainer, and the list of them


def test_a_run_leaves_no_other_files(finished: RunDir) -> None:
    files = {str(file.relative_to(finished.path)) for file in finished.path.rglob("*") if file.is_file()}
    folders = ("adapter/", "checkpoints/checkpoint-9/", "checkpoints/checkpoint-12/")
    assert {name for name in files if not name.startswith(folders)} == {
        ".lock", "export/.lock", "chat_template.jinja", "config.yaml", "fit.json", "log.txt", "manifest.json", "metrics.jsonl", "report.html",
        "scorecard.json", "token_accuracy.json", "data/kept.jsonl", "data/rejected.jsonl", "export/Modelfile",
        "export/README.md", "export/tiny-base-cot-Q8_0.gguf", "export/verified.json",
        *(f"completions/{arm}.jsonl" for arm in ("base_cot", "base_direct", "base_tags", "gguf", "tuned")),
    }  # fmt: skip


def test_a_run_writes_all_documented_files(finished: RunDir) -> None:
    card = json.loads(finished.scorecard.read_text())
    assert list(card["arms"]) == ["base_direct", "base_cot", "base_tags", "tuned", "gguf"]
    assert (card["n"], card["seed"]) == (6, 1234)
    for arm, result in card["arms"].items():
        rows = records.read_jsonl(finished.completions(arm))
        assert len(rows) == 6
        assert {"id", "task", "question", "gold", "text", "answer", "correct", "fault", "tokens", "stopped"} <= set(
            rows[0]
        )
        assert result["accuracy"] == sum(row["correct"] for row in rows) / 6
        assert sum(cell["n"] for cell in result["by_task"].values()) == 6
    assert [pair["before"] for pair in card["paired"]] == ["base_direct", "base_cot", "base_tags", "tuned"]
    assert json.loads(finished.verified.read_text())["status"] == "passed"
    assert "reflection" in card
    manifest = json.loads(finished.manifest.read_text())
    assert {"versions", "git", "cpu", "data_hash", "template_hash", "tokenizer_hash", "seed"} <= set(manifest)
    assert manifest["rows"] == {"in": 54, "train": 48, "test": 6, "rejected": 0}
    assert [row["step"] for row in records.read_jsonl(finished.metrics)] == [1, 2, 4, 6, 8, 10, 12]
    assert [p.name for p in finished.complete_checkpoints()] == ["checkpoint-9", "checkpoint-12"]
    assert not list(finished.path.rglob(".aside-*"))


def test_kept_rows_record_their_split(finished: RunDir) -> None:
    rows = records.read_jsonl(finished.kept)
    assert [sum(row["split"] == split for row in rows) for split in ("train", "test")] == [48, 6]
    assert all((row["tokens"] is None) == (row["split"] == "test") for row in rows)
    assert records.read_jsonl(finished.rejected) == []


def test_a_finished_run_is_not_overwritten(finished: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    before = adapter(finished.path)
    assert run("--run-dir", str(finished.path), *SMALL) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert run("--run-dir", str(finished.path), "--resume") == 0
    assert "An answer of the tuned model" in capsys.readouterr().out
    after = adapter(finished.path)
    assert all((before[name] == after[name]).all() for name in before)


def everything_in(path: Path) -> dict[str, tuple[int, bytes]]:
    files = (p for p in path.rglob("*") if p.is_file())
    return {str(p.relative_to(path)): (p.stat().st_mtime_ns, p.read_bytes()) for p in files}


def test_resuming_a_finished_run_changes_nothing_and_reports_it(
    finished: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything_in(finished.path)
    assert run("--run-dir", str(finished.path), "--resume") == 0
    captured = capsys.readouterr()
    assert f"{finished.path} is finished; nothing to do" in captured.err
    assert "base, step by step" in captured.out  # the table again
    assert everything_in(finished.path) == before
    assert run("--run-dir", str(finished.path), "--resume", "--learning-rate", "1e-6") == 2
    assert "its training is finished, so a change would have no effect: train.learning_rate" in capsys.readouterr().err
    assert everything_in(finished.path) == before


def test_a_resume_keeps_the_first_command_and_appends_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It also records what differs in its environment, so that results can be traced to the command that made them."""
    out = RunDir(tmp_path / "run")
    args = [*SMALL, "--eval-samples", "0", "--gguf", ""]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["/usr/bin/cot-unsloth", "train", "the first"])
        patch.setattr(records, "write_jsonl", _full_at_metrics(records.write_jsonl))
        assert run("--run-dir", str(out.path), *args) == 1
    first = out.read_manifest()
    assert first is not None
    assert first.command == ("cot-unsloth", "train", "the first")
    assert first.finished is None
    monkeypatch.setattr(sys, "argv", ["/usr/bin/cot-unsloth", "train", "the second"])
    monkeypatch.setattr(environment, "versions", lambda: first.versions | {"torch": "9.9"})
    monkeypatch.setattr(environment, "now", lambda: first.started)  # both commands within one second
    assert run("--run-dir", str(out.path), "--resume", "--logging-steps", "5") == 0
    last = out.read_manifest()
    assert last is not None
    written = last.as_json()
    (resumed,) = written.pop("resumed")
    assert written.pop("finished") >= resumed.pop("at") >= first.started
    assert written == first.as_json()
    assert resumed == {
        "command": ("cot-unsloth", "train", "the second"),
        "from_step": 0,
        "changed": {"train.logging_steps": (2, 5)},
        "environment": {"versions": {"torch": "9.9"}},
    }
    assert [row["step"] for row in records.read_jsonl(out.metrics)] == [1, 5, 10, 12]


def _full_at_metrics(write: Callable[..., None]) -> Callable[..., None]:
    def write_jsonl(path: Path, rows: Any) -> None:
        if path.name == "metrics.jsonl":
            raise OSError(28, "No space left on device")
        write(path, rows)

    return write_jsonl


def test_a_finished_run_with_missing_files_is_completed_on_resume(
    finished: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = RunDir(shutil.copytree(finished.path, tmp_path / "copy"))
    copy.completions("tuned").unlink()
    assert run("--run-dir", str(copy.path), "--resume") == 0
    assert "nothing to do" not in capsys.readouterr().err
    assert copy.completions("tuned").is_file()
    assert len(Manifest.read(copy.manifest).resumed) == 1


@pytest.mark.parametrize(
    ("flags", "rows", "line"),
    [
        ({}, 15, "2 optimizer steps (15 rows, batch 8, 1 epoch): too few to change the model noticeably. Runs usually take 100 or more; raise --num-train-epochs, or add rows"),
        ({"num_train_epochs": "30"}, 15, "60 optimizer steps (15 rows, batch 8, 30 epochs)"),
        ({"num_train_epochs": "1.5", "packing": "true"}, 1000, "188 optimizer steps (1,000 rows, batch 8, 1.5 epochs, fewer when packed)"),
        ({"max_steps": "1"}, 1000, "1 optimizer step (1,000 rows, batch 8, --max-steps): too few to change the model noticeably. Runs usually take 100 or more; raise --max-steps"),
    ],
)  # fmt: skip
def test_a_run_reports_its_number_of_steps_and_the_usual_number(flags: dict[str, str], rows: int, line: str) -> None:
    settings = load_tree({}, flags)
    assert describe_steps(settings, rows) == line


def test_the_predicted_number_of_steps_is_correct(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fifteen rows in batches of 4: the last batch of an epoch is smaller."""
    rows = [{"question": f"{n} + 4?", "answer": f"s\n#### {n + 4}"} for n in range(15)]
    path = file(tmp_path, "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    args = [
        "--dataset", path, "--per-device-train-batch-size", "2", "--gradient-accumulation-steps", "2", "--gguf", "",
        "--max-steps", "-1", "--num-train-epochs", "1.5", "--eval-samples", "0",
    ]  # fmt: skip
    assert run("--run-dir", str(tmp_path / "run"), *args) == 0
    assert (
        "steps: 6 optimizer steps (15 rows, batch 4, 1.5 epochs): too few to change the model noticeably. Runs usually take"
        in capsys.readouterr().err
    )
    assert json.loads(RunDir(tmp_path / "run").fit_report.read_text())["steps"] == 6


KILL_AT: list[Callable[[Path], bool]] = [
    lambda path: (path / "config.yaml").exists(),
    lambda path: (path / "completions" / "base_direct.jsonl").exists(),
    lambda path: (
        any((path / "checkpoints").glob(".aside-checkpoint-6*")) or (path / "checkpoints/checkpoint-9").exists()
    ),
    lambda path: (path / "checkpoints" / "checkpoint-9").exists(),
    lambda path: (path / "adapter").exists(),
]
"""One kill after another: as it begins, while the base is scored, in the middle of writing a
checkpoint, after one, and before the tuned model is scored."""


@pytest.mark.slow
def test_a_run_killed_at_any_point_resumes_to_the_same_adapter(finished: RunDir, tmp_path: Path) -> None:
    path = tmp_path / "killed"
    killed = 0
    for number, reached in enumerate(KILL_AT):
        more = ["--resume"] if number else SMALL
        process = Forked("cot_unsloth.train", "--run-dir", str(path), *more, at=tmp_path)
        killed += process.kill_when(functools.partial(reached, path)) == -signal.SIGKILL
    assert killed >= len(KILL_AT) - 1, "on a machine this busy the last one may end before it is killed"
    done = forked("cot_unsloth.train", "--run-dir", str(path), "--resume", at=tmp_path)
    assert done.returncode == 0, done.stderr
    one, other = adapter(finished.path), adapter(path)
    assert max((one[name] - other[name]).abs().max().item() for name in one) <= 1e-6
    cards = [json.loads(RunDir(p).scorecard.read_text()) for p in (finished.path, path)]
    assert cards[0] == cards[1]
    once, pieced = (
        [(r["step"], r["num_tokens"]) for r in records.read_jsonl(p.metrics)] for p in (finished, RunDir(path))
    )
    assert once == pieced
    assert not list(path.rglob(".aside-*"))


def refused(capsys: pytest.CaptureFixture[str], run_dir: Path, *args: str) -> str:
    """The message of a run that must exit with 2 and leave no files."""
    assert run("--run-dir", str(run_dir), *args) == 2
    assert not run_dir.exists()
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert captured.err.count("error:") == 1
    return captured.err


def file(tmp_path: Path, name: str, text: str) -> str:
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


def test_bad_input_gives_one_message_and_exit_2_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    config = file(tmp_path, "mine.yaml", "lora:\n  rnak: 8\ntrain:\n  seed: soon\n")
    said = refused(capsys, out, config)
    assert "mine.yaml:2: lora.rnak is not a setting; did you mean lora.lora_r?" in said
    assert "mine.yaml:4: train.seed is 'soon'" in said
    assert "there is no such file" in refused(capsys, out, "--dataset", str(tmp_path / "absent.jsonl"))
    assert "holds no rows" in refused(capsys, out, "--dataset", file(tmp_path, "empty.jsonl", ""))
    bad = file(tmp_path, "bad.jsonl", '{"question": "a", "answer": "b"}\n')
    assert "these rows hold answers but no reasoning" in refused(capsys, out, "--dataset", bad)
    template = file(
        tmp_path,
        "t.jinja",
        "{% for m in messages %}{% if m.role != 'assistant' %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}",
    )
    assert "drops or rewrites the assistant's" in refused(capsys, out, "--chat-template", template)
    assert "is not in its vocabulary" in refused(capsys, out, "--pad-token", "<nope>")
    assert "did you mean --learning-rate?" in refused(capsys, out, "--learning-rat", "1")
    assert "did you mean --learning-rate?" in refused(capsys, out, "--lr", "1")
    assert run_cli("export", "--learning-rate", "1") == 2
    assert "export has no option --learning-rate (other commands do)" in capsys.readouterr().err
    assert "the model has no module zzz" in refused(capsys, out, *SMALL, "--target-modules", "q_proj,zzz")
    assert "there is no task" in refused(capsys, out, "--dataset", "world:chess")
    assert "cannot be loaded" in refused(capsys, out, "--model-name-or-path", str(tmp_path))
    assert "two config files" in refused(capsys, out, config, "--config", config)
    assert "no row is left to train on: 54 too_long" in refused(capsys, out, *SMALL, "--max-seq-length", "20")
    assert "the model has no module lm_head" in refused(capsys, out, *SMALL, "--target-modules", "q_proj,lm_head")


def test_a_broken_line_is_rejected_and_the_run_continues(tmp_path: Path) -> None:
    good = [json.dumps({"question": f"{n} + 4?", "answer": f"{n} + 4 = {n + 4}\n#### {n + 4}"}) for n in range(20)]
    path = file(tmp_path, "rows.jsonl", "\n".join([*good[:3], '{"question": "bro', *good[3:]]) + "\n")
    out = tmp_path / "run"
    assert run("--run-dir", str(out), "--dataset", path, *SMALL, "--max-steps", "1", "--arms", "base_direct,tuned") == 0
    (reject,) = records.read_jsonl(RunDir(out).rejected)
    assert (reject["where"], reject["reason"]) == (f"{path}:4", "broken_json")
    kept = records.read_jsonl(RunDir(out).kept)
    assert len(kept) == 20
    assert len({row["id"] for row in kept if row["split"] == "test"}) == 1


def test_held_out_rows_are_checked_like_training_rows(tmp_path: Path) -> None:
    rows = [{"question": f"{n} + 4?" + " <|im_end|>" * (n % 2), "answer": f"s\n#### {n + 4}"} for n in range(40)]
    path = file(tmp_path, "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "run"
    args = ["--test-fraction", "0.5", "--max-steps", "1", "--max-new-tokens", "4", "--arms", "base_direct"]
    assert run("--run-dir", str(out), "--dataset", path, *args) == 0
    kept, rejected = (records.read_jsonl(p) for p in (RunDir(out).kept, RunDir(out).rejected))
    assert [row["reason"] for row in rejected] == ["control_token"] * 20
    assert not any("<|im_end|>" in row["question"] for row in kept)
    assert {row["split"] for row in kept} == {"train", "test"}


def test_a_run_is_not_resumed_on_changed_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def rows(shift: int) -> str:
        lines = (json.dumps({"question": f"{n}?", "answer": f"s\n#### {n + shift}"}) for n in range(20))
        return file(tmp_path, "rows.jsonl", "\n".join(lines))

    out = tmp_path / "run"
    args = ["--dataset", rows(1), "--max-steps", "1", "--max-new-tokens", "4", "--arms", "base_direct"]
    assert run("--run-dir", str(out), *args) == 0
    before = RunDir(out).kept.read_text()
    rows(100)
    assert run("--run-dir", str(out), "--resume") == 2
    assert "was started with another data" in capsys.readouterr().err
    assert RunDir(out).kept.read_text() == before
    rows(1)
    assert run("--run-dir", str(out), "--resume") == 0


def test_rows_dropped_by_max_train_samples_are_recorded(tmp_path: Path) -> None:
    out = tmp_path / "run"
    args = [*SMALL, "--max-train-samples", "10", "--max-steps", "1", "--eval-samples", "0"]
    assert run("--run-dir", str(out), *args) == 0
    reasons = [row["reason"] for row in records.read_jsonl(RunDir(out).rejected)]
    assert reasons == ["not_sampled"] * 38


def test_a_missing_dependency_gives_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "filelock", None)
    assert run("--run-dir", str(tmp_path / "run"), *SMALL) == 1
    assert "error: filelock is not installed" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_dry_run_reports_what_this_machine_cannot_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "installed", lambda name: False)
    assert run("--run-dir", str(tmp_path / "run"), *SMALL, "--load-in-4bit", "--dry-run") == 0
    assert "this machine cannot train it: needs bitsandbytes" in capsys.readouterr().out


def test_too_few_held_out_problems_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(Path(__file__).parent.parent / "examples" / "own_data.jsonl")
    assert run("--dataset", data, "--dry-run") == 0
    assert "200 problems requested, 1 held out" in capsys.readouterr().err


def test_more_problems_of_a_file_need_new_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It holds out `--eval-samples` rows, and an evaluation with more of them would score the same ones."""
    rows = [{"question": f"{i} + {i}?", "reasoning": f"{i} + {i} = {2 * i}", "answer": str(2 * i)} for i in range(30)]
    data = file(tmp_path, "sums.jsonl", "\n".join(map(json.dumps, rows)))
    few = ["--max-steps", "1", "--eval-samples", "4", "--test-fraction", "0.5", "--max-new-tokens", "4", "--gguf", ""]
    assert (
        run("--run-dir", str(tmp_path / "run"), "--dataset", data, *few, "--arms", "base_tags,tuned", "--no-gate") == 0
    )
    printed = " ".join(capsys.readouterr().out.split())
    assert "Every held-out row was scored: train again with a larger --eval-samples" in printed
    assert "score more:" not in printed


def test_dry_run_and_print_config_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert run("--run-dir", str(out), *SMALL, "--dry-run") == 0
    output = capsys.readouterr()
    assert "loss on:\n    <thinking>" in output.out
    assert run("--run-dir", str(out), *SMALL, "--print-config") == 0
    path = file(tmp_path, "again.yaml", capsys.readouterr().out)
    assert run(path, "--print-config") == 0
    assert capsys.readouterr().out == Path(path).read_text()
    assert not out.exists()


def test_gsm8k_trains_the_tiny_base(published_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    lines = (published_data / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:600]
    dataset = file(tmp_path, "gsm8k.jsonl", "\n".join(lines))
    small = ["--max-steps", "2", "--eval-samples", "4", "--max-new-tokens", "16", "--per-device-train-batch-size", "2"]
    assert run("--run-dir", str(out), "--dataset", dataset, "--max-seq-length", "2048", *small) == 0
    kept, rejected = (records.read_jsonl(path) for path in (RunDir(out).kept, RunDir(out).rejected))
    assert len(kept) + len(rejected) == len(lines)
    assert len(kept) >= 0.99 * len(lines)
    assert {row["reason"] for row in rejected} <= {"too_long"}


def test_a_run_of_one_step_learns_and_prints_its_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A warm-up rounded up to one step would give the only step a learning rate of 0."""
    from safetensors.torch import load_file

    args = ["--max-steps", "1", "--world-samples", "16", "--eval-samples", "0", "--gguf", ""]
    assert run("--run-dir", str(tmp_path / "run"), *args) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["learning_rate"] > 0
    weights = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert sum(weight.abs().sum().item() for name, weight in weights.items() if "lora_B" in name) > 0
    printed = capsys.readouterr().err
    assert f"loss {rows[-1]['loss']:.4f}" in printed
    assert re.search(
        r"^estimate: training takes about \d+ s here .*; memory \d+ MiB of .* here$", printed, re.MULTILINE
    )
