"""Techniques as settings: what is trained, saved, scored and exported is the same model, for each of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from helpers import chains, forked, furthest, lora
from models import TINY, opened
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM as Auto
from transformers import AutoTokenizer, GPT2Config, Qwen3MoeConfig

from cot_unsloth.config import RunConfig, load
from cot_unsloth.config.techniques import TECHNIQUES
from cot_unsloth.core.errors import ConfigError, EngineError, InvariantError, ModelError
from cot_unsloth.core.types import Sample
from cot_unsloth.export import merge
from cot_unsloth.export.gguf import predictions, writer
from cot_unsloth.models import estimate, techniques
from cot_unsloth.models.hf import HfEngine
from cot_unsloth.models.llamacpp import LlamaCpp
from cot_unsloth.prompts.render import Renderer
from cot_unsloth.prompts.tokenizer import model_path
from cot_unsloth.training.method import TrainingHooks
from cot_unsloth.training.sft import fit

LESS = {
    "lora_r": "4", "lora_alpha": "8", "autocast": "false", "save_steps": "2", "logging_steps": "1", "max_steps": "4",
    "per_device_train_batch_size": "4", "gradient_accumulation_steps": "1", "learning_rate": "4e-3",
}  # fmt: skip
TRAINED: Mapping[str, dict[str, str]] = {
    **{name: {"technique": name} for name in TECHNIQUES if name not in ("loftq", "qlora", "full")},
    "vera": {"technique": "vera", "learning_rate": "0.2"},  # its weights are fewer, and scaled by a tenth
    "pissa_niter_4": {"init_lora_weights": "pissa_niter_4", "use_rslora": "true"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "gaussian": {"init_lora_weights": "gaussian"},
    "dora + rslora + lora+": {"use_dora": "true", "use_rslora": "true", "loraplus_lr_ratio": "4"},
    "olora + lora-fa + layers": {"init_lora_weights": "olora", "use_lorafa": "true", "layers_to_transform": "0,2-3"},
}
"""Settings of the techniques that the hf engine trains on weights of 32 bits; tests/quantized has those of 4 and 8."""
CHANGED = ("pissa", "olora", "pissa_niter_4", "olora + lora-fa + layers")
"""Those that are trained on another base than the one that they are saved for."""


def settings(**flags: str) -> RunConfig:
    return load(None, LESS | flags)


def rows(n: int = 16) -> tuple[Renderer, list[Sample]]:
    return chains(settings(), n)


def logits(model: Any, samples: list[Sample]) -> Any:
    with torch.inference_mode():
        return torch.cat([model.eval()(input_ids=torch.tensor([list(s.ids)])).logits[0] for s in samples])


def base() -> Any:
    return Auto.from_pretrained(model_path("tiny-base"), dtype=torch.float32).eval()


@dataclass(frozen=True)
class Trained:
    """A short training with a technique."""

    name: str
    engine: HfEngine
    in_training: Any
    """Logits of the rows by the model that was trained, before it was saved."""
    folder: Path
    samples: list[Sample]


@pytest.fixture(scope="module", params=TRAINED)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("technique")
    renderer, samples = rows()
    engine = HfEngine(settings(**TRAINED[request.param]), renderer.chat)
    fit(engine, samples, TrainingHooks(folder / "checkpoints"))
    in_training = logits(engine.model, samples[:2])
    engine.save(folder / "adapter")
    return Trained(request.param, engine, in_training, folder, samples[:2])


def test_the_saved_adapter_is_the_model_that_was_trained(trained: Trained) -> None:
    """In this engine, and loaded by PEFT on the base as it was published."""
    plain = logits(base(), trained.samples)
    assert (trained.in_training - plain).abs().max() > 0.1
    with trained.engine.as_base():
        torch.testing.assert_close(logits(trained.engine.model, trained.samples), plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(trained.engine.model, trained.samples), trained.in_training, rtol=0, atol=2e-3)
    loaded = peft.PeftModel.from_pretrained(base(), str(trained.folder / "adapter"))
    torch.testing.assert_close(logits(loaded, trained.samples), trained.in_training, rtol=0, atol=2e-3)
    opened = HfEngine(settings(), trained.engine.chat, trained.folder / "adapter")
    torch.testing.assert_close(logits(opened.model, trained.samples), trained.in_training, rtol=0, atol=2e-3)


def test_a_checkpoint_is_an_adapter_of_the_base_too(trained: Trained) -> None:
    last = trained.folder / "checkpoints" / "checkpoint-4"
    loaded = peft.PeftModel.from_pretrained(base(), str(last))
    torch.testing.assert_close(logits(loaded, trained.samples), trained.in_training, rtol=0, atol=2e-3)


def test_merged_folder_and_gguf_are_the_model_that_was_trained(trained: Trained, tmp_path: Path) -> None:
    model, _ = opened(Path(model_path("tiny-base")), trained.folder / "adapter")
    merge.write(model, tmp_path, "float32")
    merged = Auto.from_pretrained(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(logits(merged, trained.samples), trained.in_training, rtol=0, atol=2e-3)
    theirs = peft.PeftModel.from_pretrained(base(), str(trained.folder / "adapter")).merge_and_unload().state_dict()
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=2e-6)
    writer.write(model, {"f32": tmp_path / "f32.gguf"})
    ids = trained.samples[0].ids[:40]
    llama = LlamaCpp(tmp_path / "f32.gguf", context=64)
    (measured,) = predictions.llama_logprobs(llama, [predictions.Position(ids, ends_turn=False)], 500)
    llama.close()
    expected = torch.log_softmax(trained.in_training[39].double(), -1)
    assert max(abs(float(expected[i]) - v) for i, v in measured.items() if v > -8) < 0.02


def test_what_is_trained_is_what_the_technique_trains(trained: Trained) -> None:
    name, config = trained.name, json.loads((trained.folder / "adapter" / "adapter_config.json").read_text())
    tensors = load_file(trained.folder / "adapter" / "adapter_model.safetensors")
    assert config["init_lora_weights"] is True
    assert config["r"] == (8 if name in CHANGED else 4)
    assert any("magnitude" in tensor for tensor in tensors) == ("dora" in name)
    layers = {int(tensor.split(".layers.")[1].split(".")[0]) for tensor in tensors}
    expected = {"layers": {2, 3, 4}, "olora + lora-fa + layers": {0, 2, 3}}.get(name, {0, 1, 2, 3, 4})
    assert layers == expected


@pytest.mark.parametrize("name", TRAINED)
def test_a_run_that_is_resumed_ends_as_one_that_was_not(name: str, tmp_path: Path) -> None:
    renderer, samples = rows()
    results, losses = [], []
    for resume in (None, tmp_path / "whole" / "checkpoint-2"):
        engine = HfEngine(settings(**TRAINED[name]), renderer.chat)
        log: list[dict[str, Any]] = []
        hooks = TrainingHooks(
            tmp_path / ("resumed" if resume else "whole"), resume_from=resume, on_log=lambda row, to=log: to.append(dict(row))
        )  # fmt: skip
        fit(engine, samples, hooks)
        results.append(lora(engine))
        losses.append([row["loss"] for row in log if "loss" in row])
    assert furthest(*results) == 0
    assert losses[0][2:] == losses[1][-2:]
    assert furthest(
        load_adapter(tmp_path / "whole" / "checkpoint-2"), load_adapter(tmp_path / "whole" / "checkpoint-4")
    )


def load_adapter(folder: Path) -> dict[str, Any]:
    return dict(load_file(folder / "adapter_model.safetensors"))


def test_a_resumed_run_takes_the_decomposition_of_its_checkpoint(tmp_path: Path) -> None:
    """That another machine makes another one must not change the model: here, that of another seed."""
    renderer, samples = rows()
    flags = {"init_lora_weights": "pissa_niter_1"}
    engine = HfEngine(settings(**flags), renderer.chat)
    fit(engine, samples, TrainingHooks(tmp_path / "a"))
    before = logits(engine.model, samples[:2])
    torch.manual_seed(99)
    model = engine.attach_trainable_weights()
    engine.initial_factors.resume(tmp_path / "a" / "checkpoint-4")
    torch.testing.assert_close(logits(model, samples[:2]), before, rtol=0, atol=2e-3)


def test_a_resumed_run_on_gpt2_takes_the_decomposition_of_its_checkpoint(tmp_path: Path) -> None:
    """Its weights are stored as (in, out)."""
    base = small_base(tmp_path / "base", GPT2Config(n_embd=32, n_layer=1, n_head=2))
    renderer, samples = rows(2)
    flags = {"model_name_or_path": base, "target_modules": "c_proj", "init_lora_weights": "pissa_niter_1"}
    engine = HfEngine(settings(**flags), renderer.chat)
    model = engine.attach_trainable_weights()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    before = logits(model, samples)
    model.save_pretrained(tmp_path / "checkpoint")
    assert engine.initial_factors is not None
    engine.initial_factors.write_plain(tmp_path / "checkpoint")
    torch.manual_seed(99)
    model = engine.attach_trainable_weights()
    engine.initial_factors.resume(tmp_path / "checkpoint")
    torch.testing.assert_close(logits(model, samples), before, rtol=0, atol=1e-3)


def test_faster_layers_change_no_loss() -> None:
    """DoRA's layers are left to PEFT; the others compute what PEFT does, on the base that they are trained on."""
    renderer, samples = rows(2)
    ids = torch.tensor([list(samples[0].ids)])
    for name in ("dora", "pissa", "olora", "layers"):
        engine = HfEngine(settings(technique=name), renderer.chat)
        model = engine.attach_trainable_weights().eval()
        with torch.no_grad():
            plain = model(input_ids=ids, labels=ids).loss
            with engine.training_context(None):
                assert model(input_ids=ids, labels=ids).loss == pytest.approx(float(plain), abs=1e-5)


