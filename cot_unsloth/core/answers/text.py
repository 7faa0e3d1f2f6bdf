r"""Normalises how an answer is written: wrappers, LaTeX markup, Unicode variants.

Gold answers and models' answers are normalised alike. `unwrapped` removes what surrounds an answer
(`$…$`, `\boxed{}`, `**…**`, `<answer>…</answer>`, quotes, "The answer is …"); `cleaned` rewrites what LaTeX and Unicode
spell in several ways; `plain` is the form that words and numbers are read from. All of it is linear in the length of the
text.
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata

from cot_unsloth.core.answers.east_asian import changes_number, with_english_quantities

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_SUBSCRIPT = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_FRACTIONS = {
    "½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5",
    "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8", "⅐": "1/7", "⅑": "1/9", "⅒": "1/10",
}  # fmt: skip
_FRACTION = re.compile(f"(\\d?)\\s*([{''.join(_FRACTIONS)}])")
_CHARACTERS = str.maketrans(
    {
        "\u2212": "-", "\u2013": "-", "\ufe63": "-", "\uff0d": "-", "\u2010": "-", "\u2011": "-", "\u2044": "/", "\u2215": "/",
        "\u00d7": "\\times ", "\u22c5": "*", "\u00b7": "*", "\u2217": "*", "\u00f7": "/", "\u221a": "\\sqrt",
        "\u03c0": "\\pi ", "\u221e": "\\infty ", "\u2264": "\\le ", "\u2265": "\\ge ", "\u2260": "\\ne ",
        "\u00b1": "\\pm ", "\u222a": "\\cup ", "\u2229": "\\cap ", "\u2208": "\\in ", "\u2205": "\\emptyset ",
        "\u211d": "\\mathbb{R}", "\u27e8": "\\langle ", "\u27e9": "\\rangle ", "\u21d2": "\\Rightarrow ", "\u2192": "\\to ",
        "\u2234": "\\therefore ", "\u2022": "", "\u00b0": "^\\circ ", "\u201c": '"', "\u201d": '"', "\u201e": '"', "\u2018": "'", "\u2019": "'",
        "\u00ab": '"', "\u00bb": '"', "\u200b": "", "\ufeff": "", "\u2060": "", "\u3002": ". ", "\uff0c": ", ",
    }
)  # fmt: skip

_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "θ": "theta", "λ": "lambda", "ρ": "rho",
    "σ": "sigma", "τ": "tau", "φ": "phi", "ϕ": "phi", "ψ": "psi", "ω": "omega", "Δ": "Delta",
}  # fmt: skip
_CHARACTERS.update({ord(letter): f"\\{name} " for letter, name in _GREEK.items()})
_ROOT_SIGN = re.compile(r"√\s*(\d+(?:\.\d+)?|[A-Za-z])")
_EMOJI = re.compile("[\u2600-\u27bf\u2b50\ufe0f\U0001f300-\U0001faff]")
_BOLD = re.compile(r"(?<![\w)*])\*\*(?=[^\s*])([^*\n]{1,200})(?<=\S)\*\*(?![\w(*])")
"""Bold words inside a text; `2**3` is a power."""
_UNION = re.compile(r"(?<=[)\]])\s*U\s*(?=[(\[])")
_BARE_ROOT = re.compile(r"(\\sqrt\s*\[[^\]]{1,9}\])\s*(\w)")

_TEXT_COMMANDS = r"text|textbf|textit|textrm|texttt|textsf|textnormal|mathrm|mathbf|mathit|mathsf|mbox|hbox|emph|underline|ce|operatorname\*?"
_TEXT = re.compile(rf"\\(?:{_TEXT_COMMANDS})\s*\{{([^{{}}]*)\}}")
_SPACING = re.compile(
    r"(?<!\\)\\(?:[,;:! ]|quad\b|qquad\b|displaystyle\b|textstyle\b|limits\b|left\b|right\b|[Bb]igg?[lr]?\b"
    r"|[Ll]arge\b|LARGE\b|[Hh]uge\b|small\b|bf\b|bfseries\b|rm\b|it\b|(?:text)?color\s*\{[A-Za-z]{1,20}\}|[()\[\]])"
)
"""Commands that set spacing, size, weight or colour, and the delimiters of inline maths inside a text."""
_SPACED = re.compile(r"(?<!\\)\\(?:[;: ]|quad\b|qquad\b)")
_DEGREES = re.compile(r"\^\s*(?:\\circ\b|\{\s*\\circ\s*\})|\\degrees?\b|\\textdegree\b")
_COMMAND_BEFORE_DIGIT = re.compile(r"(\\(?!(?:[dtc]?frac|sqrt)\d)[A-Za-z]+)(?=\d)")
r"""A command that a digit follows at once, as in `x\leq5`: it ends there, but `\b` sees no end between a letter and a digit."""
_NAMES = (
    (re.compile(r"\\[dtc]frac\b"), r"\\frac"),
    (re.compile(r"\\(?:leq|leqslant)\b"), r"\\le"),
    (re.compile(r"\\(?:geq|geqslant)\b"), r"\\ge"),
    (re.compile(r"\\(?:neq|not\s*=)"), r"\\ne"),
    (re.compile(r"\\varnothing\b"), r"\\emptyset"),
    (re.compile(r"!="), r"\\ne "),
    (re.compile(r"\\langle\b"), "("),
    (re.compile(r"\\rangle\b"), ")"),
    (re.compile(r"(?<=[(\[,\s+-])(?:inf|oo|infinity)(?=\s*[,)\]])", re.IGNORECASE), r"\\infty"),
    (re.compile(r"\\overline\s*\{\s*([A-Z]{2})\s*\}"), r"\1"),
    (re.compile(r"^([A-Za-z])\s+(?:is\s+equal\s+to|equals|is)\s+(?=[-+\d\\(])"), r"\1 = "),
    (re.compile(r"\bper cent\b", re.IGNORECASE), "percent"),
    (re.compile(r"(?:the\s+)?(?:set\s+of\s+)?(?:all\s+)?real\s+numbers|all\s+reals", re.IGNORECASE), r"\\mathbb{R}"),
    (re.compile(r"^(?:the\s+)?empty\s+set$", re.IGNORECASE), r"\\emptyset"),
)

_SINGLE = {
    "**": "**",
    "__": "__",
    "```": "```",
    "`": "`",
    '"': '"',
    "$$": "$$",
    "$": "$",
    "*": "*",
    "_": "_",
    "''": "''",
    "'": "'",
}
_PAIRED = {"\\(": "\\)", "\\[": "\\]"}
_LINE_BREAK = re.compile(r"<\s*br\s*/?\s*>", re.IGNORECASE)
_BRACKET_TAG = re.compile(r"\[(answer|solution|result)\]\s*(.+?)\s*\[/\1\]", re.IGNORECASE | re.DOTALL)
_MARKUP = re.compile(r"<\s*(/?)\s*([A-Za-z][A-Za-z_-]{0,30})\s*>")
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{")
_TEXT_BOX = re.compile(rf"\\(?:{_TEXT_COMMANDS})\s*\{{")
_LEAD = re.compile(
    r"(?:(?:so|thus|hence|therefore|finally|final)\b[\s,:]*)*"
    r"(?:(?:the|my|our|a)\s+)?(?:(?:final|correct|right|best)\s+)*(?:answer|ans|result|solution|value)\s*"
    r"(?:(?:is|are|=>|=|:|equals|\\(?:to|Rightarrow)(?![A-Za-z]))\s*)+"
    r"|(?:=>|->|\\(?:Rightarrow|rightarrow|to|implies|therefore)(?![A-Za-z]))\s*",
    re.IGNORECASE,
)
_HEADING = re.compile(r"#{1,6}\s+|(?:json|text|latex|plaintext)\n")
"""A Markdown heading's mark, and the language that the first line of a fenced block names."""
_ANSWER_KEYS = ("final_answer", "answer", "result", "solution", "output")
_ENDS = " \t\r\n.,;:。，；："
MOST_COMPARED = 2_000
"""Longest answer, in characters, that is compared by more than its exact text; final answers are far shorter."""


