"""Numbers with what stands around them: "$1,234.50", "46 dollars", "1 1/2 hours", "so it is 7 apples".

Owns which words may stand around a number without changing what it says, and which do change it ("3 million",
"minus 3", "at least 3", "sqrt(2)"). A text is one quantity, or none: two numbers are none.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from fractions import Fraction

from cot_unsloth.core.answers.text import MOST_COMPARED, plain


@dataclass(frozen=True)
class Quantity:
    """A number and its unit."""

    value: Fraction
    percent: bool = False
    units: frozenset[str] = frozenset()
    """Known units of measure, in their canonical names."""
    noun: str | None = None
    """The one word after the number, where there is but one and it is no known unit."""
    base: str | None = None
    """The base that it is written in, of a number such as 204_5."""


_UNITS: dict[str, str] = {
    name: canonical
    for canonical, names in {
        "dollar": "$ dollars dollar usd bucks buck us$", "cent": "cents cent ¢", "euro": "€ euros euro eur",
        "yen": "¥ yen jpy", "rupee": "₹ rupees rupee rs inr",
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
    return word.casefold() in _UNITS


_SHORT_UNITS = frozenset(name for name in _UNITS if len(name) == 1 and name.isalpha())
_TIME = frozenset({"second", "minute", "hour", "day", "week", "month", "year"})
_MULTIPLIERS = {
    "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "k": 10**3, "mn": 10**6, "bn": 10**9, "mio": 10**6, "lakh": 10**5, "crore": 10**7,
}  # fmt: skip
_PRICE_MULTIPLIERS = {"m": 10**6, "b": 10**9}
"""Letters that are units of measure where no currency stands before the number."""
_PERCENT = frozenset({"%", "percent", "per cent", "pct", "percentage"})
_CHANGES = frozenset([
    "or", "nor", "either", "neither", "versus", "vs", "plus", "minus", "squared", "cubed", "root", "sqrt",
    "factorial", "choose", "mod", "modulo", "base", "infinity", "log", "ln", "exp", "sin", "cos", "tan", "cot",
    "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "min", "max", "gcd", "lcm", "pi", "theta",
    "alpha", "beta", "phi", "half", "halves", "third", "thirds", "twice", "thrice", "double", "triple", "nan",
    "reciprocal", "inverse", "opposite", "cube", "divided", "tens", "hundreds", "thousands", "fifths", "sixths",
    "sevenths", "eighths", "ninths", "tenths", "hundredths", "thousandths", "null", "undefined", "unless",
]) - {"min", "sec"}  # fmt: skip
"""Words that change what a number says, wherever they stand beside it; "min" and "sec" are units of time."""
_CHANGES_BEFORE = re.compile(
    r"(?:(?:\b(?:not|cannot|never)|n't)(?:\s+be)?|\b(?:square|half|third|quarter|multiple|factor|power|logarithm)\s+of"
    r"|\b(?:wrong|incorrect):?|\b(?:except|between|from|below|above|under|over|within|nearly|almost|about half|half|twice)"
    r"|\b(?:more|less|greater|fewer|larger|smaller|higher|lower|bigger|other|rather)\s+than|\bat\s+(?:least|most)|\bup\s+to"
    r"|\b(?:no|any)\s+more\s+than)\s*(?:the\s+|a\s+|exactly\s+)?$",
    re.IGNORECASE,
)
"""What, right before a number, makes another statement of it."""
_CHANGES_AFTER = re.compile(
    r"[\s,]*(?:(?:at\s+(?:least|most)|or\s+(?:more|less)|and\s+(?:up|counting))\b"
    r"|(?:(?:is|was|are)\s+)?(?:wrong|incorrect|(?:not|isn't|aren't)\s+(?:the\s+)?(?:right|correct|answer))\b)",
    re.IGNORECASE,
)
"""What, right after a number, denies it or makes a bound of it."""
_SIGN_WORDS = re.compile(r"\b(?:minus|negative)\s*$", re.IGNORECASE)

_TOKEN = re.compile(
    r"(?P<number>(?:\d{1,3}(?:\.\d{3}){2,}(?![\d.])|(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d{1,3}(?: \d{3})+(?![\d,])|\d+)(?:\.\d+)?)(?:[eE][-+]?\d{1,6}(?![\w.]))?"
    r"|\.\d+(?:[eE][-+]?\d{1,6}(?![\w.]))?)"
    r"|(?P<currency>US\$|[$€£¥₹¢])|(?P<operator>[-+*/^()])|(?P<percent>%)|(?P<word>[^\W\d_]+(?:['’][^\W\d_]+)?)"
    r"|(?P<base>_\s*(?:\{\s*\d{1,2}\s*\}|\(\s*\d{1,2}\s*\)|\d{1,2}(?!\d)))|(?P<mark>[.,;:!?'\"*`])|(?P<space>\s+)|(?P<other>.)",
    re.DOTALL,
)
_MOST_DIGITS = 400
"""Digits of a number beyond which a text is none; golds have a few."""
_MOST_WORDS = 40


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int
    end: int


def quantity(text: str) -> Quantity | None:
    """The one quantity that a text states, or None.

    >>> q = quantity("so it costs $1,234.50 in total")
    >>> float(q.value), sorted(q.units)
    (1234.5, ['dollar'])
    >>> [quantity(t) for t in ("7 or 8", "2x", "sqrt(2)", "not 7", "AZYUK2A")]
    [None, None, None, None, None]
    >>> [str(quantity(t).value) for t in (".5", "- 3", "minus 3", "3 million", "1 1/2", "10^3", "118 000")]
    ['1/2', '-3', '-3', '3000000', '3/2', '1000', '118000']
    """
    if len(text) > MOST_COMPARED:
        return None
    body = _right_side(plain(text))
    if body is None:
        return None
    if re.search(r"\d:\d", body):
        return None  # a time or a ratio, even 12:12
    body = _WORDS_IN_BRACKETS.sub(r" \1 ", body)
    body = _CURRENCY_CODE.sub(r"\1 ", _IN_BASE.sub(_subscript, body))
    body = _AND_A_HALF.sub(lambda m: f" {3 if m[1] else 1}/{_PARTS[m[2].casefold()]}", body)
    body = _REPEATING.sub(_repeating, body)
    body = _POWER_OF_UNIT.sub(_named_power, body)
    body = _PRODUCT_OF_UNITS.sub(lambda m: f"{m[1]} {m[2]}" if m[1].casefold() in _UNITS else m[0], body)
    body = _RATE_OF_UNITS.sub(r"\1 per \2", body)
    if not any(letter.isdigit() for letter in body):
        return _in_words(body)
    tokens = [_Token(str(found.lastgroup), found[0], *found.span()) for found in _TOKEN.finditer(body)]
    return _one_quantity(body, tokens)


_WORDS_IN_BRACKETS = re.compile(r"(?:(?<=\s)|^)\(([^()\d]*[^\W\d_]{2,}[^()\d]*)\)")
_POWER_OF_UNIT = re.compile(r"([A-Za-z]+)\s*\^\s*(?:\(\s*(-?[123])\s*\)|(-?[123]))(?![\d.])")
_PRODUCT_OF_UNITS = re.compile(r"(?<![^\W\d_])([^\W\d_]{1,12})\s*\*\s*(?=[^\W\d_]{1,12}(?![^\W_]))()")
_CURRENCY_CODE = re.compile(r"\b(USD|EUR|GBP|JPY|INR|Rs\.?)\s?(?=\d)")
_BASES = {
    name: base
    for base, name in enumerate(
        ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"], 2
    )
}
_IN_BASE = re.compile(
    rf"(?<=\d)\s*(?:\(?(?:in\s+)?base[\s-]*|_\s*\{{\s*)(\d{{1,2}}|{'|'.join(_BASES)})\s*[)}}]?$|(?<=\d)\)\s*_\s*\{{?(\d{{1,2}})\}}?$",
    re.IGNORECASE,
)
"""The base that a number is written in: "4210 base 5", `4210_{five}`, `(4210)_5`."""
_PARTS = {"half": 2, "third": 3, "quarter": 4, "quarters": 4}
_AND_A_HALF = re.compile(r"(?<=\d)\s+and\s+(?:an?|one|(three))\s+(half|third|quarters?)\b", re.IGNORECASE)
_REPEATING = re.compile(r"(?<![\d.])(\d{0,9})\.(\d{0,9})\\(?:overline|bar)\s*\{?(\d{1,9})\}?")
_RATE_OF_UNITS = re.compile(r"([^\W\d_]+)\s*/\s*([^\W\d_]+)")


def _named_power(found: re.Match[str]) -> str:
    """`cm^2` as "square cm", `s^{-1}` as "per s"; a power of anything else stays."""
    name = {"1": "", "2": "square", "3": "cubic"}[(found[2] or found[3])[-1]]
    if found[1].casefold() not in _UNITS:
        return found[0]
    return f"{' per' if '-' in found[0] else ''} {name} {found[1]}"


def _subscript(found: re.Match[str]) -> str:
    base = (found[1] or found[2]).casefold()
    return f"{')' if found[2] else ''}_{_BASES.get(base, base)}"


def _repeating(found: re.Match[str]) -> str:
    """A repeating decimal as the fraction that it is: 0.1\\overline{6} is 1/6."""
    whole, start, period = found[1] or "0", found[2], found[3]
    scale, nines = 10 ** len(start), 10 ** len(period) - 1
    return f"({(int(whole) * scale + int(start or 0)) * nines + int(period)})/({scale * nines})"


_MONTHS = ["january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december", "jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec"]  # fmt: skip
_MONTH_BEFORE = re.compile(rf"\b(?:{'|'.join(_MONTHS)})\.?(?:\s+\d{{1,2}},?)?\s*$", re.IGNORECASE)
_MONTH_AFTER = re.compile(rf"\s*(?:st|nd|rd|th)?\s+(?:of\s+)?(?:{'|'.join(_MONTHS)})\b", re.IGNORECASE)


def _is_dated(before: str, after: str) -> bool:
    """Whether a month stands right beside a number, as in "June 20" or "20th of June"."""
    return bool(_MONTH_BEFORE.search(before[-24:]) or _MONTH_AFTER.match(after))


_COEFFICIENT = re.compile(r"\d\s?\*?\s?[A-Za-z](?![A-Za-z]|\s?\d)")


def _right_side(text: str) -> str | None:
    """What follows the last equals sign, where the text is one equation: a label or a calculation and its result."""
    if re.search(r"[<>≈≠~|]|\\(?:ne|le|ge|lt|gt|in|approx|sim|equiv|mid)\b|!=", text):
        return None
    if "=" not in text:
        return text
    *left, right = text.split("=")
    if not right.strip():
        return None
    for index, side in enumerate(left):
        words = [word for word in re.findall(r"[^\W\d_]+", side) if len(word) > 1]
        digits = any(letter.isdigit() for letter in side)
        if index and re.search(r"[,;]|\b(?:and|or)\b", side):
            return None  # several equations: "a = 4, b = 5"
        if _COEFFICIENT.search(side):
            return None  # 2x = 6 does not say 6
        if digits and words and not set(words) <= set(_UNITS) | {"times", "frac", "of"} and not _is_said(side):
            return None  # "8 because 2 + 3 = 5" says 8
    if len(re.findall(r"[^\W\d_]{2,}", text)) > _MOST_WORDS // 4:
        return None  # prose that an equation stands in
    return right


def _is_said(side: str) -> bool:
    """Whether the words of a calculation's left side come before its numbers: "The total is 3 + 4 = 7"."""
    first = next(at for at, letter in enumerate(side) if letter.isdigit())
    rest = re.findall(r"[^\W\d_]{2,}", side[first:])
    return all(word.casefold() in _UNITS or word.casefold().rstrip("s") in _UNITS for word in rest)


