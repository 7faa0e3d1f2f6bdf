"""Models with a learned vector for each position, such as GPT-2 and OPT: beyond their table there is nothing to compute.

Rotary positions have no end: longer texts only get worse, which `check` warns of.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from cot_unsloth.core.errors import EngineError

_TABLES = ("wpe", "embed_positions", "position_embeddings", "position_embedding")
"""Names of the table in transformers."""


def positions_in_table(model: Any) -> int | None:
    """How many positions the table of a model has; None if it has none."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    limit = getattr(base.config.get_text_config(), "max_position_embeddings", None)
    has_table = any(
        isinstance(module, nn.Embedding) and name.rpartition(".")[2] in _TABLES for name, module in base.named_modules()
    )
    return limit if has_table else None


def require_positions(model: Any, tokens: int, what: str, hint: str) -> None:
    """Make sure that the table has a position for each token of a text.

    Args:
        model: with or without an adapter.
        tokens: of the longest text.
        what: what the text is, for the message.
        hint: how to shorten it.

    Raises:
        EngineError: it has fewer; torch would fail with an index that is out of range, on a GPU without saying where.
    """
    limit = positions_in_table(model)
    if limit is not None and tokens > limit:
        raise EngineError(
            f"{what} take up to {tokens:,} tokens, but the model has a table of {limit:,} positions", hint=hint
        )
