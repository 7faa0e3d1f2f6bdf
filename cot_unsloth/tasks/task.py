"""The protocol of a task: a generator of problems whose answers, and whose every step, can be checked.

To add a task, write one module that defines a `Problem` (what it asks, its answer, and the `key` that identifies it)
and a `Task` with four methods, and add one line to `tasks/__init__.py`:

- `draw`: generate a random problem;
- `solve`: write its solution, on request with wrong steps that a reflection then corrects;
- `judge`: check a solution line by line;
- `corrupt_step`: replace the result of a written step by a wrong one.

The other methods have defaults for a task whose solutions go straight from the question to the answer. `chained`
implements all of them for tasks made of numbered arithmetic steps; `countdown` is a search and overrides most.

This module also decides the split of a problem and makes Examples. Splits cannot overlap: the split is a hash of the
problem's key, so it depends on no seed, wording or order, and generating more problems moves none of them.
"""

from __future__ import annotations

import abc
import hashlib
import random
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from cot_unsloth.core.types import Example, Part, Split, Trace

StepVerdict = Literal["right", "unreadable", "out_of_order", "misread", "wrong_operand", "wrong_result"]
"""`misread`: the step restates something that is not in the question. `wrong_operand`: it does not start from the
result of the step before it. `wrong_result`: read correctly, computed wrongly. `unreadable`: not a step at all."""


class Problem:
    """A question with a known answer. Problems with the same `key` are the same problem."""

    task: str
    """The name of its task."""
    if (
        TYPE_CHECKING
    ):  # at run time, a dataclass would take an inherited property for the default of its field `question`

        @property
        def question(self) -> str:
            """What it asks: a field or a property of the subclass."""

    @property
    def key(self) -> str:
        """What identifies the problem, independent of its wording."""
        raise NotImplementedError

    @property
    def answer(self) -> str:
        """A right answer; `Task.same_answer` may accept others."""
        raise NotImplementedError

    @property
    def id(self) -> str:
        """The task's name and 12 hex digits (48 bits) of the key's hash."""
        return f"{self.task}-{hashlib.sha256(self.key.encode()).hexdigest()[:12]}"

    @property
    def split(self) -> Split:
        """By hash of the key: a tenth for test, a tenth for validation, eight tenths for training."""
        return split_of(self.key)


def split_of(key: str) -> Split:
    """The split of the problem with this key; see `Problem.split`."""
    # Not Python's hash(): that is salted per process, so a problem would change its split from run to run.
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 10
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


P = TypeVar("P", bound=Problem)


