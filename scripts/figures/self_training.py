"""docs/sampling.md and docs/grpo.md: what a model gained from its own attempts, by seed, in each way that was tried."""

from __future__ import annotations

from typing import Any

from scripts.figures.results import RESULTS, accuracy, hardware, load, paired, table

RFT = {
    "rejection_sampling.json": "one round, 2,000 problems, all its rows, three passes",
    "self_training.json": "two rounds, 1,000 problems, at most 4 rows of a problem, one pass",
}
"""Results of bench/self_training.py, and the settings of `rft` in which they differ."""


def rejection_sampling() -> str:
    """A row for each seed and way: the start, and what `rft` made of it."""
    files = [file for file in RFT if (RESULTS / file).is_file()]
    rows, notes = [], []
    for file in files:
        result = load(file)
        stages = [stage for stage in result["results"] if stage["stage"] == "rft"]
        rows += [_row(stage, RFT[file] if stage is stages[0] else "") for stage in stages]
        notes.append(f"[{file}](../bench/results/{file}), from `{result['command']}`")
    headings = [
        "`rft`", "seed", "start", "after", "gain, same problems", "right at the first try", "valid format", "cut at the limit",
        "tokens sampled, trained on", "CPU time",
    ]  # fmt: skip
    note = f"Countdown, n = 600 held-out problems, greedy decoding. One thread of {hardware(load(files[0])['environment'])}. "
    return f"{table(headings, rows)}\n\n{note}{'; '.join(notes)}."


def _row(stage: Any, way: str) -> list[str]:
    arms, pair = stage["arms"], paired(stage, "start", "tuned")
    start, tuned = arms["start"], arms["tuned"]
    low, high = pair["ci95"]
    return [
        way,
        str(stage["seed"]),
        accuracy(start),
        accuracy(tuned),
        f"{100 * pair['difference']:+.1f} [{100 * low:.1f}, {100 * high:.1f}], p = {pair['mcnemar_p']:.0e}",
        _both(start["first_try"], tuned["first_try"], "accuracy"),
        _both(start, tuned, "format_valid"),
        _both(start, tuned, "truncated"),
        " and ".join(f"{stage['tokens'][kind] / 1e6:.1f}" for kind in ("sampled", "trained")) + " million",
        f"{stage['seconds']['cpu'] / 60:.0f} min",
    ]


def _both(before: Any, after: Any, name: str) -> str:
    return f"{before[name]:.1%} to {after[name]:.1%}"
