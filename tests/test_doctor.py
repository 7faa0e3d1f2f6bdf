"""`doctor`: what it inspects, and that each fault comes with a fix."""

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


def finding_about(about: str, findings: list[doctor.Finding]) -> doctor.Finding:
    [result] = [finding for finding in findings if finding.about == about]
    return result


def test_the_tested_versions_are_the_pinned_ones() -> None:
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE))
    assert dict(doctor.TESTED) == {name: pins[name] for name in doctor.TESTED}


def test_doctor_approves_this_machine_and_lists_what_a_run_would_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("doctor") == 0
    output = capsys.readouterr().out
    for part in ("python:", "torch: ", "memory: ", "llama.cpp: loads", "disk of the runs: ", "engine: hf"):
        assert part in output
    assert output.rstrip().endswith("this machine can run it")


def test_settings_this_machine_cannot_use_are_a_fault_with_a_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.estimate, "room", lambda device: (32 * 2**30, "here"))
    installed = registry.installed
    monkeypatch.setattr(registry, "installed", lambda name: name != "bitsandbytes" and installed(name))
    assert run_cli("doctor", str(ROOT / "configs" / "qwen2.5-7b.yaml")) == 1
    output = capsys.readouterr().out
    assert "FAULT load_in_4bit: needs bitsandbytes, which is not installed" in output
    assert "hint: pip install bitsandbytes, or --no-load-in-4bit" in output
    assert output.rstrip().endswith("1 fault to fix")


