"""Write the figures of README and docs from the committed results: `python docs/make_figures.py`.

Between `<!-- NAME -->` and `<!-- /NAME -->` nothing is written by hand; a test holds the pages to it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cot_unsloth.tasks import parse_spec

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
ARMS = {
    "base_direct": "base, asked directly",
    "base_cot": "base, “think step by step”",
    "base_tags": "base, our system prompt",
    "tuned": "**tuned**",
}


def _result(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def _cell(share: float, ci95: list[float]) -> str:
    return f"{share:.1%} [{100 * ci95[0]:.0f}, {100 * ci95[1]:.0f}]"


def _hardware(found: dict[str, Any]) -> str:
    where = found["environment"]
    versions = ", ".join(f"{name} {where['versions'][name]}" for name in ("torch", "transformers", "trl"))
    return f"{where['cpu_count']} cores of an {where['cpu']} ({versions})"


def _best_base(run: dict[str, Any]) -> float:
    return max(found["accuracy"] for arm, found in run["arms"].items() if arm != "tuned")


def demo() -> str:
    """The table of `make demo`, and what its other seeds gave."""
    found = _result("demo.json")
    first, *others = found["runs"]
    tasks = list(first["arms"]["tuned"]["by_task"])
    steps = {family.world.name: "–".join(map(str, family.steps)) for family in parse_spec(first["dataset"])}
    heads = " | ".join(f"{task}, {steps[task]} steps" for task in tasks)
    lines = [
        f"| arm | all | {heads} | format valid |",
        f"| --- | --- | {'--- | ' * len(tasks)}--- |",
    ]
    for arm, label in ARMS.items():
        row = first["arms"][arm]
        cells = [_cell(cell["accuracy"], cell["ci95"]) for cell in (row, *row["by_task"].values())]
        lines.append(f"| {label} | {' | '.join(cells)} | {row['format_valid']:.0%} |")
    best = max((arm for arm in first["arms"] if arm != "tuned"), key=lambda arm: first["arms"][arm]["accuracy"])
    pair = next(pair for pair in first["paired"] if pair["before"] == best)
    more = "; ".join(
        f"{run['arms']['tuned']['accuracy']:.1%} (seeds {run['seed']} and {run['eval_seed']}; "
        f"best base arm {_best_base(run):.1%})"
        for run in others
    )
    walls = [run["wall_seconds"] for run in found["runs"]]
    each = first["arms"]["tuned"]["by_task"][tasks[0]]["n"]
    return "\n".join(
        [
            *lines,
            "",
            f"`{first['command']}`: held-out problems, n = {first['n']} ({each} a family), greedy, at most",
            f"{first['decoding']['max_new_tokens']} new tokens, Wilson's 95% intervals in brackets. Against the best base",
            f"arm {pair['gained']} problems gained, {pair['lost']} lost, exact McNemar p = {pair['mcnemar_p']:.0e}.",
            "Two more runs, each with another training seed and other held-out problems, tuned:",
            f"{more}.",
            f"{min(walls):.0f}–{max(walls):.0f} s a run after installation, on {_hardware(found)}.",
        ]
    )


def recovery() -> str:
    """Recovery from injected errors, with and without reflections in the training data."""
    found = _result("recovery.json")
    lines = [
        "| trained on | seed | undisturbed | 20% injected | errors mended | false alarms |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for arm, label in (("without", "clean steps"), ("with reflections", "steps with mended errors")):
        for run in found["runs"]:
            cells = [
                run[arm]["undisturbed"]["accuracy"],
                run[arm]["injected"]["accuracy"],
                run[arm]["injected"]["mended"],
                run[arm]["undisturbed"]["false_alarms"],
            ]
            shown = " | ".join(_cell(cell["share"], cell["ci95"]) for cell in cells)
            lines.append(f"| {label} | {run['seed']} | {shown} |")
    tokens = [run[arm]["tokens"] for run in found["runs"] for arm in ("without", "with reflections")]
    return "\n".join(
        [
            *lines,
            "",
            f"`{found['command']}`:",
            f"n = {found['runs'][0]['without']['injected']['n']} held-out chains of 4–8 steps a cell; {min(tokens):,} to",
            f"{max(tokens):,} training tokens, for both arms of a seed the same to within a row; Wilson's 95% intervals;",
            f"on {_hardware(found)}.",
        ]
    )


PAGES = {"README.md": (demo,), "docs/bases.md": (recovery,)}
"""Which figures stand where."""


def filled(page: str) -> str:
    """A page with its blocks of figures written anew.

    Raises:
        ValueError: a block is not there, or not ended.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    for block in PAGES[page]:
        begin, end = f"<!-- {block.__name__} -->", f"<!-- /{block.__name__} -->"
        before, found, rest = text.partition(begin)
        _, ended, after = rest.partition(end)
        if not (found and ended):
            raise ValueError(f"{page} has no block {begin} … {end}")
        text = f"{before}{begin}\n{block()}\n{end}{after}"
    return text


if __name__ == "__main__":
    for name in PAGES:
        made = filled(name)
        (ROOT / name).write_text(made, encoding="utf-8")
