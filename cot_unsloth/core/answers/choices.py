"""Choices ("(B) 12 cm"), yes and no, times of the day and dates."""

from __future__ import annotations

import re

from cot_unsloth.core.answers.rule import Comparison, decided
from cot_unsloth.core.answers.symbolic import Verdict
from cot_unsloth.core.answers.text import key, plain

_LETTER = re.compile(r"\(?\s*([A-Za-z])\s*\)?")
_CHOICE = re.compile(
    r"(?:(?:the\s+)?(?:correct\s+|right\s+|best\s+|final\s+)?(?:answer\s+)?(?:option|choice|answer|letter)\s*(?:is|:)?\s*)?"
    r"(?:[(\[]\s*(?P<inside>[A-Za-z])\s*[)\]](?!\s*[-+*/^=_(\[])|(?P<bare>[A-Za-z])(?:\s*[).:\]]|$|\s+-\s+(?=[^\W\d_]{2})|,\s+(?=i\.e\.|[^\W\d_]{3})"
    r"|\s+(?=(?:because|since|as)\s)))\s*(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
_IS_RIGHT = re.compile(
    r"(?:the\s+)?(?:option|choice|answer)?\s*\(?\s*(?P<letter>[A-Za-z])\s*\)?\s+is\s+(?:the\s+)?(?:correct|right|best|true)\b.*",
    re.IGNORECASE | re.DOTALL,
)


_SEVERAL = re.compile(
    r"(?:(?:the\s+)?(?:correct\s+)?(?:options?|choices?|answers?|letters?)\s*(?:is|are|:)?\s*)?(?:both\s+)?"
    r"(?P<letters>\(?[A-Ja-j]\)?(?:(?:\s*,\s*and\s+|\s*,\s*|\s+and\s+|\s*&\s*)\(?[A-Ja-j]\)?){1,9})\.?",
    re.IGNORECASE,
)


def choice(text: str) -> tuple[str, str] | None:
    r"""The letter of a choice and the words after it, of a text that names one.

    >>> choice("(B) 12 cm"), choice("Option b"), choice("\\boxed{\\text{C}}"), choice("D is correct"), choice("A man")
    (('B', '12 cm'), ('B', ''), ('C', ''), ('D', ''), None)
    """
    text = plain(text).strip("*_` ")
    several = _SEVERAL.fullmatch(text)
    if several:
        letters = re.findall(r"(?<![^\W_])[A-Z](?![^\W_])", several["letters"].upper())
        return "".join(sorted(set(letters))) if len(letters) > 1 else letters[0], ""
    found = _CHOICE.fullmatch(text)
    if (
        found
        and not re.fullmatch(r"\W*[A-J]\W*", found["rest"])
        and not re.match(r"\W*(?:and|or|nor)\b", found["rest"], re.IGNORECASE)
    ):
        rest = re.sub(r"^[\s*_`.:)-]+", "", found["rest"])
        return (found["inside"] or found["bare"]).upper(), rest.strip()
    right = _IS_RIGHT.fullmatch(text)
    return (right["letter"].upper(), "") if right else None


def choices(gold: str, answer: str, comparison: Comparison) -> Verdict | None:
    """A gold that is a letter, or a letter with its text, is matched by the letter, whatever follows it, or by the text."""
    wanted = choice(gold)
    if wanted is None:
        several = choice(answer) if re.fullmatch(r"[A-J]{2,9}", plain(gold)) else None
        return decided(several[0] == plain(gold)) if several and len(several[0]) > 1 else None
    letter, words = wanted
    alone = len(letter) > 1 or bool(_LETTER.fullmatch(plain(gold).strip("*_` .")))
    if not words and not alone:
        return None
    found = choice(answer)
    if len(letter) > 1:
        return decided((found[0] if found else plain(answer).upper()) == letter)
    if found is not None and (found[0] == letter or not words):
        # "(B) 12 cm" names B; "x) ..." for a gold of x would be a variable, and is not written so.
        return decided(found[0] == letter)
    if words and found is None:
        return comparison.compare(words, answer)
    return "different" if alone and not re.search(r"[=+*/^\\]", plain(answer)) else None


_TRUTH = {"yes": True, "true": True, "correct": True, "no": False, "false": False, "incorrect": False}
_TAKEN_BACK = re.compile(
    r"[\s,.;:!-]*(?:actually|wait|or|and|but)?[\s,]*\b(?:yes|no|true|false)\s*(?:$|[,.;!])", re.IGNORECASE
)
_SAID = re.compile(
    r"(?:(?:(?:so|thus|hence|therefore),? )?(?:it|this|that|the (?:statement|claim|answer|sentence)) is )?(?P<word>yes|no|true|false)\b(?P<rest>[\s,.;:!-].*)?",
    re.IGNORECASE | re.DOTALL,
)


def booleans(gold: str, answer: str, comparison: Comparison) -> Verdict | None:
    """Yes, no, true or false, at the head of an answer, with whatever explains it after a comma or a point."""
    wanted = _TRUTH.get(key(gold))
    if wanted is None or key(gold) in ("correct", "incorrect"):
        return None
    found = _SAID.fullmatch(plain(answer).strip("*_`\"' "))
    if not found:
        return "different"
    rest = (found["rest"] or "").lstrip()
    if _TAKEN_BACK.match(rest):
        return "different"  # "yes, no"
    if rest and rest[0] not in ",.;:!-" and not re.match(r"(?:it|he|she|they|because|since|as)\b", rest, re.IGNORECASE):
        return "different"  # "no one", "yes or no"
    return decided(_TRUTH[found["word"].casefold()] == wanted)


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
    found = _TIME.fullmatch(plain(text))
    if not found or not (found[2] or found[4]):
        return None
    return int(found[1]), int(found[2] or 0), int(found[3] or 0), (found[4] or "").casefold()


def _date(text: str) -> tuple[int, int, str] | None:
    found = next((found for pattern in _DATE if (found := pattern.fullmatch(plain(text)))), None)
    month = _MONTHS.get(found["month"][:3].casefold()) if found else None
    return (month, int(found["day"]), found["year"] or "") if found and month else None


def times(gold: str, answer: str, comparison: Comparison) -> Verdict | None:
    """Two times of the day, or two dates; "p.m." or a year that only one of them names is no contradiction."""
    for read in (_time, _date):
        left, right = read(gold), read(answer)
        if left is not None and right is not None:
            return decided(left[:-1] == right[:-1] and (left[-1] == right[-1] or not (left[-1] and right[-1])))
    return None