def _one_quantity(body: str, tokens: list[_Token]) -> Quantity | None:
    spans = _number_spans(tokens)
    if not spans:
        return None
    if len(spans) > 1 and not any(token.kind == "word" for token in tokens):
        return None  # "2, 2" is a list
    found = {_read(body, tokens, begin, end) for begin, end in spans}
    if len(found) != 1 and len({None if q is None else (q.value, q.percent) for q in found}) != 1:
        return None
    return next((q for q in found if q is not None and q.units), next(iter(found)))


def _number_spans(tokens: list[_Token]) -> list[tuple[int, int]]:
    """Stretches of tokens that are one numeric expression each, as (first, after last)."""
    spans: list[tuple[int, int]] = []
    at = 0
    while at < len(tokens):
        if tokens[at].kind not in ("number", "operator", "currency"):
            at += 1
            continue
        begin = at
        while at < len(tokens) and tokens[at].kind in ("number", "operator", "currency", "space"):
            at += 1
        end = at
        while end > begin and tokens[end - 1].kind in ("space", "currency"):
            end -= 1
        if any(token.kind == "number" for token in tokens[begin:end]):
            spans.append((begin, end))
        elif any(token.kind == "operator" and token.text not in "()" for token in tokens[begin:end]):
            return []  # an operator beside a word is no punctuation: "x * y"
    return spans


