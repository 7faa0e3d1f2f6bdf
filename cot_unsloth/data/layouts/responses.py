r"""One response as a trace: which part is reasoning, and which is the answer.

Tags decide if there are any. Without tags, a text counts as reasoning only if its answer is known from elsewhere: a gold
answer in another column, or a `\boxed{}`, `#### 72` or "The answer is 72" at its end. An answer is never guessed from
prose.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cot_unsloth.core import answers, trace
from cot_unsloth.core.answers.quantity import quantity
from cot_unsloth.core.types import Part, Trace
from cot_unsloth.core.words import count_words
from cot_unsloth.data.layouts.row import RowError

_CALCULATOR = re.compile(r"<<[-+*/().,\d\s$%^=xX]*=[-+*/().,\d\s$%]*>>")
"""GSM8K's calculator annotations, `48/2 = <<48/2=24>>24`. They call a tool that a model does not have at inference."""
_THOUSANDS = re.compile(r"(?P<kept>[(\[{][^()\[\]{}]*[)\]}])|(?<=\d),(?=\d{3}\b)")
"""The commas of 1,234; those inside brackets are kept, as in the point (2,100)."""
_MORE_NUMBERS = re.compile(r"[.;:]\s+[-+]?[$€£]?\d")
"""After a number: a ratio, 5: 3, or another answer, 12; 15."""
_EXPLAINED = re.compile(
    r"\s*(?:[,\u2013\u2014-]\s*(?![-+$€£]?\d)|\(|(?:because|since|as|so|which|where)\b)", re.IGNORECASE
)
"""After a number: what explains it, and is no part of the answer."""
_NUMBER = r"[-+]?[$€£]?\d(?:[\d,]*\d)?(?:\.\d+)?(?:/\d+)?%?"
_NUMERIC_MARK = re.compile(rf"\s*####\s*{_NUMBER}(?:\s+[^\W\d]+){{0,3}}\.?\s*")
_ANSWER_HEADING = re.compile(r"#### *\**(?:the )?(?:final )?answer:?\** *:?", re.IGNORECASE)
_MARKUP = re.compile(r"\\boxed|[\\{}$*#]")
_TOKEN = re.compile(r"\w+|[^\w\s]")
_ONLY_THE_ANSWER = re.compile(
    r"\W*(?:(?:so|thus|therefore|hence)\W+)?(?:the\s+)?(?:correct\s+|final\s+)?answer\s*(?:is|:|=)[^\n]*", re.IGNORECASE
)
_MAX_ANSWER_WORDS = 12
"""Words that may follow "The answer is"; more is a sentence that happens to use the phrase."""
_TEXT_AFTER_MARK = "text after the #### mark left out"


@dataclass(frozen=True)
class Solution:
    """A trace, without parts if there is no reasoning, and the gold answer."""

    trace: Trace
    gold: str
    notes: tuple[str, ...] = ()
    ignored_reasoning: bool = False
    """Whether the reasoning given separately was not used, because the response has reasoning of its own."""


@dataclass(frozen=True)
class MarkedText:
    """A text with a mark `#### answer`, split there."""

    before: str
    answer: str
    after: str = ""


def parse_response(
    text: str, *, gold: str | None = None, reasoning: tuple[Part, ...] = (), strict: bool = False
) -> Solution:
    """Split one response into reasoning and answer.

    Args:
        text: the response; it may be the gold answer alone, or empty if `gold` is given.
        gold: the gold answer, if another column holds it.
        reasoning: reasoning from a column or field of its own.
        strict: whether to reject a text whose reasoning differs from `reasoning`; else the text's is used.

    Raises:
        RowError: tags do not match, or there is no answer.
    """
    text = _without_annotations(trace.strip_end_of_turn(text))
    cleaned = (replace(part, text=_without_annotations(part.text).strip()) for part in reasoning)
    reasoning = tuple(part for part in cleaned if part.text)
    try:
        tagged = trace.split_reasoning(text)
        if tagged is not None:
            return _solution_with_tags(*tagged, gold, reasoning, strict)
    except trace.TraceError as error:
        raise RowError(error.fault, error.message) from error
    if reasoning:
        return _solution_with_reasoning(text, gold, reasoning)
    return _solution_without_tags(text, gold)


