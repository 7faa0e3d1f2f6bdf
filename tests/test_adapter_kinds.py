"""Each kind of adapter, merged as PEFT merges it: into plain transformers and into a GGUF in real llama.cpp."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from adapter_kinds import KINDS, Made, load, make, table
from safetensors.torch import load_file
from test_gguf import all_checks

from cot_unsloth.core.errors import ModelError
from cot_unsloth.export import merge
from cot_unsloth.export.gguf import lora, predictions, writer
from cot_unsloth.export.layerwise import LoadedNetwork
from cot_unsloth.models.llamacpp import LlamaCpp

IDS = tuple(torch.randint(5, 500, (6, 24), generator=torch.Generator().manual_seed(3)).tolist())
ASKED = [predictions.Position(tuple(row), ends_turn=False) for row in IDS]


@pytest.fixture(scope="module", params=KINDS, ids=lambda name: name.replace(" ", "_"))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(KINDS[request.param], tmp_path_factory.mktemp("kind"))


def test_merged_equals_peft(made: Made, tmp_path: Path) -> None:
    merge.write(made.model, tmp_path, "float32")
    ours = load_file(tmp_path / "model.safetensors")
    expected = dict(made.merged)
    if made.kind.merged_tied:
        assert torch.equal(expected.pop("lm_head.weight"), expected["model.embed_tokens.weight"])
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is made.kind.merged_tied
    ids = torch.tensor(IDS)
    with torch.inference_mode():
        torch.testing.assert_close(load(tmp_path)(ids).logits, made.network(ids).logits, rtol=0, atol=2e-4)
        assert (load(made.model.weights.folder)(ids).logits - made.network(ids).logits).abs().max() > 0.05


def test_gguf_follows_peft(made: Made, tmp_path: Path) -> None:
    """In float32, so that nothing is left but the order of sums."""
    writer.check(made.model)
    writer.write(made.model, {"f32": tmp_path / "f32.gguf"})
    llama = LlamaCpp(tmp_path / "f32.gguf", context=64)
    trained = predictions.distributions(LoadedNetwork(made.network), ASKED)
    found = predictions.llama_logprobs(llama, ASKED, len(trained[0]))
    llama.close()
    furthest = max(abs(float(t[i]) - v) for t, f in zip(trained, found, strict=True) for i, v in f.items() if v > -8)
    assert furthest < 0.02


def test_the_adapter_alone_follows_or_is_refused_by_name(made: Made, tmp_path: Path) -> None:
    if made.kind.refused is not None:
        with pytest.raises(ModelError, match=f"cannot hold {made.kind.refused}") as refused:
            lora.check(made.model)
        assert refused.value.hint is not None
        assert "--merged" in refused.value.hint
        return
    lora.check(made.model)
    lora.write(made.model, tmp_path / "lora.gguf")
    writer.write(replace(made.model, adapter=None), {"f32": tmp_path / "base.gguf"})
    llama = LlamaCpp(tmp_path / "base.gguf", context=64, adapters=[tmp_path / "lora.gguf"])
    trained = predictions.distributions(LoadedNetwork(made.network), ASKED)
    found = predictions.llama_logprobs(llama, ASKED, len(trained[0]))
    llama.close()
    assert max(predictions.divergence(t, f) for t, f in zip(trained, found, strict=True)) < 1e-3


@pytest.mark.parametrize(
    "name",
    [
        "modules_to_save: lm_head, tied base", "DoRA", "trainable_token_indices, tied base", "bias: all",
        "LoRA of the embedding, tied base",
    ],
)  # fmt: skip
def test_an_export_of_it_is_verified(name: str, tmp_path: Path) -> None:
    """As `export` verifies a file: every tensor, the next tokens, greedy answers."""
    made = make(KINDS[name], tmp_path)
    writer.write(made.model, {"f16": tmp_path / "f16.gguf"})
    found = all_checks(tmp_path / "f16.gguf", made.model, made.renderer)
    assert all(check.passed for check in found), found


def test_the_table_of_the_docs_is_this_one() -> None:
    assert table() in (Path(__file__).parent.parent / "docs" / "export.md").read_text()
