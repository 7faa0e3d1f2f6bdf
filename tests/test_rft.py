"""Rejection-sampling fine-tuning: rounds that stop when they no longer help, and that resume to the same adapter."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import run_cli

from cot_unsloth.config import RunConfig
from cot_unsloth.config.run_config import config_from
from cot_unsloth.core.errors import ConfigError
from cot_unsloth.core.results import Accuracy, RoundResult, Rounds, Scorecard
from cot_unsloth.core.statistics import wilson
from cot_unsloth.core.types import Completion, Example, Part, Prompt, Trace
from cot_unsloth.evaluation.scorecard import paired
from cot_unsloth.models.hf import HfEngine
from cot_unsloth.sampling import records
from cot_unsloth.sampling.sample import Problems
from cot_unsloth.storage.run_folder import RunDir
from cot_unsloth.training import rft, training_stage
from cot_unsloth.training.rft import best_round, stop_reason

COMMON = [
    "--dataset", "world:words:1-2", "--max-new-tokens", "70", "--eval-samples", "4", "--per-device-train-batch-size", "4",
    "--gradient-accumulation-steps", "1", "--lora-r", "8", "--lora-alpha", "16", "--learning-rate", "8e-3", "--arms", "tuned",
    "--no-autocast", "--gguf", "",
]  # fmt: skip
ROUNDS = [
    *COMMON, "--method", "rft", "--rounds", "2", "--world-samples", "16", "--samples-per-problem", "2", "--num-train-epochs", "1",
    "--development-problems", "3",
]  # fmt: skip


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has just learnt the format."""
    path = tmp_path_factory.mktemp("start") / "sft"
    assert run_cli("train", "--run-dir", str(path), *COMMON, "--world-samples", "160", "--eval-samples", "0") == 0
    return path


class Asked:
    """Counts the prompts of every sampling and scoring, and can end the process's work at one of its stages."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.stop_after: int | None = None

    def advance(self, done: Sequence[Completion]) -> None:
        self.ids += [completion.id for completion in done]
        if self.stop_after is not None and len(self.ids) >= self.stop_after:
            raise KeyboardInterrupt


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    counter, generate = Asked(), HfEngine.generate

    def counted(self: Any, prompts: Sequence[Prompt], sampling: Any, advance: Any = lambda done: None) -> Any:
        def both(done: Sequence[Completion]) -> None:
            advance(done)
            counter.advance(done)

        return generate(self, prompts, sampling, both)

    monkeypatch.setattr(HfEngine, "generate", counted)
    return counter


@pytest.fixture(autouse=True)
def _every_round_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three development problems decide nothing, so that no run of these tests would reach its second round."""
    monkeypatch.setattr(rft, "stop_reason", lambda results: None)


