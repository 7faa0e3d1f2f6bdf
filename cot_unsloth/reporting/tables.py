"""Scorecards, curves, findings and rows as text in a terminal, on stdout."""

from __future__ import annotations

import itertools
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cot_unsloth.core import terminal, verdict
from cot_unsloth.core.findings import Finding
from cot_unsloth.core.results import (
    Aims,
    ArmResult,
    Curves,
    Interval,
    Paired,
    Recovery,
    ReflectionMetrics,
    Scorecard,
    Tone,
)
from cot_unsloth.core.results.curves import TestTimeCurve, TrainingCurve, TriesPoint
from cot_unsloth.prompts.inspection import InspectedRow, Segment
from cot_unsloth.storage import records

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_STYLES: Mapping[Tone, str] = {"good": "bold green", "bad": "bold red", "neutral": "bold"}


def _console() -> Console:
    """Stdout, wide enough for a table where it is no terminal."""
    return terminal.console(width=None if sys.stdout.isatty() else 120)


def print_lines(lines: Sequence[str]) -> None:
    """Lines of plain text, wrapped at spaces, to stdout."""
    console = _console()
    for line in lines:
        console.print(line, markup=False)


def print_scorecard(card: Scorecard) -> None:
    """The table of arms, one column a task, and the paired comparison, to stdout."""
    from rich.markup import escape

    console = _console()
    console.print(_arms_table(card))
    decoding = card.decoding
    console.print(
        f"n = {card.n}, seed {card.seed}, temperature {decoding.temperature:g}, at most {decoding.max_new_tokens} new "
        "tokens; \\[low, high] is Wilson's 95% interval"
    )
    if readings := verdict.readings(card):
        console.print(escape(readings))
    for pair in card.paired:
        console.print(_pair_line(card, pair))
    tuned = card.arms["tuned"].by_task if "tuned" in card.arms else {}
    for task, result in tuned.items():
        if result.first_try:
            console.print(f"{task}, right at the first try: {_cell(result.first_try, result.n)}")
    if "tuned" in card.aims:
        console.print(_aims_line(card.aims["tuned"], card.reflection["tuned"]))
    if card.recovery:
        console.print(_recovery_line(card.recovery))
    if card.forgetting:
        console.print(verdict.forgetting(card.forgetting))
    if any(len(result.by_steps) > 1 for result in tuned.values()):
        console.print(_by_steps(card.arms))
    reached = verdict.of(card)
    console.print(escape(reached.sentence), style=_STYLES[reached.tone])


def _arms_table(card: Scorecard) -> Table:
    from rich.table import Table

    tasks = list(next(iter(card.arms.values())).by_task) if card.arms else []
    if len(tasks) == 1:
        tasks = []  # its column would repeat the first
    table = Table(title=f"{card.model} on {card.dataset}")
    table.add_column("arm")
    for name in ["all", *tasks, "format", "cut off", "tokens"]:
        table.add_column(name, justify="right")
    for name, arm in card.arms.items():
        table.add_row(
            name,
            _cell(arm, arm.n),
            *(_cell(arm.by_task[task], arm.by_task[task].n) for task in tasks),
            f"{arm.format_valid:.1%}",
            f"{arm.truncated:.1%}",
            f"{arm.mean_tokens:.0f}",
        )
    return table


def print_curves(curves: Curves) -> None:
    """The curves as tables, to stdout."""
    console = _console()
    for task, curve in {"all": curves.test_time, **curves.test_time_by_task}.items():
        tries = curve.by_tries.get(task, ())
        if not curves.test_time_by_task:  # a single task, which "all" is
            tries = next(iter(curve.by_tries.values()), ())
        console.print(_test_time_table(task, curve, tries))
    if curves.train_time:
        console.print(_training_table(curves.train_time))
    s1 = curves.test_time.s1
    console.print(
        f"n = {curves.n}, seed {curves.seed}, {curves.budgets.samples} samples, temperature "
        f"{curves.budgets.temperature:g}; control {s1.control:.0%}, scaling "
        f"{100 * (s1.scaling_per_1000_tokens or 0):+.1f} points a 1,000 tokens, maximum {s1.maximum:.1%}"
    )


