"""`sweep`, and what its trials rest on: development problems and the loss on them."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import run_cli, short_run

from cot_unsloth import config as settings
from cot_unsloth.cli.train import _has_more_problems
from cot_unsloth.config import RunConfig
from cot_unsloth.core import verdict
from cot_unsloth.core.errors import ConfigError, EngineError, RunDirError
from cot_unsloth.core.results import VERSION, Accuracy, Manifest
from cot_unsloth.core.results.sweep import Sweep, TrialResult
from cot_unsloth.core.types import Score
from cot_unsloth.evaluation import evaluate, scorecard
from cot_unsloth.evaluation.problems import held_out_problems, how_to_score_more, naming_problems, settings_to_score
from cot_unsloth.evaluation.scorecard import compare, settings_of
from cot_unsloth.lab import processes, sweep, sweep_page
from cot_unsloth.lab import space as spaces
from cot_unsloth.lab.study import Attempt, Study, storage_errors
from cot_unsloth.storage import records
from cot_unsloth.storage.run_folder import RunDir
from cot_unsloth.training.preparation import prepare

DEVELOPMENT = {"world_samples": 60, "eval_samples": 7, "score_on": "development", "development_problems": 9}


def test_development_problems_are_training_problems_and_not_trained_on() -> None:
    final = prepare(settings.load(None, {"world_samples": 60, "eval_samples": 7}))
    ours = prepare(settings.load(None, DEVELOPMENT))
    trained, scored = ({row.id for row in rows} for rows in (ours.train, ours.test))
    assert len(scored) == 9
    assert trained | scored == {row.id for row in final.train}
    assert not scored & trained
    assert not {row.id for row in final.test} & (trained | scored)
    assert ours.loaded.rows == len(ours.train) + len(ours.test) + len(ours.rejects)


def test_development_problems_are_scored_again_by_the_rule_of_their_task(tmp_path: Path) -> None:
    run, flags = RunDir(tmp_path), {"score_on": "development", "world_samples": "40", "dataset": "world:countdown"}
    config = settings.load(None, flags)
    prepared = prepare(config)
    records.write_jsonl(run.kept, (records.kept_row(row, "nested") for row in (*prepared.train, *prepared.test)))
    again = held_out_problems(run, config, config)
    assert [problem.problem for problem in again] == [problem.problem for problem in prepared.problems]
    assert all(problem.problem is not None for problem in again)


def test_all_development_problems_are_scored_again_unless_other_data_are_named(tmp_path: Path) -> None:
    rows = [{"question": f"{i} + 1?", "answer": f"{i} + 1 = {i + 1}\n#### {i + 1}"} for i in range(60)]
    records.write_jsonl(tmp_path / "rows.jsonl", rows)
    records.write_jsonl(tmp_path / "test.jsonl", [{"question": "How many?", "answer": "none\n#### 0"}])
    flags = {
        "dataset": str(tmp_path / "rows.jsonl"), "score_on": "development", "eval_samples": "3",
        "benchmark": "gsm8k", "benchmark_path": str(tmp_path / "test.jsonl"),
    }  # fmt: skip
    trained, run = settings.load(None, flags), RunDir(tmp_path / "run")
    prepared = prepare(trained)
    assert len(prepared.test) > 3
    records.write_jsonl(run.kept, (records.kept_row(row, "nested") for row in (*prepared.train, *prepared.test)))

    def scored(**named: object) -> tuple[str, str, list[str]]:
        config = settings_to_score(trained, trained.overridden(naming_problems(named)))
        card = compare({"tuned": []}, settings_of(config, {"tuned": []}, True))
        return (
            verdict.problems(card),
            card.dataset,
            [problem.question for problem in held_out_problems(run, trained, config)],
        )

    development, held_out = "development problems", "held-out problems"
    assert scored() == (development, flags["dataset"], [row.question for row in prepared.test])
    assert (
        scored(temperature=1.0)
        == scored(benchmark=None, benchmark_path=None)
        == scored(dataset=flags["dataset"])
        == scored()
    )
    assert len(scored(eval_samples=2)[2]) == 2
    assert scored(benchmark="gsm8k") == (held_out, "gsm8k", ["How many?"])
    assert scored(dataset="world:words", eval_samples=1)[:2] == (held_out, "world:words")
    config = trained.overridden({"temperature": 1.0})
    assert config.fingerprint(*evaluate._SCORED_UNDER) != trained.overridden(
        naming_problems({"benchmark": "gsm8k"})
    ).fingerprint(*evaluate._SCORED_UNDER)
    assert "--development-problems" in how_to_score_more(trained, run, 4)
    run.write_config(trained)
    card = compare({"tuned": []}, settings_of(trained, {"tuned": []}, True))
    assert not _has_more_problems(run, card)


def test_further_solutions_of_a_development_problem_are_not_trained_on(tmp_path: Path) -> None:
    rows = [{"question": f"{i % 20} + 1?", "reasoning": f"way {i}", "answer": str(i % 20 + 1)} for i in range(60)]
    records.write_jsonl(tmp_path / "rows.jsonl", rows)
    more = {"dataset": str(tmp_path / "rows.jsonl"), "score_on": "development"}
    ours = prepare(settings.load(None, more))
    assert len(ours.test) == 4  # a fifth, rounded up, of the 19 questions that are not held out
    assert len(ours.train) == 3 * (19 - 4)
    assert not {row.id for row in ours.test} & {row.id for row in ours.train}
    assert ours.loaded.rows == 60


def test_the_new_settings_leave_hashes_of_old_runs() -> None:
    assert RunConfig().fingerprint() == RunConfig().replaced(score_on="held_out").fingerprint()
    assert RunConfig().fingerprint() != RunConfig().replaced(score_on="development").fingerprint()


def test_the_loss_on_development_problems_is_measured(tmp_path: Path) -> None:
    run = short_run(
        tmp_path / "run", "--score-on", "development", "--development-problems", "4", "--eval-steps", "0.25"
    )
    losses = {row["step"]: row["eval_loss"] for row in records.read_jsonl(run.metrics) if "eval_loss" in row}
    assert list(losses) == [2, 4, 6, 8]
    assert losses[8] < losses[2]
    before = records.read_jsonl(run.completions("tuned"))
    assert run_cli("evaluate", str(run.path), "--no-gate") == 0
    assert [row["id"] for row in records.read_jsonl(run.completions("tuned"))] == [row["id"] for row in before]


QUICK = (spaces.Dimension("learning_rate", low=1e-4, high=1e-2, log=True), spaces.Dimension("lora_r", (4, 8)))
WORKER = """
import sys, time
from pathlib import Path
from cot_unsloth.lab.space import Dimension
from cot_unsloth.lab.study import Study

