"""Experiment trackers: TensorBoard gets the losses and the scorecard; one that is not installed stops nothing half-way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers import run_cli
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cot_unsloth.config import load_tree
from cot_unsloth.core.errors import ConfigError
from cot_unsloth.core.results import Scorecard
from cot_unsloth.storage.run_folder import RunDir
from cot_unsloth.training import trackers

SMALL = [
    "--dataset", "world:chains", "--world-samples", "32", "--eval-samples", "4", "--max-new-tokens", "16", "--logging-steps", "1",
    "--lora-r", "4", "--gguf", "", "--no-gate", "--arms", "base_tags,tuned",
]  # fmt: skip


def test_tensorboard_gets_losses_and_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    assert run_cli("train", "--run-dir", str(tmp_path / "run"), "--report-to", "tensorboard", *SMALL) == 0
    run = RunDir(tmp_path / "run")
    events = EventAccumulator(str(run.path / "trackers" / "tensorboard"))  # type: ignore[no-untyped-call]
    events.Reload()  # type: ignore[no-untyped-call]
    losses = [event.step for event in events.Scalars("train/loss")]  # type: ignore[no-untyped-call]
    [score] = events.Scalars("score/tuned/accuracy")  # type: ignore[no-untyped-call]
    card = Scorecard.read(run.scorecard)
    assert losses == list(range(1, len(losses) + 1))
    assert score.step == losses[-1]
    assert score.value == pytest.approx(card.arms["tuned"].accuracy)


def test_a_tracker_that_is_not_installed_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    config = load_tree({"train": {"report_to": ["wandb", "mlflow"]}}, {})
    with pytest.raises(ConfigError, match="needs wandb and mlflow, which are not installed") as caught:
        trackers.check(config.train)
    assert caught.value.hint == "pip install wandb mlflow"


def test_variables_of_the_user_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "_set", {})
    for name in ("WANDB_DIR", "WANDB_PROJECT", "TRACKIO_DIR", "MLFLOW_EXPERIMENT_NAME", "TENSORBOARD_LOGGING_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example")
    trackers.use(RunDir(tmp_path / "a"))
    trackers.use(RunDir(tmp_path / "b"))
    assert (os.environ["WANDB_MODE"], os.environ["MLFLOW_TRACKING_URI"]) == ("online", "http://tracking.example")
    assert os.environ["WANDB_DIR"] == str(tmp_path / "b" / "trackers")


def test_where_runs_log_changes_no_hash() -> None:
    plain, logged = load_tree({}, {}), load_tree({"train": {"report_to": ["tensorboard"]}}, {})
    assert plain.fingerprint() == logged.fingerprint()


def test_a_round_has_the_name_of_its_run() -> None:
    assert trackers.name_of(RunDir(Path("/runs/mine"))) == "mine"
    assert trackers.name_of(RunDir(Path("/runs/mine/rounds/2"))) == "mine-round-2"
