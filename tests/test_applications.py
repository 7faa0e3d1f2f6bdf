"""The tasks of the applications: answers recomputed independently, near misses refused, every step checked."""

from __future__ import annotations

import datetime
import random
import re
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

import pytest

from cot_unsloth import tasks
from cot_unsloth.core.types import Part
from cot_unsloth.sampling.steps import check, corrected_by_task, lines_of
from cot_unsloth.tasks.stepwise import StepwiseProblem, StepwiseTask, follow
from cot_unsloth.tasks.task import make_example

NAMES = ("conversions", "schedules", "invoices")
SEEDS = 500


def drawn(name: str) -> list[tuple[StepwiseTask[StepwiseProblem], StepwiseProblem]]:
    """One problem for each seed, of 1 to 5 steps."""
    task = tasks.TASKS[name]
    assert isinstance(task, StepwiseTask)
    return [(task, task.draw(random.Random(seed), 1 + seed % 5)) for seed in range(SEEDS)]


# In the smallest unit of each dimension, written from the definitions and not from the factors of the task.
SIZES = {
    "km": "1000000", "m": "1000", "cm": "10", "mm": "1", "mi": "1609344", "yd": "914.4", "ft": "304.8", "in": "25.4",
    "t": "1000000000", "kg": "1000000", "g": "1000", "mg": "1", "st": "224", "lb": "16", "oz": "1",
    "m3": "1000000", "L": "1000", "dL": "100", "cL": "10", "mL": "1",
    "gal": "768", "qt": "192", "pt": "96", "cup": "48", "tbsp": "3", "tsp": "1",
    "week": "604800", "day": "86400", "h": "3600", "min": "60", "s": "1",
    "km2": "10000000000", "ha": "100000000", "m2": "10000", "cm2": "1", "TB": "1000000000", "GB": "1000000", "MB": "1000", "kB": "1",
}  # fmt: skip


def size(unit: str) -> Fraction:
    over, _, per = unit.partition("/")
    return Fraction(SIZES[over]) / Fraction(SIZES[per] if per else 1)


def conversion(question: str) -> str:
    [(number, unit)] = re.findall(r"(?<!\w)(\d[\d.]*) (\S+?)(?=[.,? ])", question)
    [target] = re.findall(r"(?:to|in|shows) (\S+)[.?]", question)
    return str(Fraction(number) * size(unit) / size(target))


def schedule(question: str) -> str:
    """The answer by Python's calendar."""
    first, *lines = question.splitlines()[:-1]
    if at := re.search(r"on (\w+) (\d+):(\d+)\.", first):
        monday = datetime.datetime(2024, 1, 1)
        weekday = [f"{monday + datetime.timedelta(days=n):%A}" for n in range(7)].index(at[1])
        moment = monday + datetime.timedelta(days=weekday, hours=int(at[2]), minutes=int(at[3]))
        for line in lines:
            amount = {unit: int(number) for number, unit in re.findall(r"(\d+) (h|min)", line)}
            passed = datetime.timedelta(hours=amount.get("h", 0), minutes=amount.get("min", 0))
            moment += -passed if line.endswith(("before", "behind")) else passed
        return f"{moment:%A} {moment.hour}:{moment:%M}"
    written = re.search(r"on \w+ (\d+ \w+ \d+)\.", first)
    assert written
    date = datetime.datetime.strptime(written[1], "%d %B %Y").date()
    for line in lines:
        number, kind = re.search(r"(\d+) (business days|days|week)", line).groups()  # type: ignore[union-attr]
        for _ in range(int(number) * (7 if kind == "week" else 1)):
            date += datetime.timedelta(days=1)
            while kind == "business days" and date.weekday() > 4:
                date += datetime.timedelta(days=1)
    return f"{date:%A} {date.day} {date:%B %Y}"


