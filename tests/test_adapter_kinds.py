"""Each kind of adapter is merged as PEFT merges it, into a folder for transformers and into a GGUF for llama.cpp."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_kinds import KINDS, AdapterKind, Made, in_peft, load, make, table
from models import opened
from safetensors.torch import load_file
from test_gguf import all_checks

from cot_unsloth.core.errors import ModelError
from cot_unsloth.export import merge
from cot_unsloth.export.gguf import lora, predictions, writer
from cot_unsloth.export.layerwise import LoadedNetwork
from cot_unsloth.models.llamacpp import LlamaCpp

IDS = tuple(torch.randint(5, 500, (6, 24), generator=torch.Generator().manual_seed(3)).tolist())
POSITIONS = [predictions.Position(tuple(row), ends_turn=False) for row in IDS]


@pytest.fixture(scope="module", params=KINDS, ids=lambda name: name.replace(" ", "_"))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(KINDS[request.param], tmp_path_factory.mktemp("kind"))


def test_the_merged_folder_equals_pefts_merge(made: Made, tmp_path: Path) -> None:
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


@pytest.mark.filterwarnings("ignore")
def test_lora_of_the_output_layer_is_added_to_tokens_that_it_follows(tmp_path: Path) -> None:
    """PEFT computes this, but its own merge fails."""
    settings = {"target_modules": ["q_proj", "lm_head"], "trainable_token_indices": [5, 40, 33]}
    network = in_peft(AdapterKind(settings, tied=True), tmp_path)
    model, _ = opened(tmp_path / "base", tmp_path / "adapter")
    (tmp_path / "out").mkdir()
    merge.write(model, tmp_path / "out", "float32")
    ids = torch.tensor(IDS)
    with torch.inference_mode():
        torch.testing.assert_close(load(tmp_path / "out")(ids).logits, network(ids).logits, rtol=0, atol=2e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"ensure_weight_tying": True}, "with ensure_weight_tying"),
        ({"trainable_token_indices": [5, 40]}, "follows trained tokens"),
    ],
)
def test_dora_of_an_output_layer_that_shares_the_embedding_is_refused(
    more: dict[str, Any], says: str, tmp_path: Path
) -> None:
    settings = {"target_modules": ["q_proj", "lm_head"], "use_dora": True, **more}
    in_peft(AdapterKind(settings, tied=True), tmp_path)
    with pytest.raises(ModelError, match=says):
        opened(tmp_path / "base", tmp_path / "adapter")


def test_a_gguf_file_predicts_as_peft(made: Made, tmp_path: Path) -> None:
    """In float32, so that only the order of sums differs."""
    writer.check(made.model)
    writer.write(made.model, {"f32": tmp_path / "f32.gguf"})
    llama = LlamaCpp(tmp_path / "f32.gguf", context=64)
    trained = predictions.distributions(LoadedNetwork(made.network), POSITIONS)
    measured = predictions.llama_logprobs(llama, POSITIONS, len(trained[0]))
    llama.close()
    largest = max(abs(float(t[i]) - v) for t, m in zip(trained, measured, strict=True) for i, v in m.items() if v > -8)
    assert largest < 0.02


def test_an_adapter_file_predicts_as_peft_or_is_refused_by_name(made: Made, tmp_path: Path) -> None:
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
    trained = predictions.distributions(LoadedNetwork(made.network), POSITIONS)
    measured = predictions.llama_logprobs(llama, POSITIONS, len(trained[0]))
    llama.close()
    assert max(predictions.divergence(t, m) for t, m in zip(trained, measured, strict=True)) < 1e-3


@pytest.mark.parametrize(
    "name",
    [
        "modules_to_save: lm_head, tied base", "DoRA", "trainable_token_indices, tied base", "bias: all",
        "LoRA of the embedding, tied base",
    ],
)  # fmt: skip
def test_an_export_of_these_kinds_passes_verification(name: str, tmp_path: Path) -> None:
    """With all checks that `export` makes of a file."""
    made = make(KINDS[name], tmp_path)
    writer.write(made.model, {"f16": tmp_path / "f16.gguf"})
    results = all_checks(tmp_path / "f16.gguf", made.model, made.renderer)
    assert all(check.passed for check in results), results


def test_the_table_of_adapter_kinds_in_the_docs_is_up_to_date() -> None:
    assert table() in (Path(__file__).parent.parent / "docs" / "export.md").read_text()
