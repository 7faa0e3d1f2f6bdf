"""OpenMP's threads sleep while they wait, decided before torch is imported, unless the user has decided it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SAY_SO = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("torch is imported under", {k: v for k, v in os.environ.items() if k in DECIDES}, flush=True)
            os._exit(0)
DECIDES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
sys.meta_path.insert(0, Watch())
"""
"""As `sitecustomize`: says what torch would find in the environment when it is first imported, and ends there."""
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


def said(command: list[str], at: Path, **environment: str) -> str:
    """What a process that imports torch says of its environment at that moment."""
    (at / "sitecustomize.py").write_text(SAY_SO)
    kept = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    everything = kept | {"PYTHONPATH": f"{at}{os.pathsep}{ROOT}", "HF_HUB_OFFLINE": "1"} | environment
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=at, env=everything, input="", check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("torch is imported under")]
    assert lines, done.stderr
    return lines[0].removeprefix("torch is imported under ")


@pytest.mark.parametrize("verb", VERBS)
def test_every_entry_decides_it_before_torch_is_imported(verb: str, tmp_path: Path) -> None:
    assert said(VERBS[verb], tmp_path) == "{'OMP_WAIT_POLICY': 'PASSIVE'}"


@pytest.mark.parametrize(
    ("name", "value"), [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "100"), ("KMP_BLOCKTIME", "0")]
)
def test_the_users_own_choice_stays(name: str, value: str, tmp_path: Path) -> None:
    assert said(VERBS["api"], tmp_path, **{name: value}) == f"{{'{name}': '{value}'}}"


def test_importing_the_package_leaves_the_environment_of_its_host_alone(tmp_path: Path) -> None:
    assert said(["-c", "import cot_unsloth, cot_unsloth.api, cot_unsloth.cli, torch"], tmp_path) == "{}"


def test_where_torch_is_there_already_nothing_is_set(tmp_path: Path) -> None:
    code = "import torch, os; from cot_unsloth.core.threads import wait_passively as w; w(); print('OMP_WAIT_POLICY' in os.environ)"
    kept = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=kept, check=True
    )
    assert done.stdout.strip() == "False"
