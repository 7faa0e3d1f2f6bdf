"""An adapter's adapter_config.json as typed settings; what cannot be merged into a base is refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cot_unsloth.core.errors import ModelError
from cot_unsloth.models.adapter_files import CHANGED_BASE, CONFIG, check_known, read_config

_NOT_MERGEABLE = {
    "use_qalora": "QALoRA pools the inputs",
    "use_bdlora": "its factors are block-diagonal",
    "alora_invocation_tokens": "it applies only after certain tokens of the prompt",
    "arrow_config": "it chooses an adapter for each token",
    "kasa_config": "KaSA truncates the base's weights",
    "monteclora_config": "it samples its factors",
    "layer_replication": "it repeats layers of the base",
    "target_parameters": "it changes parameters of experts",
    "megatron_config": "it adapts Megatron's layers",
}
"""Settings of a LoRA that is not W + s * B @ A of this base, and why."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class LoraSettings:
    """The settings that decide what an adapter computes; names and defaults are PEFT's `LoraConfig`."""

    r: int
    lora_alpha: float
    rank_pattern: Mapping[str, int]
    """Rank of modules whose names match a key."""
    alpha_pattern: Mapping[str, float]
    use_rslora: bool
    use_dora: bool
    bias: str
    """`none`, `all` or `lora_only`."""
    modules_to_save: Sequence[str]
    trainable_token_indices: Sequence[int] | Mapping[str, Sequence[int]] | None
    """Of the embedding, or by module."""
    ensure_weight_tying: bool
    targets: Mapping[str, Any]
    """`target_modules` and the settings that narrow it, for PEFT's own matching."""

    def rank(self, module: str) -> int:
        """The rank of a module's factors."""
        # As in PEFT, the first pattern that matches is used.
        matched = _match(self.rank_pattern, module)
        return self.r if matched is None else matched

    def scale(self, module: str) -> float:
        """What B @ A is multiplied by: alpha / r, or with rsLoRA alpha / sqrt(r) (Kalajdzievski, arXiv 2312.03732).

        A pattern's own alpha and rank are used for a module that matches one.
        """
        matched, rank = _match(self.alpha_pattern, module), self.rank(module)
        alpha = self.lora_alpha if matched is None else float(matched)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def _match(patterns: Mapping[str, Value], module: str) -> Value | None:
    """The value of the pattern that matches a module's name, by PEFT's rule: the end of the name, or a regex."""
    from peft.utils.other import get_pattern_key

    return patterns.get(get_pattern_key(patterns.keys(), module))


def read_lora_settings(folder: Path) -> LoraSettings:
    """The settings of an adapter that can be merged.

    Raises:
        ModelError: there is no adapter; a setting is missing or malformed, or means that it cannot be merged.
    """
    config = read_config(folder)

    def cannot(message: str, hint: str | None = None) -> ModelError:
        return ModelError(message, where=str(folder / CONFIG), hint=hint, name="adapter_not_folded")

    kind = config["peft_type"]
    # AdaLoRA, LoHa, VeRA and OFT save files of the same names, with other tensors in them.
    if kind != "LORA":
        raise cannot(
            f"its type is {kind}, but only LoRA can be merged into a base here",
            "if PEFT can merge it, save the result of merge_and_unload() and export that folder",
        )
    for name in _malformed(config):
        value = config.get(name)
        raise cannot(f"{name} is {'missing' if value is None else repr(value)}", "fetch the adapter again")
    reasons = [f"{name} ({why})" for name, why in _NOT_MERGEABLE.items() if config.get(name)]
    init = str(config.get("init_lora_weights", ""))
    # A bool or a name, perhaps with a number: pissa_niter_16 is PiSSA with 16 iterations.
    if init.lower().startswith(CHANGED_BASE):
        reasons.append(f"init_lora_weights ({init}): it applies to a base that was changed first")
    if reasons:
        raise cannot(
            f"cannot be merged: {', '.join(reasons[:3])}",
            "if PEFT can merge it, save the result of merge_and_unload() and export that folder",
        )
    check_known(config, folder)
    return LoraSettings(
        r=config["r"],
        lora_alpha=float(config["lora_alpha"]),
        rank_pattern=config.get("rank_pattern") or {},
        alpha_pattern=config.get("alpha_pattern") or {},
        use_rslora=bool(config.get("use_rslora")),
        use_dora=bool(config.get("use_dora")),
        bias=config.get("bias") or "none",
        modules_to_save=config.get("modules_to_save") or [],
        trainable_token_indices=config.get("trainable_token_indices"),
        ensure_weight_tying=bool(config.get("ensure_weight_tying")),
        targets={
            name: config.get(name)
            for name in ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
        },
    )


def _malformed(config: Mapping[str, Any]) -> list[str]:
    """Names of settings that are missing or of the wrong type."""
    rank, alpha, targets = (config.get(name) for name in ("r", "lora_alpha", "target_modules"))
    ranks, alphas = (config.get(name) or {} for name in ("rank_pattern", "alpha_pattern"))
    saved, tokens = config.get("modules_to_save"), config.get("trainable_token_indices")
    groups = tokens.values() if isinstance(tokens, dict) else [tokens or []]
    well_formed = {
        "r": isinstance(rank, int) and rank > 0,
        "lora_alpha": isinstance(alpha, int | float) and math.isfinite(alpha),
        "target_modules": isinstance(targets, list | str),
        "rank_pattern": isinstance(ranks, dict) and all(isinstance(v, int) and v > 0 for v in ranks.values()),
        "alpha_pattern": isinstance(alphas, dict) and all(isinstance(v, int | float) for v in alphas.values()),
        "modules_to_save": saved is None or (isinstance(saved, list) and all(isinstance(v, str) for v in saved)),
        "trainable_token_indices": all(isinstance(g, list) and all(isinstance(i, int) for i in g) for g in groups),
        "bias": config.get("bias") in (None, "none", "all", "lora_only"),
    }
    return [name for name, fine in well_formed.items() if not fine]
