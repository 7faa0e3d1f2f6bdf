"""Files and folders written whole or not at all: aside first, then fsync, then rename.

A killed process or a full disk leaves no half-written file under a final name.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ASIDE = ".aside-"
"""Prefix of the name of a file or folder that is still being written."""


def _sync_folder(folder: Path) -> None:
    """Make a rename durable. Windows opens no folders, and its renames need no such call."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_file(file: Path) -> None:
    with file.open("rb+") as handle:
        os.fsync(handle.fileno())


def write_text(path: Path, text: str) -> None:
    """Replace a file: readers see the old or the new text, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{ASIDE}{path.name}")
    try:
        with aside.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file as `write_text` does; indented, so that people can read it."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


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
        mask = os.umask(0)
        os.umask(mask)
        for file in aside.rglob("*"):
            if file.is_file():
                file.chmod(0o666 & ~mask)  # safetensors creates files that only their owner can read
                _sync_file(file)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    if final.exists():
        shutil.rmtree(final)
    aside.replace(final)
    _sync_folder(final.parent)


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
    _sync_folder(folder)


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
