"""Several models on the same problems: accuracies, and pairwise tests with correction for multiple comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cot_unsloth.core.results import Paired
from cot_unsloth.core.results.comparison import TestedPair
from cot_unsloth.core.statistics import SIGNIFICANT, holm
from cot_unsloth.core.types import Score
from cot_unsloth.evaluation.scorecard import paired
from cot_unsloth.reporting.page import Grid, interval, points


def tested(pairs: Sequence[tuple[str, str]], scores: Mapping[str, Sequence[Score]]) -> tuple[TestedPair, ...]:
    """McNemar's test and interval of each pair (before, after), with Holm's correction for all of them."""
    return corrected([paired(before, after, scores) for before, after in pairs])


def corrected(plain: Sequence[Paired]) -> tuple[TestedPair, ...]:
    """Pairs with Holm's correction for all of them."""
    adjusted = holm([pair.mcnemar_p for pair in plain])
    return tuple(
        TestedPair(**pair.model_dump(), adjusted_p=p, significant=p < SIGNIFICANT)
        for pair, p in zip(plain, adjusted, strict=True)
    )


def pair_grid(caption: str, pairs: Sequence[TestedPair]) -> Grid:
    """Pairs as a table."""
    columns = ("pair", "points", "95%", "gained", "lost", "p", "p (Holm)", "")
    return Grid(caption, columns, [_row(pair) for pair in pairs])


def _row(pair: TestedPair) -> tuple[str, ...]:
    return (
        f"{pair.before} → {pair.after}",
        points(pair.difference),
        interval(pair.ci95),
        str(pair.gained),
        str(pair.lost),
        f"{pair.mcnemar_p:.2g}",
        f"{pair.adjusted_p:.2g}",
        word(pair) if pair.significant else "not significant",
    )


def word(pair: TestedPair) -> str:
    """The result of a pair, in a word or two."""
    if not pair.significant:
        return "no significant difference"
    return "better" if pair.difference > 0 else "worse"
