"""Scorecards, curves, findings and rows as text in a terminal, on stdout."""

from __future__ import annotations

import itertools
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cot_unsloth.core import arm_names, terminal, verdict
from cot_unsloth.core.findings import Finding
from cot_unsloth.core.results import (
    Curves,
    Interval,
    Recovery,
    Scorecard,
)
from cot_unsloth.core.results.curves import TestTimeCurve, TrainingCurve, TriesPoint
from cot_unsloth.core.statistics import percent
from cot_unsloth.prompts.inspection import InspectedRow, Segment
from cot_unsloth.reporting import answers, wording
from cot_unsloth.reporting.columns import cut
from cot_unsloth.reporting.page import STYLES
from cot_unsloth.storage import records

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_WIDTH = 80
"""Width of tables and wrapped text if stdout is not a terminal."""


def _console() -> Console:
    """A console on stdout, with 80 columns if it is not a terminal."""
    return terminal.console(width=None if sys.stdout.isatty() else _WIDTH)


def print_lines(lines: Sequence[str]) -> None:
    """Lines of plain text, wrapped at spaces, to stdout."""
    console = _console()
    for line in lines:
        console.print(line, markup=False)


def print_scorecard(card: Scorecard) -> None:
    """Print the result in a line, the table of arms, and the verdict with its details to stdout."""
    console, reached = _console(), verdict.of(card)
    console.print(verdict.headline(card), style=STYLES[reached.tone], markup=False)
    for table in (_arms_table(card), *_task_tables(card)):
        console.print(table)
        console.print()
    for line in _details(card):
        console.print(line, markup=False)
    console.print(reached.sentence, style=STYLES[reached.tone], markup=False)
    if reached.hint:
        console.print(reached.hint, markup=False)


def _details(card: Scorecard) -> Iterator[str]:
    """Lines on how the figures were made, and on other measurements."""
    decoding = card.decoding
    yield (
        f"{card.model} on {verdict.scored_on(card)}; n = {card.n}, seed {card.seed}, temperature {decoding.temperature:g}, at most "
        f"{decoding.max_new_tokens} new tokens"
    )
    yield (
        "[low, high]: Wilson's 95% interval in per cent; format: answers with every section, opened and closed; cut: answers "
        "that reached the token limit"
    )
    if readings := verdict.readings(card):
        yield readings
    for task, result in (card.arms["tuned"].by_task if "tuned" in card.arms else {}).items():
        if result.first_try:
            yield f"{task}, right at the first try: {_cell(result.first_try, result.n)}"
    if "tuned" in card.aims:
        yield from _aims_lines(card)
    if card.recovery:
        yield _recovery_line(card.recovery)
    if card.forgetting:
        yield verdict.forgetting(card.forgetting)


