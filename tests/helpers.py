"""What several test files do alike."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cot_unsloth import tasks
from cot_unsloth.cli import main
from cot_unsloth.config import RunConfig
from cot_unsloth.core.types import Sample
from cot_unsloth.prompts.opening import open_renderer
from cot_unsloth.prompts.render import Renderer
from cot_unsloth.storage.run_folder import RunDir


def run_cli(*args: str) -> int:
    """The exit code of a command line, run in this process."""
    with pytest.raises(SystemExit) as done:
        main(list(args))
    assert isinstance(done.value.code, int)
    return done.value.code


def short_run(path: Path, *more: str) -> RunDir:
    """A run of a few steps on few problems."""
    few = [
        "--world-samples", "64", "--max-steps", "8", "--per-device-train-batch-size", "2",
        "--eval-samples", "4", "--max-new-tokens", "12", "--lora-r", "8", "--use-rslora",
    ]  # fmt: skip
    assert run_cli("train", "--run-dir", str(path), *few, *more) == 0
    return RunDir(path)


def started(*args: str, at: Path) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, as a user starts it, in a folder where nothing else is."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *args], capture_output=True, text=True, cwd=at, env=environment, check=False
    )  # fmt: skip


class ForkServer:
    """A process that has imported the libraries, from which others are forked; see fork_server.py."""

    def __init__(self, *first: str) -> None:
        command = [sys.executable, str(Path(__file__).parent / "fork_server.py"), *first]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )  # fmt: skip

    def ask(self, request: dict[str, Any]) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


UNSLOTH_FIRST = ("cot_unsloth.models.unsloth_engine",)
"""For commands that are to find Unsloth imported."""
SERVERS: dict[tuple[str, ...], ForkServer] = {}
"""One for each list of modules that come first, for as long as the tests of this process run."""


def fork_server(*first: str) -> ForkServer:
    """The server that has imported these modules first; started where it is not there yet."""
    if first not in SERVERS:
        SERVERS[first] = ForkServer(*first)
    return SERVERS[first]


class Forked:
    """`python -m MODULE ARGS`, or `python SCRIPT.py ARGS`, in a process of its own and in the folder `at`."""

    def __init__(self, what: str, *args: str, at: Path, first: tuple[str, ...] = (), **environment: str) -> None:
        self.server, self.args = fork_server(*first), args
        self.folder = Path(tempfile.mkdtemp(prefix="forked-"))
        self.out, self.err = self.folder / "stdout", self.folder / "stderr"
        self.returncode: int | None = None
        request = {
            "what": what, "args": args, "cwd": str(at), "stdout": str(self.out), "stderr": str(self.err),
            "env": {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment},
        }  # fmt: skip
        self.pid = self.server.ask(request)

    def poll(self) -> int | None:
        """The exit code, once it has ended."""
        return self._wait(block=False)

    def wait(self) -> int:
        code = self._wait(block=True)
        assert code is not None
        return code

    def _wait(self, *, block: bool) -> int | None:
        if self.returncode is None:
            self.returncode = self.server.ask({"wait": self.pid, "block": block})
        return self.returncode

    def kill_when(self, reached: Callable[[], bool]) -> int:
        """Kill it once something is there, and return its exit code: -SIGKILL, or its own where it ended before."""
        while not reached() and self.poll() is None:
            time.sleep(0.003)
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    def done(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end."""
        code = self.wait()
        return subprocess.CompletedProcess(self.args, code, self.out.read_text(), self.err.read_text())


def forked(what: str, *args: str, at: Path, **more: Any) -> subprocess.CompletedProcess[str]:
    """`python -m MODULE ARGS`, or `python SCRIPT.py ARGS`, in a process of its own, to its end."""
    return Forked(what, *args, at=at, **more).done()


def chains(config: RunConfig, n: int, steps: str = "2-4") -> tuple[Renderer, list[Sample]]:
    """The renderer that settings ask for, and rows of a world to train on."""
    renderer = open_renderer(config.model, config.data)
    examples = tasks.generate(f"world:chains:{steps}", split="train", n=n, seed=1)
    return renderer, list(renderer.samples(examples).samples)


def module(path: Path) -> ModuleType:
    """A file of the repository that is no part of the package, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    found = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = found
    spec.loader.exec_module(found)
    return found


def lora(engine: Any) -> dict[str, Any]:
    """A copy of an engine's adapter."""
    return {name: p.detach().clone() for name, p in engine.model.named_parameters() if "lora_" in name}


def furthest(a: dict[str, Any], b: dict[str, Any]) -> float:
    """The largest difference of any entry."""
    assert a.keys() == b.keys()
    return float(max((a[name] - b[name]).abs().max().item() for name in a))