def invoice(question: str) -> str:
    """The total in decimals, rounded half up."""
    total = Decimal(0)
    for line in question.splitlines():
        if item := re.search(r"(\d+) x .+ at ([\d.]+)$", line):
            total += int(item[1]) * Decimal(item[2])
        elif change := re.search(r"(discount|tax) of (\d+)%", line):
            amount = (total * Decimal(change[2]) / 100).quantize(Decimal("0.01"), ROUND_HALF_UP)
            total += -amount if change[1] == "discount" else amount
    return f"{total:.2f}"


RECOMPUTED = {"conversions": conversion, "schedules": schedule, "invoices": invoice}


@pytest.mark.parametrize("name", NAMES)
def test_answers_agree_with_an_independent_calculation(name: str) -> None:
    for _, problem in drawn(name):
        if problem.answer == "not possible":
            assert "they cannot be converted" in problem.opening
            continue
        own = RECOMPUTED[name](problem.question)
        answer = problem.answer.partition(" ")[0] if name == "conversions" else problem.answer
        assert (Fraction(answer) == Fraction(own)) if name == "conversions" else answer == own, problem.question


@pytest.mark.parametrize("name", NAMES)
def test_every_solution_passes_its_own_check(name: str) -> None:
    for task, problem in drawn(name):
        trace = task.solve(problem, random.Random(1))
        assert set(task.judge(problem, trace.parts)) == {"right"}
        assert task.count_steps(trace.parts) == problem.length
        assert task.same_answer(problem.answer, trace.output)
        assert task.can_still_succeed(problem, trace.parts)
        assert task.output_follows(problem, trace.parts, trace.output) or not problem.length


@pytest.mark.parametrize("name", NAMES)
def test_injected_errors_are_wrong_and_their_corrections_right(name: str) -> None:
    injected = 0
    for task, problem in drawn(name):
        trace = task.solve(problem, random.Random(2), 0.4)
        for part, verdict in zip(trace.parts, task.judge(problem, trace.parts), strict=True):
            wrong = part.injected and part.kind == "think"
            assert verdict == ("wrong_result" if wrong else "right"), part.text
        injected += trace.injected
        assert trace.output == problem.answer
    assert injected > SEEDS / 4


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_result_changes_the_answer_and_the_task_can_correct_it(name: str) -> None:
    """As `sample` does with a model's own wrong steps; the last step is wrong too."""
    for task, problem in drawn(name):
        example = make_example(task, problem, split="train", seed=1, error_rate=0, where=f"world:{name}#1")
        lines = lines_of(example.trace.parts)
        steps = [at for at, (_, line) in enumerate(lines) if line.startswith("(")]
        if not steps:
            continue
        at = random.Random(problem.id).choice(steps)
        corrupted = task.corrupt_step(problem, lines[at][1], random.Random(problem.id))
        assert corrupted not in (None, lines[at][1])
        checked = check(example, [*lines[:at], ("think", corrupted)])
        assert checked is not None
        assert (checked.wrong[-1], checked.unnoticed) == (True, at)
        written = corrected_by_task(example, [*lines[:at], ("think", corrupted), *lines[at + 1 :]])
        assert written is not None, corrupted
        assert [part.injected for part in written.parts if part.injected] == [True]
        assert written.output == problem.answer


@pytest.mark.parametrize("name", NAMES)
def test_near_misses_are_refused(name: str) -> None:
    """An answer with one digit, its unit or its day changed is wrong."""
    for task, problem in drawn(name):
        gold = problem.answer
        places = [place for place, character in enumerate(gold) if character.isdigit()]
        for place in places:
            if name == "conversions" and place > gold.index(" "):
                continue  # the digit of m2
            other = f"{gold[:place]}{(int(gold[place]) + 1) % 10}{gold[place + 1 :]}"
            assert not task.same_answer(gold, other), other
            assert not task.same_answer(gold, f"{gold} or {other}")
        assert not task.same_answer(gold, "")


