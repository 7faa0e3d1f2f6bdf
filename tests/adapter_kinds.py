"""Every kind of LoRA adapter that PEFT saves, on small models: the rows of the table in docs/export.md."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
from models import TINY, opened
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM as Auto
from transformers import AutoTokenizer, LlamaConfig, Qwen2Config

from cot_unsloth.export.model import Model
from cot_unsloth.prompts.render import Renderer

SMALL = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "initializer_range": 0.08,
}  # fmt: skip


@dataclass(frozen=True)
class AdapterKind:
    """One kind of adapter, and how it is exported."""

    settings: dict[str, Any]
    """Arguments of `LoraConfig`."""
    tied: bool = False
    """Whether the output layer of the base is tied to its embedding."""
    becomes_tied: bool | None = None
    """Whether they are tied after the merge; None: as in the base."""
    refused: str | None = None
    """The part that a GGUF adapter cannot represent, as named in the refusal; None if it can represent all."""
    names: str = ""
    """Added to the names of the tensors."""
    base: type = field(default=Qwen2Config)

    @property
    def merged_tied(self) -> bool:
        return self.tied if self.becomes_tied is None else self.becomes_tied


ALL, Q = "all-linear", ["q_proj", "v_proj"]
KINDS = {
    "LoRA": AdapterKind({"target_modules": ALL}),
    "LoRA, tied base": AdapterKind({"target_modules": ALL}, tied=True),
    "rsLoRA": AdapterKind({"target_modules": ALL, "use_rslora": True}),
    "rank and alpha patterns": AdapterKind(
        {"target_modules": Q, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.1\.self_attn\.q_proj": 32}}
    ),
    "rank pattern and rsLoRA": AdapterKind({"target_modules": Q, "rank_pattern": {"v_proj": 9}, "use_rslora": True}),
    "regex target_modules": AdapterKind({"target_modules": r".*layers\.1\..*(up|o)_proj"}),
    "layers_to_transform": AdapterKind({"target_modules": Q, "layers_to_transform": [1]}),
    "fan_in_fan_out": AdapterKind({"target_modules": Q, "fan_in_fan_out": True}),
    "`.default` in the names": AdapterKind({"target_modules": Q}, names=".default"),
    "DoRA": AdapterKind({"target_modules": ALL, "use_dora": True}, refused="DoRA"),
    "DoRA and rsLoRA": AdapterKind({"target_modules": Q, "use_dora": True, "use_rslora": True}, refused="DoRA"),
    "DoRA of the embedding": AdapterKind({"target_modules": [*Q, "embed_tokens"], "use_dora": True}, refused="DoRA"),
    "bias: all": AdapterKind({"target_modules": Q, "bias": "all"}, refused="a bias"),
    "bias: lora_only": AdapterKind({"target_modules": Q, "bias": "lora_only"}, refused="a bias"),
    "lora_bias": AdapterKind({"target_modules": Q, "lora_bias": True}, refused="a bias"),
    "LoRA of lm_head": AdapterKind({"target_modules": [*Q, "lm_head"]}),
    "LoRA of lm_head, tied base": AdapterKind(
        {"target_modules": [*Q, "lm_head"]}, tied=True, becomes_tied=False, refused="LoRA of lm_head"
    ),
    "LoRA of the embedding": AdapterKind({"target_modules": [*Q, "embed_tokens"]}),
    "LoRA of the embedding, tied base": AdapterKind(
        {"target_modules": [*Q, "embed_tokens"]}, tied=True, becomes_tied=False, refused="LoRA of model.embed_tokens"
    ),
    "LoRA of both": AdapterKind({"target_modules": [*Q, "embed_tokens", "lm_head"]}),
    "LoRA of both, kept tied": AdapterKind(
        {"target_modules": [*Q, "embed_tokens"], "ensure_weight_tying": True}, tied=True,
        refused="LoRA of model.embed_tokens",
    ),
    "modules_to_save: lm_head": AdapterKind(
        {"target_modules": Q, "modules_to_save": ["lm_head"]}, refused="modules_to_save"
    ),
    "modules_to_save: lm_head, tied base": AdapterKind(
        {"target_modules": Q, "modules_to_save": ["lm_head"]}, tied=True, becomes_tied=False, refused="modules_to_save"
    ),
    "modules_to_save: embed_tokens, tied base": AdapterKind(
        {"target_modules": Q, "modules_to_save": ["embed_tokens"]}, tied=True, becomes_tied=False,
        refused="modules_to_save",
    ),
    "modules_to_save: both, tied base": AdapterKind(
        {"target_modules": Q, "modules_to_save": ["embed_tokens", "lm_head"]}, tied=True, becomes_tied=False,
        refused="modules_to_save",
    ),
    "modules_to_save: embed_tokens, kept tied": AdapterKind(
        {"target_modules": Q, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, tied=True,
        refused="modules_to_save",
    ),
    "modules_to_save: a norm and an MLP": AdapterKind(
        {"target_modules": Q, "modules_to_save": ["layers.0.mlp", "model.norm"]}, refused="modules_to_save"
    ),
    "trainable_token_indices": AdapterKind(
        {"target_modules": Q, "trainable_token_indices": [3, 517, 40]}, refused="trained tokens"
    ),
    "trainable_token_indices, tied base": AdapterKind(
        {"target_modules": Q, "trainable_token_indices": [3, 517, 40]}, tied=True, refused="trained tokens"
    ),
    "trainable_token_indices: lm_head, tied base": AdapterKind(
        {"target_modules": Q, "trainable_token_indices": {"lm_head": [7]}}, tied=True, becomes_tied=False,
        refused="trained tokens",
    ),
    "trainable_token_indices: other tokens each, tied base": AdapterKind(
        {"target_modules": Q, "trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [7]}}, tied=True,
        becomes_tied=False, refused="trained tokens",
    ),
    "trainable_token_indices: lm_head, kept tied": AdapterKind(
        {"target_modules": Q, "trainable_token_indices": {"lm_head": [3, 517, 40]}, "ensure_weight_tying": True},
        tied=True, becomes_tied=False, refused="trained tokens",
    ),
    "Llama: permuted q and k, DoRA": AdapterKind({"target_modules": ALL, "use_dora": True}, refused="DoRA", base=LlamaConfig),
    "Llama with biases: bias: all": AdapterKind(
        {"target_modules": ALL, "bias": "all"}, refused="a bias", base=LlamaConfig
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Made:
    """A base and an adapter of one kind on disk, and the same in PEFT."""

    kind: AdapterKind
    model: Model
    renderer: Renderer
    network: Any
    """The base with the adapter in PEFT, in float32."""
    merged: dict[str, Any]
    """The state after PEFT's merge; the output layer of the base is untied before it."""