rate = {"low": 1e-4, "high": 1e-2, "log": True} if len(sys.argv) < 7 else {"choices": (1e-3, 2e-3, 4e-3)}
space = (Dimension("learning_rate", **rate), Dimension("lora_r", (4, 8)))
study = Study(sys.argv[1], "s", space, seed=1, prune=False, heartbeat=int(sys.argv[5]))
study.plan("same", [{"lora_r": 8}], 6)

def objective(attempt):
    with Path(sys.argv[2]).open("a") as lines:
        lines.write(f"{sys.argv[3]} {attempt.number} {attempt.trial.params}\\n")
    time.sleep(float(sys.argv[4]))
    return attempt.trial.params["lora_r"] / 8

study.work(objective)
"""


def worker(folder: Path, name: str, seconds: float, heartbeat: int = 1, *more: str) -> subprocess.Popen[bytes]:
    arguments = [f"sqlite:///{folder / 'study.db'}", str(folder / "lines.txt"), name, str(seconds), str(heartbeat)]
    arguments += more
    return subprocess.Popen([sys.executable, "-W", "ignore", "-c", WORKER, *arguments])


def lines_of(folder: Path) -> list[list[str]]:
    file = folder / "lines.txt"
    return [line.split(" ", 2) for line in file.read_text().splitlines()] if file.is_file() else []


def wait_until(reached: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while not reached() and process.poll() is None:
        time.sleep(0.02)


def test_a_sweep_that_is_killed_twice_counts_nothing_twice(tmp_path: Path) -> None:
    for times in (2, 4):
        process = worker(tmp_path, "killed", 0.3)
        wait_until(lambda times=times: len(lines_of(tmp_path)) >= times, process)
        process.kill()
        process.wait()
    assert worker(tmp_path, "last", 0.05).wait(60) == 0
    study = Study(f"sqlite:///{tmp_path / 'study.db'}", "s", QUICK, seed=1, prune=False, heartbeat=1)
    known = study.known()
    assert [(trial.number, trial.state) for trial in known] == [(n, "complete") for n in range(6)]
    assert sum(trial.resumed for trial in known) == 2
    # A trial that is continued has the settings that it began with.
    drawn: dict[str, set[str]] = {}
    for _, number, values in lines_of(tmp_path):
        drawn.setdefault(number, set()).add(values)
    assert len(drawn) == 6
    assert all(len(values) == 1 for values in drawn.values())
    with pytest.raises(RunDirError, match="other settings"):
        study.plan("another", [], 6)


def test_a_full_disk_ends_the_sweep_which_then_continues_with_that_trial(tmp_path: Path) -> None:
    """Its trials failed one after the other, the sweep ended as if all were well, and they were never tried again."""
    study = Study(f"sqlite:///{tmp_path / 'study.db'}", "s", QUICK, seed=1, prune=False, heartbeat=1)
    study.plan("same", [{"lora_r": 8}], 3)
    tried: list[int] = []

    def objective(attempt: Attempt) -> float:
        tried.append(attempt.number)
        if len(tried) == 2:
            raise OSError(28, "No space left on device")
        return 0.5

    with pytest.raises(OSError, match="No space left"):
        study.work(objective)
    study.work(objective)
    assert sorted(tried) == [0, 1, 1, 2]
    assert [(trial.number, trial.state) for trial in study.known()] == [(n, "complete") for n in range(3)]


def test_a_study_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    """SQLite's own limit on the size of a database stands for a full disk."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def limit(connection: Any, record: object) -> None:
        connection.execute("PRAGMA max_page_count = 1")

    Study(f"sqlite:///{tmp_path / 'study.db'}", "s", QUICK, seed=1, prune=False, heartbeat=1)
    event.listen(Engine, "connect", limit)
    try:
        study = Study(f"sqlite:///{tmp_path / 'study.db'}", "s", QUICK, seed=1, prune=False, heartbeat=1)
        with pytest.raises(EngineError, match=r"--study x: cannot be .* full"), storage_errors("x"):
            study.plan("same", [{"lora_r": 8}], 500)
    finally:
        event.remove(Engine, "connect", limit)


