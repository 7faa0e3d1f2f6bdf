"""Countdown: make a target from a few numbers, each used once, with +, - and *.

A search, where the other worlds are recipes: no rule tells the next step, so a solution proposes,
evaluates, sees that it missed, says so in a reflection, and tries another way. What makes it a
test of self-correction is that every miss is the solver's own business to notice.

A try is one line for each operation. A line has its number, the numbers that are left, and the
operation, larger number first: `(1) 7, 9, 6: 9 * 6 = 54`. Any expression that uses each number
once and makes the target is a right answer.
"""

from __future__ import annotations

import ast
import functools
import itertools
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from cot_unsloth.core.types import Part, Trace
from cot_unsloth.tasks.task import Problem, StepVerdict, wrong_result

LARGEST = 200
"""No number on the way is larger."""
NUMBERS = range(2, 16)
MOST_MISSES = 4
"""Most failed tries in a solution; each further one has the chance `MISS`."""
MISS = 0.4

Operator = Literal["+", "-", "*"]
Step = tuple[int, Operator, int]
Try = tuple[Step, ...]


@dataclass(frozen=True)
class Target(Problem):
    """Numbers, and what is to be made of them."""

    numbers: tuple[int, ...]
    target: int
    task: str = "countdown"

    @property
    def question(self) -> str:  # type: ignore[override]
        """How it is put."""
        *most, last = map(str, self.numbers)
        return f"Make {self.target} from {', '.join(most)} and {last}, using each number once, with +, - and *."

    @property
    def key(self) -> str:
        """The order of the numbers does not matter."""
        return f"{self.task}|{' '.join(map(str, sorted(self.numbers)))}|{self.target}"

    @property
    def ways(self) -> tuple[tuple[Try, ...], ...]:
        """Every way of using the numbers, grouped by what it makes."""
        return tuple(_ways(tuple(sorted(self.numbers))).values())

    @property
    def solutions(self) -> tuple[Try, ...]:
        """Every way that makes the target."""
        return _ways(tuple(sorted(self.numbers)))[self.target]

    @property
    def answer(self) -> str:
        """The first of the solutions, as an expression."""
        return expression(self.solutions[0])


def result(step: Step) -> int:
    """What an operation makes.

    >>> result((9, "*", 6))
    54
    """
    a, operator, b = step
    return a + b if operator == "+" else a - b if operator == "-" else a * b


def left_after(numbers: Sequence[int], step: Step) -> tuple[int, ...]:
    """The result, then the numbers not used, in their order.

    >>> left_after((7, 9, 6), (9, "*", 6))
    (54, 7)
    """
    rest = list(numbers)
    rest.remove(step[0])
    rest.remove(step[2])
    return (result(step), *rest)


@functools.cache
def _ways(numbers: tuple[int, ...]) -> dict[int, tuple[Try, ...]]:
    """All tries over (sorted) numbers, by what they make."""
    if len(numbers) == 1:
        return {numbers[0]: ((),)}
    found: dict[int, set[Try]] = {}
    for way in _tries(numbers):
        found.setdefault(result(way[-1]), set()).add(way)
    return {target: tuple(sorted(ways)) for target, ways in found.items()}


def _tries(numbers: tuple[int, ...]) -> Iterator[Try]:
    if len(numbers) == 1:
        yield ()
        return
    for i, j in itertools.combinations(range(len(numbers)), 2):
        a, b = max(numbers[i], numbers[j]), min(numbers[i], numbers[j])
        for operator in ("+", "-", "*"):
            step: Step = (a, operator, b)
            if 1 <= result(step) <= LARGEST:
                for rest in _tries(left_after(numbers, step)):
                    yield (step, *rest)


def expression(way: Try) -> str:
    """A try in one line; every operation but the last stands in brackets.

    >>> expression(((9, "*", 6), (54, "+", 7)))
    '(9 * 6) + 7'
    """
    made: dict[int, list[str]] = {}
    text = ""
    for step in way:
        a, operator, b = step
        sides = [made[n].pop() if made.get(n) else str(n) for n in (a, b)]
        text = f"{sides[0]} {operator} {sides[1]}"
        made.setdefault(result(step), []).append(f"({text})")
    return text


