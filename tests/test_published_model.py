"""The tokenizer, template and answers of a published model, SmolLM2-135M-Instruct, which `make test-data` downloads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ROOT
from helpers import run_cli
from models import made
from test_gguf import nasty, written

from cot_unsloth.config import DataConfig, ModelConfig
from cot_unsloth.core import trace
from cot_unsloth.core.types import IGNORE
from cot_unsloth.data import load_examples
from cot_unsloth.models.llamacpp import LlamaCpp
from cot_unsloth.prompts.opening import open_renderer
from cot_unsloth.storage.records import read_jsonl
from cot_unsloth.storage.run_folder import RunDir


@pytest.fixture(scope="module")
def smollm2() -> Path:
    folder = ROOT / ".test-data" / "smollm2"
    if not (folder / "config.json").is_file():
        pytest.skip("SmolLM2 is not here: make test-data")
    return folder


def test_llama_cpp_splits_text_as_the_tokenizer_of_smollm2(smollm2: Path, tmp_path: Path) -> None:
    narrow = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    model, renderer = made("llama", tmp_path, smollm2, **narrow)
    llama = LlamaCpp(written(model, tmp_path, "q8_0"), context=512)
    different = [text for text in nasty(1000) if llama.ids(text, special=False) != renderer.chat.ids(text)]
    llama.close()
    assert different == []


def test_loss_is_taken_on_the_complete_trace_and_the_end_of_the_turn(smollm2: Path, own_data: Path) -> None:
    data = DataConfig(dataset=str(own_data / "gsm8k" / "train.jsonl"))
    examples = load_examples(data, seed=1, eval_samples=0, eval_seed=1).examples
    renderer = open_renderer(ModelConfig(model_name_or_path=str(smollm2)), data)
    samples = renderer.samples(examples).samples
    assert len(samples) == len(examples)
    for example, sample in zip(examples, samples, strict=True):
        trained = [id_ for id_, label in zip(sample.ids, sample.labels, strict=True) if label != IGNORE]
        assert renderer.chat.decode(trained) == trace.render(example.trace) + "<|im_end|>"


def test_smollm2_is_scored(smollm2: Path, own_data: Path, tmp_path: Path) -> None:
    args = ["--model", str(smollm2), "--dataset", str(own_data / "gsm8k" / "test.jsonl"), "--eval-samples", "2"]
    few = ["--arms", "base_direct", "--max-new-tokens", "8", "--out", str(tmp_path / "scores")]
    assert run_cli("evaluate", *args, *few) == 0
    assert json.loads((tmp_path / "scores" / "scorecard.json").read_text())["n"] == 2
    rows = read_jsonl(RunDir(tmp_path / "scores").completions("base_direct"))
    assert all(row["text"].strip() for row in rows)
