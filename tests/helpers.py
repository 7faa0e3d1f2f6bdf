"""Helpers shared by several test files."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
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
from cot_unsloth.server import Served, bind
from cot_unsloth.server.run import Server
from cot_unsloth.storage.run_folder import RunDir

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


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


@contextlib.contextmanager
def running_server(served: Served) -> Iterator[str]:
    """A server on a free port, in a thread; its address without a path."""
    with bind("127.0.0.1", 0) as listener:
        server = Server(served)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=20)


def started_environment(*, tests: bool = False) -> dict[str, str]:
    """The environment of a new process: offline, one thread; with `tests`, helpers of the tests can be imported."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    if tests:
        paths = [str(Path(__file__).parent), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return environment


def started(*args: str, at: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in a new process, as a user does, in the folder `at`."""
    return subprocess.run(
        [sys.executable, *args], capture_output=True, text=True, cwd=at, env=started_environment(), check=False
    )  # fmt: skip


class ForkServer:
    """A process with all libraries imported, from which others are forked; see fork_server.py."""

    def __init__(self, *first: str) -> None:
        command = [sys.executable, str(Path(__file__).parent / "fork_server.py"), *first]
        environment = started_environment()
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
"""Modules to import first for commands that use Unsloth."""
SERVERS: dict[tuple[str, ...], ForkServer] = {}
"""One server per list of modules that are imported first; they live as long as this test process."""


def fork_server(*first: str) -> ForkServer:
    """The server that has imported these modules first; starts it if necessary."""
    if first not in SERVERS:
        SERVERS[first] = ForkServer(*first)
    return SERVERS[first]


class Forked:
    """`python -m MODULE ARGS`, or `python SCRIPT.py ARGS`, running in a forked process in the folder `at`."""

    def __init__(self, what: str, *args: str, at: Path, first: tuple[str, ...] = (), **environment: str) -> None:
        self.server, self.args = fork_server(*first), args
        self.folder = Path(tempfile.mkdtemp(prefix="forked-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.out, self.err = self.folder / "stdout", self.folder / "stderr"
        self.returncode: int | None = None
        request = {
            "what": what, "args": args, "cwd": str(at), "stdout": str(self.out), "stderr": str(self.err),
            "env": {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment},
        }  # fmt: skip
        self.pid = self.server.ask(request)

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
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
        """Kill the process once `reached()` is true; returns -SIGKILL, or its own exit code if it ended before."""
        while not reached() and self.poll() is None:
            time.sleep(0.003)
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    def done(self) -> subprocess.CompletedProcess[str]:
        """Wait until it ends."""
        code = self.wait()
        return subprocess.CompletedProcess(self.args, code, self.out.read_text(), self.err.read_text())


def forked(what: str, *args: str, at: Path, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE ARGS`, or `python SCRIPT.py ARGS`, in a forked process until it ends."""
    return Forked(what, *args, at=at, **more).done()


def chains(config: RunConfig, n: int, steps: str = "2-4") -> tuple[Renderer, list[Sample]]:
    """The renderer for these settings, and `n` training rows of the task `chains`."""
    renderer = open_renderer(config.model, config.data)
    examples = tasks.generate(f"world:chains:{steps}", split="train", n=n, seed=1)
    return renderer, list(renderer.samples(examples).samples)


def module(path: Path) -> ModuleType:
    """Import a file of the repository that is not part of the package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    imported = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = imported
    spec.loader.exec_module(imported)
    return imported


def lora(engine: Any) -> dict[str, Any]:
    """A copy of the weights of an engine's adapter."""
    names = ("lora_", "vera_lambda")
    return {n: p.detach().clone() for n, p in engine.model.named_parameters() if any(name in n for name in names)}


def furthest(a: dict[str, Any], b: dict[str, Any]) -> float:
    """The largest absolute difference between two sets of tensors."""
    assert a.keys() == b.keys()
    return float(max((a[name] - b[name]).abs().max().item() for name in a))


def count_calls(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[tuple[Any, ...]]:
    """The positional arguments of each call of a function from now on; it is called as before."""
    original, calls = getattr(owner, name), []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    return calls
