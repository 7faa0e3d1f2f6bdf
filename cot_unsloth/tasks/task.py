"""What every world has in common.

A world is a family of problems that it can draw, solve step by step, and check: the answer and
each step. This room owns that contract, the split a problem belongs to, and the making of
examples; the worlds own their problems.

Splits are disjoint by construction: the split is a function (a hash) of what makes two problems
the same, so no problem can stand in two splits, whatever the seed, theme, order or wording.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Collection, Sequence
from typing import Literal, Protocol, TypeVar

from cot_unsloth.core.types import Example, Part, Split, Trace

StepVerdict = Literal["right", "unreadable", "out_of_order", "misread", "wrong_operand", "wrong_result"]
"""`misread`: what the step says it reads is not there. `wrong_operand`: it does not start from what the
step before it ended in. `wrong_result`: read rightly, computed wrongly. `unreadable` is no step at all."""


class Problem:
    """A question that can be checked. What makes two problems the same is their `key`."""

    task: str
    question: str

    @property
    def key(self) -> str:
        """What the problem is, whatever its wording."""
        raise NotImplementedError

    @property
    def answer(self) -> str:
        """A right answer."""
        raise NotImplementedError

    @property
    def id(self) -> str:
        """The key, shortened."""
        return f"{self.task}-{hashlib.sha256(self.key.encode()).hexdigest()[:12]}"

    @property
    def split(self) -> Split:
        """Tenths by hash: one for test, one for validation, eight for training."""
        bucket = int.from_bytes(hashlib.sha256(self.key.encode()).digest()[:8], "big") % 10
        return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


P = TypeVar("P", bound=Problem)


class World(Protocol[P]):
    """A family of verifiable problems."""

    name: str
    default_steps: tuple[int, int]
    """Fewest and most steps of a problem where the user names no difficulty."""
    most_steps: int
    """What it can draw in reasonable time."""

    def draw(self, rng: random.Random, steps: int) -> P:
        """One random problem of `steps` steps, of whatever split."""
        ...

    def solve(self, problem: P, rng: random.Random, error_rate: float = 0.0) -> Trace:
        """The canonical solution, each step made wrong and then mended with chance `error_rate`.

        What is wrong on purpose is labelled `injected`, and so is its mend. The output is right.
        """
        ...

    def judge(self, problem: P, parts: Sequence[Part]) -> list[StepVerdict]:
        """One verdict for each line of a solution, in the order of the lines."""
        ...

    def due(self, problem: P, parts: Sequence[Part]) -> list[bool]:
        """For each line, as in `judge`: whether a reflection is due right after it."""
        ...

    def heads_right(self, problem: P, parts: Sequence[Part]) -> bool:
        """Whether a solution, gone on with from here without another slip, would come to a right answer."""
        ...

    def concludes(self, problem: P, parts: Sequence[Part], output: str) -> bool:
        """Whether an output, be it right or wrong, is what the last line came to."""
        ...

    def steps(self, parts: Sequence[Part]) -> int:
        """Steps of the last try, reflections left out."""
        ...

    def spoil(self, problem: P, line: str, rng: random.Random) -> str | None:
        """A step as it was written, with a wrong result in place of its own; None if it is no step."""
        ...

    def tries(self, parts: Sequence[Part]) -> int | None:
        """How often a solution begins anew, the first time counted; None where it has but one go."""
        ...

    def same(self, gold: str, answer: str) -> bool | None:
        """Whether an answer is as good as the gold one; None leaves it to the general rules."""
        ...


def wrong_result(right: int, rng: random.Random, differs: Callable[[int], bool] = lambda made: True) -> int:
    """A result near the right one, as a slip of the pen would be; below zero only where the right one is."""
    near = [right + slip for slip in (-10, -3, -2, -1, 1, 2, 3, 10) if right < 0 or right + slip >= 0]
    return rng.choice([made for made in near if differs(made)])


def draw_problems(
    world: World[P],
    *,
    split: Split,
    n: int,
    seed: int,
    steps: tuple[int, int] | None = None,
    taken: Collection[str] = (),
) -> list[P]:
    """`n` distinct problems of one split, the same for the same arguments, none with a `taken` id.

    Raises:
        ValueError: the world holds fewer than `n` such problems (within reason of trying).
    """
    low, high = steps or world.default_steps
    rng = random.Random(f"{world.name}:{low}-{high}|{split}|{seed}")
    found: dict[str, P] = {}
    for _ in range(1000 + 200 * n):
        if len(found) == n:
            break
        problem = world.draw(rng, rng.randint(low, high))
        if problem.split == split and problem.id not in found and problem.id not in taken:
            found[problem.id] = problem
    if len(found) < n:
        raise ValueError(f"world {world.name} with {low}-{high} steps has fewer than {n} {split} problems")
    return list(found.values())


def example_of(world: World[P], problem: P, *, split: Split, seed: int, error_rate: float, where: str) -> Example:
    """A problem with its solution. Errors are seeded by problem, so a rate moves no problem in or out."""
    rng = random.Random(f"{problem.id}|{seed}")
    trace = world.solve(problem, rng, error_rate)
    return Example(problem.id, problem.question, trace, trace.output, world.name, split, where, problem=problem)
