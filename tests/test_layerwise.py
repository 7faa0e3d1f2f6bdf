"""A model run layer by layer gives the results of the full model, with every kind of adapter, and keeps one layer in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from models import SHAPES, TINY, made
from transformers import AutoModelForCausalLM

from cot_unsloth.export import layerwise
from cot_unsloth.export.layerwise import FolderSource, LayerwiseNetwork, LoadedNetwork, open_network
from cot_unsloth.export.weights import Weights

ROWS = [list(range(8, 15)), list(range(20, 50)), list(range(100, 119))]
POSITIONS = [[0, 6], [3, 29], [18]]
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "lm_head": {"target_modules": ["q_proj", "lm_head"]},
    "trainable_tokens": {"trainable_token_indices": [9, 21]},
    "bias": {"bias": "all"},
}


def furthest(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module", params=SHAPES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(request.param, tmp_path_factory.mktemp(request.param), TINY)[0].weights.folder


def adapted(base: Path, folder: Path, settings: dict[str, Any]) -> Any:
    """The base in transformers with a new adapter, which is saved into a folder."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | settings
    changed = peft.get_peft_model(model, peft.LoraConfig(**config))
    for parameter in changed.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    changed.save_pretrained(folder)
    return changed


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ADAPTERS)
def test_layerwise_log_probabilities_equal_those_of_the_full_model(
    base: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = LoadedNetwork(adapted(base, tmp_path, ADAPTERS[kind])).logprobs(ROWS, POSITIONS)
    network = open_network(base, FolderSource(Weights(base)), tmp_path)
    assert isinstance(network, LayerwiseNetwork)
    assert furthest(network.logprobs(ROWS, POSITIONS), expected) < 1e-4
    monkeypatch.setattr(layerwise, "TOKENS_AT_ONCE", 32)  # one row per pass
    monkeypatch.setattr(layerwise, "VOCABULARY_AT_ONCE", 20_000)  # the vocabulary in several blocks
    assert furthest(network.logprobs(ROWS, POSITIONS), expected) < 1e-4


def test_at_most_one_layer_is_in_memory(base: Path) -> None:
    network = open_network(base, FolderSource(Weights(base)))
    assert isinstance(network, LayerwiseNetwork)
    layers = network._model.get_decoder().layers
    most = 0

    def record(module: Any, *_: Any) -> None:
        nonlocal most
        read = [p for p in network._model.parameters() if not layerwise._is_empty(p)]
        most = max(most, sum(p.numel() for p in read))

    for layer in layers:
        layer.mlp.register_forward_hook(record)
    network.logprobs(ROWS, POSITIONS)
    a_layer = sum(p.numel() for p in layers[0].parameters())
    assert a_layer <= most < 1.2 * a_layer


def test_a_model_with_unexpected_tensor_names_is_loaded_in_full(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Renamed(FolderSource):
        def has(self, name: str) -> bool:
            return "o_proj" not in name and super().has(name)

    expected = open_network(base, FolderSource(Weights(base))).logprobs(ROWS, POSITIONS)
    network = open_network(base, Renamed(Weights(base)))
    assert isinstance(network, LoadedNetwork)
    assert "full model in memory" in capsys.readouterr().err
    assert furthest(network.logprobs(ROWS, POSITIONS), expected) < 1e-4
