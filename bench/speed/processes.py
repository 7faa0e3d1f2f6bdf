"""The parent's side: starts contenders, gives them their turns, and collects what they report."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from bench.speed.plan import PASSIVE, ROOT, Contender, Measurement
from bench.speed.session import BORN

Block = dict[str, Any]


class ContenderError(RuntimeError):
    """A contender ended before its work did; the message has the end of its log."""


@dataclass(frozen=True)
class Place:
    """Where a measurement runs, and with which interpreters."""

    folder: Path
    run: Path
    """The run that scoring and export use."""
    pythons: Mapping[str, Path]

    def python(self, contender: Contender) -> str:
        """The interpreter of a contender.

        Raises:
            ContenderError: it is not installed.
        """
        if not contender.python:
            return sys.executable
        path = self.pythons.get(contender.python)
        if path is None or not path.is_file():
            raise ContenderError(f"{contender.python} is not installed (--{contender.python}-python)")
        return str(path)


def environment_of(contender: Contender, threads: int) -> dict[str, str]:
    """The variables of a contender's process."""
    fixed = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), str(threads))
    here = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    values: dict[str, str | None] = {**os.environ, **fixed, **PASSIVE, **here, **contender.environment}
    return {name: value for name, value in values.items() if value is not None}


class Process:
    """A contender's process, between its turns."""

    def __init__(self, contender: Contender, measurement: Measurement, place: Place, rounds: int, log: TextIO) -> None:
        spec = {
            "path": contender.path, "name": contender.name, "options": contender.options, "rounds": rounds,
            "folder": str(place.folder), "settings": measurement.settings, "fresh": measurement.fresh,
            "own_python": bool(contender.python),
        }  # fmt: skip
        self._log = Path(log.name)
        self._process = subprocess.Popen(
            [place.python(contender), "-m", "bench.speed.worker", json.dumps(spec)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=place.folder,
            env=environment_of(contender, measurement.threads) | {BORN: repr(time.monotonic())},
        )  # fmt: skip

    def wait_until_ready(self) -> None:
        """Until it waits for its first turn."""
        self._expect("ready")

    def turn(self) -> Block:
        """Let it do a block, and wait until it waits again, or ends."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        block: Block = self._expect("block")
        return block

    def end(self) -> dict[str, Any]:
        """Its facts, when it has ended."""
        facts: dict[str, Any] = self._expect("end")
        self._process.wait()
        return facts

    def block(self) -> Block:
        """The one block of a fresh process."""
        block: Block = self._expect("block")
        return block

    def _expect(self, kind: str) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise ContenderError(f"ended in {self._process.returncode}: {tail(self._log)}")
        report = json.loads(line)
        if kind not in report:
            raise ContenderError(f"reported {line.strip()[:200]} instead of {kind}")
        return report[kind]

    def stop(self) -> None:
        """End it, if it has not ended."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()


def tail(log: Path) -> str:
    """The end of a log: of an exception, its last lines."""
    return log.read_text(encoding="utf-8", errors="replace").strip()[-700:]


Store = Callable[[str, int, Block], None]
"""Called with the contender, the round and the block; round -1 is the end."""


def lockstep(measurement: Measurement, place: Place, rounds: int, store: Store) -> dict[str, str]:
    """Load all contenders, then let each do its block of every round, forwards and backwards in turn.

    Returns:
        Why a contender failed, by name; the others went on.
    """
    failed: dict[str, str] = {}
    running: dict[str, Process] = {}
    with ExitStack() as stack:
        for contender in measurement.contenders:
            log = stack.enter_context((place.folder / f"{contender.name}.log").open("w", encoding="utf-8"))
            try:
                process = running[contender.name] = Process(contender, measurement, place, rounds, log)
                stack.callback(process.stop)
                process.wait_until_ready()  # loaded one after the other, so that loading does not disturb loading
            except ContenderError as error:
                failed[contender.name] = str(error)
                running.pop(contender.name, None)
        for at in range(rounds):
            for name in list(running)[:: 1 if at % 2 else -1]:
                try:
                    store(name, at, running[name].turn())
                    if at == rounds - 1:
                        store(name, -1, running[name].end())
                    else:
                        running[name].wait_until_ready()
                except ContenderError as error:
                    failed[name] = str(error)
                    running.pop(name).stop()
    return failed


def fresh(measurement: Measurement, place: Place, rounds: int, store: Store) -> dict[str, str]:
    """Each block in a process of its own; returns as `lockstep`."""
    failed: dict[str, str] = {}
    for at in range(rounds):
        for contender in measurement.contenders[:: 1 if at % 2 else -1]:
            if contender.name in failed:
                continue
            try:
                block, facts = one_process(contender, measurement, place, at)
            except ContenderError as error:
                failed[contender.name] = str(error)
                continue
            store(contender.name, at, block)
            store(contender.name, -1, facts)
    return failed


def one_process(contender: Contender, measurement: Measurement, place: Place, at: int) -> tuple[Block, dict[str, Any]]:
    """Run a fresh process to its end."""
    with (place.folder / f"{contender.name}.log").open("w", encoding="utf-8") as log:
        if contender.command:
            return whole_process(contender, measurement, place, log, at)
        process = Process(contender, measurement, place, 1, log)
        try:
            return process.block(), process.end()
        finally:
            process.stop()


def whole_process(
    contender: Contender, measurement: Measurement, place: Place, log: TextIO, at: int
) -> tuple[Block, dict[str, Any]]:
    """Run a command and measure its whole process."""
    names = {"run": str(place.run), "folder": str(place.folder), "name": contender.name, "round": str(at)}
    arguments = [argument.format(**names) for argument in contender.command]
    began = time.monotonic()
    process = subprocess.Popen(
        [place.python(contender), *arguments], stdout=subprocess.DEVNULL, stderr=log, cwd=place.folder,
        env=environment_of(contender, measurement.threads),
    )  # fmt: skip
    _, status, used = os.wait4(process.pid, 0)
    wall = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ContenderError(f"ended in {process.returncode}: {tail(Path(log.name))}")
    block = {"cpu": round(used.ru_utime + used.ru_stime, 4), "wall": round(wall, 4), "processes": 1}
    # A child's high-water mark begins at what its parent had as it started it, so less than that is not known.
    peak, parents = used.ru_maxrss / 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return block, {"peak_mib": round(peak, 1) if peak > parents else None}
