"""`sweep.json`: trials of different settings, ranked on development problems, and the best one on held-out problems."""

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
    """From 0; trial 0 has the settings of the config file."""
    state: TrialState
    settings: dict[str, JsonValue]
    """The values of the varied settings, by leaf name."""
    development: Accuracy | None = None
    """Score on the development problems; None if it was not scored."""
    loss: float | None = None
    """Last loss on the solutions of these problems, in nats per supervised token; None if it was not measured."""
    against_default: TestedPair | None = None
    """Comparison with trial 0 on the development problems, with Holm's correction over all trials."""
    reason: str = ""
    """Why it failed."""
    resumed: int = 0
    """How often it was continued after its process died."""


class Sweep(Record):
    """The content of `sweep.json`."""

    name: str
    config: str
    """Hash of the settings that the sweep began with."""
    space: dict[str, str]
    """The choices or range of each varied setting, as text."""
    combinations: int | None = None
    """Number of combinations; None if a setting has a continuous range."""
    method: Literal["tpe", "grid"]
    seed: int
    n: int
    """Development problems."""
    trials: tuple[TrialResult, ...]
    """Trials by rank: complete ones by accuracy, then by loss; then the others."""
    importance: dict[str, float] = Field(default_factory=dict)
    """PED-ANOVA's importance of each setting (Watanabe et al. 2023); empty with too few complete trials."""
    best: int | None = None
    """Number of the best trial; None until one is complete."""
    final: Comparison | None = None
    """The default and the best settings, trained on all training rows and compared on held-out problems; None if the default
    is the best, if this was not asked for, or if it failed."""
    final_failed: str = ""
    """Why that comparison failed."""
    environment: Environment | None = None
    """The environment of the process that wrote this file."""