def test_the_base_below_a_changed_adapter_is_never_scored_as_the_base() -> None:
    engine = HfEngine(settings(technique="pissa"), rows(2)[0].chat)
    engine.attach_trainable_weights()
    with pytest.raises(InvariantError, match="save the adapter first"), engine.as_base():
        pass


def test_every_technique_begins_as_the_base() -> None:
    """The product of the factors is nothing, or has been taken off the weights."""
    renderer, samples = rows(8)
    plain = logits(base(), samples[:1])
    for name, flags in TRAINED.items():
        engine = HfEngine(settings(**flags), renderer.chat)
        model = engine.attach_trainable_weights(samples)
        torch.testing.assert_close(
            logits(model, samples[:1]), plain, rtol=0, atol=2e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_eva_begins_with_directions_of_the_data() -> None:
    """A is orthonormal, and explains more of the inputs of a layer than as many directions at random."""
    renderer, samples = rows(32)
    engine = HfEngine(settings(technique="eva", lora_r="8"), renderer.chat)
    model = engine.attach_trainable_weights(samples)
    layer = model.base_model.model.model.layers[1].mlp.up_proj
    a = layer.lora_A["default"].weight.detach()
    torch.testing.assert_close(a @ a.T, torch.eye(8), rtol=0, atol=1e-3)
    seen: list[Any] = []
    hook = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()[0]))
    logits(model, samples[:8])
    hook.remove()
    inputs = torch.cat(seen) - torch.cat(seen).mean(0)
    assert (inputs @ a.T).square().sum() > 3 * 8 / inputs.shape[1] * inputs.square().sum()


