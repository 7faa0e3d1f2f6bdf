r"""Whether an answer means the gold one, whatever its form.

Rules are tried in order, the cheapest first: the same wording; the letter of a choice; yes or no; times and dates; one
quantity each; lists item by item; and last math-verify, in a process that can be killed. A rule decides the cases it
applies to and leaves the others to the rules after it. The order is part of the meaning: "(B) 12 cm" must be a choice
before it can be a quantity.
"""

from __future__ import annotations

import re

from cot_unsloth.core.answers.choices import booleans, choices, times
from cot_unsloth.core.answers.expressions import expressions, looks_like_maths
from cot_unsloth.core.answers.inequalities import inequalities
from cot_unsloth.core.answers.lists import equations, labelled, lists
from cot_unsloth.core.answers.quantity import Quantity, quantity
from cot_unsloth.core.answers.quantity_equality import compound, same_quantity
from cot_unsloth.core.answers.reading import gold_answer, output_readings
from cot_unsloth.core.answers.rule import Comparison, Rule, decided
from cot_unsloth.core.answers.symbolic import ComparisonResult, TimeLimit
from cot_unsloth.core.answers.text import MOST_COMPARED, cleaned, key, plain
from cot_unsloth.core.answers.units import is_unit


def same(gold: str, answer: str) -> bool:
    """Whether an answer, short or worked, means the gold one; one that takes too long to compare does not.

    >>> same("72", "$72.00"), same("1000", "1,000"), same("7", "17"), same("7", "7 or 8"), same("B", "(B) 12 cm")
    (True, True, False, False, True)
    """
    gold, time_limit = gold_answer(gold), TimeLimit()
    return any(compare(gold, reading, time_limit) == "same" for reading in output_readings(answer))


def compare(gold: str, answer: str, time_limit: TimeLimit) -> ComparisonResult:
    """Whether one reading of an answer means the gold one, within the time that is left for the answer."""
    if not gold.strip() or not answer.strip():
        return "different"
    if gold.strip() == answer.strip():
        return "same"
    if len(answer) > MOST_COMPARED or len(gold) > MOST_COMPARED:
        return "different"
    if key(gold) == key(answer):
        return decided(bool(key(gold)) and not _differ_in_case(gold, answer))
    comparison = Comparison(time_limit, lambda gold_part, part: compare(gold_part, part, time_limit))
    for rule in _RULES:
        verdict = rule(gold, answer, comparison)
        if verdict is not None:
            return verdict
    return expressions(gold, answer, comparison)


def _differ_in_case(gold: str, answer: str) -> bool:
    """Whether two expressions differ in the case of a variable: R is not r."""
    texts = [re.sub(r"\s", "", plain(text)) for text in (gold, answer)]
    if quantity(gold) is not None:
        return False  # 7.2E1, 5 KM
    return (
        texts[0] != texts[1]
        and texts[0].casefold() == texts[1].casefold()
        and all(re.search(r"[\d^*/+=]", text) and not re.search(r"[^\W\d_]{2,}", text) for text in texts)
    )


_ABOUT = re.compile(r"\\approx\b|\\simeq\b|≈|≃")


def _approximate(gold: str, answer: str, comparison: Comparison) -> ComparisonResult | None:
    r"""`\frac{1}{6} \approx 0.167` gives two forms of one answer; in `x \approx 5`, x is the name of the value."""
    sides = [[side.strip() for side in _ABOUT.split(cleaned(text))] for text in (gold, answer)]
    if len(sides[0]) == len(sides[1]) or max(map(len, sides)) > 3:
        return None
    values = [[side for side in text if side and not re.fullmatch(r"\\?[A-Za-z]+", side)] or text for text in sides]
    verdicts = [comparison.compare(left, right) for left in values[0] for right in values[1] if left and right]
    return "same" if "same" in verdicts else "too_costly" if "too_costly" in verdicts else "different"


