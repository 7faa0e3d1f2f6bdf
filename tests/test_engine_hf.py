"""The hf engine with real trl: our labels arrive, batches are equal, rows are isolated, resume is exact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import peft
import pytest
import torch
import trl
from helpers import chains, furthest, lora
from models import TINY
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from cot_unsloth import tasks
from cot_unsloth.config import RunConfig, load
from cot_unsloth.core.errors import EngineError, InvariantError, ModelError
from cot_unsloth.core.types import Sample, SamplingParams
from cot_unsloth.models import registry
from cot_unsloth.models.hf import HfEngine
from cot_unsloth.models.protocols import Generator, Trainable
from cot_unsloth.prompts.opening import open_renderer
from cot_unsloth.prompts.render import Renderer
from cot_unsloth.prompts.tokenizer import model_path
from cot_unsloth.storage.run_folder import checkpoint_step, complete_checkpoints
from cot_unsloth.training import trainers
from cot_unsloth.training.method import TrainingHooks
from cot_unsloth.training.sft import assert_counts, fit, training_arguments

LESS = {"lora_r": "4", "lora_alpha": "8", "autocast": "false", "save_steps": "100", "logging_steps": "1"}


def settings(**flags: str) -> RunConfig:
    return load(None, LESS | flags)


def made(n: int = 24, steps: str = "2-4") -> tuple[Renderer, list[Sample]]:
    return chains(settings(), n, steps)


def trained(folder: Path, samples: list[Sample], **flags: str) -> tuple[HfEngine, list[dict[str, Any]]]:
    """A trained engine, and its rows of metrics."""
    config = settings(**flags)
    engine = HfEngine(config, made(2)[0].chat)
    rows: list[dict[str, Any]] = []
    fit(engine, samples, TrainingHooks(folder, on_log=lambda row: rows.append(dict(row))))
    return engine, rows


def test_the_engine_implements_trainable() -> None:
    engine = HfEngine(settings(), made(2)[0].chat)
    assert isinstance(engine, Trainable)
    assert isinstance(engine, Generator)


def assert_alike(one: HfEngine, other: HfEngine) -> None:
    """Two adapters are the same but for rounding.

    Heads of the base's first layer read one direction alone, so some of their rows have a gradient of rounding noise, which
    Adam scales up to a full step: of 72,960 entries 76 were measured to differ by more than 1e-4.
    """
    a, b = lora(one), lora(other)
    apart = {name: int(((a[name] - b[name]).abs() >= 1e-4).sum()) for name in a}
    assert {name for name, n in apart.items() if n} <= {
        f"base_model.model.model.layers.0.self_attn.{kind}_proj.lora_B.default.weight" for kind in "qk"
    }
    assert sum(apart.values()) < 0.002 * sum(p.numel() for p in a.values())


def test_batch_of_four_equals_four_batches_of_one(tmp_path: Path) -> None:
    _, samples = made(16, "2-8")
    batched = trained(
        tmp_path / "a", samples, per_device_train_batch_size="4", gradient_accumulation_steps="1", max_steps="4"
    )
    parts = trained(
        tmp_path / "b", samples, per_device_train_batch_size="1", gradient_accumulation_steps="4", max_steps="4"
    )
    losses = [[row["loss"] for row in rows] for _, rows in (batched, parts)]
    assert len(losses[0]) == 4
    assert losses[0] == pytest.approx(losses[1], abs=2e-5)
    assert_alike(batched[0], parts[0])


def test_logits_of_a_row_are_the_same_alone_and_packed() -> None:
    _, samples = made(3, "2-8")
    model = HfEngine(settings(), made(2)[0].chat).model.eval()
    ids = [list(sample.ids) for sample in samples]
    packed = torch.tensor([[id_ for row in ids for id_ in row]])
    positions = torch.tensor([[at for row in ids for at in range(len(row))]])
    with torch.inference_mode():
        together = model(input_ids=packed, position_ids=positions, use_cache=False).logits[0]
        start = 0
        for row in ids:
            alone = model(input_ids=torch.tensor([row]), use_cache=False).logits[0]
            assert (together[start : start + len(row)] - alone).abs().max() < 1e-4
            start += len(row)


def test_a_packed_step_equals_a_batched_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step over one pack of all rows is one step over a batch of all rows: same loss, same adapter."""
    monkeypatch.setattr("cot_unsloth.models.cpu.takes_joined_rows", lambda *args: False)  # as on a GPU
    _, samples = made(8)
    assert sum(len(sample.ids) for sample in samples) < 8 * 512
    packs = trained(tmp_path / "a", samples, packing="true", per_device_train_batch_size="8", max_steps="1")
    alone = trained(
        tmp_path / "b", samples, per_device_train_batch_size="8", gradient_accumulation_steps="1", max_steps="1"
    )
    assert packs[1][0]["loss"] == pytest.approx(alone[1][0]["loss"], abs=2e-5)
    assert packs[1][0]["learning_rate"] > 0  # with a rate of 0 they would be alike whatever was trained on
    assert_alike(packs[0], alone[0])


