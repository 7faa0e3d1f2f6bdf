"""Models with 4- or 8-bit weights (bitsandbytes): how to load one, and how many bits it has in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import transformers

from cot_unsloth.config import ModelConfig

_LAYERS = {"Linear4bit": 4, "Linear8bitLt": 8}
"""Classes of bitsandbytes, and PEFT's subclasses; by name, because bitsandbytes may not be installed."""


def asked_for(model: ModelConfig, dtype: torch.dtype) -> dict[str, transformers.BitsAndBytesConfig]:
    """Arguments of `from_pretrained`: NF4 with double quantization (QLoRA, arXiv 2305.14314) for 4 bits.

    Empty without quantization: a `quantization_config` of None would override that of a model stored in 4 bits.
    """
    if model.load_in_8bit:
        return {"quantization_config": transformers.BitsAndBytesConfig(load_in_8bit=True)}
    if model.load_in_4bit:
        nf4 = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        return {"quantization_config": nf4}
    return {}


def of_weights(model: Any) -> int:
    """Bits per weight of a model's linear layers in memory."""
    return min((bits for _, bits in _layers(model)), default=8 * next(model.parameters()).element_size())


def compute_alike(model: Any, dtype: torch.dtype) -> None:
    """Set the compute type of 4-bit layers, so that training and generation compute the same.

    A stored model brings its own compute type, often bfloat16, which a T4 lacks. On CPUs with AVX512-BF16, bitsandbytes
    (0.50.2) repacks the weights at the first product without gradient and keeps them so: layers below would then get
    almost no gradient in training.
    """
    for layer, bits in _layers(model):
        if bits == 4:
            layer.compute_dtype, layer.support_avx512bf16_for_cpu = dtype, False


def _layers(model: Any) -> Iterator[tuple[Any, int]]:
    for module in model.modules():
        for kind in type(module).__mro__:
            if kind.__name__ in _LAYERS:
                yield module, _LAYERS[kind.__name__]
                break
