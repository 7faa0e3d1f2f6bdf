r"""Whether an answer means the gold one, whatever its form.

In order, the cheapest first: the same wording; the letter of a choice; yes or no; one quantity each; a list item by
item; and only then math-verify, in a process that can be killed. A rule decides where it applies, and leaves the rest
to those after it.
"""

from __future__ import annotations

import re

from cot_unsloth.answers import symbolic
from cot_unsloth.answers.quantity import quantity, same_quantity
from cot_unsloth.answers.reading import gold_answer, output_readings
from cot_unsloth.answers.symbolic import Budget, Verdict
from cot_unsloth.answers.text import MOST_COMPARED, cleaned, key, plain, unwrapped


def same(gold: str, answer: str) -> bool:
    """Whether an answer, short or worked, means the gold one; one that takes too long to compare does not.

    >>> same("72", "$72.00"), same("1000", "1,000"), same("7", "17"), same("7", "7 or 8"), same("B", "(B) 12 cm")
    (True, True, False, False, True)
    """
    gold, budget = gold_answer(gold), Budget()
    return any(compare(gold, reading, budget) == "same" for reading in output_readings(answer))


def compare(gold: str, answer: str, budget: Budget) -> Verdict:
    """Whether one reading of an answer means the gold one, within what the budget of the answer has left."""
    if not gold.strip() or not answer.strip():
        return "different"
    if gold.strip() == answer.strip():
        return "same"
    if len(answer) > MOST_COMPARED or len(gold) > MOST_COMPARED:
        return "different"
    if key(gold) == key(answer):
        return "same" if key(gold) else "different"
    for rule in (_choices, _booleans, _quantities, _labelled, _lists):
        verdict = rule(gold, answer, budget)
        if verdict is not None:
            return verdict
    return _expressions(gold, answer, budget)


def _decided(equal: bool) -> Verdict:
    return "same" if equal else "different"


# Choices --------------------------------------------------------------------------------------------------------------

