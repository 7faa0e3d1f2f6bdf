"""Lists, points and equations, compared part by part."""

from __future__ import annotations

import re

from cot_unsloth.core.answers.expressions import expressions, variables
from cot_unsloth.core.answers.quantity import quantity
from cot_unsloth.core.answers.rule import Comparison
from cot_unsloth.core.answers.symbolic import Verdict
from cot_unsloth.core.answers.text import cleaned

_VARIABLE = re.compile(
    r"\s*(\\?[A-Za-z]+(?:_(?:\w|\{\w+\}))?|[A-Za-z]\s*(?:\^\s*\{?-1\}?\s*)?\([^()=]{1,20}\))\s*=\s*(?P<value>[^=]+)"
)


_MEMBER = re.compile(r"\s*(?:[A-Za-z]\s*\\in\b|\([A-Za-z](?:\s*,\s*[A-Za-z]){1,3}\)\s*=)\s*(?P<value>.+)", re.DOTALL)
"""`x \\in` before a set, `(x, y) =` before a point."""


def labelled(gold: str, answer: str, comparison: Comparison) -> Verdict | None:
    """`x = ...` on one side only: the variable names what the other side is the value of."""
    members = [_MEMBER.fullmatch(cleaned(text)) for text in (gold, answer)]
    if bool(members[0]) != bool(members[1]):
        left_text, right_text = (
            found["value"] if found else text for found, text in zip(members, (gold, answer), strict=True)
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


def items(text: str) -> tuple[str, list[str]] | None:
    r"""The brackets of a list, and its items; None where a text is no list of at least two.

    >>> items("(1, \\frac{1}{2})"), items("3, 5"), items("x = 2 or x = 3"), items("\\{a, b\\}")
    (('()', ['1', '\\frac{1}{2}']), ('', ['3', '5']), ('', ['2', '3']), ('{}', ['a', 'b']))
    """
    text = cleaned(text).strip()
    brackets = ""
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


def _split(text: str) -> list[str]:
    """The items of a list at depth 0, separated by commas, semicolons, "and" or "or"; commas of thousands separate nothing."""
    text = _THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)
    if not any(letter in _OPENING for letter in text):
        text = _WORD_BETWEEN.sub(",", text)
    parts, depth, begin = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter in _OPENING) - (letter in _CLOSING)
        if letter in ",;" and depth == 0:
            parts.append(text[begin:at].strip())
            begin = at + 1
    return [*parts, text[begin:].strip()]


def lists(gold: str, answer: str, comparison: Comparison) -> Verdict | None:
    """Two lists of the same length: in order if in brackets, in any order without brackets or in braces."""
    wanted, found = items(gold), items(answer)
    if wanted is None and found is not None and not found[0] and quantity(gold) is not None:
        return "different"
    if wanted is not None and found is not None and wanted[0] == "()" and not found[0]:
        found = _point(found[1]) or found
    if wanted is not None and found is not None and found[0] == "()" and not wanted[0]:
        wanted = _point(wanted[1]) or wanted
    if wanted is None or found is None:
        return None
    ordered = wanted[0] not in ("", "{}")
    if ordered and wanted[0] != found[0]:
        return None if not found[0] else "different"
    if len(wanted[1]) != len(found[1]) or len(wanted[1]) > 30:
        return "different" if not ordered else None
    if ordered:
        verdicts = [comparison.compare(a, b) for a, b in zip(wanted[1], found[1], strict=True)]
        return next((verdict for verdict in verdicts if verdict != "same"), "same")
    left = list(found[1])
    for item in wanted[1]:
        match = next((other for other in left if comparison.compare(item, other) == "same"), None)
        if match is None:
            return "too_costly" if comparison.budget.exceeded else "different"
        left.remove(match)
    return "same"


def _point(parts: list[str]) -> tuple[str, list[str]] | None:
    """`x = 1, y = 2` as the point (1, 2): different letters in their order."""
    named = [_VARIABLE.fullmatch(part) for part in parts]
    letters = [found[1] for found in named if found]
    if len(letters) < len(parts) or letters != sorted(set(letters)):
        return None
    return "()", [found["value"].strip() for found in named if found]


def equations(gold: str, answer: str, comparison: Comparison) -> Verdict | None:
    """Two equations are the same if the differences of their sides are, up to a sign; an equation is no expression.

    Of an answer such as `\\sqrt{8} = 2\\sqrt{2}` the last side is the answer.
    """
    texts = [cleaned(text) for text in (gold, answer)]
    counts = [text.count("=") for text in texts]
    if not any(counts) or any(re.search(r"[<>!:]=|\\(?:begin|equiv|[lg]e)\b", text) or "," in text for text in texts):
        return None
    if counts == [1, 1]:
        left, right = ([side.strip() for side in text.split("=")] for text in texts)
        if not all(left + right):
            return "different"
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
