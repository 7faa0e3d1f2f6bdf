"""The forward and backward pass of a LoRA layer as one autograd function.

PEFT's forward pass is six operations with a copy between types around most of them; here it is three matrix products,
which add in place: y = x Wᵀ + (x Aᵀ)(s B)ᵀ. The frozen weight is converted to the type of the computation once, not at
every step. The low-rank product is not merged into W: an update smaller than the spacing of bfloat16 at W (0.4% of it)
would be rounded away.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from cot_unsloth.models.cpu.replaced import replaced_forwards
from cot_unsloth.models.lora_layers import is_plain_lora


class LoraLinear(torch.autograd.Function):
    """y = x Wᵀ + bias + scale · (x Aᵀ) Bᵀ, for a frozen W.

    Shapes: x (..., in), W (out, in), bias (out) or None, A (rank, in), B (out, rank); y (..., out) in the type of W, in
    which everything is computed. Gradients of A and B have their own type.
    """

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, a: Any, b: Any, scale: float) -> Any:
        """See the class."""
        inputs = x.reshape(-1, x.shape[-1]).to(weight.dtype)
        down, up = a.to(weight.dtype), (b * scale).to(weight.dtype)
        low = inputs @ down.T
        y = inputs @ weight.T if bias is None else torch.addmm(bias, inputs, weight.T)
        y.addmm_(low, up.T)
        ctx.save_for_backward(inputs, weight, down, up, low)
        ctx.scale, ctx.shape, ctx.types = scale, x.shape, (x.dtype, a.dtype, b.dtype)
        return y.view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        """Gradients of x, A and B."""
        inputs, weight, down, up, low = ctx.saved_tensors
        of_x, of_a, of_b = ctx.types
        gradient = gradient.reshape(-1, gradient.shape[-1]).to(weight.dtype)
        of_low = gradient @ up
        x_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = (gradient @ weight).addmm_(of_low, down).view(ctx.shape).to(of_x)
        a_gradient = (of_low.T @ inputs).to(of_a)
        b_gradient = (gradient.T @ low).to(of_b).mul_(ctx.scale)
        return x_gradient, None, None, a_gradient, b_gradient, None


@contextlib.contextmanager
def fused_lora(model: Any, dtype: torch.dtype | None) -> Iterator[int]:
    """Within the context, the plain LoRA layers of a model compute with `LoraLinear`; the others as PEFT does.

    Args:
        model: a PEFT model, or any other, which has no such layers.
        dtype: of the computation, as autocast has it; None for the type of the weights.

    Yields:
        How many layers compute with `LoraLinear`.
    """
    layers = [module for module in model.modules() if _can_fuse(module)]
    with replaced_forwards([(layer, _forward(layer, dtype)) for layer in layers]) as count:
        yield count


def _forward(layer: Any, dtype: torch.dtype | None) -> Any:
    """The forward pass of a layer."""
    base, (name,) = layer.base_layer, layer.active_adapters
    weight = base.weight.detach().to(dtype or base.weight.dtype)
    bias = None if base.bias is None else base.bias.detach().to(weight.dtype)
    a, b, scale = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
    return lambda x: LoraLinear.apply(x, weight, bias, a, b, scale)


def _can_fuse(module: Any) -> bool:
    """Whether a module is a plain LoRA layer of one adapter, without dropout, on a layer that is not trained itself.

    An adapter with `bias: lora_only` or `all` trains the bias of the layer below.
    """
    if not is_plain_lora(module) or type(module.base_layer) is not nn.Linear or len(module.active_adapters) != 1:
        return False
    if any(parameter.requires_grad for parameter in module.base_layer.parameters()):
        return False
    (name,) = module.active_adapters
    return isinstance(module.lora_dropout[name], nn.Identity) and not module.fan_in_fan_out
