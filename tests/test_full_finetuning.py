"""Full fine-tuning: training, scoring, resuming, curves and export work without an adapter."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import chains, furthest, run_cli, short_run
from transformers import AutoModelForCausalLM, AutoTokenizer

from cot_unsloth import tasks
from cot_unsloth.config import RunConfig, load
from cot_unsloth.core.errors import ConfigError, EngineError
from cot_unsloth.core.results.verification import read_verification
from cot_unsloth.core.types import Sample, SamplingParams
from cot_unsloth.evaluation import lm_eval_command
from cot_unsloth.export import card
from cot_unsloth.models import registry
from cot_unsloth.models.hf import HfEngine
from cot_unsloth.prompts.render import Renderer
from cot_unsloth.prompts.tokenizer import model_path
from cot_unsloth.storage.run_folder import RunDir
from cot_unsloth.training import trainers
from cot_unsloth.training.method import TrainingHooks
from cot_unsloth.training.sft import fit

FULL = {
    "full_finetuning": "true",
    "autocast": "false",
    "learning_rate": "1e-3",
    "logging_steps": "1",
    "save_steps": "2",
}


def settings(**flags: str) -> RunConfig:
    return load(None, FULL | flags)


def made() -> tuple[Renderer, list[Sample]]:
    return chains(settings(), 24)


def weights(engine: HfEngine) -> dict[str, Any]:
    return {name: p.detach().clone() for name, p in engine.model.named_parameters()}


def plain(folder: Path | str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    path = tmp_path_factory.mktemp("full") / "run"
    return short_run(
        path, "--full-finetuning", "--learning-rate", "1e-3", "--save-steps", "4", "--merged", "--gguf", "q8_0",
        "--export-samples", "2",
    )  # fmt: skip


def test_every_weight_changes_and_the_base_can_still_be_scored(tmp_path: Path) -> None:
    renderer, samples = made()
    engine = HfEngine(settings(max_steps="3"), renderer.chat)
    report = fit(engine, samples, TrainingHooks(tmp_path / "c"))
    base = plain(model_path("tiny-base"))
    assert report.extra.trainable_parameters == sum(p.numel() for p in base.parameters())
    before = dict(base.named_parameters())
    unchanged = [name for name, p in weights(engine).items() if torch.equal(p, before[name])]
    assert unchanged == []
    engine.save(tmp_path / "model")
    ids = torch.tensor([list(samples[0].ids)])
    engine.model.eval()
    with torch.inference_mode():
        tuned = engine.model(input_ids=ids).logits
        assert torch.equal(tuned, plain(tmp_path / "model")(input_ids=ids).logits)
        with engine.as_base():
            assert torch.equal(engine.model(input_ids=ids).logits, base(input_ids=ids).logits)
        assert torch.equal(engine.model(input_ids=ids).logits, tuned)
        assert not torch.equal(tuned, base(input_ids=ids).logits)
    template = AutoTokenizer.from_pretrained(tmp_path / "model").chat_template
    assert template == renderer.chat.tokenizer.chat_template


def test_a_saved_model_is_loaded_with_its_base_for_comparison(tmp_path: Path) -> None:
    renderer, samples = made()
    engine = HfEngine(settings(max_steps="3"), renderer.chat)
    fit(engine, samples, TrainingHooks(tmp_path / "c"))
    engine.save(tmp_path / "model")
    again = registry.load(settings(), renderer.chat, registry.Choice("hf", "a test"), tmp_path / "model")
    untouched = registry.load(settings(), renderer.chat, registry.Choice("hf", "a test"))
    prompts = [renderer.prompt(e, "tuned") for e in tasks.generate("world:chains", split="test", n=6, seed=1)]
    sampling = SamplingParams(max_new_tokens=24)
    assert again.generate(prompts, sampling) == engine.generate(prompts, sampling)
    with again.as_base():
        of_base = again.generate(prompts, sampling)
    assert of_base == untouched.generate(prompts, sampling)
    assert of_base != again.generate(prompts, sampling)


def test_resuming_from_a_checkpoint_is_exact(tmp_path: Path) -> None:
    renderer, samples = made()
    flags = {"max_steps": "4", "save_steps": "2"}
    uninterrupted = HfEngine(settings(**flags), renderer.chat)
    fit(uninterrupted, samples, TrainingHooks(tmp_path))
    resumed = HfEngine(settings(**flags), renderer.chat)
    report = fit(resumed, samples, TrainingHooks(tmp_path, resume_from=tmp_path / "checkpoint-2"))
    assert report.steps == 4
    assert furthest(weights(uninterrupted), weights(resumed)) == 0.0


def test_use_cache_is_saved_as_true_after_gradient_checkpointing(tmp_path: Path) -> None:
    renderer, samples = made()
    engine = HfEngine(settings(max_steps="1", gradient_checkpointing="true"), renderer.chat)
    fit(engine, samples, TrainingHooks(tmp_path / "c"))
    engine.save(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["use_cache"] is True


def test_a_disk_too_small_for_the_checkpoints_is_reported_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer, samples = made()
    monkeypatch.setattr(trainers, "free_space", lambda path: (tmp_path, 2**26))
    with pytest.raises(EngineError, match=r"2 checkpoints of every weight, .* take 79 MiB; the disk has 64 MiB free"):
        fit(HfEngine(settings(), renderer.chat), samples, TrainingHooks(tmp_path / "c"))
    fit(HfEngine(settings(save_total_limit="1", max_steps="1"), renderer.chat), samples, TrainingHooks(tmp_path / "c"))


@pytest.mark.parametrize(
    ("steps", "kept"),
    [
        ((2, 4, 6), (4, 6)),  # killed before the oldest was removed
        ((4, 5, 6), (4, 6)),  # interrupted at step 5
        ((2, 4, 5), (4, 5)),  # interrupted at step 5, and not resumed yet
        ((5,), (5,)),
        ((), ()),
    ],
)
def test_the_newest_regular_checkpoints_are_kept(tmp_path: Path, steps: tuple[int, ...], kept: tuple[int, ...]) -> None:
    for step in steps:
        (tmp_path / f"checkpoint-{step}").mkdir()
    trainer = trainers.StagedCheckpoints.__new__(trainers.StagedCheckpoints)
    trainer.checkpoints, trainer.save_total_limit = tmp_path, 2
    trainer.args = SimpleNamespace(save_steps=2)
    trainer.remove_old_checkpoints()
    assert {path.name for path in tmp_path.iterdir()} == {f"checkpoint-{step}" for step in kept}


def test_an_optimizer_without_its_package_is_refused_before_the_run_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "installed", lambda name: False)
    assert run_cli("train", "--run-dir", str(tmp_path / "run"), "--optim", "adamw_8bit") == 2
    assert "train.optim: needs bitsandbytes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_scores_the_model_against_its_base_and_exports_it_verified(trained: RunDir) -> None:
    assert trained.trained_weights == trained.model
    assert not trained.adapter.exists()
    result = read_verification(trained.export)
    assert result.status == "passed"
    assert set(result.files) == {"merged", "tiny-base-cot-Q8_0.gguf"}
    scores = json.loads(trained.scorecard.read_text())
    assert set(scores["arms"]) >= {"base_direct", "base_tags", "tuned", "gguf"}
    sections = json.loads(trained.token_accuracy.read_text())["sections"]
    assert sections["thinking"]["base"] != sections["thinking"]["tuned"]
    text = card.write(trained, trained.read_config(), result, "transformers", trained.trained_weights)
    assert "A fine-tune of every weight of" in text
    assert "lora" not in text.lower()


def test_the_merged_folder_has_the_trained_weights(trained: RunDir) -> None:
    tuned, merged = plain(trained.model), plain(trained.merged)
    pairs = zip(tuned.parameters(), merged.parameters(), strict=True)
    assert all(torch.equal(a.to(torch.bfloat16).float(), b) for a, b in pairs)
    base = plain(model_path("tiny-base"))
    assert any(not torch.equal(a, b) for a, b in zip(base.parameters(), tuned.parameters(), strict=True))


def test_a_finished_run_can_be_scored_again_resumed_and_its_curves_measured(
    trained: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = json.loads(trained.scorecard.read_text())
    loaded, load_model = [], HfEngine._load

    def counted(engine: HfEngine, folder: Path | None = None, **given: Any) -> Any:
        loaded.append(folder)
        return load_model(engine, folder, **given)

    with monkeypatch.context() as patch:
        patch.setattr(HfEngine, "_load", counted)
        assert run_cli("evaluate", str(trained.path), "--out", str(tmp_path / "again")) == 0
    assert loaded == [trained.model, None], "the base must be loaded once for all of its arms"
    again = json.loads((tmp_path / "again" / "scorecard.json").read_text())
    for arm in ("base_direct", "base_tags", "tuned"):
        assert again["arms"][arm] == before["arms"][arm]
    assert run_cli("train", "--run-dir", str(trained.path), "--resume") == 0
    curves = ["--curves", "--samples", "1", "--budgets", "4,8", "--checkpoints", "2", "--out", str(tmp_path / "curves")]
    assert run_cli("evaluate", str(trained.path), *curves) == 0
    curves_json = json.loads((tmp_path / "curves" / "curves.json").read_text())
    assert [row["step"] for row in curves_json["train_time"]["mean"]] == [0, 4, 8]
    [run_rows] = curves_json["train_time"]["runs"].values()
    assert [row["ci95"] for row in curves_json["train_time"]["mean"]] == [row["ci95"] for row in run_rows], (
        "the interval of a single run must be Wilson's"
    )
    command = lm_eval_command.command(trained, "gsm8k")
    assert f"pretrained={trained.model.resolve()},dtype=float32" in command
    assert "peft=" not in command


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"load_in_4bit": "true"}, "train.full_finetuning needs weights that are not quantized"),
        ({"load_in_8bit": "true"}, "train.full_finetuning needs weights that are not quantized"),
        ({"lora_gguf": "true"}, "with train.full_finetuning there is none"),
        ({"fast_inference": "true"}, "cannot be combined with model.fast_inference"),
        ({"gguf": "", "push_to_hub": "me/x"}, "pushes a merged folder or GGUF files"),
    ],
)
def test_settings_that_cannot_be_combined_with_full_finetuning_are_refused(flags: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        settings(**flags)
    *_, flag = flags
    assert "--" + flag.replace("_", "-") in str(refused.value)


def test_an_export_to_another_base_or_as_an_adapter_is_refused(
    trained: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("export", str(trained.path), "--out", str(tmp_path / "out"))
    assert run_cli(*args, "--merged", "--model", "tiny-base") == 2
    assert "here every weight was trained" in capsys.readouterr().err
    assert run_cli(*args, "--lora-gguf") == 2
    assert "there is none" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
