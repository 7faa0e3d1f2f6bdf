"""The settings of a run: their meaning (`schema`, `run_config`), their names (`settings`), and how they are read (`load`)."""

from cot_unsloth.config.benchmarks import BENCHMARKS
from cot_unsloth.config.load import load, load_all, load_all_tree, load_tree, read_file
from cot_unsloth.config.messages import flag_name, guess
from cot_unsloth.config.run_config import Flags, FlagValue, RunConfig
from cot_unsloth.config.schema import (
    ASSETS,
    DEFAULT_CONFIG,
    DEFAULT_SYSTEM_PROMPT,
    EXPORTS,
    TINY_BASE,
    AnyArm,
    Arm,
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    TrainConfig,
)
from cot_unsloth.config.schema_lora import LoraConfig
from cot_unsloth.config.schema_sampling import SampleConfig
from cot_unsloth.config.settings import HOW_LOADED, LEAVES, SECTIONS, field_of, is_flag_pair, is_unset, reference
from cot_unsloth.config.sources import HUB_ID, split_sources
from cot_unsloth.config.target import is_settings_file, load_target, load_target_all

__all__ = [
    "ASSETS",
    "BENCHMARKS",
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
    "LoraConfig",
    "ModelConfig",
    "RunConfig",
    "SampleConfig",
    "TrainConfig",
    "field_of",
    "flag_name",
    "guess",
    "is_flag_pair",
    "is_settings_file",
    "is_unset",
    "load",
    "load_all",
    "load_all_tree",
    "load_target",
    "load_target_all",
    "load_tree",
    "read_file",
    "reference",
    "split_sources",
]
