"""The user's cache folder: results that can be made again, kept between commands.

An entry is a folder with a file and its digest. One that is incomplete or damaged is not used, and whatever fails here (a
read-only or a full disk) only means that the result is made again. The oldest entries are removed beyond `MOST_BYTES`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from cot_unsloth.core.json_text import parse_json
from cot_unsloth.core.logs import LOG
from cot_unsloth.storage.atomic import free_space, remove_tree, write_json
from cot_unsloth.storage.hashes import sha256_of

VARIABLE = "COT_UNSLOTH_CACHE"
"""The environment variable that names another folder, or turns the cache off."""
_OFF = ("", "0", "off", "no", "none", "false")
MOST_BYTES = 4 * 2**30
"""Bytes of all entries of a kind: about 2.5 million rows of 220 tokens."""
_FREE_BYTES = 2 * 2**30
"""Bytes that stay free on the disk: nothing is kept below that, since a run writes checkpoints there."""
_FACTS = "entry.json"


def folder(kind: str) -> Path | None:
    """Where entries of a kind are kept; None if the user has turned the cache off."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        return None if named.strip().lower() in _OFF else Path(named).expanduser() / kind
    return _user_folder() / "cot_unsloth" / kind


def temporary_file() -> IO[bytes]:
    """A file without a name, which vanishes when it is closed or the process ends.

    In the cache folder; in the system's folder for temporary files, which many systems keep in memory, only if the user has
    turned the cache off or it cannot be written.

    Raises:
        OSError: there is no folder to write it in.
    """
    parent = folder("rows")
    if parent is not None:
        with contextlib.suppress(OSError):
            parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            return tempfile.TemporaryFile(dir=parent)
    return tempfile.TemporaryFile()


def _user_folder() -> Path:
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")


class Entry:
    """The cache entry of a key: a file, and facts about it. The key is a hash of everything that they depend on."""

    def __init__(self, parent: Path, key: str) -> None:
        self.path = parent / key

    def read(self) -> tuple[Path, Any] | None:
        """The file and its facts, if the entry is complete and the file has not changed; else None."""
        try:
            entry = parse_json((self.path / _FACTS).read_text(encoding="utf-8"))
            file, facts = self.path / entry["file"], entry["facts"]
            if sha256_of(file) != entry["sha256"]:
                raise ValueError("its file has changed")
            with contextlib.suppress(OSError):  # a cache that may only be read
                os.utime(self.path)
            return file, facts
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            LOG.debug("cache entry %s is not used: %s", self.path, error)
            return None

    def begin(self, suffix: str) -> Path | None:
        """A file to write; None if there is no room, or nothing can be written."""
        try:
            # For its owner only: entries hold the training text.
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if free_space(self.path.parent)[1] < _FREE_BYTES:
                return None
            self.path.mkdir(exist_ok=True, mode=0o700)
            file = self.path / f"{secrets.token_hex(4)}{suffix}"  # another process may be writing the same entry
            file.touch(mode=0o600)
        except OSError as error:
            LOG.debug("nothing is kept in %s: %s", self.path.parent, error)
            return None
        return file

    def finish(self, file: Path, facts: Mapping[str, object]) -> None:
        """Complete the entry, and remove the oldest ones. A failure is logged; the file stays, since it may be in use."""
        try:
            write_json(self.path / _FACTS, {"file": file.name, "sha256": sha256_of(file), "facts": facts})
            _remove_oldest(self.path)
        except OSError as error:
            LOG.debug("cache entry %s is not kept: %s", self.path, error)


def _remove_oldest(newest: Path) -> None:
    """Remove entries until the rest takes at most MOST_BYTES; the newest one stays whatever it takes.

    A process that reads a removed file keeps what it has mapped; Windows refuses to remove it.
    """
    others = [path for path in newest.parent.iterdir() if path != newest]
    left = MOST_BYTES - _size(newest)
    for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True):
        left -= _size(path)
        if left < 0:
            remove_tree(path)


def _size(entry: Path) -> int:
    return sum(file.stat().st_size for file in entry.iterdir()) if entry.is_dir() else 0
