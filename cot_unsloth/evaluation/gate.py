"""The gate: whether a run's scores end its command with exit code 3."""

from __future__ import annotations

from cot_unsloth.config import RunConfig
from cot_unsloth.core import arm_names, verdict
from cot_unsloth.core.errors import GateError
from cot_unsloth.core.results import Gate, Scorecard


def gate(config: RunConfig, card: Scorecard) -> Gate:
    """Check the scores against what the settings ask for.

    It fails where the tuned arm is significantly worse than the base under the same prompt (or, where that was not
    scored, under the longest prompt that was), or than the adapter that training began with, and where too few completions
    are complete traces. One base arm that is chosen beforehand is tested, so that four equally good arms fail in 2% of runs and not in 5% (see `verdict.reach`). It passes
    where the verdict is `better`.
    """
    failed: list[str] = []
    settings, tuned = config.evaluate, card.arms.get("tuned")
    tested = [next(iter(verdict.base_pairs(card.paired)), None), verdict.start_pair(card.paired)]
    failed += [
        f"the tuned arm is worse than {arm_names.in_sentence(pair.before)} by {-100 * pair.difference:.1f} points "
        f"(McNemar p = {pair.mcnemar_p:.2g}, n = {card.n})"
        for pair in tested
        if pair and verdict.is_worse(pair)
    ]
    if tuned and tuned.format_valid < settings.min_format_valid:
        failed.append(
            f"{tuned.format_valid:.1%} of the tuned arm's completions are complete traces; "
            f"min_format_valid is {settings.min_format_valid:.1%}"
        )
    return Gate(
        asked=settings.gate,
        min_format_valid=settings.min_format_valid,
        outcome=verdict.outcome(failed, verdict.of(card)),
        failed=tuple(failed),
    )


def enforce_gate(card: Scorecard) -> None:
    """End the command where a check of the gate failed and the gate was asked for.

    Raises:
        GateError: with every check that failed.
    """
    if card.gate is not None and card.gate.asked and card.gate.failed:
        raise GateError("; ".join(card.gate.failed), where="gate", hint="everything was kept; --no-gate ends in 0")
