"""Files and folders that are written completely or not at all: to another name, then fsync, then rename.

A killed process or a full disk leaves no half-written file under a final name. The functions for single files are
those of `core.atomic_files`, where `core.results` can import them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from cot_unsloth.core.atomic_files import ASIDE, sync_folder, write_json, write_text
from cot_unsloth.core.logs import LOG

__all__ = ["ASIDE", "free_space", "remove_tree", "staged", "staged_into", "write_json", "write_text"]


def _sync_file(file: Path) -> None:
    # For writing, because Windows flushes only handles that may write.
    with file.open("rb+") as handle:
        os.fsync(handle.fileno())


@contextlib.contextmanager
def staged(final: Path) -> Iterator[Path]:
    """A folder to write into, which replaces `final` when the block ends without an error.

    Raises:
        OSError: a file cannot be written, because the disk is full for example; `final` is unchanged then.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    aside = final.with_name(f"{ASIDE}{final.name}")
    shutil.rmtree(aside, ignore_errors=True)
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
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    # Not atomic: no system call replaces a folder that is not empty. A kill in between leaves neither the old folder
    # nor half of the new one, and a resumed run makes it again.
    if final.exists():
        shutil.rmtree(final)
    aside.replace(final)
    sync_folder(final.parent)
    LOG.debug("wrote %s", final)


@contextlib.contextmanager
def staged_into(folder: Path, first: str) -> Iterator[Path]:
    """A folder to write into; when the block ends without an error, its items move into `folder`, `first` before the rest.

    Items with the same names are replaced.

    Raises:
        OSError: as `staged`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    complete = folder / f"{ASIDE}complete"
    with staged(complete) as aside:
        yield aside
    for item in sorted(complete.iterdir(), key=lambda item: item.name != first):
        _replace(item, folder / item.name)
    complete.rmdir()
    sync_folder(folder)


def _replace(item: Path, final: Path) -> None:
    """Rename over what is there. No system call replaces a folder that is not empty, so an old one is moved away first."""
    old = final.with_name(f"{ASIDE}old-{final.name}")
    if final.is_dir() and not final.is_symlink():
        shutil.rmtree(old, ignore_errors=True)
        final.replace(old)
    item.replace(final)
    shutil.rmtree(old, ignore_errors=True)


def remove_tree(folder: Path) -> None:
    """Remove a folder that the run wrote; one that does not exist is no error."""
    shutil.rmtree(folder, ignore_errors=True)


def free_space(path: Path) -> tuple[Path, int]:
    """The nearest existing folder at or above a path, and the free bytes of its disk."""
    folder = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return folder, shutil.disk_usage(folder).free
