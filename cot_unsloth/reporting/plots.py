"""Line plots, histograms, bar charts and heat maps as SVG, for reports and curves.

Text in them stays text, so that a page can be searched and read by a screen reader. Matplotlib is imported when the first
figure is drawn, which keeps commands without figures fast.
"""

from __future__ import annotations

import io
import itertools
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COLOURS = ("#0b6e99", "#c2571a", "#5a7d2a", "#7a4fa3", "#6b6b6b", "#b0306a")
"""Colours of lines, in order; they also differ in lightness, for print and for colour-blind readers."""


@dataclass(frozen=True)
class Line:
    """A curve and its uncertainty."""

    label: str
    points: Sequence[tuple[float, float]]
    intervals: Sequence[tuple[float, float]] = ()
    """Lower and upper bound of each point; empty where there are none."""
    dashed: bool = False


@dataclass(frozen=True)
class Axes:
    """Labels and scales of the axes."""

    x: str
    y: str
    log_x: bool = False
    share: bool = False
    """Whether y is a share, shown in per cent from 0 to 1."""
    markers: bool = True
    whole_x: bool = False
    """Whether x has ticks only at whole numbers."""


def lines(title: str, curves: Sequence[Line], axes: Axes, save: Path | None = None, source: str = "") -> str:
    """Curves with their intervals, as SVG; where `save` names a PNG it is written too, with its `source` in it."""
    figure, plot = _figure(title)
    for number, curve in enumerate(curves):
        if not curve.points:
            continue
        colour = COLOURS[number % len(COLOURS)]
        xs, ys = zip(*curve.points, strict=True)
        style = "--" if curve.dashed else "-"
        plot.plot(xs, ys, style, color=colour, label=curve.label, marker="o" if axes.markers else None, markersize=4)
        if curve.intervals:
            low, high = zip(*curve.intervals, strict=True)
            plot.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)
    _finish(plot, axes, legend=len(curves) > 1)
    return _svg(figure, save, source)


def histogram(title: str, groups: Sequence[tuple[str, Sequence[float]]], axes: Axes) -> str:
    """Histogram of each group, one over the other, as SVG."""
    figure, plot = _figure(title)
    most = max((value for _, values in groups for value in values), default=1.0)
    for number, (label, values) in enumerate(groups):
        if values:
            plot.hist(
                values, bins=30, range=(0, most), histtype="stepfilled", alpha=0.35, color=COLOURS[number], label=label
            )
    _finish(plot, axes, legend=len(groups) > 1)
    return _svg(figure)


def bars(title: str, rows: Sequence[tuple[str, float, tuple[float, float]]], axes: Axes) -> str:
    """Shares with their intervals, one bar a row, as SVG."""
    figure, plot = _figure(title, height=0.6 + 0.42 * len(rows))
    heights = range(len(rows))[::-1]  # the first row at the top
    for height_, (_, value, (low, high)) in zip(heights, rows, strict=True):
        plot.barh(height_, value, color=COLOURS[0], height=0.62)
        plot.plot([low, high], [height_, height_], color="#222", linewidth=1.4)
    plot.set_yticks(list(heights), [label for label, *_ in rows])
    plot.set_xlim(0, 1)
    _in_per_cent(plot.xaxis)
    plot.set_xlabel(axes.x)
    return _svg(figure)


def attempts(
    title: str, solved: Sequence[int], points: Sequence[tuple[float, float, tuple[float, float]]], save: Path
) -> None:
    """Problems by how many attempts at them are right, beside pass@k with its intervals, as a PNG.

    Args:
        title: of the figure.
        solved: for 0, 1, ..., k right attempts, the number of problems.
        points: k, pass@k and its interval.
        save: the file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    figure.suptitle(title, fontsize=11)
    left, right = figure.subplots(1, 2)
    left.bar(range(len(solved)), solved, color=COLOURS[0], width=0.8)
    left.set_xlabel(f"right attempts of {len(solved) - 1}")
    left.set_ylabel("problems")
    left.xaxis.get_major_locator().set_params(integer=True)
    ks, shares, intervals = zip(*points, strict=True)
    right.plot(ks, shares, "-o", color=COLOURS[1], markersize=4)
    right.fill_between(ks, *zip(*intervals, strict=True), color=COLOURS[1], alpha=0.15, linewidth=0)
    _finish(right, Axes("k attempts", "pass@k", log_x=True, share=True), legend=False)
    for plot in (left, right):
        plot.spines[["top", "right"]].set_visible(False)
        plot.grid(alpha=0.25)
    save.parent.mkdir(parents=True, exist_ok=True)
    _plain_text(figure)
    figure.savefig(save, dpi=150)


def _plain_text(figure: Any) -> None:
    """Draw every text as it is: matplotlib would take what is between two dollar signs for a formula."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)


def _figure(title: str, height: float = 3.2) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, height), layout="constrained")  # small, so that its text can be read on a phone
    plot = figure.add_subplot()
    plot.set_title(title, loc="left", fontsize=11)
    plot.spines[["top", "right"]].set_visible(False)
    plot.grid(alpha=0.25)
    return figure, plot