def _without_annotations(text: str) -> str:
    return _CALCULATOR.sub("", text) if "<<" in text else text


def _solution_with_tags(
    inline: tuple[Part, ...], output: str, gold: str | None, reasoning: tuple[Part, ...], strict: bool
) -> Solution:
    parts = tuple(part for part in inline if part.text)
    ignored = False
    if reasoning:
        try:
            parts = trace.merge_reasoning(parts, reasoning)
        except trace.TraceError:
            if strict:
                raise
            ignored = True
    output = output or gold or ""
    if not output:
        raise RowError("missing_output", "there is no answer after the reasoning")
    if (stray := trace.stray_closing(output)) is not None:
        raise RowError("stray_close", f"the answer holds {stray}, which closes nothing; take the tag out")
    return Solution(Trace(parts, output), gold or final_answer(output), ignored_reasoning=ignored)


def _solution_with_reasoning(text: str, gold: str | None, reasoning: tuple[Part, ...]) -> Solution:
    output = text.strip() or gold or ""
    if not output:
        raise RowError("empty_output", "there is reasoning, and no answer")
    marked = split_at_mark(output)
    if marked is not None and not marked.before.strip():
        output = marked.answer
    return Solution(Trace(reasoning, output), gold or (marked.answer if marked else final_answer(output)))


def _solution_without_tags(text: str, gold: str | None) -> Solution:
    marked = split_at_mark(text)
    if marked is not None:
        steps = trace.lines_as_steps(marked.before)
        notes = (_TEXT_AFTER_MARK,) if marked.after else ()
        return Solution(Trace(steps, marked.answer), gold or marked.answer, notes)
    final = gold or marked_answer(text)
    if final and shows_work(text, final):
        return Solution(Trace((Part("think", text.strip()),), final), final)
    output = final or text.strip()
    if not output:
        raise RowError("missing_field", "there is no answer")
    return Solution(Trace((), output), output)


def first_right(texts: Sequence[str], gold: str | None) -> int:
    """The position of the first of several responses that ends in the gold answer; 0 if that cannot be decided.

    Raises:
        RowError: `no_correct_generation` if all of them end in other numbers or letters than the gold one.
    """
    if gold is None or len(texts) < 2 or answers.is_prose(gold):
        return 0
    expected, undecided = answers.gold_answer(gold), False
    for at, text in enumerate(texts):
        try:
            output = parse_response(text).trace.output
        except RowError:
            continue
        # Without the symbolic comparison, which is too slow for all rows.
        results = [
            answers.compare(expected, answer, answers.TimeLimit(0.0)) for answer in answers.output_readings(output)
        ]
        if "same" in results:
            return at
        undecided |= "too_costly" in results
    if undecided or (quantity(expected) is None and not _LETTER.fullmatch(expected.strip())):
        return 0
    raise RowError("no_correct_generation", f"none of its {len(texts)} responses ends in the answer {gold[:80]!r}")


_LETTER = re.compile(r"\(?[A-J]\)?\.?")


def final_answer(output: str) -> str:
    r"""The final answer that an output marks; the output itself if it is short, or marks none.

    >>> final_answer(r"It is \boxed{7}."), final_answer(r"\boxed{1} or \boxed{2}")
    ('7', '\\boxed{1} or \\boxed{2}')
    """
    if count_words(output) <= _MAX_ANSWER_WORDS and output.count("boxed") != 1 and "####" not in output:
        return output
    marked = split_at_mark(output)
    return (marked.answer if marked else marked_answer(output)) or output


