"""docs/lab.md: every adapter on every task, pooled over the seeds of bench/transfer.py."""

from __future__ import annotations

from typing import Any

from scripts.figures.results import RESULTS, hardware, load, share, table

FILE = "transfer.json"


def transfer() -> str:
    """A row for each adapter, a column for each task; empty until a result is committed."""
    if not (RESULTS / FILE).is_file():
        return ""
    measured = load(FILE)
    cells = {(cell["adapter"], cell["task"]): cell for cell in measured["pooled"]}
    adapters, tasks = (list(dict.fromkeys(key[at] for key in cells)) for at in (0, 1))
    rows = [[f"`{adapter}`", *(_cell(cells[adapter, task]) for task in tasks)] for adapter in adapters]
    counts = sorted({cell["n"] for cell in cells.values()})
    note = (
        f"n = {' to '.join(map(str, counts))} held-out problems a cell, of {len(measured['seeds'])} seeds; 95% intervals (Wilson). "
        "▲ better and ▼ worse than the base (exact McNemar, Holm's correction over all cells); in bold the task's own adapter, "
        "and others that are better than the base and not significantly worse than it. One thread of "
        f"{hardware(measured['environment'])}. [{FILE}](../bench/results/{FILE}), from `{measured['command']}`."
    )
    return f"{table(['adapter', *tasks], rows)}\n\n{note}"


def _cell(cell: Any) -> str:
    base, own = cell["against_base"], cell["against_own"]
    text = share(cell["accuracy"], cell["ci95"])
    better = False
    if base is not None and base["significant"]:
        better = base["difference"] > 0
        text += " ▲" if better else " ▼"
    is_own = base is not None and own is None
    as_good = better and not (own["significant"] and own["difference"] < 0) if own is not None else is_own
    return f"**{text}**" if as_good else text
