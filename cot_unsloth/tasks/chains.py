"""Modular chains: a number, then steps that add, subtract or multiply modulo 11.

The purest test of sequential reasoning: every step is a fact from a small table, and without carrying the state through
all steps no answer can be guessed better than by chance (1 in 11). A small model that answers directly stays at chance
(8.7% on 8 steps); one that restates each operation and its number learns the task completely.
"""

from __future__ import annotations

import random
import re

from cot_unsloth.tasks.chained import ChainedTask, Op, Operator, Problem, statement

_VERBS: dict[Operator, str] = {"+": "add", "-": "subtract", "*": "multiply by"}


class Chains(ChainedTask):
    """Chains of affine steps modulo `modulus` (a prime, so that multiplication loses no information)."""

    name = "chains"
    default_steps = (4, 8)

    def __init__(self, modulus: int = 11) -> None:
        self.modulus = modulus

    def draw(self, rng: random.Random, steps: int) -> Problem:
        """One chain of `steps` operations with numbers from 2 to 9."""
        start = rng.randrange(self.modulus)
        ops = tuple(self._op(rng) for _ in range(steps))
        return Problem(self.name, start, ops, self._question(start, ops), self.modulus, _opening(start))

    def _op(self, rng: random.Random) -> Op:
        operator = rng.choice(tuple(_VERBS))
        number = rng.randint(2, 9)
        return Op(f"{_VERBS[operator]} {number}", operator, number)

    def _question(self, start: int, ops: tuple[Op, ...]) -> str:
        lines = [f"{_opening(start)} and work modulo {self.modulus}."]
        lines += [statement(i, op) for i, op in enumerate(ops, start=1)]
        return "\n".join([*lines, "What is the result?"])

    def same_answer(self, gold: str, answer: str) -> bool | None:
        """True for the gold number with the modulus beside it; any other answer is left to `core.answers`.

        >>> [Chains().same_answer("4", answer) for answer in ("4 (mod 11)", "\\\\equiv 4 \\\\pmod{11}", "15 mod 11", "4")]
        [True, True, None, None]
        """
        match = _WITH_MODULUS.fullmatch(answer.strip(" .$"))
        return True if match and match.groups() == (gold, str(self.modulus)) else None


_WITH_MODULUS = re.compile(r"(?:[^=≡]*(?:=|≡|\\equiv))?\s*(\d+)\s*\(?\\?[pb]?mod(?:ulo)?\s*\{?(\d+)\}?\)?")


def _opening(start: int) -> str:
    return f"Start with {start}"


TASK = Chains()
