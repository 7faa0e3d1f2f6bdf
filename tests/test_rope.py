"""Rope scaling in GGUF files: the same as in transformers, also beyond the original context, or refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import TINY, made, opened
from transformers import AutoModelForCausalLM

from cot_unsloth.core.errors import EngineError, ModelError
from cot_unsloth.export.gguf import architectures, writer
from cot_unsloth.export.model import Model
from cot_unsloth.models.llamacpp import LlamaCpp

TIE = 0.05
"""Largest accepted difference between log-probabilities of llama.cpp (16 bits) and transformers, in nats."""
LENGTHS = (24, 150, 400)
"""Lengths of the compared texts in tokens: within the original context of 64 and well beyond it."""
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 512,
    "short_factor": [1.0 + 0.02 * i for i in range(24)], "long_factor": [1.0 + 0.3 * i for i in range(24)],
}  # fmt: skip


def without(given: dict[str, Any], *fields: str) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name not in fields}


def model_of(shape: str, folder: Path, given: dict[str, Any], **more: Any) -> Model:
    """A base with these rope parameters and no adapter; config.json has them as given, not as transformers writes them."""
    model, _ = made(shape, folder, TINY, rope_parameters=dict(given), **more)
    return as_given(model, {"rope_parameters": given} | more)


def as_given(model: Model, fields: dict[str, Any], *dropped: str) -> Model:
    file = model.weights.folder / "config.json"
    kept = without(json.loads(file.read_text()), *dropped)
    file.write_text(json.dumps(kept | fields))
    return opened(model.weights.folder, None)[0]


def furthest(model: Model, folder: Path, lengths: tuple[int, ...] = LENGTHS, context: int = 512) -> float:
    """Largest difference between log-probabilities of the 20 likeliest tokens after texts of these lengths."""
    file = folder / "model.gguf"
    writer.write(model, {"f16": file})
    network = AutoModelForCausalLM.from_pretrained(model.weights.folder, dtype=torch.float32).eval()
    llama = LlamaCpp(file, context=context, slots=1)
    torch.manual_seed(0)
    worst = 0.0
    for length in lengths:
        ids = torch.randint(5, 400, (1, length))
        with torch.inference_mode():
            expected = network(input_ids=ids).logits[0, -1].log_softmax(-1)
        logprobs = llama.logprobs(ids[0].tolist(), 20)
        worst = max(worst, *(abs(float(expected[id_]) - value) for id_, value in logprobs.items()))
    llama.close()
    return worst


LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
KINDS = {
    "default": {"rope_type": "default", "rope_theta": 2e4},
    "linear": LINEAR,
    "llama3": LLAMA3,
    "yarn": YARN,
    "longrope": LONGROPE,
}
LAYERS = {"smollm3": 4, "gemma3": 4}
"""Number of layers of architectures whose layers differ; others get 2."""


def shape_of(architecture: str) -> str:
    return architecture.removesuffix("ForCausalLM").lower()


EVERY_KIND = [
    (shape_of(name), kind) for name, architecture in architectures.known().items() for kind in architecture.ropes
]


@pytest.mark.parametrize(("shape", "kind"), EVERY_KIND)
def test_each_supported_rope_scaling_matches_transformers_at_long_positions(
    shape: str, kind: str, tmp_path: Path
) -> None:
    given = KINDS[kind]
    more: dict[str, Any] = {"num_hidden_layers": LAYERS.get(shape, 2)}
    if shape == "phi3":
        more |= {"original_max_position_embeddings": 512}
        given = given | {"partial_rotary_factor": 0.75}
    if shape == "gemma3":
        given = {"full_attention": given, "sliding_attention": KINDS["default"]}
    model = model_of(shape, tmp_path, given, **more)
    writer.check(model, max(LENGTHS))
    assert furthest(model, tmp_path) < TIE


FIELDS = {
    "llama llama3, no original length": ("llama", without(LLAMA3, "original_max_position_embeddings")),
    "llama yarn, no original length": ("llama", without(YARN, "original_max_position_embeddings")),
    "llama yarn, not truncated": ("llama", YARN | {"truncate": False}),
    "llama yarn, betas": ("llama", YARN | {"beta_fast": 8.0, "beta_slow": 0.5}),
    "llama yarn, all fields": (
        "llama", YARN | {"beta_fast": 4.0, "beta_slow": 0.25, "truncate": False, "attention_factor": 1.2},
    ),
    "qwen2 yarn, attention_factor": ("qwen2", YARN | {"attention_factor": 0.8}),
    "qwen2 yarn, attention_factor 1": ("qwen2", YARN | {"attention_factor": 1.0}),
    "qwen2 yarn, a beta without effect": ("qwen2", YARN | {"beta_fast": 16.0}),
    "qwen2 yarn, mscale": ("qwen2", YARN | {"mscale": 0.7, "mscale_all_dim": 1.4}),
    "qwen2 yarn, one mscale": ("qwen2", YARN | {"mscale": 0.7}),
    "qwen2 yarn, equal mscales": ("qwen2", YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}),
    "phi3, a whole head": ("phi3", KINDS["default"] | {"partial_rotary_factor": 1.0}),
    "phi3 longrope, attention_factor": ("phi3", LONGROPE | {"attention_factor": 1.3, "partial_rotary_factor": 0.75}),
}  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
def test_optional_fields_have_the_same_effect_as_in_transformers(name: str, tmp_path: Path) -> None:
    shape, given = FIELDS[name]
    more = {"original_max_position_embeddings": 512} if shape == "phi3" else {}
    model = model_of(shape, tmp_path, given, num_hidden_layers=2, **more)
    writer.check(model, max(LENGTHS))
    assert furthest(model, tmp_path) < TIE


OLD = {
    "rope_scaling, rope_type": {"rope_theta": 2e4, "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}},
    "rope_scaling, type": {"rope_theta": 2e4, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "rope_scaling of null": {"rope_theta": 2e4, "rope_scaling": None},
}  # fmt: skip


@pytest.mark.parametrize("name", OLD)
def test_older_field_names_are_read_as_in_transformers(name: str, tmp_path: Path) -> None:
    model, _ = made("qwen2", tmp_path, TINY, num_hidden_layers=2)
    assert furthest(as_given(model, OLD[name], "rope_parameters"), tmp_path) < TIE


def test_the_context_with_longrope_ends_where_its_factors_change(tmp_path: Path) -> None:
    """llama.cpp selects the factors by the context size, transformers by the length of the text.

    A short text in a long context would therefore get different results.
    """
    given = LONGROPE | {"original_max_position_embeddings": 64, "partial_rotary_factor": 0.75}
    model = model_of("phi3", tmp_path, given, num_hidden_layers=2, original_max_position_embeddings=64)
    writer.check(model, 64)
    assert model.context == 64
    with pytest.raises(ModelError, match="longrope beyond its 64 original_max_position_embeddings, for rows"):
        writer.check(model, 65)
    assert furthest(replace(model, context=2048), tmp_path, (150, 400)) < TIE, "the long factors, with long texts"


def test_a_context_beyond_that_of_the_file_does_not_change_the_factors_of_longrope(tmp_path: Path) -> None:
    """`evaluate` asks for a context of the longest question, row and answer, which may be longer than the file's."""
    given = LONGROPE | {"partial_rotary_factor": 0.75}
    model = model_of("phi3", tmp_path, given, num_hidden_layers=2, original_max_position_embeddings=512)
    assert model.context == 512
    assert furthest(model, tmp_path, (10, 100), context=1024) < TIE


