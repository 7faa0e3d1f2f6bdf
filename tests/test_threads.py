"""How long threads spin while they wait is set before torch is imported, unless the user has set it."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cot_unsloth import api
from cot_unsloth.config import RunConfig

ROOT = Path(__file__).parent.parent
SITECUSTOMIZE = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("torch is imported under", {k: v for k, v in os.environ.items() if k in DECIDES}, flush=True)
            os._exit(0)
DECIDES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
sys.meta_path.insert(0, Watch())
"""
"""Prints the OpenMP variables when torch is first imported, and exits."""
FEW = ["--world-samples", "4", "--eval-samples", "0"]
VERBS = {
    "doctor": ["-m", "cot_unsloth", "doctor"],
    "train": ["-m", "cot_unsloth", "train", "--max-steps", "1", "--gguf", "", *FEW],
    "train as a module": ["-m", "cot_unsloth.train", "--max-steps", "1", "--gguf", "", *FEW],
    "evaluate": ["-m", "cot_unsloth.evaluate", "--model", "tiny-base", "--out", "o", "--arms", "base_direct", "--max-new-tokens", "1", "--eval-samples", "1"],
    "export": ["-m", "cot_unsloth.export", "--model", "tiny-base", "--merged", "--out", "o"],
    "chat": ["-m", "cot_unsloth.chat", "--model", "tiny-base"],
    "api": ["-c", "import cot_unsloth as c; c.dry_run(c.load_config(world_samples=4, eval_samples=0, engine='auto')); import torch"],
}  # fmt: skip


def environment_at_import(command: list[str], at: Path, **environment: str) -> str:
    """The OpenMP variables of a process when it imports torch."""
    (at / "sitecustomize.py").write_text(SITECUSTOMIZE)
    kept = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    everything = kept | {"PYTHONPATH": f"{at}{os.pathsep}{ROOT}", "HF_HUB_OFFLINE": "1"} | environment
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=at, env=everything, input="", check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("torch is imported under")]
    assert lines, done.stderr
    return lines[0].removeprefix("torch is imported under ")


@pytest.mark.parametrize("verb", VERBS)
def test_every_entry_point_sets_the_wait_policy_before_torch_is_imported(verb: str, tmp_path: Path) -> None:
    assert environment_at_import(VERBS[verb], tmp_path) == "{'OMP_WAIT_POLICY': 'PASSIVE', 'GOMP_SPINCOUNT': '3000'}"


CALLS: dict[str, Callable[[], object]] = {
    "check": api.check,
    "dry_run": lambda: api.dry_run(RunConfig()),
    "train_run": lambda: api.train_run(RunConfig()),
    "evaluate_run": lambda: api.evaluate_run("none"),
    "measure_curves": lambda: api.measure_curves(["none"]),
    "export_run": lambda: api.export_run("none"),
    "ask": lambda: api.ask("none", "?"),
    "sample_run": lambda: api.sample_run("none"),
    "combine_adapters": lambda: api.combine_adapters(["a", "b"], out="none"),
    "transfer_adapters": lambda: api.transfer_adapters(RunConfig(), out="none"),
    "sweep_settings": lambda: api.sweep_settings(RunConfig(), out="none"),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_function_of_the_api_that_computes_sets_it_first(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class ReachedError(Exception):
        pass

    def reached() -> None:
        raise ReachedError

    monkeypatch.setattr(api, "limit_spinning", reached)
    with pytest.raises(ReachedError):
        CALLS[name]()


def test_no_function_of_the_api_is_left_out() -> None:
    functions = {name for name in api.__all__ if inspect.isfunction(getattr(api, name))}
    computes_nothing = {
        "load_config", "parse", "print_scorecard", "render_trace", "write_traces", "compare_runs", "list_runs",
    }  # fmt: skip
    assert functions - CALLS.keys() == computes_nothing


def test_every_module_that_is_a_command_hands_over_to_the_command_line() -> None:
    package = ROOT / "cot_unsloth"
    commands = [p for p in package.rglob("*.py") if p.stem == "__main__" or "\nif __name__ ==" in p.read_text()]
    commands.remove(package / "core" / "answers" / "symbolic_worker.py")  # ours, and without torch
    assert len(commands) >= 6
    assert [p for p in commands if "from cot_unsloth.cli import main" not in p.read_text()] == []


@pytest.mark.parametrize("folder", ["bench", "scripts"])
def test_scripts_that_compute_set_it(folder: str) -> None:
    """Those that load a model in their own process; the others start commands."""
    computes = re.compile(r"^\s*import torch|Target\(.*\)\.load\(|load_streamer\(|registry\.load\(", re.MULTILINE)
    left_out = {
        "threads.py",  # compares settings
        "base.py",  # through scripts/pretrain_tiny_base.py
        "gpu.py",  # computes on a GPU
        "smollm2.py",  # converts a file
    }
    scripts = {p.name: p.read_text() for p in (ROOT / folder).glob("*.py") if p.name not in left_out}
    assert [name for name, code in scripts.items() if computes.search(code) and "limit_spinning()" not in code] == []


@pytest.mark.parametrize(
    ("name", "value"), [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "100"), ("KMP_BLOCKTIME", "0")]
)
def test_the_users_own_setting_is_kept(name: str, value: str, tmp_path: Path) -> None:
    assert environment_at_import(VERBS["api"], tmp_path, **{name: value}) == f"{{'{name}': '{value}'}}"


def test_importing_the_package_does_not_change_the_environment(tmp_path: Path) -> None:
    assert (
        environment_at_import(["-c", "import cot_unsloth, cot_unsloth.api, cot_unsloth.cli, torch"], tmp_path) == "{}"
    )


def test_nothing_is_set_if_torch_is_already_imported(tmp_path: Path) -> None:
    code = "import torch, os; from cot_unsloth.core.threads import limit_spinning as w; w(); print('OMP_WAIT_POLICY' in os.environ)"
    kept = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=kept, check=True
    )
    assert done.stdout.strip() == "False"