def _finish(plot: Any, axes: Axes, *, legend: bool) -> None:
    plot.set_xlabel(axes.x)
    plot.set_ylabel(axes.y)
    if axes.log_x:
        plot.set_xscale("log", base=2)
        plot.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if axes.whole_x:
        plot.xaxis.get_major_locator().set_params(integer=True)
    if axes.share:
        plot.set_ylim(0, 1)
        _in_per_cent(plot.yaxis)
    if legend:
        plot.legend(frameon=False, fontsize=9)


def _in_per_cent(axis: Any) -> None:
    """Ticks of shares in per cent, with as many decimals as they need: 3.5% and 4.0%, not 4% twice."""

    def text(value: float, _: object) -> str:
        ticks = [100 * tick for tick in axis.get_majorticklocs()]
        exact = (digits for digits in range(4) if all(abs(tick - round(tick, digits)) < 1e-6 for tick in ticks))
        return f"{100 * value:.{next(exact, 4)}f}%"

    axis.set_major_formatter(text)


def _svg(figure: Any, save: Path | None = None, source: str = "") -> str:
    """The figure as an element of a page: no XML prologue, no fixed size. The same figure gives the same text."""
    import matplotlib

    _plain_text(figure)
    with (
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cot_unsloth"}),
        warnings.catch_warnings(),
    ):
        # Of scripts that matplotlib's own font has not: in an SVG they are text, in the reader's fonts.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
        if save is not None:
            figure.savefig(save, dpi=150, metadata={"Source": source})
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    # In a page, black is the colour of its text and lines have the colours of its style sheet, dark ones too.
    drawn = re.sub(r"#000000|#222222", "currentColor", drawn)
    for number, colour in enumerate(COLOURS, start=1):
        drawn = drawn.replace(colour, f"var(--series-{number}, {colour})")
    return re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", drawn, count=1), count=1
    )


@dataclass(frozen=True)
class Panel:
    """Points over one setting."""

    name: str
    points: Sequence[tuple[float | str, float]]
    """Its value, a number or a name, and a share."""
    log: bool = False


def panels(title: str, drawn: Sequence[Panel], y: str) -> str:
    """A panel for each setting, three in a row, with shares over its values, as SVG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    rows = -(-len(drawn) // 3)
    figure = Figure(figsize=(8.4, 0.5 + 2.3 * rows), layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    grid = figure.subplots(rows, 3, squeeze=False, sharey=True).flat
    for plot, panel in itertools.zip_longest(grid, drawn):
        if panel is None:
            plot.set_axis_off()
            continue
        values, shares = zip(*panel.points, strict=True) if panel.points else ((), ())
        names = [str(value) for value in values] if any(isinstance(value, str) for value in values) else values
        plot.plot(names, shares, "o", color=COLOURS[0], alpha=0.7, markersize=5)
        if panel.log:
            plot.set_xscale("log")
            plot.xaxis.set_major_formatter(LogFormatter())  # 1e-04: the default writes a formula
            plot.xaxis.set_minor_formatter(LogFormatter())
        elif names is values:
            plot.locator_params(axis="x", nbins=4)  # more labels of a small rate than these overlap
        plot.set_xlabel(panel.name)
        _in_per_cent(plot.yaxis)
        plot.tick_params(axis="x", labelrotation=20 if names is not values else 0, labelsize=8)
        plot.spines[["top", "right"]].set_visible(False)
        plot.grid(alpha=0.25)
    figure.supylabel(y, fontsize=10)
    return _svg(figure)


@dataclass(frozen=True)
class Heat:
    """One field of a heat map."""

    colour: float
    """-1 to 1; 0 is white."""
    text: str


def heat_map(
    title: str, rows: Sequence[str], columns: Sequence[str], fields: Sequence[Sequence[Heat]], scale: str, save: Path
) -> str:
    """Fields in rows and columns, coloured from red through white to blue, as SVG and as a PNG.

    Args:
        title: of the figure.
        rows: their names, from the top.
        columns: their names.
        fields: of each row.
        scale: what the colours show, in points.
        save: the PNG's file.
    """
    figure, plot = _figure(title, height=1.6 + 0.36 * len(rows))
    figure.set_size_inches(2.6 + 0.95 * len(columns), figure.get_size_inches()[1])
    plot.grid(visible=False)
    plot.spines[:].set_visible(False)
    # Red and blue differ for colour-blind readers too, and the figures are written in the fields.
    image = plot.imshow(
        [[field.colour for field in row] for row in fields], cmap="RdBu", vmin=-1, vmax=1, aspect="auto"
    )
    for y, row in enumerate(fields):
        for x, field in enumerate(row):
            # Not #222, which `_svg` makes the colour of the page's text: the fields are as light on a dark page.
            colour = "white" if abs(field.colour) > 0.6 else "#1b1b1b"
            plot.text(x, y, field.text, ha="center", va="center", fontsize=9, color=colour)
    slanted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if max(map(len, columns)) > 10 else {}
    plot.set_xticks(range(len(columns)), columns, fontsize=9, **slanted)
    plot.set_yticks(range(len(rows)), rows, fontsize=9)
    plot.tick_params(length=0)
    legend = figure.colorbar(
        image, ax=plot, format=lambda value, _: f"{100 * value:+.0f}" if value else "0", ticks=[-1, -0.5, 0, 0.5, 1]
    )
    legend.set_label(scale, fontsize=9)
    legend.outline.set_visible(False)
    save.parent.mkdir(parents=True, exist_ok=True)
    return _svg(figure, save, title)
