"""Which models `decoding` can answer with: by their settings, and by two short rows."""

from __future__ import annotations

import inspect
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from cot_unsloth.core.types import SamplingParams
from cot_unsloth.models.decoding import Decoder, Segment, Slots, packed, without_wrapper

_CHANGED_ATTENTION = (
    "attn_logit_softcapping", "num_kv_shared_layers", "attention_chunk_size", "sliding_window", "keep_window_size",
)  # fmt: skip
"""Settings with which attention is more than a softmax over all earlier tokens of its own layer."""
_AGREES: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
"""The models that two rows were tried with, and whether they agreed."""


def can_pack(model: Any) -> bool:
    """Whether a model, in evaluation mode, is a decoder whose every layer attends to all earlier tokens, and to nothing else.

    Others (sliding windows, recurrent layers, encoders, scores that are changed before the softmax) need a cache or an
    attention that this module does not have. RoPE that depends on the longest row in a batch ("dynamic", "longrope") would
    make an answer depend on the others. Settings do not tell all of them, so two short rows are tried.
    """
    model = without_wrapper(model)
    if not _has_plain_settings(model):
        return False
    if model not in _AGREES:
        _AGREES[model] = _agrees(model)
    return _AGREES[model]


def _has_plain_settings(model: Any) -> bool:
    config = model.config
    ropes = getattr(config, "rope_parameters", None) or {}
    return (
        bool(getattr(model, "_supports_attention_backend", False))
        and "logits_to_keep" in inspect.signature(type(model).forward).parameters
        and not config.is_encoder_decoder
        and config.get_text_config() is config
        and not any(getattr(config, name, None) for name in _CHANGED_ATTENTION)
        and ropes.get("rope_type", "default") not in ("dynamic", "longrope")
        and all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)
    )


def _agrees(model: Any) -> bool:
    """Whether two rows, packed in three steps, have the logits that they have alone.

    Not so if attention has more than its interface gets (Doge's mask, DiffLlama's difference), if it is not asked through
    that interface (Nemotron), or if a layer runs several times a token (HRM).
    """
    rows, common = ([3, 4, 5, 6, 7, 8], [3, 4, 5, 11, 12, 13, 14, 15]), 3
    device = next(model.parameters()).device
    decoder = Decoder(model, SamplingParams(), frozenset())
    decoder.slots = Slots(len(rows), max(map(len, rows)), device)
    with torch.inference_mode():
        alone = torch.cat(
            [model(input_ids=torch.tensor([row], device=device), use_cache=False).logits[0, -1:] for row in rows]
        )
        try:
            with packed(model):
                decoder.forward([Segment(0, 0, common)], rows[0][:common])
                decoder.slots.copy_beginning(common, [1])
                middle = [Segment(slot, common, len(row) - 1 - common) for slot, row in enumerate(rows)]
                decoder.forward(middle, [id_ for row in rows for id_ in row[common:-1]])
                ends = [Segment(slot, len(row) - 1, 1) for slot, row in enumerate(rows)]
                ours = decoder.forward(ends, [row[-1] for row in rows])
        except (KeyError, RuntimeError, TypeError, ValueError):
            return False
    # Rounding to 16 bits moves logits by 1% to 3% of their spread.
    difference, spread = (ours.float() - alone.float()).square().mean().sqrt(), alone.float().std()
    return bool(difference <= 0.1 * spread)
