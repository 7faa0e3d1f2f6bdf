"""Choices ("(B) 12 cm"), yes and no, times of the day and dates."""

from __future__ import annotations

import re

from cot_unsloth.core.answers.rule import Comparison, decided
from cot_unsloth.core.answers.symbolic import ComparisonResult
from cot_unsloth.core.answers.text import key, plain

_LETTER = re.compile(r"\(?\s*([A-Za-z])\s*\)?")
_CHOICE = re.compile(
    r"(?:(?:the\s+)?(?:correct\s+|right\s+|best\s+|final\s+)?(?:answer\s+)?(?:option|choice|answer|letter)\s*(?:is|:)?\s*)?"
    r"(?:[(\[]\s*(?P<inside>[A-Za-z])\s*[)\]](?!\s*[-+*/^=_(\[])|(?P<bare>[A-Za-z])(?:\s*[).:\]]|$|\s+-\s+(?=[^\W\d_]{2})|\s*\u2014\s*|,\s+(?=i\.e\.|[^\W\d_]{3})"
    r"|\s+(?=(?:because|since|as)\s|\([^()]+\)$)))\s*(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
_IS_RIGHT = re.compile(
    r"(?:the\s+)?(?:option|choice|answer)?\s*\(?\s*(?P<letter>[A-Za-z])\s*\)?\s+is\s+(?:the\s+)?(?:correct|right|best|true|answer)\b.*",
    re.IGNORECASE | re.DOTALL,
)


_SEVERAL = re.compile(
    r"(?:(?:the\s+)?(?:correct\s+)?(?:options?|choices?|answers?|letters?)\s*(?:is|are|:)?\s*)?(?:both\s+)?"
    r"(?P<letters>\(?[A-Ja-j]\)?(?:(?:\s*[,;]\s*and\s+|\s*[,;]\s*|\s+and\s+|\s*&\s*)\(?[A-Ja-j]\)?){1,9})\.?",
    re.IGNORECASE,
)


_TUPLE = re.compile(r"\([a-j](?:\s*,\s*[a-j])+\)")
"""Small letters in one pair of parentheses are variables in their order."""


def choice(text: str) -> tuple[str, str] | None:
    r"""The letter of the choice that a text names, and the words after it; None if it names none.

    >>> choice("(B) 12 cm"), choice("Option b"), choice("\\boxed{\\text{C}}"), choice("D is correct"), choice("A man")
    (('B', '12 cm'), ('B', ''), ('C', ''), ('D', ''), None)
    """
    text = plain(text).strip("*_` ")
    several = None if _TUPLE.fullmatch(text) else _SEVERAL.fullmatch(text)
    if several:
        letters = re.findall(r"(?<![^\W_])[A-Z](?![^\W_])", several["letters"].upper())
        return "".join(sorted(set(letters))) if len(letters) > 1 else letters[0], ""
    match = _CHOICE.fullmatch(text)
    # "A B" and "B or C" name two choices, so no single one.
    if (
        match
        and not re.fullmatch(r"\W*[A-J]\W*", match["rest"])
        and not re.match(r"\W*(?:and|or|nor)\b", match["rest"], re.IGNORECASE)
    ):
        rest = re.sub(r"^[\s*_`.:)-]+", "", match["rest"])
        return (match["inside"] or match["bare"]).upper(), rest.strip()
    right = _IS_RIGHT.fullmatch(text)
    return (right["letter"].upper(), "") if right else None


def choices(gold: str, answer: str, comparison: Comparison) -> ComparisonResult | None:
    """A gold answer that is a letter, with or without its text, matches that letter (whatever follows it) and that text."""
    gold_choice = choice(gold)
    if gold_choice is None:
        # A gold of several letters may be written without separators: "ABD".
        several = choice(answer) if re.fullmatch(r"[A-J]{2,9}", plain(gold)) else None
        return decided(several[0] == plain(gold)) if several and len(several[0]) > 1 else None
    letter, words = gold_choice
    alone = len(letter) > 1 or bool(_LETTER.fullmatch(plain(gold).strip("*_` .")))
    if not words and not alone:
        return None
    answered = choice(answer)
    if len(letter) > 1:
        return decided((answered[0] if answered else plain(answer).upper()) == letter)
    if answered is not None and (answered[0] == letter or not words):
        # "(B) 12 cm" names B. A variable is not a choice, but nobody writes the variable x as "x) ...".
        return decided(answered[0] == letter)
    if words and answered is None:
        return comparison.compare(words, answer)
    # A gold of one letter may also be a variable, and the answer an expression that equals it: left to later rules.
    return "different" if alone and not re.search(r"[=+*/^\\]", plain(answer)) else None


_TRUTH = {"yes": True, "true": True, "correct": True, "no": False, "false": False, "incorrect": False}
_TAKEN_BACK = re.compile(
    r"[\s,.;:!-]*(?:actually|wait|or|and|but)?[\s,]*\b(?:yes|no|true|false)\s*(?:$|[,.;!])", re.IGNORECASE
)
_ANSWERED = re.compile(
    r"(?:(?:(?:so|thus|hence|therefore),? )?(?:it|this|that|the (?:statement|claim|answer|sentence)) is )?(?P<word>yes|no|true|false)\b(?P<rest>[\s,.;:!-].*)?",
    re.IGNORECASE | re.DOTALL,
)


def booleans(gold: str, answer: str, comparison: Comparison) -> ComparisonResult | None:
    """Yes, no, true or false at the beginning of an answer, whatever explanation follows after punctuation."""
    truth = _TRUTH.get(key(gold))
    if truth is None or key(gold) in ("correct", "incorrect"):
        return None
    answered = _ANSWERED.fullmatch(plain(answer).strip("*_`\"' "))
    if not answered:
        return "different"
    rest = (answered["rest"] or "").lstrip()
    if _TAKEN_BACK.match(rest):
        return "different"  # "yes, no"
    if rest and rest[0] not in ",.;:!-" and not re.match(r"(?:it|he|she|they|because|since|as)\b", rest, re.IGNORECASE):
        return "different"  # "no one", "yes or no"
    return decided(_TRUTH[answered["word"].casefold()] == truth)


_TIME = re.compile(r"(\d{1,2})(?::([0-5]\d))?(?::([0-5]\d))?\s?(?:([ap])\.?\s?m\b\.?)?", re.IGNORECASE)
_MONTHS = {
    name: n
    for n, name in enumerate(["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"], 1)
}
_DATE = (
    re.compile(r"(?P<month>[a-z]{3,9})\.? (?P<day>\d{1,2})(?:st|nd|rd|th)?(?:,? (?P<year>\d{4}))?", re.IGNORECASE),
    re.compile(
        r"(?:the )?(?P<day>\d{1,2})(?:st|nd|rd|th)? (?:of )?(?P<month>[a-z]{3,9})\.?(?:,? (?P<year>\d{4}))?",
        re.IGNORECASE,
    ),
)


def _time(text: str) -> tuple[int, int, int, str] | None:
    match = _TIME.fullmatch(plain(text))
    if not match or not (match[2] or match[4]):  # a bare number is not a time: it needs minutes or a.m./p.m.
        return None
    return int(match[1]), int(match[2] or 0), int(match[3] or 0), (match[4] or "").casefold()


def _on_24_hours(clock: tuple[int, int, int, str]) -> tuple[int, int, int]:
    """A time on the 24-hour clock; a time without a.m. or p.m. is unchanged."""
    hour, minute, second, half = clock
    return (hour % 12 + 12 * (half == "p") if half else hour), minute, second


def _date(text: str) -> tuple[int, int, str] | None:
    iso = _ISO_DATE.fullmatch(plain(text))
    if iso:
        return int(iso["month"]), int(iso["day"]), iso["year"]
    match = next((match for pattern in _DATE if (match := pattern.fullmatch(plain(text)))), None)
    month = _MONTHS.get(match["month"][:3].casefold()) if match else None
    return (month, int(match["day"]), match["year"] or "") if match and month else None


_ISO_DATE = re.compile(r"(?P<year>\d{4})-(?P<month>\d{2})-(?P<day>\d{2})")


def times(gold: str, answer: str, comparison: Comparison) -> ComparisonResult | None:
    """Two times of day, or two dates; a "p.m." or a year that only one of them has is not a contradiction."""
    clocks = [clock for text in (gold, answer) if (clock := _time(text))]
    if len(clocks) == 2 and sum(bool(clock[-1]) for clock in clocks) == 1 and max(clocks)[0] > 12:
        return decided(_on_24_hours(clocks[0]) == _on_24_hours(clocks[1]))
    for read in (_time, _date):
        left, right = read(gold), read(answer)
        if left is not None and right is not None:
            return decided(left[:-1] == right[:-1] and (left[-1] == right[-1] or not (left[-1] and right[-1])))
    return None
