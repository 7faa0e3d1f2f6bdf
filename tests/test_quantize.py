"""Our quantization kernels compared with ggml's: same layout, same error, most bytes equal."""

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
"""Errors of ggml's quantizer on the same numbers, and how they were obtained."""
KINDS = (Type.Q8_0, Type.Q6_K, Type.Q5_K, Type.Q4_K)


def weights(name: str) -> torch.Tensor:
    """64 rows of 512 weights: normal ones, or with outliers, a shift, or very different scales."""
    generator = torch.Generator().manual_seed(1)
    rows = 0.02 * torch.randn(64, 512, generator=generator)
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
def test_the_quantization_error_is_at_most_two_percent_above_ggmls(kind: Type, name: str) -> None:
    rows = weights(name)
    assert error(quantize(rows, kind), kind, rows) <= 1.02 * REFERENCE["relative_rmse"][name][kind.name]


def ggml(rows: torch.Tensor, kind: Type) -> Any:
    """The bytes of ggml's quantizer; the test is skipped if the installed llama.cpp does not export it."""
    import xllamacpp.xllamacpp as library

    quantize_chunk = getattr(ctypes.CDLL(library.__file__), "ggml_quantize_chunk", None)
    if quantize_chunk is None:
        pytest.skip("this build of xllamacpp does not export ggml's quantizer")
    quantize_chunk.restype = ctypes.c_size_t
    quantize_chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    out = np.zeros((rows.shape[0], rows.shape[1] // block * size), np.uint8)
    source = np.ascontiguousarray(rows.numpy())
    quantize_chunk(int(kind), source.ctypes.data, out.ctypes.data, 0, *source.shape, None)
    return out


@pytest.mark.parametrize(("kind", "share"), [(Type.Q8_0, 1.0), (Type.Q6_K, 0.99)])
def test_most_bytes_equal_ggmls(kind: Type, share: float) -> None:
    rows = weights("normal")
    expected = ggml(rows, kind)
    assert (quantize(rows, kind) == expected).mean() >= share
    assert error(expected, kind, rows) == pytest.approx(REFERENCE["relative_rmse"]["normal"][kind.name], rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_zeros_and_of_one_value_are_preserved(kind: Type) -> None:
    assert not gguf.quants.dequantize(quantize(torch.zeros(2, 256), kind), kind).any()
    for value in (3.0, -3.0):
        rows = torch.full((2, 256), value)
        assert error(quantize(rows, kind), kind, rows) < 0.02
