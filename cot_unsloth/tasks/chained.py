"""What the worlds of chained steps share.

A problem is a start value and numbered statements, each of which turns the value before it into
the next. This room owns the problem itself, the canonical solution (each step carries its number
and restates what it reads before it computes), injected errors with their mends, and the judge of
a solution's steps. A world adds only its statements and words.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cot_unsloth.core.types import Part, Trace
from cot_unsloth.tasks import task
from cot_unsloth.tasks.task import StepVerdict

Operator = Literal["+", "-", "*", "/"]


@dataclass(frozen=True)
class Op:
    """One operation: `phrase` is how the question says it, `operator number` what it means."""

    phrase: str
    operator: Operator
    number: int

    def raw(self, value: int) -> int:
        """The plain result, before a world reduces it.

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
                return value // self.number


@dataclass(frozen=True)
class Problem(task.Problem):
    """A start value, the operations in order, and the question that tells them."""

    task: str
    start: int
    ops: tuple[Op, ...]
    question: str
    modulus: int | None = None
    """Results are taken modulo this; None leaves them as they are."""
    opening: str = ""
    """The words of the question, ending in the start value, that a solution begins by restating; none where empty.

    The first step then finds what it reads where every other finds it: at the end of the line before it.
    """

    @property
    def key(self) -> str:
        """What makes two problems the same problem: the arithmetic, not the wording."""
        ops = " ".join(f"{op.operator}{op.number}" for op in self.ops)
        return f"{self.task}|{self.modulus or 0}|{self.start}|{ops}"

    def reduce(self, raw: int) -> int:
        """A raw result as the state that the next step reads."""
        return raw % self.modulus if self.modulus else raw

    @property
    def states(self) -> tuple[int, ...]:
        """The start and the value after each step, `len(ops) + 1` numbers."""
        states = [self.start]
        for op in self.ops:
            states.append(self.reduce(op.raw(states[-1])))
        return tuple(states)

    @property
    def answer(self) -> str:
        """The value after the last step."""
        return str(self.states[-1])


def statement(index: int, op: Op) -> str:
    """How question and solution alike write one operation.

    >>> statement(2, Op("doubles them", "*", 2))
    '(2) doubles them'
    """
    return f"({index}) {op.phrase}"


def equation(problem: Problem, op: Op, value: int) -> str:
    """One operation carried out; with a modulus the arrow shows the value modulo it.

    >>> chain = Problem("chains", 7, (), "", modulus=11)
    >>> equation(chain, Op("add 5", "+", 5), 7)
    '7 + 5 = 12 -> 1'
    """
    raw = op.raw(value)
    return f"{value} {op.operator} {op.number} = {_result(problem, raw)}"


def _result(problem: Problem, raw: int) -> str:
    return f"{raw} -> {problem.reduce(raw)}" if problem.modulus else str(raw)


def step_line(problem: Problem, index: int, value: int) -> str:
    """Step `index` (from 1) of the solution, read from state `value`.

    >>> p = Problem("words", 24, (Op("doubles them", "*", 2),), "")
    >>> step_line(p, 1, 24)
    '(1) doubles them: 24 * 2 = 48'
    """
    op = problem.ops[index - 1]
    return f"{statement(index, op)}: {equation(problem, op, value)}"


def solve(problem: Problem, *, error_rate: float = 0.0, rng: random.Random | None = None) -> Trace:
    """The canonical solution, with errors injected at `error_rate` per step.

    An injected error is a wrong result, followed at once by a reflection that says what was wrong
    and gives the mended step; both parts are labelled `injected`. The answer is always right.

    Raises:
        ValueError: errors are asked for without a source of randomness.
    """
    if error_rate and rng is None:
        raise ValueError("error_rate needs rng, so that the errors are seeded")
    parts = [Part("think", problem.opening)] if problem.opening else []
    for index, value in enumerate(problem.states[:-1], start=1):
        right = step_line(problem, index, value)
        if rng is not None and rng.random() < error_rate:
            parts += error_and_mend(problem, index, value, rng)
        else:
            parts.append(Part("think", right))
    return Trace(tuple(parts), problem.answer)


def error_and_mend(problem: Problem, index: int, value: int, rng: random.Random) -> list[Part]:
    """A step with a wrong result, and the reflection that gives the right one; both labelled `injected`."""
    op = problem.ops[index - 1]
    raw = op.raw(value)
    wrong = task.wrong_result(raw, rng, lambda made: problem.reduce(made) != problem.reduce(raw))
    head = f"{statement(index, op)}: {value} {op.operator} {op.number} = "
    mend = f"{value} {op.operator} {op.number} is {raw}, not {wrong}. {step_line(problem, index, value)}"
    return [
        Part("think", head + _result(problem, wrong), injected=True),
        Part("reflect", mend, injected=True),
    ]


_STEP = re.compile(
    r"\((?P<index>\d+)\) (?P<phrase>[^:\n]+): "
    r"(?P<value>-?\d+) (?P<operator>[-+*/]) (?P<number>\d+) = (?P<raw>-?\d+)(?: -> (?P<state>-?\d+))?"
)


