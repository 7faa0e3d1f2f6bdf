"""docs/recipes.md: what each stage did to a real instruct model."""

from __future__ import annotations

from typing import Any

from scripts.figures.results import RESULTS, accuracy, best_base, hardware, load, paired, table

PROBLEMS = {"words": "word problems of 2 and 3 steps (`world:words:2-3`)", "gsm8k": "GSM8K's test rows"}
STAGES = {
    "sft": "`sft` on given solutions",
    "rft": "`rft` from the base",
    "sft+rft": "`rft` after `sft`",
    "sft+rft, more": "`rft` after `sft`, 512 problems, three passes",
    "sft+sft": "`sft` after `sft`, 512 other problems, three passes",
    "sft+grpo": "`grpo` after `sft`",
    "rft+grpo": "`grpo` after `rft`",
}


def real_stages() -> str:
    """A table for each kind of problems: the base, then each stage that was run."""
    if not (RESULTS / "real_stages.json").is_file():
        return ""
    result = load("real_stages.json")
    tables = []
    for kind, title in PROBLEMS.items():
        stages = [stage for stage in result["results"] if stage["problems"] == kind]
        if stages:
            tables += [f"{title[0].upper()}{title[1:]}, n = {stages[0]['n']}:", "", _table(stages), ""]
    commands = " and ".join(f"`{command}`" for command in result["commands"].values())
    note = (
        f"{result['model']}, rank 32, seed {result['seed']}, greedy; right and forgetting with Wilson's 95% intervals, differences with "
        f"Bonett and Price's. One thread of {hardware(result['environment'])}. "
        f"[real_stages.json](../bench/results/real_stages.json), from {commands}."
    )
    return "\n".join([*tables, note])


def _table(stages: list[Any]) -> str:
    first = stages[0]
    best = best_base(first)
    known = first["forgetting"]["before"] if first["forgetting"] else None
    rows = [["base, its best arm", accuracy(first["arms"][best]), "", "", accuracy(known) if known else "", "", ""]]
    for stage in stages:
        tuned, pair = stage["arms"]["tuned"], _gain(stage, first, best)
        rows.append(
            [
                STAGES[stage["stage"]],
                accuracy(tuned),
                pair,
                f"{tuned['format_valid']:.1%}",
                accuracy(stage["forgetting"]["after"]) if stage["forgetting"] else "",
                " and ".join(f"{stage['tokens'][kind] / 1000:,.0f} k" for kind in ("sampled", "trained")),
                f"{stage['seconds']['cpu'] / 60:.0f} min" if stage["seconds"]["cpu"] else "not recorded",
            ]
        )
    headings = [
        "",
        "right",
        "gain",
        "valid format",
        "general questions right",
        "tokens sampled, trained on",
        "CPU time",
    ]
    return table(headings, rows)


def _gain(stage: Any, first: Any, best: str) -> str:
    """The gain over what the stage began with, in points."""
    before = "start" if "start" in stage["arms"] else best
    if not any(pair["before"] == before for pair in stage["paired"]):
        difference = stage["arms"]["tuned"]["accuracy"] - first["arms"][best]["accuracy"]
        return f"{100 * difference:+.1f} over the base"
    pair = paired(stage, before, "tuned")
    low, high = (100 * bound for bound in pair["ci95"])
    over = "its start" if before == "start" else "the base"
    return f"{100 * pair['difference']:+.1f} [{low:.0f}, {high:.0f}] over {over}"