def test_lora_plus_trains_b_faster_and_keeps_the_ratio_at_another_rate(tmp_path: Path) -> None:
    renderer, samples = rows()
    flags = {"loraplus_lr_ratio": "10", "warmup_ratio": "0", "lr_scheduler_type": "constant"}
    rates = []
    for rate, resume in (("1e-3", None), ("1e-4", tmp_path / "checkpoint-2")):
        engine = HfEngine(settings(**flags, learning_rate=rate), renderer.chat)
        fit(engine, samples, TrainingHooks(tmp_path, resume_from=resume))
        state = torch.load(tmp_path / "checkpoint-4" / "optimizer.pt", weights_only=True)
        rates.append([group["lr"] for group in state["param_groups"] if group["params"]])
    assert rates == [pytest.approx([1e-3, 1e-2]), pytest.approx([1e-4, 1e-3])]


def test_lora_fa_leaves_a_as_it_was(tmp_path: Path) -> None:
    renderer, samples = rows()
    engine = HfEngine(settings(technique="lora-fa"), renderer.chat)
    fit(engine, samples, TrainingHooks(tmp_path))
    early, late = (load_adapter(tmp_path / f"checkpoint-{step}") for step in (2, 4))
    assert {name.split(".lora_")[1][0] for name in early if not torch.equal(early[name], late[name])} == {"B"}


