"""A table of which engine can train which technique, at how many bits per weight of the base, and the errors based on it.

`doctor` prints it, docs/techniques.md is tested against it, and `check` and `train` apply it before a weight is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cot_unsloth.config import RunConfig
from cot_unsloth.config.techniques import TECHNIQUES
from cot_unsloth.core.errors import ModelError

ENGINES = ("hf", "unsloth")
BITS = (16, 8, 4)
"""Bits per weight of the base as it is trained on; 16 stands for 16 and 32."""


@dataclass(frozen=True)
class Technique:
    """A technique, and where it cannot be trained."""

    title: str
    setting: str
    """The setting that it is switched on with, `section.leaf`."""
    source: str
    """Where it was published."""
    refused: Mapping[tuple[str, int], str] = field(default_factory=dict)
    """Reasons by engine and bits; what is not named here is supported."""


def _everywhere(reason: str, engines: tuple[str, ...], bits: tuple[int, ...]) -> dict[tuple[str, int], str]:
    return {(engine, width): reason for engine in engines for width in bits}


_REQUANTIZED = "the rest of each weight would be quantized again, to another base than the one that is exported"
_UNTESTED = "unsloth's get_peft_model is not tested with it"
_UNTESTED_BITS = "it is not tested on quantized weights"
_QUANTIZED = "weights that are quantized cannot be trained"
_OTHER_BITS = "it is LoRA on 4 bits"
_REARRANGED = "PEFT cannot read the weights once bitsandbytes has rearranged them for its product"
_TAKES_OUT = _everywhere(_REQUANTIZED, ENGINES, (8, 4)) | {("unsloth", 16): _UNTESTED}

TABLE: Mapping[str, Technique] = {
    "lora": Technique("LoRA", "lora.lora_r", "arXiv 2106.09685"),
    "rslora": Technique("rsLoRA", "lora.use_rslora", "arXiv 2312.03732"),
    "dora": Technique("DoRA", "lora.use_dora", "arXiv 2402.09353", _everywhere(_REARRANGED, ENGINES, (8,))),
    "pissa": Technique("PiSSA", "lora.init_lora_weights", "arXiv 2404.02948", _TAKES_OUT),
    "olora": Technique("OLoRA", "lora.init_lora_weights", "arXiv 2406.01775", _TAKES_OUT),
    "eva": Technique(
        "EVA",
        "lora.init_lora_weights",
        "arXiv 2410.07170",
        _everywhere("FastLanguageModel does not support it", ("unsloth",), BITS)
        | {("hf", 8): "a resumed run ended with other weights than one that was not interrupted (5e-5 apart)"},
    ),
    "loftq": Technique(
        "LoftQ",
        "lora.init_lora_weights",
        "arXiv 2310.08659",
        _everywhere("it begins with the error of 4 bits", ENGINES, (16, 8))
        | {("unsloth", 4): "unsloth refuses it on weights in 4 bits"},
    ),
    "lora+": Technique("LoRA+", "lora.loraplus_lr_ratio", "arXiv 2402.12354"),
    "lora-fa": Technique("LoRA-FA", "lora.use_lorafa", "arXiv 2308.03303", _everywhere(_UNTESTED, ("unsloth",), BITS)),
    "vera": Technique(
        "VeRA",
        "lora.use_vera",
        "arXiv 2310.11454",
        _everywhere(_UNTESTED, ("unsloth",), BITS) | _everywhere(_UNTESTED_BITS, ("hf",), (8, 4)),
    ),
    "neftune": Technique(
        "NEFTune",
        "train.neftune_noise_alpha",
        "arXiv 2310.05914",
        _everywhere("it joins the rows of a batch, and the noise depends on a row's length", ("unsloth",), BITS),
    ),
    "layers": Technique("a subset of the layers", "lora.layers_to_transform", "arXiv 2106.09685, section 7.1"),
    "qlora": Technique("QLoRA", "model.load_in_4bit", "arXiv 2305.14314", _everywhere(_OTHER_BITS, ENGINES, (16, 8))),
    "full": Technique("full fine-tuning", "train.full_finetuning", "", _everywhere(_QUANTIZED, ENGINES, (8, 4))),
}
"""Every technique of `config.techniques`, in its order."""
assert tuple(TABLE) == tuple(TECHNIQUES)


def refusal(config: RunConfig, engine: str, bits: int | None = None) -> ModelError | None:
    """The error if an engine cannot train the techniques of the settings; None if it can.

    Args:
        config: the settings.
        engine: `hf` or `unsloth`.
        bits: of the weights as they were loaded; None for those that the settings ask for.
    """
    width = min(bits or config.model.quantization_bits or 16, 16)
    for name in config.techniques:
        technique = TABLE[name]
        reason = technique.refused.get((engine, width))
        if reason is None or name == "qlora":  # a model that is stored in 8 bits is not loaded in 4
            continue
        return ModelError(
            f"the {engine} engine cannot train {technique.title} on weights of {width} bits: {reason}",
            where=technique.setting,
            hint=_instead(technique, engine, width),
            name="technique_refused",
        )
    return None


def _instead(technique: Technique, engine: str, width: int) -> str:
    if engine != "hf" and ("hf", width) not in technique.refused:
        return "--engine hf"
    possible = [bits for bits in BITS if ("hf", bits) not in technique.refused]
    return f"--no-load-in-{width}bit" + " --engine hf" * (engine != "hf") if 16 in possible else "--load-in-4bit"


def check(config: RunConfig, engine: str, bits: int | None = None) -> None:
    """Raise what `refusal` returns.

    Raises:
        ModelError: the engine cannot train a technique of the settings.
    """
    error = refusal(config, engine, bits)
    if error is not None:
        raise error


def supported(engine: str, bits: int) -> tuple[str, ...]:
    """The techniques that an engine can train at these bits."""
    return tuple(name for name, technique in TABLE.items() if (engine, bits) not in technique.refused)


def table() -> str:
    """The table as Markdown, for docs/techniques.md: yes, or the number of a reason below it."""
    reasons = list(dict.fromkeys(reason for technique in TABLE.values() for reason in technique.refused.values()))
    head = [f"{engine}, {'16/32' if bits == 16 else bits} bits" for engine in ENGINES for bits in BITS]
    lines = [f"| technique | {' | '.join(head)} |", f"| --- |{' --- |' * len(head)}"]
    for name, technique in TABLE.items():
        cells = [technique.refused.get((engine, bits)) for engine in ENGINES for bits in BITS]
        shown = ["yes" if cell is None else f"no ({reasons.index(cell) + 1})" for cell in cells]
        lines.append(f"| `{name}` | {' | '.join(shown)} |")
    return "\n".join([*lines, "", *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1))])
