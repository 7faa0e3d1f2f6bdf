"""docs/sampling.md and docs/grpo.md: what a model gained from its own attempts, by seed, in each way that was tried."""

from __future__ import annotations

from typing import Any

from scripts.figures.results import RESULTS, accuracy, hardware, load, paired, table

RFT = {
    "rejection_sampling.json": "as below; attempts that were cut off and false reflections are corrected too",
    "rejection_sampling_second.json": "one round, 2,000 problems, all its rows, three passes",
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
        starts = {stage["seed"]: stage.get("sampled") for stage in result["results"] if stage["stage"] == "sft"}
        rows += [_row(stage, starts.get(stage["seed"]), RFT[file] if stage is stages[0] else "") for stage in stages]
        notes.append(f"[{file}](../bench/results/{file}), from `{result['command']}`")
    headings = [
        "`rft`", "seed", "start", "after", "gain, same problems", "right, temperature 1", "right at the first try", "valid format", "cut at the limit",
        "tokens sampled, trained on", "CPU time",
    ]  # fmt: skip
    note = f"Countdown, n = 600 held-out problems, greedy decoding. One thread of {hardware(load(files[0])['environment'])}. "
    return f"{table(headings, rows)}\n\n{note}{'; '.join(notes)}."


def grpo() -> str:
    """A row for each seed: what `grpo` made of the start, and of what `rft` made of it."""
    result = load("grpo.json")
    sampled = {(stage["seed"], stage["stage"]): stage.get("sampled") for stage in result["results"]}
    rows = []
    for name, before, shown in (("grpo", "sft", "`grpo`"), ("rft+grpo", "rft", "`rft`, then `grpo`")):
        for stage in (stage for stage in result["results"] if stage["stage"] == name):
            row = _row(stage, sampled.get((stage["seed"], before)), shown)
            over_sft = _gain(stage["against_sft"]) if "against_sft" in stage else row[4]
            rows.append([*row[:5], over_sft, row[5], _gain(stage["sampled"]["against_start"]), *row[6:]])
            shown = ""
    headings = [
        "", "seed", "before, greedy", "after, greedy", "gain, same problems", "gain over `sft`", "right, temperature 1",
        "gain over `sft`, temperature 1", "right at the first try", "valid format", "cut at the limit", "tokens sampled, trained on", "CPU time",
    ]  # fmt: skip
    note = (
        f"Countdown, n = 600 held-out problems (evaluation seed 1000), 95% intervals (Wilson; of differences Bonett-Price). Format, first try and "
        f"cut are of greedy answers. One thread of {hardware(result['environment'])}. [grpo.json](../bench/results/grpo.json), from `{result['command']}`."
    )
    return f"{table(headings, rows)}\n\n{note}"


def equal_compute() -> str:
    """What imitation, rejection sampling and reinforcement made of one start, at about the same number of tokens."""
    second, reinforced = load("rejection_sampling.json")["results"], load("grpo.json")["results"]
    stages = {
        "the start": _of(second, "sft"),
        "imitation of given solutions": _of(second, "more sft"),
        "`rft`": _of(second, "rft"),
        "`grpo`": _of(reinforced, "grpo"),
    }
    rows = [
        [
            name,
            " and ".join(f"{stage['tokens'][kind] / 1e6:.1f}" for kind in ("sampled", "trained")) + " million",
            accuracy(stage["arms"]["tuned"]),
            f"{stage['arms']['tuned']['first_try']['accuracy']:.1%}",
            f"{stage['arms']['tuned']['format_valid']:.1%}",
            accuracy(stage["sampled"]) if "sampled" in stage else "not scored",
            _cpu_time(stage),
        ]
        for name, stage in stages.items()
        if stage is not None
    ]
    headings = [
        "", "tokens sampled, trained on", "right, greedy", "at the first try", "valid format", "right, temperature 1", "CPU time",
    ]  # fmt: skip
    return table(headings, rows)


def _of(stages: Any, name: str) -> Any:
    return next((stage for stage in stages if (stage["stage"], stage["seed"]) == (name, 1)), None)


def _row(stage: Any, start_sampled: Any, way: str) -> list[str]:
    arms, pair = stage["arms"], paired(stage, "start", "tuned")
    start, tuned = arms["start"], arms["tuned"]
    return [
        way,
        str(stage["seed"]),
        accuracy(start),
        accuracy(tuned),
        _gain(pair),
        _both(start_sampled, stage["sampled"], "accuracy") if start_sampled and "sampled" in stage else "",
        _both(start["first_try"], tuned["first_try"], "accuracy"),
        _both(start, tuned, "format_valid"),
        _both(start, tuned, "truncated"),
        " and ".join(f"{stage['tokens'][kind] / 1e6:.1f}" for kind in ("sampled", "trained")) + " million",
        _cpu_time(stage),
    ]


def _gain(pair: Any) -> str:
    low, high = pair["ci95"]
    return f"{100 * pair['difference']:+.1f} [{100 * low:.1f}, {100 * high:.1f}], p = {pair['mcnemar_p']:.0e}"


def _cpu_time(stage: Any) -> str:
    """With what drawing the attempts took that were taken over from another run."""
    return f"{(stage['seconds']['cpu'] + stage.get('reused', {}).get('cpu_seconds', 0)) / 60:.0f} min"


def _both(before: Any, after: Any, name: str) -> str:
    return f"{before[name]:.1%} to {after[name]:.1%}"
