r"""Final answers read from free text.

Decides what marks an answer as final ("The answer is ...", "Answer:", `#### ...`, `\boxed{}`) and which reading counts:
the last explicit mark; without one, the last box; without either, the last line or the last number. A number that happens
to come last never outranks an answer that was marked as such. The time is linear in the length of the text: patterns
repeat at most a fixed number of characters, because a model's output may be thousands of copies of one piece.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from cot_unsloth.core import trace
from cot_unsloth.core.answers.text import closing_brace, json_answer, plain, unwrapped
from cot_unsloth.core.words import WHOLE, count_words, size, words

_BOXED = re.compile(r"\\(?:boxed|fbox|framebox)\s{0,3}\{")
_VERB = r"(?:is|are|was|would\s+be|will\s+be|must\s+be|should\s+be|has\s+to\s+be|becomes|equals|comes\s+to|:|=>|=|\uff1a|\u2192|\u21d2)"
_FILLER = (
    r"(?:[\s,]{1,3}(?:therefore|thus|then|hence|indeed|simply|just|clearly|obviously|actually|definitely|likely|most\s+likely|"
    r"probably|also|still|now|again|equal\s+to|given\s+by|exactly|as\s+follows|the\s+following|:))"
)
_ABOUT = r"(?:\s{1,3}(?:to|for|of|in|here|after|when|with|as|if)\b[^.:=?!\n]{0,80}?)?"
_MARK = re.compile(
    r"(?:"
    # "The answer (Yes or No) to the question is therefore:"; "Final answer:"; "Ans ="
    rf"\b(?:answer|ans)(?:\s+choice)?\b\.?[*_`\"]{{0,3}}(?:\s?\([^()\n]{{0,60}}\))?{_ABOUT}[*_`]{{0,3}}\s{{0,3}}{_VERB}(?![a-z]){_FILLER}{{0,3}}"
    # "the correct option is", "the right choice:"
    rf"|\b(?:correct|right|best|final|appropriate|chosen)\s+(?:option|choice|letter|alternative|statement|result|value)\b[*_`]{{0,3}}\s{{0,3}}{_VERB}(?![a-z]){_FILLER}{{0,3}}"
    # "I would choose (B)"
    r"|\bI(?:'d|\s+would|\s+will|'ll)?\s+(?:choose|pick|select|go\s+with)\b(?:\s+(?:option|answer|choice))?"
    # a heading of its own line: "### Final Answer"
    r"|(?:^|\n)[ \t#*_>-]{0,12}(?:the[ \t]+)?(?:final[ \t]+)?answer[ \t*_:]{0,6}(?=\n)"
    # "The answer is" in Chinese (at the beginning of a line also the first character alone), Japanese and Korean
    r"|(?:答案(?:应该|應該)?|答え)\s?(?:(?:是|为|為|は|[:\uff1a=])\s?){1,2}|(?:^|\n)\s{0,3}答\s?[:\uff1a]|(?:정답|답)\s?(?:은|[:\uff1a])"
    r")",
    re.IGNORECASE,
)
_SOUGHT = re.compile(
    r"\b(?:find|get|determine|compute|calculate|obtain|reach|know|verify|check|guess|give|need|want)\w*\s+"
    r"(?:(?:the|an|our|your|my|this)\s+)?(?:(?:final|correct|right)\s+)?$"
    r"|(?:n't|\bnot)\s+(?:think|believe|say|mean)\s+(?:that\s+)?(?:the\s+)?$",
    re.IGNORECASE,
)
"""Words before "answer" where it is only announced or denied: "To find the answer: ...", "I don't think the answer is"."""
_RIGHT_LETTER = re.compile(
    r"(?:\b(?:option|choice|answer|statement)\s+|(?<![\w(]))\(?(?P<letter>[A-Ja-j])\)?\s+is\s+(?:the\s+)?(?:correct|right|best|answer)\b(?!\s+(?:by|to|in|that|if)\b)",
)
_GSM8K = re.compile(r"####[ \t]*(?P<answer>[^\n#][^\n]*)")
_STARTS_WITH_NUMBER = re.compile(r"[-+\u2212$\u20ac\u00a3\\({\s]{0,6}\.?\d")
_DISPLAY = (("\\[", "\\]"), ("$$", "$$"), ("\\(", "\\)"))
_SENTENCE_END = re.compile(r"[.!](?=\s|$)|。")
_ABBREVIATED = re.compile(r"\b(?:[A-Za-z]{1,2}|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|approx|Mrs)$")
"""A point after one or two letters ends an abbreviation, not a sentence: "3 p.m. on Monday"."""
_CLAUSE = re.compile(
    r";\s+(?=[^\W\d_]{2})|\s*(?:,\s*|\s)(?:because|since|as|which|where|so|giving|meaning|given|i\.e\.)\s|\s?[\uff0c,\uff1b;]\s?(?:因为|因為|由于|由於|なぜなら|왜냐하면)|\s[-\u2013\u2014]\s(?=[^\W\d_]{2})|\s\((?!(?:in\s+)?base\b)(?=[^()]*[a-z]{3})",
    re.IGNORECASE,
)
_NUMBER = re.compile(
    r"(?:(?<![\w)\]}.])[-\u2212])?(?:[$\u20ac\u00a3]\s?)?(?:(?<![\d,.])(?:\d{1,3}(?:\.\d{3}){0,4}|\d{1,20}),\d{1,2}(?![\d,.]*\d)|(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\d])\.\d+)(?:/\d+)?\s?%?"
)
"""A number in a text. `187,00` is one, a decimal comma, and not the last number `00`; `1,2,3` are three."""
_BOLD = re.compile(r"\*\*([^*\n]{1,80})\*\*")
_PART_BEFORE = re.compile(
    r"(?:\d\s?:|[\^_\u221a]\s?[{(]?[-+]?|\\(?!text|boxed|fbox|math(?:bf|rm|it)\b)[A-Za-z]{1,12}\s?(?:\[[^\]]{0,9}\])?(?:\{[^{}]{0,20}\})?\{[-+]?"
    r"|\b(?:minus|negative)\s|\d,?\s(?:and|or)\s|[({\[][^(){}\[\]]{0,30}\d,\s?)$",
    re.IGNORECASE,
)
"""What makes the number after it a part of a ratio, time, power, root, fraction, list or point."""
_PART_AFTER = re.compile(r"\s?(?:\\(?:pi|sqrt|infty|theta|cdot|times)\b|[\u03c0\u221a])|\^|:\d|[ixyz]\b")
"""What makes the number before it a part of a product, power, ratio or complex number."""
_LONE_LETTER = re.compile(r"\s*[*(\[]{0,3}[A-J][)\].:*]{0,3}\s*")
_BRACKETED_LETTER = re.compile(r"(?:^|\s)\(([A-Ja-j])\)(?=[\s.,;:!]|$)")


_TAGGED = re.compile(r"<\s*(?:final[_-]?)?answer\s*>", re.IGNORECASE)
_BETWEEN_BOXES = re.compile(r"[$\s,;]*(?:\\text\s*\{)?\s*(?:and|or)?\s*\}?[$\s,;]*", re.IGNORECASE)
_STRAY_BOLD = re.compile(r"(?<=[^\s*])\*\*(?=[\s.,;:!)]|$)")
_REASON = re.compile(
    r"(?<=\S)(?:,?\s{1,3}|\s\(|\s[-\u2013\u2014]\s)(?:because|since)\s|(?<=\S)[\uff0c,\uff1b;]\s?(?:因为|因為|由于|由於|なぜなら|왜냐하면)|(?<=\S)(?:\s\(|\s[-\u2013\u2014]\s)that\s+is[,\s]",
    re.IGNORECASE,
)


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{}` of a text that is closed; None without one.

    >>> last_boxed("\\boxed{1} and \\boxed{\\frac{1}{2}}")
    '\\frac{1}{2}'
    """
    boxes = _closed_boxes(text)
    return boxes[-1][2] if boxes else None


