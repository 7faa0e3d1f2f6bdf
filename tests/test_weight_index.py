"""Which weight files of a base are read, how its output layer is stored, and adapters that cannot be used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import peft
import pytest
import torch
from adapter_kinds import change_config, load, make_base
from helpers import run_cli
from models import TINY, opened
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM as Auto
from transformers import AutoTokenizer, BloomConfig, Gemma3Config, GPT2Config, GPTNeoXConfig, Qwen2Config, SmolLM3Config

from cot_unsloth.core.errors import ModelError
from cot_unsloth.export import merge
from cot_unsloth.export.gguf import writer
from cot_unsloth.export.layerwise import FolderSource, LoadedNetwork, open_network
from cot_unsloth.export.weights import Weights

INDEX = "model.safetensors.index.json"


def lora(base: Path, folder: Path, **settings: Any) -> Path:
    """An adapter with random factors."""
    torch.manual_seed(2)
    config = peft.LoraConfig(
        **{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **settings}
    )
    changed = peft.get_peft_model(load(base), config)
    for parameter in changed.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    changed.save_pretrained(folder)
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    make_base(tmp_path / "base", tied=False)
    return tmp_path / "base"


def sharded(base: Path) -> list[str]:
    load(base).to(torch.bfloat16).save_pretrained(base, max_shard_size="200KB")
    (base / "model.safetensors").unlink()
    return sorted(file.name for file in base.glob("*.safetensors"))


def litter(base: Path) -> None:
    """Add files that downloads and trainers leave beside the weights of a base."""
    tensors = {
        "tok_embeddings.weight": torch.ones(4, 4),
        "model.layers.0.self_attn.q_proj.weight": torch.ones(128, 128),
    }
    for name in ("consolidated.safetensors", "adapter_model.safetensors", "model-00001-of-00099.safetensors"):
        save_file(tensors, base / name)
    save_file({"optimizer": torch.ones(2)}, base / "consolidated-00001-of-00002.safetensors")
    (base / "adapter_config.json").write_text("{}")
    (base / "consolidated.safetensors.index.json").write_text(json.dumps({"weight_map": {"tok": "gone.safetensors"}}))


@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
def test_only_files_in_the_index_are_read_and_copied(base: Path, tmp_path: Path, shards: bool) -> None:
    names = sharded(base) if shards else ["model.safetensors"]
    adapter = lora(base, tmp_path / "adapter")
    clean = Weights(base).shapes
    expected = peft.PeftModel.from_pretrained(load(base), str(adapter)).merge_and_unload().state_dict()
    litter(base)
    assert Weights(base).shapes == clean
    (out := tmp_path / "out").mkdir()
    model, _ = opened(base, adapter)
    merge.write(model, out, "float32")
    writer.check(model)
    assert sorted(file.name for file in out.glob("*.safetensors")) == names
    assert (out / INDEX).is_file() is shards
    assert not list(out.glob("*consolidated*"))
    assert not list(out.glob("adapter*"))
    ours = load(out).state_dict()
    assert all(torch.allclose(ours[name], tensor, atol=1e-6) for name, tensor in expected.items())


def test_an_adapter_in_the_folder_of_the_base_is_ignored(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Transformers would apply it; here the base gets only the adapter that was named."""
    adapter = lora(base, tmp_path / "adapter")
    for file in lora(base, tmp_path / "other", target_modules=["v_proj"]).glob("adapter_*"):
        shutil.copy(file, base)
    args = ("--model", str(base), "--adapter", str(adapter), "--merged", "--gguf", "q8_0", "--export-samples", "0")
    assert run_cli("export", *args, "--out", str(tmp_path / "out"), "--dataset", "world:chains:2-3") == 0, (
        capsys.readouterr().err
    )
    assert sorted(f.name for f in (tmp_path / "out" / "merged").glob("*.safetensors")) == ["model.safetensors"]


