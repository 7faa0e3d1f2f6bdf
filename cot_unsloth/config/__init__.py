"""Settings of a run: what they mean (`schema`, `run_config`) and where they come from (`load`)."""

from cot_unsloth.config.load import load, load_all, load_all_tree, load_tree
from cot_unsloth.config.messages import flag_name, guess
from cot_unsloth.config.run_config import Flags, FlagValue, RunConfig
from cot_unsloth.config.schema import (
    ASSETS,
    BUDGETS,
    DEFAULT_CONFIG,
    DEFAULT_SYSTEM_PROMPT,
    EXPORTS,
    HOW_LOADED,
    LEAVES,
    SECTIONS,
    TINY_BASE,
    AnyArm,
    Arm,
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    TrainConfig,
    field_of,
    is_flag_pair,
    reference,
)
from cot_unsloth.config.sources import HUB_ID, split_sources

__all__ = [
    "ASSETS",
    "BUDGETS",
    "DEFAULT_CONFIG",
    "DEFAULT_SYSTEM_PROMPT",
    "EXPORTS",
    "HOW_LOADED",
    "HUB_ID",
    "LEAVES",
    "SECTIONS",
    "TINY_BASE",
    "AnyArm",
    "Arm",
    "DataConfig",
    "EvaluateConfig",
    "FlagValue",
    "Flags",
    "ModelConfig",
    "RunConfig",
    "TrainConfig",
    "field_of",
    "flag_name",
    "guess",
    "is_flag_pair",
    "load",
    "load_all",
    "load_all_tree",
    "load_tree",
    "reference",
    "split_sources",
]