def _plain_table(title: str, columns: Sequence[str], longest: int | None = None) -> Table:
    """A table without side borders, its first column to the left; `longest` limits the width of that one."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=title or None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
    )
    for number, name in enumerate(columns):
        table.add_column(
            name,
            justify="right" if number and name else "left",
            max_width=None if number else longest,
            no_wrap=bool(number),
            overflow="fold",
        )
    return table


def _short(names: Sequence[str], longest: int) -> list[str]:
    """Names in a terminal, cut in the middle; elsewhere they are whole, in several lines."""
    return cut(names, longest) if sys.stdout.isatty() else list(names)


def _arms_table(card: Scorecard) -> Table:
    """One row an arm. The last column is what the tuned arm has over it, with the word that its colour stands for."""
    from rich.text import Text

    pairs = _pairs_with_tuned(card)
    columns = ["arm", "right", "95%", "format", "cut", "tokens"]
    table = _plain_table("", [*columns, *(["tuned has"] if pairs else [])], longest=24)
    titles = _short([arm_names.title(name) for name in card.arms], 24)
    for (name, arm), title in zip(card.arms.items(), titles, strict=True):
        low, high = arm.ci95
        table.add_row(
            Text(title, style="bold" if name == "tuned" else ""),
            percent(arm.accuracy),
            f"[{100 * low:.0f}, {100 * high:.0f}]",
            percent(arm.format_valid),
            percent(arm.truncated),
            f"{arm.mean_tokens:.0f}",
            *([pairs.get(name, "")] if pairs else []),
        )
    return table


def _pairs_with_tuned(card: Scorecard) -> Mapping[str, Text]:
    """By arm, the points that the tuned arm has over it, and whether that is significant."""
    from rich.text import Text

    shown = {}
    for pair in verdict.over(card):
        word, tone = verdict.compared(pair)
        shown[pair.before] = Text(f"{100 * pair.difference + 0.0:+.1f} {word}", style=STYLES[tone])
    return shown


def _task_tables(card: Scorecard) -> Iterator[Table]:
    """Accuracy by task, where there are several: the base arm of the verdict beside the tuned one, or the first arms."""
    from rich.markup import escape

    tasks = list(next(iter(card.arms.values())).by_task) if card.arms else []
    if len(tasks) < 2:
        return
    compared = [arm for arm in (verdict.of(card).before, "tuned") if arm in card.arms]
    arms = compared if len(compared) == 2 else list(card.arms)[:3]
    bars = len(arms) == 2
    table = _plain_table(
        "",
        ["task", "n", *(arm_names.title(arm).replace(", ", ",\n") for arm in arms), *([""] if bars else [])],
        longest=20,
    )
    for task, name in zip(tasks, _short(tasks, 20), strict=True):
        results = [card.arms[arm].by_task[task] for arm in arms]
        bar = ["█" * round(10 * results[-1].accuracy)] if bars else []
        table.add_row(escape(name), str(results[0].n), *(escape(_cell(result)) for result in results), *bar)
    yield table


def print_curves(curves: Curves) -> None:
    """The curves as tables, to stdout, the result in the first line."""
    console = _console()
    chain, s1 = curves.test_time.sequential, curves.test_time.s1
    console.print(
        f"{percent(chain[0].accuracy)} right at {chain[0].tokens:.0f} tokens → {percent(chain[-1].accuracy)} at "
        f"{chain[-1].tokens:.0f} tokens, n = {curves.n}",
        style="bold",
    )
    for task, curve in {"all": curves.test_time, **curves.test_time_by_task}.items():
        tries = curve.by_tries.get(task, ())
        if not curves.test_time_by_task:  # a single task, which "all" is
            tries = next(iter(curve.by_tries.values()), ())
        console.print(_test_time_table(task, curve, tries))
    if curves.train_time:
        console.print(_training_table(curves.train_time))
    slope = s1.scaling_per_1000_tokens
    scaling = "" if slope is None else f"scaling {100 * slope:+.1f} points a 1,000 tokens, "
    console.print(
        f"n = {curves.n}, seed {curves.seed}, {curves.budgets.samples} samples, temperature "
        f"{curves.budgets.temperature:g}; control {s1.control:.0%}, {scaling}"
        f"maximum {percent(s1.maximum)}"
    )


def _test_time_table(task: str, curve: TestTimeCurve, tries: Sequence[TriesPoint]) -> Table:
    from rich.markup import escape

    table = _plain_table(f"{escape(task)}: accuracy against tokens at test time", ("arm", "tokens", "right"))
    for point in curve.sequential:
        table.add_row(f"cut at {point.name}", f"{point.tokens:.0f}", escape(_cell(point)))
    control = next(iter(curve.parallel))
    for several in curve.parallel[control]:
        table.add_row(
            f"majority of {several.k}, each cut at {control}", f"{several.tokens:.0f}", escape(_cell(several.majority))
        )
    for attempt in tries:
        table.add_row(f"within {attempt.tries} tries", f"{attempt.tokens:.0f}", escape(_cell(attempt)))
    return table


def _training_table(curve: TrainingCurve) -> Table:
    from rich.markup import escape

    runs = len(curve.runs)
    right = f"right, mean of {runs} runs" if runs > 1 else "right"
    table = _plain_table("accuracy against training", ("step", "tokens trained on", right))
    for point in curve.mean:
        table.add_row(str(point.step), f"{point.training_tokens:,.0f}", escape(_cell(point)))
    return table


def print_answer(path: Path, corrected: Sequence[str] = ()) -> None:
    """Print an answer of the tuned model: the best example, and what is wrong with it if there is no good one.

    Args:
        path: its completions.
        corrected: as in `answers.example`.
    """
    answer = answers.example(records.read_completions(path), corrected)
    if answer is None:
        return
    judged, note = ("right" if answer.correct else f"wrong; the right answer is {answer.gold}"), ""
    if blemishes := answers.blemishes(answer):
        judged = "; ".join([judged, *(blemish for blemish in blemishes if blemish != "wrong")])
        note = "None of its answers is right, complete and ended by itself.\n"
    title = f"\n{note}An answer of the tuned model ({judged}), to the question:"
    print(terminal.printable(f"{title}\n{_quoted(answer.question)}\n\n{_quoted(answer.text)}\n"))


def _aims_lines(card: Scorecard) -> Iterator[str]:
    """Lines on how the tuned arm reasons: one for each measure, with an explanation."""
    shown = {name: wording.measured(card, "tuned", name) for name in wording.MEASURES}
    if not any(of for _, of in shown.values()):
        yield "How it reasons: not measured, no answer has thinking in its tags"
        return
    yield "How it reasons:"
    for name, (figure, of) in shown.items():
        says, counts = wording.MEASURES[name], card.reflection["tuned"]
        if name == "self_correction":
            says = f"points: {counts.repaired} repaired, {counts.corrupted} corrupted"
        if of:
            yield f"  {wording.aim(name):<20} {figure:>6} {of:<7}  {says}"


def _recovery_line(recovery: Recovery) -> str:
    at_once = "" if recovery.detected.share is None else f", {percent(recovery.detected.share)} detected immediately"
    right = "" if recovery.accuracy.share is None else f": {percent(recovery.accuracy.share)} right in the end{at_once}"
    return f"one step corrupted in each of {recovery.n} right answers{right}"


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
    return f"{percent(result.accuracy)} [{100 * low:.0f}, {100 * high:.0f}]" + (f" n={n}" if n is not None else "")


_LEVELS = {"fault": ("FAULT  ", "bold red"), "warning": ("warning", "yellow"), "note": ("note   ", "dim")}


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
        # Not wrapped: a path stays in one piece.
        console.print(Text(f"{row.where}: {row.why}", style="bold"), soft_wrap=True)
        if row.rejected:
            console.print(Text(f"not trained on: {row.rejected}\n", style="red"), soft_wrap=True)
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
