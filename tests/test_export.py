"""The merged folder equals PEFT's own merge and answers like the adapter; an export that does not is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from helpers import run_cli, short_run
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from cot_unsloth.config import DEFAULT_SYSTEM_PROMPT
from cot_unsloth.core.errors import ModelError
from cot_unsloth.export import layerwise, merge, verify
from cot_unsloth.export.adapters import Adapter
from cot_unsloth.export.deltas import LowRank
from cot_unsloth.export.model import Model, open_model
from cot_unsloth.export.weights import Weights
from cot_unsloth.prompts.opening import open_renderer
from cot_unsloth.prompts.tokenizer import model_path
from cot_unsloth.storage import records
from cot_unsloth.storage.run_folder import RunDir


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return short_run(tmp_path_factory.mktemp("runs") / "run", "--merged", "--gguf", "")


def plain(path: Path | str) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def merged_by_peft(trained: RunDir) -> Any:
    return peft.PeftModel.from_pretrained(plain(model_path("tiny-base")), str(trained.adapter)).merge_and_unload()


def test_the_merged_weights_equal_those_of_peft(trained: RunDir) -> None:
    theirs = merged_by_peft(trained).state_dict()
    ours = load_file(trained.merged / "model.safetensors")
    assert {t.dtype for t in ours.values()} == {torch.float16}
    changed = 0
    for name, tensor in ours.items():
        expected = theirs[name].to(tensor.dtype)
        gap = (tensor.view(torch.int16).int() - expected.view(torch.int16).int()).abs().max().item()
        assert gap <= 1, f"{name} differs by {gap} units in the last place"
        changed += "proj" in name
    config = AutoConfig.from_pretrained(trained.merged)
    assert changed == 7 * config.num_hidden_layers


def test_the_merged_folder_has_the_logits_of_the_adapter_up_to_rounding(trained: RunDir) -> None:
    """Compared with the adapter's merge rounded to float16, tightly, and with the unrounded adapter, loosely."""
    row = records.read_jsonl(trained.kept)[0]
    ids = torch.tensor([AutoTokenizer.from_pretrained(trained.merged)(row["question"] + row["text"])["input_ids"]])
    rounded = merged_by_peft(trained)
    for parameter in rounded.parameters():  # not the buffers: rotary frequencies are not stored
        parameter.data = parameter.data.half().float()
    with torch.inference_mode():
        merged = plain(trained.merged)(input_ids=ids).logits
        assert torch.allclose(merged, rounded(input_ids=ids).logits, atol=2e-4)
        adapter = peft.PeftModel.from_pretrained(plain(model_path("tiny-base")), str(trained.adapter)).eval()
        exact = adapter(input_ids=ids).logits
        assert torch.equal(merged.argmax(-1), exact.argmax(-1))
        assert (merged - exact).abs().max() < 0.05
        assert (merged - plain(model_path("tiny-base"))(input_ids=ids).logits).abs().max() > 0.05


def test_a_merge_in_float32_has_the_logits_of_the_adapter(trained: RunDir, tmp_path: Path) -> None:
    assert run_cli("export", str(trained.path), "--merged", "--export-dtype", "float32", "--out", str(tmp_path)) == 0
    ids = torch.arange(3, 90)[None]
    adapter = peft.PeftModel.from_pretrained(plain(model_path("tiny-base")), str(trained.adapter)).eval()
    with torch.inference_mode():
        merged, unmerged = (model(input_ids=ids).logits for model in (plain(tmp_path / "merged"), adapter))
    # Rounding is relative to the size of the logits, which depends on the training.
    assert (merged - unmerged).abs().max() < 1e-5 * unmerged.abs().max()


def test_verified_json_lists_the_checks_of_the_merged_folder(trained: RunDir) -> None:
    record = json.loads(trained.verified.read_text())
    assert record["status"] == "passed"
    names = ["token_ids", "chat_template", "stop_token", "generation_config", "next_token", "kl"]
    assert [check["name"] for check in record["checks"]] == names
    assert all(check["passed"] and check["file"] == "merged" for check in record["checks"])
    assert json.loads((trained.merged / "config.json").read_text())["dtype"] == "float16"


