"""`transfer`: every adapter on every task, on one loaded base; what is paired, and that nothing is done twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import count_calls, module, run_cli, short_run
from test_combine import PLAIN, adapter
from test_sweep import kill_when_trained

from cot_unsloth.config import Flags, RunConfig, load_tree
from cot_unsloth.core.results.transfer import Transfer, TransferAdapter
from cot_unsloth.core.types import Example, Score, Trace
from cot_unsloth.evaluation.problems import not_trained_on, trained_questions
from cot_unsloth.lab import matrix, transfer, transfer_page, transfer_plan
from cot_unsloth.models.hf import HfEngine
from cot_unsloth.storage import atomic, records
from cot_unsloth.storage.run_folder import RunDir
from cot_unsloth.training.preparation import prepare

ROOT = Path(__file__).parent.parent
FEW = ["--eval-samples", "4", "--max-new-tokens", "8"]


def answers(right: Sequence[bool]) -> list[Score]:
    return [
        Score(str(i), "t", f"question {i}", "1", "", "1", is_right, None, 5, "stop") for i, is_right in enumerate(right)
    ]


def test_each_cell_is_paired_with_the_base_and_with_the_tasks_own_adapter() -> None:
    n = 40
    none, half, all_ = [False] * n, [i % 2 == 0 for i in range(n)], [True] * n
    scores = {
        "a": {"base": answers(half), "a": answers(all_), "b": answers(none), "joint": answers(half)},
        "b": {"base": answers(half), "a": answers([True, *half[1:]]), "b": answers(all_), "joint": answers(all_)},
    }
    cells = {(cell.adapter, cell.task): cell for cell in matrix.cells(scores, {"a": "a", "b": "b"})}
    assert list(cells) == [(adapter, task) for adapter in ("base", "a", "b", "joint") for task in ("a", "b")]
    assert {key: cell.effect for key, cell in cells.items() if cell.effect != "no significant difference"} == {
        ("base", "a"): None, ("base", "b"): None, ("a", "a"): "helps", ("b", "a"): "harms", ("b", "b"): "helps",
        ("joint", "b"): "helps",
    }  # fmt: skip
    own = {key: pair.difference for key, cell in cells.items() if (pair := cell.against_own)}
    assert own == {("a", "b"): -0.5, ("b", "a"): -1.0, ("joint", "a"): -0.5, ("joint", "b"): 0.0}
    # Six cells are compared with the base: Holm multiplies the smallest p by six, and equal ones by no less.
    pair = cells["a", "a"].against_base
    assert pair is not None
    assert pair.adjusted_p == pytest.approx(6 * pair.mcnemar_p)


def test_problems_that_a_row_was_trained_on_are_left_out_and_no_others(tmp_path: Path) -> None:
    """Neither spacing and case nor a task's wording make another problem; the turns before a question do."""
    turns = tuple({"role": role, "content": text} for role, text in (("user", "3 + 4?"), ("assistant", "7")))
    plain = Example("q-1", "How many?", Trace((), "7"), "7")
    follow_up = replace(plain, id="q-2", question="And doubled?", history=turns)  # type: ignore[arg-type]
    reworded = replace(plain, id="countdown-1", question="Make 7 from 3 and 4.")
    problems = [plain, follow_up, reworded]

    def left(*trained: Example) -> list[str]:
        run = RunDir(tmp_path / "run")
        records.write_jsonl(run.kept, (records.kept_row(example, "nested") for example in trained))
        return [problem.id for problem in not_trained_on(problems, trained_questions([run]))]

    assert left(replace(plain, id="q-3", question="And doubled?")) == ["q-1", "q-2", "countdown-1"]
    assert left(replace(follow_up, id="q-3"), replace(reworded, question="Make 7 from 4 and 3.")) == ["q-1"]
    assert left(replace(plain, id="q-3", question="how  many?")) == ["q-2", "countdown-1"]
    assert left(replace(plain, split="test")) == ["q-1", "q-2", "countdown-1"]


