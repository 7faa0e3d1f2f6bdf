"""The context in which a model on a CPU is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from cot_unsloth.models.cpu.attention import attention_of_joined_rows
from cot_unsloth.models.cpu.lora import fused_lora
from cot_unsloth.models.cpu.loss import fused_loss
from cot_unsloth.models.cpu.norm import fused_norms


@contextlib.contextmanager
def faster_training(model: Any, dtype: torch.dtype | None, *, joined: bool) -> Iterator[None]:
    """Within the context, a model computes LoRA layers, norms and loss as single operations, and joined rows one by one.

    Args:
        model: the model to train.
        dtype: the type that autocast computes in; None without autocast.
        joined: whether its batches are joined rows, see `takes_joined_rows`.
    """
    with contextlib.ExitStack() as changes:
        changes.enter_context(fused_lora(model, dtype))
        changes.enter_context(fused_norms(model, dtype))
        changes.enter_context(fused_loss(model, dtype))
        if joined:
            changes.enter_context(attention_of_joined_rows(model))
        yield
