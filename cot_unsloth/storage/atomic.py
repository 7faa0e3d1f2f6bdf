"""Files and folders that are written completely or not at all: to another name, then fsync, then rename.

A killed process or a full disk leaves no half-written file under a final name. The functions for single files are
those of `core.atomic_files`, where `core.results` can import them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from cot_unsloth.core.atomic_files import (
    ASIDE,
    aside_of,
    place_to_write,
    remove,
    remove_left_behind,
    require_in_place,
    sync_folder,
    write_json,
    write_text,
)
from cot_unsloth.core.logs import LOG

__all__ = [
    "ASIDE", "finish_move", "free_space", "is_half_moved", "remove_asides", "remove_left_behind", "remove_tree", "staged", "staged_into",
    "write_json", "write_text",
]  # fmt: skip

_FAILED_WRITE = re.compile(r"\(os error (27|28|122)\)|No space left|inline_container\.cc|PytorchStreamWriter")
"""In errors of safetensors (27: file too large, 28: disk full, 122: quota) and of torch.save, whose errors are not OSErrors."""
_COMPLETE = f"{ASIDE}complete"
"""A folder whose content is complete, and whose items are being moved to their final place."""


def _sync_file(file: Path) -> None:
    # For writing, because Windows flushes only handles that may write.
    with file.open("rb+") as handle:
        os.fsync(handle.fileno())


@contextlib.contextmanager
def staged(final: Path) -> Iterator[Path]:
    """A folder to write into, which replaces `final`, or what it links to, when the block ends without an error.

    Raises:
        OSError: a file cannot be written, because the disk is full for example; `final` is unchanged then.
        RunDirError: as `require_in_place`.
    """
    final = place_to_write(final)
    aside = aside_of(final)
    aside.mkdir()
    try:
        yield aside
        # The mask can only be read by setting it.
        mask = os.umask(0)
        os.umask(mask)
        for file in aside.rglob("*"):
            if file.is_file():
                file.chmod(0o666 & ~mask)  # safetensors creates files that only their owner can read
                _sync_file(file)
        require_in_place(final)  # once more: a large model takes minutes to write
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if _FAILED_WRITE.search(str(error)) and not isinstance(error, OSError):
            reason = str(error).strip().splitlines()[0][:200]
            raise OSError(
                errno.ENOSPC, f"cannot be written, perhaps because the disk is full ({reason})", str(final)
            ) from error
        raise
    # Not atomic: no system call replaces a folder that is not empty. A kill in between leaves neither the old folder
    # nor half of the new one, and a resumed run makes it again.
    _replace(aside, final)
    sync_folder(final.parent)
    LOG.debug("wrote %s", final)


@contextlib.contextmanager
def staged_into(folder: Path, first: str) -> Iterator[Path]:
    """A folder to write into; when the block ends without an error, its items move into `folder`, `first` before the rest.

    Items with the same names are replaced. After a kill while they move, `finish_move` moves the rest. Lock the folder:
    two processes that move into it at the same time would take items from each other.

    Raises:
        OSError: as `staged`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with staged(folder / _COMPLETE) as aside:
        yield aside
    finish_move(folder, first)


def is_half_moved(folder: Path) -> bool:
    """Whether a process was killed while items moved into a folder from `staged_into`."""
    return (folder / _COMPLETE).is_dir()


def finish_move(folder: Path, first: str) -> None:
    """Move what is complete into a folder, `first` before the rest."""
    complete = folder / _COMPLETE
    for item in sorted(complete.iterdir(), key=lambda item: item.name != first):
        _replace(item, folder / item.name)
    complete.rmdir()
    sync_folder(folder)


def _replace(item: Path, final: Path) -> None:
    """Rename over what is there. No system call replaces a folder that is not empty, so an old one is moved away first."""
    if final.is_dir() and not final.is_symlink():
        old = aside_of(final)
        final.replace(old)
        item.replace(final)
        shutil.rmtree(old, ignore_errors=True)
    else:
        if final.is_symlink() and item.is_dir():
            final.unlink()  # no folder can be renamed over a link, nor to another file system
        item.replace(final)


def remove_tree(folder: Path) -> None:
    """Remove a folder that the run wrote; a missing folder is not an error.

    Renamed first: a kill in between must not leave half of it under its name.

    Raises:
        RunDirError: as `require_in_place`.
    """
    require_in_place(folder)
    aside = aside_of(folder)
    with contextlib.suppress(OSError):
        remove_left_behind(folder)
        folder.replace(aside)
    shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)  # where it could not be renamed


def remove_asides(folder: Path) -> None:
    """Remove temporary files of killed processes from a folder, but not from its subfolders. The folder must be locked."""
    for child in list(folder.glob(f"{ASIDE}*")):
        if child.name != _COMPLETE:
            remove(child)


def free_space(path: Path) -> tuple[Path, int]:
    """The nearest existing folder at or above a path, and the free bytes of its disk."""
    folder = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return folder, shutil.disk_usage(folder).free
