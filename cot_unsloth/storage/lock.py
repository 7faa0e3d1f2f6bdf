"""The lock that keeps two processes out of one run folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from cot_unsloth.core.errors import RunDirError

LOCK = ".lock"
"""Name of the lock file. It stays behind; the operating system drops the lock with the process, however that ends."""


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Make the folder, and lock it for this process.

    Raises:
        RunDirError: another process has locked it, or it cannot be written.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise RunDirError("is in use by another process", where=str(folder)) from error
    except OSError as error:
        raise RunDirError(f"cannot be written: {error}", where=str(folder)) from error
    with lock:
        yield