def _read(body: str, tokens: list[_Token], begin: int, end: int) -> Quantity | None:  # noqa: C901, PLR0911, PLR0912, PLR0915
    """The quantity of one numeric expression and of the words around it."""
    inside = tokens[begin:end]
    stripped = [token for token in inside if token.kind not in ("space", "currency")]
    while len(stripped) > 1 and stripped[0].text == ")":
        stripped = stripped[1:]
    value = evaluate([token.text for token in stripped])
    if value is None or _is_range_or_date(inside):
        return None
    before, after = tokens[:begin], tokens[end:]
    glued_before = before[-1] if before and before[-1].kind not in ("space", "mark") else None
    glued_after = after[0] if after and after[0].kind not in ("space", "mark") else None
    if glued_before is not None and glued_before.kind != "currency":
        return None
    if after and after[0].text == "!" and not any(token.kind == "word" for token in tokens):
        return None  # a factorial
    if any(token.kind in ("other", "base") for token in before) or any(token.kind == "other" for token in after):
        return None
    base = None
    bases = [token for token in after if token.kind == "base"]
    if bases:
        if len(bases) > 1 or bases[0] is not after[0]:
            return None
        base = re.sub(r"\D", "", bases[0].text)
        after = after[1:]
        glued_after = None
    text_before = body[: tokens[begin].start]
    if _CHANGES_BEFORE.search(text_before) or _CHANGES_AFTER.match(body, tokens[end - 1].end):
        return None
    if _is_dated(text_before, body[tokens[end - 1].end :]):
        return None
    if _SIGN_WORDS.search(text_before):
        value = -value
        text_before = _SIGN_WORDS.sub("", text_before)
    words = [token.text.casefold() for token in (*before, *after) if token.kind == "word"]
    after_words = [token.text.casefold() for token in after if token.kind == "word"]
    if glued_after is not None and glued_after.kind == "word" and not _may_be_glued(glued_after.text.casefold()):
        return None
    priced = any(token.kind == "currency" for token in (*before, *inside))
    if after_words[:1] in (["i"], ["a"]) and after_words[1:] == []:
        return None  # 5 i is imaginary
    if after_words and (after_words[0] in _MULTIPLIERS or (priced and after_words[0] in _PRICE_MULTIPLIERS)):
        value *= {**_MULTIPLIERS, **_PRICE_MULTIPLIERS}[after_words[0]]
        words.remove(after_words[0])
        after_words = after_words[1:]
    if _SIGN_WORDS.search(body[: tokens[begin].start]):
        words = [word for word in words if word not in ("minus", "negative")]
    percent = any(token.kind == "percent" for token in after[:2]) or bool(after_words and after_words[0] in _PERCENT)
    if any(token.kind == "percent" for token in after[2:] if not percent) or len(words) > _MOST_WORDS:
        return None
    if not _harmless(words):
        return None
    currency = {_UNITS[token.text.casefold()] for token in (*before, *inside, *after) if token.kind == "currency"}
    units = currency | _units_of(after_words)
    noun = after_words[0] if len(after_words) == 1 and not units and not before else None
    noun = None if noun in _NO_NOUNS else noun
    return Quantity(value, percent, frozenset(units), noun, base)


