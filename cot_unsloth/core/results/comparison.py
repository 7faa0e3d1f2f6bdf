"""`comparison.json`: several runs on the same problems, compared in pairs; and the listing of runs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from cot_unsloth.core.results.record import Record, Value
from cot_unsloth.core.results.scorecard import Paired
from cot_unsloth.core.results.shares import Accuracy

RunState = Literal["complete", "gate failed", "export failed", "running", "interrupted", "damaged"]


class TestedPair(Paired):
    """One of several pairs that are tested together."""

    adjusted_p: float
    """McNemar's p after Holm's correction for all pairs."""
    significant: bool
    """Whether the corrected p is below 0.05."""


class ComparedRun(Accuracy):
    """One run, on the problems that all of them answered."""

    name: str
    arm: str
    mean_tokens: float
    format_valid: float


class Comparison(Record):
    """The content of `comparison.json`."""

    dataset: str
    n: int
    """Problems that every run answered."""
    runs: tuple[ComparedRun, ...]
    pairs: tuple[TestedPair, ...]
    """All pairs of runs."""
    notes: tuple[str, ...] = ()
    """Differences between the runs that limit what the figures show."""
    differences: dict[str, tuple[JsonValue, ...]] = Field(default_factory=dict)
    """Settings that differ between runs, by `section.name`."""


class ListedRun(Value):
    """A run folder in a listing."""

    path: str
    state: RunState
    started: str | None = None
    """UTC."""
    model: str = ""
    dataset: str = ""
    method: str = ""
    n: int | None = None
    before: float | None = None
    """Accuracy of the base under the prompt of the tuned model, or of another base arm, or of `start`."""
    after: float | None = None
    size: int = 0
    """Bytes on the disk."""
    problem: str = ""
    """Why it is damaged, or what failed."""
