"""`train.init_adapter`: training continues an adapter, which is scored as the arm `start`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import run_cli, short_run
from safetensors.torch import load_file

from cot_unsloth.config import RunConfig
from cot_unsloth.core.results import Scorecard
from cot_unsloth.evaluation import forgetting
from cot_unsloth.storage import records
from cot_unsloth.storage.run_folder import RunDir

BARELY = ("--learning-rate", "1e-9", "--gguf", "", "--warmup-ratio", "0", "--arms", "base_tags,tuned")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return short_run(tmp_path_factory.mktemp("runs") / "first", "--gguf", "", "--arms", "base_tags,tuned")


@pytest.fixture(scope="module")
def second(first: RunDir, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The adapter of `first`, trained on at a rate that changes next to nothing; its own rank is another."""
    folder = tmp_path_factory.mktemp("runs") / "second"
    options = ("--init-adapter", str(first.path), "--lora-r", "4", "--forgetting", "general")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forgetting, "PROBLEMS", 4)
        return short_run(folder, *BARELY, *options)


def _texts(run: RunDir, arm: str) -> list[str]:
    return [score.text for score in records.read_completions(run.completions(arm))]


def test_training_goes_on_from_the_adapter(first: RunDir, second: RunDir) -> None:
    before, after = (load_file(run.adapter / "adapter_model.safetensors") for run in (first, second))
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert torch.allclose(weight, after[name], atol=1e-6)
    assert any(not torch.equal(weight, after[name]) for name, weight in before.items())


def test_the_start_is_scored_as_the_run_it_is_from(first: RunDir, second: RunDir) -> None:
    assert _texts(second, "start") == _texts(first, "tuned")
    assert _texts(second, "base_tags") == _texts(first, "base_tags"), "the base is scored without the adapter"
    assert _texts(second, "start") != _texts(second, "base_tags")
    card = Scorecard.read(second.scorecard)
    assert list(card.arms) == ["base_tags", "start", "tuned"]
    assert [(pair.before, pair.after) for pair in card.paired] == [("base_tags", "tuned"), ("start", "tuned")]
    assert card.extraction["start"] == card.extraction["tuned"] == "last <output>"
    assert "Against the starting adapter" in second.report.read_text(encoding="utf-8")


def test_what_it_forgot_is_counted_from_where_training_began(first: RunDir, second: RunDir) -> None:
    figures = Scorecard.read(second.scorecard).forgetting
    assert figures is not None
    assert (figures.paired.before, figures.paired.after, figures.n) == ("start", "tuned", 4)
    # The tuned model is the start but for 1e-9; the base answers otherwise.
    assert _texts(second, "forgetting_before") == _texts(second, "forgetting_after")


def test_a_finished_run_is_scored_again_with_its_start(second: RunDir, tmp_path: Path) -> None:
    out = tmp_path / "again"
    assert run_cli("evaluate", str(second.path), "--out", str(out)) == 0
    for arm in ("base_tags", "start", "tuned"):
        assert _texts(RunDir(out), arm) == _texts(second, arm)


def test_an_adapter_of_another_base_is_refused(
    first: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(first.adapter, tmp_path / "adapter")
    settings = folder / "adapter_config.json"
    changed = {**json.loads(settings.read_text()), "base_model_name_or_path": "someone/another-base"}
    settings.write_text(json.dumps(changed))
    assert run_cli("train", "--run-dir", str(tmp_path / "run"), "--init-adapter", str(folder)) == 2
    assert "is an adapter of someone/another-base" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_run_that_continues_nothing_has_the_hash_it_had(tmp_path: Path) -> None:
    config = RunConfig()
    assert config.replaced(init_adapter=str(tmp_path)).fingerprint() != config.fingerprint()
    assert config.scored_arms == config.evaluate.arms_in_order