def test_a_trial_that_could_not_be_queued_again_is_queued_by_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(f"sqlite:///{tmp_path / 'study.db'}", "s", QUICK, seed=1, prune=False, heartbeat=1)
    study.plan("same", [{"lora_r": 8}], 2)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(study, "_continue", full)
        with pytest.raises(OSError, match="No space left"):
            study.work(full)  # type: ignore[arg-type]
    assert [trial.state for trial in study.known()] == ["failed", "waiting"]
    study.plan("same", [{"lora_r": 8}], 2)
    study.work(lambda attempt: 0.5)
    assert [trial.state for trial in study.known()] == ["complete", "complete"]

    def refuse(attempt: Attempt) -> float:
        raise EngineError("the loss is nan")

    study.plan("same", [{"lora_r": 8}], 3)
    study.work(refuse)
    study.plan("same", [{"lora_r": 8}], 3)
    assert study.known()[2].state == "failed"  # by its settings: it stays


@pytest.mark.parametrize(
    ("log", "free", "kind"),
    [
        ("error: [Errno 28] No space left on device: 'x'\n", 2**30, OSError),
        ("error: [Errno 27] File too large: 'x'\n  hint: y\n", 2**30, OSError),
        ("error: too_little_disk: checkpoints take about 3 MiB\n  hint: z\n", 2**30, OSError),
        ("fit: 1/2\n", 4096, OSError),  # there was no room for the reason
        ("error: the loss is nan\n", 2**30, EngineError),
    ],
)
def test_a_process_that_the_system_stopped_is_distinguished_from_a_run_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: str, free: int, kind: type[Exception]
) -> None:
    (tmp_path / "log.txt").write_text(log)
    monkeypatch.setattr(processes, "free_space", lambda path: (tmp_path, free))
    assert isinstance(processes._failure(tmp_path / "log.txt", 1), kind)