def test_a_separate_output_layer_is_added_to_the_index(tmp_path: Path) -> None:
    make_base(base := tmp_path / "base", tied=True)
    sharded(base)
    (out := tmp_path / "out").mkdir()
    merge.write(opened(base, lora(base, tmp_path / "adapter", modules_to_save=["lm_head"]))[0], out, "auto")
    listed = json.loads((out / INDEX).read_text())["weight_map"]
    assert listed["lm_head.weight"] == listed["model.embed_tokens.weight"]
    assert set(listed) == set(Weights(out).shapes) == set(load(out).state_dict())


def test_model_safetensors_takes_precedence_over_an_index_as_in_transformers(base: Path) -> None:
    content = (base / "model.safetensors").read_bytes()
    sharded(base)
    (base / "model.safetensors").write_bytes(content)
    assert [file.name for file in Weights(base).files] == ["model.safetensors"]
    assert Weights(base).index is None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: (b / INDEX).write_text("{"), "is not an index of shards"),
        (lambda b: (b / INDEX).write_text("[]"), "is not an index of shards"),
        (lambda b: (b / INDEX).write_text('{"weight_map": {"a": "../x.safetensors"}}'), "a file in another folder"),
        (lambda b: next(b.glob("*.safetensors")).unlink(), "is missing, or lacks"),
        (lambda b: (b / INDEX).unlink(), "has no model.safetensors and no index of shards, only model-0"),
    ],
)
def test_a_damaged_index_gives_one_error(base: Path, damage: Any, message: str) -> None:
    sharded(base)
    damage(base)
    with pytest.raises(ModelError, match=message):
        Weights(base)


def test_a_file_with_another_name_is_refused_as_in_transformers(base: Path) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.safetensors")
    with pytest.raises(ModelError, match=r"only pytorch_model\.safetensors, which transformers does not load"):
        Weights(base)
    with pytest.raises(OSError, match="no file named"):
        load(base)
    rewrite(base, transformers_weights="pytorch_model.safetensors")
    assert Weights(base).shapes.keys() == load(base).state_dict().keys()


# The output layer.


def rewrite(base: Path, **settings: Any) -> None:
    file = base / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def assert_as_transformers_loads_it(base: Path, out: Path, *, tied: bool) -> None:
    """Export a LoRA of one projection as merged folder and GGUF, and compare both with transformers and PEFT."""
    adapter = lora(base, out / "adapter")
    model, _ = opened(base, adapter)
    assert model.tied is tied
    writer.check(model)
    writer.write(model, {"f32": out / "f32.gguf"})
    assert ("output.weight" in {t.name for t in gguf.GGUFReader(out / "f32.gguf").tensors}) is not tied
    (out / "merged").mkdir()
    merge.write(model, out / "merged", "float32")
    assert json.loads((out / "merged" / "config.json").read_text())["tie_word_embeddings"] is tied
    ids = torch.arange(10)[None]
    expected = peft.PeftModel.from_pretrained(load(base), str(adapter))(ids).logits
    torch.testing.assert_close(load(out / "merged")(ids).logits, expected, rtol=0, atol=1e-4)


def test_a_separate_output_layer_is_exported_although_the_config_says_tied(base: Path, tmp_path: Path) -> None:
    rewrite(base, tie_word_embeddings=True)
    assert_as_transformers_loads_it(base, tmp_path, tied=False)


@pytest.mark.parametrize(
    "changed",
    [
        {"trainable_token_indices": [3, 40]}, {"trainable_token_indices": {"lm_head": [3]}},
        {"target_modules": ["q_proj", "lm_head"]}, {"modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
    ],
    ids=lambda changed: "-".join(map(str, changed.values())),
)  # fmt: skip
def test_adapters_on_a_base_with_a_separate_output_layer_match_peft(
    base: Path, tmp_path: Path, changed: dict[str, Any]
) -> None:
    """PEFT applies trained tokens to the output layer too if the config says tied, whatever the files contain."""
    rewrite(base, tie_word_embeddings=True)
    adapter = lora(base, tmp_path / "adapter", **changed)
    (out := tmp_path / "merged").mkdir()
    model, _ = opened(base, adapter)
    assert not model.tied
    merge.write(model, out, "float32")
    network = peft.PeftModel.from_pretrained(load(base), str(adapter)).eval()
    ids = torch.tensor([[3, 9, 40, 11, 12]])
    torch.testing.assert_close(load(out)(ids).logits, network(ids).logits, rtol=0, atol=1e-4)


def test_an_output_layer_equal_to_the_embedding_is_tied(base: Path, tmp_path: Path) -> None:
    rewrite(base, tie_word_embeddings=True)
    tensors = load_file(base / "model.safetensors")
    save_file(
        tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()},
        base / "model.safetensors", metadata={"format": "pt"},
    )  # fmt: skip
    assert_as_transformers_loads_it(base, tmp_path, tied=True)