_LETTER = re.compile(r"\(?\s*([A-Za-z])\s*\)?")
_CHOICE = re.compile(
    r"(?:(?:the\s+)?(?:correct\s+|right\s+|best\s+|final\s+)?(?:option|choice|answer|letter)\s*(?:is|:)?\s*)?"
    r"(?:\(\s*(?P<inside>[A-Za-z])\s*\)|(?P<bare>[A-Za-z])\s*(?P<mark>[).:\]]|$))\s*(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
_IS_RIGHT = re.compile(
    r"(?:the\s+)?(?:option|choice|answer)?\s*\(?\s*(?P<letter>[A-Za-z])\s*\)?\s+is\s+(?:the\s+)?(?:correct|right|best|true)\b.*",
    re.IGNORECASE | re.DOTALL,
)


def choice(text: str) -> tuple[str, str] | None:
    r"""The letter of a choice and the words after it, of a text that names one.

    >>> choice("(B) 12 cm"), choice("Option b"), choice("\\boxed{\\text{C}}"), choice("D is correct"), choice("A man")
    (('B', '12 cm'), ('B', ''), ('C', ''), ('D', ''), None)
    """
    text = plain(text).strip("*_` ")
    found = _CHOICE.fullmatch(text)
    if found:
        rest = re.sub(r"^[\s*_`.:)-]+", "", found["rest"])
        return (found["inside"] or found["bare"]).upper(), rest.strip()
    right = _IS_RIGHT.fullmatch(text)
    return (right["letter"].upper(), "") if right else None


def _choices(gold: str, answer: str, budget: Budget) -> Verdict | None:
    """A gold that is a letter, or a letter with its text, is met by the letter, whatever follows it, or by the text."""
    wanted = choice(gold)
    if wanted is None:
        return None
    letter, words = wanted
    alone = bool(_LETTER.fullmatch(plain(gold).strip("*_` .")))
    if not words and not alone:
        return None
    found = choice(answer)
    if found is not None and (found[0] == letter or not words):
        # "(B) 12 cm" names B; "x) ..." for a gold of x would be a variable, and is not written so.
        return _decided(found[0] == letter)
    if words and found is None:
        return compare(words, answer, budget)
    return "different" if alone and not re.search(r"[=+*/^\\]", plain(answer)) else None


# Yes and no -----------------------------------------------------------------------------------------------------------

_TRUTH = {"yes": True, "true": True, "correct": True, "no": False, "false": False, "incorrect": False}
_SAID = re.compile(r"(?P<word>yes|no|true|false)\b(?P<rest>[\s,.;:!-].*)?", re.IGNORECASE | re.DOTALL)


def _booleans(gold: str, answer: str, budget: Budget) -> Verdict | None:
    """Yes, no, true or false, at the head of an answer, with whatever explains it after a comma or a point."""
    wanted = _TRUTH.get(key(gold))
    if wanted is None or key(gold) in ("correct", "incorrect"):
        return None
    found = _SAID.fullmatch(plain(answer).strip("*_`\"' "))
    if not found:
        return "different"
    rest = (found["rest"] or "").lstrip()
    if rest and rest[0] not in ",.;:!-" and not re.match(r"(?:it|he|she|they|because|since|as)\b", rest, re.IGNORECASE):
        return "different"  # "no one", "yes or no"
    return _decided(_TRUTH[found["word"].casefold()] == wanted)


# Quantities -----------------------------------------------------------------------------------------------------------


def _quantities(gold: str, answer: str, budget: Budget) -> Verdict | None:
    wanted = quantity(gold)
    if wanted is None:
        return None
    if _is_said(gold):
        return None  # a sentence that a number stands in is no number: it is compared as text
    found = quantity(answer)
    if found is not None:
        return _decided(same_quantity(wanted, found))
    return None if _looks_like_maths(answer) else "different"


def _is_said(gold: str) -> bool:
    """Whether a gold answer says more than a number with its unit."""
    return len(re.findall(r"[^\W\d_]{2,}", plain(gold))) > 6


_MATHS_WORDS = frozenset(
    [
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
        "log",
        "ln",
        "lg",
        "exp",
        "sqrt",
        "frac",
        "pi",
        "theta",
        "alpha",
        "beta",
        "gamma",
        "phi",
        "infinity",
        "infty",
        "cdot",
        "times",
        "pm",
        "le",
        "ge",
        "ne",
        "in",
        "cup",
        "cap",
        "emptyset",
        "begin",
        "end",
        "pmatrix",
        "bmatrix",
        "matrix",
        "binom",
        "mod",
        "max",
        "min",
        "lim",
        "sum",
        "int",
        "prod",
        "circ",
        "degrees",
        "or",
        "and",
        "det",
        "gcd",
        "lcm",
        "vec",
        "hat",
        "bar",
        "overline",
        "underline",
        "lambda",
        "mu",
        "sigma",
        "omega",
        "delta",
        "epsilon",
        "rho",
        "tau",
        "mathbb",
        "mathcal",
        "operatorname",
        "deg",
        "rm",
        "cases",
        "array",
        "aligned",
        "align",
        "choose",
        "lfloor",
        "rfloor",
        "lceil",
        "rceil",
        "quad",
        "dots",
        "ldots",
        "cdots",
        "to",
        "rightarrow",
        "implies",
        "iff",
        "setminus",
        "subset",
        "mid",
        "equiv",
        "not",
        "forall",
        "exists",
        "infinitely",
    ]
)


def _looks_like_maths(text: str) -> bool:
    """Whether a text is an expression and not words."""
    text = cleaned(text)
    words = re.findall(r"[^\W\d_]{2,}", re.sub(r"\\[A-Za-z]+", " ", text))
    prose = [word for word in words if word.casefold() not in _MATHS_WORDS and len(word) > 2]
    return not prose and bool(re.search(r"[\d\\^_=+*/()\[\]{}<>-]|^[A-Za-z]$", text))


# Equations and lists --------------------------------------------------------------------------------------------------

_VARIABLE = re.compile(r"\s*(\\?[A-Za-z]+(?:_(?:\w|\{\w+\}))?|[A-Za-z]\s*\([^()=]{1,20}\))\s*=\s*(?P<value>[^=]+)")


def _labelled(gold: str, answer: str, budget: Budget) -> Verdict | None:
    """`x = ...` on one side only: the variable names what the other side is the value of."""
    left, right = (_VARIABLE.fullmatch(cleaned(text)) for text in (gold, answer))
    if bool(left) == bool(right):
        return None
    inside, other = (left, answer) if left else (right, gold)
    assert inside is not None
    if "=" in other or re.search(r"[,;]|\b(?:and|or)\b", re.sub(r"[\[({].*[\])}]", "", inside["value"])):
        return None
    return compare(inside["value"], answer, budget) if left else compare(gold, inside["value"], budget)


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


def _lists(gold: str, answer: str, budget: Budget) -> Verdict | None:
    """Two lists of as many items: in their order between brackets, in any order without or in braces."""
    wanted, found = items(gold), items(answer)
    if wanted is None or found is None:
        return None
    ordered = wanted[0] not in ("", "{}")
    if ordered and wanted[0] != found[0]:
        return None if not found[0] else "different"
    if len(wanted[1]) != len(found[1]) or len(wanted[1]) > 30:
        return "different" if not ordered else None
    if ordered:
        verdicts = [compare(a, b, budget) for a, b in zip(wanted[1], found[1], strict=True)]
        return next((verdict for verdict in verdicts if verdict != "same"), "same")
    left = list(found[1])
    for item in wanted[1]:
        match = next((other for other in left if compare(item, other, budget) == "same"), None)
        if match is None:
            return "too_costly" if budget.exceeded else "different"
        left.remove(match)
    return "same"


# Expressions ----------------------------------------------------------------------------------------------------------

_MOST_SYMBOLIC = 400
"""Characters beyond which an expression is not compared: the longest gold of MATH-500 has 53."""
_RELATION = re.compile(r"\\(?:ne|le|ge|lt|gt|in|approx|sim|equiv|subset|mid)\b|[<>≈]")
_CONSTANTS = re.compile(r"\\(?:[A-Za-z]+)|\bpi\b|\binfinity\b|\b(?:sqrt|log|ln|exp|sin|cos|tan)\b")
_CLOCK_OR_DATE = re.compile(r"\d:\d|\d-\d+-\d|\d/\d+/\d")
_BASE = re.compile(r"(?<=[\dA-F])_\{?\s*(\d{1,2})\s*\}?$")


def _expressions(gold: str, answer: str, budget: Budget) -> Verdict:
    """Two expressions, in the eyes of math-verify; what it would read wrongly, or read only a part of, is different."""
    texts = (gold, answer)
    if any(len(text) > _MOST_SYMBOLIC or not _looks_like_maths(text) for text in texts):
        return "different"
    left, right = (_latex(text) for text in texts)
    if any(_CLOCK_OR_DATE.search(text) and "\\" not in text for text in (left, right)):
        return "different"
    if bool(_RELATION.search(left)) != bool(_RELATION.search(right)) and not (
        "[" in left + right or "(" in left + right
    ):
        return "different"  # math-verify reads the 5 out of "\neq 5"
    bases = [found[1] if (found := _BASE.search(text)) else None for text in (left, right)]
    if bases[0] != bases[1] and all(bases):
        return "different"  # 204_5 is not 204_6, of which it reads 204 alone
    if not _variables(left) and _variables(right) - {"i", "e"}:
        return "different"  # what holds a variable is no number: it would read the 0 of "I(0)"
    return symbolic.compare(left, right, budget)


def _variables(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]", _CONSTANTS.sub(" ", text)))


_FUNCTION = re.compile(
    r"(?<![\\A-Za-z])(sqrt|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|ln|exp|pi|infinity|theta)(?![A-Za-z])"
)
_ROOT = re.compile(r"\\sqrt\s*\(([^()]*)\)")
_NEXT_UNIT = re.compile(
    r"(?<=[\d}) ])\s*(?:degrees?|cm|mm|km|kg|units?|square units?|inches|feet|meters?|metres?|m/s|dollars?|cents?|%)\s*(?:\^\{?[23]\}?)?$"
)


def _latex(text: str) -> str:
    """An answer as LaTeX for math-verify: functions with their stroke, powers with one sign, no unit at the end."""
    text = re.sub(r"\\(?:begin|end)\{(?:align\*?|aligned|equation\*?|gather\*?)\}", " ", cleaned(text)).replace(
        "**", "^"
    )
    text = _FUNCTION.sub(lambda m: {"infinity": "\\infty"}.get(m[1], "\\" + m[1]), text)
    text = _ROOT.sub(r"\\sqrt{\1}", text)
    return unwrapped(_NEXT_UNIT.sub("", text)).strip()
