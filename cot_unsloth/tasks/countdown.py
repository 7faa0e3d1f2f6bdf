"""Countdown: make a target from a few numbers, each used once, with +, - and *.

Unlike the other tasks this one is a search: no rule gives the next step. A solution tries a combination, sees that it
missed the target, says so in a reflection, and tries another. It tests self-correction because nothing but the solver
notices a miss.

A try has one line per operation: its number, the numbers that are left, and the operation with the larger number first,
as in `(1) 7, 9, 6: 9 * 6 = 54`. Every expression that uses each number once and makes the target is a right answer.
"""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from cot_unsloth.core.types import Part, Trace
from cot_unsloth.tasks.expression_answers import evaluate
from cot_unsloth.tasks.task import Problem, StepVerdict, Task, wrong_result

LARGEST = 200
"""Largest allowed intermediate result."""
NUMBERS = range(2, 16)
MOST_MISSES = 4
"""Most failed tries in a solution; each further one is added with probability `MISS`."""
MISS = 0.4

Operator = Literal["+", "-", "*"]
Step = tuple[int, Operator, int]
Try = tuple[Step, ...]


@dataclass(frozen=True)
class Target(Problem):
    """Numbers, and the target to make from them."""

    numbers: tuple[int, ...]
    target: int
    task: str = "countdown"

    @property
    def question(self) -> str:
        """The question, with the numbers in the order in which they were drawn."""
        *most, last = map(str, self.numbers)
        return f"Make {self.target} from {', '.join(most)} and {last}, using each number once, with +, - and *."

    @property
    def key(self) -> str:
        """The order of the numbers does not matter."""
        return f"{self.task}|{' '.join(map(str, sorted(self.numbers)))}|{self.target}"

    @property
    def ways(self) -> tuple[tuple[Try, ...], ...]:
        """All tries that use all numbers, grouped by their result."""
        return tuple(_ways(tuple(sorted(self.numbers))).values())

    @property
    def solutions(self) -> tuple[Try, ...]:
        """All tries that make the target, sorted."""
        return _ways(tuple(sorted(self.numbers)))[self.target]

    @property
    def answer(self) -> str:
        """The first of the solutions, as an expression."""
        return expression(self.solutions[0])


def result(step: Step) -> int:
    """The result of an operation.

    >>> result((9, "*", 6))
    54
    """
    a, operator, b = step
    return a + b if operator == "+" else a - b if operator == "-" else a * b


def left_after(numbers: Sequence[int], step: Step) -> tuple[int, ...]:
    """The result of an operation, then the numbers it does not use, in their order.

    >>> left_after((7, 9, 6), (9, "*", 6))
    (54, 7)
    """
    rest = list(numbers)
    rest.remove(step[0])
    rest.remove(step[2])
    return (result(step), *rest)


@functools.cache
def _ways(numbers: tuple[int, ...]) -> dict[int, tuple[Try, ...]]:
    """All tries over (sorted) numbers, by their result; cached, since a draw and its solution both ask for them."""
    if len(numbers) == 1:
        return {numbers[0]: ((),)}
    by_result: dict[int, set[Try]] = {}
    for way in _tries(numbers):
        by_result.setdefault(result(way[-1]), set()).add(way)
    # Sorted, because the order of a set of tuples with strings changes from process to process, and choices are seeded.
    return {target: tuple(sorted(ways)) for target, ways in by_result.items()}


def _tries(numbers: tuple[int, ...]) -> Iterator[Try]:
    if len(numbers) == 1:
        yield ()
        return
    for i, j in itertools.combinations(range(len(numbers)), 2):
        # The larger number first: no result is negative, and 3 + 4 and 4 + 3 are one try.
        a, b = max(numbers[i], numbers[j]), min(numbers[i], numbers[j])
        for operator in ("+", "-", "*"):
            step: Step = (a, operator, b)
            if 1 <= result(step) <= LARGEST:
                for rest in _tries(left_after(numbers, step)):
                    yield (step, *rest)