def files_of(run: RunDir) -> dict[str, bytes]:
    """What a resumed run must have equal, byte for byte."""
    names = ["adapter/adapter_model.safetensors", "rounds.json"]
    for number in ("1", "2"):
        names += [f"rounds/{number}/samples/{name}.jsonl" for name in ("attempts", "data", "problems")]
        names += [
            f"rounds/{number}/adapter/adapter_model.safetensors",
            f"rounds/{number}/development/completions/tuned.jsonl",
        ]
    return {name: (run.path / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def whole(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunDir]:
    path = tmp_path_factory.mktemp("rft") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rft, "stop_reason", lambda results: None)
        assert run_cli("train", "--run-dir", str(path), *ROUNDS, "--init-adapter", str(start)) in (0, 3)
    return RunDir(path)


def test_a_run_keeps_every_round_and_reports_them(whole: RunDir, start: Path) -> None:
    rounds = Rounds.read(whole.rounds_report)
    assert [one.round for one in rounds.rounds] == [0, 1, 2]
    assert rounds.development_problems == 3
    assert (rounds.best, rounds.stopped) == (best_round(rounds.rounds, begun_trained=True), "all 2 rounds are done")
    assert list(Scorecard.read(whole.scorecard).arms) == ["start", "tuned"]
    best_folder = whole.rounds / str(rounds.best) if rounds.best else start
    best = (best_folder / "adapter" / "adapter_model.safetensors").read_bytes()
    assert (whole.adapter / "adapter_model.safetensors").read_bytes() == best
    page = whole.report.read_text(encoding="utf-8")
    assert "rounds of sampling and training" in page
    assert "all 2 rounds are done" in page


def test_development_problems_are_training_problems_that_are_never_sampled(whole: RunDir) -> None:
    from cot_unsloth.storage.records import read_completions

    development = {
        score.id for score in read_completions(whole.rounds / "0" / "development" / "completions" / "tuned.jsonl")
    }
    sampled = {rate.id for number in "12" for rate in records.read_rates(whole.rounds / number / "samples")}
    assert len(sampled) == 13
    assert len(development) == 3
    assert not sampled & development
    assert sampled | development == whole.question_ids("train")


def test_a_round_trains_on_the_attempts_of_all_rounds_so_far(whole: RunDir) -> None:
    first, second = (records.SampleSummary.read(whole.rounds / n / "samples" / "summary.json") for n in "12")
    assert first.rows > 0
    assert second.kept + second.duplicates + second.surplus + second.unsound == first.accepted + second.accepted


def test_only_the_base_is_shown_worked_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first round samples a base that does not know our format; the second a model that learned it."""
    asked, shown = (Example(id_, f"{id_}?", Trace((Part("think", "so"),), "1"), "1") for id_ in ("asked", "shown"))
    seen: list[Problems] = []

    def completed(problems: Problems, *_: Any, **__: Any) -> Any:
        seen.append(problems)
        return SimpleNamespace(described=lambda: ["samples"], rows=1)

    monkeypatch.setattr(rft, "completed", completed)
    engine: Any = SimpleNamespace(config=RunConfig())
    job = rft._Job(engine, None, RunDir(tmp_path))  # type: ignore[arg-type]
    job.folder(1).adapter.mkdir(parents=True)
    for number in (1, 2):
        job.sample(number, Problems((asked,), (shown,)), [])
    assert [problems.shown for problems in seen] == [(shown,), ()]
    assert all(problems.asked == (asked,) for problems in seen)


@pytest.mark.parametrize("asked_before", [9, 45])
def test_a_run_killed_in_a_round_resumes_to_the_same_adapter_and_asks_nothing_twice(
    whole: RunDir, start: Path, tmp_path: Path, asked: Asked, asked_before: int
) -> None:
    """Killed while it samples the first round, and the second."""
    path = tmp_path / "killed"
    asked.stop_after = asked_before
    assert run_cli("train", "--run-dir", str(path), *ROUNDS, "--init-adapter", str(start)) == 130
    asked.stop_after = None
    assert run_cli("train", "--run-dir", str(path), "--resume") in (0, 3)
    attempts = [id_ for id_ in asked.ids if "#" in id_]
    assert len(attempts) == 2 * 13 * 2  # rounds, problems, attempts; the ids of both rounds are the same
    assert files_of(RunDir(path)) == files_of(whole)


def test_a_run_killed_after_training_a_round_does_not_train_it_again(
    whole: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "copy"
    shutil.copytree(whole.path, path)
    run = RunDir(path)
    for left in (run.adapter, run.path / "rounds" / "2" / "adapter"):
        shutil.rmtree(left)
    unfinished = RunDir(run.path / "rounds" / "1" / "development").unfinished
    unfinished.mkdir()
    (unfinished / "tuned-1.jsonl").touch()  # killed before it was removed
    (run.rounds_report).unlink()
    trained: list[Path] = []
    fit = training_stage._train_from

    def counted(resume_from: Any, config: Any, folder: RunDir, *more: Any) -> Any:
        trained.append(folder.path)
        return fit(resume_from, config, folder, *more)

    monkeypatch.setattr(training_stage, "_train_from", counted)
    config = path / "config.yaml"
    config.write_text(config.read_text().replace(str(whole.path), str(path)))
    assert run_cli("train", "--run-dir", str(path), "--resume") in (0, 3)
    assert trained == [path, path / "rounds" / "2"]
    assert not unfinished.exists()
    assert files_of(run) == files_of(whole)


def planted(*right: Sequence[bool]) -> list[RoundResult]:
    """Rounds whose development answers are as given."""
    scores = {f"round {n}": [_Answer(str(i), r) for i, r in enumerate(answers)] for n, answers in enumerate(right)}
    results: list[RoundResult] = []
    for n, answers in enumerate(right):
        best = max(results, key=lambda one: (one.development.accuracy, -one.round)).round if results else 0
        pair = paired(f"round {best}", f"round {n}", scores) if n else None  # type: ignore[arg-type]
        share = sum(answers) / len(answers)
        accuracy = Accuracy(accuracy=share, ci95=wilson(sum(answers), len(answers)))
        results.append(RoundResult(round=n, development=accuracy, against_best=pair))
    return results


@dataclasses.dataclass
class _Answer:
    id: str
    correct: bool


def first(n: int, of: int = 40) -> list[bool]:
    return [i < n for i in range(of)]


def test_rounds_stop_when_one_is_not_better_beyond_noise() -> None:
    assert stop_reason(planted(first(10), first(20))) is None
    assert stop_reason(planted(first(10), first(20), first(30))) is None
    better_by_chance = planted(first(10), first(20), first(22))
    assert stop_reason(better_by_chance) == (
        "round 2 is not better than round 1 beyond noise: +5.0 points, McNemar p = 0.5"
    )
    assert best_round(better_by_chance, begun_trained=True) == 2
    worse = planted(first(10), first(20), first(12))
    assert str(stop_reason(worse)).startswith("round 2 is not better than round 1")
    assert best_round(worse, begun_trained=True) == 1
    # A round is compared with the best before it, and not with a bad one that it follows.
    recovered = planted(first(10), first(30), first(12), first(31))
    assert str(stop_reason(recovered)).startswith("round 3 is not better than round 1")
    harmful = planted(first(30), first(10), first(12))
    assert [best_round(harmful, begun_trained=trained) for trained in (True, False)] == [0, 2]


def test_every_weight_cannot_be_trained_in_rounds() -> None:
    with pytest.raises(ConfigError, match="trains an adapter in each round"):
        config_from(RunConfig().model_dump(), {"method": "rft", "full_finetuning": True})