def test_a_mismatch_of_row_or_token_counts_stops_training() -> None:
    _, samples = made(4)
    rows = {"input_ids": [list(s.ids) for s in samples], "labels": [list(s.labels) for s in samples]}
    assert_counts(datasets.Dataset.from_dict(rows), samples)
    cut = {"input_ids": [row[:-1] for row in rows["input_ids"]], "labels": [row[:-1] for row in rows["labels"]]}
    for theirs in (cut, {k: v[:-1] for k, v in rows.items()}, rows | {"labels": rows["input_ids"]}):
        with pytest.raises(InvariantError, match="the trainer would train on"):
            assert_counts(datasets.Dataset.from_dict(theirs), samples)


@pytest.mark.parametrize(
    "flags",
    [
        {"max_steps": "3"},
        {"num_train_epochs": "1.5"},
        {"max_steps": "3", "packing": "true", "per_device_train_batch_size": "1"},
    ],
    ids=["max_steps", "epochs", "packed"],
)
def test_resuming_from_a_checkpoint_is_exact(flags: dict[str, str], tmp_path: Path) -> None:
    """Between two steps and after the last one, where a step too many would change the weights at a constant rate."""
    renderer, samples = made(16)
    flags = {"save_steps": "2", "per_device_train_batch_size": "8", "lr_scheduler_type": "constant", **flags}
    through, rows = trained(tmp_path, samples, **flags)
    last = rows[-1]["step"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"checkpoint-{(last - 1) // 2 * 2}", f"checkpoint-{last}"]
    for checkpoint in complete_checkpoints(tmp_path):
        done: list[int] = []
        hooks = TrainingHooks(tmp_path, resume_from=checkpoint, on_step=lambda step, done=done: done.append(step.step))
        resumed = HfEngine(settings(**flags), renderer.chat)
        report = fit(resumed, samples, hooks)
        assert done == list(range(checkpoint_step(checkpoint) + 1, last + 1))
        assert (report.steps, report.loss_last) == (last, rows[-1]["loss"])
        assert furthest(lora(through), lora(resumed)) == 0.0


@pytest.mark.parametrize("full", ["adapter", "full"])
def test_after_training_the_model_computes_as_the_saved_one(full: str, tmp_path: Path) -> None:
    """Training wraps it in autocast to bfloat16, replaces its forward, and turns its key-value cache off."""
    renderer, samples = made(8)
    flags = {"full_finetuning": str(full == "full"), "autocast": "true", "gradient_checkpointing": "true"}
    config = settings(max_steps="2", dtype="float32", **flags)
    engine = HfEngine(config, renderer.chat)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cot_unsloth.training.trainers.cpu_has_bfloat16", lambda: True)
        report = fit(engine, samples, TrainingHooks(tmp_path / "c"))
    assert report.extra.autocast == "bfloat16"
    engine.save(tmp_path / "saved")
    again = HfEngine(config, renderer.chat, tmp_path / "saved")
    again.model.eval()
    ids = torch.tensor([list(samples[0].ids)])
    for model in (engine.model, again.model):
        assert not any("forward" in module.__dict__ for module in model.modules())
        assert not any(module._forward_hooks for module in model.modules())
        assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        assert not model.training
        assert model.config.use_cache
    assert torch.equal(engine.model(input_ids=ids).logits, again.model(input_ids=ids).logits)
    prompts = [renderer.prompt(e, "tuned") for e in tasks.generate("world:chains", split="test", n=4, seed=1)]
    sampling = SamplingParams(max_new_tokens=24)
    assert engine.generate(prompts, sampling) == again.generate(prompts, sampling)


