"""The forward and backward pass of RMSNorm as one autograd function.

transformers composes it of seven operations over the hidden states, each with a backward pass, and its result in float32
is converted again for each projection that reads it. Measured on 1,760 tokens of width 192, one thread of an AMD EPYC,
forward and backward: 2.3 ms as composed, 1.6 ms with torch's `rms_norm`, 0.8 ms here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from cot_unsloth.models.cpu.replaced import replaced_forwards


class RmsNorm(torch.autograd.Function):
    """y = weight · x / sqrt(mean(x²) + eps), for a frozen weight (Zhang and Sennrich 2019, arXiv 1910.07467).

    Shapes: x and y (..., width), weight (width,). Computed in float32, as in transformers; y is of type `dtype`. Under
    autocast x is in 16 bits where it is what a projection returned (OLMo 2, GLM-4), and else in float32.
    """

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, eps: float, dtype: torch.dtype) -> Any:
        """See the class."""
        values = x.float()
        mean_square = torch.linalg.vecdot(values, values).unsqueeze(-1).div_(x.shape[-1])
        scale = mean_square.add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (values * scale).mul_(weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        """Gradient of x."""
        x, weight, scale = ctx.saved_tensors
        values, scaled = x.float(), gradient.float() * weight
        along_x = torch.linalg.vecdot(scaled, values).unsqueeze(-1).mul_(scale.pow(3)).div_(x.shape[-1])
        return scaled.mul_(scale).addcmul_(values, along_x, value=-1).to(x.dtype), None, None, None


@contextlib.contextmanager
def fused_norms(model: Any, dtype: torch.dtype | None) -> Iterator[int]:
    """Within the context, the RMSNorm layers over the hidden states compute with `RmsNorm`.

    Args:
        model: the model.
        dtype: of their results, which is what the projections convert them to; None for the type of their input.

    Yields:
        How many layers compute with `RmsNorm`.
    """
    width = getattr(model.config.get_text_config(), "hidden_size", None)
    layers = [module for module in model.modules() if _is_rms_norm(module, width)]
    with replaced_forwards([(layer, _forward(layer, dtype)) for layer in layers]) as count:
        yield count


def _forward(layer: Any, dtype: torch.dtype | None) -> Any:
    weight, eps = layer.weight.detach(), _eps(layer)
    return lambda x: RmsNorm.apply(x, weight, eps, dtype or x.dtype)


def _eps(layer: Any) -> float:
    return float(getattr(layer, "variance_epsilon", getattr(layer, "eps", 0.0)))


def _is_rms_norm(module: Any, width: int | None) -> bool:
    """Whether a module computes what `RmsNorm` does; Gemma's, for example, multiplies by 1 + weight."""
    weight = getattr(module, "weight", None)
    if not type(module).__name__.endswith("RMSNorm") or weight is None or weight.shape != (width,):
        return False
    if weight.requires_grad or weight.dtype != torch.float32:
        return False
    # The second row is so small that eps decides its result.
    x = torch.linspace(-2, 3, 2 * weight.numel()).view(2, -1) * torch.tensor([[1.0], [1e-3]])
    with torch.inference_mode():
        return torch.allclose(module(x), RmsNorm.apply(x, weight, _eps(module), x.dtype), rtol=1e-5, atol=1e-6)
