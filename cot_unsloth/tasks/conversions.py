"""Unit conversions: a quantity along units that differ by one factor each, also of rates such as litres per minute.

A solution first compares the dimensions and lists the units on the way: what cannot be converted (metres to kilograms) is
answered with that, and not with a number. Every step names the fact it uses, `(1) 1 km = 1000 m: 3.5 * 1000 = 3500 m`, and a typical error, multiplying instead of
dividing, is noticed by its magnitude: of a smaller unit there must be more. All values are exact decimals.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from cot_unsloth.tasks.stepwise import Step, StepwiseProblem, StepwiseTask, value_of, written_number

NOT_POSSIBLE = "not possible"
MOST_DIGITS = 6
"""Digits of the longest value; what is longer invites errors that have nothing to do with units."""


@dataclass(frozen=True)
class Chain:
    """Units of one dimension, from the largest to the smallest."""

    dimension: str
    units: tuple[str, ...]
    factors: tuple[str, ...]
    """How many of the next unit one is; one fewer than units."""

    def factor(self, at: int) -> Fraction:
        """How many of unit `at + 1` are one of unit `at`."""
        return Fraction(self.factors[at])


CHAINS = (
    Chain("length", ("km", "m", "cm", "mm"), ("1000", "100", "10")),
    Chain("length", ("mi", "yd", "ft", "in", "cm", "mm"), ("1760", "3", "12", "2.54", "10")),
    Chain("mass", ("t", "kg", "g", "mg"), ("1000", "1000", "1000")),
    Chain("mass", ("st", "lb", "oz"), ("14", "16")),
    Chain("volume", ("m3", "L", "dL", "cL", "mL"), ("1000", "10", "10", "10")),
    Chain("volume", ("gal", "qt", "pt", "cup", "tbsp", "tsp"), ("4", "2", "2", "16", "3")),
    Chain("time", ("week", "day", "h", "min", "s"), ("7", "24", "60", "60")),
    Chain("area", ("km2", "ha", "m2", "cm2"), ("100", "10000", "10000")),
    Chain("data", ("TB", "GB", "MB", "kB"), ("1000", "1000", "1000")),
)
"""Metric and US customary units; a byte prefix is decimal, as in SI."""
_TIME = next(chain for chain in CHAINS if chain.dimension == "time")
DIMENSION = {unit: chain.dimension for chain in CHAINS for unit in chain.units}
_ALIASES = {
    "km": "kilometer kilometers kilometre kilometres", "m": "meter meters metre metres",
    "cm": "centimeter centimeters centimetre centimetres", "mm": "millimeter millimeters millimetre millimetres",
    "mi": "mile miles", "yd": "yard yards yds", "ft": "foot feet '", "in": "inch inches \" in.",
    "t": "tonne tonnes ton tons", "kg": "kilogram kilograms kilo kilos", "g": "gram grams", "mg": "milligram milligrams",
    "st": "stone stones", "lb": "pound pounds lbs", "oz": "ounce ounces",
    "m3": "m³ m^3 cubic-meters cubic-metres cubic-meter cubic-metre", "L": "l liter liters litre litres",
    "dL": "dl deciliter deciliters decilitre decilitres", "cL": "cl centiliter centiliters centilitre centilitres",
    "mL": "ml milliliter milliliters millilitre millilitres", "gal": "gallon gallons", "qt": "quart quarts",
    "pt": "pint pints", "cup": "cups", "tbsp": "tablespoon tablespoons", "tsp": "teaspoon teaspoons",
    "week": "weeks wk", "day": "days d", "h": "hour hours hr hrs", "min": "minute minutes mins",
    "s": "second seconds sec secs", "km2": "km² km^2 square-kilometers square-kilometres", "ha": "hectare hectares",
    "m2": "m² m^2 square-meters square-metres", "cm2": "cm² cm^2 square-centimeters square-centimetres",
    "TB": "terabyte terabytes", "GB": "gigabyte gigabytes", "MB": "megabyte megabytes", "kB": "kb KB kilobyte kilobytes",
}  # fmt: skip
_SYMBOLS = {alias: unit for unit, names in _ALIASES.items() for alias in (unit, *names.split())}


def decimal(value: Fraction) -> str | None:
    """An exact decimal; None if there is none, or it is too long.

    >>> decimal(Fraction(7, 2)), decimal(Fraction(1, 3)), decimal(Fraction(3500))
    ('3.5', None, '3500')
    """
    for places in range(MOST_DIGITS):
        scaled = value * 10**places
        if scaled.denominator == 1:
            digits = str(scaled.numerator).rjust(places + 1, "0")
            text = f"{digits[:-places]}.{digits[-places:]}" if places else digits
            return text if len(text.replace(".", "")) <= MOST_DIGITS else None
    return None


@dataclass(frozen=True)
class Move:
    """From a unit to the next larger or smaller one."""

    frm: str
    to: str
    factor: str
    """How many of the smaller unit one of the larger is."""
    is_smaller: bool
    """Whether `to` is the smaller unit."""
    is_per: bool = False
    """Whether the unit is what a rate is per: then a smaller unit makes a smaller number."""

    @property
    def fact(self) -> str:
        """What the factor says, the unit it comes from first."""
        return (
            f"1 {self.frm} = {self.factor} {self.to}" if self.is_smaller else f"{self.factor} {self.frm} = 1 {self.to}"
        )

    @property
    def multiplies(self) -> bool:
        """Whether the number grows."""
        return self.is_smaller != self.is_per

    def apply(self, value: Fraction) -> Fraction:
        """The number of the other unit."""
        return value * Fraction(self.factor) if self.multiplies else value / Fraction(self.factor)


@dataclass(frozen=True)
class Conversion(StepwiseProblem):
    """One quantity, and the unit it is asked in."""

    number: str
    unit: str
    target: str
    moves: tuple[Move, ...]
    """Empty where the dimensions differ."""
    wording: str
    task: str = "conversions"

    @property
    def question(self) -> str:
        """What is asked, in one of several wordings."""
        return self.wording.format(number=self.number, unit=self.unit, target=self.target)

    @property
    def key(self) -> str:
        """The wording does not matter."""
        return f"{self.task}|{self.number}|{self.unit}|{self.target}"

    @property
    def opening(self) -> str:  # type: ignore[override]
        """The dimensions of both units, and the units on the way from one to the other."""
        ours, theirs = dimension(self.unit), dimension(self.target)
        if ours == theirs:
            sides = [[move for move in self.moves if move.is_per == is_per] for is_per in (False, True)]
            ways = [" -> ".join([side[0].frm, *(move.to for move in side)]) for side in sides if side]
            return f"{self.unit} and {self.target} both measure {ours}: {', '.join(ways)}"
        return f"{self.unit} measures {ours}, {self.target} measures {theirs}: they cannot be converted"

    @property
    def length(self) -> int:
        """See `StepwiseProblem`."""
        return len(self.moves)

    def step(self, index: int, values: Sequence[str]) -> Step:
        """See `StepwiseProblem`."""
        move = self.moves[index - 1]
        number = values[-1].partition(" ")[0] if values else self.number
        result = _rounded(move.apply(Fraction(number)))
        operator = "*" if move.multiplies else "/"
        return Step(move.fact, f"{{}} {operator} {move.factor}", (number,), f"{result} {self._unit_after(index)}")

    def _unit_after(self, index: int) -> str:
        over, _, per = self.unit.partition("/")
        for move in self.moves[:index]:
            over, per = (over, move.to) if move.is_per else (move.to, per)
        return f"{over}/{per}" if per else over

    def reads(self, index: int, value: str) -> bool:
        """See `StepwiseProblem`."""
        return bool(re.fullmatch(rf"\d{{1,12}}(?:\.\d{{1,12}})? {re.escape(self._unit_after(index))}", value))

    def output(self, values: Sequence[str]) -> str:
        """The last value, or that there is none."""
        return values[-1] if values else NOT_POSSIBLE

    def wrong_results(self, index: int, step: Step) -> Sequence[str]:
        """The other direction, a shifted decimal point, a wrong digit."""
        move, unit = self.moves[index - 1], self._unit_after(index)
        right, before = Fraction(step.result.partition(" ")[0]), Fraction(step.operands[0])
        factor = Fraction(move.factor)
        inverse = before / factor if move.multiplies else before * factor
        slips = [inverse, inverse, right * 10, right / 10, *_digit_slips(step.result.partition(" ")[0])]
        texts = [text for slip in slips if slip != right and slip > 0 and (text := decimal(slip))]
        return [f"{text} {unit}" for text in texts] or [f"{_rounded(right + 1)} {unit}"]

    def reason(self, index: int, step: Step, result: str) -> str:
        """An implausible magnitude, or the right product."""
        move, wrong = self.moves[index - 1], Fraction(value_of(result).partition(" ")[0])
        number, right = step.operands[0], step.result.partition(" ")[0]
        if (wrong > Fraction(number)) != move.multiplies and wrong != Fraction(number):
            size = "smaller" if move.is_smaller else "larger"
            per = f" per {move.to}" if move.is_per else ""
            change = "more" if move.multiplies else "less"
            return f"{move.to} is {size} than {move.frm}, so{per} it must be {change} than {number}, not {_rounded(wrong)}."
        return f"{step.expression} is {right}, not {value_of(result).partition(' ')[0]}."


def _rounded(value: Fraction) -> str:
    """A decimal; what has none, as a wrong value may lead to, is rounded."""
    return decimal(value) or f"{float(value):.6f}".rstrip("0").rstrip(".")


def _digit_slips(number: str) -> list[Fraction]:
    """The number with its first or last digit other than zero changed by one."""
    places = [place for place, digit in enumerate(number) if digit in "123456789"]
    slips = []
    for place in {places[0], places[-1]} if places else set():
        for digit in (int(number[place]) - 1, int(number[place]) + 1):
            if 0 < digit < 10:
                slips.append(Fraction(f"{number[:place]}{digit}{number[place + 1 :]}"))
    return sorted(slips)


def dimension(unit: str) -> str:
    """What a unit or a rate measures.

    >>> dimension("L/min")
    'volume per time'
    """
    over, _, per = unit.partition("/")
    return f"{DIMENSION[over]} per {DIMENSION[per]}" if per else DIMENSION[over]


_WORDINGS = (
    "Convert {number} {unit} to {target}.",
    "How much is {number} {unit} in {target}?",
    "A label says {number} {unit}. What is that in {target}?",
    "I need {number} {unit}, but my tool shows {target}. What should it show?",
)
_NICE = (
    Fraction(1, 4),
    Fraction(1, 2),
    Fraction(3, 4),
    Fraction(6, 5),
    Fraction(3, 2),
    Fraction(5, 2),
    Fraction(36, 10),
)
_IMPOSSIBLE = 0.1


class Conversions(StepwiseTask[Conversion]):
    """Conversions of one to five steps."""

    name = "conversions"
    default_steps = (1, 4)
    max_steps = 5

    def draw(self, rng: random.Random, steps: int) -> Conversion:
        """One conversion along `steps` factors; a tenth of the problems ask for what cannot be converted."""
        while True:
            if rng.random() < _IMPOSSIBLE:
                return self._impossible(rng)
            problem = self._rate(rng, steps) if rng.random() < 0.3 and steps > 1 else self._quantity(rng, steps)
            if problem is not None:
                return problem

    def _impossible(self, rng: random.Random) -> Conversion:
        units = sorted(DIMENSION)
        while True:
            unit, target = rng.sample(units, 2)
            if DIMENSION[unit] != DIMENSION[target]:
                return Conversion(_rounded(_nice(rng)), unit, target, (), rng.choice(_WORDINGS))

    def _quantity(self, rng: random.Random, steps: int) -> Conversion | None:
        chain = rng.choice([chain for chain in CHAINS if len(chain.factors) >= steps])
        return _conversion(rng, _moves(rng, chain, steps))

    def _rate(self, rng: random.Random, steps: int) -> Conversion | None:
        over = rng.randint(max(1, steps - 2), steps - 1)
        chains = [c for c in CHAINS if len(c.factors) >= over and c.dimension in ("length", "volume", "mass", "data")]
        if not chains:
            return None
        quantity = _moves(rng, rng.choice(chains), over)
        hours = Chain("time", _TIME.units[1:], _TIME.factors[1:])
        return _conversion(rng, quantity, _moves(rng, hours, steps - over, is_per=True))

    def same_answer(self, gold: str, answer: str) -> bool | None:
        """Whether an answer is the gold number, in the unit that was asked for or without a unit.

        >>> task = Conversions()
        >>> [task.same_answer("3500 m", answer) for answer in ("3,500 metres", "3.5 * 10^3", "3.5 km = 3500 m", "3.5 km", "350 m")]
        [True, True, True, False, False]
        >>> [task.same_answer("not possible", answer) for answer in ("That cannot be converted.", "0 kg")]
        [True, False]
        """
        if gold == NOT_POSSIBLE:
            return bool(_REFUSED.search(answer)) and not re.search(r"=\s*\d", answer)
        number, unit = gold.split(" ")
        match = _QUANTITY.fullmatch(answer.rpartition("=")[2].strip().strip("*`").rstrip(".").strip())
        if match is None or _number(match) != Fraction(number):
            return False
        return not match["unit"] or _unit_named(match["unit"]) == unit


_REFUSED = re.compile(
    r"\b(?:(?:not|isn't|no conversion is) possible|impossible|can(?:'t| ?not)\b|unable to convert|not convertible|incompatible|not compatible"
    r"|different (?:dimensions|quantities|kinds|things))",
    re.IGNORECASE,
)
_QUANTITY = re.compile(
    r"(?P<number>\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+)(?:\.\d+)?|(?:\d+(?:\.\d+)?|\.\d+)(?:e[-+]?\d{1,2})?)"
    r"(?:\s*[*x\u00d7]\s*10\s*\^\s*\(?(?P<power>[-+]?\d{1,2})\)?)?\s*(?P<unit>[^\d\s].{0,40})?",
    re.IGNORECASE,
)


def _number(quantity: re.Match[str]) -> Fraction | None:
    """The value of `_QUANTITY`, in which models write large numbers as 3.5 * 10^6; None if it is too long."""
    number = written_number(quantity["number"].replace(" ", ""))
    return number if number is None or not quantity["power"] else number * Fraction(10) ** int(quantity["power"])


def _unit_named(text: str) -> str | None:
    """The symbol of a unit or rate as people write it.

    >>> _unit_named("litres per minute"), _unit_named("L min^(-1)"), _unit_named("square metres"), _unit_named("parsecs")
    ('L/min', 'L/min', 'm2', None)
    """
    text = re.sub(r"\s*\^\s*", "^", re.sub("[(){}]", "", text)).strip()
    text = re.sub(r"[\s*]+([^\W\d_]+)\^-1$", r"/\1", text)
    text = re.sub(r"\b(square|cubic)\s+", r"\1-", text)
    sides = [side.strip().removeprefix("a ").removeprefix("an ") for side in re.split(r"/|\bper\b|\bp(?=h$)", text)]
    symbols = [_SYMBOLS.get(side) or _SYMBOLS.get(side.casefold()) for side in sides]
    return None if None in symbols or len(symbols) > 2 else "/".join(filter(None, symbols))


def _nice(rng: random.Random) -> Fraction:
    """A number as people measure: small and whole, or with a short fraction."""
    return Fraction(rng.randint(2, 60)) if rng.random() < 0.5 else rng.choice(_NICE) * rng.randint(1, 12)


def _moves(rng: random.Random, chain: Chain, steps: int, *, is_per: bool = False) -> tuple[Move, ...]:
    """`steps` neighbouring units of a chain, downwards or upwards."""
    first = rng.randrange(len(chain.units) - steps)
    down = [
        Move(chain.units[at], chain.units[at + 1], chain.factors[at], True, is_per)
        for at in range(first, first + steps)
    ]
    if rng.random() < 0.5:
        return tuple(down)
    return tuple(Move(move.to, move.frm, move.factor, False, is_per) for move in reversed(down))


def _conversion(rng: random.Random, over: tuple[Move, ...], per: tuple[Move, ...] = ()) -> Conversion | None:
    """A conversion along these moves whose values are all exact; None if the number drawn does not give one."""
    moves = (*over, *per)
    value = _nice(rng)
    for move in moves:  # a division must come out: start from a multiple
        value = value if move.multiplies else value * Fraction(move.factor)
    values = [value]
    for move in moves:
        values.append(move.apply(values[-1]))
    if any(decimal(each) is None for each in values):
        return None
    unit, target = ("/".join(filter(None, [end[0], end[1]])) for end in _ends(over, per))
    return Conversion(_rounded(value), unit, target, moves, rng.choice(_WORDINGS))


def _ends(over: tuple[Move, ...], per: tuple[Move, ...]) -> tuple[tuple[str, str], tuple[str, str]]:
    """The first and the last unit, each with what it is per."""
    return (over[0].frm, per[0].frm if per else ""), (over[-1].to, per[-1].to if per else "")


TASK = Conversions()
