"""Lists, points and equations, compared part by part."""

from __future__ import annotations

import re
from typing import TypeAlias

from cot_unsloth.core.answers.expressions import expressions, variables
from cot_unsloth.core.answers.quantity import quantity
from cot_unsloth.core.answers.rule import Comparison
from cot_unsloth.core.answers.symbolic import ComparisonResult
from cot_unsloth.core.answers.text import cleaned

_VARIABLE = re.compile(
    r"\s*(\\?[A-Za-z]+(?:_(?:\w|\{\w+\}))?|[A-Za-z]\s*(?:\^\s*\{?-1\}?\s*)?\([^()=]{1,20}\))\s*=\s*(?P<value>[^=]+)"
)


_MEMBER = re.compile(r"\s*(?:[A-Za-z]\s*\\in\b|\([A-Za-z](?:\s*,\s*[A-Za-z]){1,3}\)\s*=)\s*(?P<value>.+)", re.DOTALL)
"""`x \\in` before a set, `(x, y) =` before a point."""


def labelled(gold: str, answer: str, comparison: Comparison) -> ComparisonResult | None:
    """`x = ...` on one side only: its right side is compared with the other text."""
    members = [_MEMBER.fullmatch(cleaned(text)) for text in (gold, answer)]
    if bool(members[0]) != bool(members[1]):
        left_text, right_text = (
            member["value"] if member else text for member, text in zip(members, (gold, answer), strict=True)
        )
        return comparison.compare(left_text, right_text)
    left, right = (_VARIABLE.fullmatch(cleaned(text)) for text in (gold, answer))
    if bool(left) == bool(right):
        return None
    inside, other = (left, answer) if left else (right, gold)
    assert inside is not None
    if "=" in other or re.search(r"[,;]|\b(?:and|or)\b", re.sub(r"[\[({].*[\])}]", "", inside["value"])):
        return None
    return comparison.compare(inside["value"], answer) if left else comparison.compare(gold, inside["value"])


_OPENING, _CLOSING = "([{", ")]}"
_MOST_ITEMS = 30
"""Longest list that is compared: unordered lists take up to n * n comparisons, and each may run sympy."""
_List: TypeAlias = tuple[str, list[str]]
"""Brackets, such as "()" or "" without, and items."""


_PLUS_MINUS = re.compile(r"(?:[A-Za-z]\s*=\s*)?\\pm\s*([^,;=]+)")
"""`\\pm 5` lists 5 and -5; a sum such as `2 \\pm \\sqrt{3}` is left to math-verify."""


def items(text: str) -> _List | None:
    r"""The brackets of a list, and its items; None if the text is not a list of at least two items.

    >>> items("(1, \\frac{1}{2})"), items("3, 5"), items("x = 2 or x = 3"), items("\\{a, b\\}")
    (('()', ['1', '\\frac{1}{2}']), ('', ['3', '5']), ('', ['2', '3']), ('{}', ['a', 'b']))
    """
    text = cleaned(text).strip()
    brackets = ""
    both = _PLUS_MINUS.fullmatch(text)
    if both:
        return "", [both[1], f"-{both[1]}"]
    if text.startswith("\\{") and text.endswith("\\}"):
        brackets, text = "{}", text[2:-2]
    elif len(text) > 2 and text[0] in "([" and text[-1] in ")]" and _closes_at_end(text):
        brackets, text = text[0] + text[-1], text[1:-1]
    parts = _split(text)
    if len(parts) < 2 or not all(parts):
        return None
    if not brackets:
        names = [_VARIABLE.fullmatch(part) for part in parts]
        if all(names) and len({name[1] for name in names if name}) == 1:
            parts = [name["value"].strip() for name in names if name]
    return brackets, parts


def _closes_at_end(text: str) -> bool:
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter in _OPENING) - (letter in _CLOSING)
        if depth == 0:
            return at == len(text) - 1
    return False


_WORD_BETWEEN = re.compile(r"\s*(?:,\s*)?\b(?:and|or)\b\s*|\s*;\s*", re.IGNORECASE)
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")


def _depth(text: str) -> int:
    """How many brackets are open at the end of a text."""
    return sum((letter in _OPENING) - (letter in _CLOSING) for letter in text)


def _split(text: str) -> list[str]:
    """The items of a list at depth 0, separated by commas, semicolons, "and" or "or"; commas of thousands separate nothing."""
    text = _THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)
    text = _WORD_BETWEEN.sub(lambda m: "," if _depth(text[: m.start()]) == 0 else m[0], text)
    parts, depth, begin = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter in _OPENING) - (letter in _CLOSING)
        if letter in ",;" and depth == 0:
            parts.append(text[begin:at].strip())
            begin = at + 1
    return [*parts, text[begin:].strip()]


