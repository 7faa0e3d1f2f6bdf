"""Device, compute type and memory of this machine."""

from __future__ import annotations

import ctypes
import functools
import gc
import os

import torch

from cot_unsloth.config import RunConfig
from cot_unsloth.core.errors import EngineError


def pick_device() -> str:
    """The first CUDA GPU, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def pick_dtype(name: str, device: str) -> torch.dtype:
    """The compute type: with auto, bfloat16 on GPUs of capability 8.0 and above, float16 on older ones.

    `torch.cuda.is_bf16_supported()` is also true where bfloat16 is emulated, as on a T4 (7.5).
    """
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16


def cpu_has_bfloat16() -> bool:
    """Whether this CPU has bfloat16 instructions; without them autocast is slower than float32, with them twice as fast."""
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in tests)


def training_dtype(config: RunConfig, device: str) -> torch.dtype:
    """The type that matrix products of training are computed in."""
    if device == "cpu" and config.train.autocast and cpu_has_bfloat16():
        return torch.bfloat16
    return pick_dtype(config.model.dtype, device)


def free_memory() -> None:
    """Release what deleted models, optimizers and activations held, to the GPU and to the operating system.

    Unsloth's models are in reference cycles, so that only the garbage collector frees them. And glibc keeps freed memory
    for later use: 200 MB after 120 steps of the demo.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(_c_library(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@functools.cache
def _c_library() -> ctypes.CDLL | None:
    """The C library of this process; None on Windows."""
    return ctypes.CDLL(None) if os.name == "posix" else None


def available_memory(device: str) -> int:
    """Bytes that are free on a device: of a GPU's memory, or of this machine's."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    import psutil

    return int(psutil.virtual_memory().available)


def out_of_memory(doing: str, hint: str = "use a smaller model, or --load-in-4bit") -> EngineError:
    """The error for memory that ran out."""
    return EngineError(f"ran out of memory while {doing}", hint=hint)
