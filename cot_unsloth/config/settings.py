"""The sections and settings by name: the section of a setting, and the kind of value it takes.

The command line, the error messages and the option reference are made from these, so a setting is defined once, in
`schema`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import get_args, get_origin

from pydantic.fields import FieldInfo

from cot_unsloth.config.schema import (
    DataConfig,
    EvaluateConfig,
    ExportConfig,
    ModelConfig,
    TrainConfig,
)
from cot_unsloth.config.schema_development import DevelopmentConfig
from cot_unsloth.config.schema_grpo import GrpoConfig
from cot_unsloth.config.schema_lora import LoraConfig
from cot_unsloth.config.schema_sampling import SampleConfig
from cot_unsloth.config.section import Section

SECTIONS: dict[str, type[Section]] = {
    "model": ModelConfig,
    "lora": LoraConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "sample": SampleConfig,
    "grpo": GrpoConfig,
    "development": DevelopmentConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
}
"""The sections of a settings file. Register a section here, and in `RunConfig`."""
LEAVES: dict[str, str] = {leaf: section for section, kind in SECTIONS.items() for leaf in kind.model_fields}
"""Each setting and the section it belongs to. Names are unique, so that each is a command-line flag."""
HOW_LOADED = ("engine", "dtype", "load_in_4bit", "load_in_8bit")
"""Settings of how a model is loaded, independent of which model it is."""


def field_of(leaf: str) -> FieldInfo:
    """The pydantic field of a setting: its type, default and description."""
    return SECTIONS[LEAVES[leaf]].model_fields[leaf]


def is_flag_pair(leaf: str) -> bool:
    """True where a setting is a plain boolean, so that its flag takes no value."""
    return field_of(leaf).annotation is bool


def is_list(leaf: str) -> bool:
    """True where a setting is a list, written with commas on the command line."""
    return get_origin(field_of(leaf).annotation) is tuple


def is_unset(leaf: str, text: str) -> bool:
    """Whether a text means None: none or null, unless that is one of the setting's choices, as with scale_rewards."""
    return text.lower() in ("none", "null") and text not in get_args(field_of(leaf).annotation)


def reference() -> Iterator[tuple[str, str, str, str]]:
    """Every setting as (section, leaf, default as JSON, description), for the option reference."""
    for leaf, section in LEAVES.items():
        field = field_of(leaf)
        yield section, leaf, json.dumps(field.default), field.description or ""