def expression(way: Try) -> str:
    """A try as one expression; every operation except the last is in parentheses.

    >>> expression(((9, "*", 6), (54, "+", 7)))
    '(9 * 6) + 7'
    """
    pending: dict[int, list[str]] = {}  # results not yet used, as the expressions that made them
    text = ""
    for step in way:
        a, operator, b = step
        sides = [pending[n].pop() if pending.get(n) else str(n) for n in (a, b)]
        text = f"{sides[0]} {operator} {sides[1]}"
        pending.setdefault(result(step), []).append(f"({text})")
    return text


def line(index: int, numbers: Sequence[int], step: Step, made: int | None = None) -> str:
    """Operation `index` (from 1) of a try, applied to the numbers that are left.

    >>> line(1, (7, 9, 6), (9, "*", 6))
    '(1) 7, 9, 6: 9 * 6 = 54'
    """
    a, operator, b = step
    made = result(step) if made is None else made
    return f"({index}) {', '.join(map(str, numbers))}: {a} {operator} {b} = {made}"


def verdict_line(made: int, target: int) -> str:
    """The reflection on a try that missed."""
    return f"{made} is not {target}."


class Countdown(Task[Target]):
    """Countdown with `steps + 1` numbers."""

    name = "countdown"
    default_steps = (2, 2)
    max_steps = 3

    def draw(self, rng: random.Random, steps: int) -> Target:
        """One problem: numbers from 2 to 15, and a target that can be made from all of them."""
        numbers = tuple(rng.choice(NUMBERS) for _ in range(steps + 1))
        return Target(numbers, rng.choice(sorted(_ways(tuple(sorted(numbers))))))

    def solve(self, problem: Target, rng: random.Random, error_rate: float = 0.0) -> Trace:
        """Zero to four failed tries, each followed by a reflection that says so, then one that makes the target.

        Failed tries are part of the search and do not depend on `error_rate`, which adds wrong results and their
        corrections to the last try.
        """
        by_result = _ways(tuple(sorted(problem.numbers)))
        wrong = [steps for target, tries in by_result.items() if target != problem.target for steps in tries]
        misses = 0
        while misses < min(MOST_MISSES, len(wrong)) and rng.random() < MISS:
            misses += 1
        parts: list[Part] = []
        for steps in rng.sample(wrong, misses):
            parts += [Part("think", line(*read), injected=True) for read in _replay(problem, steps)]
            parts.append(Part("reflect", verdict_line(result(steps[-1]), problem.target), injected=True))
        steps = rng.choice(problem.solutions)
        for index, numbers, step in _replay(problem, steps):
            if rng.random() < error_rate:
                parts += error_and_correction(index, numbers, step, rng)
            else:
                parts.append(Part("think", line(index, numbers, step)))
        return Trace(tuple(parts), expression(steps))

    def judge(self, problem: Target, parts: Sequence[Part]) -> list[StepVerdict]:
        """One verdict per line; a line numbered (1) begins a new try.

        A reflection is right if it states the result and that it is not the target, both truly, or corrects the line
        before it.
        """
        return [verdict for verdict, _ in self._follow(problem, parts)]

    def _follow(self, problem: Target, parts: Sequence[Part]) -> Iterator[tuple[StepVerdict, tuple[int, ...]]]:
        """The verdict on each line, and the numbers left after it, taking its result as written."""
        numbers, before, index = problem.numbers, problem.numbers, 0
        for part in parts:
            for text in part.text.splitlines():
                missed = _MISSED.fullmatch(text)
                if missed:
                    ended = len(numbers) == 1 and int(missed["made"]) == numbers[0] != problem.target
                    yield "right" if ended and int(missed["target"]) == problem.target else "wrong_result", numbers
                    continue
                operation = _LINE.search(text)
                if not operation:
                    yield "unreadable", numbers
                    continue
                at = int(operation["index"])
                corrects = part.kind == "reflect" and at == index
                begins = at == 1 and not corrects
                start = before if corrects else problem.numbers if begins else numbers
                if not (corrects or begins or at == index + 1):
                    yield "out_of_order", numbers
                    continue
                verdict, after = _judge(operation, start)
                yield verdict, after
                before, numbers, index = start, after, at

    def reflection_due(self, problem: Target, parts: Sequence[Part]) -> list[bool]:
        """After a wrong operation, and after the last operation of a try that missed the target."""
        kinds = [part.kind for part in parts for _ in part.text.splitlines()]
        return [
            verdict != "right" or (kind == "think" and len(left) == 1 and left[0] != problem.target)
            for kind, (verdict, left) in zip(kinds, self._follow(problem, parts), strict=True)
        ]

    def can_still_succeed(self, problem: Target, parts: Sequence[Part]) -> bool:
        """Whether the target can still be made from the numbers that are left, or from all of them after a missed try."""
        lines = [text for part in parts for text in part.text.splitlines()]
        if lines and _MISSED.fullmatch(lines[-1]):
            return True
        left = [problem.numbers, *(numbers for _, numbers in self._follow(problem, parts))][-1]
        # A model may list more numbers than it was given; the number of ways grows factorially, so that is not searched.
        return len(left) <= len(problem.numbers) and problem.target in _ways(tuple(sorted(left)))

    def finish(self, problem: Target, parts: Sequence[Part], rng: random.Random) -> Trace | None:
        """After a missed try another one; after a wrong operation its correction, if the target can then be made."""
        *before, last = [part for part in parts if part.text.strip()]
        *_, (verdict, left) = self._follow(problem, parts)
        operation = _LINE.search(last.text.splitlines()[-1])
        if verdict == "right":
            way = rng.choice(problem.solutions)
            tried = [Part("think", line(*step)) for step in _replay(problem, way)]
            return Trace((Part("reflect", verdict_line(left[0], problem.target)), *tried), expression(way))
        if operation is None or verdict not in ("wrong_result", "misread", "wrong_operand"):
            return None
        before.append(Part(last.kind, "\n".join(last.text.splitlines()[:-1])))
        return _correction(problem, _current_try(before), operation, verdict, rng)

    def output_follows(self, problem: Target, parts: Sequence[Part], output: str) -> bool:
        """Whether the output is an expression with the result of the last try."""
        left = [numbers for _, numbers in self._follow(problem, parts)]
        evaluated = evaluate(output)
        return bool(left) and evaluated is not None and left[-1] == (evaluated[0],)

    def count_steps(self, parts: Sequence[Part]) -> int:
        """Operations of the last try."""
        lines = (line for part in parts if part.kind == "think" for line in part.text.splitlines())
        numbers = [int(operation["index"]) for operation in map(_LINE.search, lines) if operation]
        return next((back for back, number in enumerate(reversed(numbers), start=1) if number == 1), len(numbers))

    def corrupt_step(self, problem: Target, line: str, rng: random.Random) -> str | None:
        """An operation with a wrong result, which also differs from its own result; None if the line is not an operation."""
        operation = _LINE.fullmatch(line)
        if not operation:
            return None
        operator: Operator = operation["operator"]  # type: ignore[assignment]
        right = result((int(operation["a"]), operator, int(operation["b"])))
        excluded = {right, int(operation["made"])}
        return line[: operation.start("made")] + str(wrong_result(right, rng, lambda made: made not in excluded))

    def same_answer(self, gold: str, answer: str) -> bool:
        """Whether an answer is an expression over the same numbers, each used once, with the same value.

        >>> [Countdown().same_answer("(9 * 6) + 7", answer) for answer in ("7 + 6*9 = 61", "54 + 7", "61")]
        [True, False, False]
        """
        expected = evaluate(gold)
        return expected is not None and expected == evaluate(answer)

    def count_tries(self, parts: Sequence[Part]) -> int:
        """Lines of thinking numbered (1); corrections in reflections do not count."""
        lines = (text for part in parts if part.kind == "think" for text in part.text.splitlines())
        return sum(operation["index"] == "1" for operation in map(_LINE.search, lines) if operation)


