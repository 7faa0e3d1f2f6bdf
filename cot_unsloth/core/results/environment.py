"""Where a figure was measured: versions, hardware and commit."""

from __future__ import annotations

from cot_unsloth.core.results.record import Value


class Commit(Value):
    """The repository of the working directory."""

    commit: str
    dirty: bool
    """Whether files differed from the commit."""


class Environment(Value):
    """Versions, hardware and commit that a figure was measured with."""

    cot_unsloth: str
    python: str
    platform: str
    cpu: str
    cpu_count: int | None
    versions: dict[str, str]
    """Installed versions of the libraries that can change a figure."""
    git: Commit | None
    """None outside a repository."""