REFUSED = {
    "dynamic": ("llama", {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, "rope scaling dynamic"),
    "llama3 without a tensor": ("qwen2", LLAMA3, "rope scaling llama3"),
    "yarn, betas": ("qwen2", YARN | {"beta_fast": 8.0, "beta_slow": 0.5}, r"rope scaling yarn with beta_fast: 8.0, beta_slow: 0.5"),
    "yarn, not truncated": ("qwen3", YARN | {"truncate": False}, "rope scaling yarn with truncate: false"),
    "longrope": (
        "llama", LONGROPE | {"short_factor": [1.0] * 32, "long_factor": [2.0] * 32}, "rope scaling longrope",
    ),
    "unknown": ("llama", {"rope_type": "spiral", "rope_theta": 1e4}, "rope scaling spiral"),
    "partial": ("llama", {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0, "partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_rope_scaling_that_llama_cpp_lacks_is_refused_by_name(name: str, tmp_path: Path) -> None:
    shape, given, message = REFUSED[name]
    model = as_given(made(shape, tmp_path, TINY, num_hidden_layers=2)[0], {"rope_parameters": given})
    with pytest.raises(ModelError, match=message) as refused:
        writer.check(model)
    assert refused.value.name == "not_for_gguf"
    assert "--merged" in str(refused.value.hint)


WINDOWS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 48},
    "qwen2": {"use_sliding_window": True, "sliding_window": 48, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "sliding_window": 48, "max_window_layers": 1},
    "phi3": {"sliding_window": 48},
    "smollm3": {"use_sliding_window": True, "sliding_window": 48, "num_hidden_layers": 4},
}


@pytest.mark.parametrize("shape", WINDOWS)
def test_the_context_is_limited_to_a_sliding_window_that_llama_cpp_lacks(shape: str, tmp_path: Path) -> None:
    model = as_given(made(shape, tmp_path, TINY, **WINDOWS[shape])[0], WINDOWS[shape])
    writer.check(model, 48)
    assert model.context == 48
    assert furthest(model, tmp_path, (20, 47)) < TIE
    with pytest.raises(EngineError, match="exceeds the available context size"):
        furthest(model, tmp_path, (49,))
    assert furthest(replace(model, context=2048), tmp_path, (120,)) > TIE, "results differ beyond the window"
    with pytest.raises(ModelError, match="sliding window of 48 tokens, for rows and answers of up to 49"):
        writer.check(model, 49)


@pytest.mark.parametrize("more", [{"sliding_window": None}, {"sliding_window": 4096}])
def test_a_window_as_long_as_the_context_has_no_effect(more: dict[str, Any], tmp_path: Path) -> None:
    model = as_given(made("mistral", tmp_path, TINY, **more)[0], more)
    writer.check(model, 1 << 20)
    assert model.context == 2048


@pytest.mark.parametrize("period", [2, 3])
def test_gemma_uses_its_window_in_local_layers_only(period: int, tmp_path: Path) -> None:
    model, _ = made("gemma3", tmp_path, TINY, sliding_window_pattern=period, sliding_window=40)
    model = as_given(model, {})
    writer.check(model, 1 << 20)
    assert furthest(model, tmp_path) < TIE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]},
            "layer_types",
        ),
        ({"layer_types": ["full_attention"] * 4}, "layer_types"),
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types"),
        ({"query_pre_attn_scalar": 99}, "query_pre_attn_scalar 99"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention True"),
        ({"hidden_activation": "gelu"}, "hidden_act gelu"),
    ],
)
def test_settings_of_gemma_that_llama_cpp_assumes_are_checked(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = as_given(made("gemma3", tmp_path, TINY)[0], change)
    with pytest.raises(ModelError, match=message):
        writer.check(model)
