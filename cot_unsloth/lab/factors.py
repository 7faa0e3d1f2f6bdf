"""Combines the low-rank updates of one weight by several adapters, and measures the error against their weighted sum.

Each change is scale * B @ A with the adapter's own scale, rsLoRA's included, and the result has a scale of 1. PEFT's
`add_weighted_adapter` (0.21) keeps `use_rslora` and sets alpha to the rank, so that every result is too large by the
square root of its rank; and its ties, dare and magnitude_prune prune A and B on their own, although the two are only
defined up to a change of basis (A to M @ A, B to B @ inverse(M)). Here these prune the change B @ A, as their papers do.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

from cot_unsloth.core.errors import ConfigError
from cot_unsloth.core.results.combination import CombineMethod
from cot_unsloth.export.deltas import LowRank
from cot_unsloth.export.weights import BLOCK

PRUNING = ("ties", "dare_linear", "dare_ties", "magnitude_prune")
"""Methods that set numbers of each change to zero; the result has any rank, and is cut to the one that is asked for."""
RANDOM = ("dare_linear", "dare_ties")
RANKED = ("svd", *PRUNING)
"""Methods whose result has the rank that is asked for; that of the others follows from the adapters' ranks."""
_EXACT_SVD = 1024
"""Up to this many rows or columns, a dense change is decomposed exactly (1024 x 4096: seconds), above by random
projections (Halko et al. 2011, arXiv 0909.4061) with `_OVERSAMPLED` more directions and `_ITERATIONS` power iterations."""
_OVERSAMPLED, _ITERATIONS = 16, 4


@dataclass(frozen=True)
class Part:
    """An adapter's update of one weight, and its factor in the sum."""

    change: LowRank
    weight: float

    @property
    def rank(self) -> int:
        """Rank of the update."""
        return int(self.change.a.shape[0])

    @property
    def factor(self) -> float:
        """The factor of B @ A in the sum."""
        return self.weight * self.change.scale


@dataclass(frozen=True)
class Factors:
    """A change b @ a of one weight."""

    a: Any
    """(rank, columns of the weight) float32."""
    b: Any
    """(rows of the weight, rank) float32."""

    def padded(self, rank: int) -> Factors:
        """The same change with more rows of A and columns of B, all zero, up to a rank."""
        from torch.nn.functional import pad

        more = rank - self.a.shape[0]
        return Factors(pad(self.a, (0, 0, 0, more)), pad(self.b, (0, more)))


@dataclass(frozen=True)
class Recipe:
    """A method of combination, with its options."""

    method: CombineMethod
    rank: int | None = None
    """Rank of the result, with svd and the pruning methods; None: the sum of the ranks."""
    density: float = 0.5
    """Share of each update's entries that the pruning methods keep; above 0, at most 1."""
    seed: int = 0
    """Random seed for the entries that dare keeps."""


def require_method(text: str, where: str) -> CombineMethod:
    """The method of that name.

    Raises:
        ConfigError: there is none.
    """
    methods = get_args(CombineMethod)
    if text not in methods:
        raise ConfigError(f"is not a method; methods are {', '.join(methods)}", where=where)
    return cast("CombineMethod", text)


def recipe(
    method: CombineMethod, rank: int | None = None, density: float | None = None, seed: int | None = None
) -> Recipe:
    """A recipe from the user's options; None means the default.

    Raises:
        ConfigError: there is no such method, or it does not have an option that is given.
    """
    require_method(method, f"--method {method}")
    options = (
        ("--rank", rank, RANKED, "whose rank follows from the adapters'"),
        ("--density", density, PRUNING, "which leaves nothing out"),
        ("--seed", seed, RANDOM, "which draws nothing at random"),
    )
    for flag, value, methods, reason in options:
        if value is not None and method not in methods:
            raise ConfigError(f"does not apply to {method}, {reason}", where=flag)
    default = Recipe(method)
    return Recipe(method, rank, default.density if density is None else density, seed or default.seed)


