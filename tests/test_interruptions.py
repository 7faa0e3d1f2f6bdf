"""Two processes in one folder, signals, and damaged checkpoints: nothing is lost, and the error says what to do."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from helpers import Forked, forked, furthest, run_cli, short_run
from safetensors.torch import load_file

from cot_unsloth.core import interrupts
from cot_unsloth.core.errors import RunDirError
from cot_unsloth.core.results import FitReport, Manifest
from cot_unsloth.core.results.verification import read_verification
from cot_unsloth.reporting import report
from cot_unsloth.storage import atomic, checkpoints, records
from cot_unsloth.storage.hashes import sha256_of
from cot_unsloth.storage.lock import folder_lock
from cot_unsloth.storage.run_folder import RunDir
from cot_unsloth.training import training_stage

SMALL = [
    "--world-samples", "60", "--max-steps", "6", "--save-steps", "2", "--save-total-limit", "5", "--logging-steps", "1",
    "--per-device-train-batch-size", "2", "--lora-r", "4", "--eval-samples", "2", "--max-new-tokens", "8",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return short_run(tmp_path_factory.mktemp("runs") / "run", *SMALL, "--gguf", "")


@pytest.fixture
def run(trained: RunDir, tmp_path: Path) -> RunDir:
    return RunDir(shutil.copytree(trained.path, tmp_path / "run"))


def export(run: RunDir, *more: str, at: Path) -> Forked:
    return Forked("cot_unsloth", "export", str(run.path), "--export-samples", "1", *more, at=at)


def wait_until(reached: Callable[[], bool], process: Forked) -> None:
    while not reached() and process.poll() is None:
        time.sleep(0.01)
    assert reached(), process.done().stderr


@pytest.mark.parametrize("apart", [0, 0.5, 3])
def test_of_two_exports_into_one_folder_one_is_refused_and_no_file_is_lost(
    run: RunDir, apart: float, tmp_path: Path
) -> None:
    first = export(run, "--gguf", "q8_0", at=tmp_path)
    time.sleep(apart)
    second = export(run, "--gguf", "q4_k_m", at=tmp_path)
    done = [first.done(), second.done()]
    assert {process.returncode for process in done} <= {0, 2}, [process.stderr for process in done]
    for process, name in zip(done, ("Q8_0", "Q4_K_M"), strict=True):
        if process.returncode == 0:
            assert (run.export / f"tiny-base-cot-{name}.gguf").is_file()
        else:
            assert re.search(r"is in use by another process \(process \d+ on .*export", process.stderr), process.stderr
            assert process.stderr.count("error:") == 1
    record = read_verification(run.export)
    assert record.status == "passed"
    assert all(sha256_of(run.export / name) == sha for name, sha in record.sha256.items())
    assert len(record.passed_files) == sum(process.returncode == 0 for process in done) >= 1


def test_a_resume_during_an_export_leaves_it_alone(run: RunDir, tmp_path: Path) -> None:
    exporting = export(run, "--gguf", "q8_0,q4_k_m", at=tmp_path)
    wait_until(lambda: any(run.export.glob(".aside-*")), exporting)
    manifest = Manifest.read(run.manifest)
    manifest.without("finished").write(run.manifest)  # as after a kill, so that the resume works in the folder
    os.kill(exporting.pid, signal.SIGSTOP)  # else it may end before the resume does, and show nothing
    resumed = forked("cot_unsloth", "train", "--run-dir", str(run.path), "--resume", at=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert exporting.poll() is None
    os.kill(exporting.pid, signal.SIGCONT)
    assert exporting.done().returncode == 0, exporting.done().stderr
    assert len(read_verification(run.export).passed_files) == 2


def test_commands_that_add_scores_take_the_lock(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    with folder_lock(run.path):
        assert run_cli("evaluate", str(run.path)) == 2
        assert "is in use by another process" in capsys.readouterr().err


def test_an_export_killed_while_its_files_move_is_finished_by_the_same_command(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed after each of the renames that give files their names."""
    whole = tmp_path / "whole"
    args = ("export", str(run.path), "--gguf", "q8_0", "--merged", "--export-samples", "1", "--out")
    assert run_cli(*args, str(whole)) == 0
    names = sorted(path.name for path in whole.iterdir())
    moved = [name for name in names if name != ".lock"]
    for after in range(len(moved)):
        out = tmp_path / f"killed-{after}"
        shutil.copytree(whole, out / ".aside-complete", ignore=shutil.ignore_patterns(".lock"))
        for name in ["verified.json", *(name for name in moved if name != "verified.json")][:after]:
            (out / ".aside-complete" / name).rename(out / name)
        assert run_cli(*args, str(out)) == 0, after
        assert "moving the rest now" in capsys.readouterr().err
        assert sorted(path.name for path in out.iterdir()) == names
        for name, sha in read_verification(out).sha256.items():
            assert sha256_of(out / name) == sha


