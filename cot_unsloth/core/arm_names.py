"""The names of arms in the terminal, the report, its charts and model cards. Files and flags use the keys.

Each arm has one name, in two forms: a title for tables and charts, and the same words for use in a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple


class ArmName(NamedTuple):
    """The plain name of an arm."""

    title: str
    in_sentence: str


NAMES: Mapping[str, ArmName] = {
    "base": ArmName("base", "the base"),
    "base_direct": ArmName("base, asked directly", "the base asked directly"),
    "base_cot": ArmName("base, step by step", "the base asked step by step"),
    "base_tags": ArmName("base, our system prompt", "the base under our system prompt"),
    "start": ArmName("starting adapter", "the starting adapter"),
    "tuned": ArmName("tuned", "the tuned model"),
    "gguf": ArmName("tuned, as a GGUF file", "the tuned model as a GGUF file"),
    "forgetting_before": ArmName("forgetting, before training", "the model before training"),
    "forgetting_after": ArmName("forgetting, after training", "the model after training"),
}
"""By key. `start` is the adapter that training continued."""
_KEYS = re.compile(r"\bbase_(?:direct|cot|tags)\b|(?<=\b(?:than|from) )start\b")


def title(arm: str) -> str:
    """The plain name of an arm; an adapter beside the scored model keeps its own.

    >>> title("base_direct"), title("algebra")
    ('base, asked directly', 'algebra')
    """
    return NAMES[arm].title if arm in NAMES else arm


def in_sentence(arm: str) -> str:
    """The plain name of an arm in a sentence, with its article.

    >>> in_sentence("base_tags"), in_sentence("algebra")
    ('the base under our system prompt', 'algebra')
    """
    return NAMES[arm].in_sentence if arm in NAMES else arm


def in_words(sentence: str) -> str:
    """A sentence of an older scorecard, with the arms' keys replaced by their plain names.

    >>> in_words("Better than base_cot: 60.0% against 20.0%.")
    'Better than the base asked step by step: 60.0% against 20.0%.'
    """
    return _KEYS.sub(lambda key: in_sentence(key[0]), sentence)
