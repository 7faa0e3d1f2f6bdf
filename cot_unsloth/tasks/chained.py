"""The common parts of tasks with chained steps.

A problem is a start value and numbered statements; each statement turns the current value into the next. This module
defines the problem, the canonical solution, injected errors with their corrections, and the check of a solution's steps.
A task adds only its wording.

Steps carry their number and restate the operation before computing it, because that is what small models learn from: on
chains of 8 steps a model of 0.35M parameters reached 100% with such steps, and did not learn from bare lists of states.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from cot_unsloth.core.types import Part, Trace
from cot_unsloth.tasks import task
from cot_unsloth.tasks.task import StepVerdict, Task

Operator = Literal["+", "-", "*", "/"]


@dataclass(frozen=True)
class Op:
    """One operation: `phrase` is its wording in the question, `operator number` its meaning."""

    phrase: str
    operator: Operator
    number: int

    def raw(self, value: int) -> int:
        """The result before it is reduced by the modulus.

        >>> Op("doubles them", "*", 2).raw(21)
        42
        """
        match self.operator:
            case "+":
                return value + self.number
            case "-":
                return value - self.number
            case "*":
                return value * self.number
            case "/":
                return value // self.number  # `words` draws only divisors: nothing is rounded


@dataclass(frozen=True)
class Problem(task.Problem):
    """A start value, the operations, and the question that states them."""

    task: str
    start: int
    ops: tuple[Op, ...]
    question: str
    modulus: int | None = None
    """Results are taken modulo this; None for ordinary arithmetic."""
    opening: str = ""
    """The first line of a solution, if not empty: words of the question that end in the start value.

    With it, the first step reads its operand where all other steps do: at the end of the line before.
    """

    @property
    def key(self) -> str:
        """Problems are the same if their arithmetic is, whatever the wording."""
        ops = " ".join(f"{op.operator}{op.number}" for op in self.ops)
        return f"{self.task}|{self.modulus or 0}|{self.start}|{ops}"

    def reduce(self, raw: int) -> int:
        """The state after a raw result, which the next step starts from."""
        return raw % self.modulus if self.modulus else raw

    @property
    def states(self) -> tuple[int, ...]:
        """The start value and the value after each step: `len(ops) + 1` numbers."""
        states = [self.start]
        for op in self.ops:
            states.append(self.reduce(op.raw(states[-1])))
        return tuple(states)

    @property
    def answer(self) -> str:
        """The value after the last step."""
        return str(self.states[-1])


def statement(index: int, op: Op) -> str:
    """An operation as both question and solution write it.

    >>> statement(2, Op("doubles them", "*", 2))
    '(2) doubles them'
    """
    return f"({index}) {op.phrase}"


def equation(problem: Problem, op: Op, value: int) -> str:
    """An operation with its result; with a modulus, the arrow points to the reduced value.

    >>> chain = Problem("chains", 7, (), "", modulus=11)
    >>> equation(chain, Op("add 5", "+", 5), 7)
    '7 + 5 = 12 -> 1'
    """
    raw = op.raw(value)
    return f"{value} {op.operator} {op.number} = {_result(problem, raw)}"


def _result(problem: Problem, raw: int) -> str:
    return f"{raw} -> {problem.reduce(raw)}" if problem.modulus else str(raw)


def step_line(problem: Problem, index: int, value: int) -> str:
    """Step `index` (from 1) of a solution, starting from `value`.

    >>> p = Problem("words", 24, (Op("doubles them", "*", 2),), "")
    >>> step_line(p, 1, 24)
    '(1) doubles them: 24 * 2 = 48'
    """
    op = problem.ops[index - 1]
    return f"{statement(index, op)}: {equation(problem, op, value)}"


def solve(problem: Problem, *, error_rate: float = 0.0, rng: random.Random | None = None) -> Trace:
    """The canonical solution, with an error injected at each step with probability `error_rate`.

    An injected error is a wrong result, followed at once by a reflection that says what is wrong and gives the
    corrected step; both parts are labelled `injected`. The output is always right.

    Raises:
        ValueError: `error_rate` is above 0 and there is no `rng`.
    """
    if error_rate and rng is None:
        raise ValueError("error_rate needs rng, so that the errors are seeded")
    parts = [Part("think", problem.opening)] if problem.opening else []
    for index, value in enumerate(problem.states[:-1], start=1):
        if rng is not None and rng.random() < error_rate:
            parts += error_and_correction(problem, index, value, rng)
        else:
            parts.append(Part("think", step_line(problem, index, value)))
    return Trace(tuple(parts), problem.answer)


def error_and_correction(problem: Problem, index: int, value: int, rng: random.Random) -> list[Part]:
    """A step with a wrong result and a reflection with the right one, both labelled `injected`."""
    op = problem.ops[index - 1]
    raw = op.raw(value)
    wrong = task.wrong_result(raw, rng, lambda result: problem.reduce(result) != problem.reduce(raw))
    head = f"{statement(index, op)}: {value} {op.operator} {op.number} = "
    correction = f"{value} {op.operator} {op.number} is {raw}, not {wrong}. {step_line(problem, index, value)}"
    return [
        Part("think", head + _result(problem, wrong), injected=True),
        Part("reflect", correction, injected=True),
    ]


def finish(problem: Problem, parts: Sequence[Part]) -> Trace | None:
    """See `Task.finish`. None for a wrong start value, which no step restates, and for a line after the last step.

    >>> p = Problem("words", 24, (Op("doubles them", "*", 2), Op("eats 8", "-", 8)), "")
    >>> [part.text for part in finish(p, [Part("think", "(1) doubles them: 24 * 2 = 46")]).parts]
    ['24 * 2 is 48, not 46. (1) doubles them: 24 * 2 = 48', '(2) eats 8: 48 - 8 = 40']
    >>> p = Problem("chains", 7, (Op("add 5", "+", 5),), "", modulus=11)
    >>> finish(p, [Part("think", "(1) add 5: 7 + 5 = 12")]).parts[0].text
    'The remainder is missing. (1) add 5: 7 + 5 = 12 -> 1'
    """
    index = _index_of_last(problem, parts)
    if not 1 <= index <= len(problem.ops):
        return None
    last = parts[-1].text.splitlines()[-1]
    values = list(enumerate(problem.states[:-1], start=1))
    rest = [Part("think", step_line(problem, *step)) for step in values[index:]]
    reason = _reason(problem, last, *values[index - 1])
    return Trace((Part("reflect", f"{reason} {step_line(problem, *values[index - 1])}"), *rest), problem.answer)


def _index_of_last(problem: Problem, parts: Sequence[Part]) -> int:
    """The number of the step that the last line should be; 0 if it should be the opening."""
    *before, last = [line for part in parts for line in part.text.splitlines()]
    steps = [step for line in before if (step := _STEP.search(line))]
    if steps:
        return int(steps[-1]["index"]) + 1
    return 0 if problem.opening and not before and not _STEP.search(last) else 1


def _reason(problem: Problem, line: str, index: int, value: int) -> str:
    """What is wrong with a line that should be step `index`, starting from `value`."""
    op, step = problem.ops[index - 1], _STEP.search(line)
    if step is None:
        return "That is no step."
    raw = op.raw(value)
    match _judge(problem, step, index, value):
        case "wrong_result" if int(step["raw"]) == raw and step["state"] is None:
            return "The remainder is missing."
        case "wrong_result":
            written, right = (
                (step["raw"], str(raw)) if int(step["raw"]) != raw else (step["state"], _result(problem, raw))
            )
            return f"{value} {op.operator} {op.number} is {right}, not {written}."
        case "wrong_operand":
            return f"The value before is {value}, not {step['value']}."
        case "misread":
            return f"The question says {op.phrase}."
        case _:
            return f"The next step is number {index}."


_STEP = re.compile(
    r"\((?P<index>\d+)\) (?P<phrase>[^:\n]+): "
    r"(?P<value>-?\d+) (?P<operator>[-+*/]) (?P<number>\d+) = (?P<raw>-?\d+)(?: -> (?P<state>-?\d+))?"
)


def judge_steps(problem: Problem, parts: Sequence[Part]) -> list[StepVerdict]:
    """One verdict per line of a solution, in the order of the lines.

    A line is checked against the question and against the line before it, not against the canonical solution: a step
    that continues correctly from a wrong value is right, so that one error is counted once. The corrected step in a
    reflection replaces the step before it.

    >>> p = Problem("words", 24, (Op("doubles them", "*", 2), Op("eats 8", "-", 8)), "")
    >>> wrong = Part("think", "(1) doubles them: 24 * 2 = 46")
    >>> judge_steps(p, [wrong, Part("think", "(2) eats 8: 46 - 8 = 38")])
    ['wrong_result', 'right']
    """
    verdicts: list[StepVerdict] = []
    value = before = problem.start
    reached = 0  # number of the last step
    for part in parts:
        for line in part.text.splitlines():
            step = _STEP.search(line)
            if not step and not verdicts and problem.opening and _restates_start(problem, line):
                verdicts.append("right" if line == problem.opening else "misread")
                value = before = int(line.rpartition(" ")[2])
                continue
            if not step:
                verdicts.append("unreadable")
                continue
            # Only a reflection may repeat a number; a repeated number in thinking is out of order.
            corrects = part.kind == "reflect" and int(step["index"]) == reached
            start = before if corrects else value
            index = reached if corrects else reached + 1
            verdicts.append(_judge(problem, step, index, start))
            before, value = start, _result_of(step)
            reached = index
    return verdicts


def _result_of(step: re.Match[str]) -> int:
    return int(step["state"] or step["raw"])


def _restates_start(problem: Problem, line: str) -> bool:
    """Whether a line restates the start value, correctly or not."""
    words, _, value = line.rpartition(" ")
    return words == problem.opening.rpartition(" ")[0] and value.isdecimal()


def _judge(problem: Problem, step: re.Match[str], index: int, value: int) -> StepVerdict:
    """The verdict on a line that should be step `index`, starting from `value`."""
    if int(step["index"]) != index or index > len(problem.ops):
        return "out_of_order"
    op = problem.ops[index - 1]
    if (step["phrase"], step["operator"], int(step["number"])) != (op.phrase, op.operator, op.number):
        return "misread"
    if int(step["value"]) != value:
        return "wrong_operand"
    raw = op.raw(value)
    state = step["state"] if problem.modulus else step["raw"]
    if int(step["raw"]) != raw or state is None or int(state) != problem.reduce(raw):
        return "wrong_result"
    return "right"


def corrupt_step(problem: Problem, line: str, rng: random.Random) -> str | None:
    """A step with a wrong result, which also differs from its own result; None if the line is not a step.

    >>> p = Problem("words", 24, (Op("doubles them", "*", 2),), "")
    >>> corrupt_step(p, "(1) doubles them: 24 * 2 = 48", random.Random(1))
    '(1) doubles them: 24 * 2 = 46'
    """
    step = _STEP.fullmatch(line)
    if not step or (step["operator"], step["number"]) == ("/", "0"):
        return None  # a model may well write a division by zero
    operator: Operator = step["operator"]  # type: ignore[assignment]
    right = Op("", operator, int(step["number"])).raw(int(step["value"]))
    excluded = {problem.reduce(right), problem.reduce(int(step["raw"]))}
    wrong = task.wrong_result(right, rng, lambda result: problem.reduce(result) not in excluded)
    return line[: step.start("raw")] + _result(problem, wrong)


class ChainedTask(Task[Problem]):
    """A task of chained steps; a subclass adds `name`, `default_steps` and `draw`."""

    def solve(self, problem: Problem, rng: random.Random, error_rate: float = 0.0) -> Trace:
        """See `solve`."""
        return solve(problem, error_rate=error_rate, rng=rng)

    def judge(self, problem: Problem, parts: Sequence[Part]) -> list[StepVerdict]:
        """See `judge_steps`."""
        return judge_steps(problem, parts)

    def corrupt_step(self, problem: Problem, line: str, rng: random.Random) -> str | None:
        """See `corrupt_step`."""
        return corrupt_step(problem, line, rng)

    def can_still_succeed(self, problem: Problem, parts: Sequence[Part]) -> bool:
        """Whether the remaining operations lead from the last value to the answer."""
        steps = _steps_in(parts)
        if not steps:
            return True
        reached, value = int(steps[-1]["index"]), _result_of(steps[-1])
        for op in problem.ops[reached:]:
            value = problem.reduce(op.raw(value))
        return reached <= len(problem.ops) and str(value) == problem.answer

    def finish(self, problem: Problem, parts: Sequence[Part], rng: random.Random) -> Trace | None:
        """See `finish`."""
        return finish(problem, parts)

    def output_follows(self, problem: Problem, parts: Sequence[Part], output: str) -> bool:
        """Whether the output is the result of the last step."""
        steps = _steps_in(parts)
        return bool(steps) and output.strip() == str(_result_of(steps[-1]))

    def count_steps(self, parts: Sequence[Part]) -> int:
        """Lines of thinking that are steps."""
        return len(_steps_in(part for part in parts if part.kind == "think"))


def _steps_in(parts: Iterable[Part]) -> list[re.Match[str]]:
    return [step for part in parts for line in part.text.splitlines() if (step := _STEP.search(line))]