@pytest.mark.parametrize(
    ("name", "gold", "answer", "right"),
    [
        ("conversions", "2500 g", "2,500 grams", True),
        ("conversions", "2500 g", "2.5 kg = 2500 g.", True),
        ("conversions", "2500 g", "2500", True),
        ("conversions", "2500 g", "2.5 kg", False),
        ("conversions", "2500 g", "2500 kg", False),
        ("conversions", "2500 g", "-2500 g", False),
        ("conversions", "600 L/min", "600 litres per minute", True),
        ("conversions", "600 L/min", "600 L/h", False),
        ("conversions", "not possible", "This is impossible: metres measure length.", True),
        ("conversions", "not possible", "12 kg", False),
        ("conversions", "12 kg", "not possible", False),
        ("schedules", "Tuesday 2:25", "Tuesday, 02:25", True),
        ("schedules", "Tuesday 2:25", "2:25 a.m. on Tuesday", True),
        ("schedules", "Tuesday 14:25", "Tue 2:25 PM", True),
        ("schedules", "Tuesday 14:25", "Tuesday 2:25", False),
        ("schedules", "Tuesday 2:25", "Wednesday 2:25", False),
        ("schedules", "Tuesday 2:25", "Tuesday 2:25, not Wednesday 2:25", False),
        ("schedules", "Tuesday 2:00", "Tuesday at 2 am", True),
        ("schedules", "Sunday 7 June 2026", "Sunday, June 7, 2026", True),
        ("schedules", "Sunday 7 June 2026", "Sun 7th of June", True),
        ("schedules", "Sunday 7 June 2026", "2026-06-07, a Sunday", True),
        ("schedules", "Sunday 7 June 2026", "Sunday 7 June 2027", False),
        ("schedules", "Sunday 7 June 2026", "Sunday 7 July 2026", False),
        ("schedules", "Sunday 7 June 2026", "Saturday 7 June 2026", False),
        ("invoices", "1326.70", "$1,326.70", True),
        ("invoices", "1326.70", "The right total is 1326.70 EUR, with 8% tax", True),
        ("invoices", "1326.70", "1326.7", True),
        ("invoices", "1326.70", "1326.71", False),
        ("invoices", "1326.70", "1326.70, not 1362.70", False),
        ("invoices", "1326.70", "no", False),
    ],
)
def test_answers_are_read_in_the_forms_that_people_write(name: str, gold: str, answer: str, right: bool) -> None:
    assert tasks.TASKS[name].same_answer(gold, answer) is right


def test_the_check_of_a_step_names_the_error() -> None:
    task = tasks.TASKS["invoices"]
    problem = next(
        problem
        for _, problem in drawn("invoices")
        if problem.length > 2 and "discount" in problem.question.split("(3)")[1]
    )
    first, second, third, *_ = (part.text for part in task.solve(problem, random.Random(1)).parts)
    value = second.rpartition(" ")[2]

    def verdict(*lines: str) -> str:
        return str(task.judge(problem, [Part("think", line) for line in lines])[-1])

    assert verdict(first, second, third) == "right"
    assert verdict(first, third) == "out_of_order"
    assert verdict(first, second, third.replace("discount", "tax")) == "misread"
    assert verdict(first, second, third.replace(f": {value}", f": {value}1")) == "wrong_operand"
    assert verdict(first, second, third + "0") == "unreadable"
    assert verdict(first, second, third[:-1] + str((int(third[-1]) + 1) % 10)) == "wrong_result"
    assert verdict(first, second, "so the discount is small") == "unreadable"


@pytest.mark.parametrize("name", NAMES)
def test_what_a_model_may_write_is_judged_without_an_error(name: str) -> None:
    """Lines of one problem, cut, doubled and shuffled, and read as those of another."""
    rng = random.Random(3)
    problems = drawn(name)
    for (task, problem), (_, other) in zip(problems, reversed(problems), strict=True):
        lines = [part.text for part in task.solve(other, rng, 0.3).parts]
        rng.shuffle(lines)
        parts = [Part(rng.choice(("think", "reflect")), line[: rng.randint(1, 200)]) for line in lines * 2]
        assert len(list(follow(problem, parts))) == len(parts)
        task.can_still_succeed(problem, parts)
        task.finish(problem, parts, rng)
        task.output_follows(problem, parts, "7")
        task.same_answer(problem.answer, rng.choice(lines))
