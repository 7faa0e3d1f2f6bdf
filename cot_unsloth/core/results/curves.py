"""`curves.json`: accuracy against tokens, at test time and in training."""

from __future__ import annotations

from pydantic import Field

from cot_unsloth.core.results.environment import Environment
from cot_unsloth.core.results.record import Record, Value
from cot_unsloth.core.results.shares import Accuracy, Interval


class BudgetSettings(Value):
    """How test-time compute is varied."""

    budgets: tuple[int, ...]
    """Tokens of thinking, ascending."""
    samples: int
    """Independent samples of each problem; every budget's accuracy is over all of them."""
    temperature: float
    extend: int
    """How often thinking that ended is reopened at the largest budget."""


class BudgetPoint(Value):
    """One chain of thought, cut at a budget."""

    name: str = Field(alias="rung")
    """The budget; `BUDGET+N` where thinking was reopened N times."""
    budget: int
    """Tokens of thinking before an output is forced."""
    tokens: float
    """Mean tokens of an answer, forced output included."""
    accuracy: float
    ci95: Interval
    forced: float
    """Share of answers whose output was forced."""


class ParallelPoint(Value):
    """k independent samples at one budget."""

    k: int
    tokens: float
    """Mean tokens of all k answers together."""
    majority: Accuracy
    """The most frequent answer is right (Wang et al. 2023, self-consistency)."""
    any: Accuracy = Field(alias="pass")
    """At least one of the k is right: pass@k (Chen et al. 2021)."""


class BudgetForcing(Value):
    """The three figures of Muennighoff et al. 2025 ("s1", section 3.2)."""

    control: float
    """Share of answers within their budget."""
    scaling_per_1000_tokens: float | None
    """Mean slope over all pairs of budgets; None for a single budget."""
    maximum: float
    """Best accuracy of any budget."""


class TriesPoint(Value):
    """Accuracy within a given number of attempts."""

    tries: int
    tokens: float
    """Mean tokens up to the end of that attempt."""
    accuracy: float
    ci95: Interval


class TestTimeCurve(Value):
    """Accuracy against tokens of an answer."""

    __test__ = False  # not a test of pytest's

    sequential: tuple[BudgetPoint, ...]
    """One chain at every budget, ascending; the reopened ones last."""
    parallel: dict[str, tuple[ParallelPoint, ...]]
    """By budget: 1, 2, 4, ... samples at that budget, as the control of a longer chain."""
    s1: BudgetForcing
    by_tries: dict[str, tuple[TriesPoint, ...]]
    """By task, for tasks in which a solution can start again."""


class CheckpointPoint(Value):
    """One run's accuracy at a checkpoint."""

    step: int
    """Optimizer step; 0 is the base."""
    training_tokens: float
    """Tokens trained on up to that step."""
    accuracy: float
    ci95: Interval


class MeanPoint(CheckpointPoint):
    """The mean accuracy of several runs at the same step."""

    runs: int


class TrainingCurve(Value):
    """Accuracy against tokens trained on."""

    runs: dict[str, tuple[CheckpointPoint, ...]]
    """By run folder."""
    mean: tuple[MeanPoint, ...]
    """At the steps that all runs have. The interval is Student's t over the runs; for a single run it is Wilson's."""


class Curves(Record):
    """The content of `curves.json`."""

    model: str
    dataset: str
    n: int
    """Problems."""
    seed: int
    """Seed of the problems."""
    train_seeds: tuple[int, ...]
    """Seeds of the runs, in the order of `train_time.runs`."""
    budgets: BudgetSettings = Field(alias="ladder")
    answer_tokens: int
    """Token limit of a forced output."""
    environment: Environment
    test_time: TestTimeCurve
    test_time_by_task: dict[str, TestTimeCurve]
    """Empty where there is a single task."""
    train_time: TrainingCurve | None
    """None where no checkpoints were scored."""