def test_the_reason_of_a_failure_is_that_of_the_last_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log.txt").write_text("error: [Errno 28] No space left on device\n")
    script = "import sys; print('Killed by a bug'); sys.exit(1)"
    started = SimpleNamespace(
        Popen=lambda command, **streams: subprocess.Popen([sys.executable, "-c", script], **streams)
    )
    monkeypatch.setattr(processes, "subprocess", started)
    with pytest.raises(EngineError, match="Killed by a bug"):
        processes.train(RunConfig(), tmp_path)


class PlantedRun:
    """Stands in for the process of `train`: its model solves as many of 20 problems as `right` says of its settings."""

    def __init__(self, command: Sequence[str], **_: object) -> None:
        self.fails = False
        config = settings.load(command[-1])
        run, n = RunDir(str(config.train.run_dir)), 20
        scores = [
            Score(f"{config.data.test_fraction} {i}", "t", "q", "1", "1", "1", i < self.right(config), None, 1, "stop")
            for i in range(n)
        ]
        run.write_config(config)
        card = scorecard.compare({"tuned": scores}, scorecard.settings_of(config, {"tuned": scores}, True))
        card.write(run.scorecard)
        records.write_jsonl(run.completions("tuned"), [dataclasses.asdict(score) for score in scores])
        Manifest(finished="2026-01-01T00:00:00Z").write(run.manifest)

    @staticmethod
    def right(config: RunConfig) -> int:
        """Half of the rank; but on the held-out problems, one of rank 4 solves all."""
        held_out = config.development.score_on == "held_out"
        return 20 if held_out and config.lora.lora_r == 4 else config.lora.lora_r // 2

    def poll(self) -> int:
        return int(self.fails)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "subprocess", SimpleNamespace(Popen=PlantedRun))


def swept(folder: Path, vary: str, trials: int, *, study: str = "", **flags: settings.FlagValue) -> Sweep:
    options = sweep.Options("s", folder, study or sweep.default_study(folder), trials, seed=0, grid=False, prune=False)
    return sweep.sweep(settings.load(None, {"lora_r": 2, **flags}), [spaces.parse(vary)], options)


@pytest.mark.usefixtures("planted")
def test_a_sweep_with_more_trials_compares_its_new_best_settings(tmp_path: Path) -> None:
    """It showed the held-out figures of the best settings of the first command beside those of the new best ones."""
    ranks = set()
    for trials in (2, 6):
        result = swept(tmp_path, "lora_r=4,8,16,32,40", trials)
        rank = next(trial.settings["lora_r"] for trial in result.trials if trial.number == result.best)
        assert result.final is not None
        assert result.final.differences["lora.lora_r"] == (2, rank)
        assert result.final.runs[1].accuracy == (1.0 if rank == 4 else int(str(rank)) / 40)
        ranks.add(rank)
    assert len(ranks) == 2


@pytest.mark.usefixtures("planted")
def test_the_last_comparison_is_on_held_out_problems_whatever_the_config_scores_on(tmp_path: Path) -> None:
    """With `score_on: development` it compared on the problems by which the best settings were chosen, and called them held out."""
    result = swept(tmp_path, "lora_r=4", 2, score_on="development", arms="base_cot")
    assert result.final is not None
    config = RunDir(tmp_path / "final" / "best" / "run").read_config()
    assert config.evaluate.arms == ("base_cot", "tuned")  # without it, the base was compared with itself
    assert [run.accuracy for run in result.final.runs] == [0.05, 1.0]  # of rank 4, all on held-out problems


@pytest.mark.usefixtures("planted")
def test_a_folder_with_trials_of_another_sweep_is_refused(tmp_path: Path) -> None:
    """Another --study in the same folder counted the runs of the former sweep as its own trials."""
    swept(tmp_path, "lora_r=8,16", 2)
    other = f"sqlite:///{tmp_path / 'other.db'}"
    with pytest.raises(RunDirError, match=r"other settings \(train.learning_rate\)"):
        swept(tmp_path, "lora_r=8,16", 2, study=other, learning_rate=1e-3)
    result = swept(tmp_path / "other", "lora_r=8,16", 2, study=other, learning_rate=1e-3)
    assert [trial.state for trial in result.trials] == ["complete", "complete"]


