"""Guards that stop reinforcement learning early: conditions on its metrics under which more steps would not help.

Each guard depends only on the metrics of all steps so far and on the scores on development problems, so that a resumed run
stops at the same step as an uninterrupted one. Thresholds are from axolotl's page on the stability of GRPO training, where it
gives one.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from cot_unsloth.core.errors import GuardError
from cot_unsloth.core.statistics import mcnemar, mean
from cot_unsloth.training.development import Development, DevelopmentScore

Row = Mapping[str, float | None]
"""The metrics of a step, as the trainer logs them."""

WINDOW = 20
"""Number of steps that a guard averages over; noise of a single step must not stop a run."""
NO_SIGNAL, TRUNCATED, MANY_TRUNCATED, COLLAPSED = 0.8, 0.8, 0.3, 0.01
SIGNIFICANT = 0.01
"""Significance level for the loss of accuracy on development problems. Below 0.05, because it is tested every few steps."""


def check(rows: Sequence[Row], development: Development) -> GuardError | None:
    """The first guard that fires after the last row; None if training may continue."""
    for guard in (never_right, no_signal, truncated, collapsed):
        error = guard(rows)
        if error is not None:
            return error
    return falling(rows, development)


def never_right(rows: Sequence[Row]) -> GuardError | None:
    """No attempt was right in the last steps: there is nothing to reinforce."""
    rights = _window(rows, "rewards/correct/mean")
    if rights is None or any(rights):
        return None
    return GuardError(
        f"no attempt was right in {WINDOW} steps",
        hint="start from a model that is sometimes right (--init-adapter RUN), or choose problems that it sometimes solves "
        "(--pass-rates)",
        name="never_right",
    )


def no_signal(rows: Sequence[Row]) -> GuardError | None:
    """In most groups all attempts had the same reward, so that no attempt stands out."""
    share = _mean(rows, "frac_reward_zero_std")
    if share is None or share <= NO_SIGNAL:
        return None
    return GuardError(
        f"{share:.0%} of the groups gave no signal in {WINDOW} steps: all attempts at a problem had the same reward",
        hint="choose problems that are sometimes solved (--pass-rates, from `sample`), or raise --num-generations or "
        "--rollout-temperature",
        name="no_signal",
    )


def truncated(rows: Sequence[Row]) -> GuardError | None:
    """Most attempts reached the token limit before they answered."""
    share = _mean(rows, "completions/clipped_ratio")
    if share is None or share <= TRUNCATED:
        return None
    return GuardError(
        f"{share:.0%} of the attempts were cut off at the token limit in {WINDOW} steps",
        hint="raise --max-completion-length, or --reward-overlong",
        name="truncated",
    )


def many_truncated(rows: Sequence[Row]) -> str | None:
    """A warning if many attempts are cut off, but not yet most."""
    share = _mean(rows, "completions/clipped_ratio")
    if share is None or not MANY_TRUNCATED < share <= TRUNCATED:
        return None
    return (
        f"{share:.0%} of the attempts were cut off at the token limit in {WINDOW} steps: raise --max-completion-length"
    )


def collapsed(rows: Sequence[Row]) -> GuardError | None:
    """The model has become so certain that its attempts at a problem hardly differ."""
    entropy = _mean(rows, "entropy")
    if entropy is None or entropy >= COLLAPSED:
        return None
    return GuardError(
        f"the entropy collapsed: {entropy:.4f} nats per token in {WINDOW} steps, so attempts at a problem hardly differ",
        hint="start from an adapter that was trained for fewer steps, lower --learning-rate, or raise --rollout-temperature",
        name="entropy_collapse",
    )


def falling(rows: Sequence[Row], development: Development) -> GuardError | None:
    """The model answers fewer development problems correctly than at its best; worse still if its reward rose."""
    if len(development.scores) < 2 or not rows:
        return None
    best, last = development.best, development.scores[-1]
    if last is best or rows[-1]["step"] != last.step:
        return None
    lost, gained = len(best.right - last.right), len(last.right - best.right)
    if lost <= gained or mcnemar(gained, lost) >= SIGNIFICANT:
        return None
    fell = f"right answers to {last.n} development problems fell from {len(best.right)} after step {best.step} to {len(last.right)}"
    if _rising(rows, best.step):
        before, after = _reward_around(rows, best), _reward_around(rows, last)
        return GuardError(
            f"{fell}, while the reward rose from {before:.3f} to {after:.3f}: the model earns reward without solving the problems",
            hint="raise --reward-correct relative to the other rewards, or lower --learning-rate",
            name="reward_hacked",
        )
    return GuardError(fell, hint="lower --learning-rate", name="accuracy_fell")


def _rising(rows: Sequence[Row], since: int) -> bool:
    """Whether the reward has risen since a step, beyond noise: the t statistic of its trend is above 2.

    Rewards of neighbouring steps differ by 0.1, because each step draws other problems.
    """
    points = [(row["step"] or 0, row["reward"] or 0.0) for row in rows]
    steps, rewards = zip(*(point for point in points if point[0] > since - WINDOW // 4), strict=True)
    if len(steps) < 3 or len(set(rewards)) == 1:
        return False
    r = statistics.correlation(steps, rewards)
    return r > 0 and r * r * (len(steps) - 2) > 4 * (1 - r * r)


def _reward_around(rows: Sequence[Row], score: DevelopmentScore) -> float:
    """Mean reward of the steps up to a score; of the first steps for the score before training."""
    before = [row for row in rows if (row["step"] or 0) <= score.step][-WINDOW // 4 :] or rows[: WINDOW // 4]
    return mean([row["reward"] or 0.0 for row in before])


def _window(rows: Sequence[Row], name: str) -> list[float] | None:
    """The last values of a metric; None where there are too few."""
    values = [value for row in rows[-WINDOW:] if (value := row.get(name)) is not None]
    return values if len(values) >= WINDOW else None


def _mean(rows: Sequence[Row], name: str) -> float | None:
    values = _window(rows, name)
    return None if values is None else mean(values)
