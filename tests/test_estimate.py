"""Memory, disk and time of a run: in the right proportions, and near what was measured."""

from __future__ import annotations

from typing import Any

import pytest

from cot_unsloth import config
from cot_unsloth.models import estimate
from cot_unsloth.models.estimate import Shape

THREE = "meta-llama/Llama-3.2-3B-Instruct"


def shape(name: str = "tiny-base") -> Shape:
    """Of a model."""
    found = estimate.shape_of(config.load(None, {"model_name_or_path": name}).model)
    assert found is not None
    return found


def taken(of: Shape, **leaves: Any) -> estimate.Memory:
    """Memory of training on rows of 500 tokens on a CPU."""
    return estimate.memory(config.load(None, leaves), of, 500, "cpu")


def took(of: Shape, device: str = "cpu", flops: float = 4e11, **leaves: Any) -> estimate.Seconds:
    """Time of 60 steps of 8 rows of 219 tokens."""
    settings = config.load(None, leaves)
    return estimate.seconds(
        settings, of, tokens=105_177, steps=60, problems=16, written=100, flops=flops, device=device
    )


def test_the_shape_of_the_embedded_model_is_what_it_is() -> None:
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
def test_the_size_of_a_model_that_is_not_here_is_guessed_from_its_name(name: str, millions: int | None) -> None:
    found = estimate.shape_in_name(name)
    assert (found.parameters // 10**6 if found else None) == millions
    assert found is None or found.guessed


def test_memory_falls_with_bits_and_checkpointing_and_rises_with_every_weight() -> None:
    three = shape(THREE)
    plain = taken(three, model_name_or_path=THREE)
    assert 11 * 2**30 < plain.weights < 13 * 2**30
    assert taken(three, model_name_or_path=THREE, load_in_4bit=True).weights < plain.weights / 1.9
    assert taken(three, model_name_or_path=THREE, gradient_checkpointing=True).activations < plain.activations
    assert taken(three, model_name_or_path=THREE, full_finetuning=True).total > 40 * 2**30


def test_time_grows_with_the_model_and_falls_with_the_speed() -> None:
    tiny, three = shape(), shape(THREE)
    assert took(three).training > 100 * took(tiny).training
    assert took(three, flops=8e11).training < took(three).training
    assert took(three, "cuda", 6e13).training < took(three).training / 50
    assert took(tiny, full_finetuning=True).training > took(tiny).training


def test_what_was_measured_is_estimated_within_a_factor_of_two() -> None:
    """The demo's fit took 168 s at its fastest: 5,200 rows, 1.13M tokens, where a product reaches 403 GFLOP/s."""
    settings = config.load()
    found = estimate.seconds(
        settings, shape(), tokens=1_129_997, steps=650, problems=0, written=0, flops=4.03e11, device="cpu"
    )
    assert 168 / 2 < found.training < 168 * 2
    middle = Shape(33_845_760, 280_000, 512, 8, 552, ())
    found = estimate.seconds(settings, middle, tokens=8140, steps=5, problems=0, written=0, flops=4.03e11, device="cpu")
    assert 8.3 / 2 < found.training < 8.3 * 2
