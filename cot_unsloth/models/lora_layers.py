"""Recognizes plain LoRA layers, which may be computed in another way than PEFT's."""

from __future__ import annotations

from typing import Any

import peft


def is_plain_lora(module: Any) -> bool:
    """Whether a module is a LoRA layer on a linear layer that PEFT computes as W x + s · BA x for each active adapter.

    Not plain: layers that are merged or switched off, on quantized weights, with a variant such as DoRA, or with a bias in B.
    """
    return (
        type(module) is peft.tuners.lora.Linear
        and not (module.merged or module.disable_adapters)
        and all(
            name in module.lora_A and name not in module.lora_variant and not module.lora_bias[name]
            for name in module.active_adapters
        )
    )
