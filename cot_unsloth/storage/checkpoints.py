"""Checks whether a checkpoint is complete, by a list of its files, and finds the one to resume from.

If the optimizer's file is missing, training resumes silently and ends with other weights (1.4e-2 apart after six steps of the
tiny base); a file that is cut off ends in a traceback.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from cot_unsloth.core.json_text import parse_json
from cot_unsloth.core.progress import note
from cot_unsloth.storage import atomic
from cot_unsloth.storage.hashes import sha256_of
from cot_unsloth.storage.records import JsonObject
from cot_unsloth.storage.run_folder import RunDir

_LIST = "files.json"
_MOST_HASHED = 4 << 30
"""Bytes of a file up to which its content is hashed; of longer ones, only the size is compared."""
_STATE = ("trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth")
"""Without these the Trainer resumes with a new optimizer, schedule or random state."""


def write_list(checkpoint: Path) -> None:
    """Write the sizes and hashes of the files of a checkpoint beside them."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    listed = {path.relative_to(checkpoint).as_posix(): [path.stat().st_size, _hash(path)] for path in files}
    atomic.write_json(checkpoint / _LIST, listed)


def _hash(file: Path) -> str | None:
    return sha256_of(file) if file.stat().st_size <= _MOST_HASHED else None


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None if it is complete.

    Raises:
        OSError: a file cannot be read.
    """
    if not (checkpoint / _LIST).is_file():
        return _visible_damage(checkpoint)
    try:
        listed = [(name, size, sha) for name, (size, sha) in _read_object(checkpoint / _LIST).items()]
    except (ValueError, TypeError):
        return f"{_LIST} is damaged"
    for name, size, sha in listed:
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} is cut off: {file.stat().st_size:,} of {size:,} bytes"
        if sha is not None and _hash(file) != sha:
            return f"{name} has changed since it was written"
    return None


def _read_object(file: Path) -> JsonObject:
    tree = parse_json(file.read_text(encoding="utf-8"))
    if not isinstance(tree, dict):
        raise ValueError("is not an object")
    return tree


def _visible_damage(checkpoint: Path) -> str | None:
    """The same for a checkpoint of an older version without a list: only damage that the files themselves show."""
    missing = [name for name in _STATE if not (checkpoint / name).is_file()]
    weights = list(checkpoint.glob("*.safetensors"))
    if missing or not weights:
        return f"{(missing or ['its weights'])[0]} is missing"
    for file in (checkpoint / name for name in _STATE if name.endswith((".pt", ".pth"))):
        # torch writes zip archives, whose entries have checksums; before 2020 it wrote plain pickles.
        try:
            with zipfile.ZipFile(file) as archive:
                if archive.testzip() is not None:
                    return f"{file.name} is damaged"
        except (zipfile.BadZipFile, EOFError, NotImplementedError):
            return f"{file.name} is damaged"
    try:
        _read_object(checkpoint / _STATE[0])
    except ValueError:
        return f"{_STATE[0]} is damaged"
    return next((f"{file.name} is cut off" for file in weights if not _has_its_size(file)), None)


def _has_its_size(file: Path) -> bool:
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if length > file.stat().st_size:
            return False
        try:
            header = parse_json(handle.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return False
    return bool(file.stat().st_size == 8 + length + max(ends, default=0))


def newest_whole(run: RunDir) -> Path | None:
    """The checkpoint to resume from; those after it are damaged, and renamed to `damaged-checkpoint-N`.

    Raises:
        OSError: a file cannot be read, so whether it is damaged is unknown.
    """
    for checkpoint in reversed(run.complete_checkpoints()):
        fault = damage(checkpoint)
        if fault is None:
            return checkpoint
        kept = checkpoint.with_name(f"damaged-{checkpoint.name}")
        atomic.remove_tree(kept)
        checkpoint.replace(kept)
        note(f"{checkpoint} is damaged ({fault}): it is renamed to {kept.name}, and the one before it is tried")
    return None