class PlantedRunThatMayFail(PlantedRun):
    """Fails with the default settings, as if they did not fit into memory."""

    def __init__(self, command: Sequence[str], **streams: Any) -> None:
        super().__init__(command, **streams)
        config = settings.load(command[-1])
        if config.lora.lora_r == 2:
            self.fails = True
            RunDir(str(config.train.run_dir)).manifest.unlink()
            streams["stdout"].write("error: out of memory\n")
            streams["stdout"].flush()


def test_a_default_that_cannot_be_trained_loses_no_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error of the last comparison ended the sweep, each time, before any result was written."""
    monkeypatch.setattr(processes, "subprocess", SimpleNamespace(Popen=PlantedRunThatMayFail))
    arguments = ["sweep", "--lora-r", "2", "--vary", "lora_r=8,16", "--trials", "3", "--out", str(tmp_path / "s")]
    assert run_cli(*arguments) == 1
    result = Sweep.read(tmp_path / "s" / "sweep.json")
    assert sorted((trial.number, trial.state) for trial in result.trials) == [
        (0, "failed"),
        (1, "complete"),
        (2, "complete"),
    ]
    assert (result.final, result.final_failed) == (None, "out of memory")
    assert "held-out problems failed: out of memory" in " ".join(capsys.readouterr().out.split())
    assert settings.load(tmp_path / "s" / "best.yaml").lora.lora_r == 16


@pytest.mark.usefixtures("planted")
def test_a_sweep_whose_data_have_changed_is_refused(tmp_path: Path) -> None:
    """It ranked trials on different rows together, and compared a new best run with the default on the former rows."""
    file = tmp_path / "rows.jsonl"
    records.write_jsonl(file, [{"question": "1?", "reasoning": "1", "answer": "1"}])
    swept(tmp_path / "s", "lora_r=8,16,32", 2, dataset=str(file))
    swept(tmp_path / "s", "lora_r=8,16,32", 3, dataset=str(file))
    before = file.read_bytes()
    records.append_jsonl(file, [{"question": "2?", "reasoning": "2", "answer": "2"}])
    with pytest.raises(RunDirError, match="holds a sweep of other data"):
        swept(tmp_path / "s", "lora_r=8,16,32", 4, dataset=str(file))
    other = f"sqlite:///{tmp_path / 'other.db'}"
    with pytest.raises(RunDirError, match="trained on data that have changed"):
        swept(tmp_path / "s", "lora_r=8,16,32", 3, study=other, dataset=str(file))
    file.write_bytes(before)
    assert len(swept(tmp_path / "s", "lora_r=8,16,32", 4, dataset=str(file)).trials) == 4


@pytest.mark.usefixtures("planted")
def test_trials_that_answered_other_problems_are_not_ranked(tmp_path: Path) -> None:
    config = settings.load(None, {"lora_r": 40, "test_fraction": 0.1})
    space = [spaces.parse("lora_r=4,40"), spaces.parse("test_fraction=0.1,0.2")]
    options = sweep.Options(
        "s", tmp_path, sweep.default_study(tmp_path), 4, seed=0, grid=True, prune=False, final=False
    )
    result = sweep.sweep(config, space, options)
    assert [trial.settings["test_fraction"] for trial in result.trials] == [0.1, 0.1, 0.2, 0.2]
    assert result.best == 0
    rows = sweep_page.page(result, tmp_path / "best.yaml").grids[0].rows
    assert [row[-1] for row in rows] == ["default", "worse", *["other problems, not ranked"] * 2]


def test_two_processes_share_a_study(tmp_path: Path) -> None:
    Study(f"sqlite:///{tmp_path / 'study.db'}", "s", QUICK, seed=1, prune=False, heartbeat=1)  # makes its tables
    # The default heartbeat: with one of a second, a process that a busy machine delays for three loses its trial.
    one, two = worker(tmp_path, "one", 0.5, 15), worker(tmp_path, "two", 0.5, 15)
    assert (one.wait(90), two.wait(90)) == (0, 0)
    lines = lines_of(tmp_path)
    assert sorted(int(number) for _, number, _ in lines) == list(range(6))
    assert {name for name, _, _ in lines} == {"one", "two"}


def test_two_processes_try_no_combination_twice(tmp_path: Path) -> None:
    Study(f"sqlite:///{tmp_path / 'study.db'}", "s", QUICK, seed=1, prune=False, heartbeat=1)  # makes its tables
    processes = [worker(tmp_path, name, 0.3, 15, "finite") for name in ("one", "two")]
    assert [process.wait(90) for process in processes] == [0, 0]
    # The default's rank is in the space and its rate is not: it is none of the six.
    drawn = [values for _, number, values in lines_of(tmp_path) if number != "0"]
    assert len(set(drawn)) == len(drawn) == 5


def test_trials_that_two_processes_planned_at_once_are_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(f"sqlite:///{tmp_path / 'study.db'}", "s", QUICK, seed=1, prune=False, heartbeat=15)
    for _ in range(2):
        with monkeypatch.context() as both:
            both.setattr(Study, "_newest", lambda self: {})  # what each of the two reads, before either has written
            study.plan("same", [{"lora_r": 8}], 3)
    assert len(study.study.get_trials()) == 6
    made: list[int] = []
    study.work(lambda attempt: made.append(attempt.number) or 0.5)
    assert sorted(made) == [0, 1, 2]
    assert [(trial.number, trial.state) for trial in study.known()] == [(n, "complete") for n in range(3)]


@pytest.mark.parametrize("goes_on", ["after the last trial", "during the last trials"])
def test_a_slow_process_whose_trial_was_taken_over_goes_on_with_the_next(tmp_path: Path, goes_on: str) -> None:
    slow = worker(tmp_path, "slow", 0.3)
    wait_until(lambda: len(lines_of(tmp_path)) == 1, slow)
    slow.send_signal(signal.SIGSTOP)
    during = goes_on == "during the last trials"
    other = worker(tmp_path, "other", 1 if during else 0.05)
    study = Study(f"sqlite:///{tmp_path / 'study.db'}", "s", QUICK, seed=1, prune=False, heartbeat=1)
    wait_until(lambda: study.study.get_trials(deepcopy=False)[0].state.name == "FAIL", other)
    assert during or other.wait(60) == 0
    slow.send_signal(signal.SIGCONT)
    assert (slow.wait(60), other.wait(60)) == (0, 0)
    assert [(trial.number, trial.state) for trial in study.known()] == [(n, "complete") for n in range(6)]
    states = [trial.state.name for trial in study.study.get_trials() if "planned" in trial.user_attrs]
    assert (states.count("COMPLETE"), states.count("FAIL")) == (6, sum(trial.resumed for trial in study.known()))
    if during:
        assert [name for name, _, _ in lines_of(tmp_path)].count("slow") > 1


def test_a_trial_that_two_processes_took_is_counted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = Study(f"sqlite:///{tmp_path / 'study.db'}", "s", QUICK, seed=1, prune=False, heartbeat=15)
    study.plan("same", [{"lora_r": 8}], 2)

    def objective(attempt: Attempt) -> float:
        if attempt.number == 0:  # the other process is done first
            study.study.tell(attempt.trial.number, 0.5)
        return 0.7

    study.work(objective)
    assert [(trial.number, trial.value) for trial in study.known()] == [(0, 0.5), (1, 0.7)]
    assert "not counted" in capsys.readouterr().err


FINITE = (spaces.Dimension("lora_r", (4, 8)), spaces.Dimension("warmup_steps", low=1, high=3, whole=True))


def tried_by(study: Study, default: spaces.Choices, trials: int) -> list[tuple[object, ...]]:
    """The settings of a study's trials, in their order, once all are made."""
    study.plan("same", [default], trials)
    study.work(lambda attempt: 0.5 if attempt.trial.params.get("lora_r") == 4 else 0.1)
    return [tuple(sorted(trial.values.items())) for trial in study.known()]


