"""Scorecards and curves as tables in a terminal.

Owns what of them is printed, to stdout, and in which words; the page that shows a run is `report`'s.
"""

from __future__ import annotations

import itertools
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cot_unsloth.core import verdict
from cot_unsloth.core.findings import Finding
from cot_unsloth.prompts.inspection import InspectedRow, Segment
from cot_unsloth.storage import records

_STYLES: Mapping[verdict.Tone, str] = {"good": "bold green", "bad": "bold red", "neutral": "bold"}


def _console() -> Any:
    """Stdout, wide enough for a table where it is no terminal."""
    from rich.console import Console

    # Not every word between colons is an emoji: world:chains:4-8 is a data set.
    return Console(width=None if sys.stdout.isatty() else 120, highlight=False, emoji=False)


def print_scorecard(card: Mapping[str, Any]) -> None:
    """The table of arms, one column a family, and the paired comparison, to stdout."""
    from rich.markup import escape
    from rich.table import Table

    console = _console()
    arms = card["arms"]
    tasks = list(next(iter(arms.values()))["by_task"]) if arms else []
    budget, temperature = card["decoding"]["max_new_tokens"], card["decoding"]["temperature"]
    table = Table(title=f"{card['model']} on {card['dataset']}")
    table.add_column("arm")
    for name in ["all", *(tasks if len(tasks) > 1 else []), "format", "cut off", "tokens"]:
        table.add_column(name, justify="right")
    for arm, found in arms.items():
        families = [found["by_task"][task] for task in tasks] if len(tasks) > 1 else []
        table.add_row(
            arm,
            *(_cell(cell) for cell in [found, *families]),
            f"{found['format_valid']:.1%}",
            f"{found['truncated']:.1%}",
            f"{found['mean_tokens']:.0f}",
        )
    console.print(table)
    console.print(
        f"n = {card['n']}, seed {card['seed']}, temperature {temperature:g}, at most {budget} new tokens; "
        "\\[low, high] is Wilson's 95% interval"
    )
    if readings := verdict.readings(card):
        console.print(escape(readings))
    for pair in card["paired"]:
        console.print(_pair_line(card, pair))
    for task, found in arms.get("tuned", {}).get("by_task", {}).items():
        if found.get("first_try"):
            console.print(f"{task}, right at the first try: {_cell({'n': found['n'], **found['first_try']})}")
    if "tuned" in card.get("aims", {}):
        console.print(_aims_line(card))
    if card.get("recovery"):
        found = card["recovery"]
        console.print(
            f"one step made wrong in each of {found['n']} right answers: "
            f"{found['accuracy']['share'] or 0:.1%} right in the end, {found['heeded']['share'] or 0:.1%} heeded at once"
        )
    if any(len(found.get("by_steps", {})) > 1 for found in arms.get("tuned", {}).get("by_task", {}).values()):
        console.print(_by_steps(arms))
    reached = verdict.of(card)
    console.print(escape(reached.sentence), style=_STYLES[reached.tone])


def print_curves(found: Mapping[str, Any]) -> None:
    """The curves as tables, to stdout."""
    from rich.table import Table

    console = _console()
    for task, test in {"all": found["test_time"], **found["test_time_by_task"]}.items():
        table = Table(title=f"{task}: accuracy against tokens at test time")
        for name in ("arm", "tokens", "right"):
            table.add_column(name, justify="left" if name == "arm" else "right")
        for row in test["sequential"]:
            table.add_row(f"cut at {row['rung']}", f"{row['tokens']:.0f}", _cell(row, n=False))
        control = next(iter(test["parallel"]))
        for row in test["parallel"][control]:
            table.add_row(
                f"majority of {row['k']}, each cut at {control}",
                f"{row['tokens']:.0f}",
                _cell(row["majority"], n=False),
            )
        families = test["by_tries"]
        for row in families.get(task, next(iter(families.values()), ()) if not found["test_time_by_task"] else ()):
            table.add_row(f"within {row['tries']} tries", f"{row['tokens']:.0f}", _cell(row, n=False))
        console.print(table)
    if found["train_time"]:
        table = Table(title="accuracy against training")
        runs = len(found["train_time"]["runs"])
        for name in ("step", "tokens trained on", f"right, mean of {runs} runs" if runs > 1 else "right"):
            table.add_column(name, justify="right")
        for row in found["train_time"]["mean"]:
            table.add_row(str(row["step"]), f"{row['training_tokens']:,.0f}", _cell(row, n=False))
        console.print(table)
    s1 = found["test_time"]["s1"]
    console.print(
        f"n = {found['n']}, seed {found['seed']}, {found['ladder']['samples']} samples, temperature "
        f"{found['ladder']['temperature']:g}; control {s1['control']:.0%}, scaling "
        f"{100 * (s1['scaling_per_1000_tokens'] or 0):+.1f} points a 1,000 tokens, maximum {s1['maximum']:.1%}"
    )


def print_answer(path: Path) -> None:
    """The first right answer of an arm that was kept, or the first, to stdout: there to be read."""
    rows = records.read_jsonl(path)
    shown = next((row for row in rows if row["correct"]), rows[0] if rows else None)
    if shown is not None:
        judged = "right" if shown["correct"] else f"wrong, {shown['gold']} is right"
        print(f"\nOne of its answers ({judged}), to:\n{_quoted(shown['question'])}\n\n{_quoted(shown['text'])}\n")


