"""Scoring a run again, and scoring a model that no run of ours made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cot_unsloth.cli import main
from cot_unsloth.rundir import RunDir, read_jsonl

SMALL = [
    "--world-samples", "8", "--max-steps", "1", "--per-device-train-batch-size", "2",
    "--eval-samples", "6", "--max-new-tokens", "12", "--lora-r", "4",
]  # fmt: skip


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(list(args))
    assert isinstance(done.value.code, int)
    return done.value.code


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    path = tmp_path_factory.mktemp("runs") / "run"
    assert run("train", "--run-dir", str(path), *SMALL) == 0
    return RunDir(path)


def test_scoring_a_run_again_gives_the_same_scorecard(trained: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    before = trained.scorecard.read_text()
    assert run("evaluate", str(trained.path)) == 0
    assert trained.scorecard.read_text() == before
    printed = capsys.readouterr().out
    assert "McNemar p" in printed
    assert "[low, high]" in printed
    assert "n = 6, seed 1234" in printed


def test_other_settings_go_into_a_folder_of_their_own(trained: RunDir) -> None:
    before = trained.scorecard.read_text()
    assert (
        run("evaluate", str(trained.path), "--eval-seed", "7", "--eval-samples", "4", "--arms", "base_cot,tuned") == 0
    )
    assert trained.scorecard.read_text() == before
    (other,) = (trained.path / "evaluations").iterdir()
    card = json.loads((other / "scorecard.json").read_text())
    assert (card["n"], card["seed"], list(card["arms"])) == (4, 7, ["base_cot", "tuned"])


def test_a_model_of_its_own_is_scored_as_base(tmp_path: Path) -> None:
    out = tmp_path / "scores"
    args = ["--dataset", "world:words:2", "--eval-samples", "4", "--max-new-tokens", "8", "--out", str(out)]
    assert run("evaluate", "--model", "tiny-base", *args) == 0
    card = json.loads((out / "scorecard.json").read_text())
    assert list(card["arms"]) == ["base_direct", "base_cot", "base_tags"]
    assert card["paired"] == []


def test_a_model_with_an_adapter_has_a_tuned_arm(trained: RunDir, tmp_path: Path) -> None:
    args = ["--eval-samples", "6", "--max-new-tokens", "12", "--out", str(tmp_path / "scores")]
    assert run("evaluate", "--model", "tiny-base", "--adapter", str(trained.adapter), *args) == 0
    again = read_jsonl(tmp_path / "scores" / "completions" / "tuned.jsonl")
    assert again == read_jsonl(trained.completions("tuned"))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["evaluate"], "name a run, or a model"),
        (["evaluate", "nowhere"], "holds no run"),
        (["evaluate", "--model", "tiny-base"], "say where the scores go"),
        (["export", "nowhere", "--merged"], "holds no run"),
    ],
)
def test_what_is_missing_is_named(args: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*args) == 2
    assert says in capsys.readouterr().err


def test_an_unfinished_run_has_nothing_to_score(
    trained: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(trained.config.read_text())
    assert run("evaluate", str(tmp_path)) == 2
    assert "has no adapter yet" in capsys.readouterr().err
