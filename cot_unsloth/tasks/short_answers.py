"""Questions that a word or two answer: whether a reply gives that answer, in a sentence too.

For `evaluation.forgetting`, whose base and trained model write in different forms: "Atlantic" and "It is the Atlantic Ocean." are
the same knowledge. More than half of what lexical matching rejects of such replies is equivalent to the gold answer (Kamalloo
et al. 2023, arXiv 2305.06984). The words count anywhere in a short reply, a single letter only as its last word, since "a" is in
every sentence. Numbers, choices, yes and no are left to `core.answers`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LONGEST = 25
"""Words of a reply in which an answer is looked for; a longer one could name every candidate."""
_DECIDED = frozenset({"yes", "no", "true", "false"})


@dataclass(frozen=True)
class ShortAnswer:
    """What a question is answered by."""

    question: str
    answer: str


def accepts(problem: ShortAnswer, reply: str) -> bool | None:
    """Whether a reply gives the answer; None where answers are to be compared as usual.

    >>> atlantic = ShortAnswer("Which ocean lies between Europe and North America?", "Atlantic")
    >>> accepts(atlantic, "It is the Atlantic Ocean."), accepts(atlantic, "The Pacific.")
    (True, False)
    >>> accepts(atlantic, "Not the Atlantic Ocean."), accepts(atlantic, "The Atlantic, not the Pacific.")
    (False, True)
    >>> letter = ShortAnswer("Which letter comes after D?", "E")
    >>> accepts(letter, 'The letter "E".'), accepts(letter, "E is wrong.")
    (True, False)
    """
    gold, words = _words(problem.answer), _words(reply)
    is_choice = re.search(r"\bA\) .+\bB\) ", problem.question)
    if is_choice or problem.answer.casefold() in _DECIDED or not problem.answer.replace(" ", "").isalpha():
        return None
    if len(problem.answer) == 1:
        return words[-1:] == gold
    places = (at for at in range(len(words)) if words[at : at + len(gold)] == gold)
    return len(words) <= LONGEST and any(not _is_denied(words[:at]) for at in places)


def _is_denied(before: list[str]) -> bool:
    """Whether these words deny what follows them: "it is not the", "it isn't"."""
    said = [word for word in before[-3:] if word not in ("the", "a", "an")]
    return said[-1:] in (["not"], ["never"]) or said[-2:] in (["isn", "t"], ["wasn", "t"])


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