def _closed_boxes(text: str) -> list[tuple[int, int, str]]:
    """Begin, end and content of the closed ones among the last 20 boxes."""
    boxes: list[tuple[int, int, str]] = []
    # Only the last ones: closing_brace reads to the end for each box that is not closed, so thousands would take
    # quadratic time.
    for begin in [box.end() for box in _BOXED.finditer(text)][-20:]:
        end = closing_brace(text, begin)
        if end >= 0:
            boxes.append((begin, end, text[begin:end].strip()))
    return boxes


def _boxes(text: str) -> tuple[int, int, str] | None:
    """Begin, end and content of the last closed box; boxes in a row are one list."""
    boxes = _closed_boxes(text)
    if not boxes:
        return None
    first, last, content = boxes.pop()
    while boxes:
        gap = text[boxes[-1][1] + 1 : text.rfind("\\", 0, first)]
        if "\n" in gap or len(gap) > 30 or not _BETWEEN_BOXES.fullmatch(gap) or not gap.strip(" $"):
            break
        first, _, previous = boxes.pop()
        content = f"{previous}, {content}"
    return first, last, content


def explicit_answer(text: str) -> str | None:
    r"""The final answer that a text marks as such, by a mark or a `\boxed{}`; None where it marks none.

    >>> explicit_answer("Closest is 85.7. The answer is (C)."), explicit_answer("so \\boxed{7}."), explicit_answer("7")
    ('(C)', '7', None)
    """
    candidates = explicit_readings(text)
    if not candidates:
        return None
    first = candidates[0]
    cut = next(
        (reading for reading in candidates[1:] if len(reading) < len(first) and first.startswith(reading)), first
    )
    return unwrapped(cut if count_words(first) > 3 else first) or None


