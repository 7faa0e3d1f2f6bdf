"""Estimated memory, disk space and time of a run have the right proportions and are near the measured values."""

from __future__ import annotations

from typing import Any

import pytest

from cot_unsloth import config
from cot_unsloth.models import estimate
from cot_unsloth.models.estimate import Shape

THREE = "meta-llama/Llama-3.2-3B-Instruct"


def shape(name: str = "tiny-base") -> Shape:
    """The shape of a model."""
    result = estimate.shape_of(config.load(None, {"model_name_or_path": name}).model)
    assert result is not None
    return result


def memory_of(of: Shape, **leaves: Any) -> estimate.Memory:
    """Estimated memory of training on rows of 500 tokens on a CPU."""
    return estimate.memory(config.load(None, leaves), of, 500, "cpu")


def time_of(of: Shape, device: str = "cpu", flops: float = 4e11, **leaves: Any) -> estimate.Seconds:
    """Estimated time of 60 steps of 8 rows of 219 tokens."""
    settings = config.load(None, leaves)
    return estimate.seconds(
        settings, of, tokens=105_177, steps=60, problems=16, written=100, flops=flops, device=device
    )


def test_the_shape_of_the_embedded_model_is_read() -> None:
    tiny = shape()
    assert (tiny.parameters, tiny.layers, tiny.hidden, tiny.vocabulary) == (2_312_256, 5, 192, 512)
    assert not tiny.guessed
    assert set(tiny.linear) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


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


def test_time_grows_with_model_size_and_falls_with_speed() -> None:
    tiny, three = shape(), shape(THREE)
    assert time_of(three).training > 100 * time_of(tiny).training
    assert time_of(three, flops=8e11).training < time_of(three).training
    assert time_of(three, "cuda", 6e13).training < time_of(three).training / 50
    assert time_of(tiny, full_finetuning=True).training > time_of(tiny).training


def test_estimates_are_within_a_factor_of_two_of_measured_times() -> None:
    """Training the demo took 168 s at its fastest: 5,200 rows, 1.13M tokens, matrix products at 403 GFLOP/s."""
    settings = config.load()
    estimated = estimate.seconds(
        settings, shape(), tokens=1_129_997, steps=650, problems=0, written=0, flops=4.03e11, device="cpu"
    )
    assert 168 / 2 < estimated.training < 168 * 2
    middle = Shape(33_845_760, 280_000, 512, 8, 552, ())
    estimated = estimate.seconds(
        settings, middle, tokens=8140, steps=5, problems=0, written=0, flops=4.03e11, device="cpu"
    )
    assert 8.3 / 2 < estimated.training < 8.3 * 2