def test_an_embedding_stored_only_as_the_output_layer_is_used(base: Path, tmp_path: Path) -> None:
    """Transformers ties the layers whichever of the two is stored."""
    rewrite(base, tie_word_embeddings=True)
    tensors = load_file(base / "model.safetensors")
    del tensors["model.embed_tokens.weight"]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    assert_as_transformers_loads_it(base, tmp_path, tied=True)


def test_an_untied_base_without_an_output_layer_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_base(base := tmp_path / "base", tied=True)
    rewrite(base, tie_word_embeddings=False)
    args = ("--model-name-or-path", str(base), "--gguf", "q8_0", "--world-samples", "8", "--eval-samples", "0")
    assert run_cli("train", "--run-dir", str(tmp_path / "run"), "--max-steps", "1", *args) == 2
    output = capsys.readouterr().err
    assert "holds no lm_head.weight, and config.json does not tie it to the embedding" in output
    assert "Traceback" not in output
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.parametrize(("kind", "tied"), [(Qwen2Config, False), (SmolLM3Config, True)])
def test_a_config_without_the_tied_flag_uses_the_default_of_its_model_type(
    tmp_path: Path, kind: type, tied: bool
) -> None:
    make_base(tmp_path, tied=tied, config=kind)
    tree = json.loads((tmp_path / "config.json").read_text())
    tree.pop("tie_word_embeddings", None)
    (tmp_path / "config.json").write_text(json.dumps(tree))
    assert Weights(tmp_path).tied is tied
    assert Weights(tmp_path).declared_tied is tied


def gpt2(folder: Path) -> Path:
    config = GPT2Config(vocab_size=520, n_embd=64, n_layer=2, n_head=2, n_positions=64)
    torch.manual_seed(0)
    Auto.from_config(config, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    return folder


def test_an_adapter_beside_the_base_is_also_ignored_if_the_model_is_loaded_in_full(tmp_path: Path) -> None:
    base = gpt2(tmp_path / "base")
    alone = LoadedNetwork(load(base)).logprobs([[5, 6, 7]], [[2]])
    for file in lora(base, tmp_path / "other", target_modules=["c_attn"], fan_in_fan_out=True).glob("adapter_*"):
        shutil.copy(file, base)
    network = open_network(base, FolderSource(Weights(base)))
    assert isinstance(network, LoadedNetwork)
    torch.testing.assert_close(network.logprobs([[5, 6, 7]], [[2]])[0], alone[0])


def test_weights_stored_transposed_are_merged_correctly(tmp_path: Path) -> None:
    """GPT-2 stores its weights (in, out); for square ones the shape does not show it."""
    base = gpt2(tmp_path / "base")
    targets = ["c_attn", "c_proj", "wte"]
    for dora in (False, True):
        adapter = lora(base, tmp_path / f"adapter-{dora}", target_modules=targets, use_dora=dora, fan_in_fan_out=True)
        untied = load(base)
        untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight.detach().clone())
        expected = peft.PeftModel.from_pretrained(untied, str(adapter)).merge_and_unload().state_dict()
        (out := tmp_path / f"out-{dora}").mkdir()
        merge.write(opened(base, adapter)[0], out, "float32")
        ours = load(out).state_dict()
        for name, tensor in expected.items():
            torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


