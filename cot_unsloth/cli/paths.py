"""Errors in the names that a user gives, reported before the imports that take seconds."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cot_unsloth.config import TINY_BASE
from cot_unsloth.core.errors import DataError, ModelError


def exists(path: Path) -> bool:
    """Whether there is such a file or folder; not for a text, such as a question, that is too long for a name."""
    try:
        return path.exists()
    except OSError:
        return False


def require_existing(target: str | None) -> None:
    """Report a missing path whose parent folder exists, instead of looking for it on the hub.

    Raises:
        DataError: it does not exist.
    """
    if target is None or Path(target).exists() or re.search(r"[*?\[,:]|\.(?:ya?ml|json)$", target):
        return
    folder = Path(target).expanduser().parent
    if folder != Path() and folder.is_dir():
        raise DataError(
            "there is no such file or folder", where=target, hint=f"look at what is in {folder}", name="file_missing"
        )


def is_local_path(name: str) -> bool:
    """Whether a name can only be a path, not OWNER/NAME on the hub.

    >>> is_local_path("./Qwen"), is_local_path("a/b/c"), is_local_path("Qwen/Qwen3-4B")
    (True, True, False)
    """
    parent = Path(name).parent
    return (
        name.startswith((".", "~", "/"))
        or "\\" in name
        or name.count("/") > 1
        or (parent != Path() and parent.is_dir())
    )


def require_model(base: str | None, adapter: Path | None = None) -> None:
    """Report a local folder that holds no model or no adapter; hub ids are not looked up.

    Raises:
        ModelError: there is no such folder, or it holds something else.
    """
    if base is not None and base != TINY_BASE:
        _require_model_folder(base)
    if adapter is not None:
        _require_adapter_folder(adapter)


def model_name(path: Path) -> str:
    """A model's name: that of its file or folder, even if the path is given as `.`."""
    absolute = Path(os.path.normpath(path.absolute()))
    return (absolute.stem if absolute.suffix == ".gguf" else absolute.name) or "model"


def _require_model_folder(base: str) -> None:
    folder = Path(base).expanduser()
    if (folder.exists() or is_local_path(base)) and not (folder / "config.json").is_file():
        message = "holds no model" if folder.exists() else "there is no such folder"
        hint = "give a folder that holds a model (config.json, tokenizer, weights), or a hub id"
        raise ModelError(message, where=base, hint=hint, name="model_missing")


def _require_adapter_folder(adapter: Path) -> None:
    name = adapter.as_posix()  # without a leading ./, so a name without a slash is never an adapter on the hub
    if not adapter.exists() and "/" in name and not is_local_path(name):
        return
    if not any((adapter / file).is_file() for file in ("adapter_config.json", "config.json")):
        message = "holds no adapter: there is no adapter_config.json"
        hint = "it needs adapter_config.json and adapter_model.safetensors"
        raise ModelError(message, where=str(adapter), hint=hint, name="adapter_missing")