def explicit_readings(text: str) -> list[str]:
    """The answer after the last explicit mark of a text, or else in its last box, cut off in every plausible way.

    A box after the last mark is one more reading. Empty if nothing is marked.
    """
    value = json_answer(text)
    if value is not None:
        return [value]
    mark, box = _last_mark(text), _boxes(text)
    # A mark inside the box belongs to it: \boxed{\text{Answer: } 7}.
    if mark is None or (box and box[0] <= mark[0] <= box[1]):
        return [box[2]] if box else []
    at, content = mark
    boxed = _boxes(content)
    if boxed is not None:
        return [boxed[2]]
    candidates = list(_cuts(content))
    if box is not None and box[0] > at:
        candidates.append(box[2])
    return list(dict.fromkeys(candidates))


def output_readings(output: str) -> list[str]:
    """Readings of an `<output>`: itself, and, if it is a worked solution, the answer that it marks.

    >>> output_readings("3 + 4 = 7, so the answer is 7.")
    ['3 + 4 = 7, so the answer is 7.', '7.', '7']
    """
    return list(dict.fromkeys([output, *(explicit_readings(output) or (*_last_line(output), *_first_letter(output)))]))


def _last_line(text: str) -> Iterator[str]:
    """The last line of a text; if it gives a reason, also the part before it: "8, because 2 + 6 = 8"."""
    line = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), None)
    if line is not None:
        yield line
        reason = _REASON.search(line)
        if reason:
            yield line[: reason.start()]


def readings(text: str) -> list[str]:
    r"""Possible final answers of a free text; the text counts as right if one of them is.

    If there is an `<output>`, only that is read, and else only what follows a closed block of thinking. With an explicit
    mark or box there are no other readings; without, the readings are the last line, bold text or a letter in brackets in
    it, and the last number.

    >>> readings("so 3 + 4 = 7.\nThe answer is 7.")
    ['7.', '7']
    >>> readings("there are 3, then 7")
    ['there are 3, then 7', '7']
    """
    output = trace.parse(text).output
    body = output if output is not None else trace.after_reasoning(text)
    whole_output = [output] if output is not None else []
    explicit = explicit_readings(body)
    return list(dict.fromkeys([*whole_output, *(explicit or _implicit(body))]))


def _implicit(text: str) -> Iterator[str]:
    lines = list(_last_line(text))
    yield from lines
    for line in lines[:1]:
        yield from _BOLD.findall(line)[-1:]
        yield from (f"({letter})" for letter in _BRACKETED_LETTER.findall(line)[-1:])
    yield from _first_letter(text)
    yield from _last_number(text)


def _first_letter(text: str) -> Iterator[str]:
    """A letter alone on the first line, before an explanation, if no other line is a letter alone."""
    letters = [line for line in text.strip().splitlines() if _LONE_LETTER.fullmatch(line)]
    if len(letters) == 1 and text.strip().startswith(letters[0]):
        yield letters[0]


def _last_number(text: str) -> Iterator[str]:
    r"""The last number of a text, unless it is only a part of what is said: the 2 of `\sqrt{2}`, the 4 of "3:4"."""
    numbers = list(_NUMBER.finditer(text))
    if numbers:
        begin, end = numbers[-1].span()
        if not _PART_BEFORE.search(text[max(0, begin - 40) : begin]) and not _PART_AFTER.match(text, end):
            yield numbers[-1][0].strip()


