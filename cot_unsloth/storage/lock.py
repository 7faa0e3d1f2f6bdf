"""The lock that keeps two processes out of one run folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from cot_unsloth.core.errors import RunDirError

LOCK = ".lock"
"""Name of the lock file. The file remains; the operating system releases the lock when the process ends, however it ends."""


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Make the folder, and lock it for this process.

    Raises:
        RunDirError: another process has locked it, or it cannot be written.
    """
    # A lock of the operating system (flock, LockFileEx), not a file with a process id: that id may belong to another
    # process by now, and a killed process cannot remove its file.
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise RunDirError("is in use by another process", where=str(folder)) from error
    except OSError as error:
        raise RunDirError(f"cannot be written: {error}", where=str(folder)) from error
    try:
        yield
    finally:
        # Not `with lock`, which counts a second acquisition: the lock would stay until the object is collected.
        lock.release()


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