@pytest.mark.parametrize("seed", range(2))
def test_no_combination_is_tried_twice(tmp_path: Path, seed: int) -> None:
    def study(name: str) -> Study:
        return Study(f"sqlite:///{tmp_path / 'study.db'}", name, FINITE, seed=seed, prune=False, heartbeat=15)

    default = {"lora_r": 4, "warmup_steps": 1}
    assert len(set(tried_by(study("some"), default, 4))) == 4
    more = tried_by(study("some"), default, 20)  # there are two further ones
    assert len(more) == len(set(more)) == 6
    assert tried_by(study("again"), default, 20) == more
    # A default outside of the space is no combination.
    outside = tried_by(study("outside"), {"lora_r": 4}, 20)
    assert len(outside) == len(set(outside)) == 7


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
@pytest.mark.parametrize(("drawn", "left"), [(8, 16), (16, 8)])
def test_a_trial_waits_for_the_values_of_one_that_another_process_has_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: int, left: int
) -> None:
    import optuna

    rank = spaces.Dimension("lora_r", (4, 8, 16))
    study = Study(f"sqlite:///{tmp_path / 'study.db'}", "s", [rank], seed=0, prune=False, heartbeat=15)
    study.plan("same", [{"lora_r": 4}], 3)
    made: list[object] = []

    def objective(attempt: Attempt) -> float:
        made.append(attempt.values.get("lora_r"))
        return 0.5

    study._take_one(objective)
    taken = study.study.ask()

    def draw_meanwhile(seconds: float) -> None:
        study.study.sampler = optuna.samplers.PartialFixedSampler({"lora_r": drawn}, optuna.samplers.RandomSampler())
        rank.suggest(taken)

    monkeypatch.setattr("cot_unsloth.lab.study.time.sleep", draw_meanwhile)
    study._take_one(objective)
    assert taken.params == {"lora_r": drawn}
    assert made == [None, left]  # trial 0 has the settings of the config


