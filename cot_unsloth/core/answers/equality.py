r"""Whether an answer means the gold one, whatever its form.

In order, the cheapest first: the same wording; the letter of a choice; yes or no; one quantity each; a list item by
item; and only then math-verify, in a process that can be killed. A rule decides where it applies, and leaves the rest
to those after it.
"""

from __future__ import annotations

import re

from cot_unsloth.core.answers import symbolic
from cot_unsloth.core.answers.comparison import compound, same_quantity
from cot_unsloth.core.answers.quantity import Quantity, quantity
from cot_unsloth.core.answers.reading import gold_answer, output_readings
from cot_unsloth.core.answers.symbolic import Budget, Verdict
from cot_unsloth.core.answers.text import MOST_COMPARED, cleaned, key, plain, unwrapped
from cot_unsloth.core.answers.units import is_unit


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
        return _decided(bool(key(gold)) and not _differ_in_case(gold, answer))
    for rule in (_choices, _booleans, _times, _approximate, _quantities, _labelled, _lists, _equations, _sentences):
        verdict = rule(gold, answer, budget)
        if verdict is not None:
            return verdict
    return _expressions(gold, answer, budget)


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


def _decided(equal: bool) -> Verdict:
    return "same" if equal else "different"


# Choices --------------------------------------------------------------------------------------------------------------

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


def _choices(gold: str, answer: str, budget: Budget) -> Verdict | None:
    """A gold that is a letter, or a letter with its text, is met by the letter, whatever follows it, or by the text."""
    wanted = choice(gold)
    if wanted is None:
        several = choice(answer) if re.fullmatch(r"[A-J]{2,9}", plain(gold)) else None
        return _decided(several[0] == plain(gold)) if several and len(several[0]) > 1 else None
    letter, words = wanted
    alone = len(letter) > 1 or bool(_LETTER.fullmatch(plain(gold).strip("*_` .")))
    if not words and not alone:
        return None
    found = choice(answer)
    if len(letter) > 1:
        return _decided((found[0] if found else plain(answer).upper()) == letter)
    if found is not None and (found[0] == letter or not words):
        # "(B) 12 cm" names B; "x) ..." for a gold of x would be a variable, and is not written so.
        return _decided(found[0] == letter)
    if words and found is None:
        return compare(words, answer, budget)
    return "different" if alone and not re.search(r"[=+*/^\\]", plain(answer)) else None


# Yes and no -----------------------------------------------------------------------------------------------------------

_TRUTH = {"yes": True, "true": True, "correct": True, "no": False, "false": False, "incorrect": False}
_TAKEN_BACK = re.compile(
    r"[\s,.;:!-]*(?:actually|wait|or|and|but)?[\s,]*\b(?:yes|no|true|false)\s*(?:$|[,.;!])", re.IGNORECASE
)
_SAID = re.compile(
    r"(?:(?:(?:so|thus|hence|therefore),? )?(?:it|this|that|the (?:statement|claim|answer|sentence)) is )?(?P<word>yes|no|true|false)\b(?P<rest>[\s,.;:!-].*)?",
    re.IGNORECASE | re.DOTALL,
)


def _booleans(gold: str, answer: str, budget: Budget) -> Verdict | None:
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
    return _decided(_TRUTH[found["word"].casefold()] == wanted)


# Quantities -----------------------------------------------------------------------------------------------------------


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


def _times(gold: str, answer: str, budget: Budget) -> Verdict | None:
    """Two times of the day, or two dates; a half of the day or a year that only one of them names is no contradiction."""
    for read in (_time, _date):
        left, right = read(gold), read(answer)
        if left is not None and right is not None:
            return _decided(left[:-1] == right[:-1] and (left[-1] == right[-1] or not (left[-1] and right[-1])))
    return None


_ABOUT = re.compile(r"\\approx\b|\\simeq\b|≈|≃")


def _approximate(gold: str, answer: str, budget: Budget) -> Verdict | None:
    r"""`\frac{1}{6} \approx 0.167` says both; of `x \approx 5`, x names what 5 is the value of."""
    sides = [[side.strip() for side in _ABOUT.split(cleaned(text))] for text in (gold, answer)]
    if len(sides[0]) == len(sides[1]) or max(map(len, sides)) > 3:
        return None
    values = [[side for side in text if side and not re.fullmatch(r"\\?[A-Za-z]+", side)] or text for text in sides]
    verdicts = [compare(left, right, budget) for left in values[0] for right in values[1] if left and right]
    return "same" if "same" in verdicts else "too_costly" if "too_costly" in verdicts else "different"


def _quantities(gold: str, answer: str, budget: Budget) -> Verdict | None:
    wanted = _quantity(gold)
    if wanted is None:
        return None
    if _is_said(gold) or _UNSOLVED.match(cleaned(gold)):
        return None  # a sentence that a number stands in is no number: it is compared as text
    found = _quantity(answer)
    if found is not None:
        return _decided(same_quantity(wanted, found) and not _names_another(gold, answer))
    return None if _looks_like_maths(answer) else "different"


