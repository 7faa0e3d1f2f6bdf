"""Text files that are written completely or not at all.

The text goes to a temporary file in the same folder, is flushed to disk (fsync), and is renamed over the final name. A
killed process or a full disk therefore leaves the old file, or none, and never half of a new one.

`storage.atomic` does the same for folders. Single files are here because `core.results` writes them, and nothing in
`core` may import `storage`.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cot_unsloth.core.errors import RunDirError
from cot_unsloth.core.logs import LOG

ASIDE = ".aside-"
"""Prefix of the name of a file or folder that is still being written."""
_numbers = itertools.count()
LOCK_FILES: dict[Path, tuple[int, int]] = {}
"""The lock files of the folders that this process has locked, each with its device and inode."""


def file_identity(file: Path) -> tuple[int, int]:
    """Device and inode of a file. No other file has them while this one is open, even if it was deleted."""
    status = file.stat()
    return status.st_dev, status.st_ino


def is_replaced(lock_file: Path, identity: tuple[int, int]) -> bool:
    """Whether a folder that this process has locked is gone from its path, or another is there that has its own lock."""
    if not lock_file.parent.is_dir():
        return True
    try:
        return file_identity(lock_file) != identity
    except FileNotFoundError:  # removed by hand, for example: nothing took its place
        return False


def require_in_place(path: Path) -> None:
    """Make sure that a path is not in a folder that this process has locked, and that was deleted, moved or replaced since.

    What is written there would be a fragment of a run, or get into the run that another process has begun there.

    Raises:
        RunDirError: it is.
    """
    if not LOCK_FILES:
        return
    real = path.resolve()
    above = {real, *real.parents}
    for lock_file, identity in list(LOCK_FILES.items()):
        if lock_file.parent in above and is_replaced(lock_file, identity):
            raise RunDirError(
                "was deleted, moved or replaced while this process worked in it",
                where=str(lock_file.parent),
                hint="start the command again, with a folder of its own",
                name="folder_gone",
            )


def aside_of(final: Path) -> Path:
    """A temporary name beside a final one, which no other process or thread writes under: `.aside-NAME.PID-NUMBER`.

    If they shared a name, two processes that write the same file at the same time would collide: the second would truncate
    what the first is about to rename.
    """
    return final.with_name(f"{ASIDE}{final.name}.{os.getpid()}-{next(_numbers)}")


def linked(path: Path) -> Path:
    """Where a symbolic link points to; any other path itself. A rename would put the new file in the place of the link."""
    return path.resolve() if path.is_symlink() else path


def place_to_write(final: Path) -> Path:
    """Where a file or folder of this name is to be written: its folder exists, and has nothing of it by processes that ended.

    Raises:
        OSError: the folder cannot be made.
        RunDirError: as `require_in_place`.
    """
    final = linked(final)
    require_in_place(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_left_behind(final)
    return final


def remove_left_behind(final: Path) -> None:
    """Remove the temporary files of processes that have ended."""
    name = re.compile(re.escape(f"{ASIDE}{final.name}.") + r"(?P<pid>\d+)-\d+")
    with os.scandir(final.parent) as entries:
        found = [(entry, name.fullmatch(entry.name)) for entry in entries]
    for entry, match in found:
        if match is not None and not _is_alive(int(match["pid"])):
            remove(Path(entry.path))


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    import psutil  # os.kill(pid, 0), which asks the same, ends the process on Windows

    return bool(psutil.pid_exists(pid))


def write_text(path: Path, text: str | Iterable[str]) -> None:
    """Write a file completely or not at all, in UTF-8 with `\\n` line ends.

    Args:
        path: the file; of a symbolic link, the file that it points to is written.
        text: its text, in one piece or several, which are written as they come.

    Raises:
        OSError: it cannot be written; the file that had this name before is unchanged.
        RunDirError: as `require_in_place`.
    """
    path = place_to_write(path)
    # In the same folder, because a rename is atomic only within one file system.
    aside = aside_of(path)
    try:
        # Without newline, Windows would write \r\n and the file's hash would differ from other systems'.
        with aside.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines([text] if isinstance(text, str) else text)
            file.flush()
            # Before the rename: a file system may commit the new name first and the data later, and a power cut in
            # between leaves an empty file under the final name.
            os.fsync(file.fileno())
        # Not rename(), which fails on Windows if the target exists.
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(path.parent)
    LOG.debug("wrote %s", path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON completely or not at all, indented for people."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sync_folder(folder: Path) -> None:
    """Make a rename durable. Windows has no handle on folders, and needs none."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
