"""Numbers and the words around them: "$1,234.50", "46 dollars", "1 1/2 hours", "so it is 7 apples".

Decides which words around a number leave its meaning alone and which change it ("3 million", "minus 3", "at least 3",
"sqrt(2)"). A text states one quantity or none; two numbers count as none. In doubt the result is none: a wrong answer counted
as right falsifies a comparison, whereas a right answer in a strange form is merely rare.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from cot_unsloth.core.answers.arithmetic import evaluate
from cot_unsloth.core.answers.east_asian import changes_number
from cot_unsloth.core.answers.number_words import number_in_words
from cot_unsloth.core.answers.text import MOST_COMPARED, plain
from cot_unsloth.core.answers.units import MULTIPLIERS, PERCENT, PRICE_MULTIPLIERS, SHORT_UNITS, UNITS, units_of


@dataclass(frozen=True)
class Quantity:
    """A number and its unit."""

    value: Fraction
    percent: bool = False
    units: frozenset[str] = frozenset()
    """Known units of measure, in their canonical names."""
    noun: str | None = None
    """The word after the number, if it is the only word and not a known unit."""
    base: str | None = None
    """The base of a number such as 204_5."""


_CHANGES = frozenset([
    "or", "nor", "either", "neither", "versus", "vs", "plus", "minus", "squared", "cubed", "root", "sqrt",
    "factorial", "choose", "mod", "modulo", "base", "infinity", "log", "ln", "exp", "sin", "cos", "tan", "cot",
    "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "min", "max", "gcd", "lcm", "pi", "theta",
    "alpha", "beta", "phi", "half", "halves", "third", "thirds", "twice", "thrice", "double", "triple", "nan",
    "reciprocal", "inverse", "opposite", "cube", "divided", "tens", "hundreds", "thousands", "fifths", "sixths",
    "sevenths", "eighths", "ninths", "tenths", "hundredths", "thousandths", "null", "undefined", "unless",
]) - {"min", "sec"}  # fmt: skip
"""Words that change the meaning of a number anywhere beside it; "min" and "sec" are units of time here."""
_CHANGES_BEFORE = re.compile(
    r"(?:(?:\b(?:not|cannot|never)|n't)(?:\s+be)?|\b(?:square|half|third|quarter|multiple|factor|power|logarithm)\s+of"
    r"|\b(?:wrong|incorrect):?|\b(?:except|between|from|below|above|under|over|within|nearly|almost|about half|half|twice)"
    r"|\b(?:less|more|prior|[a-z]{2,12}er)\s+(?:than|to)(?:\s+or\s+equal\s+to)?|\b(?:before|step|figure|equation|problem|question)|\bat\s+(?:least|most)|\bup\s+to"
    r"|\b(?:no|any)\s+more\s+than)\s*(?:the\s+|a\s+|exactly\s+)?$",
    re.IGNORECASE,
)
"""Words right before a number that change its meaning."""
_CHANGES_AFTER = re.compile(
    r"[\s,]*(?:(?:at\s+(?:least|most)|or\s+(?:more|less)|and\s+(?:up|counting))\b"
    r"|(?:(?:is|was|are)\s+)?(?:wrong|incorrect|(?:not|isn't|aren't)\s+(?:the\s+)?(?:right|correct|answer))\b"
    # Singular: "36 is not enough" is about the number, "36 are not red" about what it counts.
    r"|(?:is|was|does|did|would|could|can)(?:\s+be)?(?:\s+(?:not|too|wrong|incorrect|impossible|invalid)\b|n't\b)|cannot\s+be\b)",
    re.IGNORECASE,
)
"""Words right after a number that deny it or make it a bound."""
_SIGN_WORDS = re.compile(r"\b(?:minus|negative)\s*$", re.IGNORECASE)

_TOKEN = re.compile(
    r"(?P<number>(?:\d{1,3}(?:\.\d{3}){2,}(?![\d.])|(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d{1,3}(?: \d{3})+(?![\d,])|\d+)(?:\.\d+)?)(?:[eE][-+]?\d{1,6}(?![\w.]))?"
    r"|\.\d+(?:[eE][-+]?\d{1,6}(?![\w.]))?)"
    r"|(?P<currency>US\$|[$€£¥₹¢])|(?P<operator>[-+*/^()])|(?P<percent>%)|(?P<word>[^\W\d_]+(?:['’][^\W\d_]+)?)"
    r"|(?P<base>_\s*(?:\{\s*\d{1,2}\s*\}|\(\s*\d{1,2}\s*\)|\d{1,2}(?!\d)))|(?P<mark>[.,;:!?'\"*`])|(?P<space>\s+)|(?P<other>.)",
    re.DOTALL,
)
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
    # "3 + 4 = 7" states 7: only the last side counts.
    body = _right_side(plain(text))
    if body is None or changes_number(body):
        return None
    if re.search(r"\d:\d", body):
        return None  # a time or a ratio: even 12:12 is not 12
    body = _WORDS_IN_BRACKETS.sub(r" \1 ", body)
    body = _CURRENCY_CODE.sub(r"\1 ", _IN_BASE.sub(_subscript, body))
    body = _AND_A_HALF.sub(lambda m: f" {3 if m[1] else 1}/{_PARTS[m[2].casefold()]}", body)
    body = _AND_A_FRACTION.sub(r"\1 ", body)
    body = _REPEATING.sub(_repeating, body)
    body = _POWER_OF_UNIT.sub(_named_power, body)
    body = _PRODUCT_OF_UNITS.sub(lambda m: f"{m[1]} {m[2]}" if m[1].casefold() in UNITS else m[0], body)
    body = _RATE_OF_UNITS.sub(lambda m: f"{m[1]} per {m[2] or m[3] + ' ' + m[4]}", body)
    body = _UNIT_SQUARED.sub(_power_in_words, body)
    if not any(letter.isdigit() for letter in body):
        return _quantity_in_words(body)
    tokens = [_Token(str(match.lastgroup), match[0], *match.span()) for match in _TOKEN.finditer(body)]
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
_AND_A_FRACTION = re.compile(r"(?<![\d./])(\d{1,9})\s+and\s+(?=\(?\d{1,3}\)?\s*/\s*\(?\d{1,3}(?!\d))")
_REPEATING = re.compile(r"(?<![\d.])(\d{0,9})\.(\d{0,9})\\(?:overline|bar)\s*\{?(\d{1,9})\}?")
_RATE_OF_UNITS = re.compile(r"([^\W\d_]+)\s*/\s*(?:([^\W\d_]+)|\(\s*([^\W\d_]+)[\s*]{1,3}([^\W\d_]+)\s*\))")
_UNIT_SQUARED = re.compile(r"([^\W\d_]+)\s+(squared|cubed)\b", re.IGNORECASE)
_CASED_UNITS = frozenset("njwvcf")
"""Letters that are units only as capitals: 2n and 36j are not newtons and joules."""


def _named_power(power: re.Match[str]) -> str:
    """`cm^2` as "square cm", `s^{-1}` as "per s"; a power of anything else stays."""
    name = {"1": "", "2": "square", "3": "cubic"}[(power[2] or power[3])[-1]]
    if power[1].casefold() not in UNITS:
        return power[0]
    return f"{' per' if '-' in power[0] else ''} {name} {power[1]}"


def _power_in_words(power: re.Match[str]) -> str:
    """`feet squared` as "square feet"; a power of anything else stays."""
    name = "square" if power[2].casefold() == "squared" else "cubic"
    return f"{name} {power[1]}" if power[1].casefold() in UNITS else power[0]


def _subscript(match: re.Match[str]) -> str:
    base = (match[1] or match[2]).casefold()
    return f"{')' if match[2] else ''}_{_BASES.get(base, base)}"


def _repeating(match: re.Match[str]) -> str:
    """A repeating decimal as a fraction: 0.1\\overline{6} is 1/6."""
    whole, start, period = match[1] or "0", match[2], match[3]
    # 0.a(p), a of n and p of k digits, is (a·(10^k - 1) + p) / (10^n · (10^k - 1)).
    scale, nines = 10 ** len(start), 10 ** len(period) - 1
    return f"({(int(whole) * scale + int(start or 0)) * nines + int(period)})/({scale * nines})"


_MONTHS = ["january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december", "jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec"]  # fmt: skip
_MONTH_BEFORE = re.compile(rf"\b(?:{'|'.join(_MONTHS)})\.?(?:\s+\d{{1,2}},?)?\s*$", re.IGNORECASE)
_MONTH_AFTER = re.compile(rf"\s*(?:st|nd|rd|th)?\s+(?:of\s+)?(?:{'|'.join(_MONTHS)})\b", re.IGNORECASE)


def _is_dated(before: str, after: str) -> bool:
    """Whether a month is right beside a number, as in "June 20" or "20th of June"."""
    return bool(_MONTH_BEFORE.search(before[-24:]) or _MONTH_AFTER.match(after))


_COEFFICIENT = re.compile(r"\d\s?\*?\s?[A-Za-z](?![A-Za-z]|\s?\d)")


def _right_side(text: str) -> str | None:
    """The text after the last equals sign of one equation (a label, or a calculation with its result); None for several."""
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
            return None  # 2x = 6 does not state 6
        if digits and words and not set(words) <= set(UNITS) | {"times", "frac", "of"} and not _words_lead(side):
            return None  # "8 because 2 + 3 = 5" states 8
    if len(re.findall(r"[^\W\d_]{2,}", text)) > _MOST_WORDS // 4:
        return None  # prose with an equation in it
    return right


def _words_lead(side: str) -> bool:
    """Whether the words on the left side of a calculation precede its numbers: "The total is 3 + 4 = 7"."""
    first = next(at for at, letter in enumerate(side) if letter.isdigit())
    rest = re.findall(r"[^\W\d_]{2,}", side[first:])
    return all(word.casefold() in UNITS or word.casefold().rstrip("s") in UNITS for word in rest)


def _quantity_in_words(text: str) -> Quantity | None:
    """A number written out at the beginning of a text, with the words of its unit after it: "twenty-five dollars"."""
    written = number_in_words(text)
    if written is None:
        return None
    rest = written.rest
    if written.is_fraction:
        return Quantity(written.value)
    if rest[:1] in (["quarter"], ["quarters"]) or len(rest) > 3:
        return None
    if not all(word.isalpha() for word in rest) or not _harmless(rest):
        return None
    noun = rest[0] if len(rest) == 1 and rest[0] not in UNITS else None
    return Quantity(written.value, bool(rest and rest[0] in PERCENT), units_of(rest), noun)


def _one_quantity(body: str, tokens: list[_Token]) -> Quantity | None:
    spans = _number_spans(tokens)
    if not spans:
        return None
    if len(spans) > 1 and all(token.text.casefold() == "and" for token in tokens if token.kind == "word"):
        return None  # "2, 2" and "2 and 2" are lists
    # The same quantity may be stated twice ("3 + 4 is 7, so 7 apples"): then the reading that has a unit counts.
    quantities = {_read(body, tokens, begin, end) for begin, end in spans}
    if len(quantities) != 1 and len({None if q is None else (q.value, q.percent) for q in quantities}) != 1:
        return None
    return next((q for q in quantities if q is not None and q.units), next(iter(quantities)))


def _number_spans(tokens: list[_Token]) -> list[tuple[int, int]]:
    """The numeric expressions among tokens, as (first, end) positions."""
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
            return []  # operators between words: "x * y"
    return spans


def _read(body: str, tokens: list[_Token], begin: int, end: int) -> Quantity | None:
    """The quantity of one numeric expression, tokens `begin` to `end`, and of the words around it."""
    inside, before, after = tokens[begin:end], tokens[:begin], tokens[end:]
    stripped = [token for token in inside if token.kind not in ("space", "currency")]
    while len(stripped) > 1 and stripped[0].text == ")":
        stripped = stripped[1:]
    value = evaluate([token.text for token in stripped])
    if value is None or _is_range_or_date(inside) or _is_factorial(tokens, after):
        return None
    base, after, glued_after = _split_base(after)
    if base == "unclear" or not _may_touch(before, glued_after):
        return None
    if any(token.kind in ("other", "base") for token in before) or any(token.kind == "other" for token in after):
        return None
    text_before = body[: tokens[begin].start]
    if _CHANGES_BEFORE.search(text_before) or _CHANGES_AFTER.match(body, tokens[end - 1].end):
        return None
    if _is_dated(text_before, body[tokens[end - 1].end :]):
        return None
    negative = bool(_SIGN_WORDS.search(text_before))
    quantity = _with_words(-value if negative else value, before, inside, after, negative)
    return replace(quantity, base=base) if quantity and base else quantity


def _is_factorial(tokens: list[_Token], after: list[_Token]) -> bool:
    """Whether "!" follows a number that has no words around it; after words it is an exclamation."""
    return bool(after) and after[0].text == "!" and not any(token.kind == "word" for token in tokens)


def _split_base(after: list[_Token]) -> tuple[str | None, list[_Token], _Token | None]:
    """The base written right after a number ("unclear" if elsewhere), the tokens after it, and the one that touches it."""
    bases = [token for token in after if token.kind == "base"]
    if not bases:
        touching = after[0] if after and after[0].kind not in ("space", "mark") else None
        return None, after, touching
    if len(bases) > 1 or bases[0] is not after[0]:
        return "unclear", after, None
    return re.sub(r"\D", "", bases[0].text), after[1:], None


def _may_touch(before: list[_Token], after: _Token | None) -> bool:
    """Whether the tokens that touch a number without a space may do so; AZYUK2A and 2x are not quantities."""
    if before and before[-1].kind not in ("space", "mark", "currency"):
        return False
    return after is None or after.kind != "word" or _may_be_glued(after.text.casefold())


def _with_words(
    value: Fraction, before: list[_Token], inside: list[_Token], after: list[_Token], negative: bool
) -> Quantity | None:
    """A value with its multiplier, percent sign and units; None if a word around it changes its meaning."""
    words = [token.text.casefold() for token in (*before, *after) if token.kind == "word"]
    after_words = [token.text.casefold() for token in after if token.kind == "word"]
    if after_words in (["i"], ["a"]) or (after and after[0].text in _CASED_UNITS):
        return None  # 5 i is imaginary, 2n a product
    priced = any(token.kind == "currency" for token in (*before, *inside))
    if after_words and (after_words[0] in MULTIPLIERS or (priced and after_words[0] in PRICE_MULTIPLIERS)):
        value *= {**MULTIPLIERS, **PRICE_MULTIPLIERS}[after_words[0]]
        words.remove(after_words[0])
        after_words = after_words[1:]
    if negative:
        words = [word for word in words if word not in ("minus", "negative")]
    percent = any(token.kind == "percent" for token in after[:2]) or bool(after_words and after_words[0] in PERCENT)
    if any(token.kind == "percent" for token in after[2:] if not percent) or len(words) > _MOST_WORDS:
        return None
    if not _harmless(words):
        return None
    currency = {UNITS[token.text.casefold()] for token in (*before, *inside, *after) if token.kind == "currency"}
    units = currency | units_of(after_words)
    noun = after_words[0] if len(after_words) == 1 and not units and not before else None
    return Quantity(value, percent, frozenset(units), None if noun in _NO_NOUNS else noun)


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
"""Words after a number that name nothing: "12 left" is as good as "12 apples"."""


def _may_be_glued(word: str) -> bool:
    """Whether a word may follow a number without a space: a unit, a multiplier or the ending of an ordinal."""
    return word in UNITS or word in MULTIPLIERS or word in ("st", "nd", "rd", "th")


def _harmless(words: list[str]) -> bool:
    """Whether words leave the meaning of a number alone: none changes it, and no single letter is a variable."""
    return not any(
        word in _CHANGES
        or word in MULTIPLIERS
        or (len(word) == 1 and word.isascii() and word not in SHORT_UNITS | {"a", "i"})
        for word in words
    )


def _is_range_or_date(tokens: list[_Token]) -> bool:
    """Whether the slashes and hyphens between numbers are separators, not operators: "2023-01-05", "3-7", "1/2/2024"."""
    text = "".join(token.text for token in tokens).strip()
    return bool(
        re.fullmatch(r"\d+-\d+", text)
        or re.search(r"\d[-/]\d+[-/]\d", text)
        or re.search(r"(?<![\d.])0\d+[-/]|(?<![eE])[-/]0\d", text)
    )