def test_neftune_adds_noise_to_rows_apart(tmp_path: Path) -> None:
    """Only in training, and by the length of a row: rows of a batch are not joined."""
    renderer, samples = rows()
    losses = []
    for flags in ({}, {"neftune_noise_alpha": "50"}):
        engine = HfEngine(settings(**flags, max_steps="1"), renderer.chat)
        log: list[dict[str, Any]] = []
        fit(engine, samples, TrainingHooks(tmp_path, on_log=lambda row, to=log: to.append(dict(row))))
        losses.append(log[0]["loss"])
        assert engine.has_varlen_attention is not bool(flags)
        assert not engine.model.get_input_embeddings()._forward_hooks
    assert losses[1] > losses[0] + 0.01


def test_the_shorthand_sets_what_the_table_says() -> None:
    for name, leaves in TECHNIQUES.items():
        config = load(None, {"technique": name})
        assert config.techniques == (name,)
        assert config.lora.technique is None  # so that two ways to write it are the same run
        for leaf, value in leaves.items():
            assert (
                getattr(
                    getattr(config, next(s for s in ("lora", "train", "model") if hasattr(getattr(config, s), leaf))),
                    leaf,
                )
                == value
            )
    both = load(None, {"technique": "pissa", "init_lora_weights": "olora"})
    assert both.techniques == ("olora",)
    again = load(None, {"use_dora": "true", "full_finetuning": "false"}).overridden({"technique": "lora+"})
    assert again.techniques == ("lora+",)
    assert load(None, {}).fingerprint() == load(None, {"technique": "lora"}).fingerprint()


