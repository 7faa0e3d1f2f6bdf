"""Ctrl-C and SIGTERM: exceptions that end a command with exit codes of their own, and a way to finish a step first."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn


class Terminated(KeyboardInterrupt):
    """The process got SIGTERM, from a scheduler or `kill`. Handled as Ctrl-C: files are closed, children ended."""


def exit_code(error: BaseException) -> int:
    """128 plus the number of the signal, as shells count: 143 after SIGTERM, 130 after Ctrl-C."""
    return 128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def _may_set_handlers() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def raising_at_sigterm() -> Iterator[None]:
    """Within the context, SIGTERM raises `Terminated`. Without it, Python ends at once and leaves children behind."""
    if not _may_set_handlers():
        yield
        return
    before, hook = signal.signal(signal.SIGTERM, _terminate), sys.unraisablehook
    sys.unraisablehook = lambda ignored: _send_again(ignored.exc_value) or hook(ignored)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, before)


def _send_again(error: BaseException | None) -> bool:
    """Resend a signal that came while Python ran a `__del__`: Python ignores exceptions there, so it would be lost."""
    if not isinstance(error, KeyboardInterrupt):
        return False
    again = threading.Timer(0.05, os.kill, (os.getpid(), exit_code(error) - 128))
    again.daemon = True
    again.start()
    return True


class Deferred:
    """A signal that was received, to be raised at a better moment."""

    def __init__(self, announcement: str) -> None:
        self._announcement = announcement
        self.pending: KeyboardInterrupt | None = None

    def remember(self, number: int, frame: FrameType | None) -> None:
        """The handler of both signals: the first is kept, the second raised."""
        error = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
        if self.pending is not None:
            raise error
        self.pending = error
        from cot_unsloth.core.progress import note

        note(self._announcement)

    def raise_pending(self) -> None:
        """Raise the signal that was received, if any.

        Raises:
            KeyboardInterrupt: Ctrl-C, or as `Terminated` SIGTERM.
        """
        error, self.pending = self.pending, None
        if error is not None:
            raise error


@contextlib.contextmanager
def deferred(announcement: str) -> Iterator[Deferred]:
    """Within the context, the first Ctrl-C or SIGTERM is kept for `raise_pending`, and the second raises at once.

    Signals with other than the usual handlers are left alone. A signal that is still pending is raised when the block ends.

    Args:
        announcement: printed when the first comes.
    """
    waiting = Deferred(announcement)
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _terminate}
    replaced = [number for number in usual if _may_set_handlers() and signal.getsignal(number) is usual[number]]
    for number in replaced:
        signal.signal(number, waiting.remember)
    try:
        yield waiting
    finally:
        for number in replaced:
            signal.signal(number, usual[number])
    waiting.raise_pending()
