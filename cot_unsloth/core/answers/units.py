"""Units of measure and currencies, and how they convert into one another.

Every name of a unit maps to one canonical name. Only conversions that are exact are known (100 cents to the dollar, 36
inches to the yard): between metres and feet, or dollars and euros, two answers would differ in rounding or by the day.
"""

from __future__ import annotations

from fractions import Fraction

UNITS: dict[str, str] = {
    name: canonical
    for canonical, names in {
        "dollar": "$ dollars dollar usd bucks buck us$", "cent": "cents cent ¢", "euro": "€ euros euro eur",
        "yen": "¥ yen jpy", "yuan": "yuan rmb cny", "won": "₩ won krw", "rupee": "₹ rupees rupee rs inr",
        "degree": "degrees degree deg", "radian": "radians radian rad",
        "millimetre": "mm millimeter millimeters millimetre millimetres", "centimetre": "cm centimeter centimeters centimetre centimetres",
        "metre": "m meter meters metre metres", "kilometre": "km kilometer kilometers kilometre kilometres",
        "nanometre": "nm nanometer nanometers nanometre nanometres", "micrometre": "μm um micron microns micrometer micrometers",
        "ohm": "ω ohm ohms", "inch": "in inch inches", "foot": "ft foot feet", "yard": "yd yard yards", "mile": "mi mile miles",
        "gram": "g gram grams", "kilogram": "kg kilogram kilograms kilo kilos", "milligram": "mg milligram milligrams",
        "pound": "£ gbp lb lbs pound pounds", "ounce": "oz ounce ounces", "ton": "ton tons tonne tonnes",
        "millilitre": "ml milliliter milliliters millilitre millilitres", "litre": "l liter liters litre litres",
        "gallon": "gallon gallons gal", "quart": "quart quarts", "pint": "pint pints", "cup": "cup cups",
        "second": "s sec secs second seconds", "minute": "min mins minute minutes", "hour": "h hr hrs hour hours",
        "day": "day days", "week": "week weeks", "month": "month months", "year": "yr yrs year years",
        "mph": "mph", "kph": "kph kmh", "newton": "n newton newtons", "joule": "j joule joules", "watt": "w watt watts",
        "volt": "v volt volts", "hertz": "hz hertz", "celsius": "celsius c", "fahrenheit": "fahrenheit f", "kelvin": "kelvin k",
        "electronvolt": "ev", "mole": "mol mole moles", "pascal": "pa pascal pascals", "square": "square sq squared_unit",
        "cubic": "cubic cu", "dozen": "dozen dozens",
    }.items()
    for name in names.split()
}  # fmt: skip


def is_unit(word: str) -> bool:
    """Whether a word is a known unit of measure or a currency."""
    return word.casefold() in UNITS


SHORT_UNITS = frozenset(name for name in UNITS if len(name) == 1 and name.isalpha())
"""Letters that are units; any other single letter beside a number is taken for a variable."""
_TIME = frozenset({"second", "minute", "hour", "day", "week", "month", "year"})
MULTIPLIERS = {
    "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "k": 10**3, "mn": 10**6, "bn": 10**9, "mio": 10**6, "lakh": 10**5, "crore": 10**7,
}  # fmt: skip
PRICE_MULTIPLIERS = {"m": 10**6, "b": 10**9}
"""Letters that multiply only after a currency: "$3m" is three million dollars, "3 m" three metres."""
PERCENT = frozenset({"%", "percent", "per cent", "pct", "percentage"})


def units_of(after: list[str]) -> frozenset[str]:
    """Known units among the words after a number. In a rate the time is left out: "dollars per day" is dollars.

    Questions ask for "dollars per day" and golds say "12 dollars"; only km and miles per hour are units of their own.
    """
    units: set[str] = set()
    previous = ""
    for at, word in enumerate(after):
        unit = UNITS.get(word)
        preposition = word == "in" and at + 1 < len(after)
        far_letter = len(word) < 3 and at > 1  # in "7 pens for m people" m is not metres
        if unit in _TIME and previous in _RATE:
            speed = next((length for length in _SPEEDS if length in units and unit == "hour"), None)
            if speed:
                units = units - {speed} | {_SPEEDS[speed]}
        elif unit and not preposition and not far_letter:
            units.add(unit)
        previous = word
    return frozenset(units)


_SPEEDS = {"kilometre": "kph", "mile": "mph"}
_RATE = frozenset({"per", "a", "an", "each", "every", "one"})


MONEY = frozenset({"dollar", "cent", "euro", "pound", "yen", "yuan", "won", "rupee"})
POWERS = frozenset({"square", "cubic"})
"""Words that make an area or a volume of a length."""
SCALES: dict[str, tuple[str, Fraction]] = {
    unit: (of, Fraction(factor))
    for of, units in {
        "money": {"dollar": "100", "cent": "1"},
        "time": {"second": "1", "minute": "60", "hour": "3600", "day": "86400", "week": "604800"},
        "length": {"millimetre": "1", "centimetre": "10", "metre": "1000", "kilometre": "1000000"},
        "distance": {"inch": "1", "foot": "12", "yard": "36", "mile": "63360"},
        "mass": {"milligram": "1", "gram": "1000", "kilogram": "1000000"},
        "weight": {"ounce": "1", "pound": "16"},
        "volume": {"millilitre": "1", "litre": "1000"},
    }.items()
    for unit, factor in units.items()
}
"""For each unit its dimension, and its size in the smallest unit of that dimension. Months and years have no fixed size."""


def singular(noun: str) -> str:
    """An English noun in the singular, by its ending: enough to compare "apples" with "apple"."""
    for ending, replacement in (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("xes", "x"), ("sses", "ss"), ("s", "")):
        if noun.endswith(ending) and len(noun) > len(ending) + 1 and not noun.endswith("ss" if ending == "s" else "\0"):
            return noun.removesuffix(ending) + replacement
    return noun
