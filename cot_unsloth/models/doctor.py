"""`doctor`: checks whether this machine can do a run with the settings, and what the run would use.

Checks GPU, driver, libraries, memory and disk; each fault comes with the command that fixes it. Libraries that may be broken
are imported in a process of their own: a kernel built for another torch or GPU can crash Python.
"""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cot_unsloth.config import RunConfig
from cot_unsloth.core.progress import size
from cot_unsloth.models import estimate, estimate_time, registry, techniques
from cot_unsloth.storage.atomic import free_space

Level = Literal["ok", "note", "warning", "fault"]
TESTED: Mapping[str, str] = {
    "torch": "2.13.0", "transformers": "5.17.0", "trl": "1.14.2", "peft": "0.21.2", "datasets": "4.8.5",
    "accelerate": "1.15.0", "gguf": "0.19.0", "xllamacpp": "2026.10.11549",
}  # fmt: skip
"""Versions that the tests and the demo ran with; a test compares them with constraints.txt."""
_NEEDED_FREE = 10 * 2**30
"""Free disk space below which a 3B model (6 GB in 16 bits) and a GGUF export of it do not both fit."""
_TRY_SECONDS = 180
_NOT_LONG = 2 * 3600
"""Training time in seconds up to which `doctor` reports it as ok."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    level: Level
    about: str
    message: str
    hint: str = ""
    """How to fix it; never empty for a warning or a fault."""


@dataclass(frozen=True)
class Gpu:
    """The first CUDA GPU, as torch sees it."""

    name: str
    capability: tuple[int, int]
    total: int
    """Bytes."""
    free: int


def examine(config: RunConfig) -> list[Finding]:
    """Run every check, the cheapest first."""
    gpu = _gpu()
    findings = [*_python(), *_versions(), *_graphics(gpu), *_memory(gpu)]
    if gpu is not None or config.model.quantization_bits:
        findings += _bitsandbytes()
    if gpu is not None:
        findings += _xformers()
    if registry.installed("unsloth"):
        findings += _unsloth()
    return [*findings, *_reasoning_gym(), *_llama_cpp(), *_disk(config), *_techniques(), *_would_use(config, gpu)]


def _python() -> Iterator[Finding]:
    yield Finding("ok", "python", f"{platform.python_version()} on {platform.platform()}")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> Iterator[Finding]:
    """Installed versions against the bounds of this package, and against the tested set."""
    from packaging.requirements import Requirement

    bounds = {}
    for line in importlib.metadata.requires("cot-unsloth") or []:
        requirement = Requirement(line)
        if requirement.marker is None:
            bounds[requirement.name] = requirement.specifier
    for name, tested in TESTED.items():
        installed = _version(name)
        if installed is None:
            yield Finding("fault", name, "is not installed", f"pip install '{name}=={tested}'")
        elif name in bounds and not bounds[name].contains(installed, prereleases=True):
            yield Finding("fault", name, f"{installed} is not in {bounds[name]}", f"pip install '{name}=={tested}'")
        elif installed.split("+")[0] != tested:
            yield Finding("note", name, f"{installed}; tested with {tested}")
        else:
            yield Finding("ok", name, installed)


def _reasoning_gym() -> Iterator[Finding]:
    installed = _version("reasoning-gym")
    if installed is None:
        yield Finding(
            "note", "reasoning-gym", "is not installed; data sets gym:NAME need it: pip install 'cot-unsloth[gym]'"
        )
    else:
        yield Finding("ok", "reasoning-gym", f"{installed}, for data sets gym:NAME; docs/data.md lists them")


def _gpu() -> Gpu | None:
    import torch

    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return Gpu(torch.cuda.get_device_name(), torch.cuda.get_device_capability(), total, free)


def driver() -> tuple[str, str] | None:
    """Name of the first NVIDIA GPU and version of its driver, from nvidia-smi; None without a driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    name, _, version = output.partition("\n")[0].partition(", ")
    return (name, version) if version else None


