"""Training on a CPU: joined rows, LoRA layers and attention compute what PEFT and transformers compute, and leave no trace."""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from helpers import chains
from models import TINY
from torch import nn
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    GemmaConfig,
    GraniteConfig,
    JetMoeConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Olmo2Config,
    Qwen2Config,
)
from trl.trainer.sft_trainer import _patch_chunked_ce_lm_head

from cot_unsloth.config import load
from cot_unsloth.core.types import IGNORE, Sample
from cot_unsloth.models.cpu import faster_training, takes_joined_rows
from cot_unsloth.models.cpu.attention import CausalAttention, attention_of_joined_rows
from cot_unsloth.models.cpu.lora import fused_lora
from cot_unsloth.models.cpu.loss import LinearCrossEntropy, fused_loss
from cot_unsloth.models.cpu.norm import fused_norms
from cot_unsloth.models.hf import HfEngine
from cot_unsloth.models.output_layer import is_plain
from cot_unsloth.training import sft
from cot_unsloth.training.batches import MULTIPLE
from cot_unsloth.training.method import TrainingHooks

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64,
    "num_key_value_heads": 2,
}  # fmt: skip


def small(config: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def adapted(biased: bool = False, **settings: Any) -> Any:
    """A PEFT model whose B matrices are not zero."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(24, 40, bias=biased), nn.Tanh(), nn.Linear(40, 12, bias=biased))
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=6, target_modules=["0", "2"], **settings))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return wrapped


def gradients(model: Any, x: Any) -> list[Any]:
    """The output, and the gradients of x and of every trained weight."""
    x = x.clone().requires_grad_()
    y = model(x)
    trained = [p for p in model.parameters() if p.requires_grad]
    return [y.detach(), *torch.autograd.grad((y * torch.arange(y.numel()).view_as(y).cos()).sum(), [x, *trained])]


@pytest.mark.parametrize("bias", [False, True])
def test_a_fused_lora_layer_computes_what_peft_computes(bias: bool) -> None:
    model, x = adapted(bias), torch.randn(3, 7, 24)
    expected = gradients(model, x)
    with fused_lora(model, None) as fused:
        assert fused == 2
        computed = gradients(model, x)
    for ours, theirs in zip(computed, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(gradients(model, x), expected, strict=True))  # PEFT's own again


@pytest.mark.parametrize("settings", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}])
def test_other_kinds_of_adapters_are_left_to_peft(settings: dict[str, Any]) -> None:
    with fused_lora(adapted(True, **settings), None) as fused:
        assert fused == 0


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_the_bias_below_an_adapter_is_trained_if_the_adapter_trains_it(bias: str) -> None:
    model, x = adapted(True, bias=bias), torch.randn(3, 24)
    expected = gradients(model, x)
    with fused_lora(model, None):
        computed = gradients(model, x)
    assert len(computed) == 2 + 2 * 3
    for ours, theirs in zip(computed, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_fused_lora_layer_takes_no_rows() -> None:
    model = adapted()
    with fused_lora(model, None):  # as an expert that no token is sent to
        assert model(torch.zeros(0, 24)).shape == (0, 12)


def test_two_active_adapters_are_left_to_peft() -> None:
    model = adapted()
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["0"]))
    model.base_model.set_adapter(["default", "other"])
    with fused_lora(model, None) as fused:
        assert fused == 0


@pytest.mark.parametrize("groups", [6, 2])
def test_attention_that_keeps_its_probabilities_computes_what_sdpa_computes(groups: int) -> None:
    torch.manual_seed(0)
    queries, keys, values = (torch.randn(n, 37, 8, requires_grad=True) for n in (6, groups, groups))
    wanted = functional.scaled_dot_product_attention(
        queries[None], keys[None], values[None], is_causal=True, scale=0.3, enable_gqa=True
    )[0]
    ours = CausalAttention.apply(queries, keys, values, 0.3)
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)
    towards = torch.randn_like(wanted)
    for a, b in zip(
        torch.autograd.grad(ours, [queries, keys, values], towards),
        torch.autograd.grad(wanted, [queries, keys, values], towards),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "longest", "takes"),
    [
        (LlamaConfig(**SIZES), 512, True),
        (Qwen2Config(**SIZES), 512, True),
        (MistralConfig(**SIZES, sliding_window=256), 256, True),
        (MistralConfig(**SIZES, sliding_window=256), 257, False),  # its window would have to be cut out of each row
        (MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=64, state_size=4), 512, False),
        (JetMoeConfig(**SIZES, kv_channels=8, num_local_experts=2), 512, False),  # fails on another memory layout
    ],
)
def test_a_model_that_looks_beyond_a_row_gets_padded_batches(config: Any, longest: int, takes: bool) -> None:
    model = small(config)
    assert takes_joined_rows(model, longest) is takes
    assert model.config._attn_implementation == small(config).config._attn_implementation


def test_joined_rows_without_their_lengths_are_an_error() -> None:
    model = small(LlamaConfig(**SIZES))
    positions = torch.tensor([[0, 1, 2, 0, 1]])
    with attention_of_joined_rows(model), pytest.raises(ValueError, match="without their lengths"):
        model(input_ids=positions, position_ids=positions, use_cache=False)


def test_dropout_of_attention_is_applied_to_joined_rows() -> None:
    model = small(LlamaConfig(**SIZES, attention_dropout=0.5)).train()
    ids, positions = torch.arange(8)[None], torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]])
    with attention_of_joined_rows(model):
        first, second = (
            model(input_ids=ids, position_ids=positions, row_lengths=[3, 5], use_cache=False).logits for _ in range(2)
        )
    assert not torch.equal(first, second)


def test_a_model_that_drops_the_rows_lengths_gets_padded_batches() -> None:
    model = small(LlamaConfig(**SIZES))
    forward = model.model.forward
    model.model.forward = lambda *args, row_lengths=None, **kwargs: forward(*args, **kwargs)
    assert not takes_joined_rows(model, 512)


def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The batches that reach the model from now on."""
    batches: list[dict[str, Any]] = []
    real = sft.SftTrainer.compute_loss

    def compute_loss(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        batches.append(dict(inputs))
        return real(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(sft.SftTrainer, "compute_loss", compute_loss)
    return batches


def fitted(
    folder: Path, samples: Sequence[Sample], renderer: Any, **flags: str
) -> tuple[HfEngine, list[dict[str, float]]]:
    settings = {
        "max_steps": "3", "logging_steps": "1", "lora_r": "4", "learning_rate": "1e-3", "autocast": "false",
        "per_device_train_batch_size": "4", "gradient_accumulation_steps": "2", "world_clean_first": "0.1",
    }  # fmt: skip
    engine = HfEngine(load(None, settings | flags), renderer.chat)
    metrics: list[dict[str, float]] = []
    sft.fit(engine, samples, TrainingHooks(folder, on_log=lambda row: metrics.append(dict(row))))
    return engine, metrics


def test_joined_rows_train_as_padded_rows_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renderer, samples = chains(load(None, {}), 24)
    batches = seen(monkeypatch)
    joined, metrics = fitted(tmp_path / "a", samples, renderer)
    assert "row_lengths" in batches[0]
    assert "attention_mask" not in batches[0]
    real = sum(len(sample.ids) for sample in samples)
    computed = sum(batch["input_ids"].numel() for batch in batches)
    # Six forward passes, each of four rows, without padding beyond the last multiple.
    assert len(batches) == 6
    assert real <= computed < real + 6 * MULTIPLE
    assert sum(int((batch["labels"] != IGNORE).sum()) for batch in batches) == sum(s.supervised for s in samples)

    monkeypatch.setattr(HfEngine, "has_varlen_attention", False)
    monkeypatch.setattr("cot_unsloth.models.cpu.faster_training", lambda *args, **kwargs: contextlib.nullcontext())
    monkeypatch.setattr("cot_unsloth.models.cpu.takes_joined_rows", lambda *args: False)
    batches.clear()
    padded, expected = fitted(tmp_path / "b", samples, renderer)
    assert "attention_mask" in batches[0]
    for ours, theirs in zip(metrics, expected, strict=True):
        for name in ("grad_norm", "entropy", "mean_token_accuracy", "num_tokens", "learning_rate"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3), name
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
    for (name, a), (_, b) in zip(joined.model.named_parameters(), padded.model.named_parameters(), strict=True):
        # Adam divides by the size of the gradient, so where that is tiny rounding shows.
        assert (a - b).abs().max() < 1e-3, name
        assert (a - b).abs().mean() < 1e-5, name


def test_packing_is_left_out_where_rows_need_no_padding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    renderer, samples = chains(load(None, {}), 8)
    batches = seen(monkeypatch)
    fitted(tmp_path / "a", samples, renderer, packing="true", max_steps="1")
    assert [len(batch["row_lengths"]) for batch in batches] == [5, 5]  # four rows each, and the filling
    assert "not packed: rows need no padding on a CPU" in capfd.readouterr().err


def test_nothing_is_left_on_the_model(tmp_path: Path) -> None:
    renderer, samples = chains(load(None, {}), 8)
    engine, _ = fitted(tmp_path / "a", samples, renderer, max_steps="1", autocast="true")
    assert engine.model.config._attn_implementation == "sdpa"
    assert not [name for name, module in engine.model.named_modules() if "forward" in vars(module)]


def test_a_fused_norm_computes_what_transformers_computes() -> None:
    model, x = small(LlamaConfig(**SIZES)), torch.randn(2, 9, 32)
    model.requires_grad_(False)
    nn.init.normal_(model.model.norm.weight)
    expected = gradients(model.model.norm, x)
    with fused_norms(model, None) as fused:
        assert fused == 5
        for ours, theirs in zip(gradients(model.model.norm, x), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_norm_that_computes_something_else_is_left_alone() -> None:
    model = small(GemmaConfig(**SIZES, head_dim=8)).requires_grad_(False)  # multiplies by 1 + weight
    with fused_norms(model, None) as fused:
        assert fused == 0
    model = small(LlamaConfig(**SIZES)).requires_grad_(False)
    for layer in model.model.layers:
        layer.input_layernorm.eps, layer.input_layernorm.variance_epsilon = (
            1e-2,
            1e-5,
        )  # which of them it adds is not known
        layer.input_layernorm.forward = functools.partial(functional.rms_norm, normalized_shape=(32,), eps=1e-2)
    with fused_norms(model, None) as fused:
        assert fused == 3


def test_a_fused_norm_takes_what_a_projection_returned_in_16_bits() -> None:
    """OLMo 2 has norms behind attention and MLP, whose results are in bfloat16 under autocast."""
    model = small(Olmo2Config(**SIZES, initializer_range=0.3))
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    ids = torch.randint(0, 64, (2, 11))

    def gradient() -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        return torch.cat(
            [g.flatten() for g in torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])]
        )

    expected = gradient()
    with fused_norms(model, torch.bfloat16) as fused:
        assert fused == 7
        assert (gradient() - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("bias", [None, torch.linspace(-1, 1, 50)])
def test_the_fused_loss_is_the_cross_entropy(bias: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cot_unsloth.models.cpu.loss.CHUNK", 4)  # three chunks
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(11, 8, requires_grad=True), torch.randn(50, 8), torch.randint(0, 50, (11,))
    logits = functional.linear(hidden, weight, bias)
    expected = functional.cross_entropy(logits, labels, reduction="sum")
    loss, entropy, correct = LinearCrossEntropy.apply(hidden, weight, bias, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    ours, theirs = (torch.autograd.grad(x * 0.3, hidden)[0] for x in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        entropy, torch.distributions.Categorical(logits=logits).entropy().sum(), rtol=1e-5, atol=1e-5
    )
    assert correct == (logits.argmax(-1) == labels).sum()


@pytest.mark.parametrize(
    ("config", "fused"),
    [(LlamaConfig(**SIZES), 1), (Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=30.0), 0)],
)
def test_a_head_that_does_more_keeps_its_own_loss(config: Any, fused: int) -> None:
    model = small(config)
    with fused_loss(model, None) as count:
        assert count == 0  # not prepared by TRL
    _patch_chunked_ce_lm_head(model, chunk_size=8)
    with fused_loss(model, None) as count:
        assert count == 0  # its head is trained
    model.requires_grad_(False)
    with fused_loss(model, None) as count:
        assert count == fused


@pytest.mark.parametrize(
    ("config", "plain"),
    [
        (LlamaConfig(**SIZES), True),
        (CohereConfig(**SIZES, logit_scale=0.3, eos_token_id=1), True),  # which TRL knows
        (Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=5.0), True),
        (GraniteConfig(**SIZES, logits_scaling=8.0), False),
        (
            FalconH1Config(
                **SIZES, lm_head_multiplier=0.1, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8
            ),
            False,
        ),
    ],
)
def test_a_model_whose_logits_trl_does_not_make_is_recognized(config: Any, plain: bool) -> None:
    config.initializer_range = 0.3
    model, ids = small(config).train(), torch.arange(24).view(2, 12)
    assert is_plain(model) is plain
    assert model.training
    own = model(input_ids=ids, labels=ids, use_cache=False).loss
    _patch_chunked_ce_lm_head(model, chunk_size=8)
    chunked = model(input_ids=ids, labels=ids, use_cache=False).loss
    assert bool(abs(own - chunked) < 1e-3) is plain


def test_a_new_adapter_of_the_output_layer_is_recognized() -> None:
    model = peft.get_peft_model(small(LlamaConfig(**SIZES)), peft.LoraConfig(r=2, target_modules=["lm_head"]))
    assert not is_plain(model)


def test_the_loss_is_that_of_the_models_own_logits(tmp_path: Path) -> None:
    renderer, samples = chains(load(None, {}), 4)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    model = small(GraniteConfig(**SIZES | {"vocab_size": len(tokenizer)}, logits_scaling=8.0, initializer_range=0.3))
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    flags = {"max_steps": "1", "gradient_accumulation_steps": "1", "model_name_or_path": str(tmp_path / "base")}
    _, metrics = fitted(tmp_path / "run", samples, renderer, **flags)
    # A new adapter changes nothing in the first step.
    rows = [(torch.tensor([sample.ids]), torch.tensor([sample.labels])) for sample in samples]
    logits = torch.cat([model(input_ids=ids).logits[0, :-1] for ids, _ in rows])
    own = functional.cross_entropy(logits, torch.cat([labels[0, 1:] for _, labels in rows]))
    assert metrics[0]["loss"] == pytest.approx(own.item(), abs=1e-3)


def test_the_context_ends_after_an_error() -> None:
    model = small(LlamaConfig(**SIZES))
    with pytest.raises(KeyError), faster_training(model, None, joined=True):
        raise KeyError
    assert model.config._attn_implementation == "sdpa"


def test_memory_does_not_grow_with_the_number_of_lengths() -> None:
    """With padded rows of any length it grew by 0.9 GiB: oneDNN keeps what it compiles for each.

    In the first 50 steps, in which most lengths occur for the first time, it grows by about 70 MB, and by 27 to 60 MB in the 250
    afterwards, depending on the machine and on what else runs there. 100 MB is the most that is promised.
    """
    script = Path(__file__).with_name("memory_of_training.py")
    early, late = map(int, subprocess.check_output([sys.executable, str(script)], text=True).split())
    assert late - early < 100e6
