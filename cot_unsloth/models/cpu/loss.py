"""Cross-entropy from the last hidden states as one autograd function, which makes logits once, chunk by chunk.

TRL's chunked loss makes them twice, as it recomputes each chunk in its backward pass, and converts the head's weight to
the type of the computation every time. Here the gradient of the hidden states is computed together with the loss, as
Liger's kernel does on a GPU (Hsu et al. 2024, arXiv 2410.10989); the weight is frozen and converted once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import ModelOutput

from cot_unsloth.core.types import IGNORE
from cot_unsloth.models.cpu.replaced import replaced_forwards

CHUNK = 256
"""Tokens whose logits are in memory at a time, as in TRL."""


class LinearCrossEntropy(torch.autograd.Function):
    """The summed cross-entropy of softmax(hidden Wᵀ + bias) with the labels.

    Shapes: hidden (tokens, width), weight (vocabulary, width) and bias (vocabulary,) or None, both frozen, labels (tokens,).
    Returns three scalars in float32: the loss (nats), the summed entropy of the predictions (nats), and how many labels
    were the most likely token. Only the loss has a gradient.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any, bias: Any, labels: Any) -> Any:
        """See the class."""
        totals = torch.zeros(3)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), CHUNK):
            rows = slice(start, start + CHUNK)
            sums, of_logits = _loss_and_gradient(_logits(hidden[rows], weight, bias), labels[rows])
            totals += sums
            if gradient is not None:
                gradient[rows] = of_logits.to(weight.dtype) @ weight
        ctx.save_for_backward(gradient)
        loss, entropy, correct = totals.unbind()
        ctx.mark_non_differentiable(entropy, correct)
        return loss, entropy, correct

    @staticmethod
    def backward(ctx: Any, towards_loss: Any, *others: Any) -> Any:
        """Gradient of hidden."""
        (gradient,) = ctx.saved_tensors
        return gradient * towards_loss, None, None, None


def _logits(hidden: Any, weight: Any, bias: Any) -> Any:
    logits = (hidden.to(weight.dtype) @ weight.T).float()
    return logits if bias is None else logits.add_(bias)


def _loss_and_gradient(logits: Any, labels: Any) -> tuple[Any, Any]:
    """The three sums over some tokens, and the gradient of the loss in the logits, whose memory is used up."""
    highest, likeliest = logits.max(-1, keepdim=True)
    shifted = logits.sub_(highest)
    exponentials = shifted.exp()
    sums = exponentials.sum(-1)
    log_sums = sums.log()
    losses = log_sums - shifted.gather(1, labels[:, None]).squeeze(1)
    entropies = log_sums - torch.linalg.vecdot(exponentials, shifted) / sums
    probabilities = exponentials.div_(sums[:, None])
    probabilities[torch.arange(len(labels)), labels] -= 1
    correct = (likeliest.squeeze(1) == labels).sum()
    return torch.stack([losses.sum(), entropies.sum(), correct.float()]), probabilities


@dataclass
class LossOutput(ModelOutput):
    """What TRL reads of the model's output under `loss_type: chunked_nll`."""

    loss: Any = None
    num_correct_tokens: Any = None
    entropy_sum: Any = None
    num_valid_tokens: Any = None


@contextlib.contextmanager
def fused_loss(model: Any, dtype: torch.dtype | None) -> Iterator[int]:
    """Within the context, a model computes TRL's chunked loss with `LinearCrossEntropy`.

    Left as they are: models that TRL did not prepare for that loss, a head that is trained or adapted, and logits that are scaled, capped or completed by a loss of experts.

    Args:
        model: the model, as TRL has prepared it.
        dtype: of the logits before they are converted to float32; None for the type of the weight.

    Yields:
        1 if it does, else 0.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    plain = _has_plain_head(causal)
    with replaced_forwards([(causal, _forward(causal, dtype))] if plain else []) as count:
        yield count


def _has_plain_head(causal: Any) -> bool:
    if getattr(causal.__dict__.get("forward"), "__name__", "") != "_chunked_ce_forward":
        return False
    config, head = causal.config.get_text_config(), causal.get_output_embeddings()
    scaled = ("final_logit_softcapping", "logit_scale", "logits_scaling", "output_multiplier", "output_router_logits")
    frozen = type(head) is torch.nn.Linear and not any(p.requires_grad for p in head.parameters())
    return frozen and not any(getattr(config, name, None) for name in scaled)


def _forward(causal: Any, dtype: torch.dtype | None) -> Callable[..., Any]:
    before, head = causal.forward, causal.get_output_embeddings()
    weight = head.weight.detach().to(dtype or head.weight.dtype)
    bias = None if head.bias is None else head.bias.detach().float()

    def forward(*args: Any, labels: Any = None, num_items_in_batch: Any = None, **inputs: Any) -> Any:
        if labels is None or args:
            return before(*args, **inputs)
        hidden = causal.base_model(**(inputs | {"use_cache": False})).last_hidden_state
        trained = labels[:, 1:] != IGNORE  # position i predicts the token at i + 1
        loss, entropy, correct = LinearCrossEntropy.apply(hidden[:, :-1][trained], weight, bias, labels[:, 1:][trained])
        tokens = trained.sum()
        loss = loss / (tokens.clamp(min=1) if num_items_in_batch is None else num_items_in_batch)
        return LossOutput(loss, correct, entropy, tokens)

    return forward