_RESTATED = re.compile(
    r"(?P<first>.{1,100}?)(?:\s+or\s+(?P<second>.{1,100})|\s+(?<![-+*/^] )\((?:or\s+|=\s*)?(?P<bracketed>[^()]{1,100})\))"
)


def _restated(gold: str, answer: str, comparison: Comparison) -> ComparisonResult | None:
    """One number in two forms, "3/2 or 1.5", "thirty-six (36)"; two different numbers are left to the other rules."""
    restated = _RESTATED.fullmatch(plain(answer))
    if not restated:
        return None
    first, second = (quantity(part or "") for part in restated.group(1, 2 if restated[2] else 3))
    if first is None or second is None or (first.value, first.percent) != (second.value, second.percent):
        return None
    return comparison.compare(gold, restated["first"])


def _quantities(gold: str, answer: str, comparison: Comparison) -> ComparisonResult | None:
    gold_quantity = _quantity(gold)
    if gold_quantity is None:
        return None
    if _is_sentence(gold) or _UNSOLVED.match(cleaned(gold)):
        return None  # a sentence with a number in it is not a number: it is compared as text
    answer_quantity = _quantity(answer)
    if answer_quantity is not None:
        return decided(same_quantity(gold_quantity, answer_quantity) and not _names_another(gold, answer))
    return None if looks_like_maths(answer) else "different"


def _quantity(text: str) -> Quantity | None:
    return quantity(text) or compound(text)


_UNSOLVED = re.compile(r"(?=[^=]*(?<![A-Za-z\\])[A-Za-z](?![A-Za-z]))(?=[^=]*[-+*/^])[^=]+=")
"""An equation in variables, x^2 + y^2 = 25: as a gold answer it does not stand for its right side."""
_NAMED = re.compile(r"(?P<name>[^\W\d_]{2,})\s+\d[\d.,]*")
_LETTER_LABEL = re.compile(r"([A-Za-z])\s*=[^=]+")


def _names_another(gold: str, answer: str) -> bool:
    """Whether the answer has another name beside its number than the gold answer: "Apollo 11", "x = 5"."""
    left, right = (_LETTER_LABEL.fullmatch(cleaned(text)) for text in (gold, answer))
    if left and right:
        return left[1].casefold() != right[1].casefold()
    named = _NAMED.fullmatch(plain(gold))
    if not named or not named["name"][0].isupper():
        return False
    words = [word.casefold() for word in re.findall(r"[^\W\d_]{2,}", plain(answer))]
    return bool(words) and not is_unit(named["name"]) and named["name"].casefold() not in words


def _is_sentence(gold: str) -> bool:
    """Whether a gold answer says more than a number with its unit."""
    return len(re.findall(r"[^\W\d_]{2,}", plain(gold))) > 6


_SENTENCE = re.compile(
    r"(?:(?:so|thus|hence|therefore),?\s+)?(?:the|this|that|it|he|she|his|her|their)\b(?:\s+[^\s.,;]{1,30}){0,6}?\s+(?:is|are|was|were)\s+(?!not\b)(?P<value>.{1,100})",
    re.IGNORECASE | re.DOTALL,
)


_PLACED = re.compile(r"(?:on|in|at)\s+(?:the\s+)?", re.IGNORECASE)
"""A preposition before a name that a gold answer leaves out: "on Monday", "in Paris"."""


def _sentences(gold: str, answer: str, comparison: Comparison) -> ComparisonResult | None:
    """A short sentence that states the gold answer of its subject: "The capital is Paris"."""
    sentence = _SENTENCE.fullmatch(plain(answer))
    if sentence and (key(sentence["value"]) == key(gold) or comparison.compare(gold, sentence["value"]) == "same"):
        return "same"
    placed = _PLACED.match(plain(answer))
    if placed and re.match(r"[A-Z]", plain(gold)) and key(plain(answer)[placed.end() :]) == key(gold):
        return "same"
    return None


_RULES: tuple[Rule, ...] = (
    choices,
    booleans,
    times,
    _approximate,
    _restated,
    _quantities,
    _sentences,
    labelled,
    inequalities,
    lists,
    equations,
)