def test_a_sweep_without_a_final_comparison_does_not_speak_of_one() -> None:
    def trial(number: int, rate: float) -> TrialResult:
        share = Accuracy(accuracy=0.035 - 0.002 * number, ci95=(0.02, 0.06))
        return TrialResult(number=number, state="complete", settings={"learning_rate": rate}, development=share)

    found = Sweep(
        version=VERSION, name="sweep", config="", space={"learning_rate": "0.001, 0.004"}, combinations=2, method="tpe",
        seed=0, n=200, trials=(trial(0, 0.004), trial(1, 0.001)), best=0,
    )  # fmt: skip
    page = sweep_page.page(found, Path("best.yaml"))
    assert page.title == "sweep"
    assert "held-out" not in " ".join(page.notes)
    assert "All 2 combinations are tried." in page.notes
    assert not any("`" in grid.caption for grid in page.grids)
    # The ticks of the last figure, whose shares are close to each other.
    ticks = re.findall(r">([\d.]+%)<", page.figures[-1])
    assert len(ticks) > 2
    assert len(set(ticks)) == len(ticks)


def kill_when_trained(arguments: Sequence[str], began: Path) -> None:
    """Start a command in a new process, and kill it and the training that it started once a file of the run is there."""
    command = [sys.executable, "-m", "cot_unsloth", *arguments]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(began.is_file, process)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_sweep_of_real_runs_that_is_killed_twice_ranks_fails_and_writes_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    few = ["--world-samples", "40", "--max-steps", "4", "--max-new-tokens", "8", "--development-problems", "4"]
    # A rank of 4 leaves nothing to train with every module's name misspelt: that trial fails, and the sweep goes on.
    vary = [
        "--vary",
        "target_modules=all-linear,q_proj,no_such_module",
        "--grid",
        "--no-final",
        "--out",
        str(tmp_path / "s"),
    ]
    few += ["--heartbeat", "1"]  # so that a trial whose process is dead is continued after three seconds
    for number in (0, 1):
        kill_when_trained(("sweep", *vary, *few), tmp_path / "s" / "trials" / f"{number:03d}" / "run" / "config.yaml")
    assert run_cli("sweep", *vary, *few) == 0
    result = Sweep.read(tmp_path / "s" / "sweep.json")
    assert sum(trial.resumed for trial in result.trials) == 2
    assert {trial.number: trial.state for trial in result.trials} == {0: "complete", 1: "complete", 2: "failed"}
    failed = next(trial for trial in result.trials if trial.number == 2)
    assert "no_such_module" in failed.reason
    assert result.n == 4
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines()[:-1])) <= 80
    assert "<svg" in (tmp_path / "s" / "sweep.html").read_text(encoding="utf-8")
    best = settings.load(tmp_path / "s" / "best.yaml")
    assert best.development == RunConfig().development
    assert best.lora.target_modules == (("all-linear",) if result.best == 0 else ("q_proj",))
    began = [(path, path.stat().st_mtime_ns) for path in (tmp_path / "s").glob("trials/*/run/fit.json")]
    assert run_cli("sweep", *vary, *few) == 0  # nothing is left to do
    assert all(path.stat().st_mtime_ns == before for path, before in began)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lora_q=1,2", "no setting lora_q"),
        ("lora_r", "no values"),
        ("learning_rate=3:1", "not a range"),
        ("eval_seed=1,2", "same in every"),
        ("seed=1,2", "same in every"),  # it draws the development problems
        ("arms=tuned,base_cot", "same in every"),  # the sweep sets it: the trials would be equal
        ("gguf=q8_0,f16", "same in every"),
        ("lora_r=4.7:8.2", "whole numbers"),
    ],
)
def test_what_cannot_be_varied_is_refused(text: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("sweep", "--vary", text) == 2
    assert said in capsys.readouterr().err


def test_a_number_of_trials_for_a_grid_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "s"
    assert run_cli("sweep", "--vary", "lora_r=4,8", "--grid", "--trials", "1", "--out", str(out)) == 2
    assert "--trials 1: cannot limit --grid" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("technique=lora,lora+", ("lora", "lora+")),
        ("learning_rate=1e-4,1e+3", (1e-4, 1e3)),
        ("target_modules=q_proj+v_proj,all-linear", ("q_proj,v_proj", "all-linear")),
        ("date_string=2024,2025", ("2024", "2025")),
        ("chat_template=none,a+b", (None, "a+b")),
        ("max_train_samples=100:103", range(100, 104)),  # of `int | None`: all trials failed, at 101.37 rows
        ("neftune_noise_alpha=1:5", None),
    ],
)
def test_each_choice_is_of_the_settings_kind(text: str, values: Sequence[object] | None) -> None:
    dimension = spaces.parse(text)
    assert dimension.values == values
    spaces.require_valid(RunConfig(), [dimension])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora_dropout: []", "neither a list of choices nor"),  # was a range from 0 to 0
        ("lora_r: [{}, 4]", "neither a list of choices nor"),
        ("lora_r: {low: 4, high: 8, log: 1}", "neither a list of choices nor"),  # was not logarithmic
        ("lora_r: [4, 8]\nlora_r: [16]", "space.yaml:2: lora_r is set twice"),
        ("[lora_r]", "holds no settings"),
    ],
)
def test_a_space_file_that_is_not_clear_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        spaces.read(tmp_path / "space.yaml")