def combine(parts: Sequence[Part], recipe: Recipe, module: str) -> Factors:
    """The changes of one weight, combined.

    Args:
        parts: the adapters that change it; at least one.
        recipe: how.
        module: its name, from which dare's random numbers are seeded.

    Raises:
        ValueError: linear, and ranks that differ.
    """
    if recipe.method == "cat":
        return _concatenated(parts)
    if recipe.method == "linear":
        return _linear(parts)
    rank = recipe.rank or sum(part.rank for part in parts)
    if recipe.method == "svd":
        return _svd_of_factors(_concatenated(parts), rank)
    return _svd(_pruned(parts, recipe, module), rank)


def _concatenated(parts: Sequence[Part]) -> Factors:
    """[f1 B1, f2 B2] @ [A1; A2] = f1 B1 @ A1 + f2 B2 @ A2."""
    import torch

    return Factors(
        torch.cat([part.change.a for part in parts]), torch.cat([part.factor * part.change.b for part in parts], dim=1)
    )


def _linear(parts: Sequence[Part]) -> Factors:
    """Sums of the A's and of the B's, each times sqrt|f|, as PEFT's `linear`: not the weighted sum of the changes.

    The product has B1 @ A2 and B2 @ A1 in it, too.
    """
    if len({part.rank for part in parts}) > 1:
        raise ValueError("ranks differ")
    roots = [abs(part.factor) ** 0.5 for part in parts]
    a: Any = sum(root * part.change.a for root, part in zip(roots, parts, strict=True))
    b: Any = sum((root if part.factor >= 0 else -root) * part.change.b for root, part in zip(roots, parts, strict=True))
    return Factors(a, b)


def _svd_of_factors(factors: Factors, rank: int) -> Factors:
    """The best approximation of B @ A of a rank (Eckart-Young), without forming the product.

    With B = Qb Rb and A.T = Qa Ra, the singular values of B @ A are those of Rb @ Ra.T, which is small. In float64,
    because QR and SVD in float32 would add errors of 1e-6.
    """
    import torch

    q_b, r_b = torch.linalg.qr(factors.b.double())
    q_a, r_a = torch.linalg.qr(factors.a.double().T)
    u, s, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return _from_svd(q_b @ u, s, v @ q_a.T, rank)


def _svd(change: Any, rank: int) -> Factors:
    """The best approximation of a dense change of a rank."""
    import torch

    if min(change.shape) <= max(_EXACT_SVD, rank + _OVERSAMPLED):
        u, s, v = torch.linalg.svd(change, full_matrices=False)
        return _from_svd(u, s, v, rank)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(change, q=rank + _OVERSAMPLED, niter=_ITERATIONS)
    return _from_svd(u, s, v.T, rank)


def _from_svd(u: Any, s: Any, v: Any, rank: int) -> Factors:
    """U @ diag(s) @ v, the singular values split evenly between the factors."""
    root = s[:rank].sqrt()
    return Factors((root.unsqueeze(1) * v[:rank]).float().contiguous(), (u[:, :rank] * root).float().contiguous())


def _pruned(parts: Sequence[Part], recipe: Recipe, module: str) -> Any:
    """The pruned changes combined, as a dense (rows, columns) float32; each change is as large as the weight."""
    import torch
    from peft.utils import merge_utils

    changes = [part.change.scale * part.change.b @ part.change.a for part in parts]
    weights = torch.tensor([part.weight for part in parts])
    function = getattr(merge_utils, recipe.method)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", "The density")  # of 1, which prunes nothing
        torch.manual_seed(zlib.crc32(f"{recipe.seed} {module}".encode()))
        return function(changes, weights, recipe.density)


def squared_error(result: Factors, parts: Sequence[Part]) -> tuple[float, float]:
    """||result - sum||^2 and ||sum||^2, where the sum is that of f * B @ A; in float32, a block of rows at a time."""
    error = norm = 0.0
    for begin, end in _row_blocks(result.b.shape[0], result.a.shape[1]):
        total: Any = sum(part.factor * (part.change.b[begin:end] @ part.change.a) for part in parts)
        norm += float(total.double().square().sum())
        error += float((result.b[begin:end] @ result.a - total).double().square().sum())
    return error, norm


def _row_blocks(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    step = max(1, BLOCK // columns)
    for begin in range(0, rows, step):
        yield begin, min(begin + step, rows)
