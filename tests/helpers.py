"""What several test files do alike."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cot_unsloth import tasks
from cot_unsloth.cli import main
from cot_unsloth.config import RunConfig
from cot_unsloth.core.types import Sample
from cot_unsloth.prompts.render import Renderer, open_renderer
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