def test_the_merged_folder_has_the_shards_and_index_of_the_base(trained: RunDir, tmp_path: Path) -> None:
    model = plain(model_path("tiny-base"))
    model.half().save_pretrained(tmp_path / "base", max_shard_size="1MB")
    AutoTokenizer.from_pretrained(model_path("tiny-base")).save_pretrained(tmp_path / "base")
    shards = sorted(p.name for p in (tmp_path / "base").glob("*.safetensors"))
    assert len(shards) > 2
    out = tmp_path / "out"
    out.mkdir()
    merge.write(opened(trained, tmp_path / "base"), out, "auto")
    assert sorted(p.name for p in out.glob("*.safetensors")) == shards
    theirs = load_file(trained.merged / "model.safetensors")
    ours = plain(out).state_dict()
    assert all(torch.equal(ours[name], tensor.float()) for name, tensor in theirs.items())
    (out / shards[0]).unlink()
    with pytest.raises(ModelError, match="is missing, or lacks"):
        Weights(out)


def test_the_type_in_config_json_is_that_of_most_weights(trained: RunDir, tmp_path: Path) -> None:
    """Not that of the first tensor: Llama 2 in float16 is stored with rotary frequencies in float32."""
    base = Path(shutil.copytree(model_path("tiny-base"), tmp_path / "base"))
    tensors = {name: tensor.half() for name, tensor in load_file(base / "model.safetensors").items()}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(16)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "out").mkdir()
    assert merge.write(opened(trained, base), tmp_path / "out", "auto") == "float16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.float16


def opened(trained: RunDir, base: Path | None = None, adapter: Path | None = None) -> Model:
    config = trained.read_config()
    chat = open_renderer(config.model, config.data).chat
    return open_model(base or Path(model_path("tiny-base")), adapter or trained.adapter, chat, "tiny")


