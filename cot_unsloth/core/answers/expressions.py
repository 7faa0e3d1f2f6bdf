"""Mathematical expressions, compared by math-verify after its known traps have been excluded."""

from __future__ import annotations

import re

from cot_unsloth.core.answers import symbolic
from cot_unsloth.core.answers.rule import Comparison
from cot_unsloth.core.answers.symbolic import ComparisonResult
from cot_unsloth.core.answers.text import cleaned, unwrapped
from cot_unsloth.core.answers.units import is_unit

_MATHS_WORDS = frozenset([
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "log", "ln",
    "lg", "exp", "sqrt", "frac", "pi", "theta", "alpha", "beta", "gamma", "phi", "infinity", "infty", "cdot",
    "times", "pm", "le", "ge", "ne", "in", "cup", "cap", "emptyset", "begin", "end", "pmatrix", "bmatrix", "matrix",
    "binom", "mod", "max", "min", "lim", "sum", "int", "prod", "circ", "degrees", "or", "and", "det", "gcd", "lcm",
    "vec", "hat", "bar", "overline", "underline", "lambda", "mu", "sigma", "omega", "delta", "epsilon", "rho",
    "tau", "mathbb", "mathcal", "operatorname", "deg", "rm", "cases", "array", "aligned", "align", "choose",
    "lfloor", "rfloor", "lceil", "rceil", "quad", "dots", "ldots", "cdots", "to", "rightarrow", "implies", "iff",
    "setminus", "subset", "mid", "equiv", "not", "forall", "exists", "infinitely",
])  # fmt: skip


def looks_like_maths(text: str) -> bool:
    """Whether a text is an expression and not words."""
    text = _without_unit(cleaned(text))
    words = re.findall(r"[^\W\d_]{2,}", re.sub(r"\\[A-Za-z]+", " ", text))
    prose = [word for word in words if word.casefold() not in _MATHS_WORDS and len(word) > 2]
    return not prose and bool(re.search(r"[\d\\^_=+*/()\[\]{}<>-]|^[A-Za-z]$", text))


_MOST_SYMBOLIC = 400
"""Longest expression that is compared, in characters: the longest gold of MATH-500 has 53."""
_RELATION = re.compile(r"\\(?:ne|le|ge|lt|gt|in|approx|sim|equiv|subset|mid)\b|[<>≈]")
_CONSTANTS = re.compile(r"\\(?:[A-Za-z]+)|\bpi\b|\binfinity\b|\b(?:sqrt|log|ln|exp|sin|cos|tan)\b")
_SPACED_NUMBERS = re.compile(r"(?<![\w}^])\d+\s+\d+(?![\d/])|\(\s*[\d.]+\s*\)\s*\(\s*[\d.]+\s*\)")
_CLOCK_OR_DATE = re.compile(r"\d:\d|\d-\d+-\d|\d/\d+/\d")
_BASE = re.compile(r"(?<=[\dA-F])_\{?\s*(\d{1,2})\s*\}?$")


def expressions(gold: str, answer: str, comparison: Comparison) -> ComparisonResult:
    """The verdict of math-verify on two expressions; those that it would misread, or read only in part, count as different."""
    texts = (gold, answer)
    if any(len(text) > _MOST_SYMBOLIC or not looks_like_maths(text) for text in texts):
        return "different"
    if any(_SPACED_NUMBERS.search(cleaned(text)) for text in texts):
        return "different"  # math-verify multiplies or adds the numbers of "3 4"
    left, right = (_latex(text) for text in texts)
    if any(_CLOCK_OR_DATE.search(text) and "\\" not in text for text in (left, right)):
        return "different"
    if bool(_RELATION.search(left)) != bool(_RELATION.search(right)) and not (
        "[" in left + right or "(" in left + right
    ):
        return "different"  # it would read the 5 out of "\neq 5"
    bases = [base[1] if (base := _BASE.search(text)) else None for text in (left, right)]
    if bases[0] != bases[1] and all(bases):
        return "different"  # 204_5 is not 204_6; it reads only the 204
    if not variables(left) and variables(right) - {"i", "e"} and not _RELATION.search(right):
        return "different"  # an expression with a variable is not a number; math-verify would read the 0 out of "I(0)"
    if _RELATION.search(right) and not _RELATION.search(left):
        left, right = right, left  # it reads an inequality as an interval only in the gold answer
    return symbolic.compare(left, right, comparison.time_limit)


def variables(text: str) -> set[str]:
    """The letters of an expression, except functions and constants."""
    return set(re.findall(r"[^\W\d_]", _CONSTANTS.sub(" ", text)))


_FUNCTION = re.compile(
    r"(?<![\\A-Za-z])(sqrt|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|ln|exp|pi|infinity|theta)(?![A-Za-z])"
)
_ROOT = re.compile(r"\\sqrt\s*\(([^()]*)\)")
_LAST_WORD = re.compile(r"(?<=[\d}) ])\s*(?P<word>[^\W\d_]{2,})\s*(?:\^\s*\{?[23]\}?)?$")


def _without_unit(text: str) -> str:
    """An expression without the units at its end: `16 \\pi square inches`."""
    for _ in range(4):
        last = _LAST_WORD.search(text[-40:])
        if not last or not (is_unit(last["word"]) or last["word"].casefold() in ("unit", "units", "per")):
            break
        text = text[: len(text) - len(text[-40:]) + last.start()].rstrip()
    return text


_ROWS = re.compile(r"^\[(\s*\[[^\[\]]+\](?:\s*,\s*\[[^\[\]]+\])*\s*)\]$")
"""A matrix as programs print it: [[0, 1], [1, 0]]."""


def _matrix(rows: re.Match[str]) -> str:
    lines = r" \\ ".join(row.replace(",", " & ") for row in re.findall(r"\[([^\[\]]+)\]", rows[1]))
    return rf"\begin{{pmatrix}} {lines} \end{{pmatrix}}"


def _latex(text: str) -> str:
    """An answer as LaTeX for math-verify: `\\sin` for "sin", `^` for "**", no unit at the end."""
    text = re.sub(r"\\(?:begin|end)\{(?:align\*?|aligned|equation\*?|gather\*?)\}", " ", cleaned(text)).replace(
        "**", "^"
    )
    text = _ROWS.sub(_matrix, text)
    text = _FUNCTION.sub(lambda m: {"infinity": "\\infty"}.get(m[1], "\\" + m[1]), text)
    text = _ROOT.sub(r"\\sqrt{\1}", text)
    return unwrapped(_without_unit(text.removesuffix("%"))).strip()
