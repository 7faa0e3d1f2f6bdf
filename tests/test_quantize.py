"""The kernels against ggml's own: same layout, same error, most bytes the same."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from cot_unsloth.export.gguf.quantize import quantize

REFERENCE = json.loads((Path(__file__).parent / "data" / "ggml_quantizer.json").read_text())
"""Errors of ggml's own quantizer on the same numbers, with how they were made."""
KINDS = (Type.Q8_0, Type.Q6_K, Type.Q5_K, Type.Q4_K)


def weights(name: str) -> torch.Tensor:
    """Rows like a model's, rows with outliers, and rows that are hard."""
    made = torch.Generator().manual_seed(1)
    rows = 0.02 * torch.randn(64, 512, generator=made)
    if name == "outliers":
        rows[:, ::97] *= 20
    if name == "shifted":
        rows = rows + 0.05
    if name == "uneven":
        rows *= torch.logspace(-4, 2, 64)[:, None]
    return rows


def error(made: Any, kind: Type, rows: torch.Tensor) -> float:
    back = torch.from_numpy(gguf.quants.dequantize(made, kind).copy())
    return float((back - rows).square().sum().sqrt() / rows.square().sum().sqrt())


@pytest.mark.parametrize("name", REFERENCE["relative_rmse"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_error_is_ggmls_within_two_percent(kind: Type, name: str) -> None:
    rows = weights(name)
    assert error(quantize(rows, kind), kind, rows) <= 1.02 * REFERENCE["relative_rmse"][name][kind.name]


def ggml(rows: torch.Tensor, kind: Type) -> Any:
    """Ggml's own bytes, where the wheel of llama.cpp lets its C functions be called."""
    import xllamacpp.xllamacpp as library

    found = getattr(ctypes.CDLL(library.__file__), "ggml_quantize_chunk", None)
    if found is None:
        pytest.skip("this build of xllamacpp does not export ggml's quantizer")
    found.restype = ctypes.c_size_t
    found.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    out = np.zeros((rows.shape[0], rows.shape[1] // block * size), np.uint8)
    source = np.ascontiguousarray(rows.numpy())
    found(int(kind), source.ctypes.data, out.ctypes.data, 0, *source.shape, None)
    return out


@pytest.mark.parametrize(("kind", "share"), [(Type.Q8_0, 1.0), (Type.Q6_K, 0.99)])
def test_most_bytes_are_ggmls(kind: Type, share: float) -> None:
    rows = weights("normal")
    theirs = ggml(rows, kind)
    assert (quantize(rows, kind) == theirs).mean() >= share
    assert error(theirs, kind, rows) == pytest.approx(REFERENCE["relative_rmse"]["normal"][kind.name], rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_nothing_and_of_one_number_come_back(kind: Type) -> None:
    assert not gguf.quants.dequantize(quantize(torch.zeros(2, 256), kind), kind).any()
    for value in (3.0, -3.0):
        rows = torch.full((2, 256), value)
        assert error(quantize(rows, kind), kind, rows) < 0.02
