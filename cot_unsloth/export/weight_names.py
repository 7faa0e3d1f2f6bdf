"""How transformers names the weights of a base: its input embedding, its output layer, and what precedes the others' names."""

from __future__ import annotations

from collections.abc import Collection

# Llama's name, which most models have; those of GPT-2, Falcon and Bloom, GPT-NeoX, and Mamba.
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "embeddings")
_OUTPUT = "lm_head.weight"
# Those of GPT-NeoX, BioGPT and RWKV.
_OTHER_OUTPUTS = ("embed_out.weight", "output_projection.weight", "head.weight")


def embedding_in(names: Collection[str]) -> str | None:
    """The weight of the input embedding; None if it has no known name."""
    endings = {(kind, "weight") for kind in _EMBEDDINGS}
    return next((name for name in names if tuple(name.split(".")[-2:]) in endings), None)


def output_in(names: Collection[str], embedding: str | None) -> str:
    """The weight of the output layer; the name that it would have if it is tied to the embedding and not stored.

    >>> output_in(["gpt_neox.embed_in.weight"], "gpt_neox.embed_in.weight")
    'embed_out.weight'
    """
    missing = "embed_out.weight" if embedding is not None and embedding.endswith("embed_in.weight") else _OUTPUT
    return next((name for name in (_OUTPUT, *_OTHER_OUTPUTS) if name in names), missing)


def missing_prefix(model_type: object, names: Collection[str]) -> str:
    """What transformers puts before the names in a file that was saved without the output layer's class; "" for nothing.

    GPT-2 on the hub has `wte.weight` for `transformer.wte.weight`, some Qwen3 have `embed_tokens.weight`.
    """
    if not any(f"{name}.weight" in names for name in _EMBEDDINGS):
        return ""
    import transformers

    if model_type not in transformers.CONFIG_MAPPING:
        return ""
    model = transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(transformers.CONFIG_MAPPING[model_type], None)
    prefix = getattr(model, "base_model_prefix", "")
    return f"{prefix}." if prefix else ""
