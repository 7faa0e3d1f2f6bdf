"""Numbers written out in words: "twenty-five", "two-thirds", "three and a half"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from cot_unsloth.core.answers.units import MULTIPLIERS, UNITS

_ONES = {
    name: value
    for value, name in enumerate(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "thirteen",
            "fourteen",
            "fifteen",
            "sixteen",
            "seventeen",
            "eighteen",
            "nineteen",
        ]
    )
}
_TENS = {
    name: 10 * value
    for value, name in enumerate(
        ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], start=2
    )
}


@dataclass(frozen=True)
class WrittenNumber:
    """A number in words at the beginning of a text."""

    value: Fraction
    rest: list[str]
    """The words after it."""
    is_fraction: bool = False
    """Whether the whole text is a fraction, such as "three and a half"."""


def number_in_words(text: str) -> WrittenNumber | None:
    """The number in words that a text begins with; None if it begins with none.

    >>> [str(number_in_words(t).value) for t in ("twenty-five dollars", "minus two thousand", "three and a half")]
    ['25', '-2000', '7/2']
    """
    words = re.findall(r"[^\W\d_]+|[^\s.,!?]", text.casefold())
    negative = words[:1] in (["minus"], ["negative"])
    words = _with_leading_one(words[negative:])
    value, used = _read(words)
    rest = words[used:]
    part = _fraction(rest, used, words, value)
    if part is not None:
        return WrittenNumber(-part if negative else part, [], is_fraction=True)
    if not used or words[used - 1] in ("and", "-"):
        return None
    return WrittenNumber(Fraction(-value if negative else value), rest)


def _with_leading_one(words: list[str]) -> list[str]:
    """Both "a hundred" and "hundred" as "one hundred"."""
    words = words[words[:1] == ["a"] and words[1:2] in (["hundred"], ["thousand"], ["million"]) :]
    return ["one", *words] if words[:1] in (["hundred"], ["thousand"], ["million"]) else words


def _read(words: list[str]) -> tuple[int, int]:
    """The value of the number at the beginning of words, and how many words it takes."""
    total = current = used = 0
    for word in words:
        if word in _ONES or word in _TENS:
            current += _ONES.get(word, 0) or _TENS.get(word, 0)
        elif word == "hundred" and current:
            current *= 100
        elif word in ("thousand", "million", "billion") and current:
            total, current = total + current * MULTIPLIERS[word], 0
        # Inside a number these connect: "two hundred and five", "twenty-five".
        elif not (word in ("and", "-") and used):
            break
        used += 1
    return total + current, used


_DENOMINATORS = {
    name + ending: value
    for value, name in ((2, "half"), (2, "halve"), (3, "third"), (4, "quarter"), (4, "fourth"), (5, "fifth"), (6, "sixth"),
                        (7, "seventh"), (8, "eighth"), (9, "ninth"), (10, "tenth"), (100, "hundredth"))
    for ending in ("", "s")
}  # fmt: skip


def _fraction(rest: list[str], used: int, words: list[str], whole: int) -> Fraction | None:
    """The value of a text that is a fraction as a whole: "half", "a third", "two-thirds", "three and a half"."""
    if not rest or rest[-1] not in _DENOMINATORS or any(word in UNITS for word in words[:used]):
        return None
    bottom, head = _DENOMINATORS[rest[-1]], [word for word in rest[:-1] if word != "-"]
    if not used and (head == ["a"] or (head == [] and bottom == 2)):  # "third" alone is an ordinal
        return Fraction(1, bottom)
    if head == ["a"] and words[used - 1] == "and":
        return whole + Fraction(1, bottom)
    if head == [] and "and" not in words[:used] and whole:
        return Fraction(whole, bottom)
    return None
