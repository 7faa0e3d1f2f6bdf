"""`token_accuracy.json`: next-token accuracy on held-out solutions, before and after training."""

from __future__ import annotations

from cot_unsloth.core.results.record import Record, Value
from cot_unsloth.core.results.shares import Share


class SectionAccuracy(Value):
    """Next-token accuracy in one section of the trace. None: no such token was scored."""

    base: Share | None = None
    tuned: Share | None = None

    @property
    def by_model(self) -> dict[str, Share]:
        """The shares that were measured, by model, the base first."""
        both = {"base": self.base, "tuned": self.tuned}
        return {name: share for name, share in both.items() if share is not None}


class TokenAccuracy(Record):
    """Share of the tokens of held-out solutions that a model found most probable, given the tokens before them."""

    rows: int
    """Held-out rows."""
    sections: dict[str, SectionAccuracy]
    """By section of the trace: thinking, reflection, output."""