def _quantity(text: str) -> Quantity | None:
    return quantity(text) or compound(text)


_UNSOLVED = re.compile(r"(?=[^=]*(?<![A-Za-z\\])[A-Za-z](?![A-Za-z]))(?=[^=]*[-+*/^])[^=]+=")
"""An equation in variables, x^2 + y^2 = 25: as a gold answer it is not its right side."""
_NAMED = re.compile(r"(?P<name>[^\W\d_]{2,})\s+\d[\d.,]*")
_LETTER_LABEL = re.compile(r"([A-Za-z])\s*=[^=]+")


def _names_another(gold: str, answer: str) -> bool:
    """Whether what a gold's number is the name of ("Apollo 11", "x = 5") is something else in the answer."""
    left, right = (_LETTER_LABEL.fullmatch(cleaned(text)) for text in (gold, answer))
    if left and right:
        return left[1].casefold() != right[1].casefold()
    named = _NAMED.fullmatch(plain(gold))
    if not named or not named["name"][0].isupper():
        return False
    words = [word.casefold() for word in re.findall(r"[^\W\d_]{2,}", plain(answer))]
    return bool(words) and not is_unit(named["name"]) and named["name"].casefold() not in words


def _is_said(gold: str) -> bool:
    """Whether a gold answer says more than a number with its unit."""
    return len(re.findall(r"[^\W\d_]{2,}", plain(gold))) > 6


_MATHS_WORDS = frozenset([
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "log", "ln",
    "lg", "exp", "sqrt", "frac", "pi", "theta", "alpha", "beta", "gamma", "phi", "infinity", "infty", "cdot",
    "times", "pm", "le", "ge", "ne", "in", "cup", "cap", "emptyset", "begin", "end", "pmatrix", "bmatrix", "matrix",
    "binom", "mod", "max", "min", "lim", "sum", "int", "prod", "circ", "degrees", "or", "and", "det", "gcd", "lcm",
    "vec", "hat", "bar", "overline", "underline", "lambda", "mu", "sigma", "omega", "delta", "epsilon", "rho",
    "tau", "mathbb", "mathcal", "operatorname", "deg", "rm", "cases", "array", "aligned", "align", "choose",
    "lfloor", "rfloor", "lceil", "rceil", "quad", "dots", "ldots", "cdots", "to", "rightarrow", "implies", "iff",
    "setminus", "subset", "mid", "equiv", "not", "forall", "exists", "infinitely",
])  # fmt: skip


def _looks_like_maths(text: str) -> bool:
    """Whether a text is an expression and not words."""
    text = _without_unit(cleaned(text))
    words = re.findall(r"[^\W\d_]{2,}", re.sub(r"\\[A-Za-z]+", " ", text))
    prose = [word for word in words if word.casefold() not in _MATHS_WORDS and len(word) > 2]
    return not prose and bool(re.search(r"[\d\\^_=+*/()\[\]{}<>-]|^[A-Za-z]$", text))


# Equations and lists --------------------------------------------------------------------------------------------------

_VARIABLE = re.compile(
    r"\s*(\\?[A-Za-z]+(?:_(?:\w|\{\w+\}))?|[A-Za-z]\s*(?:\^\s*\{?-1\}?\s*)?\([^()=]{1,20}\))\s*=\s*(?P<value>[^=]+)"
)


_MEMBER = re.compile(r"\s*(?:[A-Za-z]\s*\\in\b|\([A-Za-z](?:\s*,\s*[A-Za-z]){1,3}\)\s*=)\s*(?P<value>.+)", re.DOTALL)
"""`x \\in` before a set, `(x, y) =` before a point."""


def _labelled(gold: str, answer: str, budget: Budget) -> Verdict | None:
    """`x = ...` on one side only: the variable names what the other side is the value of."""
    members = [_MEMBER.fullmatch(cleaned(text)) for text in (gold, answer)]
    if bool(members[0]) != bool(members[1]):
        left_text, right_text = (
            found["value"] if found else text for found, text in zip(members, (gold, answer), strict=True)
        )
        return compare(left_text, right_text, budget)
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
    if wanted is None and found is not None and not found[0] and quantity(gold) is not None:
        return "different"
    if wanted is not None and found is not None and wanted[0] == "()" and not found[0]:
        found = _point(found[1]) or found
    if wanted is not None and found is not None and found[0] == "()" and not wanted[0]:
        wanted = _point(wanted[1]) or wanted
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


def _point(parts: list[str]) -> tuple[str, list[str]] | None:
    """`x = 1, y = 2` as the point (1, 2): different letters in their order."""
    named = [_VARIABLE.fullmatch(part) for part in parts]
    letters = [found[1] for found in named if found]
    if len(letters) < len(parts) or letters != sorted(set(letters)):
        return None
    return "()", [found["value"].strip() for found in named if found]


