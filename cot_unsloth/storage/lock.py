"""The lock that keeps two processes out of one folder: of a run, an export, scores, samples."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from cot_unsloth.core.atomic_files import LOCK_FILES, file_identity, is_replaced
from cot_unsloth.core.errors import RunDirError
from cot_unsloth.core.logs import without_secrets

LOCK = ".lock"
"""Name of the lock file. The file remains; the operating system releases the lock when the process ends, however it ends."""
_HOLDER = f"{LOCK}-holder"
"""Name of a file that tells people which process holds the lock. Only the lock itself counts, not this file."""
_PATIENCE = 0.5
"""Seconds to wait for a lock, because `is_locked` of another process may hold it for an instant."""


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Make the folder, and lock it for this process. A folder that was made here and got nothing else is removed again.

    While it is locked, nothing is written into a folder that took its place; see `core.atomic_files.require_in_place`.

    Raises:
        RunDirError: another process has locked it, or it cannot be written.
    """
    # A lock of the operating system (flock, LockFileEx), not a file with a process id: that id may belong to another
    # process by now, and a killed process cannot remove its file.
    from filelock import FileLock, Timeout

    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=_PATIENCE)
        lock.acquire()
    except Timeout as error:
        raise RunDirError(
            f"is in use by another process{_holder(folder)}",
            where=str(folder),
            hint="wait until it has ended, or end it",
            name="run_folder_in_use",
        ) from error
    except OSError as error:
        raise RunDirError(f"cannot be written: {error}", where=str(folder)) from error
    file = (folder / LOCK).resolve()
    LOCK_FILES[file] = file_identity(file)
    try:
        _write_holder(folder)
        yield
    finally:
        replaced = is_replaced(file, LOCK_FILES.pop(file))
        if not replaced:
            (folder / _HOLDER).unlink(missing_ok=True)
        if is_new and not replaced and [path.name for path in folder.iterdir()] == [LOCK]:
            with contextlib.suppress(OSError):  # Windows removes no open file
                (folder / LOCK).unlink()
                folder.rmdir()
        # Not `with lock`, which counts a second acquisition: the lock would stay until the object is collected.
        lock.release()


def _write_holder(folder: Path) -> None:
    command = without_secrets(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]))[:200]
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    with contextlib.suppress(OSError):  # a full disk; the lock holds without it
        text = f"process {os.getpid()} on {platform.node()}, since {since}: {command}"
        (folder / _HOLDER).write_text(text, encoding="utf-8")


def _holder(folder: Path) -> str:
    try:
        text = (folder / _HOLDER).read_text(encoding="utf-8", errors="replace")[:400]
    except OSError:  # it has just taken the lock, or just released it
        return ""
    return f" ({text})" if text else ""


def is_locked(folder: Path) -> bool:
    """Whether a process works in a folder now. Asking takes the lock for an instant, where nobody has it."""
    from filelock import FileLock, Timeout

    if not (folder / LOCK).is_file():
        return False
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    except OSError:  # of a folder that cannot be written, where no run can be in progress either
        return False
    lock.release()
    return False
