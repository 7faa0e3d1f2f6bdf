"""The layouts that `data.data_format` can name, the engines of `model.engine`, and the training methods of `train.method`.

They are defined in higher packages (`data`, `models`, `training`) and imported on use: torch, transformers and trl take
seconds, which `check` and `--help` do not need, and Unsloth must be imported before them.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RegisteredEngine:
    """Where an engine's class is, and what importing it requires."""

    path: str
    """`module:class`; the class implements `models.protocols.Trainable`."""
    library: str | None = None
    """A distribution that must be installed in addition to the core ones."""
    install: str = ""
    """The argument of `pip install` for it."""
    imported_first: bool = False
    """Whether its module must be imported before transformers, which it patches."""


ENGINES = {
    "hf": RegisteredEngine("cot_unsloth.models.hf:HfEngine"),
    "unsloth": RegisteredEngine(
        "cot_unsloth.models.unsloth_engine:UnslothEngine", "unsloth", "'cot-unsloth[gpu]'", imported_first=True
    ),
}
"""Engines by name. `auto` chooses between these two, see `models.registry`."""

METHODS = {
    "sft": "cot_unsloth.training.sft:SupervisedFineTuning",
    "rft": "cot_unsloth.training.rft:RejectionSamplingFineTuning",
    "grpo": "cot_unsloth.training.grpo:GroupRelativePolicyOptimization",
}
"""Training methods by name, as `module:class`; the class implements `training.method.TrainingMethod`."""


LAYOUTS = {
    "prm800k": "prm800k:PRM800K",
    "own_samples": "own_samples:OWN_SAMPLES",
    "rated_steps": "rated_steps:RATED_STEPS",
    "messages": "conversations:MESSAGES",
    "sharegpt": "conversations:SHAREGPT",
    "prompt_completion": "conversations:PROMPT_COMPLETION",
    "multiple_choice": "choices:MULTIPLE_CHOICE",
    "svamp": "single_turn:SVAMP",
    "generations": "generations:GENERATIONS",
    "gsm8k": "single_turn:GSM8K",
    "reasoning_columns": "single_turn:REASONING_COLUMNS",
    "problem_solution": "single_turn:PROBLEM_SOLUTION",
    "alpaca": "single_turn:ALPACA",
    "think": "single_turn:THINK",
    "prompt_response": "single_turn:PROMPT_RESPONSE",
    "question_answer": "single_turn:QUESTION_ANSWER",
}
"""Layouts of data rows by name, as `module:object` in `data.layouts`. A row gets the first layout that accepts it, so the
layouts that demand more come first."""


def import_object(path: str) -> Any:
    """The object that `module:name` refers to."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
