"""Tasks: correct solutions, splits without overlap, and step-by-step checks."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import pytest

from cot_unsloth import config, tasks
from cot_unsloth.core.errors import ConfigError
from cot_unsloth.core.types import Example, Part, Split, Trace
from cot_unsloth.tasks.chained import Op, Problem, judge_steps, solve, step_line
from cot_unsloth.tasks.countdown import Target
from cot_unsloth.tasks.task import Problem as AnyProblem
from cot_unsloth.tasks.task import StepVerdict, Task, make_example
from cot_unsloth.tasks.words import LARGEST

SPLITS: tuple[Split, ...] = get_args(Split)

SPEC = "world:chains,words"
CHAINED = ("chains", "words")


def problems(name: str, n: int = 300) -> list[Problem]:
    rng = random.Random(5)
    task = tasks.TASKS[name]
    return [task.draw(rng, rng.randint(1, 8)) for _ in range(n)]


def targets(n: int = 300, steps: int = 2) -> list[Target]:
    rng = random.Random(5)
    return [tasks.TASKS["countdown"].draw(rng, steps) for _ in range(n)]


@pytest.mark.parametrize("name", CHAINED)
def test_the_solver_agrees_with_an_independent_calculation(name: str) -> None:
    for problem in problems(name):
        expression = str(problem.start)
        for op in problem.ops:
            expression = f"({expression} {op.operator} {op.number})"
        value = eval(expression)
        expected = value % problem.modulus if problem.modulus else value
        assert float(problem.answer) == expected
        assert solve(problem).output == problem.answer


@pytest.mark.parametrize("name", CHAINED)
def test_every_step_of_a_solution_is_accepted(name: str) -> None:
    for problem in problems(name):
        verdicts = judge_steps(problem, solve(problem).parts)
        assert verdicts == ["right"] * (len(problem.ops) + bool(problem.opening))


def test_a_restated_start_value_is_checked() -> None:
    problem = problems("chains")[0]
    start = Part("think", problem.opening)
    assert problem.question.startswith(f"{problem.opening} and")
    other = Part("think", f"Start with {(problem.start + 1) % 11}")
    continued = Part("think", step_line(problem, 1, (problem.start + 1) % 11))
    assert judge_steps(problem, [start]) == ["right"]
    assert judge_steps(problem, [other, continued]) == [
        "misread",
        "right",
    ]  # a step is checked against the line before it
    assert judge_steps(problem, [start, start])[1] == "unreadable"
    assert judge_steps(problems("words")[0], [start]) == ["unreadable"]


def test_values_of_the_word_task_are_integers_in_range() -> None:
    for problem in problems("words", 1000):
        assert all(1 <= state <= LARGEST for state in problem.states)
        assert all(s % op.number == 0 for s, op in zip(problem.states, problem.ops, strict=False) if op.operator == "/")


@pytest.mark.parametrize("name", tasks.TASKS)
def test_splits_do_not_overlap_for_any_seed_or_difficulty(name: str) -> None:
    keys: dict[str, set[str]] = {split: set() for split in SPLITS}
    difficulties = ("2", "3") if name == "countdown" else ("2-3", "4")
    for split, seed, steps in itertools.product(SPLITS, (1, 2), difficulties):
        examples = tasks.generate(f"world:{name}:{steps}", split=split, n=100, seed=seed)
        keys[split] |= {example.id for example in examples}
    assert all(not keys[a] & keys[b] for a, b in itertools.combinations(SPLITS, 2))


def test_the_wording_does_not_change_the_split_of_a_problem() -> None:
    story = problems("words", 1)[0]
    other = replace(story, question="in other words", ops=tuple(replace(op, phrase="x") for op in story.ops))
    assert other.split == story.split


def test_generation_is_seeded_and_interleaved() -> None:
    one, two, other = (tasks.generate(SPEC, split="train", n=40, seed=seed) for seed in (1, 1, 2))
    assert one == two
    assert one != other
    assert [e.task for e in one[:4]] == ["chains", "words", "chains", "words"]


def test_one_task_at_two_difficulties_repeats_no_problem() -> None:
    examples = tasks.generate("world:chains:2,chains:2,chains:1-3", split="train", n=300, seed=1)
    assert len({e.id for e in examples}) == len({e.question for e in examples}) == 300


@pytest.mark.parametrize("name", CHAINED)
def test_injected_errors_are_labelled_corrected_and_judged(name: str) -> None:
    rng = random.Random(3)
    injected = steps = 0
    for problem in problems(name):
        trace = solve(problem, error_rate=0.2, rng=rng)
        verdicts = judge_steps(problem, trace.parts)
        assert trace.output == problem.answer
        for part, verdict in zip(trace.parts, verdicts, strict=True):
            wrong = part.injected and part.kind == "think"
            assert verdict == ("wrong_result" if wrong else "right")
            assert part.injected == (wrong or part.kind == "reflect")
        injected += trace.injected
        steps += len(problem.ops)
    assert 0.17 < injected / steps < 0.23


def test_an_error_rate_changes_the_solutions_and_not_the_problems() -> None:
    clean, corrupted = (
        tasks.generate("world:chains,words,countdown", split="train", n=60, seed=1, error_rate=rate)
        for rate in (0.0, 0.3)
    )
    assert [(e.id, e.question) for e in clean] == [(e.id, e.question) for e in corrupted]
    assert sum(e.trace.injected for e in corrupted) > sum(e.trace.injected for e in clean)


def test_clean_solutions_come_first() -> None:
    curriculum = tasks.generate("world:chains", split="train", n=40, seed=1, error_rate=0.5, clean_first=0.25)
    assert not any(e.trace.injected for e in curriculum[:10])
    assert sum(e.trace.injected > 0 for e in curriculum[10:]) > 25
    without = tasks.generate("world:chains", split="train", n=40, seed=1, error_rate=0.5)
    assert curriculum[10:] == without[10:]


def test_injected_errors_without_a_seed_are_refused() -> None:
    with pytest.raises(ValueError, match="rng"):
        solve(problems("chains", 1)[0], error_rate=0.1)


TWO_STEPS = Problem("words", 24, (Op("doubles them", "*", 2), Op("eats 8", "-", 8)), "")


@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        ("(1) doubles them: 24 * 2 = 48", "right"),
        ("(2) doubles them: 24 * 2 = 48", "out_of_order"),
        ("(1) eats 8: 24 - 8 = 16", "misread"),
        ("(1) doubles them: 24 * 3 = 72", "misread"),
        ("(1) doubles them: 42 * 2 = 84", "wrong_operand"),
        ("(1) doubles them: 24 * 2 = 46", "wrong_result"),
        ("then she doubles them", "unreadable"),
    ],
)
def test_the_step_check_names_the_error(line: str, verdict: str) -> None:
    assert judge_steps(TWO_STEPS, [Part("think", line)]) == [verdict]


def test_steps_past_the_end_are_out_of_order() -> None:
    parts = [*solve(TWO_STEPS).parts, Part("think", "(3) eats 8: 40 - 8 = 32")]
    assert judge_steps(TWO_STEPS, parts) == ["right", "right", "out_of_order"]


def test_the_name_of_a_task_may_hold_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tasks.TASKS, "base_16", tasks.TASKS["chains"])
    (spec,) = tasks.parse_spec("world:base_16:2-3")
    assert spec.steps == (2, 3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("world:chain", "did you mean 'chains'"),
        ("world:Chains", "there is no task 'Chains'"),
        ("world:Chains", "did you mean 'chains'"),
        ("world:base64", "there is no task 'base64'"),
        ("world:chains:8-4", "steps must run from 1"),
        ("world:chains:many", "is not a task"),
        ("world:chains:1", "fewer than"),
        ("world:countdown:4", "at most 3 steps"),
    ],
)
def test_an_invalid_task_specification_is_explained(spec: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tasks.generate(spec, split="train", n=5000, seed=1)
    assert message in str(caught.value)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_countdown_solutions_agree_with_an_independent_calculation(steps: int) -> None:
    task = tasks.TASKS["countdown"]
    rng = random.Random(1)
    misses = 0
    for problem in targets(100, steps):
        trace = task.solve(problem, rng, 0.2)
        used = sorted(int(n) for n in re.findall(r"\d+", trace.output))
        assert eval(trace.output) == problem.target
        assert used == sorted(problem.numbers)
        assert task.same_answer(problem.answer, trace.output)
        tries = task.count_tries(trace.parts)
        assert tries == 1 + sum(part.text.endswith(f"is not {problem.target}.") for part in trace.parts)
        misses += tries - 1
        verdicts = iter(task.judge(problem, trace.parts))
        for part in trace.parts:
            # The operations of a failed try are right, though it misses the target.
            slip = part.injected and part.kind == "think" and eval(part.text.split(": ")[1].replace("=", "==")) is False
            assert next(verdicts) == ("wrong_result" if slip else "right")
    assert misses > 50


def test_countdown_alone_has_enough_problems_for_the_default_run() -> None:
    """As many as the embedded base is trained on, and 600 held out."""
    rows = config.load().data.world_samples
    assert len(tasks.problems("world:countdown", split="train", n=rows, seed=1)) == rows
    assert len(tasks.problems("world:countdown", split="test", n=600, seed=1)) == 600


COUNTDOWN = Target((7, 9, 6), 57)


@pytest.mark.parametrize(
    ("lines", "verdicts"),
    [
        (["(1) 7, 9, 6: 9 * 7 = 63", "(2) 63, 6: 63 - 6 = 57"], ["right", "right"]),
        (["(1) 7, 9, 5: 9 * 7 = 63"], ["misread"]),
        (["(1) 7, 9, 6: 8 * 7 = 56"], ["wrong_operand"]),
        (["(1) 7, 9, 6: 9 * 9 = 81"], ["wrong_operand"]),
        (["(1) 7, 9, 6: 9 * 7 = 64"], ["wrong_result"]),
        (["(2) 63, 6: 63 - 6 = 57"], ["out_of_order"]),
        (["(1) 7, 9, 6: 9 * 7 = 63", "(2) 63, 9: 63 - 9 = 54"], ["right", "misread"]),
        (["so 9 times 7"], ["unreadable"]),
    ],
)
def test_the_check_of_a_countdown_line_names_the_error(lines: list[str], verdicts: list[str]) -> None:
    parts = [Part("think", line) for line in lines]
    assert tasks.TASKS["countdown"].judge(COUNTDOWN, parts) == verdicts


def test_a_reflection_on_a_countdown_try_is_checked() -> None:
    missed = [Part("think", "(1) 7, 9, 6: 9 * 6 = 54\n(2) 54, 7: 54 + 7 = 61")]
    hit = [Part("think", "(1) 7, 9, 6: 9 * 7 = 63\n(2) 63, 6: 63 - 6 = 57")]
    judge = tasks.TASKS["countdown"].judge
    for parts, text, verdict in (
        (missed, "61 is not 57.", "right"),
        (missed, "60 is not 57.", "wrong_result"),
        (missed, "61 is not 58.", "wrong_result"),
        (hit, "57 is not 57.", "wrong_result"),
        (missed[:0], "61 is not 57.", "wrong_result"),
    ):
        assert judge(COUNTDOWN, [*parts, Part("reflect", text)])[-1] == verdict


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("(9 * 7) - 6", True),
        ("7*9-6", True),
        ("7 × 9 − 6 = 57.", True),
        ("(9 * 7) - 6 = 58", False),
        ("57", False),
        ("9 * 7 - 5 - 1", False),
        ("63 - 6", False),
        ("(9 * 7) - 6 or 57", False),
        ("9 ** 7 - 6", False),
        ("__import__('os')", False),
        ("(" * 150 + "9", False),
        ("", False),
    ],
)
def test_any_expression_that_reaches_the_target_is_right(answer: str, right: bool) -> None:
    assert tasks.TASKS["countdown"].same_answer("(7 * 9) - 6", answer) is right


@pytest.mark.parametrize(
    ("task", "gold", "answer", "right"),
    [
        ("countdown", "(9 * 6) + 7", r"\boxed{9 \times 6 + 7}", True),
        ("countdown", "(9 * 6) + 7", r"\boxed{9\times6+7}", True),
        ("countdown", "(9 * 6) + 7", r"\left[9\times6\right]+7", True),
        ("countdown", "(9 * 6) + 7", r"$9 \cdot 6 + 7 = 61$", True),
        ("countdown", "(9 * 6) + 7", "61 = 9 x 6 + 7", True),
        ("countdown", "(9 * 6) + 7", "9 * 6 + 7 = 54 + 7 = 61", True),
        ("countdown", "(9 * 6) + 7", r"\boxed{54 + 7}", False),
        ("countdown", "(9 * 6) + 7", "9 * 6 = 54 + 7 = 61", False),
        ("countdown", "(9 * 6) + 7", r"\boxed{9 \times 6 + 7 = 62}", False),
        ("conversions", "3500 m", r"\boxed{3500 \text{ m}}", True),
        ("conversions", "3500 m", "$3500$ m", True),
        ("conversions", "3500 m", r"3.5\times10^3\text{ m}", True),
        ("conversions", "3500 m", r"3.5 \times 10^{2} m", False),
        ("conversions", "3500 m", r"3\,500 m", True),
        ("conversions", "0.025 m", r"2.5 × 10⁻² m", True),
        ("conversions", "5 km/h", "5 km·h⁻¹", True),
        ("conversions", "5 km/h", "5 km·s⁻¹", False),
        ("conversions", "not possible", "The units are not compatible.", True),
        ("conversions", "5 km/h", r"5 \frac{\text{km}}{\text{h}}", True),
        ("conversions", "3500 m", r"\boxed{3500 \text{ cm}}", False),
        ("conversions", "3 m3", r"3 \text{ m}^{3}", True),
        ("conversions", "3 m", r"3 \text{ m}^{3}", False),
        ("conversions", "0.5 m", ".5 m", True),
        ("conversions", "not possible", "The units are incompatible.", True),
        ("conversions", "not possible", "It can’t be converted.", True),
        ("conversions", "3500 m", "not possible", False),
        ("schedules", "Tuesday 14:05", r"Tuesday, 2:05\,\text{p.m.}", True),
        ("schedules", "Tuesday 14:05", r"Tuesday, 2:05\,\text{a.m.}", False),
        ("invoices", "1326.70", r"\$1{,}326.70", True),
        ("chains", "4", r"4 \pmod{11}", True),
        ("chains", "4", "5 (mod 11)", False),
    ],
)
def test_right_answers_in_latex_are_right(task: str, gold: str, answer: str, right: bool) -> None:
    """As models write them that are not trained on the task: otherwise bases would be scored below their ability."""
    from cot_unsloth.evaluation import score

    example = Example("1", "?", Trace((), gold), gold, task, where=f"world:{task}#0")
    assert score.is_right(example, answer) is right


def test_scoring_uses_the_equality_rule_of_the_task() -> None:
    from cot_unsloth.evaluation import score

    example = tasks.generate("world:countdown", split="test", n=1, seed=1)[0]
    assert score.is_right(example, f"{example.answer} = {eval(example.answer)}")
    assert not score.is_right(example, str(eval(example.answer)))
    own = replace(example, where="mine.jsonl:1", answer="12", task="data")
    assert score.is_right(own, "12.0")


def test_a_row_that_sample_made_keeps_the_rule_of_its_task(tmp_path: Path) -> None:
    """As a row of a file, any text of the same value was a right answer of countdown, and 2:05 PM none of schedules."""
    from cot_unsloth.config import DataConfig
    from cot_unsloth.data import load_examples
    from cot_unsloth.data.layouts.own_samples import row_of
    from cot_unsloth.evaluation import score

    drawn = tasks.generate("world:countdown,schedules", split="train", n=6, seed=1)
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row_of(example)) + "\n" for example in drawn))
    loaded = load_examples(DataConfig(dataset=str(file)), seed=1, eval_samples=0, eval_seed=1)
    assert loaded.columns is not None
    assert not loaded.columns.unused
    for example in loaded.examples:
        assert score.is_right(example, example.answer)
        if example.task == "countdown":
            assert not score.is_right(example, str(eval(example.answer)))
    assert {example.task for example in loaded.examples} == {"countdown", "schedules"}


@dataclass(frozen=True)
class Sum(AnyProblem):
    a: int
    b: int
    task: str = "sums"

    @property
    def question(self) -> str:  # type: ignore[override]
        return f"How much is {self.a} + {self.b}?"

    @property
    def key(self) -> str:
        return f"{self.a} {self.b}"

    @property
    def answer(self) -> str:
        return str(self.a + self.b)


class Sums(Task[Sum]):
    """The smallest possible task: only what the protocol requires."""

    name = "sums"
    default_steps = (1, 1)

    def draw(self, rng: random.Random, steps: int) -> Sum:
        return Sum(rng.randint(1, 99), rng.randint(1, 99))

    def solve(self, problem: Sum, rng: random.Random, error_rate: float = 0.0) -> Trace:
        return Trace((Part("think", f"(1) {problem.a} + {problem.b} = {problem.answer}"),), problem.answer)

    def judge(self, problem: Sum, parts: Sequence[Part]) -> list[StepVerdict]:
        right = f"(1) {problem.a} + {problem.b} = {problem.answer}"
        return ["right" if line == right else "wrong_result" for part in parts for line in part.text.splitlines()]

    def corrupt_step(self, problem: Sum, line: str, rng: random.Random) -> str | None:
        head, equals, result = line.partition("= ")
        return f"{head}{equals}{int(result) + 1}" if equals else None


def test_a_task_needs_only_four_methods() -> None:
    task, rng = Sums(), random.Random(1)
    problem = task.draw(rng, 1)
    example = make_example(task, problem, split=problem.split, seed=1, error_rate=0.0, where="world:sums#train-0")
    parts = example.trace.parts
    wrong = [Part("think", task.corrupt_step(problem, parts[0].text, rng) or "")]
    assert task.judge(problem, parts) == ["right"]
    assert (task.reflection_due(problem, parts), task.reflection_due(problem, wrong)) == ([False], [True])
    assert (task.can_still_succeed(problem, parts), task.can_still_succeed(problem, wrong)) == (True, False)
    assert (task.output_follows(problem, parts, example.answer), task.output_follows(problem, parts, "x")) == (
        True,
        False,
    )
    assert (task.count_steps(parts), task.count_tries(parts), task.same_answer("1", "1")) == (1, None, None)
