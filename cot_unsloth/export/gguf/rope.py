"""Rotary positions: settings with which llama.cpp computes the same as transformers.

The frequencies of training are read from transformers' own rotary module, so every optional field of `rope_parameters`
(`rope_scaling` before transformers 5) has the same effect as in training. Then llama.cpp's options are tried, simplest
first: keys alone (none, linear, yarn), then a tensor of factors that divide the frequencies, if the architecture reads
one (`rope_freqs.weight` is how Llama 3's scaling is stored). An option is used only if it gives the same frequencies and
attention factor; if none does, the field is refused by name. Comparing numbers and not field names is what catches a new
optional field of a known scaling.
"""

from __future__ import annotations

import copy
import importlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gguf
import numpy as np

from cot_unsloth.export.refusal import not_for_gguf

_SAME = 1e-5
"""Relative tolerance: transformers computes frequencies in float32, whose rounding is 6e-8, through a power."""
_FAST, _SLOW = 32.0, 1.0
"""Rotations over the original context between which YaRN's ramp lies (beta_fast and beta_slow; Peng et al. 2023, arXiv
2309.00071): the defaults of both programs. GGUF has keys for other values, `yarn_beta_fast` and `yarn_beta_slow`, which
llama.cpp (2026-10) ignores in these architectures."""
RopeParameters = Mapping[str, Any]
"""transformers' `rope_parameters`: `rope_type`, `rope_theta`, and fields that depend on the type."""
FREQUENCIES = "rope_freqs.weight"
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"


@dataclass(frozen=True)
class Rotation:
    """A model's rotary frequencies and attention factor."""

    frequencies: np.ndarray
    """(rotary dimensions / 2,) radians a position, float64."""
    attention: float
    """Sine and cosine are multiplied by it."""