def line(index: int, numbers: Sequence[int], step: Step, made: int | None = None) -> str:
    """Operation `index` (from 1) of a try, read from the numbers that are left.

    >>> line(1, (7, 9, 6), (9, "*", 6))
    '(1) 7, 9, 6: 9 * 6 = 54'
    """
    a, operator, b = step
    made = result(step) if made is None else made
    return f"({index}) {', '.join(map(str, numbers))}: {a} {operator} {b} = {made}"


def verdict_line(made: int, target: int) -> str:
    """What a reflection says of a try that missed."""
    return f"{made} is not {target}."


class Countdown:
    """Countdown with `steps + 1` numbers."""

    name = "countdown"
    default_steps = (2, 2)
    most_steps = 3

    def draw(self, rng: random.Random, steps: int) -> Target:
        """One problem: numbers from 2 to 15, and a target that some way of using them all makes."""
        numbers = tuple(rng.choice(NUMBERS) for _ in range(steps + 1))
        return Target(numbers, rng.choice(sorted(_ways(tuple(sorted(numbers))))))

    def solve(self, problem: Target, rng: random.Random, error_rate: float = 0.0) -> Trace:
        """Some failed tries, each with a reflection that says so, and one that makes the target.

        A search fails on its way whatever `error_rate` is; that adds wrong sums, which are mended.
        """
        ways = _ways(tuple(sorted(problem.numbers)))
        wrong = [way for target, found in ways.items() if target != problem.target for way in found]
        misses = 0
        while misses < min(MOST_MISSES, len(wrong)) and rng.random() < MISS:
            misses += 1
        parts: list[Part] = []
        for way in rng.sample(wrong, misses):
            parts += [Part("think", line(*read), injected=True) for read in _replay(problem, way)]
            parts.append(Part("reflect", verdict_line(result(way[-1]), problem.target), injected=True))
        way = rng.choice(problem.solutions)
        for index, numbers, step in _replay(problem, way):
            if rng.random() < error_rate:
                parts += error_and_mend(index, numbers, step, rng)
            else:
                parts.append(Part("think", line(index, numbers, step)))
        return Trace(tuple(parts), expression(way))

    def judge(self, problem: Target, parts: Sequence[Part]) -> list[StepVerdict]:
        """One verdict for each line; a first operation begins a new try.

        A reflection is right where it says truly what was made and that it is not the target, or
        mends the line before it.
        """
        return [verdict for verdict, _ in self._followed(problem, parts)]

    def _followed(self, problem: Target, parts: Sequence[Part]) -> Iterator[tuple[StepVerdict, tuple[int, ...]]]:
        """The verdict on each line, and the numbers that are left after it, as it was written."""
        numbers, before, index = problem.numbers, problem.numbers, 0
        for part in parts:
            for text in part.text.splitlines():
                missed = _MISSED.fullmatch(text)
                if missed:
                    ended = len(numbers) == 1 and int(missed["made"]) == numbers[0] != problem.target
                    yield "right" if ended and int(missed["target"]) == problem.target else "wrong_result", numbers
                    continue
                found = _LINE.search(text)
                if not found:
                    yield "unreadable", numbers
                    continue
                at = int(found["index"])
                mends = part.kind == "reflect" and at == index
                begins = at == 1 and not mends
                start = before if mends else problem.numbers if begins else numbers
                if not (mends or begins or at == index + 1):
                    yield "out_of_order", numbers
                    continue
                verdict, after = _judge(found, start)
                yield verdict, after
                before, numbers, index = start, after, at

    def due(self, problem: Target, parts: Sequence[Part]) -> list[bool]:
        """After an operation that is wrong, and after one that ends a try which missed."""
        kinds = [part.kind for part in parts for _ in part.text.splitlines()]
        return [
            verdict != "right" or (kind == "think" and len(left) == 1 and left[0] != problem.target)
            for kind, (verdict, left) in zip(kinds, self._followed(problem, parts), strict=True)
        ]

    def heads_right(self, problem: Target, parts: Sequence[Part]) -> bool:
        """Whether the target can be made from the numbers that are left."""
        left = [problem.numbers, *(numbers for _, numbers in self._followed(problem, parts))][-1]
        return len(left) <= len(problem.numbers) and problem.target in _ways(tuple(sorted(left)))

    def concludes(self, problem: Target, parts: Sequence[Part], output: str) -> bool:
        """Whether the output is an expression of what the last try made."""
        left = [numbers for _, numbers in self._followed(problem, parts)]
        said = _evaluate(output)
        return bool(left) and said is not None and left[-1] == (said[0],)

    def steps(self, parts: Sequence[Part]) -> int:
        """Operations of the last try."""
        lines = (line for part in parts if part.kind == "think" for line in part.text.splitlines())
        numbers = [int(found["index"]) for found in map(_LINE.search, lines) if found]
        return next((back for back, number in enumerate(reversed(numbers), start=1) if number == 1), len(numbers))

    def spoil(self, problem: Target, line: str, rng: random.Random) -> str | None:
        """An operation with a wrong result, whether its own was right or not; None if it is none."""
        found = _LINE.fullmatch(line)
        if not found:
            return None
        operator: Operator = found["operator"]  # type: ignore[assignment]
        right = result((int(found["a"]), operator, int(found["b"])))
        same = {right, int(found["made"])}
        return line[: found.start("made")] + str(wrong_result(right, rng, lambda made: made not in same))

    def same(self, gold: str, answer: str) -> bool:
        """An expression over the same numbers, each used once, that makes the same.

        >>> [Countdown().same("(9 * 6) + 7", answer) for answer in ("7 + 6*9 = 61", "54 + 7", "61")]
        [True, False, False]
        """
        wanted, got = _evaluate(gold), _evaluate(answer)
        return wanted is not None and wanted == got

    def tries(self, parts: Sequence[Part]) -> int:
        """How often a solution begins: lines numbered (1), a reflection's mends left out."""
        lines = (text for part in parts if part.kind == "think" for text in part.text.splitlines())
        return sum(found["index"] == "1" for found in map(_LINE.search, lines) if found)