def test_an_existing_file_or_an_empty_request_is_refused(trained: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("export", str(trained.path), "--merged") == 2
    assert "already exists" in capsys.readouterr().err
    assert run_cli("export", str(trained.path)) == 2
    assert "say what to write" in capsys.readouterr().err


def test_an_incorrect_merge_fails_verification_and_leaves_only_verified_json(
    trained: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    apply = LowRank.apply
    monkeypatch.setattr(LowRank, "apply", lambda self, weight, begin=0: apply(self, weight, begin).flip(0))
    assert run_cli("export", str(trained.path), "--merged", "--out", str(tmp_path)) == 3
    assert "is not the model that was trained" in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["verified.json"]
    assert json.loads((tmp_path / "verified.json").read_text())["status"] == "failed"


def test_a_changed_template_or_stop_token_fails_verification(trained: RunDir) -> None:
    chat, other = opened(trained).chat, AutoTokenizer.from_pretrained(trained.merged)
    assert all(check.passed for check in verify.compare_tokenizers(chat, other))
    other.chat_template = "{{ messages }}"
    other.eos_token = "<|endoftext|>"
    checks = verify.compare_tokenizers(chat, other)
    assert [check.name for check in checks if not check.passed] == ["chat_template", "stop_token"]
    assert "chat_template" in str(verify.failure(checks, Path("x")))


def changed_adapter(trained: RunDir, tmp_path: Path, change: Any, **settings: Any) -> Path:
    folder = tmp_path / "adapter"
    shutil.copytree(trained.adapter, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(change(tensors), folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | settings))
    return folder


def test_a_tensor_that_cannot_be_merged_is_refused_by_name(trained: RunDir, tmp_path: Path) -> None:
    folder = changed_adapter(
        trained, tmp_path, lambda t: t | {"base_model.model.lm_head.modules_to_save": torch.ones(2)}
    )
    with pytest.raises(ModelError, match=r"cannot be merged: .*modules_to_save"):
        Adapter(folder)


@pytest.mark.parametrize(("key", "value"), [("use_qalora", True), ("init_lora_weights", "pissa_niter_4")])
def test_an_adapter_that_is_not_plain_lora_on_its_base_is_refused(
    trained: RunDir, tmp_path: Path, key: str, value: Any
) -> None:
    with pytest.raises(ModelError, match=f"cannot be merged: {key}"):
        Adapter(changed_adapter(trained, tmp_path, lambda t: t, **{key: value}))


def test_an_adapter_of_another_base_is_refused(trained: RunDir, tmp_path: Path) -> None:
    folder = changed_adapter(
        trained, tmp_path, lambda t: {k.replace("layers.3.", "layers.9."): v for k, v in t.items()}
    )
    with pytest.raises(ModelError, match=r"the base has no model.layers.9\..*another base"):
        opened(trained, adapter=folder)
    wide = changed_adapter(
        trained, tmp_path / "b", lambda t: {k: v.repeat(1, 2) if "lora_A" in k else v for k, v in t.items()}
    )
    with pytest.raises(ModelError, match="belongs to another base: it changes"):
        opened(trained, adapter=wide)


def test_a_truncated_invalid_or_missing_weight_file_is_refused(trained: RunDir, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(model_path("tiny-base"), base)
    content = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(ModelError, match=r"has [\d,]+ bytes but should have"):
        opened(trained, base)
    (base / "model.safetensors").write_bytes(b"x" * 1000)
    with pytest.raises(ModelError, match="is not a safetensors file"):
        opened(trained, base)
    (base / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="holds no safetensors"):
        opened(trained, base)


def test_rank_and_alpha_patterns_are_applied_as_in_peft(tmp_path: Path) -> None:
    base = plain(model_path("tiny-base"))
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], rank_pattern={"q_proj": 2}, alpha_pattern={"layers.1.self_attn.q_proj": 32}
    )  # fmt: skip
    model = peft.get_peft_model(base, config)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(tmp_path)
    expected = model.merge_and_unload().state_dict()
    weights = load_file(Path(model_path("tiny-base")) / "model.safetensors")
    adapter = Adapter(tmp_path)
    assert len(adapter.names) == 10
    for name in adapter.names:
        delta = adapter.delta(name)
        assert delta is not None
        assert torch.allclose(delta.apply(weights[name]), expected[name], atol=1e-6)


def test_a_base_and_an_adapter_without_a_run_are_exported(
    trained: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For example the adapter of another trainer: a folder without a run around it."""
    adapter = shutil.copytree(trained.adapter, tmp_path / "adapter")
    out = tmp_path / "out"
    args = ("--model", "tiny-base", "--adapter", str(adapter), "--out", str(out), "--export-samples", "2")
    assert run_cli("export", *args, "--merged", "--gguf", "q8_0", "--dataset", "world:chains:2-3") == 0
    assert (out / "merged" / "model.safetensors").read_bytes() == (trained.merged / "model.safetensors").read_bytes()
    result = json.loads((out / "verified.json").read_text())
    assert result["status"] == "passed"
    assert {check["file"] for check in result["checks"]} == {"merged", "tiny-base-cot-Q8_0.gguf"}
    assert "Start with" not in (out / "README.md").read_text()
    assert "SYSTEM" not in (out / "Modelfile").read_text(), (
        "it is not known which system prompt this adapter was trained with"
    )
    assert result["system_prompt"] is None
    assert DEFAULT_SYSTEM_PROMPT not in (out / "README.md").read_text()
    capsys.readouterr()
    assert run_cli("export", *args[:-2], "--gguf", "q8_0") == 2
    assert "already exists" in capsys.readouterr().err


def test_the_trained_model_is_loaded_once_and_released_before_an_exported_file_is_loaded(
    trained: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also if nothing can be read layer by layer, so that each model that is compared is loaded in one piece."""

    def refuse(*_: Any) -> None:
        raise KeyError("a parameter of another name")

    load, loads, models = layerwise._loaded, [], []

    def loaded(folder: Path, source: Any, device: str) -> Any:
        assert not [model for model in models if model() is not None], "an earlier model is still in memory"
        model = load(folder, source, device)
        loads.append((folder.name, type(source).__name__))
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(layerwise, "LayerwiseNetwork", refuse)
    monkeypatch.setattr(layerwise, "_loaded", loaded)
    args = ("--merged", "--gguf", "q8_0", "--lora-gguf", "--export-samples", "0", "--out", str(tmp_path))
    assert run_cli("export", str(trained.path), *args) == 0
    base = Path(model_path("tiny-base")).name
    assert loads == [(base, "FolderSource"), (base, "GgufSource"), ("merged", "FolderSource")]
    assert capsys.readouterr().err.count("cannot be read layer by layer") == 3


def test_a_base_without_an_adapter_is_exported_unchanged(tmp_path: Path) -> None:
    out = tmp_path / "out"
    args = ("--model", "tiny-base", "--out", str(out), "--export-samples", "0", "--system-prompt", "")
    assert run_cli("export", *args, "--gguf", "f16", "--merged", "--export-dtype", "float32") == 0
    theirs = load_file(Path(model_path("tiny-base")) / "model.safetensors")
    ours = load_file(out / "merged" / "model.safetensors")
    assert all(torch.equal(theirs[name].float(), tensor) for name, tensor in ours.items())
    assert (out / "tiny-base-F16.gguf").is_file()
    card = (out / "README.md").read_text()
    assert "fine-tune" not in card
    assert "SYSTEM" not in (out / "Modelfile").read_text()


def test_the_adapter_of_a_run_can_be_merged_into_another_copy_of_its_base(trained: RunDir, tmp_path: Path) -> None:
    """For example after training on a 4-bit base, into which nothing can be merged."""
    base = shutil.copytree(model_path("tiny-base"), tmp_path / "sixteen-bits")
    out = tmp_path / "out"
    assert run_cli("export", str(trained.path), "--model", str(base), "--merged", "--out", str(out)) == 0
    assert (out / "merged" / "model.safetensors").read_bytes() == (trained.merged / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "name a run, a model with --model, or an adapter"),
        (("--model", "tiny-base", "--merged"), "say where it goes"),
        (("RUN", "--adapter", "x", "--merged"), "a run has its own"),
        (("RUN", "--system-prompt", "Be brief.", "--merged"), "a run has its own"),
        (("--model", "tiny-base", "--out", "OUT", "--lora-gguf"), "there is no adapter to write"),
        (("--model", "tiny-base", "--out", "OUT"), "say what to write"),
        (("--model", "/nowhere/at/all", "--out", "OUT", "--merged"), "/nowhere/at/all"),
        (("--model", "tiny-base", "--adapter", "/nowhere", "--out", "OUT", "--merged"), "holds no adapter"),
    ],
)
def test_flags_that_cannot_be_combined_are_refused(
    args: tuple[str, ...], message: str, trained: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {"RUN": str(trained.path), "OUT": str(tmp_path / "out")}
    assert run_cli("export", *(paths.get(arg, arg) for arg in args)) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(),
    reason="the benchmark reads /proc/self/smaps_rollup, which only Linux has",
)
def test_the_benchmark_runs(tmp_path: Path) -> None:
    script, out = Path(__file__).parent.parent / "bench" / "export.py", tmp_path / "out.json"
    command = [sys.executable, str(script), "--sizes", "tiny", "--n", "1", "--tokenizer", model_path("tiny-base")]
    subprocess.run([*command, "--out", str(out), "--work", str(tmp_path)], check=True, capture_output=True)
    measured = json.loads(out.read_text())["sizes"]["tiny"]["ours"]
    assert measured["written_over_file"] == 1.0
    assert 0 < measured["extra_anonymous_mib"] < measured["anonymous_mib"]["write"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
