"""Code in the folder of a model or an adapter never runs, whatever is answered on the terminal."""

from __future__ import annotations

import ast
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import run_cli
from models import adapter as save_adapter
from transformers import AutoModelForCausalLM

from cot_unsloth.prompts.tokenizer import model_path

ROOT = Path(__file__).parent.parent
REFUSAL = "needs code from its own repository (auto_map), which is never run"
FEW = ["--world-samples", "4", "--eval-samples", "1", "--max-new-tokens", "2", "--max-steps", "1"]


@pytest.fixture(autouse=True)
def _yes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every prompt is answered "yes", as by `yes |`; code that is then copied stays in a folder of the test."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n" * 100))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


def changed(file: Path, **values: Any) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(content | values), encoding="utf-8")


def planted(folder: Path, *, model_type: str | None = None, in_config: bool = True, in_tokenizer: bool = False) -> Path:
    """The embedded base with a module that writes a marker file when imported, and an auto_map that points to it."""
    shutil.copytree(model_path("tiny-base"), folder)
    (folder / "planted.py").write_text(f"open({str(folder.parent / 'marker')!r}, 'w').close()\n")
    if in_config:
        kinds = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")
        changed(folder / "config.json", auto_map={kind: f"planted.{kind}" for kind in kinds})
    if model_type:
        changed(folder / "config.json", model_type=model_type, architectures=["Planted"])
    if in_tokenizer:
        changed(
            folder / "tokenizer_config.json", tokenizer_class="Planted", auto_map={"AutoTokenizer": ["planted.A", None]}
        )
    return folder


def verbs(model: Path, out: Path) -> dict[str, list[str]]:
    name = str(model)
    return {
        "train": ["train", "--model-name-or-path", name, "--run-dir", str(out), *FEW],
        "evaluate": ["evaluate", "--model", name, "--out", str(out), "--arms", "base_direct", *FEW[:6]],
        "chat": ["chat", "--model", name],
        "serve": ["serve", "--model", name, "--port", "0"],
        "export": ["export", "--model", name, "--merged", "--out", str(out)],
    }


def assert_refused(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(*command) == 2
    captured = capsys.readouterr()
    assert REFUSAL in captured.err, captured.err
    assert "[y/N]" not in captured.out + captured.err
    assert not (tmp_path / "marker").exists()
    assert not (tmp_path / "out" / "config.yaml").exists()  # written by a run or an evaluation


@pytest.mark.parametrize("verb", ["train", "evaluate", "chat", "serve", "export"])
@pytest.mark.parametrize("where", ["config", "tokenizer"])
def test_a_model_that_needs_code_from_its_repository_is_refused(
    verb: str, where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if where == "config":
        model = planted(tmp_path / "model", model_type="planted")
    else:
        model = planted(tmp_path / "model", in_config=False, in_tokenizer=True)
    assert_refused(verbs(model, tmp_path / "out")[verb], tmp_path, capsys)


def test_a_dry_run_refuses_code_of_a_tokenizer_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = planted(tmp_path / "model", model_type="planted", in_tokenizer=True)
    assert_refused([*verbs(model, tmp_path / "out")["train"], "--dry-run"], tmp_path, capsys)


def test_doctor_runs_no_code_of_a_model(tmp_path: Path) -> None:
    model = planted(tmp_path / "model", model_type="planted", in_tokenizer=True)
    run_cli("doctor", "--model-name-or-path", str(model))
    assert not (tmp_path / "marker").exists()


def test_a_known_architecture_is_loaded_without_code_from_its_repository(tmp_path: Path) -> None:
    model = planted(tmp_path / "model")
    assert run_cli(*verbs(model, tmp_path / "out")["evaluate"]) == 0
    assert not (tmp_path / "marker").exists()


def test_answering_yes_in_a_separate_process_runs_no_code(tmp_path: Path) -> None:
    model = planted(tmp_path / "model", model_type="planted", in_tokenizer=True)
    command = [sys.executable, "-m", "cot_unsloth", *verbs(model, tmp_path / "out")["train"]]
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, input="yes\n" * 100, capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    assert done.returncode == 2, done.stderr
    assert REFUSAL in done.stderr
    assert not (tmp_path / "marker").exists()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    base = AutoModelForCausalLM.from_pretrained(model_path("tiny-base"), dtype=torch.float32)
    save_adapter(base, tmp_path / "adapter", seed=1)
    return tmp_path / "adapter"


def score_with(adapter: Path, out: Path) -> int:
    few = ["--arms", "tuned", *FEW[:6]]
    return run_cli("evaluate", "--model", "tiny-base", "--adapter", str(adapter), "--out", str(out), *few)


def test_code_in_the_folder_of_an_adapter_is_ignored(adapter: Path, tmp_path: Path) -> None:
    (adapter / "planted.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w').close()\n")
    shutil.copy(Path(model_path("tiny-base"), "tokenizer_config.json"), adapter)
    for file in ("adapter_config.json", "tokenizer_config.json"):
        changed(adapter / file, auto_map={"AutoModelForCausalLM": "planted.A", "AutoTokenizer": ["planted.A", None]})
    assert score_with(adapter, tmp_path / "out") == 0
    assert not (tmp_path / "marker").exists()


def test_pickled_weights_of_an_adapter_are_refused_by_name(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    assert score_with(adapter, tmp_path / "out") == 2
    assert "its weights are in adapter_model.bin, a pickle" in capsys.readouterr().err


def test_pickled_weights_of_a_base_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file

    folder = Path(shutil.copytree(model_path("tiny-base"), tmp_path / "model"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert run_cli(*verbs(folder, tmp_path / "out")["evaluate"]) == 2
    assert "safetensors" in capsys.readouterr().err


def test_an_adapter_that_requests_the_import_of_a_library_is_refused(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(adapter / "adapter_config.json", megatron_config={"a": 1}, megatron_core="planted")
    assert score_with(adapter, tmp_path / "out") == 2
    assert "names a library to import (megatron_core), which is never imported" in capsys.readouterr().err


def test_the_error_about_a_folder_without_an_adapter_names_the_missing_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "adapter").mkdir()
    assert score_with(tmp_path / "adapter", tmp_path / "out") == 2
    assert "holds no adapter: there is no adapter_config.json" in capsys.readouterr().err


MAY_RUN_CODE = ("Auto", "FastLanguageModel", "GenerationConfig", "_fast", "fast")
"""Beginnings of class names whose `from_pretrained` accepts `trust_remote_code`."""


def test_every_load_sets_trust_remote_code_to_false() -> None:
    """Without it the value is None, and transformers asks on the terminal."""
    calls = 0
    for folder in ("cot_unsloth", "examples", "bench"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                    continue
                owner = ast.unparse(node.func.value).split(".")[-1]
                if node.func.attr != "from_pretrained" or not owner.startswith(MAY_RUN_CODE):
                    continue
                calls += 1
                given = {k.arg: k.value for k in node.keywords}
                value = given.get("trust_remote_code")
                assert isinstance(value, ast.Constant), f"{path}:{node.lineno}"
                assert value.value is False, f"{path}:{node.lineno}"
    assert calls >= 8
