"""Exact arithmetic on the tokens of an expression such as `1 1/2` or `10^3`.

Values are Fractions: 0.1 + 0.2 is 0.3 here, and 1/3 is not 0.333. No tolerance is needed to compare them, and none could
make a wrong answer right.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_DIGITS = 400
"""Most digits of a number; gold answers have a few. This keeps 9^9^9 from taking hours."""


def evaluate(tokens: list[str]) -> Fraction | None:
    """The exact value of a numeric expression given in tokens; None if it is not one, or too large for an answer.

    A whole number beside a fraction is a mixed number: `1 1/2` is 3/2.

    >>> evaluate(["1", "(", "1", ")", "/", "(", "2", ")"]), evaluate(["2", "^", "99999"])
    (Fraction(3, 2), None)
    """
    if len(tokens) > 60 or sum(map(len, tokens)) > MAX_DIGITS:
        return None
    try:
        parser = _Arithmetic(tokens)
        value = parser.sum()
        return value if parser.at == len(tokens) else None
    except (ValueError, ZeroDivisionError, IndexError, OverflowError, RecursionError):
        return None


class _Arithmetic:
    """Recursive descent over sums, products, powers, signs and parentheses."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.at = 0

    def _next(self) -> str | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def sum(self) -> Fraction:
        value = self.product()
        while (sign := self._next()) in ("+", "-"):
            self.at += 1
            other = self.product()
            value = value + other if sign == "+" else value - other
        return value

    def product(self) -> Fraction:
        value = self.mixed()
        while (sign := self._next()) in ("*", "/"):
            self.at += 1
            other = self.mixed()
            value = value * other if sign == "*" else value / other
        return value

    def mixed(self) -> Fraction:
        negative = self._next() == "-"
        start = self.at
        value = self.signed()
        following = self.tokens[self.at : self.at + 7]
        if self.at - start == 1 + negative and value.denominator == 1:
            part = _fraction_of(following)
            if part is not None:
                fraction, used = part
                self.at += used
                return value - fraction if negative else value + fraction
        return value

    def signed(self) -> Fraction:
        sign = self._next()
        if sign in ("+", "-"):
            self.at += 1
            return self.signed() if sign == "+" else -self.signed()
        return self.power()

    def power(self) -> Fraction:
        base = self.atom()
        if self._next() != "^":
            return base
        self.at += 1
        exponent = self.signed()
        # The power has about exponent * size bits, 3.3 for each digit; checked before it is computed, since nothing
        # can interrupt that.
        size = max(abs(base.numerator), base.denominator).bit_length()
        if exponent.denominator != 1 or abs(exponent) * max(size, 1) > 4 * MAX_DIGITS:
            raise ValueError("is not a number of reasonable size")
        return base ** int(exponent)

    def atom(self) -> Fraction:
        token = self.tokens[self.at]
        self.at += 1
        if token == "(":
            value = self.sum()
            if self.tokens[self.at] != ")":
                raise ValueError("a parenthesis is not closed")
            self.at += 1
            return value
        return number(token)


def number(text: str) -> Fraction:
    """The value of a number: "1,234.5", ".5", "6.5e-2", "118 000".

    Raises:
        ValueError: it is not a number, or its exponent is too large for an answer.
    """
    digits = text.replace(",", "").replace(" ", "")
    digits = digits.replace(".", "") if digits.count(".") > 1 else digits  # 1.234.567
    exponent = re.search(r"[eE]([-+]?\d+)$", digits)
    if exponent and abs(int(exponent[1])) > MAX_DIGITS:
        raise ValueError(f"{text} is too large")
    if not re.fullmatch(r"(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?", digits):
        raise ValueError(f"{text!r} is not a number")
    return Fraction(digits)


def _fraction_of(tokens: list[str]) -> tuple[Fraction, int] | None:
    """A proper fraction at the beginning of tokens, `1/2` or `(1)/(2)`, and how many tokens it takes.

    Only proper ones: "3 4/2" is not a mixed number.
    """
    for shape in (("n", "/", "n"), ("(", "n", ")", "/", "(", "n", ")")):
        head = tokens[: len(shape)]
        if len(head) == len(shape) and all(
            token == kind or (kind == "n" and token.isdigit()) for kind, token in zip(shape, head, strict=True)
        ):
            top, bottom = (int(token) for token in head if token.isdigit())
            return (Fraction(top, bottom), len(shape)) if 0 < top < bottom else None
    return None
