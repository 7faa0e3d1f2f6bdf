"""Weights in 4 and in 8 bits: what bitsandbytes is asked for, and what it is held to.

Owns how a quantized model is asked for, in how many bits a model's weights really lie, and that a layer
computes the same when it answers as when it is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import transformers

from cot_unsloth.config import ModelConfig

_LAYERS = {"Linear4bit": 4, "Linear8bitLt": 8}
"""Of bitsandbytes, and PEFT's over them; told by name, for it need not be installed."""


def asked_for(model: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """What transformers is given to load a model as the settings ask: NF4 with double quantization for 4 bits.

    Nothing where they ask for whole weights: None would hide that a model is stored in 4 bits.
    """
    if model.load_in_8bit:
        return {"quantization_config": transformers.BitsAndBytesConfig(load_in_8bit=True)}
    if model.load_in_4bit:
        found = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        return {"quantization_config": found}
    return {}


def of_weights(model: Any) -> int:
    """Bits of a weight of a model's linear layers, as they lie in memory."""
    return min((bits for _, bits in _layers(model)), default=8 * next(model.parameters()).element_size())


def compute_alike(model: Any, dtype: torch.dtype) -> None:
    """Have the layers of 4 bits compute in a type, the same when they answer as when they are trained.

    The type is stored with the weights, as bfloat16 where a T4 has none. And on CPUs with AVX512-BF16 bitsandbytes
    (0.50.2) packs weights anew when they first answer, for products that have no gradient, and leaves them so:
    whatever is then trained below them would learn next to nothing.
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
