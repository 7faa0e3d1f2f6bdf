"""What doctor looks at, and that each fault comes with what mends it."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import forked, run_cli

from cot_unsloth import config
from cot_unsloth.models import doctor, registry

ROOT = Path(__file__).parent.parent


def found(about: str, findings: list[doctor.Finding]) -> doctor.Finding:
    [one] = [finding for finding in findings if finding.about == about]
    return one


def test_the_tested_set_is_the_pinned_one() -> None:
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE))
    assert dict(doctor.TESTED) == {name: pins[name] for name in doctor.TESTED}


def test_this_machine_is_fit_and_told_what_would_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("doctor") == 0
    said = capsys.readouterr().out
    for part in ("python:", "torch: ", "memory: ", "llama.cpp: loads", "disk of the runs: ", "engine: hf"):
        assert part in said
    assert said.rstrip().endswith("fit for a run")


def test_what_cannot_be_loaded_here_is_a_fault_with_its_mend(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.estimate, "room", lambda device: (32 * 2**30, "here"))
    there = registry.installed
    monkeypatch.setattr(registry, "installed", lambda name: name != "bitsandbytes" and there(name))
    assert run_cli("doctor", str(ROOT / "configs" / "qwen2.5-7b.yaml")) == 1
    said = capsys.readouterr().out
    assert "FAULT load_in_4bit: needs bitsandbytes, which is not installed" in said
    assert "hint: pip install bitsandbytes, or --no-load-in-4bit" in said
    assert said.rstrip().endswith("1 to mend")


@pytest.mark.parametrize(
    ("built", "said", "mend"),
    [
        (None, "is a build for CPUs", "constraints-gpu.txt"),
        ("13.0", "does not serve torch's CUDA 13.0", "update the driver"),
    ],
)
def test_a_gpu_that_torch_does_not_see_is_a_fault(
    built: str | None, said: str, mend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither card nor driver is here, so what they would say is put in their mouth."""
    monkeypatch.setattr(doctor, "driver", lambda: ("Tesla T4", "470.82"))
    monkeypatch.setattr(torch.version, "cuda", built)
    [finding] = doctor._graphics(None)
    assert finding.level == "fault"
    assert said in finding.found
    assert mend in finding.mend


def test_the_driver_is_asked_and_may_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    for text, expected in (("echo 'Tesla T4, 550.54'", ("Tesla T4", "550.54")), ("exit 9", None), ("echo", None)):
        tool.write_text(f"#!/bin/sh\n{text}\n")
        tool.chmod(0o755)
        assert doctor.driver() == expected
    tool.unlink()
    assert doctor.driver() is None


def test_a_version_outside_the_bounds_is_a_fault_and_another_inside_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"trl": "1.15.0", "peft": "0.20.0", "gguf": None}
    known = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: versions[name] if name in versions else known(name))
    findings = list(doctor._versions())
    assert found("trl", findings).level == "fault"
    assert found("trl", findings).mend == f"pip install 'trl=={doctor.TESTED['trl']}'"
    assert found("peft", findings).level == "note"
    assert found("gguf", findings).found == "is not installed"


