"""Blocks of float32 weights as the bytes of a GGUF type, in torch: on the GPU where there is one.

The bit layouts of Q8_0, Q6_K, Q5_K and Q4_K as ggml defines them (ggml-common.h), and the search for scales. For Q8_0 and
Q6_K it is ggml's search without an importance matrix (ggml-quants.c), so that their bytes are ggml's up to the rounding
of float32 sums. Q5_K and Q4_K start with ggml's search and refine its result. A test compares the errors with ggml's. The
types that K-quants fall back to (Q5_0, Q5_1) come from the `gguf` package.

Bits a weight: Q8_0 8.5 (34 bytes for 32), Q6_K 6.5625 (210 for 256), Q5_K 5.5 (176 for 256), Q4_K 4.5 (144 for 256).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf import quants

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TINY = 1e-15
"""A group whose largest weight is smaller is stored as zero (ggml's GROUP_MAX_EPS)."""


def quantize(weights: torch.Tensor, kind: Type) -> NDArray[Any]:
    """Rows of weights as rows of a GGUF tensor.

    Args:
        weights: (rows, columns) float32; columns are a multiple of the type's block.
        kind: what to write.

    Returns:
        (rows, bytes of a row) uint8; float32 and float16 stay numbers.
    """
    match kind:
        case Type.F32:
            return weights.float().cpu().numpy()
        case Type.F16:
            return weights.half().cpu().numpy()
        case Type.BF16:
            return weights.bfloat16().view(torch.uint8).cpu().numpy()
        case Type.Q8_0 | Type.Q6_K | Type.Q5_K | Type.Q4_K:
            packed = _KERNELS[kind](weights.float())
            return packed.view(weights.shape[0], -1).cpu().numpy()
        case _:
            return quants.quantize(np.ascontiguousarray(weights.float().cpu().numpy()), kind)


def _halves(scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales of blocks as the two bytes of a float16 each, and as the numbers that will be read back.

    Levels are computed with the rounded scale: with the exact one, every weight would be off by its rounding.
    """
    half = scales.half()
    return half.unsqueeze(-1).view(torch.uint8), half.float()


def _inverse(scale: torch.Tensor) -> torch.Tensor:
    """1 / scale, and 0 for 0."""
    return torch.where(scale == 0, 0.0, 1.0 / scale)


def _q8_0(weights: torch.Tensor) -> torch.Tensor:
    """34 bytes for 32 weights: a float16 scale, then a signed byte each; weight = scale * byte."""
    blocks = weights.reshape(-1, 32)
    scale = blocks.abs().amax(-1) / 127
    scaled = blocks * _inverse(scale).unsqueeze(-1)
    whole = torch.trunc(scaled + 0.5 * scaled.sign()).to(torch.int8)  # halves away from zero, as C's roundf
    return torch.cat([_halves(scale)[0], whole.view(torch.uint8)], dim=-1)


def _q6_k(weights: torch.Tensor) -> torch.Tensor:
    """210 bytes for 256 weights: 128 of low nibbles, 64 of high bit pairs, 16 signed 8-bit scales, a float16 scale.

    Weight = scale * group scale * (level - 32), in groups of 16.
    """
    groups = weights.reshape(-1, 16, 16)
    scales = _symmetric_scales(groups, 32)
    at = scales.abs().argmax(-1, keepdim=True)
    largest = scales.gather(-1, at).squeeze(-1)
    empty = largest.abs() < _TINY
    inverse = torch.where(empty, 0.0, -128.0 / torch.where(empty, 1.0, largest))
    whole = (inverse.unsqueeze(-1) * scales).round().clamp(-128, 127)
    packed, scale = _halves(_inverse(inverse))
    step = scale.unsqueeze(-1) * whole
    # Round to even, as ggml's nearest_int does.
    levels = (groups * _inverse(step).unsqueeze(-1)).round().clamp(-32, 31) + 32
    levels = torch.where(empty[:, None, None], 0.0, levels).to(torch.uint8).view(-1, 2, 4, 32)
    low, high = levels & 15, levels >> 4
    nibbles = torch.stack([low[:, :, 0] | low[:, :, 2] << 4, low[:, :, 1] | low[:, :, 3] << 4], dim=2)
    pairs = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    return torch.cat(
        [nibbles.reshape(-1, 128), pairs.reshape(-1, 64), whole.to(torch.int8).view(torch.uint8), packed], dim=-1
    )


def _symmetric_scales(groups: torch.Tensor, most: int) -> torch.Tensor:
    """A scale for each group that minimizes the squared error of level * scale, weighted by the squared weight.

    19 candidates map the largest weight to levels around -most, in steps of 0.1 (ggml's `make_qx_quants`). It is mapped to
    the negative end because there is one level more there: -32 to 31.
    """
    at = groups.abs().argmax(-1, keepdim=True)
    largest = groups.gather(-1, at)
    empty = largest.abs() < _TINY
    unit = torch.where(empty, 0.0, -1.0 / torch.where(empty, 1.0, largest)) * groups
    squares = groups * groups
    cubes = squares * groups
    best = scale = None
    # Unscaled first: of equal errors, ggml keeps the first.
    for tenths in (0, *range(-9, 0), *range(1, 10)):
        levels = (unit * (most + 0.1 * tenths)).round_().clamp_(-most, most - 1)
        product = (cubes * levels).sum(-1)
        square = levels.square_().mul_(squares).sum(-1)
        if best is None or scale is None:
            scale = torch.where(square > 0, product / square, 0.0)
            best = scale * product
            continue
        better = (square > 0) & (product * product > best * square)
        scale = torch.where(better, product / square, scale)
        best = torch.where(better, scale * product, best)
    assert scale is not None
    return torch.where(empty.squeeze(-1), 0.0, scale)


def _q4_k(weights: torch.Tensor) -> torch.Tensor:
    """144 bytes for 256 weights: two float16 scales, 8 scales and 8 minima of 6 bits each (12 bytes), 128 of nibbles.

    Weight = scale * group scale * level - scale of minima * group minimum, in groups of 32.
    """
    head, levels = _scaled_and_shifted(weights, 15, start=-1.0, steps=20)
    levels = levels.view(-1, 4, 2, 32)
    return torch.cat([head, (levels[:, :, 0] | levels[:, :, 1] << 4).reshape(-1, 128)], dim=-1)


def _q5_k(weights: torch.Tensor) -> torch.Tensor:
    """176 bytes for 256 weights: as Q4_K, with 32 bytes of fifth bits before the nibbles."""
    head, levels = _scaled_and_shifted(weights, 31, start=-0.5, steps=15)
    high = levels.view(-1, 8, 32) >> 4
    fifths = high[:, 0].clone()
    for bit in range(1, 8):
        fifths |= high[:, bit] << bit
    low = levels.view(-1, 4, 2, 32) & 15
    return torch.cat([head, fifths, (low[:, :, 0] | low[:, :, 1] << 4).reshape(-1, 128)], dim=-1)


def _scaled_and_shifted(
    weights: torch.Tensor, most: int, start: float, steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first 16 bytes of each block, and its levels as (blocks, 8, 32) bytes.

    The scales of the eight groups are themselves rounded to 6 bits, as multiples of a common one. If a group is much
    smaller than another, that rounding causes most of the error. So 9 pairs of common scales are tried, the one with the
    smallest squared error is kept, and the scale of each group is fitted to its levels twice more.
    """
    groups = weights.reshape(-1, 8, 32)
    scales, minima = _scales_and_minima(groups, most, start, steps)
    best: _Fit | None = None
    for above, below in itertools.product(_COMMON, _COMMON):
        # Rounded to float16 before levels are computed, because that is what is read back.
        common = (scales.amax(-1).clamp_min(0) / above).half(), (minima.amax(-1).clamp_min(0) / below).half()
        fit = _fitted(groups, common, scales, minima, most)
        best = fit if best is None else _nearer(best, fit)
    assert best is not None
    best = _refitted(_refitted(best, groups, most), groups, most)
    # Groups 0-3 in the low 6 bits of a byte, groups 4-7 split into low nibbles and the high pairs of those bytes (ggml's
    # `get_scale_min_k4` is the reverse).
    s, m = best.sixths[0].to(torch.uint8), best.sixths[1].to(torch.uint8)
    packed = torch.cat(
        [s[:, :4] | s[:, 4:] >> 4 << 6, m[:, :4] | m[:, 4:] >> 4 << 6, s[:, 4:] & 15 | (m[:, 4:] & 15) << 4], dim=-1
    )
    heads = [half.unsqueeze(-1).view(torch.uint8) for half in best.common]
    return torch.cat([*heads, packed], dim=-1), best.levels.to(torch.uint8)


_COMMON = (63, 59, 55)
"""Multiples that the largest scale of a block is rounded to; 6 bits hold at most 63."""


@dataclass(frozen=True)
class _Fit:
    """Blocks of eight groups, quantized one way."""

    common: tuple[torch.Tensor, torch.Tensor]
    """Of scales and of minima: (blocks,) float16."""
    sixths: tuple[torch.Tensor, torch.Tensor]
    """The scale and the minimum of each group as multiples of these: (blocks, 8), from 0 to 63."""
    levels: torch.Tensor
    """(blocks, 8, 32), from 0."""
    error: torch.Tensor
    """Squared, of each group: (blocks, 8)."""


def _fitted(
    groups: torch.Tensor,
    common: tuple[torch.Tensor, torch.Tensor],
    scales: torch.Tensor,
    minima: torch.Tensor,
    most: int,
) -> _Fit:
    """The levels nearest to the weights, with scales and minima rounded to multiples of the common ones."""
    units = [half.float().unsqueeze(-1) for half in common]
    s, m = (
        (value * _inverse(unit)).round_().clamp_(0, 63) for value, unit in zip((scales, minima), units, strict=True)
    )
    step, shift = (units[0] * s).unsqueeze(-1), (units[1] * m).unsqueeze(-1)
    levels = ((groups + shift) * _inverse(step)).round_().clamp_(0, most)
    error = (levels * step).sub_(shift).sub_(groups).square_().sum(-1)
    return _Fit(common, (s, m), levels, error)


def _refitted(fit: _Fit, groups: torch.Tensor, most: int) -> _Fit:
    """The same with the scale and minimum of each group that fit its levels best, if that lowers the error."""
    n, sum_l, sum_x = groups.shape[-1], fit.levels.sum(-1), groups.sum(-1)
    sum_ll, sum_xl = fit.levels.square().sum(-1), (fit.levels * groups).sum(-1)
    # Least squares of x = scale * l - minimum over a group: the normal equations of two unknowns.
    determinant = n * sum_ll - sum_l * sum_l
    scales = (n * sum_xl - sum_x * sum_l) / determinant
    minima = (sum_l * sum_xl - sum_ll * sum_x) / determinant
    # All levels equal: no unique fit. A negative minimum cannot be stored.
    sound = (determinant > 0) & (scales > 0) & (minima >= 0)
    again = _fitted(groups, fit.common, torch.where(sound, scales, 0.0), torch.where(sound, minima, 0.0), most)
    better = sound & (again.error < fit.error)
    sixths = tuple(torch.where(better, new, old) for new, old in zip(again.sixths, fit.sixths, strict=True))
    levels = torch.where(better.unsqueeze(-1), again.levels, fit.levels)
    return _Fit(fit.common, (sixths[0], sixths[1]), levels, torch.where(better, again.error, fit.error))


def _nearer(one: _Fit, other: _Fit) -> _Fit:
    """The fit of each block that has the smaller error."""
    better = other.error.sum(-1) < one.error.sum(-1)
    wide = better.unsqueeze(-1)
    return _Fit(
        (torch.where(better, other.common[0], one.common[0]), torch.where(better, other.common[1], one.common[1])),
        (torch.where(wide, other.sixths[0], one.sixths[0]), torch.where(wide, other.sixths[1], one.sixths[1])),
        torch.where(wide.unsqueeze(-1), other.levels, one.levels),
        torch.where(wide, other.error, one.error),
    )


def _scales_and_minima(groups: torch.Tensor, most: int, start: float, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A scale and a minimum for each group that minimize the weighted squared error of level * scale - minimum.

    Levels of `steps + 1` widths are tried, each with the scale and minimum that fit them best (ggml's `make_qkx2_quants`).
    The error of a least-squares fit is sum(w x²) - scale * sum(w x l) - shift * sum(w x), so candidates are compared by
    the two terms that are subtracted, and the error itself is never summed over weights.
    """
    # Root mean square of the group plus the weight's own size: ggml's weights without an importance matrix.
    importance = groups.square().mean(-1, keepdim=True).sqrt() + groups.abs()
    # At most 0: the format stores the minimum as a non-negative number that is subtracted.
    low, high = groups.amin(-1, keepdim=True).clamp_max(0), groups.amax(-1, keepdim=True)
    flat = high == low
    unit = (groups - low) / torch.where(flat, 1.0, high - low)  # from 0 to 1
    weighted = importance * groups
    sum_w, sum_x = importance.sum(-1), weighted.sum(-1)
    width = (high - low).squeeze(-1)
    scale, minimum = width / most, low.squeeze(-1).clone()
    levels = (unit * most).round_().clamp_(0, most)
    error = (levels * scale.unsqueeze(-1) + low - groups).square_().mul_(importance).sum(-1)
    best = (weighted * groups).sum(-1) - error
    for step in range(steps + 1):
        torch.mul(unit, most + start + 0.1 * step, out=levels)
        levels.round_().clamp_(0, most)
        sum_xl = (weighted * levels).sum(-1)
        wl = importance * levels
        sum_l = wl.sum(-1)
        sum_ll = wl.mul_(levels).sum(-1)
        determinant = sum_w * sum_ll - sum_l * sum_l
        fitted = (sum_w * sum_xl - sum_x * sum_l) / determinant
        shift = (sum_ll * sum_x - sum_l * sum_xl) / determinant
        positive = shift > 0
        # A minimum below zero cannot be stored: fit the scale alone.
        fitted = torch.where(positive, sum_xl / sum_ll, fitted)
        shift = torch.where(positive, 0.0, shift)
        reduction = fitted * sum_xl + shift * sum_x
        better = (determinant > 0) & (reduction > best)
        best = torch.where(better, reduction, best)
        scale = torch.where(better, fitted, scale)
        minimum = torch.where(better, shift, minimum)
    flat = flat.squeeze(-1)
    return torch.where(flat, 0.0, scale), -minimum


_KERNELS = {Type.Q8_0: _q8_0, Type.Q6_K: _q6_k, Type.Q5_K: _q5_k, Type.Q4_K: _q4_k}