def closing_brace(text: str, begin: int) -> int:
    r"""Where the brace that was opened just before `begin` is closed; -1 if it is not. `\{` and `\}` do not count."""
    depth, at = 1, begin
    while at < len(text):
        if text[at] == "\\":
            at += 2
            continue
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return at
        at += 1
    return -1


def unwrapped(text: str) -> str:
    r"""An answer without its wrappers, however many there are.

    >>> [unwrapped(t) for t in ("\\[ \\boxed{5} \\]", "**The answer is $\\frac12$.**", "<answer>7</answer>")]
    ['5', '\\frac12', '7']
    """
    text = text.strip()
    for _ in range(20):
        before = text
        text = _without_one_wrapper(text)
        if text == before:
            break
    return text


def _without_one_wrapper(text: str) -> str:
    text = _trimmed(text)
    for inside in (_in_braces(text), _in_tags(text), _in_quotes(text), json_answer(text)):
        if inside is not None:
            return inside
    for pattern in (_HEADING, _LEAD):
        lead = pattern.match(text)
        if lead and lead.end() < len(text):
            return text[lead.end() :]
    return text


def _in_braces(text: str) -> str | None:
    r"""The inside of `\boxed{…}`, `\text{…}` or `{…}`; a set {1, 2} and a JSON object keep their braces."""
    for pattern in (_BOX, _TEXT_BOX):
        box = pattern.match(text)
        if box and closing_brace(text, box.end()) == len(text) - 1:
            return text[box.end() : -1]
    if text.startswith("{") and not re.search('[,"]', text) and closing_brace(text, 1) == len(text) - 1:
        return text[1:-1]
    return None


