r"""A response, its reasoning and its gold answer as a trace: what is reasoning, and what is answer.

Tags outrank marks. Without tags, a text is reasoning only where its answer is known apart from it: a gold answer of
its own, a `\boxed{}`, `#### 72` or "The answer is 72" at its end. No answer is ever made up from prose.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cot_unsloth.core import answers, trace
from cot_unsloth.core.types import Part, Trace
from cot_unsloth.data.layouts.row import RowError

CALCULATOR = re.compile(r"<<[^<>]*>>")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
_NUMBER = r"[-+]?[$€£]?\d(?:[\d,]*\d)?(?:\.\d+)?(?:/\d+)?%?"
_NUMERIC_MARK = re.compile(rf"\s*####\s*{_NUMBER}(?:\s+[^\W\d]+){{0,3}}\.?\s*")
_ANSWER_HEADING = re.compile(r"#### *\**(?:the )?(?:final )?answer:?\** *:?", re.IGNORECASE)
_MARKUP = re.compile(r"\\boxed|[\\{}$*#]")
_TOKEN = re.compile(r"\w+|[^\w\s]")
_ONLY_THE_ANSWER = re.compile(
    r"\W*(?:(?:so|thus|therefore|hence)\W+)?(?:the\s+)?(?:correct\s+|final\s+)?answer\s*(?:is|:|=)[^\n]*", re.IGNORECASE
)
_LONGEST_MARKED = 12
"""Words of an answer that a mark may be followed by; more is a sentence that only uses the words."""
_LEFT_OUT = "text after the #### mark left out"


@dataclass(frozen=True)
class Solved:
    """A trace (without parts where there is no reasoning) and its gold answer."""

    trace: Trace
    gold: str
    notes: tuple[str, ...] = ()
    ignored_field: bool = False
    """Whether the reasoning that was given apart was not used, as the text has reasoning of its own."""


@dataclass(frozen=True)
class Marked:
    """A text that ends in `#### answer`."""

    before: str
    answer: str
    after: str = ""


def solve(text: str, *, gold: str | None = None, reasoning: tuple[Part, ...] = (), strict: bool = False) -> Solved:
    """Read one response.

    Args:
        text: the response; may be the gold answer alone, or empty beside a gold answer.
        gold: the gold answer, where it is known apart from the response.
        reasoning: reasoning that came in a field of its own.
        strict: whether reasoning in the text that is not the one in the field is a fault.

    Raises:
        RowError: tags are not as they should be, or there is no answer.
    """
    text = trace.strip_end_of_turn(text)
    try:
        tagged = trace.split_reasoning(text)
        if tagged is not None:
            return _tagged(*tagged, gold, reasoning, strict)
    except trace.TraceError as error:
        raise RowError(error.fault, error.message) from error
    if reasoning:
        return _apart(text, gold, reasoning)
    return _untagged(text, gold)


def _tagged(
    inline: tuple[Part, ...], output: str, gold: str | None, reasoning: tuple[Part, ...], strict: bool
) -> Solved:
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
    return Solved(Trace(parts, output), gold or short_answer(output), ignored_field=ignored)


def _apart(text: str, gold: str | None, reasoning: tuple[Part, ...]) -> Solved:
    output = text.strip() or gold or ""
    if not output:
        raise RowError("empty_output", "there is reasoning, and no answer")
    marked = gsm8k_mark(output)
    if marked is not None and not marked.before.strip():
        output = marked.answer
    return Solved(Trace(reasoning, output), gold or (marked.answer if marked else short_answer(output)))


def _untagged(text: str, gold: str | None) -> Solved:
    marked = gsm8k_mark(text)
    if marked is not None:
        steps = trace.lines_as_steps(CALCULATOR.sub("", marked.before))
        notes = (_LEFT_OUT,) if marked.after else ()
        return Solved(Trace(steps, marked.answer), gold or marked.answer, notes)
    final = gold or marked_answer(text)
    if final and is_worked(text, final):
        return Solved(Trace((Part("think", text.strip()),), final), final)
    output = final or text.strip()
    if not output:
        raise RowError("missing_field", "there is no answer")
    return Solved(Trace((), output), output)


def short_answer(output: str) -> str:
    r"""The answer that a worked output ends in; the output itself where it is short or marks none.

    >>> short_answer(r"It is \boxed{7}."), short_answer(r"\boxed{1} or \boxed{2}")
    ('7', '\\boxed{1} or \\boxed{2}')
    """
    if len(output.split()) <= _LONGEST_MARKED and output.count("boxed") != 1 and "####" not in output:
        return output
    marked = gsm8k_mark(output)
    return (marked.answer if marked else marked_answer(output)) or output


def gsm8k_mark(text: str) -> Marked | None:
    """What a text says before and after its last line's `#### answer`; None where there is no such mark.

    Headings of level 4 are no marks: a mark is on the last line, or the only lines after it are remarks and every
    `####` of the text is followed by a number.
    """
    lines = trace.strip_end_of_turn(text).rstrip().splitlines()
    if not lines or "####" not in text:
        return None
    if len(lines) > 1 and _ANSWER_HEADING.fullmatch(lines[-2]):
        return Marked("\n".join(lines[:-2]), _clean(lines[-1]))
    before, mark, answer = lines[-1].rpartition("####")
    before = before.rstrip("#")
    if mark and answer.strip():
        if re.match(r"\s*(step|part|case)\b", answer, re.IGNORECASE):
            return None
        return Marked("\n".join([*lines[:-1], before]), _clean(answer))
    marks = [at for at, line in enumerate(lines) if line.lstrip().startswith("####")]
    if not marks or not all(_NUMERIC_MARK.fullmatch(lines[at]) for at in marks):
        return None
    at = marks[-1]
    return Marked("\n".join(lines[:at]), _clean(lines[at].partition("####")[2]), "\n".join(lines[at + 1 :]))


def _clean(answer: str) -> str:
    """The answer on the line of a mark: without thousands commas, a full stop, or a sentence after its number."""
    answer = re.sub(r"^(?:the\s+)?(?:final\s+)?answer\s*(?:is|:|=)\s*", "", answer.strip(" \t*"), flags=re.IGNORECASE)
    begins = re.match(rf"({_NUMBER})(?P<rest>\W.*)?$", answer)
    if begins and begins["rest"] and (re.match(r"[.;:]\s", begins["rest"]) or len(begins["rest"].split()) > 4):
        answer = begins[1]
    return _THOUSANDS.sub("", answer.strip().removesuffix("."))


def marked_answer(text: str) -> str | None:
    r"""The answer that a text marks at its end: its last `\boxed{}`, or "The answer is ..." on its last line."""
    boxed = answers.last_boxed(text)
    if boxed is not None:
        return boxed or None
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    marked = answers.explicit_answer(last)
    if marked is None or not marked.strip(" .") or len(marked.split()) > _LONGEST_MARKED:
        return None
    return marked.strip().removesuffix(".").strip()


def is_worked(text: str, answer: str) -> bool:
    """Whether a text reasons its way to an answer, and does not just give it.

    >>> is_worked("3 + 4 = 7", "7"), is_worked("The answer is 7.", "7"), is_worked("7 apples", "7")
    (True, False, False)
    """
    stripped = text.strip()
    if "\n" not in stripped and _ONLY_THE_ANSWER.fullmatch(stripped) and len(stripped.split()) <= 2 * _LONGEST_MARKED:
        return False
    return len(_words(stripped)) - len(_words(answer)) >= 4


def _words(text: str) -> list[str]:
    return _TOKEN.findall(_MARKUP.sub(" ", text))
