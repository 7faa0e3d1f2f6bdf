"""The cells of a transfer matrix: each adapter's answers to a task, paired with those of the base and of the task's own adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cot_unsloth.core.results import Paired
from cot_unsloth.core.results.comparison import TestedPair
from cot_unsloth.core.results.transfer import Effect, TransferCell
from cot_unsloth.core.types import Score
from cot_unsloth.evaluation.scorecard import arm_result, paired
from cot_unsloth.lab.pairs import corrected

BASE = "base"
Scores = Mapping[str, Mapping[str, Sequence[Score]]]
"""Scores by task, then by adapter, on the same problems in the same order."""
_Key = tuple[str, str]
"""Adapter and task."""


def cells(scores: Scores, own: Mapping[str, str]) -> tuple[TransferCell, ...]:
    """The cells, adapter by adapter.

    Args:
        scores: every adapter on every task, the base among them.
        own: for each task the adapter that was trained on it.
    """
    tasks, adapters = list(scores), list(next(iter(scores.values())))
    keys = [(adapter, task) for adapter in adapters for task in tasks]
    to_base = _tested(scores, {key: BASE for key in keys if key[0] != BASE})
    to_own = _tested(scores, {key: own[key[1]] for key in keys if key[0] not in (BASE, own[key[1]])})
    return tuple(_cell(key, scores[key[1]][key[0]], to_base.get(key), to_own.get(key)) for key in keys)


def _tested(scores: Scores, before: Mapping[_Key, str]) -> dict[_Key, TestedPair]:
    """Each cell paired with another adapter's answers to the same task, with Holm's correction over all of them."""
    plain: list[Paired] = [paired(other, adapter, scores[task]) for (adapter, task), other in before.items()]
    return dict(zip(before, corrected(plain), strict=True))


def _cell(key: _Key, scores: Sequence[Score], base: TestedPair | None, own: TestedPair | None) -> TransferCell:
    result = arm_result(scores)
    return TransferCell(
        accuracy=result.accuracy,
        ci95=result.ci95,
        adapter=key[0],
        task=key[1],
        format_valid=result.format_valid,
        mean_tokens=result.mean_tokens,
        against_base=base,
        effect=None if base is None else effect(base),
        against_own=own,
    )


def effect(pair: TestedPair) -> Effect:
    """Whether a pair shows that an adapter helps or harms."""
    if not pair.significant:
        return "no significant difference"
    return "helps" if pair.difference > 0 else "harms"
