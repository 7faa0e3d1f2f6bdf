"""Divergence: training stops before a weight is NaN, saved weights are finite, and a resume may lower the learning rate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import chains, run_cli
from safetensors.torch import load_file

from cot_unsloth.config import load
from cot_unsloth.core.errors import DivergedError, EngineError
from cot_unsloth.core.results import Manifest
from cot_unsloth.models.hf import HfEngine
from cot_unsloth.storage import records, run_folder
from cot_unsloth.storage.run_folder import RunDir
from cot_unsloth.training.method import TrainingHooks
from cot_unsloth.training.sft import SftTrainer, fit

SMALL = [
    "--world-samples", "32", "--max-steps", "12", "--per-device-train-batch-size", "2",
    "--gradient-accumulation-steps", "1", "--lora-r", "4", "--eval-samples", "0", "--gguf", "", "--logging-steps", "10",
    "--lr-scheduler-type", "constant",
]  # fmt: skip
TOO_HIGH, SANE = "1e18", "0.0005"


def train(run: RunDir, *args: str) -> int:
    return run_cli("train", "--run-dir", str(run.path), *args)


def rates(run: RunDir) -> dict[int, float]:
    return {row["step"]: row["learning_rate"] for row in records.read_jsonl(run.metrics)}


def finite(folder: Path) -> bool:
    files = [*folder.glob("*.safetensors")]
    assert files, folder
    return all(torch.isfinite(tensor).all().item() for file in files for tensor in load_file(file).values())


def nan_at(step: int, monkeypatch: pytest.MonkeyPatch, what: str = "loss") -> None:
    """Make the loss, or only the gradient, NaN at one step, as a fault in the data or a kernel does."""
    real = SftTrainer.training_step

    def training_step(self: SftTrainer, *args: Any, **kwargs: Any) -> Any:
        loss = real(self, *args, **kwargs)
        if self.state.global_step + 1 == step:
            if what == "loss":
                self.losses[-1] = torch.tensor(float("nan"))
            else:
                next(p for p in self.model.parameters() if p.grad is not None).grad.view(-1)[0] = float(what)
        return loss

    monkeypatch.setattr(SftTrainer, "training_step", training_step)


@pytest.mark.parametrize("what", ["loss", "inf"])
def test_training_stops_at_the_diverging_step_and_names_the_newest_checkpoint(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between two rows of metrics, and between two checkpoints."""
    run = RunDir(tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        nan_at(7, patch, what)
        assert train(run, *SMALL, "--save-steps", "4", "--learning-rate", SANE) == 1
    output = capsys.readouterr().err
    assert ("the loss is nan at step 7" if what == "loss" else "the gradient is not finite at step 7") in output
    assert "the newest checkpoint, checkpoint-4, is finite" in output
    assert [p.name for p in run.complete_checkpoints()] == ["checkpoint-4"]
    assert finite(run.checkpoints / "checkpoint-4")
    assert run.trained_weights is None
    assert train(run, "--resume", "--learning-rate", "0.0001") == 0
    assert rates(run) == {1: 0.0005, 10: 0.0001, 12: 0.0001}
    assert finite(run.adapter)


def test_without_a_checkpoint_training_restarts_from_the_beginning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(tmp_path / "run")
    assert train(run, *SMALL, "--save-steps", "8", "--learning-rate", TOO_HIGH) == 1
    assert "there is no checkpoint: start again with --resume" in capsys.readouterr().err
    assert run.complete_checkpoints() == []
    assert train(run, "--resume", "--learning-rate", SANE) == 0
    assert set(rates(run).values()) == {float(SANE)}
    assert run.read_config().train.learning_rate == float(SANE)


def test_a_checkpoint_that_gives_nan_at_any_learning_rate_is_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights after the last good step are finite and give NaN at once, so the one before is taken."""
    run = RunDir(tmp_path / "run")
    assert train(run, *SMALL, "--save-steps", "1", "--learning-rate", TOO_HIGH, "--warmup-ratio", "0") == 1
    kept = run.complete_checkpoints()
    assert kept
    assert all(finite(checkpoint) for checkpoint in kept)
    assert f"the newest checkpoint, {kept[-1].name}, is finite" in capsys.readouterr().err
    assert train(run, "--resume", "--learning-rate", SANE) == 0
    assert f"{kept[-1].name} is removed" in capsys.readouterr().err
    assert finite(run.adapter)
    (resumed,) = Manifest.read(run.manifest).resumed
    assert resumed.from_step < run_folder.checkpoint_step(kept[-1])


def test_a_lowered_learning_rate_continues_the_schedule(tmp_path: Path) -> None:
    """Of a linear schedule over 12 steps, at half the rate: half of what each later step would have had."""
    flags = ["--lr-scheduler-type", "linear", "--warmup-ratio", "0", "--logging-steps", "1", "--save-steps", "4"]
    run, through = RunDir(tmp_path / "run"), RunDir(tmp_path / "through")
    with pytest.MonkeyPatch.context() as patch:
        nan_at(7, patch)
        assert train(run, *SMALL, *flags, "--learning-rate", "0.002") == 1
    assert train(run, "--resume", "--learning-rate", "0.001", "--save-steps", "3") == 0
    assert train(through, *SMALL, *flags, "--learning-rate", "0.002") == 0
    unlowered = rates(through)
    assert rates(run) == pytest.approx({step: rate if step <= 4 else rate / 2 for step, rate in unlowered.items()})
    assert [p.name for p in run.complete_checkpoints()] == ["checkpoint-9", "checkpoint-12"]


def test_checkpoints_and_adapters_with_non_finite_weights_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever got them there: a step that overflows after the last look at its loss, say."""
    config = load(None, {"lora_r": "4", "max_steps": "4", "save_steps": "2", "per_device_train_batch_size": "2"})
    renderer, samples = chains(config, 16)
    engine = HfEngine(config, renderer.chat)
    fit(engine, samples, TrainingHooks(tmp_path / "fine"))
    weight = next(p for p in engine.model.parameters() if p.requires_grad)
    weight.data.view(-1)[0] = float("inf")
    with pytest.raises(EngineError, match="no longer finite"):
        engine.save(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()

    real = SftTrainer._save_checkpoint

    def spoil(self: SftTrainer, model: Any, trial: Any) -> None:
        if self.state.global_step == 4:
            next(p for p in model.parameters() if p.requires_grad).data.view(-1)[0] = float("nan")
        real(self, model, trial)

    monkeypatch.setattr(SftTrainer, "_save_checkpoint", spoil)
    with pytest.raises(EngineError, match="no longer finite after step 4") as raised:
        fit(engine, samples, TrainingHooks(tmp_path / "c"))
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["checkpoint-2"]
    assert "the newest checkpoint, checkpoint-2" in str(raised.value)


def test_full_finetuning_stops_on_divergence_like_an_adapter(tmp_path: Path) -> None:
    flags = {"full_finetuning": "true", "learning_rate": TOO_HIGH, "save_steps": "1", "max_steps": "6"}
    config = load(None, flags | {"per_device_train_batch_size": "2", "gradient_accumulation_steps": "1"})
    renderer, samples = chains(config, 16)
    engine = HfEngine(config, renderer.chat)
    with pytest.raises(DivergedError) as raised:
        fit(engine, samples, TrainingHooks(tmp_path))
    kept = run_folder.complete_checkpoints(tmp_path)
    assert [run_folder.checkpoint_step(p) for p in kept] == list(
        range(max(1, raised.value.step - 2), raised.value.step)
    )
    assert all(finite(checkpoint) for checkpoint in kept)


def test_a_resume_may_only_lower_the_step_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir(tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        nan_at(3, patch)
        assert train(run, *SMALL, "--save-steps", "2", "--learning-rate", SANE) == 1
    capsys.readouterr()
    before = run.config.read_text(), run.manifest.read_text()
    others = [("--lora-r", "8"), ("--weight-decay", "0.1"), ("--seed", "5"), ("--max-steps", "20")]
    for flag, value in [*others, ("--learning-rate", "0.001"), ("--max-grad-norm", "2")]:
        assert train(run, "--resume", "--learning-rate", "0.0001", flag, value) == 2
        assert f"holds another run: {'lora' if 'lora' in flag else 'train'}." in capsys.readouterr().err
    assert (run.config.read_text(), run.manifest.read_text()) == before
    assert train(run, "--resume", "--learning-rate", "0.0001", "--max-grad-norm", "0.5", "--save-steps", "5") == 0
    (resumed,) = json.loads(run.manifest.read_text())["resumed"]
    assert resumed["changed"] == {
        "train.learning_rate": [0.0005, 0.0001], "train.max_grad_norm": [1.0, 0.5], "train.save_steps": [2, 5],
    }  # fmt: skip
    assert train(run, "--resume", "--learning-rate", "0.00005") == 2
    assert "its training is finished" in capsys.readouterr().err
