"""The known layouts. To add one, write its file in this folder and add one line to the list here."""

from __future__ import annotations

import importlib

from cot_unsloth.data.layouts.base import Layout

_REGISTERED = (
    "prm800k.PRM800K",
    "rated_steps.RATED_STEPS",
    "conversations.MESSAGES",
    "conversations.SHAREGPT",
    "conversations.PROMPT_COMPLETION",
    "choices.MULTIPLE_CHOICE",
    "single_turn.SVAMP",
    "generations.GENERATIONS",
    "single_turn.GSM8K",
    "single_turn.REASONING_COLUMNS",
    "single_turn.PROBLEM_SOLUTION",
    "single_turn.ALPACA",
    "single_turn.THINK",
    "single_turn.PROMPT_RESPONSE",
    "single_turn.QUESTION_ANSWER",
)
"""MODULE.NAME of each layout, in the order in which they are asked whether a row is theirs: the more a layout demands, the
earlier."""


def _load(registered: str) -> Layout:
    module, _, name = registered.partition(".")
    layout = getattr(importlib.import_module(f"cot_unsloth.data.layouts.{module}"), name)
    assert isinstance(layout, Layout), registered
    return layout


LAYOUTS: tuple[Layout, ...] = tuple(map(_load, _REGISTERED))
BY_NAME: dict[str, Layout] = {layout.name: layout for layout in LAYOUTS}
"""By what `--data-format` calls them."""