def make(kind: AdapterKind, folder: Path) -> Made:
    """A small base and an adapter of one kind, with random values in every trained tensor."""
    base = folder / "base"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of tied weights, and of fan_in_fan_out
        network = in_peft(kind, folder)
        apart = load(base)
        apart.lm_head.weight = torch.nn.Parameter(apart.lm_head.weight.detach().clone())
        merged = peft.PeftModel.from_pretrained(apart, str(folder / "adapter")).merge_and_unload().state_dict()
    model, renderer = opened(base, folder / "adapter")
    return Made(kind, model, renderer, network, merged)


def in_peft(kind: AdapterKind, folder: Path) -> Any:
    """A base and an adapter of one kind, written into a folder, and the two loaded in PEFT."""
    base = folder / "base"
    make_base(base, tied=kind.tied, config=kind.base)
    torch.manual_seed(1)
    settings = {"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", **kind.settings}
    changed = peft.get_peft_model(load(base), peft.LoraConfig(**settings))
    moved = {id(p): p for p in changed.parameters() if p.requires_grad}
    for parameter in moved.values():
        parameter.data += torch.randn_like(parameter) * 0.07
    changed.save_pretrained(folder / "adapter")
    rename(folder / "adapter", kind)
    return peft.PeftModel.from_pretrained(load(base), str(folder / "adapter")).eval()


def make_base(folder: Path, *, tied: bool, config: type = Qwen2Config, seed: int = 0) -> Any:
    """A small base with random weights, in bfloat16; returns it in float32."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    torch.manual_seed(seed)
    more: dict[str, Any] = {"attention_bias": True} if config is LlamaConfig else {}
    more |= {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = Auto.from_config(
        config(vocab_size=len(tokenizer) + 8, tie_word_embeddings=tied, **SMALL, **more), dtype=torch.float32
    )
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
        if "embed" in name or "lm_head" in name:
            parameter.data *= 2
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text((Path(TINY) / "generation_config.json").read_text())
    return model.float()


def load(folder: Path) -> Any:
    return Auto.from_pretrained(folder, dtype=torch.float32).eval()


def rename(adapter: Path, kind: AdapterKind) -> None:
    """Rename the tensors as other writers do."""
    if not kind.names:
        return
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({f"{k.removesuffix('.weight')}{kind.names}.weight": v for k, v in tensors.items()}, file)


def table() -> str:
    """The table of docs/export.md."""
    rows = [
        f"| {name} | yes{'' if kind.tied == kind.merged_tied else ', untied'} | yes | "
        f"{'yes' if kind.refused is None else f'refused: {kind.refused}'} |"
        for name, kind in KINDS.items()
    ]
    return "\n".join(
        ["| adapter | merged equals PEFT | GGUF verified | `--lora-gguf` |", "| --- | --- | --- | --- |", *rows]
    )


def change_config(adapter: Path, **settings: Any) -> None:
    """Change fields of adapter_config.json; None removes a field."""
    file = adapter / "adapter_config.json"
    tree = {**json.loads(file.read_text()), **settings}
    file.write_text(json.dumps({k: v for k, v in tree.items() if v is not None or k not in settings}))
