"""Batches of joined rows: the rows of a batch in one sequence without padding, with the length of each.

TRL's own collator joins them and marks where rows begin in the position ids; this adds what the attention of
`models.cpu` reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch.nn import functional

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