def judge_steps(problem: Problem, parts: Sequence[Part]) -> list[StepVerdict]:
    """One verdict for each line of a solution, each against the truth and the line before it.

    `misread`: the statement or its operation is not the question's. `wrong_operand`: it does not
    start from the value the line before it ended in (a later mend replaces it). A reflection's
    mended step counts as the line before the next. Verdicts stand in the order of the lines.

    >>> p = Problem("words", 24, (Op("doubles them", "*", 2), Op("eats 8", "-", 8)), "")
    >>> wrong = Part("think", "(1) doubles them: 24 * 2 = 46")
    >>> judge_steps(p, [wrong, Part("think", "(2) eats 8: 46 - 8 = 38")])
    ['wrong_result', 'right']
    """
    verdicts: list[StepVerdict] = []
    value, reached = problem.start, 0
    before = value
    for part in parts:
        for line in part.text.splitlines():
            found = _STEP.search(line)
            if not found and not verdicts and problem.opening and _opens(problem, line):
                verdicts.append("right" if line == problem.opening else "misread")
                value = before = int(line.rpartition(" ")[2])
                continue
            if not found:
                verdicts.append("unreadable")
                continue
            mends = part.kind == "reflect" and int(found["index"]) == reached
            start = before if mends else value
            index = reached if mends else reached + 1
            verdicts.append(_judge(problem, found, index, start))
            before, value = start, _ended_in(found)
            reached = index
    return verdicts


def _ended_in(step: re.Match[str]) -> int:
    return int(step["state"] or step["raw"])


def _opens(problem: Problem, line: str) -> bool:
    """Whether a line restates the start, be it rightly or not."""
    words, _, value = line.rpartition(" ")
    return words == problem.opening.rpartition(" ")[0] and value.isdecimal()


def _judge(problem: Problem, found: re.Match[str], index: int, value: int) -> StepVerdict:
    if int(found["index"]) != index or index > len(problem.ops):
        return "out_of_order"
    op = problem.ops[index - 1]
    if (found["phrase"], found["operator"], int(found["number"])) != (op.phrase, op.operator, op.number):
        return "misread"
    if int(found["value"]) != value:
        return "wrong_operand"
    raw = op.raw(value)
    state = found["state"] if problem.modulus else found["raw"]
    if int(found["raw"]) != raw or state is None or int(state) != problem.reduce(raw):
        return "wrong_result"
    return "right"


def spoil(problem: Problem, line: str, rng: random.Random) -> str | None:
    """A step with a wrong result, whatever it read and whether its own was right; None if it is no step.

    >>> p = Problem("words", 24, (Op("doubles them", "*", 2),), "")
    >>> spoil(p, "(1) doubles them: 24 * 2 = 48", random.Random(1))
    '(1) doubles them: 24 * 2 = 46'
    """
    found = _STEP.fullmatch(line)
    if not found or (found["operator"], found["number"]) == ("/", "0"):
        return None
    operator: Operator = found["operator"]  # type: ignore[assignment]
    right = Op("", operator, int(found["number"])).raw(int(found["value"]))
    same = {problem.reduce(right), problem.reduce(int(found["raw"]))}
    wrong = task.wrong_result(right, rng, lambda made: problem.reduce(made) not in same)
    return line[: found.start("raw")] + _result(problem, wrong)


class ChainedWorld:
    """What the worlds of chained steps do alike."""

    most_steps = 100

    def solve(self, problem: Problem, rng: random.Random, error_rate: float = 0.0) -> Trace:
        """See `solve`."""
        return solve(problem, error_rate=error_rate, rng=rng)

    def judge(self, problem: Problem, parts: Sequence[Part]) -> list[StepVerdict]:
        """See `judge_steps`."""
        return judge_steps(problem, parts)

    def due(self, problem: Problem, parts: Sequence[Part]) -> list[bool]:
        """After a line that is wrong."""
        return [verdict != "right" for verdict in judge_steps(problem, parts)]

    def heads_right(self, problem: Problem, parts: Sequence[Part]) -> bool:
        """Whether the operations that are left lead from the value reached to the answer."""
        lines = [found for part in parts for line in part.text.splitlines() if (found := _STEP.search(line))]
        if not lines:
            return True
        reached, value = int(lines[-1]["index"]), _ended_in(lines[-1])
        for op in problem.ops[reached:]:
            value = problem.reduce(op.raw(value))
        return reached <= len(problem.ops) and str(value) == problem.answer

    def concludes(self, problem: Problem, parts: Sequence[Part], output: str) -> bool:
        """Whether the output is the value that the last step ended in."""
        lines = [found for part in parts for line in part.text.splitlines() if (found := _STEP.search(line))]
        return bool(lines) and output.strip() == str(_ended_in(lines[-1]))

    def steps(self, parts: Sequence[Part]) -> int:
        """Lines that are steps."""
        lines = (line for part in parts if part.kind == "think" for line in part.text.splitlines())
        return sum(_STEP.search(line) is not None for line in lines)

    def spoil(self, problem: Problem, line: str, rng: random.Random) -> str | None:
        """See `spoil`."""
        return spoil(problem, line, rng)

    def tries(self, parts: Sequence[Part]) -> None:
        """A recipe is gone through once."""

    def same(self, gold: str, answer: str) -> None:
        """A number, compared by the general rules."""
