"""What arms are called where people read: in the terminal, in plots and in the report. Files keep the short names."""

from __future__ import annotations

import re

TITLES = {
    "base": "base",
    "base_direct": "base, asked directly",
    "base_cot": "base, step by step",
    "base_tags": "base, asked for our tags",
    "start": "adapter it began with",
    "tuned": "tuned",
    "gguf": "tuned, as a GGUF file",
}
_IN_SENTENCES = {
    "base_direct": "the base asked directly",
    "base_cot": "the base asked step by step",
    "base_tags": "the base asked for our tags",
}
_NAMES = re.compile(rf"\b(?:{'|'.join(_IN_SENTENCES)})\b")


def title(arm: str) -> str:
    """The plain name of an arm; an adapter beside the scored model keeps its own.

    >>> title("base_direct"), title("algebra")
    ('base, asked directly', 'algebra')
    """
    return TITLES.get(arm, arm)


def in_words(sentence: str) -> str:
    """A sentence with the plain names of base arms in place of their short ones.

    >>> in_words("Better than base_cot: 60.0% against 20.0%.")
    'Better than the base asked step by step: 60.0% against 20.0%.'
    """
    return _NAMES.sub(lambda name: _IN_SENTENCES[name[0]], sentence)
