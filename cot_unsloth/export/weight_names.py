"""How transformers names the weights of a base: its input embedding, its output layer, and those stored under other names."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

# Llama's name, which most models have; those of GPT-2, Falcon and Bloom, GPT-NeoX, and Mamba.
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "embeddings")
_OUTPUT = "lm_head.weight"
# Those of GPT-NeoX, BioGPT and RWKV.
_OTHER_OUTPUTS = ("embed_out.weight", "output_projection.weight", "head.weight")


def embedding_in(names: Collection[str]) -> str | None:
    """The weight of the input embedding; None if it has no known name."""
    endings = {(kind, "weight") for kind in _EMBEDDINGS}
    return next((name for name in names if tuple(name.split(".")[-2:]) in endings), None)


def output_in(names: Collection[str]) -> str:
    """The weight of the output layer; the name that it would have if it is tied to the embedding and not stored."""
    return next((name for name in (_OUTPUT, *_OTHER_OUTPUTS) if name in names), _OUTPUT)


def written_output(output: str, embedding: str) -> str:
    """What a file calls an output layer that was tied to the embedding: GPT-NeoX's has another name there than in modules."""
    return "embed_out.weight" if embedding.endswith(".embed_in.weight") else output


def loaded_names(folder: Path, model_type: object, names: Collection[str]) -> dict[str, str]:
    """The names of the modules' weights that transformers loads stored weights into, where they are others.

    GPT-2 on the hub has `wte.weight` for `transformer.wte.weight`, Gemma 3 with a vision tower `language_model.model.` for
    `model.language_model.`. PEFT saves the modules' names. Left out are weights that are joined with others as they are
    loaded, such as those of experts.
    """
    import transformers
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping, get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    if not isinstance(model_type, str) or model_type not in transformers.CONFIG_MAPPING:
        return {}
    kind = transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(transformers.CONFIG_MAPPING[model_type], None)
    is_bare = any(f"{name}.weight" in names for name in _EMBEDDINGS)
    is_mapped = any(map(get_checkpoint_conversion_mapping, (model_type, getattr(kind, "__name__", None))))
    model = _without_weights(folder) if is_bare or is_mapped else None
    if model is None:
        return {}
    changes = get_model_conversion_mapping(model)
    converters = [change for change in changes if isinstance(change, WeightConverter)]
    renamings = [change for change in changes if not isinstance(change, WeightConverter)]
    modules, loaded = model.state_dict(), {}
    for name in names:
        new, converted = rename_source_key(name, renamings, converters, model.base_model_prefix, modules)
        if converted is None and new != name and new in modules:
            loaded[name] = new
    return loaded


def _without_weights(folder: Path) -> Any:
    """The model on torch's meta device; None if it cannot be built, which loading it reports."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception:  # errors of settings have no common base class
        return None
