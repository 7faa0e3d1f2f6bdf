"""The record that makes a figure reproducible: versions, hardware, commit, time, and hashes."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path

from cot_unsloth import __version__
from cot_unsloth.core.results import Commit, Environment

_VERSIONED = (
    "torch", "transformers", "trl", "peft", "datasets", "accelerate", "tokenizers", "safetensors",
    "unsloth", "unsloth_zoo", "bitsandbytes", "xformers", "vllm", "gguf", "xllamacpp",
)  # fmt: skip
"""Packages that can change a figure."""


def now() -> str:
    """The time in UTC, to the second, as ISO 8601.

    >>> len(now())
    20
    """
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def environment() -> Environment:
    """Versions, hardware and commit, to record with a figure."""
    return Environment(
        cot_unsloth=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=_cpu_name(),
        cpu_count=os.cpu_count(),
        versions=versions(),
        git=_git(),
    )


def versions() -> dict[str, str]:
    """The installed versions of the libraries that affect a result."""
    return {name: version for name in _VERSIONED if (version := _version(name))}


def _version(name: str) -> str | None:
    # Versions from the installed metadata: importing the packages would take seconds, and unsloth patches others.
    import importlib.metadata

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git() -> Commit | None:
    """The commit of the working directory's repository, if it is in one."""
    import subprocess

    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        dirty = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return Commit(commit=commit.stdout.strip(), dirty=bool(dirty.stdout.strip()))


def text_hash(*texts: str) -> str:
    """SHA-256 of the concatenated texts, in hexadecimal."""
    return hash_of(texts)


def hash_of(texts: Iterable[str]) -> str:
    """As `text_hash`, of texts that are made one at a time."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode())
    return digest.hexdigest()