_NO_NOUNS = frozenset(
    [
        "total",
        "altogether",
        "overall",
        "left",
        "each",
        "remaining",
        "more",
        "unit",
        "units",
        "now",
        "exactly",
        "approximately",
    ]
)


def _may_be_glued(word: str) -> bool:
    """Whether a word may stand right after a number without a space: a unit, an ordinal's ending, a multiplier."""
    return word in _UNITS or word in _MULTIPLIERS or word in ("st", "nd", "rd", "th")


def _harmless(words: list[str]) -> bool:
    """Whether words may stand around a number: none of them changes it, and no lone letter is a variable."""
    return not any(
        word in _CHANGES
        or word in _MULTIPLIERS
        or (len(word) == 1 and word.isascii() and word not in _SHORT_UNITS | {"a", "i"})
        for word in words
    )


def _units_of(after: list[str]) -> frozenset[str]:
    """Known units among the words that follow a number; of a rate ("dollars per day") the time is none."""
    found: set[str] = set()
    previous = ""
    for at, word in enumerate(after):
        unit = _UNITS.get(word)
        preposition = word == "in" and at + 1 < len(after)
        abbreviated = len(word) < 3 and at > 1  # "7 pens for a" ... is no unit of area
        if unit in _TIME and previous in _RATE:
            speed = next((length for length in _SPEEDS if length in found and unit == "hour"), None)
            if speed:
                found = found - {speed} | {_SPEEDS[speed]}
        elif unit and not preposition and not abbreviated:
            found.add(unit)
        previous = word
    return frozenset(found)