@pytest.mark.parametrize(
    ("built", "message", "fix"),
    [
        (None, "is built for CPUs only", "constraints-gpu.txt"),
        ("13.0", "does not support CUDA 13.0", "update the driver"),
    ],
)
def test_a_gpu_that_torch_does_not_detect_is_a_fault(
    built: str | None, message: str, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers of the driver and of torch are simulated, so this runs on any machine."""
    monkeypatch.setattr(doctor, "driver", lambda: ("Tesla T4", "470.82"))
    monkeypatch.setattr(torch.version, "cuda", built)
    [finding] = doctor._graphics(None)
    assert finding.level == "fault"
    assert message in finding.message
    assert fix in finding.hint


def test_the_driver_is_queried_and_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    for text, expected in (("echo 'Tesla T4, 550.54'", ("Tesla T4", "550.54")), ("exit 9", None), ("echo", None)):
        tool.write_text(f"#!/bin/sh\n{text}\n")
        tool.chmod(0o755)
        assert doctor.driver() == expected
    tool.unlink()
    assert doctor.driver() is None


def test_a_version_outside_the_bounds_is_a_fault_and_an_untested_one_inside_them_a_note(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    versions = {"trl": "1.15.0", "peft": "0.20.0", "gguf": None}
    known = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: versions[name] if name in versions else known(name))
    findings = list(doctor._versions())
    assert finding_about("trl", findings).level == "fault"
    assert finding_about("trl", findings).hint == f"pip install 'trl=={doctor.TESTED['trl']}'"
    assert finding_about("peft", findings).level == "note"
    assert finding_about("gguf", findings).message == "is not installed"


@pytest.mark.parametrize(
    ("body", "level", "message"),
    [
        ("pass", "ok", "0.0.35"),
        # PyPI's wheel is built for CUDA 12; beside a torch for CUDA 13, Unsloth uses torch's attention.
        ("raise RuntimeError('built for\\n  CUDA 1208')", "note", "uses torch's attention: built for CUDA 1208"),
        ("import os; os.kill(os.getpid(), 11)", "fault", "crashes: ended with exit code -11"),
    ],
)
def test_only_an_xformers_that_crashes_is_a_fault(
    body: str, level: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "xformers").mkdir()
    (tmp_path / "xformers" / "__init__.py").write_text("__version__ = '0.0.35'")
    (tmp_path / "xformers" / "_cpp_lib.py").write_text(f"def _register_extensions():\n    {body}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(registry, "installed", lambda name: True)
    [finding] = doctor._xformers()
    assert finding.level == level
    assert message in finding.message
    assert bool(finding.hint) == (level == "fault")


@pytest.mark.parametrize(
    ("card", "capability", "installed", "expected"),
    [
        ("T4", (7, 5), ("flash_attn", "xformers"), "xformers"),
        ("T4", (7, 5), (), "SDPA"),
        ("RTX 3090", (8, 6), ("flash_attn", "xformers"), "FlashAttention 2"),
        ("RTX 4090", (8, 9), ("xformers",), "SDPA"),
        ("RTX 5090", (12, 0), (), "SDPA"),
    ],
)
def test_the_attention_implementation_depends_on_the_card(
    card: str, capability: tuple[int, int], installed: tuple[str, ...], expected: str
) -> None:
    assert doctor.attention(capability, dict.fromkeys(installed, True)) == expected, card


def test_a_gpu_is_reported_with_its_dtype_and_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = doctor.Gpu("Tesla T4", (7, 5), 16 * 2**30, 15 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    monkeypatch.setattr(doctor.estimate, "room", lambda device: (gpu.total, "of the GPU"))
    monkeypatch.setattr(doctor.estimate_time, "speed", lambda device, dtype: 3e13)
    settings = config.load(ROOT / "configs" / "llama3.2-3b.yaml", {"engine": "hf"})
    monkeypatch.setattr(doctor.registry, "installed", lambda name: False)
    (finding,) = [finding for finding in doctor._would_use(settings, gpu) if finding.level == "fault"]
    assert (finding.about, finding.hint) == ("load_in_4bit", "pip install bitsandbytes, or --no-load-in-4bit")
    monkeypatch.setattr(doctor.registry, "installed", lambda name: True)
    findings = list(doctor._would_use(settings, gpu))
    assert finding_about("computes in", findings).message == "float16 on cuda"
    assert finding_about("attention", findings).message == "SDPA"
    assert not [finding for finding in findings if finding.level == "fault"]


def test_doctor_runs_in_any_folder_and_writes_nothing(tmp_path: Path) -> None:
    done = forked("cot_unsloth", "doctor", at=tmp_path)
    assert done.returncode == 0, done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_card_that_is_too_old_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    old = doctor.Gpu("GeForce GTX 1080", (6, 1), 8 * 2**30, 8 * 2**30)
    nothing: Any = SimpleNamespace(cuda="12.8")
    monkeypatch.setattr(torch, "version", nothing)
    assert [finding.level for finding in doctor._graphics(old)] == ["ok", "fault"]
    # Torch for CUDA 13 begins with Turing.
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90a", "compute_120"])
    for capability, levels in (((7, 0), ["ok", "fault"]), ((7, 5), ["ok"]), ((8, 9), ["ok"]), ((12, 1), ["ok"])):
        gpu = doctor.Gpu("a card", capability, 16 * 2**30, 15 * 2**30)
        assert [finding.level for finding in doctor._graphics(gpu)] == levels


def would_use(**leaves: Any) -> list[doctor.Finding]:
    """Findings about a run with these settings, on a CPU."""
    return list(doctor._would_use(config.load(None, leaves), None))


def test_memory_and_time_of_a_large_model_on_a_cpu_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The size is guessed from the name of a model that is not local, and reported as a guess."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.estimate, "room", lambda device: (64 * 2**30, "here"))
    monkeypatch.setattr(doctor.estimate_time, "speed", lambda device, dtype: 1e11)
    findings = would_use(model_name_or_path="meta-llama/Llama-3.2-3B-Instruct", dtype="float32")
    size = finding_about("size", findings).message
    assert "about 3,000 million weights (a guess from its name" in size
    assert re.search(
        r"takes about 1\d\.\d GiB of 64\.0 GiB here", finding_about("memory of training", findings).message
    )
    time = finding_about("time of training", findings)
    assert time.level == "warning"
    assert re.search(r"on [\d,]+ rows of 300 tokens takes about \d+ (h|days) here", time.message)
    lines = doctor.report(findings).splitlines()
    assert lines[-3:] == [
        "  hint: use a smaller model, fewer rows (--max-train-samples), or a GPU",
        "",
        "this machine can run it, but it makes little sense",
    ]
    assert max(map(len, doctor.report(findings, 80).splitlines())) <= 80
    assert "".join(doctor.report(findings, 80).split()) == "".join(doctor.report(findings).split())


def test_weights_that_do_not_fit_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.estimate, "room", lambda device: (8 * 2**30, "here"))
    findings = would_use(model_name_or_path="Qwen/Qwen2.5-7B-Instruct", dtype="float32")
    memory = finding_about("memory of training", findings)
    assert memory.level == "fault"
    assert memory.message.endswith("the weights alone do not fit")
    assert "smaller model" in memory.hint
    assert doctor.report(findings).splitlines()[-1] == "1 fault to fix"


@pytest.mark.parametrize(
    ("method", "drawn"),
    [
        ({"method": "rft", "max_train_samples": 500}, "4,000 attempts of a round"),
        ({"method": "grpo", "max_steps": 100}, "6,400 attempts"),
    ],
)
def test_where_the_length_of_answers_is_not_known_the_time_to_draw_short_ones_is_reported(
    method: dict[str, Any], drawn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.estimate_time, "speed", lambda device, dtype: 1e11)
    time = finding_about("time of training", would_use(**method, model_name_or_path="Qwen/Qwen2.5-7B-Instruct"))
    assert time.message.startswith(f"drawing the {drawn} takes about")
    assert time.level == "warning"
    tiny = finding_about("time of training", would_use(**method))
    assert tiny.level == "ok"


def test_four_bits_on_a_cpu_are_named_as_left_out_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(registry, "obstacle", lambda model: None)
    monkeypatch.setattr(doctor.estimate, "room", lambda device: (64 * 2**30, "here"))
    monkeypatch.setattr(doctor.estimate_time, "speed", lambda device, dtype: 1e11)
    findings = would_use(model_name_or_path="Qwen/Qwen2.5-7B-Instruct", load_in_4bit=True)
    time = finding_about("time of training", findings)
    assert time.level == "warning"
    assert "dequantizing the 4-bit weights at every use comes on top" in time.message


def test_rows_as_long_as_the_settings_admit_may_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.estimate_time, "speed", lambda device, dtype: 1e11)
    monkeypatch.setattr(doctor.estimate, "room", lambda device: (20 * 2**30, "here"))
    three = {"model_name_or_path": "meta-llama/Llama-3.2-3B-Instruct", "dtype": "float32"}
    memory = finding_about("memory of training", would_use(**three, max_seq_length=4096))
    assert memory.level == "note"
    assert "for rows of 4,096 tokens, the longest that the settings allow" in memory.message


def test_tight_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.estimate, "room", lambda device: (13 * 2**30, "here"))
    monkeypatch.setattr(doctor.estimate_time, "speed", lambda device, dtype: 1e11)
    findings = would_use(model_name_or_path="meta-llama/Llama-3.2-3B-Instruct", dtype="float32")
    assert finding_about("memory of training", findings).level == "warning"


def test_the_demo_takes_minutes_and_little_memory() -> None:
    findings = would_use()
    assert finding_about("size", findings).message == "tiny-base has about 2 million weights"
    assert {finding_about(f"{about} of training", findings).level for about in ("memory", "time")} == {"ok"}


def test_a_model_name_without_a_size_is_reported_as_such() -> None:
    findings = would_use(model_name_or_path="someone/mine", dtype="float32")
    assert (
        finding_about("size", findings).message
        == "someone/mine is not on this machine, and its name does not contain its size: memory and time are not estimated"
    )