_MISSED = re.compile(r"(?P<made>\d+) is not (?P<target>\d+)\.")
_LINE = re.compile(
    r"\((?P<index>\d+)\) (?P<numbers>\d+(?:, \d+)*): (?P<a>\d+) (?P<operator>[-+*]) (?P<b>\d+) = (?P<made>\d+)$"
)


def _judge(operation: re.Match[str], numbers: tuple[int, ...]) -> tuple[StepVerdict, tuple[int, ...]]:
    """The verdict on an operation applied to `numbers`, and the numbers left after it as written."""
    listed = tuple(map(int, operation["numbers"].split(", ")))
    a, b, made = int(operation["a"]), int(operation["b"]), int(operation["made"])
    operator: Operator = operation["operator"]  # type: ignore[assignment]
    if Counter(listed) != Counter(numbers):
        return "misread", listed
    if Counter((a, b)) - Counter(numbers):
        return "wrong_operand", numbers
    after = left_after(listed, (a, operator, b))
    return "right" if after[0] == made else "wrong_result", (made, *after[1:])


def _replay(problem: Target, way: Try) -> Iterator[tuple[int, tuple[int, ...], Step]]:
    """Each operation of a try: its number (from 1), the numbers left before it, and the operation."""
    numbers = problem.numbers
    for index, step in enumerate(way, start=1):
        yield index, numbers, step
        numbers = left_after(numbers, step)