def split_at_mark(text: str) -> MarkedText | None:
    """A text split at its mark `#### answer`; None if it has none.

    Markdown headings of level 4 look the same. So a mark must be on the last line, or every `####` of the text must be
    followed by a number, with only remarks after the last.
    """
    lines = trace.strip_end_of_turn(text).rstrip().splitlines()
    if not lines or "####" not in text:
        return None
    if len(lines) > 1 and _ANSWER_HEADING.fullmatch(lines[-2]):
        return MarkedText("\n".join(lines[:-2]), _clean_answer(lines[-1]))
    before, mark, answer = lines[-1].rpartition("####")
    # A heading of five or six # ends in four as well.
    before = before.rstrip("#")
    if mark and answer.strip():
        if re.match(r"\s*(step|part|case)\b", answer, re.IGNORECASE):
            return None
        return MarkedText("\n".join([*lines[:-1], before]), _clean_answer(answer))
    marks = [at for at, line in enumerate(lines) if line.lstrip().startswith("####")]
    if not marks or not all(_NUMERIC_MARK.fullmatch(lines[at]) for at in marks):
        return None
    at = marks[-1]
    return MarkedText("\n".join(lines[:at]), _clean_answer(lines[at].partition("####")[2]), "\n".join(lines[at + 1 :]))


def _clean_answer(answer: str) -> str:
    """The answer on the line of a mark, without thousands separators, full stop, or a sentence after its number."""
    answer = re.sub(r"^(?:the\s+)?(?:final\s+)?answer\s*(?:is|:|=)\s*", "", answer.strip(" \t*"), flags=re.IGNORECASE)
    number = re.match(rf"({_NUMBER})(?P<rest>\W.*)?$", answer)
    rest = number["rest"] if number else None
    if number and rest and not _MORE_NUMBERS.match(rest) and _is_remark(rest, number[1], answer):
        answer = number[1]
    return _THOUSANDS.sub(lambda found: found["kept"] or "", answer.strip().removesuffix("."))


def _is_remark(rest: str, number: str, answer: str) -> bool:
    """Whether what follows the number of an answer only says more about it; "3 million people ..." and "10 hours and 30 minutes ..." are other numbers."""
    if re.match(r"[.;:]\s", rest):
        return True
    if count_words(rest) <= 4:
        return False
    alone, whole = quantity(number), quantity(answer)
    same = alone is not None and whole is not None and (alone.value, alone.percent) == (whole.value, whole.percent)
    return same or _EXPLAINED.match(rest) is not None


def marked_answer(text: str) -> str | None:
    r"""The answer that a text marks at its end: its last `\boxed{}`, or "The answer is ..." on its last line; else None."""
    boxed = answers.last_boxed(text)
    if boxed is not None:
        return boxed or None
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    marked = answers.explicit_answer(last)
    if marked is None or not marked.strip(" .") or count_words(marked) > _MAX_ANSWER_WORDS:
        return None
    return marked.strip().removesuffix(".").strip()


def shows_work(text: str, answer: str) -> bool:
    """Whether a text works out an answer rather than just states it.

    >>> shows_work("3 + 4 = 7", "7"), shows_work("The answer is 7.", "7"), shows_work("7 apples", "7")
    (True, False, False)
    >>> shows_work("原来的苹果减去吃掉的苹果就是剩下的苹果", "5个"), shows_work("还剩5个苹果", "5个")
    (True, False)
    """
    stripped = text.strip()
    if "\n" not in stripped and _ONLY_THE_ANSWER.fullmatch(stripped) and count_words(stripped) <= 2 * _MAX_ANSWER_WORDS:
        return False
    # The shortest work, `3 + 4 = 7` for an answer of 7, has four tokens more than its answer.
    return _length(stripped) - _length(answer) >= 4


def _length(text: str) -> int:
    """Words, numbers and signs of a text."""
    plain = _MARKUP.sub(" ", text)
    return max(len(_TOKEN.findall(plain)), count_words(plain))
