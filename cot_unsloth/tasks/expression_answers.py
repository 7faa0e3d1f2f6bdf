"""Expressions of whole numbers with +, - and *, as models write them, for the answers to `countdown`."""

from __future__ import annotations

import ast
import re

_TIMES, _MINUS = re.compile("[\u00d7\u00b7\u22c5\u2217xX]"), re.compile("[\u2212\u2013]")
_BRACKETS = str.maketrans("[]{}", "()()")


def evaluate(text: str) -> tuple[int, tuple[int, ...]] | None:
    """The value of an expression and the numbers it uses, sorted; None if it is not one. A true "= 61" may stand on either side.

    >>> evaluate("9 x 6 + 7 = 54 + 7 = 61"), evaluate("61 = 9 * 6 + 7"), evaluate("9 * 6 + 7 = 62")
    ((61, (6, 7, 9)), (61, (6, 7, 9)), None)
    """
    text = _MINUS.sub("-", _TIMES.sub("*", text.strip().rstrip("."))).translate(_BRACKETS)
    sides = [_side(side) for side in text.split("=")]
    if None in sides or len({side[0] for side in sides if side}) > 1:
        return None
    # The first side that is not the result alone.
    return next((side for side in sides if side and len(side[1]) > 1), sides[0])


def _side(text: str) -> tuple[int, tuple[int, ...]] | None:
    # The text is a model's: only digits, spaces and + - * ( ) reach the parser, and not many (deep nesting is costly).
    if len(text) > 200 or not re.fullmatch(r"[\d\s()+*-]+", text):
        return None
    try:
        value, used = _compute(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    return value, tuple(sorted(used))


def _compute(node: ast.expr) -> tuple[int, list[int]]:
    match node:
        case ast.Constant(value=int(number)):
            return number, [number]
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() as op, right=right):
            (a, first), (b, second) = _compute(left), _compute(right)
            made = a + b if isinstance(op, ast.Add) else a - b if isinstance(op, ast.Sub) else a * b
            return made, first + second
    raise ValueError("not an expression of +, - and *")
