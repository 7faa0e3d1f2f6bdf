"""The applications: their tasks and hand-written traces, with answers recomputed independently and near misses refused."""

from __future__ import annotations

import calendar
import datetime
import random
import re
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from helpers import run_cli

from cot_unsloth import tasks
from cot_unsloth.config import DataConfig, load
from cot_unsloth.core.results import Scorecard
from cot_unsloth.core.types import Example, Part
from cot_unsloth.data import load_examples
from cot_unsloth.sampling.steps import check, corrected_by_task, lines_of
from cot_unsloth.storage.records import read_jsonl
from cot_unsloth.storage.run_folder import RunDir
from cot_unsloth.tasks.stepwise import StepwiseProblem, StepwiseTask, follow
from cot_unsloth.tasks.task import make_example
from cot_unsloth.training import checks

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
            moment += -passed if line.endswith(("earlier", "behind")) else passed
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


ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples" / "applications"

# The answers to the hand-written questions, computed from the questions and not from the solutions; None where there is nothing to
# compute. Amounts and quantities as expressions.
ANSWERS: dict[str, list[str | None]] = {
    "conversions": [
        "2.25 * 240", "6.4 * 350 / 100", "5400 / 18", "1.5 * 24 * 3600", "50 * 1.609", "3200 / 40", "1500 * 8 / 25 / 60",
        "250 / 125", "18 * 15 * 5 / 120", None, "50 * 0.3 * 0.3", None, "round((350 - 32) / 1.8)", "90 / 3.6", "12 * 3.6",
        "71 * 2.54", "2190000 / (365 * 24)", "2 * 4.5 * 2.4 / 12", "round(750000 / 3600, 1)", "round(3.80 / 3.785, 2)",
    ],
    "schedules": [
        "clock('21:50', 565)", "clock('17:20', -40 - 525)", "day('Wednesday', 100)", "date(2026, 1, 26, 14)", "date(2024, 2, 28, 30)",
        "date(2026, 7, 16, business=5)", "clock('18:30', 430 + 300)", "clock('9:00', -480)", "clock('20:15', 157)",
        "clock('7:10', -205)", "(D(2026, 5, 19) - D(2026, 3, 3)).days", "date(2026, 6, 5, 56)", "date(2026, 10, 4, -10)",
        "day('Saturday', 1) + ' ' + clock('23:30', 225)", "day('Monday', 3) + ' ' + clock('7:00', 0)", "calendar.isleap(2100)",
        "sum(D(2026, 1, 6) + T(14 * n) < D(2026, 4, 1) for n in range(20))", "3 * 2.5", "clock('18:00', -145)",
        "day('Friday', 3) + ' ' + clock('9:00', 360)",
    ],
    "invoices": [
        "3 * 3.2 + 2 * 2.4", "2 * 24.99 + 19.9", "(12 * 65 + 40) * 1.2", "180 * 0.75 * 0.9", "86.4 * 1.1 / 4", "119 - 119 / 1.19",
        "250 * 0.08 + 50 * 1.75 + 6.9", "1240.5 + 980 + 1105.75", "50 - 37.85", "4 * 79.5 * 0.95 + 240", "3 * 112 + 2 * 3 * 2.5",
        "342 * 0.31 + 11.9", "1450 * 0.98", "89.9 + 45.05 - 20", "min(8.7 / 6, 5.96 / 4)", "round((7.5 * 48 + 2 * 18.7) * 1.19, 2)",
        "round(100 * (69.34 / 64.8 - 1))", "12 * 1.99", "840 * 18 / (14 + 18 + 10)", "320 / 1.25 + 3.5",
    ],
}  # fmt: skip
_IN_WORDS = {"yes": "True", "no": "False"}


def compute(expression: str) -> str:
    """The value of an expression of ANSWERS, as text."""

    def day(name: str, days: int) -> str:
        return calendar.day_name[(list(calendar.day_name).index(name) + days) % 7]

    def clock(start: str, minutes: int) -> str:
        hour, minute = map(int, start.split(":"))
        end = (60 * hour + minute + minutes) % 1440
        return f"{end // 60}:{end % 60:02d}"

    def date(year: int, month: int, number: int, days: int = 0, business: int = 0) -> str:
        end = datetime.date(year, month, number) + datetime.timedelta(days=days)
        while business:
            end += datetime.timedelta(days=1)
            business -= end.weekday() < 5
        return f"{end:%A} {end.day} {end:%B %Y}"

    names = {"day": day, "clock": clock, "date": date, "calendar": calendar, "D": datetime.date}
    value = eval(expression, names | {"T": lambda days: datetime.timedelta(days=days)})
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def as_clock(answer: str) -> str:
    """A duration as the hours and minutes of a clock; anything else as it is."""
    match = re.fullmatch(r"(\d+) h (\d+) min", answer)
    return f"{match[1]}:{match[2]}" if match else answer


