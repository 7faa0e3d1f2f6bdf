"""Whether a model's logits are what its output layer computes from the last hidden states.

TRL's default loss for SFT (`chunked_nll`) makes the logits itself, from the weight of the output layer, so that not all of them
are in memory at once. Of what models do to them besides it knows three settings; Granite divides them by `logits_scaling`,
Falcon-H1 multiplies them by `lm_head_multiplier`, MiniCPM3 scales the hidden states before, and PEFT adds a LoRA of the output
layer. Nothing fails then: a model is trained on another loss than its own. So the logits are compared on a short row.
"""

from __future__ import annotations

from typing import Any

import torch

_TOKENS = 8
_TOLERANCE = 0.02
"""Root mean square of the difference over the spread of the logits; both are rounded to 16 bits, if the model is."""


def is_plain(model: Any) -> bool:
    """Whether TRL's chunked loss of a model is the model's own loss.

    Args:
        model: a causal model, or a PeftModel of one.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    head, was_training = causal.get_output_embeddings(), causal.training
    # A new LoRA changes no logits yet, but would get no gradient.
    if isinstance(head, BaseTunerLayer):
        return False
    causal.eval()
    try:
        with torch.inference_mode():
            ids = torch.arange(_TOKENS, device=causal.device)[None]
            logits = causal(input_ids=ids, use_cache=False).logits.float()
            hidden = causal.base_model(input_ids=ids, use_cache=False).last_hidden_state
            computed = _logits(hidden, head, causal.config.get_text_config()).float()
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):  # TRL's loss could not be computed either
        return False
    finally:
        causal.train(was_training)
    return bool((computed - logits).square().mean().sqrt() <= _TOLERANCE * logits.std())


def _logits(hidden: Any, head: Any, config: Any) -> Any:
    """The logits of TRL's loss (1.14, `_patch_chunked_ce_lm_head`)."""
    scale = getattr(config, "logit_scale", None) or getattr(config, "output_multiplier", None) or 1.0
    cap = getattr(config, "final_logit_softcapping", None)
    logits = torch.nn.functional.linear(hidden.to(head.weight.dtype), head.weight, head.bias) * scale
    return logits if cap is None else cap * torch.tanh(logits / cap)