@pytest.mark.parametrize(
    "flags", [{}, {"max_train_samples": "20"}, {"benchmark": "gsm8k"}, {"score_on": "development"}], ids=str
)
def test_joint_is_trained_on_the_rows_of_the_runs_and_no_others(tmp_path: Path, flags: dict[str, str]) -> None:
    rows = [
        {"question": f"{n} + 4?", "answer": f"way {way}: {n} + 4 = {n + 4}\n#### {n + 4}"}
        for n in range(30)
        for way in range(3)
    ]
    records.write_jsonl(tmp_path / "rows.jsonl", rows)
    records.write_jsonl(tmp_path / "test.jsonl", [{"question": "How many?", "answer": "none\n#### 0"}])
    more = {"benchmark_path": str(tmp_path / "test.jsonl")} if "benchmark" in flags else {}
    config = load_tree({}, {"dataset": str(tmp_path / "rows.jsonl"), "test_fraction": "0.2", **flags, **more})
    prepared, run = prepare(config), RunDir(tmp_path / "run")
    records.write_jsonl(run.kept, (records.kept_row(row, "nested") for row in (*prepared.train, *prepared.test)))
    atomic.write_text(run.config, config.to_yaml())
    assert [row.where for row in transfer._rows(run)] == [row.where for row in prepared.train]


@pytest.mark.parametrize(
    ("datasets", "flags"),
    [
        (("world:chains:2,words:2", "world:conversions"), {}),
        (("world:chains:2", "world:conversions"), {"max_train_samples": "3"}),
        (("world:chains:2", "world:conversions"), {}),
    ],
)
def test_joint_is_trained_on_the_rows_of_generated_tasks(
    datasets: tuple[str, ...], flags: dict[str, str], tmp_path: Path
) -> None:
    """One data set of all generators would give each an equal share, and draw the rows anew."""
    config = load_tree({}, {"world_samples": "6", "eval_samples": "0", **flags})
    job = transfer._Job(config, transfer_plan.Options(tmp_path, transfer_plan.tasks_of(datasets)))
    paths, expected = {}, []
    for task in job.options.tasks:
        own, run = job._run_config(task.trained_on), RunDir(tmp_path / task.name)
        train = prepare(own).train
        records.write_jsonl(run.kept, (records.kept_row(row, "nested") for row in train))
        atomic.write_text(run.config, own.to_yaml())
        paths[task.name] = run.path
        expected += [row.question for row in train]
    joint = prepare(job._joint_config(paths).replaced(eval_samples=0)).train
    assert sorted(row.question for row in joint) == sorted(expected)


def planted_run(folder: Path, flags: Flags) -> tuple[RunConfig, RunDir]:
    """A run without weights: its settings and rows."""
    config, run = load_tree({}, flags), RunDir(folder)
    prepared = prepare(config)
    records.write_jsonl(run.kept, (records.kept_row(row, "nested") for row in (*prepared.train, *prepared.test)))
    atomic.write_text(run.config, config.to_yaml())
    return config, run


