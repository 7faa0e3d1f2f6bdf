"""Progress on stderr: notes, and bars for long work. On a terminal, bars are live; elsewhere they are occasional lines.

Work of many parts has one bar (`whole`), and the bars of its parts are shown as text beside it. `--quiet` silences all of it.
Notes and durations are logged as well.
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
_LONGEST_TITLE = 30
"""Longest title on a terminal narrower than 110 columns, in characters."""


class Bar(Protocol):
    """Progress of one piece of work."""

    def advance(self, amount: int = 1, **facts: str) -> None:
        """Count `amount` more as done; `facts` are shown beside the count until they change."""
        ...

    def restart(self, total: int, done: int = 0) -> None:
        """Set the total, once it is known, and how much was done before this process started."""
        ...


def size(count: float) -> str:
    """Bytes as text.

    >>> size(3 * 2**29), size(7 * 2**20)
    ('1.5 GiB', '7 MiB')
    """
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def duration(seconds: float) -> str:
    """A time in words.

    >>> duration(40), duration(400), duration(40_000), duration(4_000_000)
    ('40 s', '7 min', '11 h', '46 days')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"


def memory() -> str:
    """Resident memory of this process, as text."""
    import psutil

    return size(psutil.Process().memory_info().rss)


_COLLECTED: list[list[str]] = []
"""Lists that collect notes instead of printing them; notes go to the last one."""


_silent = False
"""Whether `--quiet` was given."""


def be_quiet(quiet: bool = True) -> None:
    """Print no notes and no bars from now on, or print them again; they are logged in both cases."""
    global _silent
    _silent = quiet


def note(text: str) -> None:
    """Print one line to stderr, and log it."""
    LOG.info("%s", text, extra={"printed": not (_COLLECTED or _silent)})
    if _COLLECTED:
        _COLLECTED[-1].append(text)
    elif not _silent:
        print(printable(text), file=sys.stderr, flush=True)


def starting(what: str) -> None:
    """On a terminal, say at once that a command has started: nothing else is printed while torch is imported, for seconds."""
    if sys.stderr.isatty() and not _silent:
        print(printable(f"{what} ..."), file=sys.stderr, flush=True)


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
    if _WHOLES:
        yield _Part(_WHOLES[-1], title, total)
        _WHOLES[-1].end_part()
    elif _silent:
        yield _NoBar()
    elif sys.stderr.isatty():
        with _live(title, total) as live:
            yield live
    else:
        plain = _PlainBar(title, total)
        yield plain
        plain.end()
    LOG.info("%s: took %.1f s", title, time.monotonic() - began)


@contextlib.contextmanager
def whole(title: str, parts: int) -> Iterator[None]:
    """Show one bar for work of many parts: each `bar` in the block counts as one of them when it ends.

    Args:
        title: of the bar.
        parts: the largest possible number; parts that were not needed are counted at the end.
    """
    with bar(title, parts) as whole_bar:
        _WHOLES.append(_Whole(whole_bar, parts))
        try:
            yield
            _WHOLES[-1].end()
        finally:
            _WHOLES.pop()


class _Whole:
    def __init__(self, shown: Bar, parts: int) -> None:
        self._shown, self._left = shown, parts

    def show(self, part: str, facts: dict[str, str]) -> None:
        self._shown.advance(0, **{"now": part, **facts})

    def end_part(self) -> None:
        if self._left:
            self._left -= 1
            self._shown.advance(1)

    def end(self) -> None:
        self._shown.advance(self._left, now="")


_WHOLES: list[_Whole] = []
"""Work in progress that has parts; the next bars are parts of the last one."""


class _Part:
    """The bar of a part, shown as text beside the bar of the whole."""

    def __init__(self, whole_: _Whole, title: str, total: int | None) -> None:
        self._whole, self._title, self._total, self._done = whole_, title, total, 0
        self.advance(0)

    def advance(self, amount: int = 1, **facts: str) -> None:
        self._done += amount
        self._whole.show(self._title + (f" {self._done}/{self._total}" if self._total else ""), facts)

    def restart(self, total: int, done: int = 0) -> None:
        self._total, self._done = total, done
        self.advance(0)