def _last_mark(text: str) -> tuple[int, str] | None:
    """The end of the last explicit mark that something follows, and the text after it."""
    marked: list[tuple[int, str]] = []
    for mark in reversed(list(_MARK.finditer(text))[-20:]):
        content = _after(text, mark.end())
        # A short window: _SOUGHT is anchored at its end, and would be tried at every position of the text before.
        if content and not _SOUGHT.search(text[max(0, mark.start() - 40) : mark.start()]):
            marked.append((mark.end(), content))
            break
    letters = list(_RIGHT_LETTER.finditer(text))
    if letters:
        marked.append((letters[-1].end(), letters[-1]["letter"]))
    gsm8k = _gsm8k_mark(text)
    if gsm8k:
        marked.append(gsm8k)
    tagged = list(_TAGGED.finditer(text))
    if tagged:
        end = text.find("</", tagged[-1].end())
        if end >= 0 and text[tagged[-1].end() : end].strip():
            marked.append((end, text[tagged[-1].end() : end].strip()))
    return max(marked, key=lambda item: item[0], default=None)


def _gsm8k_mark(text: str) -> tuple[int, str] | None:
    """The last `#### answer`: on the last line, or a number; anything else is a heading."""
    marks = list(_GSM8K.finditer(text))
    for mark in reversed(marks[-20:]):
        answer = mark["answer"].strip()
        if answer and (not text[mark.end() :].strip() or _STARTS_WITH_NUMBER.match(answer)):
            return mark.end("answer") - len(mark["answer"]), answer
    return None


def _after(text: str, begin: int) -> str:
    """The text after a mark: the rest of its line, else the next line that is not blank, or displayed maths."""
    at = begin
    while at < len(text) and (text[at] in " \t\r\n*_`:\u3000" or (text[at] in ">#" and text[at - 1] in "\n>#")):
        at += 1  # > and # are Markdown only at the beginning of a line: "Answer: > 12" is not 12
    for opening, closing in _DISPLAY:
        if text.startswith(opening, at):
            end = text.find(closing, at + len(opening))
            if end >= 0:
                return text[at : _line_end(text, end + len(closing))].strip(" *_`\t\r\n")
    content = text[at : _line_end(text, at)].strip(" *_`\t\r\n")
    return _STRAY_BOLD.sub("", content, count=1) if content.count("**") % 2 else content


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _cuts(content: str) -> Iterator[str]:
    """An answer with and without the text that follows it on its line."""
    # An answer is at the beginning; the limit bounds the searches below.
    content = content[:2000]
    sentence = _SENTENCE_END.search(content)
    first = content[: sentence.start()] if sentence else content
    if not content[len(first) + 1 :].strip() or _ABBREVIATED.search(first):
        yield content
    yield first.strip()
    clause = _CLAUSE.search(first)
    if clause:
        yield first[: clause.start()].strip(" ,*_`")


_PROSE_WORDS = 12
"""Most words of a gold answer that can be compared; the longest of GSM8K and MATH-500 has 6."""


_CHOICE_WITH_TEXT = re.compile(r"\s*(?:\([A-J]\)|[A-J][.):])\s")


def is_prose(gold: str) -> bool:
    """Whether a gold answer is prose, which no answer can be compared with.

    >>> is_prose("Paris, the capital of France"), is_prose("72"), is_prose("Take it " + "as it is and go on " * 3)
    (False, False, True)
    >>> is_prose("法国的首都巴黎"), is_prose("因为小明原来有五个苹果，后来又吃掉了两个，所以他还剩下三个苹果")
    (False, True)
    """
    if _CHOICE_WITH_TEXT.match(gold):
        return False  # only its letter counts
    answer = explicit_answer(gold) or gold
    found = words(re.sub(r"\d", " ", re.sub(r"\\[A-Za-z]+", " ", plain(answer[:4000]))))
    # Not the single letters of a formula; in scripts without spaces a word may be a single character.
    return sum(size(word) for word in found if len(word) > 1 or size(word) < WHOLE) > _PROSE_WORDS * WHOLE


def gold_answer(gold: str) -> str:
    r"""The text that answers are compared with: the gold answer, or the answer that a gold solution marks.

    >>> gold_answer("7 apples"), gold_answer("First we add 3 and 4 apples, and then we see that it is \\boxed{7}.")
    ('7 apples', '7')
    """
    if count_words(gold) <= _PROSE_WORDS and "\n" not in gold.strip():
        return gold
    return explicit_answer(gold) or gold