def test_the_shorthand_in_a_file_yields_to_settings_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("lora: {technique: dora, use_rslora: true}\n")
    assert load(file, {}).techniques == ("rslora", "dora")
    assert load(file, {"technique": "lora"}).techniques == ("lora",)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"use_dora": "true", "use_lorafa": "true"}, "mistakes DoRA's magnitudes for LoRA factors"),
        ({"loraplus_lr_ratio": "4", "use_lorafa": "true"}, "one learning rate"),
        ({"use_dora": "true", "init_lora_weights": "pissa"}, "both change"),
        ({"use_lorafa": "true", "optim": "adamw_torch"}, "an optimizer of its own"),
        ({"full_finetuning": "true", "loraplus_lr_ratio": "4"}, "train an adapter"),
        ({"method": "grpo", "use_lorafa": "true"}, "cannot be combined"),
        ({"method": "grpo", "init_lora_weights": "eva"}, "has no traces"),
        ({"packing": "true", "neftune_noise_alpha": "5"}, "the length of a row"),
        ({"init_lora_weights": "loftq"}, "add model.load_in_4bit"),
        ({"init_adapter": "x", "layers_to_transform": "upper"}, "leave lora.layers_to_transform empty"),
        ({"technique": "corda"}, "input should be"),
        ({"use_vera": "true", "use_dora": "true"}, "LoRA's factors"),
        ({"use_vera": "true", "loraplus_lr_ratio": "4"}, "LoRA's factors"),
        ({"technique": "vera", "init_lora_weights": "pissa"}, "LoRA's factors"),
        ({"init_lora_weights": "pissa_niter_x"}, "pissa_niter_N"),
        ({"layers_to_transform": "3-1"}, "is not a layer"),
    ],
)
def test_techniques_that_exclude_each_other_are_refused(flags: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(None, flags)


def test_what_an_engine_cannot_train_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    pissa = load(None, {"technique": "pissa", "load_in_4bit": "true"})
    error = techniques.refusal(pissa, "hf")
    assert error
    assert "PiSSA on weights of 4 bits" in error.message
    assert error.hint == "--no-load-in-4bit"
    with pytest.raises(ModelError, match="EVA"):
        techniques.check(load(None, {"technique": "eva"}), "unsloth")
    assert techniques.refusal(load(None, {"technique": "loftq"}), "hf") is None
    done = forked("cot_unsloth", "check", "--technique", "olora", "--load-in-8bit", at=tmp_path)
    assert done.returncode == 2
    assert "quantized again" in done.stdout + done.stderr


def test_a_layer_that_the_model_does_not_have_is_refused() -> None:
    engine = HfEngine(settings(layers_to_transform="2-9"), rows(2)[0].chat)
    with pytest.raises(ModelError, match="5 layers, numbered from 0; there is no layer 9"):
        engine.attach_trainable_weights()


def test_a_rank_above_the_directions_of_a_weight_is_refused() -> None:
    engine = HfEngine(settings(technique="pissa", lora_r="500"), rows(2)[0].chat)
    with pytest.raises(ModelError, match="directions, fewer than the rank"):
        engine.attach_trainable_weights()


def small_base(folder: Path, config: Any) -> str:
    """A base of another family, with the tokenizer of the embedded one."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    config.vocab_size = len(tokenizer)
    Auto.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_modules_of_gpt2_can_be_named(tmp_path: Path) -> None:
    """Its linear layers are of a class of its own."""
    base = small_base(tmp_path, GPT2Config(n_embd=32, n_layer=2, n_head=2))
    chat = rows(2)[0].chat
    with pytest.raises(ModelError, match="has no module q_proj") as refused:
        HfEngine(load(None, {"model_name_or_path": base, "target_modules": "q_proj"}), chat)
    assert refused.value.hint == "it has c_attn, c_fc, c_proj"
    for flags in ({"target_modules": "c_attn"}, {"layers_to_transform": "1"}):
        config = load(None, {"model_name_or_path": base, "lora_r": "2", **flags})
        adapted = HfEngine(config, chat).attach_trainable_weights()
        shape = estimate.shape_of(config.model)
        assert shape is not None
        trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        assert estimate.adapter_parameters(config, shape) == trained


def test_rows_beyond_the_table_of_positions_are_refused(tmp_path: Path) -> None:
    base = small_base(tmp_path, GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=16))
    renderer, samples = rows(2)
    engine = HfEngine(load(None, {"model_name_or_path": base}), renderer.chat)
    with pytest.raises(EngineError, match="but the model has a table of 16 positions"):
        engine.attach_trainable_weights(samples)


def test_an_adapter_of_experts_is_trained_or_refused_for_what_it_is(tmp_path: Path) -> None:
    mixture = Qwen3MoeConfig(
        hidden_size=32, moe_intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        num_experts=4, num_experts_per_tok=2, head_dim=16,
    )  # fmt: skip
    flags = {"model_name_or_path": small_base(tmp_path, mixture), "lora_r": "2"}
    chat = rows(2)[0].chat
    with pytest.raises(ModelError, match="adapts the experts") as refused:
        HfEngine(load(None, flags | {"merged": "true"}), chat).attach_trainable_weights()
    assert refused.value.hint is not None
    assert "--target-modules q_proj,k_proj,v_proj,o_proj" in refused.value.hint
    model = HfEngine(load(None, flags), chat).attach_trainable_weights()
    assert any("experts" in name for name, p in model.named_parameters() if p.requires_grad)
    attention = flags | {"merged": "true", "target_modules": "q_proj,k_proj,v_proj,o_proj"}
    HfEngine(load(None, attention), chat).attach_trainable_weights()


def test_the_page_has_the_table_in_the_code_and_names_every_technique() -> None:
    page = (Path(__file__).parent.parent / "docs" / "techniques.md").read_text(encoding="utf-8")
    assert techniques.table() in page
    for name, technique in techniques.TABLE.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert technique.source in row
        assert technique.setting.rpartition(".")[2] in row or name == "lora"