def _in_tags(text: str) -> str | None:
    """The inside of `<answer>…</answer>` or `[ANSWER]…[/ANSWER]`."""
    tagged = _BRACKET_TAG.fullmatch(text)
    if tagged:
        return tagged[2]
    tag = _MARKUP.match(text)
    if tag and not tag[1]:
        tail = text[-60:]
        end = re.search(rf"<\s*/\s*{tag[2]}\s*>\s*$", tail, re.IGNORECASE)
        if end:
            return text[tag.end() : len(text) - len(tail) + end.start()]
    return None


def _in_quotes(text: str) -> str | None:
    r"""The inside of `\(…\)`, `$…$`, `**…**`, quotes and the like."""
    for begin, end in _PAIRED.items():
        if text.startswith(begin) and text.endswith(end) and begin not in text[2:]:
            return text[2:-2]
    for mark, end in _SINGLE.items():
        inside = text[len(mark) : -len(end)]
        if (
            len(text) > 2 * len(mark)
            and text.startswith(mark)
            and text.endswith(end)
            and inside.strip()
            and mark not in inside
        ):
            return inside
    return None


def json_answer(text: str) -> str | None:
    """The answer in a JSON object, under "answer" or a similar key, or under its only key; None for any other text.

    >>> json_answer('{"reasoning": "9 * 2", "answer": 18.0}'), json_answer("{1, 2}")
    ('18.0', None)
    """
    text = text.strip()
    if text.startswith("```") and text.endswith("```"):
        text = text[3:-3].strip().removeprefix("json").strip()
    if not (text.startswith("{") and text.endswith("}") and '"' in text):
        return None
    try:
        # Numbers stay as they were written: a float would turn 0.10 into 0.1, and 1e400 into infinity.
        values = json.loads(text, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return None
    named = {name.casefold().replace(" ", "_"): value for name, value in values.items()}
    value = next((named[name] for name in _ANSWER_KEYS if name in named), None)
    if value is None and len(named) == 1:
        value = next(iter(named.values()))
    return value if isinstance(value, str) else str(value).casefold() if isinstance(value, bool) else None


def _trimmed(text: str) -> str:
    """Without white space and closing punctuation; the point of ".5" is kept."""
    text = text.rstrip(_ENDS).lstrip(":;, \t\r\n")
    # "3!" is a factorial, "It is 72!" an exclamation.
    return text.rstrip("!").rstrip(_ENDS) if text.endswith("!") and re.search(r"[^\W\d_]{2,}", text) else text


_CONTINUED = re.compile(r"(?<!\d)(\d{0,9}\.\d{0,9}?)(\d)\2{2,9}(?:\.{3}|\\[lc]?dots\b)")
"""A decimal whose last digit goes on: 0.8333..."""


@functools.lru_cache(maxsize=4096)
def cleaned(text: str) -> str:
    r"""An answer in one LaTeX spelling: unwrapped, without markup for spacing and size, Unicode signs as commands.

    >>> cleaned("$\\dfrac{1}{2}\\text{ cm}$"), cleaned("5²"), cleaned("10,\\!080")
    ('\\frac{1}{2} cm', '5^{2}', '10,080')
    """
    text = _SUPERSCRIPT.sub(lambda m: "^{" + m[0].translate(_SUPERSCRIPTS) + "}", text)
    text = _SUBSCRIPT.sub(lambda m: "_{" + m[0].translate(_SUBSCRIPTS) + "}", text)
    text = _FRACTION.sub(lambda m: f"{m[1]} {_FRACTIONS[m[2]]}" if m[1] else _FRACTIONS[m[2]], text)
    text = _ROOT_SIGN.sub(r"\\sqrt{\1}", _EMOJI.sub("", text))
    # After the superscripts and fractions above: NFKC would make 5² into 52 and 1½ into 11/2.
    text = unicodedata.normalize("NFKC", text.translate(_CHARACTERS))
    text = _COMMAND_BEFORE_DIGIT.sub(r"\1 ", text)
    text = _CONTINUED.sub(r"\1\\overline{\2}", _LINE_BREAK.sub(" ", text))
    text = unwrapped(_BOLD.sub(r"\1", unwrapped(text)))
    text = _SPACED.sub(" ", text)
    text = _SPACING.sub("", text).replace("~", " ").replace("{,}", ",")
    for pattern, name in _NAMES:
        text = pattern.sub(name, text)
    for _ in range(5):  # nested commands, from the inside out
        text, changed = _TEXT.subn(r" \1 ", text)
        if not changed:
            break
    text = _BARE_ROOT.sub(r"\1{\2}", _UNION.sub(r" \\cup ", text))
    text = text.replace("\\%", "%").replace("\\$", "$").replace("\\#", "#").replace("\\&", "&")
    return " ".join(unwrapped(text).split())


_SIMPLE_FRACTION = re.compile(r"\\frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_TIMES_POWER = re.compile(r"(?<=\d)\s*[xX]\s*10\s*\^")
"""The letter x for a sign of multiplication, as in "6.5 x 10^-2"."""


@functools.lru_cache(maxsize=4096)
def plain(text: str) -> str:
    r"""An answer as people type it: fractions with a slash, products with `*`, powers with `^`, degrees as a word.

    >>> plain("\\frac{3}{4}"), plain("90^\\circ"), plain("6.5 \\times 10^{-2}"), plain("1\\frac{1}{2}")
    ('(3)/(4)', '90 degrees', '6.5 * 10^(-2)', '1 (1)/(2)')
    """
    text = _DEGREES.sub(" degrees ", cleaned(text))
    text = _SIMPLE_FRACTION.sub(lambda m: f" ({m[1] or m[2]})/({m[3] or m[4]})", text)
    text = re.sub(r"\\(?:cdot|times|ast)\b", "*", text).replace("\\div", "/").replace("**", "^")
    text = re.sub(r"\^\s*\{([^{}]*)\}", r"^(\1)", text)
    text = re.sub(r"\\mu\s*(?=m\b)", "μ", text.replace("\\Omega", "Ω"))
    # Only before a power of ten: any other x between numbers may be a variable.
    text = _TIMES_POWER.sub(" * 10^", text)
    text = re.sub(r"\\(?:mathdollar|textdollar)\b", "$", text)
    text = text.replace("\\pm", "±").replace("\\pi", " pi ").replace("\\infty", " infinity ")
    return " ".join((text if changes_number(text) else with_english_quantities(text)).split())


_INDEX = re.compile(r"(?<=[a-z])_\s*\{?(\d)(?!\d)\}?")
"""H_2O and H2O; digits before it would make it the base of a number."""
_HALF_DAY = re.compile(r"(?<![^\W\d_])([ap])\.?\s?m\b\.?")
_ARTICLE = re.compile(r"(?:the|an)\s(?=\w)")
_RATIO = re.compile(r"(?<=\d)\s+to\s+(?=\d)")
_OPERATOR_SPACE = re.compile(r"\s*([-+*/^=<>(){}\[\],|:])\s*")


_ORDINALS = {
    "first": "1st", "second": "2nd", "third": "3rd", "fourth": "4th", "fifth": "5th", "sixth": "6th", "seventh": "7th",
    "eighth": "8th", "ninth": "9th", "tenth": "10th", "eleventh": "11th", "twelfth": "12th",
}  # fmt: skip


@functools.lru_cache(maxsize=4096)
def key(text: str) -> str:
    r"""What two answers with the same wording have in common: case, spacing and closing punctuation do not count.

    >>> key("x^5 - x^4") == key("$x^5-x^4$"), key("1 1/2") == key("11/2"), key("Paris.") == key("paris")
    (True, False, True)
    """
    text = _RATIO.sub(":", plain(text).casefold())
    text = _HALF_DAY.sub(r"\1m", _ARTICLE.sub("", text) if _ARTICLE.match(text) else text)
    text = _INDEX.sub(r"\1", _ORDINALS.get(text, text))
    text = _OPERATOR_SPACE.sub(r"\1", re.sub(r"(?<=\d) (?=[ap]m\b)", "", text))
    return text.rstrip(_ENDS + "\"'`").lstrip(" ,;:\"'`")