def test_a_failed_checkpoint_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trl.SFTTrainer._save_rng_state", full)
    with pytest.raises(OSError, match="No space"):
        trained(tmp_path, made(8)[1], max_steps="2", save_steps="1")
    assert list(tmp_path.iterdir()) == []


def test_a_nan_loss_stops_training(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="the loss is nan"):
        trained(tmp_path, made(24)[1], learning_rate="1e20", max_grad_norm="1e20", max_steps="8")


def test_greedy_answers_do_not_depend_on_the_batch_size() -> None:
    config = settings()
    renderer = open_renderer(config.model, config.data)
    engine = HfEngine(config, renderer.chat)
    examples = tasks.generate("world:chains:1-8", split="test", n=12, seed=1)
    prompts = [renderer.prompt(e, "base_cot") for e in examples]
    sampling = SamplingParams(max_new_tokens=24, batch_size=12)
    together = engine.generate(prompts, sampling)
    alone = engine.generate(prompts, replace(sampling, batch_size=1))
    assert [c.id for c in together] == [p.id for p in prompts]
    assert together == alone


def test_completions_record_why_they_stopped() -> None:
    config = settings()
    renderer = open_renderer(config.model, config.data)
    engine = HfEngine(config, renderer.chat)
    prompt = renderer.prompt(tasks.generate("world:words", split="test", n=1, seed=1)[0], "base_direct")
    (cut,) = engine.generate([prompt], SamplingParams(max_new_tokens=1))
    assert (cut.stopped, cut.tokens) == ("length", 1)
    (complete,) = engine.generate([prompt], SamplingParams(max_new_tokens=64))
    assert complete.stopped == "stop"
    assert "<|im_end|>" not in complete.text
    (prefixed,) = engine.generate([replace(prompt, prefix="It is")], SamplingParams(max_new_tokens=4))
    assert prefixed.text.startswith("It is")


def test_sampling_is_seeded() -> None:
    config = settings()
    renderer = open_renderer(config.model, config.data)
    engine = HfEngine(config, renderer.chat)
    prompts = [renderer.prompt(e, "base_direct") for e in tasks.generate("world:chains", split="test", n=8, seed=1)]
    one, two, other = (engine.generate(prompts, SamplingParams(16, temperature=1.5, seed=seed)) for seed in (1, 1, 2))
    assert one == two
    assert one != other


def test_the_adapter_is_plain_peft_and_can_be_disabled(tmp_path: Path) -> None:
    renderer, samples = made()
    engine, _ = trained(tmp_path / "c", samples, max_steps="2")
    engine.save(tmp_path / "adapter")
    ids = torch.tensor([list(samples[0].ids)])
    base = AutoModelForCausalLM.from_pretrained(model_path("tiny-base"), dtype=torch.float32).eval()
    plain = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(model_path("tiny-base"), dtype=torch.float32), str(tmp_path / "adapter")
    ).eval()
    engine.model.eval()
    with torch.inference_mode():
        ours = engine.model(input_ids=ids).logits
        assert torch.equal(ours, plain(input_ids=ids).logits)
        with engine.as_base():
            assert torch.equal(engine.model(input_ids=ids).logits, base(input_ids=ids).logits)
        assert not torch.equal(ours, base(input_ids=ids).logits)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    assert loaded.chat_template == renderer.chat.tokenizer.chat_template