def _graphics(gpu: Gpu | None) -> Iterator[Finding]:
    """The GPU, or why torch does not see one that the driver sees."""
    import torch

    driven, built = driver(), torch.version.cuda
    if gpu is not None:
        major, minor = gpu.capability
        version = f", driver {driven[1]}" if driven else ""
        yield Finding("ok", "GPU", f"{gpu.name}, capability {major}.{minor}{version}, torch built for CUDA {built}")
        if gpu.capability < (7, 0):
            yield Finding("fault", "GPU", "is older than capability 7.0", "use a GPU from 2018 or later, such as a T4")
        elif not runs_on(gpu.capability, torch.cuda.get_arch_list()):
            kernels = f"torch {torch.__version__} has no kernels for capability {major}.{minor}"
            yield Finding("fault", "GPU", kernels, "install a torch built for a CUDA that supports this GPU")
    elif driven is None:
        yield Finding("note", "GPU", "no NVIDIA driver found; using the CPU")
    elif built is None:
        hint = f"pip uninstall -y torch, then {_GPU_SET}"
        message = f"there is a {driven[0]}, but torch {torch.__version__} is built for CPUs only"
        yield Finding("fault", "GPU", message, hint)
    else:
        yield Finding(
            "fault", "GPU", f"{driven[0]}: driver {driven[1]} does not support CUDA {built}, which torch is built for",
            "update the driver, or install a torch built for an older CUDA",
        )  # fmt: skip


