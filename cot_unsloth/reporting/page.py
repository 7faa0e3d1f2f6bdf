"""Result pages: a common design for `report.html` and for the tables and figures of comparisons, sweeps and transfers.

A page has no scripts and fetches nothing, so that it can be mailed, printed, and opened years later. A `Grid` is the same
table in a page and in a terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cot_unsloth.config import ASSETS
from cot_unsloth.core import statistics, terminal
from cot_unsloth.core.results import Tone
from cot_unsloth.reporting.columns import fitted, is_whole
from cot_unsloth.storage import atomic

if TYPE_CHECKING:
    import jinja2

STYLES: Mapping[Tone, str] = {"good": "bold green", "bad": "bold red", "neutral": "bold"}
"""Terminal style of a result; no colour if nothing was shown."""
_COLUMNS = 80
"""Width of a table where stdout is not a terminal."""


@dataclass(frozen=True)
class Grid:
    """A table: texts in rows, the first column to the left, the others to the right."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Page:
    """The content of a page, in order."""

    title: str
    sentence: str
    """The result, in large type."""
    tone: Tone = "neutral"
    notes: Sequence[str] = ()
    """Paragraphs under the result."""
    grids: Sequence[Grid] = ()
    figures: Sequence[str] = ()
    """SVG."""
    details: Sequence[tuple[str, str]] = field(default=())
    """Titles and texts that a click opens."""

    def write(self, path: Path) -> Path:
        """Write it completely or not at all.

        Raises:
            OSError: it cannot be written.
        """
        from markupsafe import Markup

        template = environment().get_template("page.html.j2")
        atomic.write_text(path, template.render(page=self, figures=[Markup(svg) for svg in self.figures]))
        return path

    def print(self) -> None:
        """Print the result, tables and notes to stdout, at 80 columns if it is not a terminal."""
        from rich import box
        from rich.table import Table

        console = terminal.console(width=None if sys.stdout.isatty() else _COLUMNS)
        console.print(self.sentence, style=STYLES[self.tone], markup=False)
        for grid in self.grids:
            console.print()
            if grid.caption:
                console.print(grid.caption, markup=False)
            rows: Sequence[Sequence[str]] = [grid.columns, *grid.rows]
            if console.is_terminal:  # elsewhere names are whole, in several lines
                rows = fitted(rows, console.width)
            table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
            for number, (column, *cells) in enumerate(zip(*rows, strict=True)):
                table.add_column(
                    column, justify="right" if number else "left", overflow="fold", no_wrap=is_whole([column, *cells])
                )
            for row in rows[1:]:
                table.add_row(*row)
            console.print(table, markup=False)
        for line in self.notes:
            console.print(line, markup=False)


def environment() -> jinja2.Environment:
    """Where templates of pages are found, and how they are filled in."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def percent(value: float | None) -> str:
    """A share: 12.3%, or a dash where there is none."""
    return "–" if value is None else statistics.percent(value)


def interval(pair: Sequence[float]) -> str:
    """An interval of shares, in per cent."""
    return f"{100 * pair[0]:.1f} to {100 * pair[1]:.1f}"


def points(value: float | None) -> str:
    """A difference of shares, in points."""
    return "–" if value is None else f"{100 * value:+.1f}"
