"""A transfer matrix as tables, a heat map and a page: accuracies, and what each adapter changes on each task."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from cot_unsloth.core.results.transfer import Transfer, TransferAdapter, TransferCell, TransferTask
from cot_unsloth.core.statistics import mean
from cot_unsloth.core.verdict import detects
from cot_unsloth.lab.matrix import effect
from cot_unsloth.reporting import plots
from cot_unsloth.reporting.page import Grid, Page, interval, percent, points

_MARKS = {"helps": "+", "harms": "-", "no significant difference": " ", None: " "}
_ABREAST = 6
"""Tasks side by side: their columns fit into 80 characters."""
_NARROW = 9
"""Characters of a column's name in one line."""


def page(transfer: Transfer, png: Path, *, every_cell: bool = False) -> Page:
    """A matrix to print or to write as a page.

    Args:
        transfer: the matrix.
        png: gets the heat map.
        every_cell: whether to list each cell with its intervals and tests, too.
    """
    groups = [transfer.tasks[at : at + _ABREAST] for at in range(0, len(transfer.tasks), _ABREAST)]
    right = (
        f"Right, in per cent; over the base, + helps and - harms (McNemar, Holm over {_tests(transfer, 'base')} tests)"
    )
    lost = f"Points over the task's own adapter; * significant (McNemar, Holm over {_tests(transfer, 'own')} tests)"
    grids = [_grid(right if group is groups[0] else "", transfer, group, _accuracy, "base") for group in groups]
    grids += [_grid(lost if group is groups[0] else "", transfer, group, _over_own, "own") for group in groups]
    if every_cell:
        grids.append(_cells(transfer))
    notes = [*transfer.notes, *_setting(transfer), *_of_several_tasks(transfer)]
    return Page(
        f"transfer between {len(transfer.tasks)} tasks",
        _sentence(transfer),
        notes=notes,
        grids=grids,
        figures=[_heat_map(transfer, png)],
    )


def _tests(transfer: Transfer, family: str) -> int:
    return sum(getattr(cell, f"against_{family}") is not None for cell in transfer.cells)


def _grid(
    caption: str,
    transfer: Transfer,
    tasks: Sequence[TransferTask],
    text: Callable[[TransferCell], str],
    family: str,
) -> Grid:
    rows = [
        (adapter.name, *(text(transfer.cell(adapter.name, task.name)) for task in tasks))
        for adapter in transfer.adapters
        if family == "base" or adapter.kind != "base"
    ]
    return Grid(caption, ("adapter", *(short_name(task.name) for task in tasks)), rows)


def short_name(name: str) -> str:
    """A name in lines of at most nine characters, broken at its separators where there are any.

    >>> short_name("leg_counting"), short_name("conversions")
    ('leg_\\ncounting', 'conversio\\nns')
    """
    lines = [""]
    for part in re.findall(r"[^-_:.]+[-_:.]*|[-_:.]+", name):
        if lines[-1] and len(lines[-1] + part) > _NARROW:
            lines.append("")
        lines[-1] += part
        while len(lines[-1]) > _NARROW:
            lines[-1:] = [lines[-1][:_NARROW], lines[-1][_NARROW:]]
    return "\n".join(lines)


def _accuracy(cell: TransferCell) -> str:
    return f"{percent(cell.accuracy)[:-1]} {_MARKS[cell.effect]}"


def _over_own(cell: TransferCell) -> str:
    pair = cell.against_own
    return "own  " if pair is None else f"{points(pair.difference)} {'*' if pair.significant else ' '}"


def _cells(transfer: Transfer) -> Grid:
    columns = ("adapter", "task", "right", "95%", "over base", "95%", "p (Holm)", "", "over own", "95%", "p (Holm)")
    caption = "Every cell: Wilson's interval; differences with Bonett and Price's interval and McNemar's exact test"
    return Grid(caption, columns, [_line(cell) for cell in transfer.cells])


def _line(cell: TransferCell) -> tuple[str, ...]:
    own, base = (
        ("", "", "") if pair is None else (points(pair.difference), interval(pair.ci95), f"{pair.adjusted_p:.2g}")
        for pair in (cell.against_own, cell.against_base)
    )
    share = (percent(cell.accuracy), interval(cell.ci95))
    return (cell.adapter, cell.task, *share, *base, cell.effect or "", *own)


def _setting(transfer: Transfer) -> list[str]:
    counts = ", ".join(f"{task.name} {task.n}" for task in transfer.tasks)
    decoding = transfer.decoding
    return [
        f"Held-out problems: {counts}; eval_seed {transfer.eval_seed}, seed {transfer.train_seed}, "
        f"temperature {decoding.temperature:g}, at most {decoding.max_new_tokens} new tokens. Model: {transfer.model}."
    ]


def _of_several_tasks(transfer: Transfer) -> list[str]:
    """A line for each adapter that is not of one task: its mean, and how it compares with the tasks' own ones."""
    return [_line_of(transfer, adapter) for adapter in transfer.adapters if adapter.kind not in ("base", "own")]


def _line_of(transfer: Transfer, adapter: TransferAdapter) -> str:
    cells = [transfer.cell(adapter.name, task.name) for task in transfer.tasks]
    own = Counter(effect(cell.against_own) for cell in cells if cell.against_own is not None)
    error = "" if adapter.relative_error is None else f"; {100 * adapter.relative_error:.1f}% from the weighted sum"
    return (
        f"{adapter.name}: mean {percent(mean([cell.accuracy for cell in cells]))}; against the tasks' own adapters better on "
        f"{own['helps']}, worse on {own['harms']}, no significant difference on {own['no significant difference']}{error}"
    )


def _sentence(transfer: Transfer) -> str:
    """The effect of adapters on tasks that they were not trained on, in a sentence."""
    own = {adapter.name for adapter in transfer.adapters if adapter.kind == "own"}
    others = [cell for cell in transfer.cells if cell.adapter in own and cell.adapter != cell.task]
    effects = Counter(cell.effect for cell in others)
    text = (
        f"Of {len(others)} transfers to a task that the adapter was not trained on, {effects['helps']} help, "
        f"{effects['harms']} harm, {effects['no significant difference']} show no significant difference"
    )
    unclear = [cell.against_base for cell in others if cell.effect == "no significant difference" and cell.against_base]
    if not unclear:
        return f"{text}."
    least = [pair.resolvable for pair in unclear if pair.resolvable is not None]
    # `resolvable` is of one test; Holm's correction needs larger differences, so that this is a lower bound.
    fewest = min(task.n for task in transfer.tasks)
    return f"{text} ({detects(fewest, max(least) if len(least) == len(unclear) else None)} in a single test)."


def _heat_map(transfer: Transfer, png: Path) -> str:
    fields = [
        [_field(transfer.cell(adapter.name, task.name)) for task in transfer.tasks] for adapter in transfer.adapters
    ]
    columns = [task.name for task in transfer.tasks]
    names = [adapter.name for adapter in transfer.adapters]
    return plots.heat_map(
        "right, in per cent, by adapter and task", names, columns, fields, "points over the base", png
    )


def _field(cell: TransferCell) -> plots.Heat:
    pair = cell.against_base
    return plots.Heat(0.0 if pair is None else pair.difference, _accuracy(cell).strip())
