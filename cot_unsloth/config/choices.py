"""The engines that `model.engine` can name, and the training methods of `train.method`.

Their classes are in higher packages (`models`, `training`) and are imported on use: torch, transformers and trl take
seconds, which `check` and `--help` do not need, and Unsloth must be imported before them.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RegisteredEngine:
    """Where the class of an engine is, and what it takes to import it."""

    path: str
    """`module:class`; the class does what `models.protocols.Trainable` says."""
    library: str | None = None
    """A distribution that must be installed beside the core ones."""
    install: str = ""
    """What `pip install` takes for it."""
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
}
"""Training methods by name, as `module:class`; the class does what `training.method.TrainingMethod` says."""


def import_class(path: str) -> Any:
    """The class that `module:class` names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