_MISSED = re.compile(r"(?P<made>\d+) is not (?P<target>\d+)\.")
_LINE = re.compile(
    r"\((?P<index>\d+)\) (?P<numbers>\d+(?:, \d+)*): (?P<a>\d+) (?P<operator>[-+*]) (?P<b>\d+) = (?P<made>\d+)$"
)


def _judge(found: re.Match[str], numbers: tuple[int, ...]) -> tuple[StepVerdict, tuple[int, ...]]:
    """The verdict on a line that starts from `numbers`, and what it says is left."""
    listed = tuple(map(int, found["numbers"].split(", ")))
    a, b, made = int(found["a"]), int(found["b"]), int(found["made"])
    operator: Operator = found["operator"]  # type: ignore[assignment]
    if Counter(listed) != Counter(numbers):
        return "misread", listed
    if Counter((a, b)) - Counter(numbers):
        return "wrong_operand", numbers
    after = left_after(listed, (a, operator, b))
    return "right" if after[0] == made else "wrong_result", (made, *after[1:])


def _replay(problem: Target, way: Try) -> Iterator[tuple[int, tuple[int, ...], Step]]:
    """Each operation of a try, with its number and the numbers that it finds left."""
    numbers = problem.numbers
    for index, step in enumerate(way, start=1):
        yield index, numbers, step
        numbers = left_after(numbers, step)


def error_and_mend(index: int, numbers: Sequence[int], step: Step, rng: random.Random) -> list[Part]:
    """A line with a wrong result, and the reflection that gives the right one; both labelled `injected`."""
    right = result(step)
    wrong = wrong_result(right, rng)
    a, operator, b = step
    mend = f"{a} {operator} {b} is {right}, not {wrong}. {line(index, numbers, step)}"
    return [
        Part("think", line(index, numbers, step, wrong), injected=True),
        Part("reflect", mend, injected=True),
    ]


def _evaluate(text: str) -> tuple[int, tuple[int, ...]] | None:
    """What an expression makes and the numbers it uses; None if it is none. "= 61" may follow if true."""
    left, equals, right = text.strip().rstrip(".").replace("\u00d7", "*").replace("\u2212", "-").partition("=")
    if len(left) > 200 or not re.fullmatch(r"[\d\s()+*-]+", left):
        return None
    try:
        value, used = _reckon(ast.parse(left.strip(), mode="eval").body)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    if equals and right.strip() != str(value):
        return None
    return value, tuple(sorted(used))


def _reckon(node: ast.expr) -> tuple[int, list[int]]:
    match node:
        case ast.Constant(value=int(number)):
            return number, [number]
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() as op, right=right):
            (a, first), (b, second) = _reckon(left), _reckon(right)
            made = a + b if isinstance(op, ast.Add) else a - b if isinstance(op, ast.Sub) else a * b
            return made, first + second
    raise ValueError("not an expression of +, - and *")