@pytest.mark.parametrize("name", ["a?b", "a%20b", "ä b#c"])
def test_a_sweep_keeps_its_study_in_its_folder(name: str, tmp_path: Path) -> None:
    """Sweeps in `a?b` and `a?c` shared the file `a`."""
    folder = tmp_path / name
    folder.mkdir()
    Study(sweep.default_study(folder), "s", QUICK, seed=1, prune=False, heartbeat=1)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.db")] == [f"{name}/study.db"]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_sweep_without_a_complete_trial_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ended with exit code 0, and without best.yaml."""

    def fail(*args: object) -> RunDir:
        raise EngineError("out of memory")

    monkeypatch.setattr(processes, "train", fail)
    arguments = ["sweep", "--vary", "lora_r=4,8", "--trials", "2", "--out", str(tmp_path / "s")]
    assert run_cli(*arguments) == 1
    assert "out of memory" in capsys.readouterr().out
    assert not (tmp_path / "s" / "best.yaml").exists()


def test_a_path_in_the_place_of_a_database_address_is_answered_with_the_form(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be opened") as raised:
        Study(str(tmp_path / "s.db"), "s", QUICK, seed=1, prune=False, heartbeat=1)
    assert "sqlite:///FILE" in str(raised.value)


def test_without_optuna_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"cot-unsloth\[lab\]"):
        Study(f"sqlite:///{tmp_path / 's.db'}", "s", QUICK, seed=1, prune=False, heartbeat=1)


def test_values_of_a_space_file_are_read(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("lora_r: [4, 8]\nlearning_rate: {low: 1e-4, high: 1e-2, log: true}\n")
    rank, rate = spaces.read(tmp_path / "space.yaml")
    assert (rank.choices, rate.low, rate.log) == ((4, 8), 1e-4, True)
    assert list(spaces.grid([rank])) == [{"lora_r": 4}, {"lora_r": 8}]
    with pytest.raises(ConfigError, match="needs choices"):
        list(spaces.grid([rate]))
    assert spaces.values_in(RunConfig(), spaces.default_space(RunConfig()))["technique"] == "lora"