def changing(folder: Path, **settings: Any) -> tuple[Path, Path]:
    """A base, and an adapter that changes its weights as PEFT loads it."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(AutoTokenizer.from_pretrained(TINY)), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, initializer_range=0.3,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder / "base")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder / "base")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], **settings))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(folder / "adapter")
    return folder / "base", folder / "adapter"


@pytest.mark.parametrize("change", [{"bias": "all"}, {"bias": "lora_only"}, {"init_lora_weights": "pissa"}])
def test_the_base_of_an_adapter_that_changed_its_weights_is_the_base(tmp_path: Path, change: dict[str, Any]) -> None:
    """Switched off, PEFT leaves the trained biases, or what PiSSA left of the weights."""
    base, adapter = changing(tmp_path, **change)
    renderer, samples = made(2)
    ids = torch.tensor([list(samples[0].ids)])
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    engine = HfEngine(settings(model_name_or_path=str(base)), renderer.chat, adapter)
    start = HfEngine(settings(model_name_or_path=str(base), init_adapter=str(adapter)), renderer.chat)

    def logits(engine: HfEngine) -> Any:
        return engine.model.eval()(input_ids=ids).logits

    with torch.inference_mode():
        expected, tuned = plain(input_ids=ids).logits, logits(engine)
        with engine.as_base():
            assert torch.equal(logits(engine), expected)
        assert torch.equal(logits(engine), tuned)
        with start.as_start():
            torch.testing.assert_close(logits(start), tuned)
        assert torch.equal(logits(start), expected)
        with pytest.raises(ModelError, match="changes the base as it is loaded"):
            engine.add_adapter(adapter, "beside")
        with pytest.raises(ModelError, match="changes the base as it is loaded"):
            start.add_adapter(adapter, "beside")


def test_an_adapter_is_loaded_beside_one_whose_name_begins_with_its_name(tmp_path: Path) -> None:
    base, adapter = changing(tmp_path)
    engine = HfEngine(settings(model_name_or_path=str(base)), made(2)[0].chat)
    for name in ("v10", "v1"):
        engine.add_adapter(adapter, name)
    assert set(engine.model.peft_config) == {"v10", "v1"}


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    renderer, samples = made(4)
    engine, _ = trained(tmp_path / "c", samples, max_steps="1")
    engine.save(tmp_path / "adapter")
    config = (tmp_path / "adapter" / "adapter_config.json").read_text()
    (tmp_path / "adapter" / "adapter_config.json").write_text(config.replace('"r": 4', '"r": 5'))
    with pytest.raises(ModelError, match="is not an adapter of tiny-base"):
        HfEngine(settings(), renderer.chat, tmp_path / "adapter")


def test_loading_in_4_bits_without_bitsandbytes_is_refused_with_a_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "installed", lambda name: False)
    with pytest.raises(ModelError, match=r"needs bitsandbytes(.|\n)*or --no-load-in-4bit"):
        registry.load(settings(load_in_4bit="true"), made(2)[0].chat, registry.Choice("hf", "a test"))


def test_auto_reports_its_choice_and_a_named_engine_never_falls_back() -> None:
    choice = registry.choose(settings().model)
    assert choice.why
    if not registry.installed("unsloth"):
        assert choice.engine == "hf"
        with pytest.raises(ModelError, match="unsloth is not installed"):
            registry.choose(settings(engine="unsloth").model)


def test_rows_of_a_curriculum_keep_their_order(tmp_path: Path) -> None:
    _, samples = made(12)
    one_by_one = {"per_device_train_batch_size": "1", "world_clean_first": "0.5", "world_error_rate": "0.5"}
    _, rows = trained(tmp_path / "a", samples, **one_by_one)
    seen = [row["num_tokens"] for row in rows if "loss" in row]
    assert [b - a for a, b in zip([0, *seen], seen, strict=False)] == [len(sample.ids) for sample in samples]
    # The default settings have a curriculum. Rows of a file may be sorted, and were trained on in their order.
    for other in ({"world_clean_first": "0"}, {"dataset": "rows.jsonl"}):
        _, rows = trained(tmp_path / "b", samples, **one_by_one | other)
        assert [row["num_tokens"] for row in rows if "loss" in row] != seen


def test_one_gpu_is_trained_on_whatever_the_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two, as Kaggle has, the Trainer would double the batch and copy the model to both."""

    class OnTwo(trl.SFTConfig):  # type: ignore[misc]
        def __post_init__(self) -> None:
            super().__post_init__()
            self._n_gpu = 2

    _, samples = made(2)
    engine = HfEngine(settings(per_device_train_batch_size="3"), made(2)[0].chat)
    monkeypatch.setattr(trl, "SFTConfig", OnTwo)
    arguments = training_arguments(engine, samples, TrainingHooks(tmp_path))
    assert (arguments.n_gpu, arguments.train_batch_size) == (1, 3)


def test_rows_of_a_curriculum_are_not_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs begin with the longest rows, which have the corrected errors that a curriculum ends with."""
    monkeypatch.setattr(trainers, "joins_rows", lambda engine: False)
    _, samples = made(2)

    def packing(**flags: str) -> bool:
        engine = HfEngine(settings(packing="true", **flags), made(2)[0].chat)
        return bool(training_arguments(engine, samples, TrainingHooks(tmp_path)).packing)

    assert not packing(world_clean_first="0.5")
    assert packing(world_clean_first="0")
    assert packing(world_clean_first="0.5", dataset="rows.jsonl")
