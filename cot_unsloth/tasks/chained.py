"""What every world of chained steps shares.

A problem is a start value and numbered statements, each of which turns the value before it into
the next. This room owns the problem itself, the split it belongs to, the canonical solution
(each step carries its number and restates what it reads before it computes), injected errors
with their mends, and the judge of a solution's steps. A world adds only its statements and words.

Splits are disjoint by construction: the split is a function (a hash) of the start value and the
operations alone, so no problem can stand in two splits, whatever the seed, theme or wording.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from cot_unsloth.values import Example, Part, Split, Trace

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
class Problem:
    """A start value, the operations in order, and the question that tells them."""

    task: str
    start: int
    ops: tuple[Op, ...]
    question: str
    modulus: int | None = None
    """Results are taken modulo this; None leaves them as they are."""

    @property
    def key(self) -> str:
        """What makes two problems the same problem: the arithmetic, not the wording."""
        ops = " ".join(f"{op.operator}{op.number}" for op in self.ops)
        return f"{self.task}|{self.modulus or 0}|{self.start}|{ops}"

    @property
    def id(self) -> str:
        """The key, shortened."""
        return f"{self.task}-{hashlib.sha256(self.key.encode()).hexdigest()[:12]}"

    @property
    def split(self) -> Split:
        """Tenths by hash: one for test, one for validation, eight for training."""
        bucket = int.from_bytes(hashlib.sha256(self.key.encode()).digest()[:8], "big") % 10
        return "test" if bucket == 0 else "validation" if bucket == 1 else "train"

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


class World(Protocol):
    """A family of verifiable problems."""

    name: str
    default_steps: tuple[int, int]
    """Fewest and most steps of a problem where the user names no difficulty."""

    def draw(self, rng: random.Random, steps: int) -> Problem:
        """One random problem of `steps` steps, of whatever split."""
        ...


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
    parts: list[Part] = []
    for index, value in enumerate(problem.states[:-1], start=1):
        right = step_line(problem, index, value)
        if rng is not None and rng.random() < error_rate:
            parts += _error_and_mend(problem, index, value, rng)
        else:
            parts.append(Part("think", right))
    return Trace(tuple(parts), problem.answer)


def _error_and_mend(problem: Problem, index: int, value: int, rng: random.Random) -> list[Part]:
    op = problem.ops[index - 1]
    raw = op.raw(value)
    offsets = [d for d in (-10, -3, -2, -1, 1, 2, 3, 10) if raw + d >= 0]
    wrong = raw + rng.choice([d for d in offsets if problem.reduce(raw + d) != problem.reduce(raw)])
    head = f"{statement(index, op)}: {value} {op.operator} {op.number} = "
    mend = f"{value} {op.operator} {op.number} is {raw}, not {wrong}. {step_line(problem, index, value)}"
    return [
        Part("think", head + _result(problem, wrong), injected=True),
        Part("reflect", mend, injected=True),
    ]


StepVerdict = Literal["right", "unreadable", "out_of_order", "misread", "wrong_operand", "wrong_result"]

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
            if not found:
                verdicts.append("unreadable")
                continue
            mends = part.kind == "reflect" and int(found["index"]) == reached
            start = before if mends else value
            index = reached if mends else reached + 1
            verdicts.append(_judge(problem, found, index, start))
            before, value = start, int(found["state"] or found["raw"])
            reached = index
    return verdicts


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


def examples(
    world: World,
    *,
    split: Split,
    n: int,
    seed: int,
    steps: tuple[int, int] | None = None,
    error_rate: float = 0.0,
    taken: Collection[str] = (),
) -> list[Example]:
    """`n` distinct examples of one split, the same for the same arguments, none with a `taken` id.

    Raises:
        ValueError: the world holds fewer than `n` such problems (within reason of trying).
    """
    low, high = steps or world.default_steps
    rng = random.Random(f"{world.name}:{low}-{high}|{split}|{seed}")
    found: dict[str, Example] = {}
    for _ in range(1000 + 200 * n):
        if len(found) == n:
            break
        problem = world.draw(rng, rng.randint(low, high))
        if problem.split != split or problem.id in found or problem.id in taken:
            continue
        where = f"world:{world.name}:{low}-{high}#{split}-{len(found)}"
        trace = solve(problem, error_rate=error_rate, rng=rng)
        found[problem.id] = Example(problem.id, problem.question, trace, problem.answer, world.name, split, where)
    if len(found) < n:
        raise ValueError(f"world {world.name} with {low}-{high} steps has fewer than {n} {split} problems")
    return list(found.values())