def runs_on(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Whether a torch built for these architectures has kernels for a GPU.

    Machine code (sm_75) runs on its own major version from its minor version on, PTX (compute_75) on every later GPU.
    Other names, such as AMD's gfx90a, say nothing.

    >>> runs_on((7, 0), ["sm_75", "compute_120"]), runs_on((8, 9), ["sm_75", "sm_80"]), runs_on((9, 0), ["gfx90a"])
    (False, True, True)
    """
    names = [name for name in (re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", text) for text in architectures) if name]
    built = [(name[1], (int(name[2]), int(name[3]))) for name in names]
    return not built or any(v <= capability and (kind == "compute" or v[0] == capability[0]) for kind, v in built)


def attention(capability: tuple[int, int], installed: Mapping[str, bool]) -> str:
    """The attention that Unsloth is expected to use for packed rows on a GPU, if its own function cannot be called.

    FlashAttention 2 needs capability 8.0. Below that, from 7.5, xformers is used if it is installed; otherwise torch's
    SDPA. docs/gpu.md has the sources.

    >>> attention((7, 5), {"flash_attn": True, "xformers": True})
    'xformers'
    >>> attention((8, 9), {"flash_attn": False, "xformers": True})
    'SDPA'
    """
    if installed.get("flash_attn") and capability >= (8, 0):
        return "FlashAttention 2"
    return "xformers" if installed.get("xformers") and (7, 5) <= capability < (8, 0) else "SDPA"


def _memory(gpu: Gpu | None) -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    yield Finding("ok", "memory", f"{size(memory.available)} of {size(memory.total)} free")
    if gpu is not None:
        level: Level = "ok" if gpu.free > gpu.total / 2 else "note"
        busy = "" if level == "ok" else "; another program uses the rest (nvidia-smi shows which)"
        yield Finding(level, "GPU memory", f"{size(gpu.free)} of {size(gpu.total)} free{busy}")


def _try(code: str) -> tuple[bool, str]:
    """Run Python code in a process of its own: whether it succeeded, and the last line that it printed."""
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=_TRY_SECONDS)
    except subprocess.TimeoutExpired:
        return False, f"took more than {_TRY_SECONDS} s"
    lines = [line for line in (done.stdout if done.returncode == 0 else done.stderr).splitlines() if line.strip()]
    return done.returncode == 0, lines[-1] if lines else f"ended with exit code {done.returncode}"


def _bitsandbytes() -> Iterator[Finding]:
    """Whether the kernels of bitsandbytes run. If the settings need it and it is not installed, `_would_use` reports it."""
    if not registry.installed("bitsandbytes"):
        yield Finding("note", "bitsandbytes", "is not installed")
        return
    # Importing it succeeds even if its kernels are built for another torch or GPU.
    code = (
        "import torch, bitsandbytes as b, bitsandbytes.functional as f; "
        "f.quantize_4bit(torch.ones(64, 64, device='cuda' if torch.cuda.is_available() else 'cpu').half()); print(b.__version__)"
    )
    yield _finding_of("bitsandbytes", code, "does not run", f"{_GPU_SET}, which are built for each other")


_XFORMERS = """
import xformers
from xformers._cpp_lib import _register_extensions
try:
    _register_extensions()
    print(xformers.__version__)
except Exception as error:
    print("does not load, so Unsloth uses torch's attention:", *str(error).split())
"""


def _xformers() -> Iterator[Finding]:
    """Whether xformers loads. Unsloth does without if it raises an error, as PyPI's wheel does beside a torch for CUDA 13."""
    if not registry.installed("xformers"):
        yield Finding("note", "xformers", "is not installed")
        return
    finding = _finding_of(
        "xformers", _XFORMERS, "crashes", "pip uninstall -y xformers: Unsloth then uses torch's attention"
    )
    yield replace(finding, level="note") if finding.message.startswith("does not load") else finding


_GPU_SET = "pip install -r requirements.txt -c constraints-gpu.txt"


def _finding_of(about: str, code: str, failure: str, hint: str) -> Finding:
    """A finding with what Python code printed, or how it failed."""
    succeeded, line = _try(code)
    return Finding("ok", about, line) if succeeded else Finding("fault", about, f"{failure}: {line}", hint)


def _unsloth() -> Iterator[Finding]:
    """Whether Unsloth loads, with our switches."""
    code = "from cot_unsloth.models.unsloth_engine import import_unsloth as i; print(i().__version__)"
    yield _finding_of("unsloth", code, "does not load", _GPU_SET)


def _llama_cpp() -> Iterator[Finding]:
    code = "import xllamacpp; print('loads, so exports can be verified')"
    yield _finding_of("llama.cpp", code, "xllamacpp does not load", "pip install --force-reinstall xllamacpp")


def _disk(config: RunConfig) -> Iterator[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = {"runs": Path(config.train.run_dir or "runs"), "hub's cache": Path(HF_HUB_CACHE)}
    for about, folder in folders.items():
        path, free = free_space(folder.absolute())
        level: Level = "ok" if free > _NEEDED_FREE else "note"
        more = "" if level == "ok" else "; too little for a model of a few billion parameters"
        yield Finding(level, f"disk of the {about}", f"{size(free)} free at {path}{more}")


def _techniques() -> Iterator[Finding]:
    """The techniques that each engine can train, by bits of the base's weights; docs/techniques.md explains the missing ones."""
    for engine in techniques.ENGINES:
        for bits in techniques.BITS:
            width = "16 or 32" if bits == 16 else str(bits)
            yield Finding(
                "ok", f"techniques of {engine} on {width} bits", ", ".join(techniques.supported(engine, bits))
            )


def _would_use(config: RunConfig, gpu: Gpu | None) -> Iterator[Finding]:
    """Engine, types and attention that a run with these settings would use here, and what it would need."""
    from cot_unsloth.core.errors import ModelError
    from cot_unsloth.models.devices import cpu_has_bfloat16, pick_device, pick_dtype

    try:
        choice = registry.choose(config.model)
    except ModelError as error:
        yield Finding("fault", "engine", error.message, error.hint or "")
        return
    yield Finding("ok", "engine", f"{choice.engine}: {choice.why}")
    refused = techniques.refusal(config, choice.engine)
    if refused:
        yield Finding("fault", (refused.where or "technique").rpartition(".")[2], refused.message, refused.hint or "")
    obstacle = registry.obstacle(config.model)
    if obstacle:
        yield Finding(
            "fault", (obstacle.where or "weights").removeprefix("model."), obstacle.message, obstacle.hint or ""
        )
    device = pick_device()
    if device == "cpu" and config.model.quantization_bits and not obstacle:
        yield Finding("note", "weights", "4 or 8 bits on a CPU save memory, but computing with them is slower")
    dtype = str(pick_dtype(config.model.dtype, device)).removeprefix("torch.")
    half = " (autocast to bfloat16)" if device == "cpu" and config.train.autocast and cpu_has_bfloat16() else ""
    yield Finding("ok", "computes in", f"{dtype} on {device}{half}")
    if gpu is not None:
        yield Finding("ok", "attention", _attention_of_unsloth(gpu) if choice.engine == "unsloth" else "SDPA")
    yield from _would_need(config, device)


def _would_need(config: RunConfig, device: str) -> Iterator[Finding]:
    """Memory and time of training with these settings here."""
    shape = estimate.shape_of(config.model)
    name = config.model.model_name_or_path
    if shape is None:
        message = (
            f"{name} is not on this machine, and its name does not contain its size: memory and time are not estimated"
        )
        yield Finding("note", "size", message)
        return
    guess = " (a guess from its name: it is not on this machine)" if shape.guessed else ""
    yield Finding("ok", "size", f"{name} has about {shape.parameters / 1e6:,.0f} million weights{guess}")
    yield _memory_of_training(config, shape, device)
    yield _time(config, shape, device)


def _memory_of_training(config: RunConfig, shape: estimate.Shape, device: str) -> Finding:
    """Memory for rows of typical length, with a warning if rows of the maximum length would not fit."""
    usual, most = min(estimate_time.ASSUMED_TOKENS, config.data.max_seq_length), config.data.max_seq_length
    needed, (total, location) = estimate.memory(config, shape, usual, device), estimate.room(device)
    about, line = (
        "memory of training",
        f"{estimate.describe_memory(needed, total, location)}, for rows of {usual} tokens",
    )
    if needed.weights > total:
        return Finding("fault", about, f"{line}: the weights alone do not fit", estimate.SMALLER)
    if needed.total > total:
        return Finding("warning", about, line, estimate.SMALLER)
    longest = estimate.memory(config, shape, most, device).total
    if longest > total:
        line += f"; for rows of {most:,} tokens, the longest that the settings allow, {size(longest)}"
        return Finding("note", about, f"{line}: --max-seq-length lowers it")
    return Finding("ok", about, line)


def _time(config: RunConfig, shape: estimate.Shape, device: str) -> Finding:
    if config.train.method == "sft":
        work = estimate_time.assumed_work(config)
        took = estimate_time.seconds_here(config, shape, work, device)
        seconds, line = took.training, estimate_time.describe_time(config, took, work, device)
    else:
        seconds, line = estimate_time.describe_attempts(config, shape, estimate_time.attempts(config), device)
    if seconds > estimate_time.LONG:
        return Finding("warning", "time of training", line, estimate_time.FASTER)
    return Finding("ok" if seconds < _NOT_LONG else "note", "time of training", line)


def _attention_of_unsloth(gpu: Gpu) -> str:
    """The attention that Unsloth selects for packed rows, or the expected one if it cannot be asked."""
    ask = "from unsloth.utils.attention_dispatch import select_attention_backend as s; print(s(True))"
    succeeded, backend = _try(f"from cot_unsloth.models.unsloth_engine import import_unsloth as i; i(); {ask}")
    libraries = {name: registry.installed(name) for name in ("flash_attn", "xformers")}
    return backend if succeeded else attention(gpu.capability, libraries)


def report(findings: list[Finding], width: int | None = None) -> str:
    """The findings as text; faults and warnings are repeated at the end, each with its hint.

    Args:
        findings: of `examine`.
        width: columns to wrap lines to; None for a line each.
    """
    marks = {"ok": "ok   ", "note": "note ", "warning": "WARN ", "fault": "FAULT"}
    lines = [f"{marks[f.level]} {f.about}: {f.message}" for f in findings]
    faults, warnings = ([f for f in findings if f.level == level] for level in ("fault", "warning"))
    for finding in (*warnings, *faults):
        lines += ["", f"{finding.about}: {finding.message}", f"  hint: {finding.hint}"]
    if faults:
        lines += ["", f"{len(faults)} fault{'s' * (len(faults) != 1)} to fix"]
    else:
        lines += ["", "this machine can run it" + (", but it makes little sense" if warnings else "")]
    if width is not None:
        wrap = functools.partial(textwrap.fill, width=width, break_long_words=False, break_on_hyphens=False)
        lines = [wrap(line, subsequent_indent=" " * 6) for line in lines]
    return "\n".join(lines)