def without_prefix(base: Path) -> None:
    """Rewrite a base as it is saved without the class that has the output layer."""
    tensors = load_file(base / "model.safetensors")
    bare = {name.removeprefix("transformer.").removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(bare, base / "model.safetensors", metadata={"format": "pt"})


def test_a_base_whose_names_lack_their_prefix_is_exported(tmp_path: Path) -> None:
    """As GPT-2 on the hub: transformers adds the prefix, and PEFT saves the names that the modules have then."""
    base = gpt2(tmp_path / "base")
    without_prefix(base)
    assert "wte.weight" in load_file(base / "model.safetensors")
    adapter = lora(base, tmp_path / "adapter", target_modules=["c_attn"], fan_in_fan_out=True)
    (out := tmp_path / "out").mkdir()
    merge.write(opened(base, adapter)[0], out, "float32")
    assert set(load_file(out / "model.safetensors")) == set(load_file(base / "model.safetensors"))
    expected = peft.PeftModel.from_pretrained(load(base), str(adapter))(torch.arange(9)[None]).logits
    torch.testing.assert_close(load(out)(torch.arange(9)[None]).logits, expected, rtol=0, atol=1e-4)


def gemma3_that_sees(folder: Path) -> Path:
    """As google/gemma-3-4b-it: its file has `language_model.model.layers`, its modules are `model.language_model.layers`."""
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 520, "sliding_window": 64}
    vision = {**small, "image_size": 28, "patch_size": 14}
    tokens = {"image_token_index": 7, "boi_token_index": 8, "eoi_token_index": 9, "mm_tokens_per_image": 4}
    torch.manual_seed(0)
    Auto.from_config(
        Gemma3Config(text_config=text, vision_config=vision, **tokens), dtype=torch.float32
    ).save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("targets", [["q_proj", "up_proj"], ["q_proj", "lm_head"]])
def test_a_base_whose_names_change_as_it_is_loaded_is_exported(tmp_path: Path, targets: list[str]) -> None:
    base = gemma3_that_sees(tmp_path / "base")
    stored = set(load_file(base / "model.safetensors"))
    assert any(name.startswith("language_model.model.layers.0") for name in stored)
    adapter = lora(base, tmp_path / "adapter", target_modules=targets)
    (out := tmp_path / "out").mkdir()
    model, _ = opened(base, adapter)
    merge.write(model, out, "float32")
    assert set(load_file(out / "model.safetensors")) - stored == {"lm_head.weight"} & {f"{t}.weight" for t in targets}
    ids = torch.arange(10, 19)[None]
    expected = peft.PeftModel.from_pretrained(load(base), str(adapter))(ids).logits
    torch.testing.assert_close(load(out)(ids).logits, expected, rtol=0, atol=1e-4)
    network = open_network(base, FolderSource(Weights(base)), adapter)
    torch.testing.assert_close(
        network.logprobs([ids[0].tolist()], [[8]])[0], expected[0, 8:].log_softmax(-1), rtol=0, atol=1e-4
    )


def test_a_base_that_transformers_cannot_load_gives_one_error(base: Path, tmp_path: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.ones(16, 4, dtype=torch.int32)  # not read layer by layer
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="cannot be loaded"):
        open_network(base, FolderSource(Weights(base)))


def test_a_base_whose_names_lack_their_prefix_is_written_to_gguf(tmp_path: Path) -> None:
    make_base(base := tmp_path / "base", tied=True)
    without_prefix(base)
    assert_as_transformers_loads_it(base, tmp_path, tied=True)


