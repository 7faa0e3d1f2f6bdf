"""Batches of joined rows: the rows of a batch in one sequence without padding, with the length of each.

For imitation, TRL's own collator joins them and marks where rows begin in the position ids; this adds what the attention of
`models.cpu` reads. For reinforcement learning, TRL pads prompts on the left and attempts on the right, and this joins them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional
from trl.trainer.utils import selective_log_softmax_and_entropy

from cot_unsloth.core.types import IGNORE

MULTIPLE = 64
"""A batch is filled up to a multiple of this many tokens.

oneDNN keeps what it compiled for each length that it sees, so memory would grow with the number of distinct lengths.
"""


class JoinedRows:
    """A collator that adds `row_lengths`, of shape (rows,), to the joined batches of TRL's collator."""

    def __init__(
        self, collate: Callable[[Sequence[Mapping[str, object]]], dict[str, torch.Tensor]], pad_token_id: int
    ) -> None:
        self.collate = collate
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[Mapping[str, object]]) -> dict[str, torch.Tensor]:
        """The batch of some rows; filled up with a row of padding."""
        batch = self.collate(rows)
        positions = batch["position_ids"]
        fill = -positions.shape[1] % MULTIPLE
        if fill:
            batch["input_ids"] = functional.pad(batch["input_ids"], (0, fill), value=self.pad_token_id)
            batch["labels"] = functional.pad(batch["labels"], (0, fill), value=IGNORE)
            positions = batch["position_ids"] = torch.cat([positions, torch.arange(fill)[None]], 1)
        starts = (positions[0] == 0).nonzero().flatten()
        batch["row_lengths"] = torch.diff(starts, append=torch.tensor([positions.shape[1]]))
        return batch


def completion_log_probabilities(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, width: int, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log probability and entropy of each token of the attempts in a padded batch, which is computed without its padding.

    Args:
        model: takes joined rows.
        ids: (rows, tokens): prompts padded on the left, attempts padded on the right.
        mask: (rows, tokens), 0 for padding.
        width: tokens of the padded attempts, the last columns.
        temperature: the divisor of the logits.

    Returns:
        Both (rows, width), in nats; 0 for padding. Entropies carry no gradient.
    """
    real = mask.bool()
    joined, positions = ids[real], (mask.cumsum(1) - 1)[real]
    fill = -len(joined) % MULTIPLE
    lengths = [*mask.sum(1).tolist(), *([fill] if fill else [])]
    attempts = real.clone()
    attempts[:, : ids.shape[1] - width] = False
    at = attempts[real].nonzero().flatten()
    logits = model(
        input_ids=functional.pad(joined, (0, fill))[None],
        position_ids=torch.cat([positions, torch.arange(fill, device=ids.device)])[None],
        row_lengths=lengths,
        logits_to_keep=at - 1,  # logits at a position predict the token after it
        use_cache=False,
    ).logits
    logps, entropies = selective_log_softmax_and_entropy(logits, joined[at][None], temperature=temperature)
    places = attempts[:, -width:]
    return tuple(torch.zeros_like(places, dtype=x.dtype).masked_scatter(places, x[0]) for x in (logps, entropies))
