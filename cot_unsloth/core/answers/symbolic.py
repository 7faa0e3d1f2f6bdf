"""Whether two mathematical expressions are equal, within an enforced time limit.

Runs math-verify in a process of its own (`symbolic_worker`), which is started when first needed, killed when it does not
answer in time, and then restarted. A limit inside the process would not do: math-verify uses SIGALRM, which works only in
the main thread and not on Windows, and cannot interrupt Python's integer arithmetic. Verdicts are cached.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Literal

ComparisonResult = Literal["same", "different", "too_costly"]
SECONDS = 1.8
"""Limit for all comparisons of one answer; with the time to kill a process, less than two seconds."""
_START_SECONDS = 120.0
"""Limit for importing sympy, on a busy machine; not counted against an answer."""
_GRACE = 1.0
"""Seconds after the limit when the process is killed, in case it could not kill its child itself."""


class TimeLimit:
    """The seconds that one answer has left for its symbolic comparisons."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.left = seconds
        self.exceeded = False

    def spend(self, seconds: float) -> None:
        """Subtract the duration of a comparison."""
        self.left -= seconds


class _Worker:
    """The process, its pipe, and a thread that reads its replies."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._replies: queue.Queue[str] = queue.Queue()

    def start(self) -> None:
        """Start the process, unless it runs; returns when it can answer.

        Raises:
            OSError: it cannot be started, or does not come up.
        """
        if self._process is not None and self._process.poll() is None:
            return
        script = Path(__file__).with_name("symbolic_worker.py")
        self._replies = queue.Queue()
        self._process = subprocess.Popen(
            # -P keeps the script's folder out of sys.path: a module there named like one of the standard library
            # would be imported in its place.
            [sys.executable, "-P", str(script)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8",
        )  # fmt: skip
        # A pipe has no read with a time limit on Windows, where select() takes only sockets; a queue has one
        # everywhere.
        threading.Thread(target=_listen, args=(self._process.stdout, self._replies), daemon=True).start()
        try:
            if self._replies.get(timeout=_START_SECONDS) != "ready":
                raise OSError("the process that compares expressions did not start; is math-verify installed?")
        except queue.Empty as error:
            self.stop()
            raise OSError("the process that compares expressions did not start in time") from error

    def stop(self) -> None:
        """Kill the process, if it runs."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError, AttributeError):
                pipe.close()  # type: ignore[union-attr]

    def ask(self, gold: str, answer: str, seconds: float) -> ComparisonResult:
        """The verdict on two expressions; `seconds` counts from when the process is up."""
        with self._lock:
            self.start()
            assert self._process is not None
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(json.dumps({"gold": gold, "answer": answer, "seconds": seconds}) + "\n")
                self._process.stdin.flush()
                reply = self._replies.get(timeout=seconds + _GRACE)
            except (queue.Empty, OSError, ValueError):
                reply = ""
            if reply not in ("same", "different", "too_costly"):
                self.stop()
                return "too_costly"
            return reply  # type: ignore[return-value]


def _listen(pipe: IO[str] | None, replies: queue.Queue[str]) -> None:
    assert pipe is not None
    with contextlib.suppress(ValueError, OSError):
        for line in pipe:
            replies.put(line.strip())
    replies.put("")


_WORKER = _Worker()
atexit.register(_WORKER.stop)


def start() -> None:
    """Start the process in advance, so that the first comparison does not wait for it."""
    _WORKER.start()


_REMEMBERED = 65_536
_known: dict[tuple[str, str], ComparisonResult] = {}


def compare(gold: str, answer: str, time_limit: TimeLimit) -> ComparisonResult:
    """The verdict of math-verify on two expressions in LaTeX.

    Args:
        gold: the right one; `verify(gold, answer)` is not symmetric.
        answer: the answer to judge.
        time_limit: the time left for the answer; if it does not suffice, the verdict is `too_costly` and the limit is marked.

    Raises:
        OSError: the process that compares cannot be started.
    """
    verdict = _known.get((gold, answer))
    if verdict is None:
        if time_limit.left <= 0:
            time_limit.exceeded = True
            return "too_costly"
        start()
        began = time.monotonic()
        verdict = _WORKER.ask(gold, answer, time_limit.left)
        time_limit.spend(time.monotonic() - began)
        if len(_known) >= _REMEMBERED:
            _known.clear()
        _known[gold, answer] = verdict
    time_limit.exceeded |= verdict == "too_costly"
    return verdict
