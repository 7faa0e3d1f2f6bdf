"""How an adapter changes one weight of its base: one class for each kind of change that PEFT can merge.

Each is applied to a block of rows at a time, in float32, and gives what PEFT's `merge_and_unload` computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Delta(Protocol):
    """A change of one weight of the base."""

    def apply(self, weight: Any, begin: int = 0) -> Any:
        """The changed rows in float32, given the base's rows; the first of them is row `begin` of the whole weight."""


@dataclass(frozen=True)
class LowRank:
    """LoRA (Hu et al. 2021, arXiv 2106.09685): W becomes W + scale * B @ A."""

    a: Any
    """(r, columns of W) float32."""
    b: Any
    """(rows of W, r) float32."""
    scale: float

    def apply(self, weight: Any, begin: int = 0) -> Any:
        """See `Delta`."""
        # The block's rows of B only: B @ A of a 4,096 x 4,096 projection would take 64 MiB.
        return weight.float() + self.scale * (self.b[begin : begin + weight.shape[0]] @ self.a)


@dataclass(frozen=True)
class RowMagnitudes:
    """DoRA (Liu et al. 2024, arXiv 2402.09353): rows of W + scale * B @ A, each scaled to its trained length.

    A row is all that its length depends on, so this needs no second pass over the weight.
    """

    direction: LowRank
    magnitude: Any
    """(rows of W,) float32."""

    def apply(self, weight: Any, begin: int = 0) -> Any:
        """See `Delta`."""
        rows = self.direction.apply(weight, begin)
        # Training takes no gradient through the length (DoRA, section 4.3); a merge needs only its value.
        lengths = rows.square().sum(1).sqrt()
        return rows * (self.magnitude[begin : begin + rows.shape[0]] / lengths).unsqueeze(1)


@dataclass(frozen=True)
class ColumnFactors:
    """DoRA of an embedding, or of a weight stored as (in, out): the columns have the trained lengths."""

    direction: LowRank
    factor: Any
    """(columns of W,) float32: each column's trained length divided by its present length."""

    def apply(self, weight: Any, begin: int = 0) -> Any:
        """See `Delta`."""
        return self.direction.apply(weight, begin) * self.factor


@dataclass(frozen=True)
class Replaced:
    """A weight that was trained in full: `modules_to_save`, a bias, or an embedding saved with the adapter."""

    rows: Callable[[int, int], Any]
    """Reads rows, from the first index up to the second."""

    def apply(self, weight: Any, begin: int = 0) -> Any:
        """See `Delta`."""
        return self.rows(begin, begin + weight.shape[0]).float()


@dataclass(frozen=True)
class ReplacedRows:
    """Single trained tokens (`trainable_token_indices`): some rows of an embedding."""

    values: Mapping[int, Any]
    """By row of W: (columns,) float32."""

    def apply(self, weight: Any, begin: int = 0) -> Any:
        """See `Delta`."""
        rows = weight.float().clone()  # float() returns the same tensor if it is float32 already
        for index in range(begin, begin + rows.shape[0]):
            if index in self.values:
                rows[index - begin] = self.values[index]
        return rows


@dataclass(frozen=True)
class Added:
    """B's own bias (`lora_bias`): added to the base's bias."""

    value: Any
    """(rows,) float32, scaled."""

    def apply(self, weight: Any, begin: int = 0) -> Any:
        """See `Delta`."""
        return weight.float() + self.value[begin : begin + weight.shape[0]]


@dataclass(frozen=True)
class Sequential:
    """Several changes of one weight, applied one after another."""

    parts: Sequence[Delta]

    def apply(self, weight: Any, begin: int = 0) -> Any:
        """See `Delta`."""
        for part in self.parts:
            weight = part.apply(weight, begin)
        return weight
