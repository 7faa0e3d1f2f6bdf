"""Runs `train` in a process of its own, so that a crash or lack of memory ends one run, not the whole sweep or transfer.

A process that outlives its parent keeps the lock of its run folder, so a command that would continue the run must wait.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cot_unsloth.config import DataConfig, RunConfig
from cot_unsloth.core.errors import EngineError, RunDirError
from cot_unsloth.core.progress import collected, note
from cot_unsloth.data.sources import find_sources
from cot_unsloth.storage.atomic import free_space, write_text
from cot_unsloth.storage.environment import text_hash
from cot_unsloth.storage.hashes import sha256_of
from cot_unsloth.storage.lock import is_locked
from cot_unsloth.storage.run_folder import RunDir
from cot_unsloth.tasks import is_task_dataset

_MEASURED = "development.eval_steps"
"""A setting that changes no result: `sweep --no-prune` has it unset."""
_POLL = 0.5
"""Seconds between checks of a running process."""
_INTERRUPTED = (130, 143)
"""Exit codes after Ctrl-C and SIGTERM."""


_SYSTEM_ERROR = re.compile(r"\[Errno (?P<number>\d+)\] (?P<text>.*)")
"""How `train` prints an OSError."""
_TOO_LITTLE_DISK = "too_little_disk: "
"""How it prints that its files will not fit."""
_FULL = 2**16
"""Bytes: with less free space, a process could not write its last lines."""


CHANGED = "was trained on data that have changed since"


class StoppedError(Exception):
    """The run was ended on purpose before it was complete."""


class OtherSettingsError(RunDirError):
    """A folder holds a run of other settings, whose figures say nothing of these."""


def train(config: RunConfig, folder: Path, should_stop: Callable[[], bool] = lambda: False) -> RunDir:
    """Train in a process of its own, or continue where an earlier process ended; nothing if the run is complete.

    Args:
        config: the settings, whose gate must be off.
        folder: gets `settings.yaml`, `log.txt` and the run itself, `run/`.
        should_stop: asked twice a second; True ends the process.

    Raises:
        OtherSettingsError: the folder holds a run of other settings, or of data that have changed since.
        EngineError: it failed, with the reason that it printed.
        OSError: it failed because the system refused something: the disk is full, for example. Another run would fail too.
        StoppedError: `should_stop` said so.
        KeyboardInterrupt: the process was interrupted.
    """
    run = RunDir(folder / "run")
    if is_locked(run.path):
        note(f"waiting for the process that works in {run.path}")
    while is_locked(run.path):
        time.sleep(_POLL)
    read = folder / "data.sha256"
    data = data_hash(config)
    if run.config.is_file():
        _require_same_settings(run, config)
        if read.is_file() and read.read_text(encoding="utf-8").strip() != data:
            hint = "restore the file, or name another folder: --out"
            raise OtherSettingsError(f"{run.path} {CHANGED}", where=config.data.dataset, hint=hint)
    if _is_finished(run):
        return run
    write_text(read, f"{data}\n")
    write_text(folder / "settings.yaml", config.replaced(run_dir=str(run.path)).to_yaml())
    command = [sys.executable, "-m", "cot_unsloth", "train"]
    command += ["--run-dir", str(run.path), "--resume"] if run.config.is_file() else [str(folder / "settings.yaml")]
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        began = log.seek(0, os.SEEK_END)
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while (code := process.poll()) is None:
                if should_stop():
                    raise StoppedError
                time.sleep(_POLL)
        finally:
            end(process)
    if code in _INTERRUPTED:
        raise KeyboardInterrupt
    if code != 0:
        raise _failure(folder / "log.txt", code, began)
    return run


def _require_same_settings(run: RunDir, config: RunConfig) -> None:
    if not has_settings(run, config):
        changes = ", ".join(name for name in run.changed(config) if name != _MEASURED)
        raise OtherSettingsError(
            f"holds a run of other settings ({changes})", where=str(run.path), hint="name another folder: --out"
        )


def data_hash(config: RunConfig) -> str:
    """A hash of the local files that a run reads its rows and its benchmark from; the same wherever they lie.

    Raises:
        DataError: a file does not exist.
    """
    read = [] if is_task_dataset(config.data.dataset) else [config.data]
    if config.evaluate.benchmark and config.evaluate.benchmark_path:
        read.append(DataConfig(dataset=config.evaluate.benchmark_path))
    with collected():  # the notes on which files are read
        sources = [source for data in read for source in find_sources(data)]
    paths = [source for source in sources if isinstance(source, Path)]
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return text_hash(*(sha256_of(file) for file in files if file.is_file()))


def has_settings(run: RunDir, config: RunConfig) -> bool:
    """Whether a run has these settings, apart from those that change no result."""
    before = run.read_config().replaced(eval_steps=config.development.eval_steps)
    return before.fingerprint() == config.fingerprint()


def _is_finished(run: RunDir) -> bool:
    manifest = run.read_manifest()
    return manifest is not None and manifest.finished is not None and run.scorecard.is_file()


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that still runs."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _failure(log: Path, code: int, began: int = 0) -> EngineError | OSError:
    reason = _reason(log, code, began)
    if system_error := _SYSTEM_ERROR.match(reason):
        return OSError(int(system_error["number"]), system_error["text"])
    if reason.startswith(_TOO_LITTLE_DISK):  # found before the run began
        return OSError(errno.ENOSPC, reason)
    if code > 0 and free_space(log)[1] < _FULL:  # then the log has no reason
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(log))
    return EngineError(reason, where=str(log))


def _reason(log: Path, code: int, began: int) -> str:
    """Why a process ended: the last error that it printed, or its last line. Its log begins after those of earlier processes."""
    if code < 0:
        return f"killed by signal {-code}" + (", perhaps for lack of memory" if code == -9 else "")
    text = log.read_bytes()[began:].decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [f"exit code {code}"])[-1].removeprefix("error: ")[:300]