def lists(gold: str, answer: str, comparison: Comparison) -> ComparisonResult | None:
    """Two lists of the same length: in order if in brackets, in any order without brackets or in braces."""
    left, right = items(gold), items(answer)
    if left is None and right is not None and not right[0] and quantity(gold) is not None:
        return "different"  # "7 or 8" for 7 is a hedge, not an answer
    if left is None or right is None:
        return None
    (brackets, gold_items), (answer_brackets, answer_items) = _as_point(left, right), _as_point(right, left)
    ordered = brackets not in ("", "{}")
    if ordered and brackets != answer_brackets:  # (0, 1] is not [0, 1]
        return None if not answer_brackets else "different"
    is_interval = brackets == "{}" and answer_brackets.startswith("(")  # {-2, 2} is not the interval (-2, 2)
    if is_interval or _named_otherwise(gold, answer) or _offers_a_choice(gold, left[1], answer):
        return "different"
    if len(gold_items) != len(answer_items) or len(gold_items) > _MOST_ITEMS:
        return "different" if not ordered else None
    if ordered:
        verdicts = [comparison.compare(a, b) for a, b in zip(gold_items, answer_items, strict=True)]
        return next((verdict for verdict in verdicts if verdict != "same"), "same")
    # Each item of the answer may match only one item of the gold answer: "3, 3" is not "3, 5".
    left_over = list(answer_items)
    for item in gold_items:
        match = next((candidate for candidate in left_over if comparison.compare(item, candidate) == "same"), None)
        if match is None:
            return "too_costly" if comparison.time_limit.exceeded else "different"
        left_over.remove(match)
    return "same"


def _named_otherwise(gold: str, answer: str) -> bool:
    """Whether both lists name their items, and not the same variables: "x = 2, x = 3" is not "x = 2, y = 3"."""
    names = [
        [match[1].partition("_")[0] if (match := _VARIABLE.fullmatch(part)) else None for part in _split(cleaned(text))]
        for text in (gold, answer)
    ]
    return all(all(side) for side in names) and set(names[0]) != set(names[1])


def _offers_a_choice(gold: str, gold_items: list[str], answer: str) -> bool:
    """Whether the answer joins words by "or" that the gold answer does not: "red or blue" is not "red and blue"."""
    joined_by_or = [re.search(r"\bor\b", cleaned(text), re.IGNORECASE) is not None for text in (gold, answer)]
    return joined_by_or == [False, True] and all(re.fullmatch(r"[^\W\d_]{2,}(?: [^\W\d_]+)*", i) for i in gold_items)


def _as_point(this: _List, other: _List) -> _List:
    """`x = 1, y = 2` as the point (1, 2), if the other list is in parentheses and the letters are different and sorted."""
    brackets, parts = this
    named = [_VARIABLE.fullmatch(part) for part in parts]
    letters = [match[1] for match in named if match]
    if brackets or other[0] != "()" or len(letters) < len(parts) or letters != sorted(set(letters)):
        return this
    return "()", [match["value"].strip() for match in named if match]


def equations(gold: str, answer: str, comparison: Comparison) -> ComparisonResult | None:
    """Two equations are the same if the differences of their sides are, up to a sign; an equation is not an expression.

    In an answer such as `\\sqrt{8} = 2\\sqrt{2}`, the last side is the answer.
    """
    texts = [cleaned(text) for text in (gold, answer)]
    counts = [text.count("=") for text in texts]
    if not any(counts) or any(re.search(r"[<>!:]=|\\(?:begin|equiv|[lg]e)\b", text) or "," in text for text in texts):
        return None
    if counts == [1, 1]:
        left, right = ([side.strip() for side in text.split("=")] for text in texts)
        if not all(left + right):
            return "different"
        # a = b and c = d are the same equation if a - b equals c - d or d - c; multiples (2a = 2b) are not recognised.
        difference = f"({left[0]})-({left[1]})"
        verdicts = [
            expressions(difference, f"({first})-({last})", comparison) for first, last in (right, reversed(right))
        ]
        return "same" if "same" in verdicts else verdicts[-1]
    if counts[0]:
        return "different"
    *sides, last = texts[1].split("=")
    if any(variables(side) - variables(last) for side in sides):
        return "different"
    return comparison.compare(texts[0], last.strip())
