"""Whether trained weights are finite: nothing that is infinite or NaN is saved."""

from __future__ import annotations

from typing import Any

import torch

from cot_unsloth.core.errors import EngineError


def is_finite(model: Any) -> bool:
    """Whether every trained weight of a model is a finite number."""
    return all(bool(torch.isfinite(p.detach()).all()) for p in model.parameters() if p.requires_grad)


def require_finite(model: Any, when: str, hint: str) -> None:
    """Make sure that no weight that is about to be saved is infinite or NaN.

    Raises:
        EngineError: one is.
    """
    if not is_finite(model):
        raise EngineError(f"the trained weights are no longer finite {when}; they are not saved", hint=hint)