_SPEEDS = {"kilometre": "kph", "mile": "mph"}
_RATE = frozenset({"per", "a", "an", "each", "every", "one"})


def _is_range_or_date(tokens: list[_Token]) -> bool:
    """Whether strokes and hyphens stand between numbers as in "2023-01-05", "3-7" or "1/2/2024", and compute nothing."""
    text = "".join(token.text for token in tokens).strip()
    return bool(
        re.fullmatch(r"\d+-\d+", text)
        or re.search(r"\d[-/]\d+[-/]\d", text)
        or re.search(r"(?<![\d.])0\d+[-/]|(?<![eE])[-/]0\d", text)
    )


# Arithmetic -----------------------------------------------------------------------------------------------------------


def evaluate(tokens: list[str]) -> Fraction | None:
    """The exact value of a numeric expression given in tokens; None where it is none, or too large to be an answer.

    A whole number beside a fraction is a mixed number: `1 1/2` is 3/2.

    >>> evaluate(["1", "(", "1", ")", "/", "(", "2", ")"]), evaluate(["2", "^", "99999"])
    (Fraction(3, 2), None)
    """
    if len(tokens) > 60 or sum(map(len, tokens)) > _MOST_DIGITS:
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
        size = max(abs(base.numerator), base.denominator).bit_length()
        if exponent.denominator != 1 or abs(exponent) * max(size, 1) > 4 * _MOST_DIGITS:
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
    """A number as it is written: "1,234.5", ".5", "6.5e-2", "118 000".

    Raises:
        ValueError: it is none, or its exponent is beyond any answer's.
    """
    digits = text.replace(",", "").replace(" ", "")
    digits = digits.replace(".", "") if digits.count(".") > 1 else digits  # 1.234.567
    exponent = re.search(r"[eE]([-+]?\d+)$", digits)
    if exponent and abs(int(exponent[1])) > _MOST_DIGITS:
        raise ValueError(f"{text} is too large")
    if not re.fullmatch(r"(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?", digits):
        raise ValueError(f"{text!r} is no number")
    return Fraction(digits)


