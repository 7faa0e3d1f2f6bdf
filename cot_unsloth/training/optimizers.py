"""Optimizers of techniques, from PEFT: LoRA+ gives B a higher learning rate, LoRA-FA trains only B."""

from __future__ import annotations

from typing import Any

from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer

from cot_unsloth.config import LoraConfig


def of_technique(trainer: Any, lora: LoraConfig) -> Any | None:
    """The optimizer that a technique needs; None for the trainer's own."""
    arguments = trainer.args
    if lora.use_lorafa:
        return create_lorafa_optimizer(
            trainer.model,
            r=lora.lora_r,  # the scale of each layer is read from the layer
            lora_alpha=lora.lora_alpha,
            lr=arguments.learning_rate,
            weight_decay=arguments.weight_decay,
        )
    if lora.loraplus_lr_ratio is not None:
        kind, settings = trainer.get_optimizer_cls_and_kwargs(arguments, trainer.model)
        return create_loraplus_optimizer(
            trainer.model,
            kind,
            loraplus_lr_ratio=lora.loraplus_lr_ratio,
            loraplus_weight_decay=arguments.weight_decay,
            **settings,
        )
    return None
