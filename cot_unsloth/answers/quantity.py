"""Numbers with what stands around them: "$1,234.50", "46 dollars", "1 1/2 hours", "so it is 7 apples".

Owns which words may stand around a number without changing what it says, and which do change it ("3 million",
"minus 3", "at least 3", "sqrt(2)"). A text is one quantity, or none: two numbers are none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from cot_unsloth.answers.text import MOST_COMPARED, plain


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
        "pound_sterling": "£ gbp", "yen": "¥ yen jpy", "rupee": "₹ rupees rupee rs inr",
        "degree": "degrees degree deg", "radian": "radians radian rad",
        "millimetre": "mm millimeter millimeters millimetre millimetres", "centimetre": "cm centimeter centimeters centimetre centimetres",
        "metre": "m meter meters metre metres", "kilometre": "km kilometer kilometers kilometre kilometres",
        "inch": "in inch inches", "foot": "ft foot feet", "yard": "yd yard yards", "mile": "mi mile miles",
        "gram": "g gram grams", "kilogram": "kg kilogram kilograms kilo kilos", "milligram": "mg milligram milligrams",
        "pound": "lb lbs pound pounds", "ounce": "oz ounce ounces", "ton": "ton tons tonne tonnes",
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
_SHORT_UNITS = frozenset(name for name in _UNITS if len(name) == 1 and name.isalpha())
_TIME = frozenset({"second", "minute", "hour", "day", "week", "month", "year"})
_MULTIPLIERS = {
    "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "k": 10**3, "mn": 10**6, "bn": 10**9, "mio": 10**6, "lakh": 10**5, "crore": 10**7,
}  # fmt: skip
_PERCENT = frozenset({"%", "percent", "per cent", "pct", "percentage"})
_CHANGES = frozenset(
    [
        "or",
        "nor",
        "either",
        "neither",
        "versus",
        "vs",
        "plus",
        "minus",
        "squared",
        "cubed",
        "root",
        "sqrt",
        "factorial",
        "choose",
        "mod",
        "modulo",
        "base",
        "infinity",
        "log",
        "ln",
        "exp",
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "arcsin",
        "arccos",
        "arctan",
        "sinh",
        "cosh",
        "tanh",
        "min",
        "max",
        "gcd",
        "lcm",
        "pi",
        "theta",
        "alpha",
        "beta",
        "phi",
        "half",
        "halves",
        "third",
        "thirds",
        "twice",
        "thrice",
        "double",
        "triple",
        "nan",
        "null",
        "undefined",
        "unless",
    ]
) - {"min", "sec"}  # units of time
"""Words that change what a number says, wherever they stand beside it."""
_CHANGES_BEFORE = re.compile(
    r"(?:\b(?:not|never|cannot|n't|except|between|from|below|above|under|over|within|nearly|almost|about half|half|twice)"
    r"|\b(?:more|less|greater|fewer|larger|smaller|higher|lower|bigger|other|rather)\s+than|\bat\s+(?:least|most)|\bup\s+to"
    r"|\b(?:no|any)\s+more\s+than)\s*(?:the\s+|a\s+|exactly\s+)?$",
    re.IGNORECASE,
)
"""What, right before a number, makes another statement of it."""
_SIGN_WORDS = re.compile(r"\b(?:minus|negative)\s*$", re.IGNORECASE)

_TOKEN = re.compile(
    r"(?P<number>(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d{1,3}(?: \d{3})+(?![\d,])|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,6}(?![\w.]))?"
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
    body = _WORDS_IN_BRACKETS.sub(r" \1 ", body)
    body = _POWER_OF_UNIT.sub(_named_power, body)
    body = _RATE_OF_UNITS.sub(r"\1 per \2", body)
    if not any(letter.isdigit() for letter in body):
        return _in_words(body)
    tokens = [_Token(str(found.lastgroup), found[0], *found.span()) for found in _TOKEN.finditer(body)]
    return _one_quantity(body, tokens)


_WORDS_IN_BRACKETS = re.compile(r"(?:(?<=\s)|^)\(([^()\d]*[^\W\d_]{2,}[^()\d]*)\)")
_POWER_OF_UNIT = re.compile(r"([A-Za-z]+)\s*\^\s*(?:\(\s*([23])\s*\)|([23]))")
_RATE_OF_UNITS = re.compile(r"([^\W\d_]+)\s*/\s*([^\W\d_]+)")


def _named_power(found: re.Match[str]) -> str:
    """`cm^2` as "square cm"; a power of anything else stays."""
    if found[1].casefold() not in _UNITS:
        return found[0]
    return f" {'square' if (found[2] or found[3]) == '2' else 'cubic'} {found[1]}"


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
        if digits and words and not set(words) <= set(_UNITS) | {"times", "frac"} and not _is_said(side):
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


def _read(body: str, tokens: list[_Token], begin: int, end: int) -> Quantity | None:
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
    if _CHANGES_BEFORE.search(text_before):
        return None
    if _SIGN_WORDS.search(text_before):
        value = -value
        text_before = _SIGN_WORDS.sub("", text_before)
    words = [token.text.casefold() for token in (*before, *after) if token.kind == "word"]
    after_words = [token.text.casefold() for token in after if token.kind == "word"]
    if glued_after is not None and glued_after.kind == "word" and not _may_be_glued(glued_after.text.casefold()):
        return None
    if after_words and after_words[0] in _MULTIPLIERS:
        value *= _MULTIPLIERS[after_words[0]]
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
    return Quantity(value, percent, frozenset(units), noun, base)


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
        if unit and not preposition and not abbreviated and not (unit in _TIME and previous in _RATE):
            found.add(unit)
        previous = word
    return frozenset(found)


_RATE = frozenset({"per", "a", "an", "each", "every", "one"})


def _is_range_or_date(tokens: list[_Token]) -> bool:
    """Whether strokes and hyphens stand between numbers as in "2023-01-05", "3-7" or "1/2/2024", and compute nothing."""
    text = "".join(token.text for token in tokens).strip()
    return bool(
        re.fullmatch(r"\d+-\d+", text)
        or re.search(r"\d[-/]\d+[-/]\d", text)
        or re.search(r"(?<![\d.])0\d+[-/]|[-/]0\d", text)
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


# Comparison -----------------------------------------------------------------------------------------------------------


def same_quantity(gold: Quantity, answer: Quantity) -> bool:
    """Whether two quantities are equal: the same value, and no units that contradict each other.

    A unit that only one of them names is no contradiction; 5% is 5 as well as 0.05.
    """
    if (gold.base or answer.base) and gold.base != answer.base and gold.base and answer.base:
        return False
    values = {answer.value, answer.value / 100} if answer.percent and not gold.percent else {answer.value}
    golds = {gold.value, gold.value / 100} if gold.percent and not answer.percent else {gold.value}
    if values.isdisjoint(golds):
        return False
    if gold.percent != answer.percent and (gold.units if answer.percent else answer.units):
        return False  # dollars are no percentages
    if gold.units and answer.units:
        return gold.units <= answer.units or answer.units <= gold.units
    if gold.noun and answer.noun:
        return _singular(gold.noun) == _singular(answer.noun)
    return True


def _singular(noun: str) -> str:
    for ending, singular in (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("xes", "x"), ("sses", "ss"), ("s", "")):
        if noun.endswith(ending) and len(noun) > len(ending) + 1 and not noun.endswith("ss" if ending == "s" else "\0"):
            return noun.removesuffix(ending) + singular
    return noun