def _fraction_of(tokens: list[str]) -> tuple[Fraction, int] | None:
    """A proper fraction of whole numbers at the head of tokens, `1/2` or `(1)/(2)`, and how many tokens it takes."""
    for shape in (("n", "/", "n"), ("(", "n", ")", "/", "(", "n", ")")):
        head = tokens[: len(shape)]
        if len(head) == len(shape) and all(
            want == got or (want == "n" and got.isdigit()) for want, got in zip(shape, head, strict=True)
        ):
            top, bottom = (int(token) for token in head if token.isdigit())
            return (Fraction(top, bottom), len(shape)) if 0 < top < bottom else None
    return None


# Numbers in words -----------------------------------------------------------------------------------------------------

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


def _in_words(text: str) -> Quantity | None:
    """A number written out at the head of a text, with the words of its unit after it: "twenty-five dollars"."""
    words = re.findall(r"[^\W\d_]+|[^\s.,!?]", text.casefold())
    negative = words[:1] in (["minus"], ["negative"])
    words = words[negative:]
    words = words[words[:1] == ["a"] and words[1:2] in (["hundred"], ["thousand"], ["million"]) :]
    if words[:1] in (["hundred"], ["thousand"], ["million"]):
        words = ["one", *words]
    total = current = used = 0
    for word in words:
        if word in _ONES or word in _TENS:
            current += _ONES.get(word, 0) or _TENS.get(word, 0)
        elif word == "hundred" and current:
            current *= 100
        elif word in ("thousand", "million", "billion") and current:
            total, current = total + current * _MULTIPLIERS[word], 0
        elif not (word in ("and", "-") and used):
            break
        used += 1
    rest = words[used:]
    part = _fraction_in_words(rest, used, words, total + current)
    if part is not None:
        return Quantity(-part if negative else part)
    if (
        not used
        or rest[:1] in (["quarter"], ["quarters"])
        or len(rest) > 3
        or not all(word.isalpha() for word in rest)
        or not _harmless(rest)
    ):
        return None
    if words[used - 1] in ("and", "-"):
        return None
    value = Fraction(-(total + current) if negative else total + current)
    return Quantity(
        value,
        bool(rest and rest[0] in _PERCENT),
        _units_of(rest),
        rest[0] if len(rest) == 1 and rest[0] not in _UNITS else None,
    )


_DENOMINATORS = {
    name + ending: value
    for value, name in ((2, "half"), (2, "halve"), (3, "third"), (4, "quarter"), (4, "fourth"), (5, "fifth"), (6, "sixth"),
                        (7, "seventh"), (8, "eighth"), (9, "ninth"), (10, "tenth"), (100, "hundredth"))
    for ending in ("", "s")
}  # fmt: skip


def _fraction_in_words(rest: list[str], used: int, words: list[str], whole: int) -> Fraction | None:
    """A whole text such as "half", "a third", "two-thirds" or "three and a half"."""
    if not rest or rest[-1] not in _DENOMINATORS or any(word in _UNITS for word in words[:used]):
        return None
    bottom, head = _DENOMINATORS[rest[-1]], [word for word in rest[:-1] if word != "-"]
    if not used and (head == ["a"] or (head == [] and bottom == 2)):  # "third" alone is an ordinal
        return Fraction(1, bottom)
    if head == ["a"] and words[used - 1] == "and":
        return whole + Fraction(1, bottom)
    if head == [] and "and" not in words[:used] and whole:
        return Fraction(whole, bottom)
    return None


# Comparison -----------------------------------------------------------------------------------------------------------