def _aims_line(card: Mapping[str, Any]) -> str:
    """How the tuned arm reasons, in one line."""
    aims, found = card["aims"]["tuned"], card["reflection"]["tuned"]
    said = [
        f"{name.replace('_', ' ')} {aims[name]['share']:.1%}"
        for name in ("decomposition", "sequential_reasoning", "transparency")
        if aims[name]["share"] is not None
    ]
    if found["n"]:
        gained = f"{100 * aims['self_correction']['share']:+.1f} points"
        said.append(f"self-correction {gained} ({found['repaired']} repaired, {found['corrupted']} corrupted)")
    return f"how it reasons: {', '.join(said) or 'nothing stands between its tags'}"


def _by_steps(arms: Mapping[str, Any]) -> Any:
    """Accuracy by the number of steps that the gold solution takes, the tuned arm beside a base."""
    from rich.table import Table

    shown = [arm for arm in ("base_direct", "tuned") if arm in arms]
    table = Table(title="by steps of the solution")
    for name in ("family", "steps", "n"):
        table.add_column(name, justify="left" if name == "family" else "right")
    for arm in shown:
        table.add_column(arm, justify="right")
    table.add_column("", min_width=20)
    for task, found in arms["tuned"]["by_task"].items():
        for steps, cell in found["by_steps"].items():
            cells = [arms[arm]["by_task"][task]["by_steps"][steps] for arm in shown]
            bar = "█" * round(20 * cell["accuracy"])
            table.add_row(task, steps, str(cell["n"]), *(_cell(each, n=False) for each in cells), bar)
    return table


def _quoted(text: str, most: int = 30) -> str:
    lines = text.splitlines()
    cut = ["…"] if len(lines) > most else []
    return "\n".join(f"    {line}" for line in [*lines[:most], *cut])


def _cell(found: Mapping[str, Any], n: bool = True) -> str:
    low, high = found["ci95"]
    return f"{found['accuracy']:.1%} [{100 * low:.0f}, {100 * high:.0f}]" + (f" n={found['n']}" if n else "")


def _pair_line(card: Mapping[str, Any], pair: Mapping[str, Any]) -> str:
    low, high = pair["ci95"]
    return (
        f"{pair['before']} → {pair['after']}: {100 * pair['difference']:+.1f} points, 95% {100 * low:.1f} to {100 * high:.1f}; "
        f"{pair['gained']} gained, {pair['lost']} lost, McNemar p = {pair['mcnemar_p']:.2g}; "
        f"{verdict.detects(card['n'], pair['resolvable'])}"
    )


_LEVELS = {"fault": ("FAULT  ", "bold red"), "warning": ("warning", "yellow"), "note": ("note   ", "dim")}
_WIDTH = 80
"""Columns that findings and rows are wrapped to where stdout is no terminal and COLUMNS does not say."""


def print_findings(findings: Sequence[Finding]) -> None:
    """What `check` found, a paragraph each, faults first, to stdout."""
    from rich.text import Text

    console = _console()
    width = shutil.get_terminal_size((_WIDTH, 24)).columns
    for finding in findings:
        label, style = _LEVELS[finding.level]
        console.print(Text.assemble((label, style), " ", (finding.name, "bold")))
        body = f"{finding.where}: {finding.message}" if finding.where else finding.message
        console.print(Text(_wrapped(body, width)), soft_wrap=True)
        if finding.hint and finding.level != "note":
            console.print(Text(_wrapped(f"hint: {finding.hint}", width), style="dim"), soft_wrap=True)


def _wrapped(text: str, width: int) -> str:
    """Text under a finding's name; a path or command that is longer than a line stays whole, so that it can be copied."""
    paragraphs = (
        textwrap.wrap(line, max(width, 40), break_long_words=False, break_on_hyphens=False, initial_indent=" " * 8, subsequent_indent=" " * 8)
        for line in text.splitlines()
    )  # fmt: skip
    return "\n".join(itertools.chain.from_iterable(paragraphs))


_SECTION_STYLES = {"thinking": "blue", "reflection": "magenta", "output": "bold green", None: ""}


def print_rows(rows: Sequence[InspectedRow]) -> None:
    """Rows as the model sees them, to stdout: coloured in a terminal, in named blocks elsewhere."""
    from rich.text import Text

    console = _console()
    for row in rows:
        console.print(Text(f"{row.where}: {row.why}", style="bold"))
        if row.rejected:
            console.print(Text(f"not trained on: {row.rejected}\n", style="red"))
            continue
        console.print(Text(f"{row.tokens} tokens, {row.supervised} with loss", style="dim"))
        if console.is_terminal:
            console.print(Text.assemble(*((segment.text, _style(segment)) for segment in row.segments)))
        else:
            print(row.as_blocks())
        console.print()
    if console.is_terminal:
        parts = [("no loss", "dim"), ("thinking", "blue"), ("reflection", "magenta"), ("output", "bold green")]
        parts += [("control token", "reverse"), ("corrupted step", "red strike")]
        console.print(Text("  ").join(Text(*part) for part in parts))


def _style(segment: Segment) -> str:
    styles = [_SECTION_STYLES[segment.section]] if segment.loss else ["dim"]
    return " ".join(
        [*styles, *(["reverse"] if segment.control else []), *(["red strike"] if segment.corrupted else [])]
    )
