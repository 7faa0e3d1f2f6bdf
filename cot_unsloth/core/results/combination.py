"""`combined.json`: what a combined adapter was made of, how, and how far it is from the weighted sum of its parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from cot_unsloth.core.results.record import Record, Value
from cot_unsloth.core.types import ThinkingTags, TraceLayout

COMBINED = "combined.json"
CombineMethod = Literal["cat", "svd", "linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"]


class CombinedAdapter(Value):
    """One of the adapters that were combined."""

    path: str
    weight: float
    rank: int
    sha256: Mapping[str, str]
    """Hashes of its weights and settings, by file name."""


class Combination(Record):
    """The adapters that a combined adapter was made from."""

    described_as: ClassVar[str] = "record of a combined adapter"
    hint: ClassVar[str | None] = "combine the adapters again"

    method: CombineMethod
    rank: int
    density: float | None = None
    """Share of the entries of each weight update that was kept; None for methods that keep all."""
    seed: int | None = None
    """Random seed for the choice of kept entries; None for methods without one."""
    base: str
    adapters: tuple[CombinedAdapter, ...]
    modules: int
    """Hash of the base that it belongs to."""
    relative_error: float
    """||result - sum|| / ||sum|| over all modules, Frobenius norms; the sum is that of weight * scale * B @ A."""
    largest_error: float
    """The largest relative error of one module."""
    largest_error_module: str
    trained: bool
    """Whether runs of cot_unsloth trained all of the adapters; decides how an evaluation reads answers."""
    system_prompt: str | None
    thinking_tags: ThinkingTags
    trace_layout: TraceLayout
    max_seq_length: int
    """This and the fields above are settings of the first adapter's training; the length is the longest of all."""
    date_string: str
    pad_token: str | None
    versions: Mapping[str, str] = {}
    """Versions of the installed libraries."""

    def described(self) -> list[str]:
        """The result in three lines."""
        parts = " + ".join(f"{adapter.weight:g} x {adapter.path}" for adapter in self.adapters)
        return [
            f"{self.method}: {parts}",
            f"rank {self.rank}, {self.modules} modules of {self.base}",
            f"error against the weighted sum: {self.relative_error:.1e} of its norm in total, "
            f"at most {self.largest_error:.1e} in one module ({self.largest_error_module})",
        ]


def read_combination(folder: Path) -> Combination | None:
    """The record in an adapter's folder; None where the adapter was not combined.

    Raises:
        RunDirError: it is damaged.
    """
    return Combination.read_if_there(folder / COMBINED)
