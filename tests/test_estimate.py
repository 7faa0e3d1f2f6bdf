"""Estimated memory, disk space and time of a run have the right proportions and are near the measured values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest
import shapes

from cot_unsloth import config
from cot_unsloth.config import ASSETS, TINY_BASE
from cot_unsloth.models import estimate, estimate_time
from cot_unsloth.models.estimate import Shape
from cot_unsloth.models.estimate_time import Work
from cot_unsloth.models.hf import HfEngine
from cot_unsloth.prompts.opening import open_renderer

RESULTS = Path(__file__).parent.parent / "bench" / "results"
THREE = "meta-llama/Llama-3.2-3B-Instruct"


def shape(name: str = "tiny-base") -> Shape:
    """The shape of a model."""
    result = estimate.shape_of(config.load(None, {"model_name_or_path": name}).model)
    assert result is not None
    return result


def memory_of(of: Shape, **leaves: Any) -> estimate.Memory:
    """Estimated memory of training on rows of 500 tokens on a CPU."""
    return estimate.memory(config.load(None, leaves), of, 500, "cpu")


def time_of(of: Shape, device: str = "cpu", flops: float = 4e11, **leaves: Any) -> estimate_time.Seconds:
    """Estimated time of 60 steps of 8 rows of 219 tokens."""
    settings = config.load(None, leaves)
    return estimate_time.seconds(settings, of, Work(105_177, 60, 16, 100), flops=flops, device=device)


def test_the_shape_of_the_embedded_model_is_read() -> None:
    tiny = shape()
    assert (tiny.parameters, tiny.layers, tiny.hidden, tiny.vocabulary) == (2_312_256, 5, 192, 512)
    assert not tiny.guessed
    assert set(tiny.linear) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize(
    "leaves",
    [
        {"target_modules": "q_proj"}, {"target_modules": "self_attn.q_proj"},
        {"target_modules": "q_proj", "layers_to_transform": "0,2-3"}, {"layers_to_transform": "upper"},
    ],
)  # fmt: skip
def test_the_adapter_has_as_many_weights_as_peft_makes(leaves: dict[str, str]) -> None:
    settings = config.load(None, {"lora_r": "4", **leaves})
    engine = HfEngine(settings, open_renderer(settings.model, settings.data).chat)
    trained = sum(p.numel() for p in engine.attach_trainable_weights().parameters() if p.requires_grad)
    engine.close()
    assert estimate.adapter_parameters(settings, shape()) == trained


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        (THREE, 3000),
        ("Qwen/Qwen2.5-0.5B", 500),
        ("HuggingFaceTB/SmolLM2-135M", 135),
        ("a/b-7b-it", 7000),
        ("a/b", None),
    ],
)
def test_the_size_of_a_model_that_is_not_local_is_guessed_from_its_name(name: str, millions: int | None) -> None:
    guess = estimate.shape_in_name(name)
    assert (guess.parameters // 10**6 if guess else None) == millions
    assert guess is None or guess.guessed


def test_memory_falls_with_quantization_and_checkpointing_and_rises_with_full_finetuning() -> None:
    three = shape(THREE)
    plain = memory_of(three, model_name_or_path=THREE)
    assert 11 * 2**30 < plain.weights < 13 * 2**30
    assert memory_of(three, model_name_or_path=THREE, load_in_4bit=True).weights < plain.weights / 1.9
    assert memory_of(three, model_name_or_path=THREE, gradient_checkpointing=True).activations < plain.activations
    assert memory_of(three, model_name_or_path=THREE, full_finetuning=True).total > 40 * 2**30


def test_peft_copies_the_embedding_of_a_quantized_base_to_float32_and_unsloth_does_not() -> None:
    of = shape()
    engines = ("hf", "unsloth")
    settings = [config.load(None, {"load_in_4bit": True, "engine": engine}) for engine in engines]
    hf, unsloth = (estimate.memory(one, of, 500, "cuda").weights for one in settings)
    assert hf - unsloth == 2 * of.embedding


def test_time_grows_with_model_size_and_falls_with_speed() -> None:
    tiny, three = shape(), shape(THREE)
    assert time_of(three).training > 100 * time_of(tiny).training
    assert time_of(three, flops=8e11).training < time_of(three).training
    assert time_of(three, "cuda", 6e13).training < time_of(three).training / 50
    assert time_of(tiny, full_finetuning=True).training > time_of(tiny).training


def test_estimates_are_within_a_factor_of_two_of_measured_times() -> None:
    """Training the demo took 168 s at its fastest: 5,200 rows, 1.13M tokens, matrix products at 403 GFLOP/s."""
    settings = config.load()
    estimated = estimate_time.seconds(settings, shape(), Work(1_129_997, 650), flops=4.03e11, device="cpu")
    assert 168 / 2 < estimated.training < 168 * 2
    middle = Shape(33_845_760, 280_000, 512, 8, 552, ())
    estimated = estimate_time.seconds(settings, middle, Work(8140, 5), flops=4.03e11, device="cpu")
    assert 8.3 / 2 < estimated.training < 8.3 * 2


def test_estimates_for_a_gpu_are_near_what_was_measured_on_one() -> None:
    """Llama-3.2-3B in 4 bits on an H100, padded rows; its matrix product reaches 400 to 700 TFLOP/s in bfloat16."""
    result = json.loads((RESULTS / "gpu" / "train-llama-3.2-3b-gsm8k-ours-unpacked.json").read_text())
    measured = result["found"]
    tokens, steps = measured["tokens"], measured["steps"]
    settings = config.load(
        None,
        {
            "load_in_4bit": True, "gradient_checkpointing": True, "lora_r": 16, "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 4, "engine": "unsloth",
        },
    )  # fmt: skip
    llama = shapes.LLAMA_3B
    computed, stored = shapes.parameters(llama)
    assert computed == stored
    embedding = llama["vocab_size"] * llama["hidden_size"]
    three = Shape(stored, embedding, llama["hidden_size"], llama["num_hidden_layers"], llama["vocab_size"], ())
    for flops in (4e14, 7e14):
        estimated = estimate_time.seconds(settings, three, Work(tokens, steps), flops=flops, device="cuda").training
        took = sum(measured["step_seconds"]["all"][1:]) / (steps - 1) * steps
        assert took / 3 < estimated < took * 3
    needed = estimate.memory(settings, three, max(shapes.GSM8K), "cuda").total / 2**30
    assert measured["peak_memory_gib"] / 2 < needed < measured["peak_memory_gib"] * 2


def test_a_containers_limit_counts_where_it_is_below_the_memory_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, whole = tmp_path / "memory.max", psutil.virtual_memory().total
    monkeypatch.setattr(estimate, "_LIMITS", (limit, tmp_path / "absent"))
    for text, expected in (("1073741824\n", 2**30), ("max\n", whole), (f"{2**63}\n", whole)):
        limit.write_text(text)
        assert estimate.room("cpu") == (expected, "here")


@pytest.mark.parametrize("case", ["2.3M", "26M", "135M"])
def test_estimates_for_a_cpu_are_within_a_factor_of_two_of_real_training(case: str) -> None:
    """Estimated again from the speed that was measured then."""
    row = json.loads((RESULTS / "estimates.json").read_text())["cases"][case]
    fields = json.loads((ASSETS / TINY_BASE / "config.json").read_text()) | row["case"]["shape"]
    model = Shape(
        row["parameters"],
        fields["vocab_size"] * fields["hidden_size"],
        fields["hidden_size"],
        fields["num_hidden_layers"],
        fields["vocab_size"],
        (),
    )
    work = Work(row["tokens"], row["case"]["steps"])
    settings = config.load(None, {"gradient_accumulation_steps": 1, "gradient_checkpointing": False})
    took = estimate_time.seconds(settings, model, work, flops=row["flops_per_second"], device="cpu").training
    assert took == pytest.approx(row["seconds"]["estimated"], rel=0.01)
    assert 1 / 2 < took / row["seconds"]["measured"] < 2
    assert 1 / 2 < row["estimated_over_measured"]["bytes"] < 2
