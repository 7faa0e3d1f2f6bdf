"""Progress of long work, on stderr: live bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any, Protocol

QUIET_SECONDS = 15.0
"""Seconds between lines where stderr is no terminal."""


class Bar(Protocol):
    """One piece of work under way."""

    def advance(self, amount: int = 1, **facts: str) -> None:
        """Note progress; `facts` are shown beside it and stay until they change."""
        ...

    def restart(self, total: int, done: int = 0) -> None:
        """Set the total once it is known, and what was done before."""
        ...


def size(count: float) -> str:
    """Bytes, for people.

    >>> size(3 * 2**29), size(7 * 2**20)
    ('1.5 GiB', '7 MiB')
    """
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def memory() -> str:
    """Resident memory of this process, for people."""
    import psutil

    return size(psutil.Process().memory_info().rss)


_COLLECTED: list[list[str]] = []
"""Where notes go instead of stderr, the innermost place last."""


def note(text: str) -> None:
    """One line to stderr."""
    if _COLLECTED:
        _COLLECTED[-1].append(text)
    else:
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def collected() -> Iterator[list[str]]:
    """Within, notes are collected and not printed."""
    notes: list[str] = []
    _COLLECTED.append(notes)
    try:
        yield notes
    finally:
        _COLLECTED.remove(notes)


@contextlib.contextmanager
def bar(title: str, total: int | None = None) -> Iterator[Bar]:
    """A bar for the length of the block."""
    if sys.stderr.isatty():
        with _live(title, total) as live:
            yield live
    else:
        plain = _PlainBar(title, total)
        yield plain
        plain.end()


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
        yield _LiveBar(progress, progress.add_task(title, total=total, facts=""))


class _LiveBar:
    def __init__(self, progress: Any, task: Any) -> None:
        self._progress, self._task = progress, task
        self._facts: dict[str, str] = {}

    def advance(self, amount: int = 1, **facts: str) -> None:
        self._facts |= facts
        self._progress.update(self._task, advance=amount, facts=_joined(self._facts))

    def restart(self, total: int, done: int = 0) -> None:
        self._progress.update(self._task, total=total, completed=done)


class _PlainBar:
    """Lines for logs: a first, one every QUIET_SECONDS, a last."""

    def __init__(self, title: str, total: int | None) -> None:
        self._title, self._total, self._done = title, total, 0
        self._began = self._said = time.monotonic()
        self._shown = -1
        """What was done when it was last said."""
        self._facts: dict[str, str] = {}

    def advance(self, amount: int = 1, **facts: str) -> None:
        self._done += amount
        self._facts |= facts
        if time.monotonic() - self._said >= QUIET_SECONDS:
            self._said = time.monotonic()
            self._say()

    def restart(self, total: int, done: int = 0) -> None:
        self._total, self._done = total, done

    def end(self) -> None:
        if self._shown != self._done:
            self._say()

    def _say(self) -> None:
        self._shown = self._done
        of = f"/{self._total}" if self._total is not None else ""
        count = f"{self._done}{of} in " if of or self._done else ""
        seconds = time.monotonic() - self._began
        line = f"{self._title}: {count}{seconds:.0f} s  {_joined(self._facts)}".rstrip()
        print(line, file=sys.stderr, flush=True)


def _joined(facts: dict[str, str]) -> str:
    return "  ".join(f"{name} {value}" for name, value in facts.items())
