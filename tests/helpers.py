"""What several test files do alike."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cot_unsloth.cli import main
from cot_unsloth.rundir import RunDir


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
