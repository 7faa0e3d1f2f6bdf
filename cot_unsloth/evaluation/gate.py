"""The gate: whether a run's scores end its command with exit code 3."""

from __future__ import annotations

from cot_unsloth.config import RunConfig
from cot_unsloth.core import arm_names, verdict
from cot_unsloth.core.errors import GateError
from cot_unsloth.core.results import Gate, Scorecard
from cot_unsloth.core.statistics import percent


def gate(config: RunConfig, card: Scorecard) -> Gate:
    """Check the scores against the requirements in the settings.

    It fails if the tuned arm is significantly worse than the base under the same prompt (or, if that was not scored, under
    the longest prompt that was), or than the adapter that training continued, or if too few completions are complete traces.
    Only one base arm is tested, chosen beforehand, so that four equally good arms fail in 2% of runs instead of 5% (see
    `verdict.reach`). It passes if the verdict is `better`.
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
        shares = tuned.format_valid, settings.min_format_valid
        # With as many digits as show that one is less: not "95.0% ...; min_format_valid is 95.0%" of 1,253 of 1,319.
        texts = ([percent(share, digits) for share in shares] for digits in range(1, 9))
        valid, least = next((pair for pair in texts if pair[0] != pair[1]), map(str, shares))
        failed.append(f"{valid} of the tuned arm's completions are complete traces; min_format_valid is {least}")
    return Gate(
        asked=settings.gate,
        min_format_valid=settings.min_format_valid,
        outcome=verdict.outcome(failed, verdict.of(card)),
        failed=tuple(failed),
    )


def enforce_gate(card: Scorecard) -> None:
    """Raise an error if a check of the gate failed and the gate is on.

    Raises:
        GateError: the message lists every failed check.
    """
    if card.gate is not None and card.gate.asked and card.gate.failed:
        raise GateError("; ".join(card.gate.failed), where="gate", hint="everything was kept; --no-gate ends in 0")
