"""`rounds.json`: rounds of sampling and training (`train.method: rft`), and the score after each."""

from __future__ import annotations

from cot_unsloth.core.results.record import Record, Value
from cot_unsloth.core.results.scorecard import Paired
from cot_unsloth.core.results.shares import Accuracy, Interval


class PassPoint(Value):
    """pass@k over all problems: at least one of k attempts is right (Chen et al. 2021)."""

    k: int
    rate: float
    """Mean over problems of the unbiased estimate from all attempts at each."""
    ci95: Interval
    """Wilson's interval, with the number of problems as the number of trials."""


class RoundResult(Value):
    """One round; round 0 is the model that sampling began with, which is only scored."""

    round: int
    development: Accuracy
    """Greedy score on problems that were split from the training problems and never sampled or trained on."""
    against_best: Paired | None = None
    """This round against the best before it, on the development problems; None for round 0."""
    pass_at: tuple[PassPoint, ...] = ()
    """pass@k of the attempts that this round was trained on, which the model of the previous round made."""
    attempts: int = 0
    always: int = 0
    """Problems of which every attempt is right."""
    sometimes: int = 0
    never: int = 0
    rows: int = 0
    """Rows that the round was trained on, from the attempts of all rounds so far."""
    reflections: int = 0
    """How many of these rows correct wrong steps of the model's own."""
    sampled_tokens: int = 0
    """Tokens of the attempts."""
    trained_tokens: int = 0
    """Tokens of the rows, each counted once."""
    steps: int = 0
    """Optimizer steps."""

    def described(self) -> str:
        """The round in a line."""
        low, high = self.development.ci95
        pair = self.against_best
        gain = f", {100 * pair.difference:+.1f} points against {pair.before} (p = {pair.mcnemar_p:.2g})" if pair else ""
        rows = f"{self.rows} rows ({self.reflections} corrections), " if self.rows else ""
        return (
            f"round {self.round}: {rows}development {100 * self.development.accuracy:.1f}% "
            f"[{100 * low:.1f}, {100 * high:.1f}]{gain}"
        )


class Rounds(Record):
    """All rounds of a run."""

    development_problems: int
    seed: int
    rounds: tuple[RoundResult, ...]
    best: int | None = None
    """The round whose adapter became the run's, 0 if that is `init_adapter`; None until the last round is done."""
    stopped: str | None = None
    """Why there were no more rounds."""

    def described(self) -> list[str]:
        """A line for each round, and one on how they ended."""
        end = f"{self.stopped}; the adapter is that of round {self.best} (n = {self.development_problems} development problems)"
        return [*(one.described() for one in self.rounds), *([end] if self.stopped else [])]