@dataclass(frozen=True)
class Rope:
    """Rotary positions as llama.cpp's settings."""

    base: float
    dimensions: int
    """Rotated dimensions of each head."""
    kind: gguf.RopeScalingType | None = None
    factor: float = 1.0
    original: int | None = None
    """Context before scaling; it determines yarn's ramp and longrope's choice of factors."""
    attention: float = 1.0
    """Written as `rope.scaling.attn_factor`; llama.cpp multiplies it by the factor that it derives for yarn itself."""
    tensors: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Factors that frequencies are divided by, float32."""

    def rotation(self, tensor: str = FREQUENCIES) -> Rotation:
        """What llama.cpp computes from it (ggml's `rope_yarn`, and `llama_context` for the attention factor)."""
        # Per dimension pair i: theta_i = base^(-2i / dimensions), in radians a position.
        plain = _plain(self.base, self.dimensions) / self.tensors.get(tensor, np.float64(1))
        if self.kind != gguf.RopeScalingType.YARN:
            return Rotation(plain / self.factor, self.attention)
        ramp = self._ramp()
        # YaRN interpolates between extrapolated (ramp 1, high frequencies) and interpolated (ramp 0) frequencies.
        return Rotation(plain * (ramp + (1 - ramp) / self.factor), self.attention * _yarn_attention(self.factor))

    def _ramp(self) -> np.ndarray:
        """The share of each frequency that is not scaled."""
        low, high = self._dimension(_FAST), self._dimension(_SLOW)
        # ggml rounds the ends of the ramp outwards, as transformers does with truncate: true.
        first, last = max(0.0, math.floor(low)), min(self.dimensions - 1.0, math.ceil(high))
        pairs = np.arange(self.dimensions // 2)
        ramp: np.ndarray = 1 - ((pairs - first) / max(0.001, last - first)).clip(0, 1)
        return ramp

    def _dimension(self, turns: float) -> float:
        """The pair of dimensions that makes this many rotations over the original context."""
        return self.dimensions * math.log((self.original or 1) / (turns * 2 * math.pi)) / (2 * math.log(self.base))

    def add_to(self, writer: Any) -> None:
        """Write its keys."""
        writer.add_rope_dimension_count(self.dimensions)
        writer.add_rope_freq_base(self.base)
        if self.kind is not None:
            writer.add_rope_scaling_type(self.kind)
            writer.add_rope_scaling_factor(self.factor)
        if self.original is not None:
            writer.add_rope_scaling_orig_ctx_len(self.original)
        if self.attention != 1.0:
            writer.add_rope_scaling_attn_factors(self.attention)


def _plain(base: float, dimensions: int) -> np.ndarray:
    frequencies: np.ndarray = base ** (-np.arange(0, dimensions, 2, dtype=np.float64) / dimensions)
    return frequencies


def _yarn_attention(factor: float) -> float:
    """YaRN's attention factor, 0.1 ln(s) + 1 (arXiv 2309.00071), which llama.cpp multiplies in by itself."""
    return 1.0 if factor <= 1 else 0.1 * math.log(factor) + 1


def parameters(config: Any, layers: str | None = None) -> RopeParameters:
    """`rope_parameters` as transformers reads them, for one kind of layers if each kind has its own."""
    config.standardize_rope_params()
    rope_parameters = config.rope_parameters
    parameters: RopeParameters = rope_parameters[layers] if layers else rope_parameters
    return parameters


def trained(config: Any, layers: str | None = None) -> Rotation:
    """Frequencies and attention factor that transformers uses for this config, up to the model's context."""
    # The class next to the config: configuration_llama.LlamaConfig has modeling_llama.LlamaRotaryEmbedding.
    module = importlib.import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
    prefix = type(config).__name__.removesuffix("TextConfig").removesuffix("Config")
    # On a copy: the rotary module may standardize the config in place.
    rotary = getattr(module, f"{prefix}RotaryEmbedding")(copy.deepcopy(config))
    of = f"{layers}_" if layers else ""
    return Rotation(getattr(rotary, f"{of}inv_freq").double().numpy(), float(getattr(rotary, f"{of}attention_scaling")))


def written(
    config: Any, where: str, *, takes: frozenset[str], head_dim: int, partial: bool = False, layers: str | None = None
) -> Rope:
    """A model's rope for llama.cpp.

    Args:
        config: transformers' own.
        where: the model's folder, for messages.
        takes: which tensors of factors the architecture reads: FREQUENCIES, or LONG and SHORT.
        head_dim: width of a head.
        partial: whether only a part of a head may be rotated.
        layers: the kind of layers, if each kind has its own rope.

    Raises:
        ModelError: llama.cpp cannot compute these frequencies; the field that causes it is named.
    """
    kind = str((config.rope_parameters or {}).get("rope_type", "default"))
    try:
        rope_settings = parameters(config, layers)
        kind = str(rope_settings["rope_type"])
        # Dynamic NTK changes the base with the length of the text, which no fixed frequencies reproduce.
        if kind == "dynamic":
            raise not_for_gguf(
                "rope scaling dynamic (its base changes with the length of the text; llama.cpp's does not)", where
            )
        truth = trained(config, layers)
        candidates = _candidates(kind, rope_settings, truth, takes)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
        raise not_for_gguf(f"rope scaling {kind}, which transformers cannot read ({error}),", where) from error
    # Partial rotation leaves the last dimensions of each head alone; llama.cpp reads that for few architectures.
    if 2 * len(truth.frequencies) != head_dim and not partial:
        raise not_for_gguf(
            f"partial_rotary_factor {rope_settings.get('partial_rotary_factor')} of {type(config).__name__}", where
        )
    for candidate in candidates:
        tensor = SHORT if SHORT in candidate.tensors else FREQUENCIES
        if _same(candidate.rotation(tensor), truth):
            return candidate
    raise not_for_gguf(f"rope scaling {kind}{_culprit(rope_settings)}", where)


def _same(ours: Rotation, theirs: Rotation) -> bool:
    return np.allclose(ours.frequencies, theirs.frequencies, rtol=_SAME, atol=0) and math.isclose(
        ours.attention, theirs.attention, rel_tol=_SAME
    )


def _culprit(given: RopeParameters) -> str:
    """The fields that no llama.cpp key expresses."""
    shown = [
        f"{name}: {json.dumps(given[name])}"
        for name, usual in (("beta_fast", _FAST), ("beta_slow", _SLOW), ("truncate", True))
        if given.get(name) not in (None, usual)
    ]
    return f" with {', '.join(shown)}" if shown else ""


def _candidates(kind: str, given: RopeParameters, truth: Rotation, takes: frozenset[str]) -> list[Rope]:
    base, dimensions = float(given["rope_theta"]), 2 * len(truth.frequencies)
    if kind == "longrope":
        return [_longrope(base, dimensions, given, truth)] if LONG in takes else []
    # Simplest first: the fewer keys, the fewer programs that misread them.
    candidates = [Rope(base, dimensions, attention=truth.attention)]
    if given.get("factor"):
        factor = float(given["factor"])
        candidates.append(Rope(base, dimensions, gguf.RopeScalingType.LINEAR, factor, attention=truth.attention))
        if kind == "yarn":
            candidates.append(_yarn(base, dimensions, factor, given, truth))
    if FREQUENCIES in takes:
        # The last resort fits any fixed frequencies: ggml divides each by its factor.
        tensor = (_plain(base, dimensions) / truth.frequencies).astype(np.float32)
        candidates.append(Rope(base, dimensions, attention=truth.attention, tensors={FREQUENCIES: tensor}))
    return candidates


def _yarn(base: float, dimensions: int, factor: float, given: RopeParameters, truth: Rotation) -> Rope:
    return Rope(
        base, dimensions, gguf.RopeScalingType.YARN, factor, int(given["original_max_position_embeddings"]),
        _snap_to_one(truth.attention / _yarn_attention(factor)),
    )  # fmt: skip


def _snap_to_one(ratio: float) -> float:
    """Exactly 1 for a ratio that differs only by rounding, so that the key is not written."""
    return 1.0 if math.isclose(ratio, 1, rel_tol=1e-9) else ratio


def _longrope(base: float, dimensions: int, given: RopeParameters, truth: Rotation) -> Rope:
    """Two sets of factors; llama.cpp uses the long ones if its context is longer than the original one."""
    original = int(given["original_max_position_embeddings"])
    short, long = (np.asarray(given[name], dtype=np.float32) for name in ("short_factor", "long_factor"))
    if not len(short) == len(long) == dimensions // 2:
        raise ValueError(f"short_factor and long_factor need {dimensions // 2} numbers each")
    return Rope(
        # The two lists of factors contain the scaling, so `factor` is 1.
        base, dimensions, gguf.RopeScalingType.LONGROPE, 1.0, original, truth.attention,
        tensors={LONG: long, SHORT: short},
    )  # fmt: skip


def longrope_limit(config: Any) -> int | None:
    """Tokens up to which longrope uses its short factors; None without longrope."""
    given = config.rope_parameters or {}
    if given.get("rope_type") != "longrope" or given.get("short_factor") == given.get("long_factor"):
        return None
    return int(parameters(config)["original_max_position_embeddings"])
