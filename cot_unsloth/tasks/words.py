"""Chained word arithmetic: someone owns some things, and gains, loses, multiplies or shares them step by step.

Harder than modular chains because the operation has to be *read*: verb phrases of four themes stand for four
operations, with numbers up to 200. Every intermediate value is a whole number from 1 to 200.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from cot_unsloth.tasks.chained import ChainedTask, Op, Operator, Problem, statement

LARGEST = 200
"""No value of a problem is larger."""


@dataclass(frozen=True)
class Theme:
    """A thing to count, and the phrases for gaining and losing it."""

    items: str
    gain: tuple[str, ...]
    lose: tuple[str, ...]


THEMES = (
    Theme("apples", ("picks {n} more", "buys {n} more"), ("eats {n}", "gives away {n}")),
    Theme("coins", ("earns {n} more", "finds {n} more"), ("spends {n}", "loses {n}")),
    Theme("stamps", ("buys {n} more", "finds {n} more"), ("sells {n}", "gives away {n}")),
    Theme("cards", ("wins {n} more", "finds {n} more"), ("loses {n}", "sells {n}")),
)
NAMES = ("Ana", "Ben", "Mia", "Leo", "Eva", "Tom", "Zoe", "Sam")
_TIMES = {2: "doubles them", 3: "triples them"}
_SHARE = {2: "keeps half of them", 3: "keeps a third of them", 4: "keeps a quarter of them"}


class Words(ChainedTask):
    """Stories of a few steps over whole numbers."""

    name = "words"
    default_steps = (2, 5)

    def draw(self, rng: random.Random, steps: int) -> Problem:
        """One story of `steps` operations."""
        theme, name = rng.choice(THEMES), rng.choice(NAMES)
        start = value = rng.randint(2, 100)
        ops: list[Op] = []
        for _ in range(steps):
            ops.append(_op(rng, theme, value))
            value = ops[-1].raw(value)
        return Problem(self.name, start, tuple(ops), _question(name, theme, start, ops))


def _op(rng: random.Random, theme: Theme, value: int) -> Op:
    operator: Operator = rng.choice(_possible(value))
    match operator:
        case "+":
            n = rng.randint(2, min(99, LARGEST - value))
            return Op(rng.choice(theme.gain).format(n=n), "+", n)
        case "-":
            n = rng.randint(2, min(99, value - 1))
            return Op(rng.choice(theme.lose).format(n=n), "-", n)
        case "*":
            n = rng.choice([k for k in _TIMES if value * k <= LARGEST])
            return Op(_TIMES[n], "*", n)
        case "/":
            n = rng.choice([k for k in _SHARE if value % k == 0])
            return Op(_SHARE[n], "/", n)


def _possible(value: int) -> list[Operator]:
    """The operations that keep the value whole and from 1 to LARGEST."""
    allowed: dict[Operator, bool] = {
        "+": value <= LARGEST - 2,
        "-": value >= 3,
        "*": value * 2 <= LARGEST,
        "/": any(value % k == 0 for k in _SHARE),
    }
    return [operator for operator, fits in allowed.items() if fits]


def _question(name: str, theme: Theme, start: int, ops: list[Op]) -> str:
    lines = [f"{name} has {start} {theme.items}."]
    lines += [statement(i, op) for i, op in enumerate(ops, start=1)]
    return "\n".join([*lines, f"How many {theme.items} does {name} have now?"])


TASK = Words()
