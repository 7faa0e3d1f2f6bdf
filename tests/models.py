"""Small models with random weights for each supported architecture, and adapters for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM as Auto
from transformers import (
    AutoTokenizer,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from cot_unsloth.config import load_tree
from cot_unsloth.export.model import Model, open_model
from cot_unsloth.prompts.opening import open_renderer
from cot_unsloth.prompts.render import Renderer
from cot_unsloth.prompts.tokenizer import model_path

SHAPES: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (
        LlamaConfig,
        {
            "tie_word_embeddings": True, "num_key_value_heads": 2, "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
            },
        },
    ),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": False, "num_key_value_heads": 2}),
    "qwen3": (Qwen3Config, {"tie_word_embeddings": True, "num_key_value_heads": 2, "head_dim": 64}),
    "mistral": (MistralConfig, {"sliding_window": None, "num_key_value_heads": 2, "head_dim": 64}),
    "phi3": (
        Phi3Config,
        {"tie_word_embeddings": False, "num_key_value_heads": 2, "partial_rotary_factor": 0.75, "pad_token_id": None},
    ),
    "smollm3": (
        SmolLM3Config,
        {"tie_word_embeddings": True, "num_key_value_heads": 2, "num_hidden_layers": 5, "pad_token_id": None},
    ),
    "gemma3": (
        Gemma3TextConfig,
        {
            "num_key_value_heads": 1, "num_hidden_layers": 4, "head_dim": 64, "query_pre_attn_scalar": 64,
            "sliding_window": 48, "sliding_window_pattern": 3, "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 4.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
}  # fmt: skip
ADDITIONAL = 40
"""Rows of the embedding beyond the tokenizer's last token, as Qwen's has."""


def made(name: str, folder: Path, tokenizer: Path | str, *, seed: int = 0, **more: Any) -> tuple[Model, Renderer]:
    """A model of an architecture (with `more` config fields) and an adapter for it, saved and opened for export."""
    base = folder / "base"
    known = AutoTokenizer.from_pretrained(tokenizer)
    kind, settings = SHAPES[name]
    torch.manual_seed(seed)
    config = kind(
        **{
            "vocab_size": len(known) + ADDITIONAL, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3,
            "num_attention_heads": 4, "max_position_embeddings": 2048, "initializer_range": 0.08, **settings, **more,
        }
    )  # fmt: skip
    model = Auto.from_config(config, dtype=torch.float32)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith(("bias", "norm.weight")):
            spread = 0.3 if parameter_name.endswith("bias") else 0.1
            parameter.data += spread * torch.randn_like(parameter)  # equal at initialization, which would hide mistakes
        if "embed" in parameter_name or "lm_head" in parameter_name:
            parameter.data *= 2  # so that differences between tokens exceed rounding
    model.to(torch.bfloat16).save_pretrained(base)
    known.save_pretrained(base)
    copied = Path(tokenizer) / "generation_config.json"
    if copied.is_file():
        (base / "generation_config.json").write_text(copied.read_text())
    adapter(model.float(), folder / "adapter", seed=seed)
    return opened(base, folder / "adapter")


def adapter(model: Any, folder: Path, *, seed: int) -> None:
    """Save a LoRA adapter that changes the model noticeably."""
    torch.manual_seed(seed + 1)
    changed = peft.get_peft_model(
        model, peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    for name, parameter in changed.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    changed.save_pretrained(folder)
    changed.unload()


def opened(base: Path, adapter_folder: Path | None) -> tuple[Model, Renderer]:
    """A base and an adapter on disk, opened for export."""
    config = load_tree({"model": {"model_name_or_path": str(base)}}, {})
    renderer = open_renderer(config.model, config.data)
    return open_model(base, adapter_folder, renderer.chat, "small"), renderer


def tuned(model: Model) -> Any:
    """The base with its adapter in transformers, in float32."""
    base = Auto.from_pretrained(model.weights.folder, dtype=torch.float32).eval()
    assert model.adapter is not None
    return peft.PeftModel.from_pretrained(base, str(model.adapter.folder)).eval()


TINY = model_path("tiny-base")


def rewritten(file: Path, change: Any) -> None:
    """Rewrite a GGUF file after `change(fields, tensors)` has modified its content."""
    import gguf

    reader = gguf.GGUFReader(file)
    fields = {
        name: [field.contents(), field.types[0], field.types[-1]]
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }
    tensors = {t.name: [t.data.copy(), t.tensor_type] for t in reader.tensors}
    change(fields, tensors)
    aside = file.with_suffix(".new")
    writer = gguf.GGUFWriter(aside, str(fields["general.architecture"][0]))
    for name, (value, kind, inner) in fields.items():
        if name != "general.architecture":
            array = kind == gguf.GGUFValueType.ARRAY
            writer.add_key_value(name, value, kind, sub_type=inner if array else None)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    aside.replace(file)


def shown(checks: Any) -> str:
    """The failed checks as text for an assertion message."""
    return json.dumps([check.model_dump() for check in checks if not check.passed], default=str)