def error_and_correction(index: int, numbers: Sequence[int], step: Step, rng: random.Random) -> list[Part]:
    """A line with a wrong result and a reflection with the right one, both labelled `injected`."""
    right = result(step)
    wrong = wrong_result(right, rng)
    a, operator, b = step
    correction = f"{a} {operator} {b} is {right}, not {wrong}. {line(index, numbers, step)}"
    return [
        Part("think", line(index, numbers, step, wrong), injected=True),
        Part("reflect", correction, injected=True),
    ]


def _current_try(parts: Sequence[Part]) -> list[Step]:
    """The operations of the try that the lines end in, each as last corrected."""
    steps: list[Step] = []
    for part in parts:
        for operation in filter(None, map(_LINE.search, part.text.splitlines())):
            at = int(operation["index"])
            steps = steps[: at - 1] if at == 1 or part.kind == "reflect" else steps
            steps.append(_step_of(operation))
    return steps


def _step_of(operation: re.Match[str]) -> Step:
    return int(operation["a"]), operation["operator"], int(operation["b"])  # type: ignore[return-value]


def _left(numbers: tuple[int, ...], steps: Sequence[Step]) -> tuple[int, ...] | None:
    """The numbers left after operations; None if one takes a number that is not there."""
    for step in steps:
        if Counter((step[0], step[2])) - Counter(numbers):
            return None
        numbers = left_after(numbers, step)
    return numbers


def _correction(
    problem: Target, done: list[Step], operation: re.Match[str], verdict: StepVerdict, rng: random.Random
) -> Trace | None:
    """The correction of an operation that follows those of a try, and the rest; None if that misses the target."""
    done = done[: int(operation["index"]) - 1]  # none where it begins another try
    if (numbers := _left(problem.numbers, done)) is None:
        return None
    if verdict == "wrong_result":
        a, operator, b = _step_of(operation)
        first = [(a, operator, b)]
        reason = f"{a} {operator} {b} is {result(first[0])}, not {operation['made']}."
    else:
        first, reason = [], f"The numbers left are {', '.join(map(str, numbers))}."
    left = functools.reduce(left_after, first, numbers)
    ways = _ways(tuple(sorted(left))).get(problem.target, ()) if min(left) > 0 else ()
    if not ways or (len(left) == 1 and not first):
        return None
    way = (*done, *first, *rng.choice(ways))
    corrected, *rest = [line(*step) for step in _replay(problem, way)][len(done) :]
    return Trace((Part("reflect", f"{reason} {corrected}"), *(Part("think", text) for text in rest)), expression(way))


TASK = Countdown()
