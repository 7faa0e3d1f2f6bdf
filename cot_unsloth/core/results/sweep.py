"""`sweep.json`: trials of other settings, ranked on development problems, and the best of them on held-out problems."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from cot_unsloth.core.results.comparison import Comparison, TestedPair
from cot_unsloth.core.results.environment import Environment
from cot_unsloth.core.results.record import Record, Value
from cot_unsloth.core.results.shares import Accuracy

TrialState = Literal["complete", "pruned", "failed", "interrupted", "running", "waiting"]


class TrialResult(Value):
    """One choice of settings; a trial that was killed and continued is one trial."""

    number: int
    """From 0, the settings of the config file themselves."""
    state: TrialState
    settings: dict[str, JsonValue]
    """Those that are varied, by leaf name."""
    development: Accuracy | None = None
    """On the development problems; None where it was not scored."""
    loss: float | None = None
    """Last loss on their solutions, in nats a supervised token; None where it was not measured."""
    against_default: TestedPair | None = None
    """Paired with trial 0 on the development problems, Holm's correction over all trials."""
    reason: str = ""
    """Why it failed."""
    resumed: int = 0
    """How often it was continued after its process had died."""


class Sweep(Record):
    """All of it."""

    name: str
    config: str
    """The hash of the settings that the sweep began with."""
    space: dict[str, str]
    """What is varied: choices or range, as text."""
    combinations: int | None = None
    """How many combinations there are; None where a setting has a range of fractions."""
    method: Literal["tpe", "grid"]
    seed: int
    n: int
    """Development problems."""
    trials: tuple[TrialResult, ...]
    """By rank: complete ones by accuracy, then by loss; then the others."""
    importance: dict[str, float] = Field(default_factory=dict)
    """PED-ANOVA's importance of each setting (Watanabe et al. 2023); empty with too few complete trials."""
    best: int | None = None
    """Number of the trial that is first; None until one is complete."""
    final: Comparison | None = None
    """The default and the best settings, trained on all training rows, on held-out problems; None where the default is the
    best, or it was not asked for."""
    environment: Environment | None = None
    """Of the process that wrote this file."""
