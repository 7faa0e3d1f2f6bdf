"""Progress on stderr: notes, and bars for long work, which are live on a terminal and a line now and then elsewhere.

Notes, and the time that work took, are logged as well.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from cot_unsloth.core.logs import LOG
from cot_unsloth.core.terminal import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

QUIET_SECONDS = 15.0
"""Seconds between lines where stderr is not a terminal."""


class Bar(Protocol):
    """Progress of one piece of work."""

    def advance(self, amount: int = 1, **facts: str) -> None:
        """Count `amount` more as done; `facts` are shown beside the count until they change."""
        ...

    def restart(self, total: int, done: int = 0) -> None:
        """Set the total, once it is known, and how much was done before this process."""
        ...


def size(count: float) -> str:
    """Bytes as text.

    >>> size(3 * 2**29), size(7 * 2**20)
    ('1.5 GiB', '7 MiB')
    """
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def memory() -> str:
    """Resident memory of this process, as text."""
    import psutil

    return size(psutil.Process().memory_info().rss)


_COLLECTED: list[list[str]] = []
"""Lists that notes go to instead of stderr; the last one takes them."""


def note(text: str) -> None:
    """Print one line to stderr, and log it."""
    LOG.info("%s", text, extra={"printed": not _COLLECTED})
    if _COLLECTED:
        _COLLECTED[-1].append(text)
    else:
        print(printable(text), file=sys.stderr, flush=True)


@contextlib.contextmanager
def collected() -> Iterator[list[str]]:
    """Collect notes instead of printing them."""
    notes: list[str] = []
    _COLLECTED.append(notes)
    try:
        yield notes
    finally:
        _COLLECTED.remove(notes)


@contextlib.contextmanager
def bar(title: str, total: int | None = None) -> Iterator[Bar]:
    """Show the progress of the work in the block."""
    began = time.monotonic()
    LOG.debug("%s: begins", title)
    if sys.stderr.isatty():
        with _live(title, total) as live:
            yield live
    else:
        plain = _PlainBar(title, total)
        yield plain
        plain.end()
    LOG.info("%s: took %.1f s", title, time.monotonic() - began)


@contextlib.contextmanager
def _live(title: str, total: int | None) -> Iterator[Bar]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    wide = console.width >= 110
    columns = (
        TextColumn("{task.description:<18}" if wide else "{task.description}"),
        BarColumn(bar_width=24 if wide else 8),
        MofNCompleteColumn(),
        *((TimeElapsedColumn(),) if wide else ()),
        TimeRemainingColumn(),
        TextColumn("{task.fields[facts]}"),
    )
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        yield _LiveBar(progress, progress.add_task(printable(title), total=total, facts=""))


class _LiveBar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task
        self._facts: dict[str, str] = {}

    def advance(self, amount: int = 1, **facts: str) -> None:
        self._facts |= facts
        self._progress.update(self._task, advance=amount, facts=_joined(self._facts))

    def restart(self, total: int, done: int = 0) -> None:
        self._progress.update(self._task, total=total, completed=done)


class _PlainBar:
    """A line every QUIET_SECONDS, and a last one."""

    def __init__(self, title: str, total: int | None) -> None:
        self._title, self._total, self._done = title, total, 0
        self._began = self._printed_at = time.monotonic()
        self._printed = -1
        """The count of the last line."""
        self._facts: dict[str, str] = {}

    def advance(self, amount: int = 1, **facts: str) -> None:
        self._done += amount
        self._facts |= facts
        if time.monotonic() - self._printed_at >= QUIET_SECONDS:
            self._printed_at = time.monotonic()
            self._print()

    def restart(self, total: int, done: int = 0) -> None:
        self._total, self._done = total, done

    def end(self) -> None:
        if self._printed != self._done:
            self._print()

    def _print(self) -> None:
        self._printed = self._done
        of = f"/{self._total}" if self._total is not None else ""
        count = f"{self._done}{of} in " if of or self._done else ""
        seconds = time.monotonic() - self._began
        line = f"{self._title}: {count}{seconds:.0f} s  {_joined(self._facts)}".rstrip()
        print(printable(line), file=sys.stderr, flush=True)


def _joined(facts: dict[str, str]) -> str:
    return printable("  ".join(f"{name} {value}" for name, value in facts.items()))
