"""OMP_WAIT_POLICY=PASSIVE, with which waiting threads sleep, is set before torch is imported unless the user set it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
    assert environment_at_import(VERBS[verb], tmp_path) == "{'OMP_WAIT_POLICY': 'PASSIVE'}"


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
    code = "import torch, os; from cot_unsloth.core.threads import wait_passively as w; w(); print('OMP_WAIT_POLICY' in os.environ)"
    kept = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=kept, check=True
    )
    assert done.stdout.strip() == "False"
