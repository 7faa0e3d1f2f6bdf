"""Shapes of models and lengths of training rows, from which `bench/gpu.py` makes models and data.

The shapes are those of the models' own config.json. Weights are random, so speed and memory are those of the real model,
and losses only show whether two contenders compute the same.
"""

from __future__ import annotations

import random
from typing import Any

LLAMA_3B: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 3072, "intermediate_size": 8192,
    "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128,
    "vocab_size": 128256, "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "max_position_embeddings": 131072,
    "rope_theta": 500000.0, "rope_scaling": {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}  # fmt: skip
"""Llama-3.2-3B-Instruct."""
QWEN_7B: dict[str, Any] = {
    "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 3584, "intermediate_size": 18944,
    "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
    "tie_word_embeddings": False, "rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "rope_theta": 1000000.0,
}  # fmt: skip
"""Qwen2.5-7B-Instruct."""
TINY: dict[str, Any] = LLAMA_3B | {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 512, "max_position_embeddings": 2048,
}  # fmt: skip
"""To try the script on a CPU."""
SHAPES = {"llama-3.2-3b": LLAMA_3B, "qwen2.5-7b": QWEN_7B, "tiny": TINY}

GSM8K = (
    131, 155, 163, 170, 176, 182, 187, 193, 198, 204, 210, 216, 224, 231, 238, 247, 257, 270, 288, 314, 456,
)  # fmt: skip
"""Tokens of a training row, as quantiles from 0 to 100% in steps of 5%: the first 2,000 rows of GSM8K, rendered by this
package with Llama 3.2's tokenizer and template."""
TRACES = (1000, 6000)
"""Shortest and longest rows with long traces; lengths in between are uniform on a logarithmic scale."""
SUPERVISED = 0.4
"""Share of the tokens that carry loss, as in the rows of GSM8K above."""


def lengths(name: str, n: int, longest: int, seed: int = 0) -> list[int]:
    """`n` lengths of rows: `gsm8k`, `traces`, or a number for rows that are all of that length."""
    rng = random.Random(seed)
    if name.isdecimal():
        return [min(int(name), longest)] * n
    drawn = []
    for _ in range(n):
        if name == "gsm8k":
            at = rng.random() * (len(GSM8K) - 1)
            low, high = GSM8K[int(at)], GSM8K[min(int(at) + 1, len(GSM8K) - 1)]
            drawn.append(round(low + (high - low) * (at - int(at))))
        else:
            drawn.append(round(TRACES[0] * (TRACES[1] / TRACES[0]) ** rng.random()))
    return [min(length, longest) for length in drawn]


def parameters(shape: dict[str, Any]) -> tuple[int, int]:
    """Weights that each token is multiplied by, output layer included, and weights that are stored."""
    hidden, inner, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    head = shape.get("head_dim") or hidden // shape["num_attention_heads"]
    heads, keys = shape["num_attention_heads"] * head, shape["num_key_value_heads"] * head
    blocks = layers * (hidden * (2 * heads + 2 * keys) + 3 * hidden * inner)
    table = shape["vocab_size"] * hidden
    return blocks + table, blocks + table * (1 if shape["tie_word_embeddings"] else 2)


def flops_per_token(shape: dict[str, Any], row: float) -> float:
    """Floating-point operations that LoRA training needs per token, in rows of `row` tokens.

    Two per weight in the forward pass, and two in the backward pass, which computes gradients of activations only: the
    base's weights get none. Attention over half the row, the mean of a causal mask, adds 2 * 2 * (width of all heads) per
    token and layer in the forward pass and twice that in the backward pass. What checkpointing recomputes is not counted,
    as in the PaLM paper's definition of model FLOPs utilization (Chowdhery et al. 2022, appendix B).

    Args:
        shape: the model's config.
        row: mean length of the row that a token is in, weighted by tokens: long rows have more of them.
    """
    head = shape.get("head_dim") or shape["hidden_size"] // shape["num_attention_heads"]
    width = shape["num_attention_heads"] * head
    return 4 * parameters(shape)[0] + 3 * 4 * shape["num_hidden_layers"] * width * row / 2


PEAK = {
    "H100 PCIe": 756e12, "H100 NVL": 835e12, "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12,
    "L40": 181e12, "L4": 121e12, "T4": 65e12, "RTX 4090": 165e12, "RTX 3090": 71e12, "RTX 5090": 210e12,
}  # fmt: skip
"""Dense 16-bit operations per second with float32 accumulation, from the makers' data sheets. The first name that is part
of a card's name counts, so longer names come first."""