def test_the_data_of_an_existing_run_are_read_as_the_run_has_read_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the settings of another run its answers were in another column: every answer to that task was wrong."""
    few: Flags = {"world_samples": "9", "eval_samples": "5", "test_fraction": "0.2"}
    rows = [
        {"question": f"{n} + 4?", "reasoning": f"{n} + 4 = {n + 4}", "answer": f"text {n}", "final": str(n + 4)}
        for n in range(40)
    ]
    records.write_jsonl(tmp_path / "rows.jsonl", rows)
    config, words = planted_run(tmp_path / "words", {**few, "dataset": "world:words:2"})
    own: Flags = {**few, "dataset": str(tmp_path / "rows.jsonl"), "answer_column": "final"}
    adapters = {"words": words.path, "sums": planted_run(tmp_path / "sums", own)[1].path}
    monkeypatch.setattr("cot_unsloth.evaluation.problems.training_runs", lambda path: [RunDir(path)])
    monkeypatch.setattr(transfer, "training_runs", lambda path: [RunDir(path)])
    monkeypatch.setattr(transfer, "weights_of", lambda path: path)

    def golds(flags: Flags) -> set[tuple[str, str]]:
        tasks = transfer_plan.tasks_of((), None, adapters, flags)
        job = transfer._Job(config.overridden(flags), transfer_plan.Options(tmp_path / "t", tasks, adapters))
        rows = [TransferAdapter(name=name, kind="own", path=str(path)) for name, path in adapters.items()]
        return {(problem.question, problem.answer) for problem in job._problems(tasks[1], rows)}

    assert golds({})
    assert golds({}) <= {(row["question"], row["final"]) for row in rows}
    assert golds({"answer_column": "answer"}) <= {(row["question"], row["answer"]) for row in rows}


def test_the_rows_of_joint_need_no_columns_of_the_tasks_files(tmp_path: Path) -> None:
    """They ended the transfer after the last adapter of a task had been trained: "there is no such column"."""
    rows = [{"q": f"{n} + 4?", "reasoning": f"{n} + 4 = {n + 4}", "final": str(n + 4)} for n in range(20)]
    records.write_jsonl(tmp_path / "rows.jsonl", rows)
    flags = {"question_column": "q", "answer_column": "final", "world_samples": "6", "eval_samples": "0"}
    tasks = transfer_plan.tasks_of((str(tmp_path / "rows.jsonl"), "world:words:2"))
    job = transfer._Job(load_tree({}, flags), transfer_plan.Options(tmp_path / "t", tasks))
    paths = {
        task.name: planted_run(tmp_path / task.name, {**flags, "dataset": task.trained_on})[1].path for task in tasks
    }
    assert len(prepare(job._joint_config(paths)).train) == 26


def test_a_curriculum_that_joint_does_not_have_is_named(tmp_path: Path) -> None:
    def has(*datasets: str, **flags: str) -> bool:
        tasks = transfer_plan.tasks_of(datasets)
        job = transfer._Job(load_tree({}, flags), transfer_plan.Options(tmp_path, tasks))
        return job._has_curriculum and job._prefix is None

    assert has("world:words", "rows.jsonl", world_clean_first="0.5")
    assert not has("world:words", "world:chains", world_clean_first="0.5")
    assert not has("world:words", "rows.jsonl")
    assert not has("other.jsonl", "rows.jsonl", world_clean_first="0.5")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of a task and of a file."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [
        {"question": f"What is {i} + 3?", "reasoning": f"{i} + 3 = {i + 3}", "answer": str(i + 3)} for i in range(90)
    ]
    records.write_jsonl(folder / "sums.jsonl", rows)
    words = short_run(folder / "words", "--dataset", "world:words", "--arms", "tuned")
    sums = short_run(folder / "sums", "--dataset", str(folder / "sums.jsonl"), "--arms", "tuned")
    return {"words": words.path, "sums": sums.path}


def test_adapters_that_exist_are_scored_on_one_base_and_nothing_twice(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loads = count_calls(monkeypatch, HfEngine, "_from_pretrained")
    asked = count_calls(monkeypatch, HfEngine, "generate")
    more = adapter(tmp_path / "more", std=1.0, **PLAIN)
    arguments = [f"--adapter={name}={path}" for name, path in runs.items()] + [
        "--no-joint",
        "--out",
        str(tmp_path / "t"),
    ]
    # With data sets named, an adapter of another name is one more row; without any, the runs' data are the tasks.
    named = [
        "--dataset=words=world:words",
        f"--dataset=sums={runs['sums'].parent / 'sums.jsonl'}",
        f"--adapter=more={more}",
    ]
    assert run_cli("transfer", *arguments, *named, *FEW, "--combine", "cat", "--combine", "ties:0.5") == 0
    result = Transfer.read(tmp_path / "t" / "transfer.json")
    kinds = {row.name: row.kind for row in result.adapters}
    assert kinds == {
        "base": "base",
        "words": "own",
        "sums": "own",
        "cat": "combined",
        "ties-0.5": "combined",
        "more": "other",
    }
    assert len(loads) == 1
    assert len(asked) == len(result.cells) == 12
    errors = {row.name: row.relative_error for row in result.adapters if row.relative_error is not None}
    assert errors["cat"] < 1e-5 < errors["ties-0.5"]
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines()[:-1])) <= 80
    page = (tmp_path / "t" / "transfer.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "Every cell" in page
    assert (tmp_path / "t" / "transfer.png").stat().st_size > 5_000

    # The same problems for all, and the held-out rows of the file's run.
    held_out = RunDir(runs["sums"]).question_ids("test")
    scored = [
        records.read_completions(file) for file in (tmp_path / "t" / "scores" / "sums").glob("*/completions/*.jsonl")
    ]
    assert len(scored) == 6
    assert all([score.id for score in scores] == [score.id for score in scored[0]] for scores in scored)
    assert {score.id for score in scored[0]} <= held_out

    loads.clear(), asked.clear()
    assert run_cli("transfer", *arguments, *named, *FEW, "--combine", "cat", "--combine", "ties:0.5") == 0
    assert (loads, asked) == ([], [])
    assert run_cli("transfer", *arguments, *FEW, "--combine", "cat", "--combine", "linear") == 0
    assert (len(loads), len(asked)) == (1, 2)


def test_a_cell_is_what_evaluate_says(runs: dict[str, Path], tmp_path: Path) -> None:
    arguments = [f"--adapter={name}={path}" for name, path in runs.items()] + [
        "--no-joint",
        "--out",
        str(tmp_path / "t"),
    ]
    assert run_cli("transfer", *arguments, *FEW) == 0
    (ours,) = (tmp_path / "t" / "scores" / "words").glob("sums-*/completions/sums.jsonl")
    scoring = ["--dataset", "world:words", "--arms", "tuned", "--no-gate", "--forgetting", "none", *FEW]
    assert run_cli("evaluate", str(runs["sums"]), *scoring, "--out", str(tmp_path / "e")) == 0
    assert records.read_jsonl(ours) == records.read_jsonl(tmp_path / "e" / "completions" / "tuned.jsonl")


def test_a_transfer_that_is_killed_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tasks of several kinds; the joint adapter learns from the rows of both, corrupted steps marked."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rows = [
        {"question": f"What is {i} + 3?", "reasoning": f"{i} + 3 = {i + 3}", "answer": str(i + 3)} for i in range(60)
    ]
    records.write_jsonl(tmp_path / "sums.jsonl", rows)
    arguments = [
        "transfer", "--dataset", "world:chains:2-3", "--dataset", str(tmp_path / "sums.jsonl"), "--world-samples", "40",
        "--world-error-rate", "0.5", "--max-steps", "3", "--max-train-samples", "30", *FEW, "--out", str(tmp_path / "t"),
    ]  # fmt: skip
    runs = {name: RunDir(tmp_path / "t" / "runs" / name / "run") for name in ("chains-2-3", "sums", "joint")}
    kill_when_trained(arguments, runs["sums"].config)
    trained = runs["chains-2-3"].fit_report.stat().st_mtime_ns
    assert run_cli(*arguments) == 0
    assert runs["chains-2-3"].fit_report.stat().st_mtime_ns == trained
    questions = [records.read_jsonl(run.kept) for run in runs.values()]
    first, second, joint = ({row["question"] for row in rows if row["split"] == "train"} for rows in questions)
    assert joint == first | second
    assert len(joint) == 60
    (file,) = (tmp_path / "t" / "joint").glob("rows-*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert any(part.get("wrong") for line in lines for part in line["parts"])
    assert (lines[0]["question"] in first, lines[1]["question"] in second) == (True, True)
    capsys.readouterr()
    assert run_cli(*arguments, "--learning-rate", "1e-5") == 2
    printed = capsys.readouterr().err
    assert "other settings (train.learning_rate)" in printed
    assert "--adapter NAME=RUN takes this run" in printed


def matrix_of(scores: matrix.Scores) -> Transfer:
    """A result of these scores; every task's own adapter has its name."""
    rows = [name for name in next(iter(scores.values())) if name != "base"]
    tree = {
        "config": "", "model": "m", "train_seed": 1, "eval_seed": 1,
        "cells": matrix.cells(scores, {name: name for name in scores}),
        "decoding": {"temperature": 0, "top_p": 1, "max_new_tokens": 8},
        "tasks": [{"name": name, "dataset": name, "n": len(of_task["base"])} for name, of_task in scores.items()],
        "adapters": [{"name": "base", "kind": "base"}, *({"name": name, "kind": "own"} for name in rows)],
    }  # fmt: skip
    return Transfer.model_validate(tree)