class Task(abc.ABC, Generic[P]):
    """A generator of verifiable problems. Methods draw randomness from the `rng` they are given and from nothing else."""

    name: str
    """What the user types in `world:NAME`."""
    default_steps: tuple[int, int]
    """Fewest and most steps of a problem where the user gives no range."""
    max_steps: int = 100
    """The most steps that it can draw in reasonable time."""

    @abc.abstractmethod
    def draw(self, rng: random.Random, steps: int) -> P:
        """One random problem of `steps` steps, from any split."""

    @abc.abstractmethod
    def solve(self, problem: P, rng: random.Random, error_rate: float = 0.0) -> Trace:
        """The canonical solution. With probability `error_rate` a step is wrong and corrected in a reflection.

        Both the wrong step and its correction are labelled `injected`. The output is always right.
        """

    @abc.abstractmethod
    def judge(self, problem: P, parts: Sequence[Part]) -> list[StepVerdict]:
        """One verdict per line of a solution, in the order of the lines."""

    @abc.abstractmethod
    def corrupt_step(self, problem: P, line: str, rng: random.Random) -> str | None:
        """A line of a solution with a wrong result in place of its own; None if the line is not a step."""

    def reflection_due(self, problem: P, parts: Sequence[Part]) -> list[bool]:
        """Per line, as in `judge`: whether a reflection should follow it. By default after every line that is not right."""
        return [verdict != "right" for verdict in self.judge(problem, parts)]

    def can_still_succeed(self, problem: P, parts: Sequence[Part]) -> bool:
        """Whether a solution that begins like this, continued without further errors, ends in a right answer.

        By default: whether all its lines are right.
        """
        return all(verdict == "right" for verdict in self.judge(problem, parts))

    def finish(self, problem: P, parts: Sequence[Part], rng: random.Random) -> Trace | None:
        """What should follow a solution whose last line is wrong: the reflection that corrects it, the rest, the output.

        Args:
            problem: the problem.
            parts: lines as a model wrote them, of which the last is the first error that no reflection follows.
            rng: the source of randomness, where the rest can be done in several ways.

        Returns:
            None (the default) where the task cannot say.
        """
        return None

    def output_follows(self, problem: P, parts: Sequence[Part], output: str) -> bool:
        """Whether an output, right or wrong, is the result of the last line. By default: whether that line ends in it."""
        lines = [line for part in parts for line in part.text.splitlines()]
        return bool(lines) and lines[-1].rstrip(" .").endswith(output.strip())

    def count_steps(self, parts: Sequence[Part]) -> int:
        """Steps of the last attempt, without reflections. By default: numbered lines of thinking, `(1) ...`."""
        return sum(line.startswith("(") for part in parts if part.kind == "think" for line in part.text.splitlines())

    def count_tries(self, parts: Sequence[Part]) -> int | None:
        """Attempts that a solution makes, the first included; None (the default) for a task that is solved in one."""
        return None

    def same_answer(self, gold: str, answer: str) -> bool | None:
        """Whether an answer is as good as the gold one; None (the default) leaves it to `core.answers`."""
        return None


def wrong_result(right: int, rng: random.Random, differs: Callable[[int], bool] = lambda result: True) -> int:
    """A wrong result near the right one, as a calculation error gives; negative only if the right one is.

    Args:
        right: the right result.
        rng: the source of randomness.
        differs: whether a result counts as wrong; modulo 11, for example, 12 is not an error for 1.
    """
    # Slips of a unit and of a carry: an error far off would be recognised by its size alone.
    near = [right + slip for slip in (-10, -3, -2, -1, 1, 2, 3, 10) if right < 0 or right + slip >= 0]
    return rng.choice([result for result in near if differs(result)])


def draw_problems(
    task: Task[P],
    *,
    split: Split,
    n: int,
    seed: int,
    steps: tuple[int, int] | None = None,
    taken: Collection[str] = (),
) -> list[P]:
    """`n` distinct problems of one split; the same arguments always give the same problems.

    Args:
        task: what to draw from.
        split: which problems to keep.
        n: how many.
        seed: of the draw.
        steps: fewest and most steps; None takes the task's default.
        taken: ids of problems to leave out.

    Raises:
        ValueError: fewer than `n` such problems turned up in 1000 + 200 n draws.
    """
    low, high = steps or task.default_steps
    # Seeding with a string hashes all of it (SHA-512), so streams of different splits and ranges are independent.
    rng = random.Random(f"{task.name}:{low}-{high}|{split}|{seed}")
    drawn: dict[str, P] = {}
    for _ in range(1000 + 200 * n):
        if len(drawn) == n:
            break
        problem = task.draw(rng, rng.randint(low, high))
        if problem.split == split and problem.id not in drawn and problem.id not in taken:
            drawn[problem.id] = problem
    if len(drawn) < n:
        raise ValueError(f"task {task.name} with {low}-{high} steps has fewer than {n} {split} problems")
    return list(drawn.values())


def make_example(task: Task[P], problem: P, *, split: Split, seed: int, error_rate: float, where: str) -> Example:
    """A problem with its solution."""
    # Errors have a stream of their own, seeded by problem: changing the rate changes no problem and no other solution.
    rng = random.Random(f"{problem.id}|{seed}")
    trace = task.solve(problem, rng, error_rate)
    return Example(problem.id, problem.question, trace, trace.output, task.name, split, where, problem=problem)