def _test_time_table(task: str, curve: TestTimeCurve, tries: Sequence[TriesPoint]) -> Table:
    from rich.table import Table

    table = Table(title=f"{task}: accuracy against tokens at test time")
    for name in ("arm", "tokens", "right"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for point in curve.sequential:
        table.add_row(f"cut at {point.name}", f"{point.tokens:.0f}", _cell(point))
    control = next(iter(curve.parallel))
    for several in curve.parallel[control]:
        table.add_row(
            f"majority of {several.k}, each cut at {control}", f"{several.tokens:.0f}", _cell(several.majority)
        )
    for attempt in tries:
        table.add_row(f"within {attempt.tries} tries", f"{attempt.tokens:.0f}", _cell(attempt))
    return table


def _training_table(curve: TrainingCurve) -> Table:
    from rich.table import Table

    table = Table(title="accuracy against training")
    runs = len(curve.runs)
    for name in ("step", "tokens trained on", f"right, mean of {runs} runs" if runs > 1 else "right"):
        table.add_column(name, justify="right")
    for point in curve.mean:
        table.add_row(str(point.step), f"{point.training_tokens:,.0f}", _cell(point))
    return table


def print_answer(path: Path) -> None:
    """Print one answer of the tuned model: the first right one, or the first if none is right."""
    rows = records.read_jsonl(path)
    shown = next((row for row in rows if row["correct"]), rows[0] if rows else None)
    if shown is not None:
        judged = "right" if shown["correct"] else f"wrong; the right answer is {shown['gold']}"
        print(
            f"\nAn answer of the tuned model ({judged}), to the question:\n{_quoted(shown['question'])}\n\n{_quoted(shown['text'])}\n"
        )


def _aims_line(aims: Aims, reflection: ReflectionMetrics) -> str:
    """How the tuned arm reasons, in one line."""
    shares = {
        "decomposition": aims.decomposition,
        "sequential reasoning": aims.sequential_reasoning,
        "transparency": aims.transparency,
    }
    figures = [f"{name} {share.share:.1%}" for name, share in shares.items() if share.share is not None]
    if reflection.n:
        gained = f"{100 * (aims.self_correction.share or 0):+.1f} points"
        figures.append(f"self-correction {gained} ({reflection.repaired} repaired, {reflection.corrupted} corrupted)")
    return f"how it reasons: {', '.join(figures) or 'not measured, no completion has thinking in its tags'}"


def _recovery_line(recovery: Recovery) -> str:
    return (
        f"one step corrupted in each of {recovery.n} right answers: "
        f"{recovery.accuracy.share or 0:.1%} right in the end, {recovery.detected.share or 0:.1%} detected at once"
    )


def _by_steps(arms: Mapping[str, ArmResult]) -> Table:
    """Accuracy by the number of steps that the gold solution takes, the tuned arm beside a base."""
    from rich.table import Table

    shown = [arms[arm] for arm in ("base_direct", "tuned") if arm in arms]
    table = Table(title="by steps of the solution")
    for name in ("task", "steps", "n"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for name in ("base_direct", "tuned"):
        if name in arms:
            table.add_column(name, justify="right")
    table.add_column("", min_width=20)
    for task, result in arms["tuned"].by_task.items():
        for steps, tuned in result.by_steps.items():
            bar = "█" * round(20 * tuned.accuracy)
            cells = [_cell(arm.by_task[task].by_steps[steps]) for arm in shown]
            table.add_row(task, steps, str(tuned.n), *cells, bar)
    return table


def _quoted(text: str, most: int = 30) -> str:
    lines = text.splitlines()
    cut = ["…"] if len(lines) > most else []
    return "\n".join(f"    {line}" for line in [*lines[:most], *cut])


class _Scored(Protocol):
    """Anything with an accuracy and its interval."""

    @property
    def accuracy(self) -> float: ...
    @property
    def ci95(self) -> Interval: ...


def _cell(result: _Scored, n: int | None = None) -> str:
    low, high = result.ci95
    return f"{result.accuracy:.1%} [{100 * low:.0f}, {100 * high:.0f}]" + (f" n={n}" if n is not None else "")


def _pair_line(card: Scorecard, pair: Paired) -> str:
    low, high = pair.ci95
    return (
        f"{pair.before} → {pair.after}: {100 * pair.difference:+.1f} points, 95% {100 * low:.1f} to {100 * high:.1f}; "
        f"{pair.gained} gained, {pair.lost} lost, McNemar p = {pair.mcnemar_p:.2g}; "
        f"{verdict.detects(card.n, pair.resolvable)}"
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
            print(terminal.printable(row.as_blocks()))
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
