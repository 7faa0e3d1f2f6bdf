"""Techniques of parameter-efficient training by name, and the settings that each one stands for.

`lora.technique` is a shorthand: it is replaced by these settings before anything else sees it. Which engine can train which
technique, at which number of bits, is in `models.techniques`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

Leaves: TypeAlias = Mapping[str, object]
"""Settings by leaf name."""

PLAIN: Leaves = {
    "init_lora_weights": "default",
    "use_rslora": False,
    "use_dora": False,
    "layers_to_transform": (),
    "loraplus_lr_ratio": None,
    "use_lorafa": False,
    "use_vera": False,
    "neftune_noise_alpha": None,
    "full_finetuning": False,
}
"""Plain LoRA: every setting that a technique may change."""

# The ratio and the noise are the values that their papers use most: 16 in LoRA+ (arXiv 2402.12354), 5 in NEFTune (2310.05914).
_CHANGES: Mapping[str, Leaves] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "eva": {"init_lora_weights": "eva"},
    "loftq": {"init_lora_weights": "loftq", "load_in_4bit": True},
    "lora+": {"loraplus_lr_ratio": 16.0},
    "lora-fa": {"use_lorafa": True},
    "vera": {"use_vera": True, "lora_r": 256},
    "neftune": {"neftune_noise_alpha": 5.0},
    "layers": {"layers_to_transform": ("upper",)},
    "qlora": {"load_in_4bit": True},
    "full": {"full_finetuning": True},
}
TECHNIQUES: Mapping[str, Leaves] = {name: {**PLAIN, **changes} for name, changes in _CHANGES.items()}
"""The settings of each technique. The model's bits are left unchanged, except by techniques that are defined by them."""

INITIALIZATIONS = ("default", "gaussian", "orthogonal", "pissa", "olora", "eva", "loftq")
"""Values of `init_lora_weights`; pissa_niter_N is accepted too."""
_PISSA_NITER = re.compile(r"pissa_niter_[1-9]\d?")
_LAYERS = re.compile(r"(\d+)(?:-(\d+))?")


def is_initialization(name: object) -> bool:
    """Whether a value of `init_lora_weights` is known.

    >>> is_initialization("pissa_niter_16"), is_initialization("corda")
    (True, False)
    """
    return name in INITIALIZATIONS or (isinstance(name, str) and _PISSA_NITER.fullmatch(name) is not None)


def initialization(init: str) -> str:
    """The technique that an initialization belongs to: pissa_niter_16 is PiSSA with an approximate decomposition."""
    return init.partition("_niter_")[0]


def layer_numbers(layers: tuple[str, ...], depth: int) -> list[int]:
    """The layers that `layers_to_transform` names, in a model of `depth` layers.

    Args:
        layers: numbers from 0, ranges such as 4-7, and upper or lower for one half of the model.
        depth: its number of layers.

    Raises:
        ValueError: a name has another form, or the model has no such layer.

    >>> layer_numbers(("0", "4-5"), 8), layer_numbers(("upper",), 5)
    ([0, 4, 5], [2, 3, 4])
    """
    numbers: set[int] = set()
    for name in layers:
        if name in ("upper", "lower"):
            numbers |= set(range(depth // 2, depth) if name == "upper" else range(depth // 2))
            continue
        first, last = layer_range(name)
        if last >= depth:
            raise ValueError(f"the model has {depth} layers, numbered from 0; there is no layer {last}")
        numbers |= set(range(first, last + 1))
    return sorted(numbers)


def layer_range(name: str) -> tuple[int, int]:
    """First and last layer of a number or a range.

    Raises:
        ValueError: the name is neither.
    """
    match = _LAYERS.fullmatch(name)
    if match is None or int(match[2] or match[1]) < int(match[1]):
        raise ValueError(f"{name!r} is not a layer: give numbers from 0, ranges such as 4-7, upper or lower")
    return int(match[1]), int(match[2] or match[1])


@dataclass(frozen=True)
class TechniqueSettings:
    """The settings that make up a technique, from all sections."""

    init: str
    rslora: bool
    dora: bool
    layers: bool
    loraplus: bool
    lorafa: bool
    vera: bool
    neftune: bool
    full: bool
    bits: int | None
    method: str
    packing: bool
    optim: str
    continues: bool
    """Whether training continues an adapter (`init_adapter`), which keeps its own rank, scale and kind."""

    @property
    def names(self) -> tuple[str, ...]:
        """The techniques in use, in the order of TECHNIQUES; `("lora",)` for plain LoRA."""
        begins_as = None if self.continues else initialization(self.init)
        used = {
            "rslora": self.rslora, "dora": self.dora, "lora+": self.loraplus, "lora-fa": self.lorafa,
            "vera": self.vera and not self.continues, "layers": self.layers, "qlora": self.bits == 4 and begins_as != "loftq",
        }  # fmt: skip
        names = {name for name, is_used in used.items() if is_used} | ({begins_as} & set(TECHNIQUES))
        if self.full:
            names = {"full"}
        names |= {"neftune"} if self.neftune else set()
        return tuple(name for name in TECHNIQUES if name in names) or ("lora",)


_RULES: tuple[tuple[Callable[[TechniqueSettings], bool], str], ...] = (
    (
        lambda s: s.dora and s.lorafa,
        "lora.use_dora cannot be combined with lora.use_lorafa, whose optimizer mistakes DoRA's magnitudes for LoRA factors",
    ),
    (
        lambda s: s.loraplus and s.lorafa,
        "lora.loraplus_lr_ratio cannot be combined with lora.use_lorafa: with A frozen there is one learning rate",
    ),
    (
        lambda s: s.dora and s.init not in ("default", "gaussian", "orthogonal", "eva"),
        "lora.use_dora cannot be combined with this lora.init_lora_weights: both change the base's weights",
    ),
    (
        lambda s: s.vera and (s.rslora or s.dora or s.loraplus or s.lorafa or s.full or s.init != "default"),
        "lora.use_vera cannot be combined with settings for LoRA's factors or with train.full_finetuning: it trains neither",
    ),
    (
        lambda s: s.lorafa and s.optim != "auto",
        "train.optim cannot be combined with lora.use_lorafa, which has an optimizer of its own",
    ),
    (
        lambda s: s.full and (s.loraplus or s.lorafa),
        "train.full_finetuning cannot be combined with lora.loraplus_lr_ratio or lora.use_lorafa, which train an adapter",
    ),
    (
        lambda s: s.method == "grpo" and (s.neftune or s.lorafa),
        "train.method grpo cannot be combined with train.neftune_noise_alpha or lora.use_lorafa",
    ),
    (
        lambda s: s.method == "grpo" and s.init == "eva" and not s.continues,
        "train.method grpo has no traces, which lora.init_lora_weights eva needs",
    ),
    (
        lambda s: s.packing and s.neftune,
        "train.packing cannot be combined with train.neftune_noise_alpha, whose noise depends on the length of a row",
    ),
    (
        lambda s: s.init == "loftq" and s.bits != 4 and not s.full,
        "lora.init_lora_weights loftq starts from the error of 4-bit quantization: add model.load_in_4bit",
    ),
    (
        lambda s: s.continues and s.layers,
        "train.init_adapter continues an adapter in its own layers; leave lora.layers_to_transform empty",
    ),
)


def conflicts(settings: TechniqueSettings) -> Iterator[str]:
    """Messages for conflicting techniques: which settings conflict, and why."""
    return (message for applies, message in _RULES if applies(settings))