def _equations(gold: str, answer: str, budget: Budget) -> Verdict | None:
    """Two equations are the same if the differences of their sides are, up to a sign; an equation is no expression.

    Of an answer such as `\\sqrt{8} = 2\\sqrt{2}` the last side is what it comes to.
    """
    texts = [cleaned(text) for text in (gold, answer)]
    counts = [text.count("=") for text in texts]
    if not any(counts) or any(re.search(r"[<>!:]=|\\(?:begin|equiv|[lg]e)\b", text) or "," in text for text in texts):
        return None
    if counts == [1, 1]:
        left, right = ([side.strip() for side in text.split("=")] for text in texts)
        if not all(left + right):
            return "different"
        difference = f"({left[0]})-({left[1]})"
        verdicts = [_expressions(difference, f"({first})-({last})", budget) for first, last in (right, reversed(right))]
        return "same" if "same" in verdicts else verdicts[-1]
    if counts[0]:
        return "different"
    *sides, last = texts[1].split("=")
    if any(_variables(side) - _variables(last) for side in sides):
        return "different"
    return compare(texts[0], last.strip(), budget)


_SENTENCE = re.compile(
    r"(?:(?:so|thus|hence|therefore),?\s+)?(?:the|this|that|it|he|she|his|her|their)\b(?:\s+[^\s.,;]{1,30}){0,6}?\s+(?:is|are|was|were)\s+(?!not\b)(?P<value>.{1,100})",
    re.IGNORECASE | re.DOTALL,
)


def _sentences(gold: str, answer: str, budget: Budget) -> Verdict | None:
    """What a short sentence says of its subject: "The capital is Paris"."""
    found = _SENTENCE.fullmatch(plain(answer))
    if found and re.search(r"[^\W\d_]{2,}", gold) and key(found["value"]) == key(gold):
        return "same"
    return None


# Expressions ----------------------------------------------------------------------------------------------------------

_MOST_SYMBOLIC = 400
"""Characters beyond which an expression is not compared: the longest gold of MATH-500 has 53."""
_RELATION = re.compile(r"\\(?:ne|le|ge|lt|gt|in|approx|sim|equiv|subset|mid)\b|[<>≈]")
_CONSTANTS = re.compile(r"\\(?:[A-Za-z]+)|\bpi\b|\binfinity\b|\b(?:sqrt|log|ln|exp|sin|cos|tan)\b")
_SPACED_NUMBERS = re.compile(r"(?<![\w}^])\d+\s+\d+(?![\d/])|\(\s*[\d.]+\s*\)\s*\(\s*[\d.]+\s*\)")
_CLOCK_OR_DATE = re.compile(r"\d:\d|\d-\d+-\d|\d/\d+/\d")
_BASE = re.compile(r"(?<=[\dA-F])_\{?\s*(\d{1,2})\s*\}?$")


def _expressions(gold: str, answer: str, budget: Budget) -> Verdict:
    """Two expressions, in the eyes of math-verify; what it would read wrongly, or read only a part of, is different."""
    texts = (gold, answer)
    if any(len(text) > _MOST_SYMBOLIC or not _looks_like_maths(text) for text in texts):
        return "different"
    if any(_SPACED_NUMBERS.search(cleaned(text)) for text in texts):
        return "different"  # it multiplies or adds them
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
    if not _variables(left) and _variables(right) - {"i", "e"} and not _RELATION.search(right):
        return "different"  # what holds a variable is no number: it would read the 0 of "I(0)"
    if _RELATION.search(right) and not _RELATION.search(left):
        left, right = right, left  # math-verify reads an inequality as an interval only where it is the gold
    return symbolic.compare(left, right, budget)


def _variables(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]", _CONSTANTS.sub(" ", text)))


_FUNCTION = re.compile(
    r"(?<![\\A-Za-z])(sqrt|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|ln|exp|pi|infinity|theta)(?![A-Za-z])"
)
_ROOT = re.compile(r"\\sqrt\s*\(([^()]*)\)")
_LAST_WORD = re.compile(r"(?<=[\d}) ])\s*(?P<word>[^\W\d_]{2,})\s*(?:\^\s*\{?[23]\}?)?$")


def _without_unit(text: str) -> str:
    """An expression without the units at its end: `16 \\pi square inches`."""
    for _ in range(4):
        found = _LAST_WORD.search(text[-40:])
        if not found or not (is_unit(found["word"]) or found["word"].casefold() in ("unit", "units", "per")):
            break
        text = text[: len(text) - len(text[-40:]) + found.start()].rstrip()
    return text


def _latex(text: str) -> str:
    """An answer as LaTeX for math-verify: functions with their stroke, powers with one sign, no unit at the end."""
    text = re.sub(r"\\(?:begin|end)\{(?:align\*?|aligned|equation\*?|gather\*?)\}", " ", cleaned(text)).replace(
        "**", "^"
    )
    text = _FUNCTION.sub(lambda m: {"infinity": "\\infty"}.get(m[1], "\\" + m[1]), text)
    text = _ROOT.sub(r"\\sqrt{\1}", text)
    return unwrapped(_without_unit(text.removesuffix("%"))).strip()
