"""The plots of `curves.json`: accuracy against tokens at test time, and against tokens trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cot_unsloth.core.results import Accuracy, Curves
from cot_unsloth.core.results.curves import BudgetPoint
from cot_unsloth.reporting import plots

NAMES = frozenset({"test-time", "train-time"})
"""All plots that there may be."""


def draw(curves: Curves, folder: Path) -> dict[str, str]:
    """The curves as SVG by name; as PNG files in a folder too."""
    drawn = {"test-time": draw_test_time(curves, folder / "curves-test-time.png")}
    if curves.train_time:
        drawn["train-time"] = draw_train_time(curves, folder / "curves-train-time.png")
    return drawn


def draw_test_time(curves: Curves, save: Path | None = None, source: str = "") -> str:
    """Accuracy against tokens of an answer, one chain and several, as SVG; see `plots.lines`."""
    test = curves.test_time
    control, *_, last = [*test.parallel, *test.parallel]
    points = [(point.tokens, point) for point in test.sequential]
    lines = [_line("sequential: one chain, cut at a budget", points)]
    controls = test.parallel[control]
    lines += [
        _line(f"parallel: majority of k, each cut at {control}", [(p.tokens, p.majority) for p in controls]),
        _line(f"parallel: any of k, each cut at {control}", [(p.tokens, p.any) for p in controls], dashed=True),
        _line(f"parallel: majority of k, each up to {last}", [(p.tokens, p.majority) for p in test.parallel[last]]),
    ]
    title = f"{curves.model} on {curves.n} problems: accuracy against tokens"
    axes = plots.Axes("tokens an answer, all samples counted", "right", log_x=True, share=True)
    return plots.lines(title, lines, axes, save, source)


def draw_train_time(curves: Curves, save: Path | None = None, source: str = "") -> str:
    """Accuracy against tokens trained on, each seed and their mean, as SVG; see `plots.lines`.

    Raises:
        ValueError: no checkpoints were scored.
    """
    if curves.train_time is None:
        raise ValueError("no checkpoints were scored")
    seeds, runs = curves.train_seeds, curves.train_time.runs
    mean = [point for point in curves.train_time.mean if point.step]
    label = f"mean of {len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"
    lines = [plots.Line(label, [(p.training_tokens, p.accuracy) for p in mean], [p.ci95 for p in mean])]
    if len(seeds) > 1:
        lines += [
            plots.Line(f"seed {seed}", [(p.training_tokens, p.accuracy) for p in points if p.step], dashed=True)
            for seed, points in zip(seeds, runs.values(), strict=True)
        ]
    title = f"{curves.model} on {curves.n} problems: accuracy against training"
    axes = plots.Axes("tokens trained on", "right", log_x=True, share=True)
    return plots.lines(title, lines, axes, save, source)


def _line(label: str, points: Sequence[tuple[float, Accuracy | BudgetPoint]], dashed: bool = False) -> plots.Line:
    """A line through points, given with their tokens; in ascending number of tokens."""
    ascending = sorted(points, key=lambda point: point[0])
    return plots.Line(
        label, [(tokens, point.accuracy) for tokens, point in ascending], [point.ci95 for _, point in ascending], dashed
    )