def traces(name: str) -> list[Example]:
    settings = DataConfig(dataset=str(FOLDER / name / "traces.jsonl"))
    loaded = load_examples(settings, seed=0, eval_samples=0, eval_seed=0)
    assert not loaded.rejects
    return loaded.examples


@pytest.mark.parametrize("name", NAMES)
def test_the_hand_written_answers_are_right(name: str) -> None:
    rows = sorted(traces(name), key=lambda row: int(row.where.rpartition(":")[2]))
    for row, expression in zip(rows, ANSWERS[name], strict=True):
        if expression is None:
            assert row.answer in ("yes", "not possible")
            continue
        expected, answer = compute(expression), as_clock(_IN_WORDS.get(row.answer, row.answer))
        if re.match(r"\$?\d+\.?\d*\D*$", answer):  # an amount or a quantity, whatever its unit
            assert float(re.sub(r"[^\d.]|²|³", "", answer)) == pytest.approx(float(expected), abs=1e-6), row.question
        else:
            assert expected.endswith(answer), row.question  # a date may leave out its weekday


@pytest.mark.parametrize("name", NAMES)
def test_the_hand_written_steps_compute_and_half_of_the_rows_reflect(name: str) -> None:
    """Every `a + b = c` outside a wrong step is true to the digits shown, and each reflection follows a wrong step without loss."""
    equations = 0
    for row in traces(name):
        for number, part in enumerate(row.trace.parts):
            following = row.trace.parts[number + 1 : number + 2]
            corrected = bool(following) and following[0].kind == "reflect"
            assert part.injected == (part.kind == "think" and corrected), row.question
            for left, right in re.findall(r"(\d[\d.]*(?: [-+*/] \d[\d.]*)+) = (\d[\d.]*\d|\d)", part.text):
                places = len(right.partition(".")[2])
                true = abs(eval(left) - float(right)) <= 0.5 * 10**-places + 1e-9
                equations += 1
                assert true or part.injected, f"{left} = {right}"
    assert equations >= (15 if name == "schedules" else 35)
    assert sum(any(part.kind == "reflect" for part in row.trace.parts) for row in traces(name)) == 10


@pytest.mark.parametrize("name", NAMES)
def test_the_hand_written_rows_have_no_fault(name: str) -> None:
    findings = checks.check_target(str(FOLDER / name / "traces.jsonl"), {})
    assert {finding.name for finding in findings if finding.level != "note"} == {"few_steps", "few_problems"}


@pytest.mark.parametrize("name", NAMES)
def test_the_questions_to_try_have_right_answers(name: str) -> None:
    """Seven are held-out problems of the task."""
    rows = read_jsonl(FOLDER / name / "questions.jsonl")
    assert len(rows) == 10
    spec = f"world:{name}:{'1-2' if name == 'schedules' else '1-3'}"
    assert (FOLDER / name / "tiny-cpu.yaml").read_text(encoding="utf-8").count(spec) == 1
    problems = {problem.question: problem for problem in tasks.problems(spec, split="test", n=7, seed=77)}
    for row in rows[:7]:
        assert row["answer"] == problems.pop(row["question"]).answer
    assert all(tasks.TASKS[name].same_answer(row["answer"], row["answer"]) for row in rows)


def test_the_second_stage_continues_the_first() -> None:
    for name in NAMES:
        first, second = (load(FOLDER / name / f"{stage}.yaml") for stage in ("start", "qwen2.5-7b"))
        assert second.train.init_adapter == first.train.run_dir != second.train.run_dir
        assert Path(first.data.dataset) == (FOLDER / name / "traces.jsonl").relative_to(ROOT)
        assert (second.model, second.lora) == (first.model, first.lora)


def test_the_tasks_train_and_are_scored(tmp_path: Path) -> None:
    few = [
        "--world-samples",
        "24",
        "--max-steps",
        "2",
        "--eval-samples",
        "6",
        "--arms",
        "tuned",
        "--max-new-tokens",
        "12",
    ]
    dataset = "world:conversions:1-2,schedules:1,invoices:1-2"
    options = ["--dataset", dataset, "--world-error-rate", "0.3", "--gguf", "", "--run-dir", str(tmp_path / "run")]
    assert run_cli("train", *options, *few) == 0
    card = Scorecard.read(RunDir(tmp_path / "run").scorecard)
    assert {name: cell.n for name, cell in card.arms["tuned"].by_task.items()} == dict.fromkeys(NAMES, 2)