def gpt_neox(folder: Path, *, tied: bool) -> Path:
    """A small GPT-NeoX, whose file and modules name the output layer differently."""
    config = GPTNeoXConfig(
        vocab_size=520, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        tie_word_embeddings=tied,
    )  # fmt: skip
    Auto.from_config(config, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tied", [False, True])
def test_gpt_neox_keeps_its_own_name_of_the_output_layer(tmp_path: Path, tied: bool) -> None:
    """Its file has `embed_out.weight`. Said to be tied, transformers 4 would replace it by the embedding."""
    base = gpt_neox(tmp_path / "base", tied=tied)
    (out := tmp_path / "out").mkdir()
    merge.write(opened(base, lora(base, tmp_path / "adapter", target_modules=["query_key_value"]))[0], out, "auto")
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is tied
    assert ("embed_out.weight" in load_file(out / "model.safetensors")) is not tied


@pytest.mark.parametrize(
    "changed", [{"target_modules": ["query_key_value", "lm_head"]}, {"modules_to_save": ["lm_head"]}]
)
def test_an_adapter_of_gpt_neox_output_layer_unties_it(tmp_path: Path, changed: dict[str, Any]) -> None:
    """Its module is `lm_head`; transformers 4 looks for `embed_out` in the file."""
    base = gpt_neox(tmp_path / "base", tied=True)
    adapter = lora(base, tmp_path / "adapter", **{"target_modules": ["query_key_value"], **changed})
    (out := tmp_path / "out").mkdir()
    merge.write(opened(base, adapter)[0], out, "float32")
    assert "embed_out.weight" in load_file(out / "model.safetensors")
    ids = torch.arange(9)[None]
    expected = peft.PeftModel.from_pretrained(load(base), str(adapter))(ids).logits
    torch.testing.assert_close(load(out)(ids).logits, expected, rtol=0, atol=1e-4)


def test_a_module_that_is_targeted_and_saved_is_saved(base: Path, tmp_path: Path) -> None:
    """PEFT puts no LoRA on it."""
    settings = {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["lm_head"]}
    adapter = lora(base, tmp_path / "adapter", **settings)
    (out := tmp_path / "out").mkdir()
    merge.write(opened(base, adapter)[0], out, "float32")
    ids = torch.arange(9)[None]
    expected = peft.PeftModel.from_pretrained(load(base), str(adapter))(ids).logits
    torch.testing.assert_close(load(out)(ids).logits, expected, rtol=0, atol=1e-4)


def test_an_adapter_of_the_embedding_unties_it_under_any_name(tmp_path: Path) -> None:
    config = BloomConfig(vocab_size=520, hidden_size=64, n_layer=1, n_head=2)
    Auto.from_config(config, dtype=torch.float32).save_pretrained(base := tmp_path / "base")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(base)
    adapter = lora(base, tmp_path / "adapter", target_modules=["query_key_value", "word_embeddings"])
    (out := tmp_path / "out").mkdir()
    merge.write(opened(base, adapter)[0], out, "float32")
    ids = torch.arange(9)[None]
    expected = peft.PeftModel.from_pretrained(load(base), str(adapter))(ids).logits
    torch.testing.assert_close(load(out)(ids).logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "tensor", [torch.zeros(4, 4).to(torch.float8_e4m3fn), torch.zeros(3, 0), torch.ones(3, dtype=torch.uint32)]
)
def test_tensors_that_no_adapter_changes_are_copied_whatever_their_type(
    base: Path, tmp_path: Path, tensor: torch.Tensor
) -> None:
    save_file(load_file(base / "model.safetensors") | {"table": tensor}, base / "model.safetensors", {"format": "pt"})
    (out := tmp_path / "out").mkdir()
    merge.write(opened(base, lora(base, tmp_path / "adapter"))[0], out, "auto")
    copied = load_file(out / "model.safetensors")["table"]
    assert copied.dtype is tensor.dtype or tensor.numel() == 0
    assert torch.equal(copied.float(), tensor.float())


def test_a_base_that_mlx_quantized_is_refused(base: Path) -> None:
    rewrite(base, quantization={"group_size": 64, "bits": 4})
    with pytest.raises(ModelError, match=r"its weights are quantized \(4 bits\)"):
        opened(base, None)


# Adapters that cannot be used: each gives a one-line error.


def tensors_changed(change: Any) -> Any:
    def apply(adapter: Path) -> None:
        file = adapter / "adapter_model.safetensors"
        save_file(change(load_file(file)), file)

    return apply


def settings(**changed: Any) -> Any:
    return lambda adapter: change_config(adapter, **changed)


def nan(tensors: dict[str, Any]) -> dict[str, Any]:
    next(iter(tensors.values()))[0, 0] = float("nan")
    return tensors


def cut(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def without(part: str) -> Any:
    return tensors_changed(lambda t: {k: v for k, v in t.items() if part not in k})


Q1 = "base_model.model.model.layers.1.self_attn.q_proj"
FAULTS: dict[str, tuple[Any, str]] = {
    "no config": (lambda a: (a / "adapter_config.json").unlink(), "holds no adapter"),
    "no weights": (lambda a: (a / "adapter_model.safetensors").unlink(), "holds no adapter"),
    "no JSON": (lambda a: (a / "adapter_config.json").write_text("{'r': 4}"), "is not valid JSON"),
    "a list": (lambda a: (a / "adapter_config.json").write_text("[]"), "is not a JSON object"),
    "no type": (settings(peft_type=None), "has no peft_type"),
    "no rank": (settings(r=None), "r is missing"),
    "rank of nothing": (settings(r=0), "r is 0"),
    "no alpha": (settings(lora_alpha=None), "lora_alpha is missing"),
    "no targets": (settings(target_modules=None), "target_modules is missing"),
    "another rank": (settings(r=8), "has rank 4, but adapter_config.json says 8"),
    "cut short": (cut, "bytes but should have"),
    "a pattern that is none": (settings(rank_pattern=[4]), "rank_pattern is"),
    "a rank that is none": (settings(rank_pattern={"q_proj": "4"}), "rank_pattern is"),
    "an alpha that is none": (settings(alpha_pattern={"q_proj": "4"}), "alpha_pattern is"),
    "a regex that is none": (settings(target_modules="(q_proj"), "target_modules cannot be used"),
    "modules that are none": (settings(modules_to_save="lm_head"), "modules_to_save is 'lm_head'"),
    "indices that are none": (settings(trainable_token_indices={"embed_tokens": 3}), "trainable_token_indices is"),
    "tokens lost": (settings(trainable_token_indices=[3]), "names trainable_token_indices but has no"),
    "biases lost": (settings(bias="all"), "bias is all, but it has no biases, for example none of model.layers.0"),
    "a bias of another kind": (settings(bias="some"), "bias is 'some'"),
    "empty": (tensors_changed(lambda t: {}), "holds no weights"),
    "half a pair": (without("layers.1.self_attn.q_proj.lora_B"), "has lora_A of .*layers.1.* but no lora_B"),
    "a layer lost": (without("layers.1"), "targets model.layers.1.self_attn.q_proj of the base but has no LoRA factors"),
    "factors unasked": (
        settings(layers_to_transform=[0]), "has LoRA factors for model.layers.1.self_attn.q_proj, which PEFT ignores"
    ),
    "not finite": (tensors_changed(nan), "lora_A.weight holds a number that is not finite"),
    "another adapter's name": (
        tensors_changed(lambda t: {k.replace("lora_A.", "lora_A.mine."): v for k, v in t.items()}), "cannot be merged"
    ),
    "no prefix": (
        tensors_changed(lambda t: {k.removeprefix("base_model.model."): v for k, v in t.items()}), "cannot be merged"
    ),
    "integers": (tensors_changed(lambda t: {k: v.to(torch.int8) for k, v in t.items()}), "is stored as I8"),
    "a magnitude unasked": (
        tensors_changed(lambda t: t | {f"{Q1}.lora_magnitude_vector": torch.ones(128)}), "use_dora is false"
    ),
    "DoRA without": (settings(use_dora=True), "use_dora is true, but .* has no magnitude"),
    "saved modules lost": (settings(modules_to_save=["lm_head"]), "names lm_head in modules_to_save but has no"),
    "another width": (
        tensors_changed(lambda t: {k: v.repeat(1, 2) if "lora_A" in k else v for k, v in t.items()}),
        "belongs to another base: it changes",
    ),
    "other names": (
        tensors_changed(lambda t: {k.replace("layers.1", "layers.7"): v for k, v in t.items()}), "the base has no .*layers.7"
    ),
    "a resized vocabulary": (
        tensors_changed(lambda t: t | {"base_model.model.model.embed_tokens.weight": torch.ones(530, 128)}),
        "or its vocabulary was resized",
    ),
    "tokens without indices": (
        tensors_changed(
            lambda t: t | {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": torch.ones(2, 128)}
        ),
        "has 2 trained tokens of model.embed_tokens, but no trainable_token_indices",
    ),
    "a switch of a newer PEFT": (settings(use_hyperlora=True), "use_hyperlora is True, which the installed PEFT"),
    "settings of a newer PEFT": (settings(hyper_config={"a": 1}), "hyper_config is .*, which the installed PEFT"),
    "PiSSA": (settings(init_lora_weights="pissa"), "init_lora_weights"),
    "LoRA-GA": (settings(init_lora_weights="lora_ga"), "init_lora_weights"),
    "aLoRA": (settings(alora_invocation_tokens=[1, 2]), "alora_invocation_tokens"),
    "replicated layers": (settings(layer_replication=[[0, 2], [1, 2]]), "layer_replication"),
    **{kind: (settings(peft_type=kind), f"its type is {kind}, but only LoRA") for kind in ("IA3", "LOHA", "VERA", "PROMPT_TUNING", "ADALORA", "NEXT_YEARS")},
}  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    make_base(folder / "base", tied=False)
    return folder / "base", lora(folder / "base", folder / "adapter")


@pytest.mark.parametrize("fault", FAULTS)
def test_an_unusable_adapter_gives_a_one_line_error(pair: tuple[Path, Path], tmp_path: Path, fault: str) -> None:
    base, intact = pair
    damage, message = FAULTS[fault]
    adapter = Path(shutil.copytree(intact, tmp_path / "adapter"))
    damage(adapter)
    with pytest.raises(ModelError, match=message) as refused:
        opened(base, adapter)
    assert refused.value.where is not None
    assert "\n" not in refused.value.message


IGNORED = "its tensors are not those that its adapter_config.json asks for: there is no base"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("another adapter's name", IGNORED), ("no prefix", IGNORED), ("a layer lost", IGNORED),
        ("another width", "layers.0.self_attn.q_proj.lora_A.default.weight is (4, 256) in it, and (4, 128) on this base"),
        ("a switch of a newer PEFT", "use_hyperlora is True, which the installed PEFT does not know"),
        ("NEXT_YEARS", "it is NEXT_YEARS, which the installed PEFT does not know"),
    ],
)  # fmt: skip
def test_an_adapter_that_peft_would_load_only_in_part_is_not_scored(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str, message: str
) -> None:
    base, intact = pair
    adapter = Path(shutil.copytree(intact, tmp_path / "adapter"))
    FAULTS[fault][0](adapter)
    args = ("--model", str(base), "--adapter", str(adapter), "--out", str(tmp_path / "scores"), "--eval-samples", "1")
    assert run_cli("evaluate", *args, "--dataset", "world:chains:2-3", "--arms", "tuned", "--max-new-tokens", "2") == 2
    output = capsys.readouterr().err
    assert message in output
    assert len(output[output.index("error:") :].strip().splitlines()) <= 2, (
        "more than the error and its hint is printed"
    )


def test_an_unknown_number_from_a_newer_peft_is_reported_and_ignored(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, intact = pair
    adapter = Path(shutil.copytree(intact, tmp_path / "adapter"))
    change_config(adapter, hyper_group_size=16, use_hyperlora=False)
    assert opened(base, adapter)[0].adapter is not None
    output = capsys.readouterr().err
    assert "hyper_group_size (16) is not known and is ignored" in output
    assert "use_hyperlora (False) is not known and is ignored" in output


def test_adapters_of_other_methods_are_refused_with_one_line(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, _ = pair
    peft.get_peft_model(load(base), peft.IA3Config(task_type="CAUSAL_LM")).save_pretrained(tmp_path / "ia3")
    args = ("--model", str(base), "--adapter", str(tmp_path / "ia3"), "--merged", "--out", str(tmp_path / "out"))
    assert run_cli("export", *args, "--dataset", "world:chains:2-3") == 2
    output = capsys.readouterr().err
    assert "its type is IA3, but only LoRA can be merged into a base" in output
    assert "Traceback" not in output
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
