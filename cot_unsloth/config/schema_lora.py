"""The settings of section `lora`: the adapter, its initialization, and the techniques that change how it is trained."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator
from pydantic_core import PydanticCustomError

from cot_unsloth.config.section import Section, one_of
from cot_unsloth.config.techniques import INITIALIZATIONS, TECHNIQUES, is_initialization, layer_range


def _initialization(name: object) -> object:
    if name in (True, None):  # PEFT's own default
        return "default"
    if not is_initialization(name):
        known = ", ".join(map(repr, INITIALIZATIONS))
        raise PydanticCustomError("literal_error", "Input should be {known} or 'pissa_niter_N'", {"known": known})
    return name


class LoraConfig(Section):
    """The adapter; ignored with full_finetuning."""

    technique: Annotated[str, BeforeValidator(one_of(*TECHNIQUES))] | None = Field(
        None,
        description=f"Shorthand for the settings of a technique: {', '.join(TECHNIQUES)}; settings given beside it take precedence. "
        "docs/techniques.md says what each sets",
    )
    lora_r: int = Field(32, ge=1, description="Rank; capacity and memory grow with it")
    lora_alpha: int = Field(64, ge=1, description="The adapter is scaled by alpha / rank; twice the rank is usual")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the input of the adapter")
    use_rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) instead; helps from rank 64")
    use_dora: bool = Field(
        False, description="DoRA: train the magnitude of each row of a weight separately from its direction; slower"
    )
    init_lora_weights: Annotated[str, BeforeValidator(_initialization)] = Field(
        "default",
        description="Initialization of the adapter: default, gaussian, orthogonal; pissa (or pissa_niter_N, faster) and olora: the main "
        "directions of the base's weights; eva: those of its activations on the data; loftq: the error of 4-bit quantization. "
        "In every case the saved adapter fits the base as published",
    )
    target_modules: tuple[str, ...] = Field(
        ("all-linear",),
        min_length=1,
        description="Modules to adapt, comma-separated; all-linear adapts every linear layer and usually learns best",
    )
    layers_to_transform: tuple[str, ...] = Field(
        (),
        description="Layers to adapt: numbers from 0 and ranges, such as 0,4-7, or upper or lower for one half of the model; empty: all",
    )
    loraplus_lr_ratio: float | None = Field(
        None, ge=1, description="LoRA+: the learning rate of B is this times that of A; 16 is usual"
    )
    use_lorafa: bool = Field(False, description="LoRA-FA: train only B, which halves the optimizer's memory")
    use_vera: bool = Field(
        False,
        description="VeRA: train only the scales of two random matrices that all layers share; lora_r is their rank, usually 256, with "
        "a higher learning rate. Saved as LoRA of that rank",
    )

    @field_validator("layers_to_transform", mode="before")
    @classmethod
    def _numbers_as_text(cls, value: object) -> object:
        """Accept numbers, as PEFT does."""
        if isinstance(value, int) and not isinstance(value, bool):
            value = [value]
        return tuple(map(str, value)) if isinstance(value, list | tuple) else value

    @field_validator("layers_to_transform")
    @classmethod
    def _are_layers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in ("upper", "lower"):
                layer_range(name)
        return value