@pytest.mark.parametrize("most_bytes", [3_000, 60_000, 150_000])
def test_a_full_disk_inside_a_checkpoint_gives_one_error(trained: RunDir, most_bytes: int, tmp_path: Path) -> None:
    """Of the writers that torch and safetensors bring: their errors are no OSError."""
    path = tmp_path / "run"
    script = tmp_path / "full.py"
    script.write_text(
        "import resource, signal, sys\n"
        "from cot_unsloth.training import trainers\n"
        "inner = trainers.StagedCheckpoints._save_checkpoint\n"
        "def limited(*args):\n"
        "    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"    resource.setrlimit(resource.RLIMIT_FSIZE, ({most_bytes}, resource.RLIM_INFINITY))\n"
        "    inner(*args)\n"
        "trainers.StagedCheckpoints._save_checkpoint = limited\n"
        "from cot_unsloth.cli import main\nmain(sys.argv[1:])"
    )
    args = [*SMALL, "--gguf", "", "--use-rslora"]
    done = forked(str(script), "train", "--run-dir", str(path), *args, at=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert [line.startswith("error: ") for line in done.stderr.splitlines()].count(True) == 1
    assert RunDir(path).complete_checkpoints() == []
    assert not list((path / "checkpoints").iterdir())


def test_a_clock_that_was_set_back_changes_nothing(
    trained: RunDir, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The killed run was written in the year 2100, and is resumed in 2001."""
    for folder in (run.adapter, run.checkpoints / "checkpoint-6", run.path / "completions"):
        shutil.rmtree(folder)
    run.scorecard.unlink()
    Manifest.read(run.manifest).without("finished").write(run.manifest)
    for path in run.path.rglob("*"):
        os.utime(path, (4.1e9, 4.1e9))
    monkeypatch.setattr(time, "time", lambda: 1e9)
    assert run_cli("train", "--run-dir", str(run.path), "--resume", "--no-gate") == 0
    weights = [load_file(one.adapter / "adapter_model.safetensors") for one in (trained, run)]
    assert furthest(*weights) == 0.0
    assert [path.read_bytes() for path in sorted((run.path / "completions").iterdir())] == [
        path.read_bytes() for path in sorted((trained.path / "completions").iterdir())
    ]


def _write_folder(path: Path) -> None:
    with atomic.staged(path):
        pass


def _write_file(path: Path) -> None:
    atomic.write_text(path, "text")


def _remove(path: Path) -> None:
    path.mkdir()
    atomic.remove_tree(path)


@pytest.mark.parametrize("action", [_write_folder, _write_file, _remove])
def test_what_killed_processes_left_is_removed_and_what_living_ones_write_is_kept(
    action: Callable[[Path], None], tmp_path: Path
) -> None:
    living = tmp_path / f".aside-x.{os.getppid()}-0"
    dead = tmp_path / ".aside-x.4194304-0"  # above the largest process id of Linux
    file = tmp_path / ".aside-x.4194304-1"
    other = tmp_path / ".aside-xy.4194304-0"
    for folder in (living, dead, other):
        folder.mkdir()
    file.touch()
    action(tmp_path / "x")
    assert [path.exists() for path in (living, dead, file, other)] == [True, False, False, True]


def test_a_folder_that_was_made_for_a_lock_alone_is_removed(tmp_path: Path) -> None:
    with folder_lock(tmp_path / "new"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_lock_names_who_holds_it(tmp_path: Path) -> None:
    with (
        folder_lock(tmp_path),
        pytest.raises(RunDirError, match=rf"\(process {os.getpid()} on "),
        folder_lock(tmp_path),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_a_checkpoint_and_says_how_to_continue(
    trained: RunDir, number: signal.Signals, code: int, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    args = [*SMALL, "--gguf", "", "--save-steps", "100", "--use-rslora"]
    process = Forked("cot_unsloth", "train", "--run-dir", str(path), *args, at=tmp_path)
    run = RunDir(path)
    wait_until(lambda: run.metrics.is_file(), process)  # written after the first step
    os.kill(process.pid, number)
    done = process.done()
    assert done.returncode == code, done.stderr
    assert f"cot-unsloth train --run-dir {path} --resume continues it" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(run.complete_checkpoints()) == 1, "no step is lost, although save_steps is 100"
    assert not [child for child in psutil.process_iter() if child.ppid() == process.pid]
    assert forked("cot_unsloth", "train", "--run-dir", str(path), "--resume", at=tmp_path).returncode == 0
    weights = [load_file(one.adapter / "adapter_model.safetensors") for one in (trained, run)]
    assert furthest(*weights) == 0.0


@pytest.mark.skipif(os.name == "nt", reason="Windows removes no folder with open files")
def test_training_ends_when_its_folder_is_taken_away(tmp_path: Path) -> None:
    """It wrote its next checkpoint into whatever run was there then, which resumed from it."""
    folder = tmp_path / "run"
    more = ["--max-steps", "100000", "--save-steps", "1", "--gguf", "", "--arms", "tuned"]
    process = Forked("cot_unsloth", "train", "--run-dir", str(folder), *SMALL, *more, at=tmp_path)
    wait_until(lambda: any((folder / "checkpoints").glob("checkpoint-*")), process)
    folder.rename(tmp_path / "old")
    done = process.done()
    assert done.returncode == 2, done.stderr
    assert "was deleted, moved or replaced while this process worked in it" in done.stderr.replace("\n", " ")
    assert not folder.exists()


def test_the_second_signal_is_raised_at_once() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with interrupts.deferred("later") as signals:
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.pending is not None
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
            signals.pending = None
        with pytest.raises(KeyboardInterrupt), interrupts.deferred("later"):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_comes_while_an_object_is_deleted_is_not_lost(number: signal.Signals) -> None:
    """Python ignores exceptions of `__del__`; a run went on to its end after SIGTERM."""

    class Deleted:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)
            time.sleep(0.01)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with interrupts.raising_at_sigterm():
            with pytest.raises(KeyboardInterrupt) as raised:
                delete_and_wait(Deleted)
            assert interrupts.exit_code(raised.value) == 128 + number
    finally:
        signal.signal(signal.SIGINT, before)


def delete_and_wait(kind: type) -> None:
    kind()  # deleted at once
    time.sleep(5)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


DAMAGE: dict[str, tuple[str, Callable[[Path], None]]] = {
    "optimizer.pt is missing": ("optimizer.pt", Path.unlink),
    "scheduler.pt is missing": ("scheduler.pt", Path.unlink),
    "rng_state.pth is cut off": ("rng_state.pth", cut),
    "optimizer.pt is cut off": ("optimizer.pt", cut),
    "trainer_state.json is cut off": ("trainer_state.json", cut),
    "adapter_model.safetensors has changed": ("adapter_model.safetensors", flip),
    "adapter_model.safetensors is missing": ("adapter_model.safetensors", Path.unlink),
    "files.json is damaged": ("files.json", cut),
}


@pytest.mark.parametrize("said", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(
    said: str, run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    name, damage = DAMAGE[said]
    damage(run.checkpoints / "checkpoint-6" / name)
    newest = checkpoints.newest_whole(run)
    assert newest is not None
    assert newest.name == "checkpoint-4"
    assert said in capsys.readouterr().err
    assert [path.name for path in run.complete_checkpoints()] == ["checkpoint-2", "checkpoint-4"]


def test_damage_of_a_checkpoint_without_a_list_is_seen_in_its_files(trained: RunDir, tmp_path: Path) -> None:
    """Of an older version."""
    whole = Path(shutil.copytree(trained.checkpoints / "checkpoint-4", tmp_path / "checkpoint-4"))
    (whole / "files.json").unlink()
    assert checkpoints.damage(whole) is None
    for said, (name, damage) in DAMAGE.items():
        if name == "files.json" or damage is flip:
            continue
        copy = Path(shutil.copytree(whole, tmp_path / "copy"))
        damage(copy / name)
        assert checkpoints.damage(copy) is not None, said
        shutil.rmtree(copy)


def test_a_run_whose_newest_checkpoints_are_damaged_ends_with_the_same_adapter(trained: RunDir, run: RunDir) -> None:
    (run.checkpoints / "checkpoint-6" / "optimizer.pt").unlink()
    cut(run.checkpoints / "checkpoint-4" / "optimizer.pt")
    shutil.rmtree(run.adapter)
    (run.completions("tuned")).unlink()
    Manifest.read(run.manifest).without("finished").write(run.manifest)
    assert run_cli("train", "--run-dir", str(run.path), "--resume") == 0
    weights = [load_file(one.adapter / "adapter_model.safetensors") for one in (trained, run)]
    assert furthest(*weights) == 0.0
    (resumed,) = Manifest.read(run.manifest).resumed
    assert resumed.from_step == 2
    assert json.loads(run.scorecard.read_text())["arms"] == json.loads(trained.scorecard.read_text())["arms"]


def test_the_time_of_training_counts_the_steps_before_a_resume(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    class Method:
        def train(self, engine: object, data: object, hooks: object) -> FitReport:
            return FitReport.read(run.fit_report).model_copy(update={"seconds": 2.0})

    class Engine:
        def save(self, folder: Path) -> None:
            pass

    rows = [{"step": step, "seconds": 30.0 * step, "num_tokens": step} for step in (2, 4, 6)]
    records.write_jsonl(run.metrics, rows)
    monkeypatch.setattr(training_stage, "training_method", lambda name: Method())
    for checkpoint, seconds in ((None, 2.0), (run.checkpoints / "checkpoint-4", 122.0)):
        training_stage._train_from(checkpoint, run.read_config(), run, None, Engine())  # type: ignore[arg-type]
        assert FitReport.read(run.fit_report).seconds == seconds
    report.write(run)
    assert "2 min 2 s, 6 steps" in run.report.read_text()
