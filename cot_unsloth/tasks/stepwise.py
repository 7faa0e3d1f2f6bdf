"""What tasks have in common whose numbered steps give amounts, quantities with units, or times, and not whole numbers.

A step restates what the question says, writes an expression over the values of earlier steps, and gives its result:
`(2) discount of 10%: 27.50 - 10% = 27.50 - 2.75 -> 24.75`. Intermediate results come before arrows; the text after the last
arrow is the value of the step. This module writes solutions, injects errors and their corrections, and checks the lines of a
solution. A task adds its problems: what each step is, and how it goes wrong. `chained` does the same for chains of integers.
"""

from __future__ import annotations

import abc
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

from cot_unsloth.core.types import Part, Trace
from cot_unsloth.tasks import task
from cot_unsloth.tasks.task import StepVerdict, Task

ARROW = " -> "
MOST_DIGITS = 40
"""A longer number is not an answer; Python refuses to read one of more than 4,300 digits."""
_LINE = re.compile(r"\((?P<index>\d+)\) (?P<label>[^:\n]+): (?P<expression>\S.*?) = (?P<result>\S.*)$")


def written_number(text: str) -> Fraction | None:
    """A number as an answer has it, with or without commas; None if it is too long to be one.

    >>> written_number("1,326.70"), written_number("9" * 5000)
    (Fraction(13267, 10), None)
    """
    return Fraction(text.replace(",", "")) if len(text) <= MOST_DIGITS else None


@dataclass(frozen=True)
class Step:
    """One step, computed from values as they were written."""

    label: str
    """What it takes from the question; without a colon."""
    template: str
    """Its expression, with `{}` for each value that it takes from the steps before."""
    operands: tuple[str, ...]
    """Those values."""
    result: str
    """The right result of this expression, with intermediate results before arrows."""

    @property
    def expression(self) -> str:
        """What stands before the equals sign."""
        return self.template.format(*self.operands)

    def line(self, index: int, result: str | None = None) -> str:
        """The step as a solution writes it.

        >>> Step("10% discount", "{} - 10%", ("27.50",), "27.50 - 2.75 -> 24.75").line(2)
        '(2) 10% discount: 27.50 - 10% = 27.50 - 2.75 -> 24.75'
        """
        return f"({index}) {self.label}: {self.expression} = {self.result if result is None else result}"


def value_of(result: str) -> str:
    """The value of a step: its result without intermediate ones."""
    return result.rpartition(ARROW)[2]


class StepwiseProblem(task.Problem, abc.ABC):
    """A problem that is solved by a fixed number of steps."""

    opening: str = ""
    """The first line of a solution, before its first step; empty if there is none."""

    @property
    @abc.abstractmethod
    def length(self) -> int:
        """How many steps a solution has."""

    @abc.abstractmethod
    def step(self, index: int, values: Sequence[str]) -> Step:
        """Step `index` (from 1), from the values of the steps before, each of which `reads` accepted."""

    @abc.abstractmethod
    def reads(self, index: int, value: str) -> bool:
        """Whether a text, right or wrong, can be the value of step `index`."""

    @abc.abstractmethod
    def output(self, values: Sequence[str]) -> str:
        """The answer that follows from the values of all steps."""

    @abc.abstractmethod
    def wrong_results(self, index: int, step: Step) -> Sequence[str]:
        """Results as typical errors give them, all different from the right one and of the same form."""

    @abc.abstractmethod
    def reason(self, index: int, step: Step, result: str) -> str:
        """A sentence that says what is wrong with a result of this step."""

    @property
    def answer(self) -> str:
        """The output after the right steps."""
        return self.output(self.values_from([]))

    def values_from(self, values: Sequence[str]) -> list[str]:
        """Values, continued with right steps to the end."""
        values = list(values)
        while len(values) < self.length:
            values.append(value_of(self.step(len(values) + 1, values).result))
        return values


P = TypeVar("P", bound=StepwiseProblem)


def nearby(value: int, slips: Sequence[int]) -> list[int]:
    """What errors of the given sizes make of a value, never below zero."""
    return [value + slip for size in slips for slip in (-size, size) if value + slip >= 0]


def follow(problem: StepwiseProblem, parts: Sequence[Part]) -> Iterator[tuple[StepVerdict, list[str]]]:
    """The verdict on each line, and the values after it, as they were written.

    A step is checked against the question and the values before it, right or wrong, so that one error is counted once. The
    step in a reflection may replace the one before it.
    """
    values: list[str] = []
    is_first = True
    for part in parts:
        for text in part.text.splitlines():
            match, opens = _LINE.search(text), is_first and bool(problem.opening)
            is_first = False
            if match is None:
                yield ("right" if text == problem.opening else "misread") if opens else "unreadable", list(values)
                continue
            corrects = part.kind == "reflect" and int(match["index"]) == len(values)
            before = values[:-1] if corrects else values
            verdict = _judge(problem, match, before)
            if verdict not in ("out_of_order", "unreadable"):
                values = [*before, value_of(match["result"])]
            yield verdict, list(values)


