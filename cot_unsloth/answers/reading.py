r"""Final answers read out of free text: `\boxed{}`, "The answer is ...", `#### ...`, the last line, the last number."""

from __future__ import annotations

import re

from cot_unsloth import trace

_BOXED = re.compile(r"\\boxed\s*\{")
_MARKED = re.compile(r"(?:####|(?:final\s+)?answer\s*(?:is|:|=))\s*:?\s*(?P<answer>[^\n]+)", re.IGNORECASE)
_NUMBER = re.compile(r"(?:(?<![\w)])-)?\$?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?%?")


def readings(text: str) -> list[str]:
    r"""What free text may give as its final answer, the most explicit first.

    An `<output>`; a `\boxed{}`; what a mark such as "Answer:" is followed by, and its end after an
    equals sign; the last line; the last number.

    >>> readings("so 3 + 4 = 7.\nThe answer is 7.")
    ['7.', 'The answer is 7.', '7']
    """
    output = trace.parse(text).output
    if output is not None:
        return [output]
    found = [boxed] if (boxed := last_boxed(text)) is not None else []
    marked = list(_MARKED.finditer(text))
    if marked:
        inside = marked[-1]["answer"].strip(" *_`")
        found += [inside.rpartition("=")[2].strip()] if "=" in inside else [inside]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found += lines[-1:]
    found += _NUMBER.findall(text)[-1:]
    return list(dict.fromkeys(found))


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{}` of a text; None without one, or where it is not closed."""
    starts = list(_BOXED.finditer(text))
    if not starts:
        return None
    begin, depth = starts[-1].end(), 1
    for at in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[begin:at].strip()
    return None


def explicit_answer(text: str) -> str | None:
    r"""The final answer that a text marks as such, by a mark or a `\boxed{}`; None where it marks none."""
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed
    marked = list(_MARKED.finditer(text))
    return marked[-1]["answer"].strip(" *_`") if marked else None


def is_prose(gold: str) -> bool:
    """Whether a gold answer is prose that no answer can be compared with."""
    return len(gold.split()) > 15 and explicit_answer(gold) is None
