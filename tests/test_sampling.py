"""Sampling: attempts are drawn once, judged, and become rows; wrong steps carry no loss; leaks are dropped."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from helpers import run_cli

from cot_unsloth import tasks, write_traces
from cot_unsloth.cli.sample import _train_in_rounds, train_command
from cot_unsloth.config import RunConfig, load_tree
from cot_unsloth.core import trace
from cot_unsloth.core.errors import DataError, RunDirError
from cot_unsloth.core.types import IGNORE, Completion, Example, Message, Part, Prompt, SamplingParams, Trace
from cot_unsloth.data import layouts, load_examples
from cot_unsloth.data.layouts.own_samples import row_of
from cot_unsloth.evaluation.score import is_right
from cot_unsloth.models.protocols import Advance
from cot_unsloth.models.target import Target
from cot_unsloth.prompts.arms import Prompter
from cot_unsloth.prompts.opening import open_renderer
from cot_unsloth.sampling import records, targets
from cot_unsloth.sampling.attempts import check_checker, worked_examples
from cot_unsloth.sampling.records import Attempt, SampleFolder
from cot_unsloth.sampling.sample import Problems, choose_problems, sample, training_problems
from cot_unsloth.sampling.selection import select
from cot_unsloth.sampling.steps import Line, check, corrected_by_sibling, corrected_by_task, lines_of
from cot_unsloth.storage import environment
from cot_unsloth.storage.run_folder import RunDir
from cot_unsloth.tasks import countdown

TASKS = "world:chains,words,countdown"
FEW = {"data": {"dataset": TASKS, "world_samples": 12}, "sample": {"samples_per_problem": 4}}


class Scripted:
    """Answers by a rule, and counts what it was asked."""

    name = "scripted"

    def __init__(self, answer: Callable[[str, int], str], fail_after: int | None = None) -> None:
        self.answer, self.fail_after = answer, fail_after
        self.asked: list[str] = []
        self.prompts: list[Prompt] = []

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingParams, advance: Advance = lambda done: None
    ) -> list[Completion]:
        answers = []
        for prompt in prompts:
            if self.fail_after is not None and len(self.asked) >= self.fail_after:
                raise KeyboardInterrupt
            self.asked.append(prompt.id)
            self.prompts.append(prompt)
            problem, _, number = prompt.id.rpartition("#")
            answers.append(Completion(prompt.id, self.answer(problem, int(number)), 20, "stop"))
            advance(answers[-1:])
        return answers


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return load_tree(FEW, {})


@pytest.fixture(scope="module")
def problems(config: RunConfig) -> Problems:
    return training_problems(config, trained=True)


def wrong_step(problem: Example, *, goes_on: bool = True) -> str:
    """A solution with a wrong result that nobody notices, and what follows from it."""
    task = tasks.TASKS[problem.task]
    lines = [line for part in solution(problem).parts for line in part.text.splitlines()]
    at = len(lines) - 1
    wrong = task.corrupt_step(problem.problem, lines[at], random.Random(1))
    assert wrong is not None
    trace_ = Trace((Part("think", "\n".join([*lines[:at], wrong])),), wrong.rpartition(" ")[2] if goes_on else "none")
    return trace.render(trace_)


def solution(problem: Example) -> Trace:
    """The canonical solution, without failed tries."""
    task = tasks.TASKS[problem.task]
    seeds = (task.solve(problem.problem, random.Random(seed)) for seed in range(100))
    return next(found for found in seeds if not any(part.kind == "reflect" for part in found.parts))


def mixed(problems: Problems) -> Callable[[str, int], str]:
    """Of four attempts two are right (one with other spacing), one is wrong, one is not in our format."""
    by_id = {problem.id: problem for problem in problems.asked}

    def answer(id_: str, number: int) -> str:
        problem = by_id[id_]
        right = trace.render(solution(problem))
        return [right, right.replace(": ", ":  ", 1), wrong_step(problem), f"It is {problem.answer}."][number]

    return answer


def drawn(engine: Scripted, problems: Problems, config: RunConfig, path: Path) -> SampleFolder:
    folder = SampleFolder(path)
    sample(engine, Prompter(config.data), problems, config, folder, seed=7, model="scripted")
    return folder


@pytest.fixture(scope="module")
def folder(problems: Problems, config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> SampleFolder:
    return drawn(Scripted(mixed(problems)), problems, config, tmp_path_factory.mktemp("samples") / "s")


def test_accepted_rows_are_right_and_corrections_lead_to_the_answer(folder: SampleFolder, problems: Problems) -> None:
    rows = [json.loads(line) for line in folder.data.read_text().splitlines()]
    by_question = {problem.question: problem for problem in problems.asked}
    assert all(is_right(by_question[row["question"]], row["output"]) for row in rows)
    corrected = [row for row in rows if any(part.get("wrong") for part in row["parts"])]
    assert {by_question[row["question"]].task for row in corrected} == {"chains", "words", "countdown"}
    for row in corrected:
        problem = by_question[row["question"]]
        parts = [Part(kind, part[kind]) for part in row["parts"] for kind in ("think", "reflect") if kind in part]
        verdicts = tasks.TASKS[problem.task].judge(problem.problem, parts)
        assert [verdict != "right" for verdict in verdicts].count(True) == 1


def test_the_summary_accounts_for_every_accepted_attempt(folder: SampleFolder) -> None:
    summary = records.SampleSummary.read(folder.summary)
    assert (summary.problems, summary.attempts, summary.correct) == (12, 48, 24)
    # The second right attempt has two spaces after a colon, which no task reads: it is kept as text.
    assert summary.accepted == summary.kept + summary.duplicates + summary.surplus + summary.unsound
    assert (summary.always, summary.sometimes, summary.never) == (0, 12, 0)
    assert [(point.k, round(point.rate, 3)) for point in summary.pass_at] == [(1, 0.5), (2, 0.833), (4, 1.0)]
    assert summary.rows == summary.kept + summary.reflections == len(folder.data.read_text().splitlines())
    assert folder.plot.read_bytes().startswith(b"\x89PNG")
    assert {rate.rate for rate in records.read_rates(folder.path)} == {0.5}
    assert records.read_rates(folder.problems) == records.read_rates(folder.path)


def test_marks_of_wrong_steps_are_written_from_python_too(tmp_path: Path) -> None:
    plain = Trace((Part("think", "1 + 1 = 2"),), "2")
    parts = (
        Part("think", "2 + 1 = 4", injected=True),
        Part("reflect", "No, 3.", injected=True),
        Part("think", "2 + 1 = 3"),
    )
    for rows in ([("1 + 1?", plain)], [("1 + 1?", plain), ("2 + 1?", Trace(parts, "3"))]):
        write_traces(tmp_path / "rows.jsonl", rows)
        config = load_tree({"data": {"dataset": str(tmp_path / "rows.jsonl")}}, {})
        loaded = load_examples(config.data, seed=1, eval_samples=0, eval_seed=1)
        assert [(example.question, example.trace) for example in loaded.examples] == rows
        assert not loaded.rejects


def test_wrong_steps_carry_no_loss(folder: SampleFolder) -> None:
    config = load_tree({"data": {"dataset": str(folder.path), "max_seq_length": 1024}}, {})
    loaded = load_examples(config.data, seed=1, eval_samples=0, eval_seed=1)
    assert loaded.columns is not None
    assert loaded.columns.layout == "own_samples"
    assert not loaded.rejects
    renderer = open_renderer(config.model, config.data)
    marked = [example for example in loaded.examples if example.trace.injected]
    assert marked
    for example in marked:
        rendered = renderer.sample(example)
        assert not hasattr(rendered, "reason")
        with_loss = renderer.chat.decode([label for label in rendered.labels if label != IGNORE])  # type: ignore[union-attr]
        (wrong,) = [part.text for part in example.trace.parts if part.injected]
        (reflection,) = [part.text for part in example.trace.parts if part.kind == "reflect"]
        assert wrong not in with_loss
        assert reflection in with_loss


def test_nothing_is_asked_twice_after_a_kill(
    problems: Problems, config: RunConfig, folder: SampleFolder, tmp_path: Path
) -> None:
    first = Scripted(mixed(problems), fail_after=20)
    with pytest.raises(KeyboardInterrupt):
        drawn(first, problems, config, tmp_path / "s")
    second = Scripted(mixed(problems))
    resumed = drawn(second, problems, config, tmp_path / "s")
    assert len(first.asked) == 20
    assert sorted(first.asked + second.asked) == sorted(set(first.asked + second.asked))
    assert len(first.asked + second.asked) == 48
    for name in ("attempts", "problems", "data", "summary"):
        assert getattr(resumed, name).read_bytes() == getattr(folder, name).read_bytes()
    third = Scripted(mixed(problems))
    drawn(third, problems, config, tmp_path / "s")
    assert not third.asked


@pytest.mark.parametrize("complete", [True, False])
def test_what_a_killed_command_left_is_removed(
    problems: Problems, config: RunConfig, folder: SampleFolder, tmp_path: Path, complete: bool
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = SampleFolder(tmp_path / "s")
    shutil.copytree(folder.path, left.path)
    for unfinished in (left.unfinished, left.path / f".aside-unfinished.{ended.pid}-7"):
        unfinished.mkdir()
        (unfinished / "sample-1.jsonl").touch()
    if not complete:
        left.summary.unlink()
    assert {path.name for path in drawn(Scripted(mixed(problems)), problems, config, left.path).path.iterdir()} == {
        path.name for path in folder.path.iterdir()
    }


def test_a_command_killed_before_its_first_file_is_continued(
    problems: Problems, config: RunConfig, folder: SampleFolder, tmp_path: Path
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / f".aside-settings.{ended.pid}-1").touch()
    drawn(Scripted(mixed(problems)), problems, config, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in folder.path.iterdir()}


def test_a_folder_of_other_settings_is_not_continued(
    problems: Problems, config: RunConfig, folder: SampleFolder
) -> None:
    with pytest.raises(RunDirError, match="other settings"):
        drawn(Scripted(mixed(problems)), problems, config.replaced(samples_per_problem=2), folder.path)


def test_rows_are_selected_again_without_asking(
    problems: Problems, config: RunConfig, folder: SampleFolder, tmp_path: Path
) -> None:
    copy = SampleFolder(shutil.copytree(folder.path, tmp_path / "s"))
    silent = Scripted(mixed(problems))
    plain = config.replaced(own_reflections=False, max_per_problem=1)
    drawn(silent, problems, plain, copy.path)
    summary = records.SampleSummary.read(copy.summary)
    assert (summary.reflections, summary.kept, summary.rows) == (0, 12, 12)
    assert len(copy.data.read_text().splitlines()) == 12
    # Folders of versions that did not select again have these settings in their hash.
    asked = [problem.id for problem in (*problems.asked, *problems.shown)]
    former = environment.text_hash("scripted", "7", plain.fingerprint("data", "evaluate", "sample"), *asked)
    copy.settings.write_text(former)
    drawn(silent, problems, plain, copy.path)
    drawn(silent, problems, config, copy.path)
    assert not silent.asked
    for name in ("attempts", "problems", "data", "summary"):
        assert getattr(copy, name).read_bytes() == getattr(folder, name).read_bytes()


def test_rows_and_problems_like_a_test_problem_are_dropped(tmp_path: Path, config: RunConfig) -> None:
    def example(n: int, question: str) -> Example:
        return Example(f"q{n}", question, Trace((Part("think", "so"),), "7"), "7", where=f"f:{n}")

    words = "a farmer has three fields with four rows of five trees and sells two of them"
    leak, clean, echo = example(1, "What is  3 + 4?"), example(2, "What is 2 + 5?"), example(3, "What is 1 + 6?")
    tests = [example(8, "what is 3 + 4?"), example(9, words)]
    benchmark = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"benchmark": "gsm8k"})})
    chosen = choose_problems([leak, clean, echo], tests, benchmark, trained=True)
    assert [p.id for p in chosen.asked] == ["q2", "q3"]
    assert chosen.leaked == 1
    text = {"q2": "2 + 5 = 7", "q3": words}
    engine = Scripted(lambda id_, number: trace.render(Trace((Part("think", text[id_]),), "7")))
    folder = drawn(engine, chosen, benchmark, tmp_path / "s")
    summary = records.SampleSummary.read(folder.summary)
    assert (summary.leaked, summary.rows) == (2, 1)


def test_a_hard_problem_may_have_more_rows_than_an_easy_one() -> None:
    def attempts(right: int) -> list[Attempt]:
        texts = [trace.render(Trace((Part("think", f"{n} and so"),), "7" if n < right else "8")) for n in range(8)]
        return [Attempt("q", n, text, 10 + n, "stop", "7", n < right, None) for n, text in enumerate(texts)]

    problem = Example("q", "3 + 4?", Trace((), "7"), "7")
    config = load_tree({"sample": {"own_reflections": False}}, {})
    assert [select([problem], attempts(right), config).kept for right in (0, 1, 3, 4, 8)] == [0, 1, 3, 2, 1]
    shortest = select([problem], attempts(8), config).rows[0].trace.parts[0].text
    assert shortest == "0 and so"


def test_a_row_has_the_text_of_its_attempt_with_its_blank_lines() -> None:
    problem = Example("q", "2 + 2?", Trace((), "4"), "4", where="f:1")
    written = Trace(
        (
            Part("think", "Plan:\n\n- add  \n- check\n\n```\nx = 1\n\n\ny = 2\n```"),
            Part("reflect", "Wait.\n\nThat is fine."),
            Part("think", "So it is 4."),
        ),
        "4\n\nDone.",
    )
    attempt = Attempt("q", 0, trace.render(written), 9, "stop", "4", True, None)
    (row,) = select([problem], [attempt], load_tree({}, {})).rows
    assert row.trace == written
    assert layouts.example(row_of(row), "own_samples", "f:1").trace == written


def test_a_correction_keeps_the_blank_lines_of_both_attempts() -> None:
    sibling = Trace((Part("think", "12 / 3 = 4\n\n4 + 5 = 9\n\n9 * 2 = 18\n\nSo 18."),), "18")
    wrong = lines_of([Part("think", "12 / 3 = 4\n\n4 + 5 = 10\n\n10 * 2 = 20")])
    corrected = corrected_by_sibling(wrong, [sibling], [lines_of(sibling.parts)])
    assert corrected is not None
    assert trace.render(corrected).splitlines()[1:-2] == [
        "12 / 3 = 4", "", "4 + 5 = 10",
        "<reflection>That step is wrong. 4 + 5 = 9</reflection>", "9 * 2 = 18", "", "So 18.",
    ]  # fmt: skip


def test_an_answer_that_is_right_by_luck_is_no_row(problems: Problems, config: RunConfig) -> None:
    problem = next(p for p in problems.asked if p.task == "chains")
    lucky = trace.render(trace.parse(wrong_step(problem)).trace or Trace((), ""))
    lucky = lucky.replace(lucky.rpartition("<output>")[2], f"{problem.answer}</output>")
    texts = (lucky, trace.render(solution(problem)))
    attempts = [Attempt(problem.id, n, text, 9, "stop", problem.answer, True, None) for n, text in enumerate(texts)]
    assert [(s.kept, s.unsound, s.reflections) for s in (select([problem], attempts[:n], config) for n in (1, 2))] == [
        (0, 1, 0),
        (1, 1, 1),
    ]


def lines(*texts: str) -> list[Line]:
    return [("think", text) for text in texts]


def test_a_right_sibling_corrects_the_step_at_which_they_part() -> None:
    sibling = Trace((Part("think", "12 / 3 = 4\n4 + 5 = 9\n9 * 2 = 18"),), "18")
    wrong = lines("12 / 3 = 4", "4 + 5 = 10", "10 * 2 = 20")
    corrected = corrected_by_sibling(wrong, [sibling], [lines_of(sibling.parts)])
    assert corrected == Trace(
        (
            Part("think", "12 / 3 = 4"),
            Part("think", "4 + 5 = 10", injected=True),
            Part("reflect", "That step is wrong. 4 + 5 = 9"),
            Part("think", "9 * 2 = 18"),
        ),
        "18",
    )
    # Another attempt took the same step and ended right, so it is not what was wrong.
    assert corrected_by_sibling(wrong, [sibling], [lines_of(sibling.parts), wrong]) is None
    assert corrected_by_sibling(lines("5 * 3 = 15", "4 + 5 = 10"), [sibling], []) is None


def tried(problem: Example, *ways: countdown.Try) -> list[str]:
    """The lines of tries at a countdown problem."""
    return [countdown.line(*read) for way in ways for read in countdown._replay(problem.problem, way)]


def test_failed_tries_of_a_right_sibling_carry_no_loss_and_correct_nothing() -> None:
    """A sibling corrects an attempt with a line that the task cannot read."""
    problem = tasks.generate("world:countdown", split="train", n=1, seed=3)[0]
    solved = problem.problem.solutions[0]
    misses = [way for ways in problem.problem.ways if solved not in ways for way in ways][:2]
    missed = [countdown.verdict_line(countdown.result(way[-1]), problem.problem.target) for way in misses]
    (one, two), (three, four), (five, six) = (tried(problem, way) for way in (*misses, solved))
    right = "\n".join([one, two, f"<reflection>{missed[0]}</reflection>", three, four, f"<reflection>{missed[1]}</reflection>",
                       five, six])  # fmt: skip

    def rows(*begun: str) -> tuple[Example, ...]:
        texts = right, "\n".join((*begun, "so I guess."))
        attempts = [
            Attempt(problem.id, at, f"<thinking>\n{text}\n</thinking>\n<output>{answer}</output>", 9, "stop", answer, at == 0, None)
            for at, (text, answer) in enumerate(zip(texts, (countdown.expression(solved), "1"), strict=True))
        ]  # fmt: skip
        return select([problem], attempts, load_tree(FEW, {})).rows

    # It would correct the line by one that is itself a failed try's.
    assert len(rows(one)) == 1
    accepted, corrected = rows(*right.splitlines()[:6], five)
    for row in (accepted, corrected):
        marked = "\n".join(part.text for part in row.trace.parts if part.injected).splitlines()
        assert marked == [one, two, three, four, *["so I guess."] * (row is corrected)]
    assert Part("reflect", f"That step is wrong. {six}") in corrected.trace.parts


def test_no_more_attempts_are_kept_than_a_pass_rate_allows() -> None:
    """Of ten attempts seven are right: ceil(10 * 0.3) rows."""
    problem = Example("q", "How many?", Trace((), "7"), "7")
    attempts = [
        Attempt("q", n, f"<thinking>\nway {n}\n</thinking>\n<output>7</output>", 9, "stop", "7", n < 7, None)
        for n in range(10)
    ]
    config = load_tree(FEW, {"max_per_problem": 10, "own_reflections": False})
    assert len(select([problem], attempts, config).rows) == 3


def test_every_error_of_a_task_is_corrected_or_left_alone() -> None:
    """Each line of solutions with a wrong result, a wrong operand or another statement: what follows must be right."""
    corrected = 0
    for example in tasks.generate(TASKS, split="train", n=60, seed=5):
        task, rng = tasks.TASKS[example.task], random.Random(example.id)
        written = lines_of(example.trace.parts)
        for at, (kind, line) in enumerate(written):
            wrong = task.corrupt_step(example.problem, line, rng) if kind == "think" else None
            for text in filter(None, [wrong, line.replace(": ", ": 1", 1) if kind == "think" else None]):
                begun = [Part(k, t) for k, t in [*written[:at], ("think", text)]]
                if not task.reflection_due(example.problem, begun)[-1]:
                    continue
                ending = task.finish(example.problem, begun, rng)
                if ending is None:
                    assert example.task == "countdown" or at == 0
                    continue
                verdicts = task.judge(example.problem, [*begun, *ending.parts])
                assert [i for i, verdict in enumerate(verdicts) if verdict != "right"] == [len(begun) - 1]
                assert is_right(example, ending.output)
                corrected += 1
    assert corrected > 300


def countdown_problem() -> Example:
    problem = countdown.Target((14, 3, 5), 12)
    return Example(
        "a", problem.question, Trace((), ""), problem.answer, "countdown", where="world:countdown#0", problem=problem
    )


FAILED_TRIES = [
    ("think", "(1) 14, 3, 5: 14 + 5 = 19"),
    ("think", "(2) 19, 3: 19 - 3 = 16"),
    ("reflect", "16 is not 12."),
    ("think", "(1) 14, 3, 5: 5 + 3 = 8"),
    ("think", "(2) 8, 14: 14 - 8 = 6"),
    ("reflect", "6 is not 12."),
]
MISSED = [("think", "(1) 14, 3, 5: 14 - 5 = 9"), ("think", "(2) 9, 3: 9 * 3 = 27"), ("reflect", "27 is not 12.")]
RIGHT = [("think", "(1) 14, 3, 5: 14 - 5 = 9"), ("think", "(2) 9, 3: 9 + 3 = 12")]


def test_no_line_of_a_failed_try_carries_loss_however_many_there_are() -> None:
    """Only the first of them was marked, so that a model was trained on its own misses, and repeated them."""
    checked = check(countdown_problem(), [*FAILED_TRIES, *MISSED, *RIGHT])  # type: ignore[list-item]
    assert checked is not None
    #  The first step of `MISSED` is on a way to the answer.
    assert checked.wrong == (True, True, False, True, True, False, False, True, False, False, False)
    assert (checked.unnoticed, checked.repeated) == (None, None)


def test_an_error_that_was_corrected_leaves_the_steps_after_it_alone() -> None:
    for example in tasks.generate(TASKS, split="train", n=90, seed=6, error_rate=0.4):
        parts = [(part.kind, line, part.injected) for part in example.trace.parts for line in part.text.splitlines()]
        checked = check(example, [(kind, line) for kind, line, _ in parts])
        assert checked is not None
        marked = list(checked.wrong)
        given = [injected and kind == "think" for kind, _, injected in parts]
        if example.task == "countdown":  # there the first steps of a failed try may be right ones
            assert all(injected for wrong, injected in zip(marked, given, strict=True) if wrong)
        else:
            assert marked == given


def test_a_repeated_try_is_replaced_by_another_one() -> None:
    problem = countdown_problem()
    again = FAILED_TRIES[:3]
    repeating: list[Line] = [*FAILED_TRIES, *again, *again]  # type: ignore[list-item]
    checked = check(problem, repeating)
    assert checked is not None
    assert checked.repeated == 6
    corrected = corrected_by_task(problem, repeating)
    assert corrected is not None
    kept = lines_of(corrected.parts)
    assert kept[:6] == FAILED_TRIES
    assert is_right(problem, corrected.output)
    after = check(problem, kept)
    assert after is not None
    assert (after.unnoticed, after.repeated) == (None, None)
    assert not any(after.wrong[6:])
    assert corrected_by_task(problem, [*FAILED_TRIES, *RIGHT]) is None  # type: ignore[list-item]


def test_a_false_reflection_is_replaced_by_that_of_the_task() -> None:
    problem = countdown_problem()
    false: list[Line] = [("reflect", "14 - 6 is 9, not 16. (2) 9, 3: 9 * 3 = 27"), ("reflect", "6 is not 11.")]
    looping: list[Line] = [*FAILED_TRIES[:5], *false, ("think", "(1) 14, 3, 5: 14 - 5 = 9")]  # type: ignore[list-item]
    checked = check(problem, looping)
    assert checked is not None
    assert checked.unnoticed == 6
    corrected = corrected_by_task(problem, looping)
    assert corrected is not None
    assert lines_of(corrected.parts)[:6] == FAILED_TRIES
    assert is_right(problem, corrected.output)
    needless: list[Line] = [*RIGHT, ("reflect", "12 is not 12.")]  # type: ignore[list-item]
    assert corrected_by_task(problem, needless) is None, "no reflection was due"


@pytest.mark.parametrize("task", tasks.TASKS)
def test_a_false_reflection_on_a_right_step_is_no_error_to_correct(task: str) -> None:
    """The step was marked as wrong, and a needless reflection on it was trained on."""
    for example in tasks.generate(f"world:{task}", split="train", n=10, seed=3):
        written = lines_of(example.trace.parts)
        checked = check(example, written)
        assert checked is not None
        for at, (kind, text) in enumerate(written):
            if kind == "think" and not checked.due[at]:
                false: Line = ("reflect", f"{text[:-1]}{'9' if text[-1] != '9' else '8'}")
                assert corrected_by_task(example, [*written[: at + 1], false, *written[at + 1 :]]) is None, text


def test_the_incomplete_last_line_of_an_attempt_that_was_cut_off_is_not_checked(config: RunConfig) -> None:
    problem = countdown_problem()
    parts = [Part(kind, line) for kind, line in (*FAILED_TRIES[:3], *FAILED_TRIES[:3])]  # type: ignore[arg-type]
    text, _, _ = trace.render(Trace((*parts, Part("think", "(1) 14, 3")), "")).partition("\n</thinking>")
    looped = Attempt("a", 1, text, 40, "length", None, False, "no_output")
    answer = "3 + (14 - 5)"
    ending = trace.render(Trace(tuple(Part(kind, line) for kind, line in RIGHT), answer))  # type: ignore[arg-type]
    right = Attempt("a", 0, ending, 20, "stop", answer, True, None)
    selected = select([problem], [right, looped], config)
    assert (selected.kept, selected.reflections) == (1, 1)
    assert lines_of(selected.rows[1].trace.parts)[:3] == FAILED_TRIES[:3]


def test_a_model_without_our_format_is_shown_examples_that_it_is_not_asked(config: RunConfig, tmp_path: Path) -> None:
    problems = training_problems(config, trained=False)
    assert len(problems.shown) == 2
    assert not {p.id for p in problems.shown} & {p.id for p in problems.asked}
    engine = Scripted(lambda id_, number: "no")
    drawn(engine, problems, config, tmp_path / "s")
    roles = [message["role"] for message in engine.prompts[0].messages]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    assert worked_examples([replace(p, trace=Trace((), "1")) for p in problems.asked], 2) == ()


def test_a_gguf_file_gets_room_for_earlier_turns_and_for_a_rows_own_system_prompt(config: RunConfig) -> None:
    """llama.cpp ends an answer where the context is full, so attempts would be cut off before their limit."""
    question = Example("q", "And doubled?", Trace((), "8"), "8")
    turns: tuple[Message, ...] = ({"role": "user", "content": "w " * 2000}, {"role": "assistant", "content": "4"})
    shown = replace(question, id="s", trace=Trace((Part("think", "t " * 1000),), "8"))
    target = cast(Target, SimpleNamespace(config=config))

    def room(asked: Example, *examples: Example) -> int:
        return targets._context(Problems((asked,), examples), target)

    alone = room(question)
    assert alone > config.evaluate.max_new_tokens + len(question.question)
    assert room(replace(question, history=turns)) >= alone + 4000
    assert room(replace(question, system="s " * 3000)) >= alone + 5000
    assert room(question, shown) >= alone + 2000


def test_checkers_refuse_problems_that_they_cannot_judge(problems: Problems, config: RunConfig) -> None:
    own = Example("q", "3 + 4?", Trace((), "7"), "7", where="f:1")
    check_checker(config.sample.model_copy(update={"checker": "task"}), problems.asked)
    for checker in ("task", "choice"):
        with pytest.raises(DataError, match=f"sample.checker is {checker}"):
            check_checker(config.sample.model_copy(update={"checker": checker}), [own])
    check_checker(config.sample.model_copy(update={"checker": "choice"}), [replace(own, answer="B")])


def test_the_exact_checker_accepts_the_same_text_alone(problems: Problems, config: RunConfig, tmp_path: Path) -> None:
    countdown = [p for p in problems.asked if p.task == "countdown"][:1]
    other = Trace((Part("think", "so"),), f"({countdown[0].answer})")
    few = Problems(tuple(countdown))
    engine = Scripted(lambda id_, number: trace.render(other))
    for checker, right in (("auto", 4), ("exact", 0)):
        chosen = config.replaced(checker=checker)
        path = drawn(engine, few, chosen, tmp_path / checker)
        assert records.SampleSummary.read(path.summary).correct == right


def test_the_command_samples_the_embedded_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--dataset", "world:words:1", "--world-samples", "10", "-k", "2", "--max-new-tokens", "40"]
    code = run_cli("sample", "tiny-base", "--out", str(tmp_path / "s"), *flags)
    attempts = (tmp_path / "s" / "attempts.jsonl").read_text().splitlines()
    assert len(attempts) == 16  # two of the ten problems are shown
    assert code in (0, 2), capsys.readouterr().err
    assert run_cli("sample", "tiny-base", "--out", str(tmp_path / "s"), *flags, "--seed", "8") == 2
    assert "other settings" in capsys.readouterr().err


def test_the_summary_is_in_plain_words(folder: SampleFolder) -> None:
    summary = records.SampleSummary.read(folder.summary)
    text = "\n".join(summary.described())
    assert f"{summary.attempts} attempts at temperature 1.0" in text
    assert "solved at least once in 1 attempt " in text
    assert "pass@1" not in text
    many = summary.model_copy(update={"surplus": 2})
    assert "2 more than one problem may have" in many.described()[-1]


def test_rounds_from_a_run_of_grpo_do_not_keep_its_learning_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[RunConfig] = []
    monkeypatch.setattr("cot_unsloth.cli.train.train_and_print", lambda config, resume: trained.append(config))
    for method, rate in (("grpo", RunConfig().train.learning_rate), ("sft", 0.0123)):
        config = load_tree({}, {"method": method, "learning_rate": "0.0123"})
        _train_in_rounds(Target(config, None, None, config), 2, None, None)
        assert (trained[-1].train.method, trained[-1].sample.rounds) == ("rft", 2)
        assert trained[-1].train.learning_rate == rate


def test_samples_of_a_run_continue_it(tmp_path: Path) -> None:
    def words(target: Target) -> str:
        return train_command(target, Path("samples/x")).partition(" train ")[2]

    run = RunDir(tmp_path / "run")
    (run.path / "adapter").mkdir(parents=True)
    (run.path / "adapter" / "adapter_config.json").write_text("{}")
    (run.path / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    base = RunConfig()
    other = base.replaced(model_name_or_path="org/other")
    of_run = f"--init-adapter {run.path} --dataset samples/x --learning-rate 0.0001"  # half of the run's
    assert words(Target(base, run.trained_weights, run, base)) == of_run
    assert words(Target(other, run.trained_weights, run, other)) == f"{of_run} --model-name-or-path org/other"
    assert words(Target(base, run.export / "a.gguf", run, base)) == of_run
    served = base.replaced(model_name_or_path="name-at-the-server")
    assert words(Target(served, None, run, base, servers=("http://x/v1",))) == of_run
    checkpoint = run.path / "checkpoints" / "checkpoint-4"
    assert words(Target(base, checkpoint, run, base)) == of_run.replace(str(run.path), str(checkpoint))
    reinforced = base.replaced(method="grpo")
    assert "--learning-rate" not in words(Target(reinforced, run.trained_weights, run, reinforced))
    formatted = load_tree(
        {},
        {"thinking_tags": "think", "trace_layout": "sequential", "system_prompt": "Think.", "chat_template": "chatml"},
    )
    assert words(Target(formatted, run.trained_weights, run, formatted)) == (
        f"{of_run} --thinking-tags think --trace-layout sequential --system-prompt Think. --chat-template chatml"
    )
    tags = load_tree({}, {"thinking_tags": "think"})
    assert words(Target(tags, run.trained_weights, run, tags)) == f"{of_run} --thinking-tags think"
    assert words(Target(other, None, None, other)) == "--dataset samples/x --model-name-or-path org/other"
    assert words(Target(other, Path("b.gguf"), None, other)) == "--dataset samples/x"
    full = tmp_path / "full"
    full.mkdir()
    (full / "config.json").write_text("{}")
    assert words(Target(base, full, run, base)) == f"--dataset samples/x --model-name-or-path {full}"
