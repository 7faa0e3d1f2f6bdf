"""docs/lab.md, docs/techniques.md, docs/sampling.md: a sweep that was killed, techniques, reflections on own errors.

Each block is empty until its result is committed.
"""

from __future__ import annotations

from typing import Any

from scripts.figures.results import RESULTS, hardware, load, share, table

MIB = 2**20


def sweep() -> str:
    """Trials by rank, and what the kills and the final comparison showed."""
    if not (RESULTS / "sweep.json").is_file():
        return ""
    result = load("sweep.json")
    found = result["sweep"]
    leaves = list(found["space"])
    rows = [
        [
            str(trial["number"]) + (" (default)" if trial["number"] == 0 else ""),
            *(f"{value:.2g}" if isinstance(value := trial["settings"][leaf], float) else str(value) for leaf in leaves),
            share(**_figures(trial["development"])) if trial["development"] else trial["state"],
            str(trial["resumed"] or ""),
        ]
        for trial in found["trials"]
    ]
    kills = " and ".join(f"after {kill['complete']} complete trials" for kill in result["kills"])
    continued = sum(trial["resumed"] > 0 for trial in found["trials"])
    lines = [
        table(["trial", *(f"`{leaf}`" for leaf in leaves), "development problems right", "continued"], rows),
        "",
        f"`{result['sweep_command']}` was killed (SIGKILL) {kills}, and repeated: {len(found['trials'])} trials, {continued} of them "
        f"continued after a kill, each counted once. {_final(found)} One thread of {hardware(result['environment'])}. "
        f"[sweep.json](../bench/results/sweep.json), from `{result['command']}`.",
    ]
    return "\n".join(lines)


def _figures(accuracy: Any) -> dict[str, Any]:
    return {"value": accuracy["accuracy"], "ci95": accuracy["ci95"]}


def _final(found: Any) -> str:
    """The best settings against the default on held-out problems."""
    final = found["final"]
    if final is None:
        return "No trial was better than the default on the development problems."
    pair, shares = final["pairs"][0], {run["name"]: run["accuracy"] for run in final["runs"]}
    low, high = pair["ci95"]
    return (
        f"Trained on all training rows, on {final['n']} held-out problems: best {shares['best']:.1%}, default "
        f"{shares['default']:.1%}, {100 * pair['difference']:+.1f} points [{100 * low:.1f}, {100 * high:.1f}], "
        f"McNemar p = {pair['mcnemar_p']:.2g}."
    )


def techniques() -> str:
    """A row for each technique on the embedded base, pooled over the seeds."""
    return _techniques("techniques.json")


def techniques_smollm2() -> str:
    """The same for the best of them on a real model."""
    return _techniques("techniques_smollm2.json")


def _techniques(file: str) -> str:
    if not (RESULTS / file).is_file():
        return ""
    result = load(file)
    rows = []
    for key, found in result["pooled"].items():
        name, _, rate = key.partition(" at ")
        used = next(
            row["command"].partition("--learning-rate ")[2].partition(" ")[0]
            for row in result["results"]
            if (row["technique"], f"{row['rate']:g}") == (name, rate)
        )
        lost = found["forgetting"]
        seconds = [row["seconds"]["cpu"] for row in result["results"] if row["technique"] == name]
        rows.append(
            [
                f"`{name}`",
                used,
                share(found["accuracy"], found["ci95"]),
                ", ".join(f"{value:.0%}" for value in found["by_seed"]),
                f"{lost['after']:.0%} [{100 * lost['ci95_after'][0]:.0f}, {100 * lost['ci95_after'][1]:.0f}]"
                if lost
                else "",
                f"{found['trained_weights']:,}",
                f"{found['optimizer_bytes'] / MIB:.1f} MiB" if found["optimizer_bytes"] else "",
                f"{sum(seconds) / len(seconds):.0f} s",
            ]
        )
    headings = [
        "technique", "rate", "right", "by seed", "of the task that it knew", "trained weights", "optimizer's state", "CPU time",
    ]  # fmt: skip
    first = next(iter(result["pooled"].values()))
    counts = sorted({found["n"] for found in result["pooled"].values()})
    lost = first["forgetting"]
    knew = (
        f"Before training, the model solved {lost['before']:.0%} of the task that is not trained on ({lost['task']}, n = {lost['n']})."
        if lost
        else ""
    )
    note = (
        f"Seed{'s' * (len(first['seeds']) > 1)} {', '.join(map(str, first['seeds']))}; n = {' to '.join(map(str, counts))} held-out problems in all, 95% intervals "
        f"(Wilson). {knew} CPU time is of a whole run, scores included, beside other work. One thread of "
        f"{hardware(result['environment'])}. [{file}](../bench/results/{file}), from `{result['command']}`."
    )
    return f"{table(headings, rows)}\n\n{note}"


ARMS = {
    "start": "start: solutions without reflections",
    "none": "its right attempts alone",
    "injected": "given solutions with random errors, corrected",
    "own": "its right attempts, and its own errors corrected",
    "more": "the same, all corrections, three passes",
}
"""The models of bench/reflections.py, in the order of the table."""


def reflections() -> str:
    """A row for each model and temperature, pooled over the seeds."""
    if not (RESULTS / "reflections.json").is_file():
        return ""
    result = load("reflections.json")
    rows = []
    for arm, words in ARMS.items():
        costs = [row["cost"]["trained_tokens"] for row in result["results"] if row["arm"] == arm]
        for temperature in ("0", "1"):
            found = result["pooled"].get(f"{arm} at {temperature}")
            if found is None:
                continue
            noticed, corrected, alarms = (found[f"{name}_share"] for name in ("noticed", "corrected", "false_alarm"))
            rows.append(
                [
                    words if temperature == "0" else "",
                    f"{sum(costs) / len(costs) / 1000:,.0f} k" if temperature == "0" else "",
                    temperature,
                    share(found["accuracy"]["share"], found["accuracy"]["ci95"]),
                    f"{share(noticed['share'], noticed['ci95'])} of {noticed['of']}",
                    share(corrected["share"], corrected["ci95"]),
                    share(alarms["share"], alarms["ci95"]),
                ]
            )
    headings = ["trained on", "tokens", "temperature", "right", "own errors noticed", "and corrected", "false alarms"]
    seeds = sorted({row["seed"] for row in result["results"]})
    note = (
        f"Seeds {', '.join(map(str, seeds))}, n = {result['pooled']['start at 0']['n']} answers a row, 95% intervals (Wilson); tokens are "
        f"the mean of a seed. One thread of {hardware(result['environment'])}. "
        f"[reflections.json](../bench/results/reflections.json), from `{result['command']}`."
    )
    return f"{table(headings, rows)}\n\n{note}"