def _judge(problem: StepwiseProblem, match: re.Match[str], values: Sequence[str]) -> StepVerdict:
    """The verdict on a line that should be the step after those with these values."""
    index = len(values) + 1
    if int(match["index"]) != index or index > problem.length:
        return "out_of_order"
    if not problem.reads(index, value_of(match["result"])):
        return "unreadable"
    step = problem.step(index, values)
    if match["label"] != step.label:
        return "misread"
    if match["expression"] != step.expression:
        holes = "(.+)".join(re.escape(text) for text in step.template.split("{}"))
        return "wrong_operand" if re.fullmatch(holes, match["expression"]) else "misread"
    return "right" if match["result"] == step.result else "wrong_result"


class StepwiseTask(Task[P]):
    """A task of such problems; a subclass adds `name`, `default_steps`, `draw` and perhaps `same_answer`."""

    def solve(self, problem: P, rng: random.Random, error_rate: float = 0.0) -> Trace:
        """See `Task.solve`; an injected error is corrected at once, and the reflection says what was wrong."""
        parts = [Part("think", problem.opening)] if problem.opening else []
        values: list[str] = []
        for index in range(1, problem.length + 1):
            step = problem.step(index, values)
            values.append(value_of(step.result))
            if rng.random() < error_rate:
                wrong = rng.choice(problem.wrong_results(index, step))
                correction = f"{problem.reason(index, step, wrong)} {step.line(index)}"
                parts += [Part("think", step.line(index, wrong), True), Part("reflect", correction, True)]
            else:
                parts.append(Part("think", step.line(index)))
        return Trace(tuple(parts), problem.answer)

    def judge(self, problem: P, parts: Sequence[Part]) -> list[StepVerdict]:
        """See `follow`."""
        return [verdict for verdict, _ in follow(problem, parts)]

    def corrupt_step(self, problem: P, line: str, rng: random.Random) -> str | None:
        """A step of the problem with a wrong result; None if the line is not one, or does not follow from right steps."""
        match = _LINE.fullmatch(line)
        if match is None or not 1 <= int(match["index"]) <= problem.length:
            return None
        index = int(match["index"])
        step = problem.step(index, problem.values_from([])[: index - 1])
        if (match["label"], match["expression"]) != (step.label, step.expression):
            return None
        return step.line(index, rng.choice([w for w in problem.wrong_results(index, step) if w != match["result"]]))

    def can_still_succeed(self, problem: P, parts: Sequence[Part]) -> bool:
        """Whether right steps lead from the last values to the answer."""
        values = _last_values(problem, parts)
        return problem.output(problem.values_from(values)) == problem.answer

    def finish(self, problem: P, parts: Sequence[Part], rng: random.Random) -> Trace | None:
        """See `Task.finish`; None for a wrong opening, and for a line after the last step."""
        *before, last = [Part(part.kind, line) for part in parts for line in part.text.splitlines()]
        values = _last_values(problem, before)
        match, index = _LINE.search(last.text), len(values) + 1
        if index > problem.length or (match is None and not before and problem.opening):
            return None
        step = problem.step(index, values)
        reflection = f"{_reason(problem, match, values)} {step.line(index)}"
        values.append(value_of(step.result))
        rest: list[Part] = []
        while len(values) < problem.length:
            step = problem.step(len(values) + 1, values)
            rest.append(Part("think", step.line(len(values) + 1)))
            values.append(value_of(step.result))
        return Trace((Part("reflect", reflection), *rest), problem.output(values))

    def output_follows(self, problem: P, parts: Sequence[Part], output: str) -> bool:
        """Whether the output is what the values of all steps give."""
        values = _last_values(problem, parts)
        return len(values) == problem.length and output.strip() == problem.output(values)

    def count_steps(self, parts: Sequence[Part]) -> int:
        """Lines of thinking that are steps."""
        return sum(
            bool(_LINE.search(line)) for part in parts if part.kind == "think" for line in part.text.splitlines()
        )


def _last_values(problem: StepwiseProblem, parts: Sequence[Part]) -> list[str]:
    return next(reversed([values for _, values in follow(problem, parts)]), [])


def _reason(problem: StepwiseProblem, match: re.Match[str] | None, values: Sequence[str]) -> str:
    """What is wrong with a line that should be the step after those with these values."""
    index = len(values) + 1
    if match is None:
        return "That is no step."
    step = problem.step(index, values)
    match _judge(problem, match, values):
        case "wrong_result":
            return problem.reason(index, step, match["result"])
        case "wrong_operand":
            return f"It should start from {' and '.join(step.operands)}."
        case "misread":
            return f"The question says {step.label}."
        case _:
            return f"The next step is number {index}."