class _NoBar:
    """The bar under `--quiet`, which shows nothing."""

    def advance(self, amount: int = 1, **facts: str) -> None: ...

    def restart(self, total: int, done: int = 0) -> None: ...


@contextlib.contextmanager
def _live(title: str, total: int | None) -> Iterator[Bar]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    wide = console.width >= 110
    shown = printable(title)
    if not wide and len(shown) > _LONGEST_TITLE:
        shown = shown[: _LONGEST_TITLE - 1] + "…"
    columns = (
        TextColumn("{task.description:<18}" if wide else "{task.description}", markup=False),
        BarColumn(bar_width=24 if wide else 8),
        TextColumn("{task.fields[count]}", justify="right", markup=False),
        *((TimeElapsedColumn(),) if wide else ()),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[facts]}", markup=False),
    )
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        task = progress.add_task(shown, total=total, facts="", count="")
        live = _LiveBar(progress, task, room=console.width - max(18 * wide, len(shown)) - (42 if wide else 18))
        live.restart(total)
        yield live
        live.end()


class _LiveBar:
    def __init__(self, progress: Progress, task: TaskID, room: int) -> None:
        self._progress, self._task, self._room = progress, task, room
        self._total: int | None = None
        self._done = 0
        self._facts: dict[str, str] = {}

    def advance(self, amount: int = 1, **facts: str) -> None:
        self._done += amount
        self._facts |= facts
        self._update(self._total)

    def restart(self, total: int | None, done: int = 0) -> None:
        self._total, self._done = total, done
        self._update(total)

    def end(self) -> None:
        """Fill the bar of work whose total was never set."""
        if self._total is None:
            self._progress.update(self._task, total=1, completed=1)

    def _update(self, total: int | None) -> None:
        count = f"{self._done}/{total}" if total is not None else ""
        facts = _within(self._facts, self._room - len(count))
        self._progress.update(self._task, total=total, completed=self._done, count=count, facts=facts)


class _PlainBar:
    """A line every QUIET_SECONDS, and a last one."""

    def __init__(self, title: str, total: int | None) -> None:
        self._title, self._total, self._done = title, total, 0
        self._began = self._printed_at = time.monotonic()
        self._done_before = 0
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
        self._total, self._done, self._done_before = total, done, done

    def end(self) -> None:
        if self._printed != self._done:
            self._print()

    def _print(self) -> None:
        self._printed = self._done
        of = f"/{self._total}" if self._total is not None else ""
        count = f"{self._done}{of} in " if of or self._done else ""
        seconds = time.monotonic() - self._began
        left = f", {duration(left)} left" if (left := self._seconds_left(seconds)) else ""
        line = f"{self._title}: {count}{seconds:.0f} s{left}  {_joined(self._facts)}".rstrip()
        print(printable(line), file=sys.stderr, flush=True)

    def _seconds_left(self, passed: float) -> float | None:
        """Estimated seconds left, at the mean speed so far; None in the first seconds, and at the end."""
        done = self._done - self._done_before
        if self._total is None or done < 1 or self._done >= self._total or passed < 5:
            return None
        return passed / done * (self._total - self._done)


def _joined(facts: dict[str, str]) -> str:
    return printable("  ".join(f"{name} {value}" for name, value in facts.items() if value))


def _within(facts: dict[str, str], room: int) -> str:
    """The facts that fit into a line, the most important first; a single fact that is too long is cut."""
    kept: dict[str, str] = {}
    for name, value in facts.items():
        if value and len(_joined({**kept, name: value})) > room:
            break
        kept[name] = value
    return _joined(kept) or _joined(facts)[: max(room, 0)]
