"""Whether two quantities are equal, units included; and quantities in several units."""

from __future__ import annotations

import itertools
import re
from fractions import Fraction

from cot_unsloth.core.answers.arithmetic import number
from cot_unsloth.core.answers.quantity import Quantity
from cot_unsloth.core.answers.text import MOST_COMPARED, plain
from cot_unsloth.core.answers.units import MONEY, POWERS, SCALES, UNITS, singular


def same_quantity(gold: Quantity, answer: Quantity) -> bool:  # noqa: PLR0911
    """Whether two quantities are equal: the same value, and no contradicting units.

    A unit that only one of them names is not a contradiction. If only one side has a percent sign, 5% equals both 5 and 0.05,
    because gold answers are inconsistent about it.
    """
    if answer.base and answer.base != (gold.base or "10"):
        return False  # a gold may leave its base out; an answer in another base is another number
    if gold.percent != answer.percent and (gold.units if answer.percent else answer.units):
        return False  # dollars are not percentages
    scaled = _in_one_unit(gold, answer)
    if scaled is not None:
        return scaled[0] == scaled[1]
    values, golds = {answer.value}, {gold.value}
    if answer.percent and not gold.percent:
        # "72%" may mean 72; but "0.5%" does not mean the share 0.5.
        values = {answer.value / 100} | ({answer.value} if abs(answer.value) >= 1 else set())
    elif gold.percent and not answer.percent:
        golds |= {gold.value / 100}
    if values.isdisjoint(golds):
        return False
    if gold.units and answer.units:
        if bool(gold.units & POWERS) != bool(answer.units & POWERS):
            return False  # an area is not a length
        return gold.units <= answer.units or answer.units <= gold.units
    if (gold.noun and answer.units - MONEY) or (answer.noun and gold.units - MONEY):
        return False  # 400 nm is not 400 pm, whose unit is unknown here
    if gold.noun and answer.noun:
        return singular(gold.noun) == singular(answer.noun)
    return True


def _in_one_unit(gold: Quantity, answer: Quantity) -> tuple[Fraction, Fraction] | None:
    """The values of two quantities in one unit, if both have one of the same dimension: 3 hours and 180 minutes."""
    if len(gold.units) != 1 or len(answer.units) != 1 or gold.units == answer.units:
        return None
    (of, scale), (other, factor) = (SCALES.get(next(iter(q.units)), ("", Fraction(1))) for q in (gold, answer))
    return (gold.value * scale, answer.value * factor) if of and of == other else None


_PART = re.compile(
    r"(?P<value>[$]?\d{1,12}(?:\.\d{1,6})?)\s?(?P<unit>[^\W\d_]{1,12})\.?(?:\s?,?\s?(?:and\s)?|$)", re.IGNORECASE
)


def compound(text: str) -> Quantity | None:
    """A quantity in several units of one dimension, larger ones first, converted to the largest: "1 hour and 30 minutes".

    >>> compound("1 hr, 30 min") == Quantity(Fraction(3, 2), units=frozenset({"hour"})), compound("3 hours 2 apples")
    (True, None)
    """
    if len(text) > MOST_COMPARED:
        return None
    text, at = plain(text), 0
    terms: list[tuple[Fraction, str]] = []
    while at < len(text):
        part = _PART.match(text, at)
        unit = UNITS.get(part["unit"].casefold()) if part else None
        if not part or unit not in SCALES or len(terms) > 5:
            return None
        terms.append((number(part["value"].lstrip("$")), unit))
        at = part.end()
    if len(terms) < 2 or len({SCALES[unit][0] for _, unit in terms}) > 1:
        return None
    scales = [SCALES[unit][1] for _, unit in terms]
    if any(first <= second for first, second in itertools.pairwise(scales)):
        return None
    total = sum((value * SCALES[unit][1] for value, unit in terms), Fraction(0))
    return Quantity(total / scales[0], units=frozenset({terms[0][1]}))
