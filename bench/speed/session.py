"""The measuring side of a contender's process: waits for its turn, and reports CPU seconds, wall time and peak memory.

In a lockstep measurement every contender is loaded once and stays; the parent lets one at a time do a block of its work, so
that all of them meet the same state of a shared machine. In a fresh measurement each block is a process of its own, and its
times count from the start of the process, imports included.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

MIB = 1 << 20
BORN = "BENCH_SPEED_BORN"
"""Environment variable with `time.monotonic()` of the parent as it started the process."""


@dataclass(frozen=True)
class Work:
    """What every contender of a measurement does."""

    folder: Path
    """Rows, models and results of the measurement."""
    rounds: int
    """Blocks that are measured; training divides its rows among them."""
    settings: dict[str, Any]
    """The measurement's own, from `plan`."""
    options: dict[str, Any]
    """The contender's own, from `plan`."""
    name: str
    """The contender's."""


def cpu_seconds() -> float:
    """CPU seconds of this process, of its threads, and of its children, alive or waited for."""
    import psutil

    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + ended.ru_utime + ended.ru_stime
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def peak_mib() -> float | None:
    """The most memory that was resident (VmHWM of /proc/self/status); None without /proc."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 / MIB for line in lines if line.startswith("VmHWM"))


class Session:
    """The conversation with the parent: a line on stdin is a turn, a line of JSON is a report."""

    def __init__(self, reports: TextIO, *, fresh: bool) -> None:
        self._reports = reports
        self._fresh = fresh
        self._wall, self._cpu = float(os.environ.get(BORN, time.monotonic())), 0.0
        self.marks: dict[str, dict[str, float]] = {}

    def mark(self, what: str) -> None:
        """Note how long the process has existed, and its CPU seconds."""
        born = float(os.environ.get(BORN, time.monotonic()))
        self.marks[what] = {"wall": round(time.monotonic() - born, 3), "cpu": round(cpu_seconds(), 3)}

    def start(self) -> None:
        """Wait for the turn; a block begins."""
        if self._fresh:
            return
        self._send({"ready": True})
        if not sys.stdin.readline():
            raise SystemExit("the benchmark has ended")
        self._wall, self._cpu = time.monotonic(), cpu_seconds()

    def done(self, **counts: Any) -> None:
        """The block has ended.

        Args:
            counts: what was done in it, such as tokens.
        """
        cpu, wall = cpu_seconds() - self._cpu, time.monotonic() - self._wall
        self._send({"block": {"cpu": round(cpu, 4), "wall": round(wall, 4), **counts}})

    def end(self, facts: dict[str, Any]) -> None:
        """The contender has ended."""
        memory = peak_mib()
        self._send({"end": {"peak_mib": memory and round(memory, 1), "marks": self.marks, **facts}})

    def _send(self, report: dict[str, Any]) -> None:
        self._reports.write(json.dumps(report) + "\n")
        self._reports.flush()
