"""The plots of docs/images. Each carries the hash of its result in its metadata, so that a test can detect an old one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cot_unsloth.core import arm_names
from cot_unsloth.core.results import Curves
from cot_unsloth.core.statistics import wilson
from cot_unsloth.reporting import curve_plots
from scripts.figures.demo import pooled, trained_steps
from scripts.figures.results import RESULTS, ROOT, load

IMAGES = ROOT / "docs" / "images"
GREEN, RED = "#0b6e4f", "#b0413e"


def source(result: str) -> str:
    """The name and hash of the result that a plot was drawn from."""
    return f"{result} {hashlib.sha256((RESULTS / result).read_bytes()).hexdigest()[:16]}"


def draw_lengths(path: Path) -> None:
    """Accuracy by number of steps, base and tuned, with intervals and the range trained on."""
    plt = _pyplot()
    tasks, trained = list(load("demo.json")["runs"][0]["by_length"]), trained_steps()
    figure, axes = plt.subplots(1, len(tasks), figsize=(9, 3.4), sharey=True, layout="constrained")
    for axis, task in zip(axes, tasks, strict=True):
        low, high = trained[task]
        axis.axvspan(low - 0.5, high + 0.5, color="0.93", label="trained on")
        totals = pooled(task)
        for arm, colour in (("tuned", GREEN), ("base_direct", RED)):
            _error_bars(axis, list(totals), [arms[arm] for arms in totals.values()], arm_names.title(arm), colour, "o-")
        axis.set(title=task, xlabel="steps of the solution", ylim=(-3, 103), xticks=list(totals))
    axes[0].set_ylabel("right answers, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    _save(figure, path, "demo.json")


def draw_recovery(path: Path) -> None:
    """Accuracy undisturbed and under injected errors, by what was trained on, a dot per seed."""
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
    runs = load("recovery.json")["runs"]
    for offset, arm, label, colour in (
        (-0.12, "without", "trained on clean steps", RED),
        (0.12, "with reflections", "trained on corrected errors, as many tokens", GREEN),
    ):
        for index, run in enumerate(runs):
            cells = [run[arm][condition]["accuracy"] for condition in ("undisturbed", "injected")]
            centre = offset + 0.05 * (index - (len(runs) - 1) / 2)
            shares = [(round(cell["share"] * cell["of"]), cell["of"]) for cell in cells]
            _error_bars(axis, [centre, 1 + centre], shares, label if index == 0 else None, colour, "o")
    axis.set(ylim=(-3, 103), ylabel="right answers, %", xticks=[0, 1], xlim=(-0.5, 1.5))
    axis.set_xticklabels(["undisturbed", "each step corrupted\nwith a chance of 20%"])
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    _save(figure, path, "recovery.json")


def draw_test_time(path: Path) -> None:
    """Countdown: accuracy against tokens of an answer, one chain and several."""
    curve_plots.draw_test_time(Curves.model_validate(load("evidence.json")["countdown"]), path, source("evidence.json"))


def draw_train_time(path: Path) -> None:
    """All tasks: accuracy against tokens trained on, each seed and their mean."""
    curve_plots.draw_train_time(Curves.model_validate(load("evidence.json")["training"]), path, source("evidence.json"))


PLOTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "lengths.png": (draw_lengths, "demo.json"),
    "recovery.png": (draw_recovery, "recovery.json"),
    "curves-test-time.png": (draw_test_time, "evidence.json"),
    "curves-train-time.png": (draw_train_time, "evidence.json"),
}
"""By file in docs/images, how it is drawn and from which result."""


def _error_bars(
    axis: Any, xs: Sequence[float], shares: Sequence[tuple[int, int]], label: str | None, colour: str, style: str
) -> None:
    """Shares (right, n) in percent with Wilson's 95% intervals."""
    middle = [100 * right / n for right, n in shares]
    bounds = [wilson(right, n) for right, n in shares]
    below = [max(0, m - 100 * low) for m, (low, _) in zip(middle, bounds, strict=True)]
    above = [max(0, 100 * high - m) for m, (_, high) in zip(middle, bounds, strict=True)]
    axis.errorbar(xs, middle, yerr=(below, above), fmt=style, color=colour, label=label, capsize=3, markersize=4)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams["axes.spines.top"] = plt.rcParams["axes.spines.right"] = False
    return plt


def _save(figure: Any, path: Path, result: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Source": source(result)})
