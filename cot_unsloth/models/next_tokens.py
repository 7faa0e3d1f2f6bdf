"""Which supervised tokens of a row a transformers model would have chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cot_unsloth.core.types import IGNORE, Sample


def correct(model: Any, samples: Sequence[Sample], device: str) -> list[list[bool | None]]:
    """Whether each supervised token is the most likely one; row by row, without padding. See `Trainable`."""
    model.eval()
    rows: list[list[bool | None]] = []
    with torch.inference_mode():
        for sample in samples:
            logits = model(input_ids=torch.tensor([sample.ids], device=device), use_cache=False).logits
            # The logits at position i predict token i + 1, so nothing predicts the first one.
            predicted = [None, *logits[0, :-1].argmax(-1).tolist()]
            rows.append(
                [
                    None if label == IGNORE or token is None else token == label
                    for token, label in zip(predicted, sample.labels, strict=True)
                ]
            )
    return rows
