"""Which parts of a model Unsloth's kernels compute, and why not the others.

Read from the model: Unsloth's banner counts Qwen2.5's QKV as patched, though the biases of its projections keep it from being
fused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from cot_unsloth.core.progress import note


def _layers(model: Any) -> list[Any]:
    """The decoder layers of a model, through any wrapper."""
    return [module for module in model.modules() if hasattr(module, "self_attn") and hasattr(module, "mlp")]


def _function_of(thing: Any) -> str:
    """The name of a function, also if it is bound or partial."""
    function = getattr(thing, "__func__", thing)
    return str(getattr(getattr(function, "func", function), "__name__", ""))


_FUSED: dict[str, Callable[[Any], bool]] = {
    "qkv": lambda layer: _function_of(getattr(layer.self_attn, "apply_qkv", None)) == "apply_lora_qkv",
    "output": lambda layer: _function_of(getattr(layer.self_attn, "apply_o", None)) == "apply_lora_o",
    "mlp": lambda layer: _function_of(layer.mlp.forward).startswith("apply_lora_mlp"),
}
"""For the three parts of a layer: whether Unsloth's kernel runs there, and not PEFT's forward."""


def fused(model: Any) -> dict[str, tuple[int, int]]:
    """For each part of a layer: layers in which it is fused, and layers in all: `{"qkv": (28, 28), ...}`."""
    layers = _layers(model)
    return {part: (sum(map(is_fused, layers)), len(layers)) for part, is_fused in _FUSED.items()}


_PLACES = {"qkv": ("q_proj", "k_proj", "v_proj"), "output": ("o_proj",), "mlp": ("gate_proj", "up_proj", "down_proj")}


def why_not_fused(model: Any) -> list[str]:
    """Why PEFT's own forward runs where no kernel is fused: settings or properties of the model."""
    layers = _layers(model)
    config = next(iter(getattr(model, "peft_config", {}).values()), None)
    if config is None or not layers:
        return []
    reasons = [] if torch.cuda.is_available() else ["there is no GPU, which its kernels are for"]
    if config.use_dora:
        reasons.append("DoRA is not fused")
    if config.bias != "none":
        reasons.append(f"an adapter with bias ({config.bias}) is not fused")
    first = layers[0]
    modules = {name: module for part in (first.self_attn, first.mlp) for name, module in part.named_children()}
    if getattr(modules["q_proj"], "weight", torch.empty(0)).dtype == torch.float32:
        reasons.append("a base in float32 is not fused")
    for names in _PLACES.values():
        bare = [name for name in names if name in modules and not hasattr(modules[name], "lora_A")]
        biased = [name for name in names if getattr(modules.get(name), "bias", None) is not None]
        if bare:
            reasons.append(f"{', '.join(bare)} has no adapter")
        if biased:
            reasons.append(f"{', '.join(biased)} has a bias in the base")
    return reasons


def note_fusion(model: Any) -> None:
    """Print which parts run fused, and why the others do not."""
    counts = fused(model)
    note("fused by unsloth: " + ", ".join(f"{part} in {n} of {of} layers" for part, (n, of) in counts.items()))
    if any(n < of for n, of in counts.values()):
        reasons = why_not_fused(model) or ["unsloth does not say why"]
        note(f"not fused, so PEFT's own forward runs there: {'; '.join(reasons)}")
