"""Reads the final answer of a text, and decides whether two answers mean the same.

Owns the reading of free text (`reading`) and the comparison of two answers (`equality`), one set of rules for gold
answers and for models' answers, strict and lenient, in every arm.
"""

from cot_unsloth.core.answers.equality import compare, same
from cot_unsloth.core.answers.reading import (
    explicit_answer,
    explicit_readings,
    gold_answer,
    is_prose,
    last_boxed,
    output_readings,
    readings,
)
from cot_unsloth.core.answers.symbolic import TimeLimit

__all__ = [
    "TimeLimit",
    "compare",
    "explicit_answer",
    "explicit_readings",
    "gold_answer",
    "is_prose",
    "last_boxed",
    "output_readings",
    "readings",
    "same",
]
