"""The names of exported files: the base's name, with the quantization at the end."""

from __future__ import annotations

import re
from pathlib import Path

from cot_unsloth.config import TINY_BASE, RunConfig

_MAX_BYTES = 150
"""Longest stem, so that the name with its suffix fits into the 255 bytes that file systems allow."""


def stem(config: RunConfig, *, tuned: bool = True) -> str:
    """What the names of a model's files begin with: the last part of its hub id, or the name of its resolved folder."""
    name = config.model.model_name_or_path
    folder = Path(name).expanduser()
    name = _folder_name(folder.resolve()) if name != TINY_BASE and folder.is_dir() else Path(name).name
    return _safe(name) + "-cot" * tuned


def _folder_name(folder: Path) -> str:
    """A folder's name; for a snapshot in the hub's cache, whose folder is a commit, that of its repository."""
    # models--ORG--NAME/snapshots/COMMIT
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name


def _safe(name: str) -> str:
    """A name without characters that shells, Windows or Ollama treat specially.

    >>> _safe("Qwen2.5-7B"), _safe("my model (v2)"), _safe('..a:b"c'), _safe("--")
    ('qwen2.5-7b', 'my-model-v2', 'a-b-c', 'model')
    """
    name = re.sub(r"[^\w.-]+", "-", name.lower()).strip("-._")
    # The limit is in bytes; a character of which only some bytes are left is dropped.
    return name.encode()[:_MAX_BYTES].decode(errors="ignore").rstrip("-._") or "model"


def file_name(stem: str, quant: str) -> str:
    """The name of a GGUF file.

    >>> file_name("tiny-base-cot", "q4_k_m")
    'tiny-base-cot-Q4_K_M.gguf'
    """
    return f"{stem}-{quant.upper()}.gguf"