def test_a_library_that_crashes_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "xformers").mkdir()
    (tmp_path / "xformers" / "__init__.py").write_text("__version__ = '0'")
    (tmp_path / "xformers" / "_cpp_lib.py").write_text(
        "import os\ndef _register_extensions():\n    os.kill(os.getpid(), 11)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(registry, "installed", lambda name: True)
    [finding] = doctor._tried("xformers")
    assert finding.level == "fault"
    assert "does not run" in finding.found
    assert doctor._GPU_SET in finding.mend


@pytest.mark.parametrize(
    ("card", "capability", "installed", "serves"),
    [
        ("T4", (7, 5), ("flash_attn", "xformers"), "xformers"),
        ("T4", (7, 5), (), "SDPA"),
        ("RTX 3090", (8, 6), ("flash_attn", "xformers"), "FlashAttention 2"),
        ("RTX 4090", (8, 9), ("xformers",), "SDPA"),
        ("RTX 5090", (12, 0), (), "SDPA"),
    ],
)
def test_which_attention_serves_which_card(
    card: str, capability: tuple[int, int], installed: tuple[str, ...], serves: str
) -> None:
    assert doctor.attention(capability, dict.fromkeys(installed, True)) == serves, card


def test_a_gpu_is_told_with_its_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = doctor.Gpu("Tesla T4", (7, 5), 16 * 2**30, 15 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    monkeypatch.setattr(doctor.estimate, "room", lambda device: (gpu.total, "of the GPU"))
    monkeypatch.setattr(doctor.estimate, "speed", lambda device, dtype: 3e13)
    settings = config.load(ROOT / "configs" / "llama3.2-3b.yaml", {"engine": "hf"})
    monkeypatch.setattr(doctor.registry, "installed", lambda name: False)
    (finding,) = [finding for finding in doctor._would_use(settings, gpu) if finding.level == "fault"]
    assert (finding.about, finding.mend) == ("load_in_4bit", "pip install bitsandbytes, or --no-load-in-4bit")
    monkeypatch.setattr(doctor.registry, "installed", lambda name: True)
    findings = list(doctor._would_use(settings, gpu))
    assert found("computes in", findings).found == "float16 on cuda"
    assert found("attention", findings).found == "SDPA"
    assert not [finding for finding in findings if finding.level == "fault"]


def test_it_runs_where_a_user_starts_it(tmp_path: Path) -> None:
    done = forked("cot_unsloth", "doctor", at=tmp_path)
    assert done.returncode == 0, done.stdout
    assert list(tmp_path.iterdir()) == []


def test_old_cards_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    old = doctor.Gpu("GeForce GTX 1080", (6, 1), 8 * 2**30, 8 * 2**30)
    nothing: Any = SimpleNamespace(cuda="12.8")
    monkeypatch.setattr(torch, "version", nothing)
    assert [finding.level for finding in doctor._graphics(old)] == ["ok", "fault"]


def would_use(**leaves: Any) -> list[doctor.Finding]:
    """What doctor says of a run with some settings, on a CPU."""
    return list(doctor._would_use(config.load(None, leaves), None))


def test_a_large_model_on_a_cpu_is_told_its_memory_and_its_days(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that is not here, its name tells the size, and doctor says that this is a guess."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.estimate, "room", lambda device: (64 * 2**30, "here"))
    monkeypatch.setattr(doctor.estimate, "speed", lambda device, dtype: 1e11)
    findings = would_use(model_name_or_path="meta-llama/Llama-3.2-3B-Instruct", dtype="float32")
    said = found("size", findings).found
    assert "about 3,000 million weights (a guess from its name" in said
    assert re.search(r"takes about 1\d\.\d GiB of 64\.0 GiB here", found("memory of training", findings).found)
    time = found("time of training", findings)
    assert time.level == "note"
    assert re.search(r"1,000 rows of 300 tokens takes about \d+ (h|days) here: take a smaller model", time.found)
    assert doctor.report(findings).splitlines()[-1] == "fit for a run, though a slow one"


def test_weights_that_do_not_fit_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.estimate, "room", lambda device: (8 * 2**30, "here"))
    findings = would_use(model_name_or_path="Qwen/Qwen2.5-7B-Instruct", dtype="float32")
    memory = found("memory of training", findings)
    assert memory.level == "fault"
    assert memory.found.endswith("the weights alone do not fit")
    assert "smaller model" in memory.mend
    assert doctor.report(findings).splitlines()[-1] == "1 to mend"


def test_memory_that_is_tight_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.estimate, "room", lambda device: (13 * 2**30, "here"))
    monkeypatch.setattr(doctor.estimate, "speed", lambda device, dtype: 1e11)
    findings = would_use(model_name_or_path="meta-llama/Llama-3.2-3B-Instruct", dtype="float32")
    assert found("memory of training", findings).level == "note"


def test_the_demo_takes_minutes_and_little_memory() -> None:
    findings = would_use()
    assert found("size", findings).found == "tiny-base has about 2 million weights"
    assert {found(f"{about} of training", findings).level for about in ("memory", "time")} == {"ok"}


def test_a_name_without_a_size_is_said_to_tell_none() -> None:
    findings = would_use(model_name_or_path="someone/mine", dtype="float32")
    assert (
        found("size", findings).found == "someone/mine is not here to be looked at, and its name does not tell its size"
    )