def test_the_bench_pools_the_problems_of_all_seeds() -> None:
    none, some, all_ = [False] * 20, [True] * 4 + [False] * 16, [True] * 20
    seeds = [
        matrix_of(
            {
                "a": {"base": answers(none), "a": answers(all_), "b": answers(helped)},
                "b": {"base": answers(none), "a": answers(none), "b": answers(all_)},
            }
        )
        for helped in (some, some, none)
    ]
    assert all(one.cell("b", "a").effect == "no significant difference" for one in seeds)
    pooled = module(ROOT / "bench" / "transfer.py").pooled(seeds)
    cell = next(cell for cell in pooled if (cell["adapter"], cell["task"]) == ("b", "a"))
    assert (cell["n"], cell["accuracy"], cell["by_seed"]) == (60, round(8 / 60, 4), [0.2, 0.2, 0.0])
    assert (cell["against_base"]["gained"], cell["against_base"]["significant"]) == (8, True)
    assert cell["against_own"]["lost"] == 52
    own = next(cell for cell in pooled if (cell["adapter"], cell["task"]) == ("a", "a"))
    assert own["against_own"] is None


def test_names_are_broken_to_fit_and_many_tasks_are_several_tables(tmp_path: Path) -> None:
    names = [f"some_long_task_{i}" for i in range(8)]
    scores = {task: {row: answers([True, False]) for row in ("base", *names)} for task in names}
    page = transfer_page.page(matrix_of(scores), tmp_path / "m.png")
    assert [len(grid.columns) for grid in page.grids] == [7, 3, 7, 3]
    assert max(len(line) for column in page.grids[0].columns for line in column.splitlines()) <= 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "world:words"], "at least two tasks"),
        (["--dataset", "world:words", "--dataset", "world:words"], "two are called words"),
        (["--dataset", "tuned=world:words", "--dataset", "world:chains"], "two are called tuned, or it has a meaning"),
        (["--dataset", "world:words", "--dataset", "joint=world:chains"], "two are called joint"),
        (["--dataset", "world:words", "--dataset", "world:wrds"], "no task 'wrds'"),
        (["--dataset", "world:words", "--dataset", "none.jsonl"], "there is no such file"),
        (["--dataset", "world:words", "--dataset", "world:chains", "--rows", "word=x.jsonl"], "no task is called word"),
        (["--dataset", "world:words", "--dataset", "world:chains", "--combine", "sum"], "is not a method"),
        (["--dataset", "world:words", "--dataset", "world:chains", "--combine", "cat:x"], "no number"),
        (["--dataset", "world:words", "--dataset", "world:chains", "--combine", "cat", "--combine", "cat"], "called cat"),
        (["--dataset", "world:words", "--dataset", "world:chains", "--combine", "cat", "--combine-rank", "4"], "applies to none"),
        (["--dataset", "world:words", "--dataset", "world:chains", "--combine", "svd", "--density", "0.1"], "applies to none"),
        (["--dataset", "world:words", "--dataset", "world:chains", "--full-finetuning"], "trains adapters"),
        (["--dataset", "world:words", "--dataset", "world:chains", "--adapter", "x"], "is not NAME=VALUE"),
        (["--dataset", "world:words", "--dataset", "owner/rows", "--method", "rft"], "do not form one data set"),
        (["--dataset", "world:words", "--dataset", "world:chains", "--adapter", "x=./no/such/adapter"], "holds no adapter"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli("transfer", *arguments, "--out", str(tmp_path / "t")) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "t").exists()


def test_problems_without_solutions_need_rows_or_attempts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cot_unsloth.tasks.gym._require_installed", lambda spec: None)
    monkeypatch.setattr("cot_unsloth.tasks.gym.names", lambda: ("leg_counting",))
    arguments = ["transfer", "--dataset", "world:words", "--dataset", "gym:leg_counting", "--out", str(tmp_path / "t")]
    assert run_cli(*arguments) == 2
    assert "--rows leg_counting=FILE" in capsys.readouterr().err