def same_quantity(gold: Quantity, answer: Quantity) -> bool:  # noqa: PLR0911
    """Whether two quantities are equal: the same value, and no units that contradict each other.

    A unit that only one of them names is no contradiction; 5% is 5 as well as 0.05.
    """
    if answer.base and answer.base != (gold.base or "10"):
        return False  # a gold's base may go without saying; an answer in another one is another number
    if gold.percent != answer.percent and (gold.units if answer.percent else answer.units):
        return False  # dollars are no percentages
    scaled = _in_one_unit(gold, answer)
    if scaled is not None:
        return scaled[0] == scaled[1]
    values, golds = {answer.value}, {gold.value}
    if answer.percent and not gold.percent:
        # "72%" says 72; but what is a share already (0.5) is no 0.5%.
        values = {answer.value / 100} | ({answer.value} if abs(answer.value) >= 1 else set())
    elif gold.percent and not answer.percent:
        golds |= {gold.value / 100}
    if values.isdisjoint(golds):
        return False
    if gold.units and answer.units:
        if bool(gold.units & _POWERS) != bool(answer.units & _POWERS):
            return False  # an area is no length
        return gold.units <= answer.units or answer.units <= gold.units
    if (gold.noun and answer.units - _MONEY) or (answer.noun and gold.units - _MONEY):
        return False  # 400 nm is not 400 pm, a unit that is not known here
    if gold.noun and answer.noun:
        return _singular(gold.noun) == _singular(answer.noun)
    return True


_MONEY = frozenset({"dollar", "cent", "euro", "pound", "yen", "rupee"})
_POWERS = frozenset({"square", "cubic"})
_SCALES: dict[str, tuple[str, Fraction]] = {
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


def _in_one_unit(gold: Quantity, answer: Quantity) -> tuple[Fraction, Fraction] | None:
    """The values of two quantities in one unit of the same dimension: 3 hours and 180 minutes, 50 cents and $0.50."""
    if len(gold.units) != 1 or len(answer.units) != 1 or gold.units == answer.units:
        return None
    (of, scale), (other, factor) = (_SCALES.get(next(iter(q.units)), ("", Fraction(1))) for q in (gold, answer))
    return (gold.value * scale, answer.value * factor) if of and of == other else None


_PART = re.compile(
    r"(?P<value>[$]?\d{1,12}(?:\.\d{1,6})?)\s?(?P<unit>[^\W\d_]{1,12})\.?(?:\s?,?\s?(?:and\s)?|$)", re.IGNORECASE
)


def compound(text: str) -> Quantity | None:
    """A quantity in several units of one dimension, the larger first, in the largest: "1 hour and 30 minutes".

    >>> compound("1 hr, 30 min") == Quantity(Fraction(3, 2), units=frozenset({"hour"})), compound("3 hours 2 apples")
    (True, None)
    """
    if len(text) > MOST_COMPARED:
        return None
    text, at = plain(text), 0
    sums: list[tuple[Fraction, str]] = []
    while at < len(text):
        found = _PART.match(text, at)
        unit = _UNITS.get(found["unit"].casefold()) if found else None
        if not found or unit not in _SCALES or len(sums) > 5:
            return None
        sums.append((number(found["value"].lstrip("$")), unit))
        at = found.end()
    if len(sums) < 2 or len({_SCALES[unit][0] for _, unit in sums}) > 1:
        return None
    scales = [_SCALES[unit][1] for _, unit in sums]
    if any(first <= second for first, second in itertools.pairwise(scales)):
        return None
    total = sum((value * _SCALES[unit][1] for value, unit in sums), Fraction(0))
    return Quantity(total / scales[0], units=frozenset({sums[0][1]}))


def _singular(noun: str) -> str:
    for ending, singular in (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("xes", "x"), ("sses", "ss"), ("s", "")):
        if noun.endswith(ending) and len(noun) > len(ending) + 1 and not noun.endswith("ss" if ending == "s" else "\0"):
            return noun.removesuffix(ending) + singular
    return noun
