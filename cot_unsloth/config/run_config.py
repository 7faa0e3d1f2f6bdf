"""`RunConfig`: all settings of a run, checked together, and how flags override them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import yaml
from pydantic import Field, ValidationError, model_validator

from cot_unsloth.config.benchmarks import BENCHMARKS
from cot_unsloth.config.messages import Origin, combined, invalid_value, unknown_flag, unknown_names
from cot_unsloth.config.schema import (
    EXPORTS,
    TINY_BASE,
    AnyArm,
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
from cot_unsloth.config.settings import LEAVES, SECTIONS, is_list, is_unset
from cot_unsloth.config.techniques import TECHNIQUES, TechniqueSettings, conflicts
from cot_unsloth.core.errors import ConfigError
from cot_unsloth.core.types import SamplingParams

FlagValue: TypeAlias = str | int | float | bool | Sequence[str] | os.PathLike[str] | None
Flags: TypeAlias = Mapping[str, FlagValue]
"""Settings by leaf name, as given on the command line or from Python; text is converted to the setting's type."""
Tree: TypeAlias = Mapping[str, object]
"""Settings as a file holds them: section name to leaves."""


_ADDED_LATER: Mapping[tuple[str, str], object] = {
    ("train", "method"): "sft",
    ("train", "init_adapter"): None,
    ("evaluate", "forgetting"): "auto",
    ("lora", "technique"): None,
    ("lora", "use_dora"): False,
    ("lora", "init_lora_weights"): "default",
    ("lora", "layers_to_transform"): [],
    ("lora", "loraplus_lr_ratio"): None,
    ("lora", "use_lorafa"): False,
    ("lora", "use_vera"): False,
    ("train", "neftune_noise_alpha"): None,
}
"""Settings added after the first hashes were written, with the values that older versions used. With these values they are
left out of a hash, so that it equals the one in the manifest of an older run."""
_SECTIONS_ADDED_LATER = ("sample", "grpo", "development")
"""Sections added later still: only their values that differ from the default are in a hash."""

_GRPO_RATE = 1e-5
"""Learning rate of GRPO for LoRA on models of 3B to 7B; 5e-6 to 5e-5 is usual (TRL's and Unsloth's examples)."""
_GRPO_RATE_TINY = 4e-4
"""The same for the embedded base of 2.3M weights: a tenth of its rate for imitation."""
_FORMER_BATCH = 16
"""The default of `eval_batch_size` before it became automatic; runs with the default are hashed with it."""


class RunConfig(Section):
    """All settings of a run."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    lora: LoraConfig = Field(default_factory=LoraConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    sample: SampleConfig = Field(default_factory=SampleConfig)
    grpo: GrpoConfig = Field(default_factory=GrpoConfig)
    development: DevelopmentConfig = Field(default_factory=DevelopmentConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    export: ExportConfig = Field(default_factory=ExportConfig)

    @model_validator(mode="before")
    @classmethod
    def _expand_technique(cls, values: object) -> object:
        """Replace `lora.technique` by the settings that it stands for, except those that are given explicitly."""
        if not isinstance(values, dict):
            return values
        lora = values.get("lora")
        name = lora.get("technique") if isinstance(lora, dict) else None
        if not isinstance(lora, dict) or name not in TECHNIQUES:
            return values
        expanded = {section: dict(leaves) for section, leaves in values.items() if isinstance(leaves, dict)}
        expanded["lora"]["technique"] = None
        for leaf, value in TECHNIQUES[str(name)].items():
            expanded.setdefault(LEAVES[leaf], {}).setdefault(leaf, value)
        return {**values, **expanded}

    @model_validator(mode="after")
    def _check_conflicts(self) -> RunConfig:
        if self.train.max_steps == 0:
            raise ValueError("train.max_steps is 0, so nothing would be trained; give -1 to count epochs")
        if self.model.load_in_4bit and self.model.load_in_8bit:
            raise ValueError("model.load_in_4bit and model.load_in_8bit are both on; choose one")
        if self.model.fast_inference and self.model.engine == "hf":
            raise ValueError("model.fast_inference needs the unsloth engine, and model.engine is hf")
        if self.model.fast_inference and (self.model.load_in_8bit or self.model.model_revision):
            raise ValueError(
                "model.fast_inference cannot be combined with load_in_8bit or model_revision, which vLLM cannot share"
            )
        if self.train.full_finetuning:
            self._check_full_finetuning()
        if self.train.method == "grpo":
            self._check_grpo()
        conflict = next(conflicts(self.technique_settings), None)
        if conflict:
            raise ValueError(conflict)
        if self.evaluate.benchmark_path and not self.evaluate.benchmark:
            raise ValueError("evaluate.benchmark_path needs evaluate.benchmark, which says how to read the file")
        if "all-linear" in self.lora.target_modules and len(self.lora.target_modules) > 1:
            raise ValueError("lora.target_modules names all-linear and other modules; give one or the other")
        return self

    def _check_grpo(self) -> None:
        grpo = self.grpo
        if grpo.generation_batch_size % grpo.num_generations:
            raise ValueError(
                f"grpo.generation_batch_size is {grpo.generation_batch_size}, not a multiple of grpo.num_generations "
                f"({grpo.num_generations})"
            )
        if self.model.fast_inference:
            raise ValueError(
                "model.fast_inference cannot be combined with train.method grpo: vLLM would keep old weights"
            )
        if self.train.full_finetuning and grpo.beta:
            raise ValueError("grpo.beta above 0 with train.full_finetuning would keep a second model; train an adapter")

    def _check_full_finetuning(self) -> None:
        if self.train.method == "rft":
            raise ValueError(
                "train.method rft trains an adapter in each round; with train.full_finetuning there is none"
            )
        if self.train.init_adapter:
            raise ValueError("train.init_adapter continues an adapter; with train.full_finetuning there is none")
        if self.model.quantization_bits:
            raise ValueError(
                "train.full_finetuning needs weights that are not quantized; leave load_in_4bit and load_in_8bit off"
            )
        if self.model.fast_inference:
            raise ValueError(
                "train.full_finetuning cannot be combined with model.fast_inference, which shares frozen weights"
            )
        if self.export.lora_gguf:
            raise ValueError("export.lora_gguf writes an adapter; with train.full_finetuning there is none")
        if self.export.push_to_hub and not (self.export.merged or self.export.gguf):
            raise ValueError(
                "export.push_to_hub with train.full_finetuning pushes a merged folder or GGUF files; add merged"
            )

    @property
    def scored_arms(self) -> tuple[AnyArm, ...]:
        """The arms of a run in scoring order: those in the settings, and before `tuned` the adapter that training continued."""
        arms = self.evaluate.arms_in_order
        if self.train.init_adapter is None or "tuned" not in arms:
            return arms
        return (*(arm for arm in arms if arm != "tuned"), "start", "tuned")

    @property
    def technique_settings(self) -> TechniqueSettings:
        """The settings that make up a technique."""
        lora, train = self.lora, self.train
        return TechniqueSettings(
            init=lora.init_lora_weights,
            rslora=lora.use_rslora,
            dora=lora.use_dora,
            layers=bool(lora.layers_to_transform),
            loraplus=lora.loraplus_lr_ratio is not None,
            lorafa=lora.use_lorafa,
            vera=lora.use_vera,
            neftune=train.neftune_noise_alpha is not None,
            full=train.full_finetuning,
            bits=self.model.quantization_bits,
            method=train.method,
            packing=train.packing,
            optim=train.optim,
            continues=train.init_adapter is not None,
        )

    @property
    def techniques(self) -> tuple[str, ...]:
        """The techniques that these settings use; `("lora",)` for plain LoRA."""
        return self.technique_settings.names

    @property
    def needs_traces(self) -> bool:
        """Whether training needs rows with reasoning. rft and grpo do not: they learn from the model's own attempts."""
        return self.train.method not in ("rft", "grpo")

    @property
    def examples_per_step(self) -> int:
        """Rows per optimizer step; with grpo, problems."""
        return self.grpo.problems_per_step if self.train.method == "grpo" else self.train.rows_per_step

    @property
    def max_completion_length(self) -> int:
        """The token limit of an attempt in grpo."""
        return self.grpo.max_completion_length or self.evaluate.max_new_tokens

    @property
    def sampling_params(self) -> SamplingParams:
        """The sampling parameters of a scoring run."""
        e = self.evaluate
        return SamplingParams(e.max_new_tokens, e.temperature, e.top_p, e.eval_seed, e.eval_batch_size)

    def overridden(self, flags: Flags) -> RunConfig:
        """These settings, overridden by `flags`, which are converted and checked as on the command line.

        Raises:
            ConfigError: with every error, each with its flag.
        """
        return config_from(self.model_dump(mode="json"), flags)

    def replaced(self, **leaves: object) -> RunConfig:
        """These settings with some values replaced by the program; the values are not checked."""
        sections: dict[str, dict[str, object]] = {}
        for leaf, value in leaves.items():
            sections.setdefault(LEAVES[leaf], {})[leaf] = value
        return self.model_copy(
            update={name: getattr(self, name).model_copy(update=changed) for name, changed in sections.items()}
        )

    def without_export(self) -> RunConfig:
        """These settings with nothing to export."""
        return self.replaced(**EXPORTS)

    def differences(self, other: RunConfig) -> dict[str, tuple[object, object]]:
        """Settings that differ, except `run_dir`: `{"train.learning_rate": (ours, theirs)}`, as JSON values."""
        ours, theirs = self.model_dump(mode="json"), other.model_dump(mode="json")
        return {
            f"{section}.{leaf}": (value, theirs[section][leaf])
            for section, leaves in ours.items()
            for leaf, value in leaves.items()
            if leaf != "run_dir" and theirs[section][leaf] != value
        }

    def fingerprint(self, *sections: str) -> str:
        """A hash of the settings that affect the result. Not included: the run's folder, logging, and the gate."""
        plain = self.model_dump(mode="json", include=set(sections) or None)
        for leaf in ("run_dir", "save_total_limit", "logging_steps", "report_to"):
            plain.get("train", {}).pop(leaf, None)
        plain.get("data", {}).pop("dataset_num_proc", None)
        for leaf in ("gate", "min_format_valid"):
            plain.get("evaluate", {}).pop(leaf, None)
        if "evaluate" in plain and plain["evaluate"]["eval_batch_size"] is None:
            plain["evaluate"]["eval_batch_size"] = _FORMER_BATCH
        for (section, leaf), value in _ADDED_LATER.items():
            if leaf in plain.get(section, {}) and plain[section][leaf] == value:
                del plain[section][leaf]
        for section in _SECTIONS_ADDED_LATER:
            leaves = plain.pop(section, {})
            changed = {leaf: v for leaf, v in leaves.items() if v != SECTIONS[section].model_fields[leaf].default}
            plain |= {section: changed} if changed else {}
        # Sorted, so that moving a setting to another line of the schema changes no hash.
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        """The resolved settings as YAML; loading it gives equal settings."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def config_from(tree: Tree, flags: Flags, origin: Origin | None = None) -> RunConfig:
    """Check settings given as a tree of sections, after `flags` have overridden them.

    Raises:
        ConfigError: with every error, each with its line or flag.
    """
    config, errors = config_and_errors(tree, flags, origin)
    if errors or config is None:
        raise combined(errors)
    return config


def config_and_errors(
    tree: Tree, flags: Flags, origin: Origin | None = None
) -> tuple[RunConfig | None, list[ConfigError]]:
    """Like `config_from`, but returns the errors, together with the settings without the invalid values.

    Returns:
        The settings, or None if the remaining ones do not validate either; and the errors.
    """
    origin = Origin(origin.file, origin.lines, tuple(flags)) if origin else Origin(flags=tuple(flags))
    errors = list(unknown_names(tree, origin))
    errors += [unknown_flag(leaf) for leaf in flags if leaf not in LEAVES]
    values = _with_flags(tree, {leaf: value for leaf, value in flags.items() if leaf in LEAVES})
    while True:
        try:
            return RunConfig.model_validate(values), errors
        except ValidationError as error:
            details = error.errors()
        errors += [invalid_value(detail, origin) for detail in details]
        # Conflicts are only checked once every single value is valid: drop the invalid values and try again.
        remaining = {name: dict(leaves) for name, leaves in values.items()}
        for detail in details:
            section, *leaf_path = detail["loc"] or ("",)
            if leaf_path and str(section) in remaining:
                remaining[str(section)].pop(str(leaf_path[0]), None)
        if remaining == values:
            return None, errors
        values = remaining


def _with_flags(tree: Tree, flags: Flags) -> dict[str, dict[str, object]]:
    """The known settings of the tree, overridden by the flags."""
    values = {
        name: {leaf: _as_list(leaf, value) for leaf, value in section.items() if leaf in SECTIONS[name].model_fields}
        for name, section in tree.items()
        if name in SECTIONS and isinstance(section, dict)
    }
    _set_budget(values.get("evaluate", {}))
    # A flag that repeats the tree changes nothing; one that does not takes values with it that were chosen for the tree's.
    lora, train, evaluate = (values.get(name, {}) for name in ("lora", "train", "evaluate"))
    if flags.get("technique") in TECHNIQUES and flags["technique"] != lora.get("technique"):
        # A technique's settings override those of the tree, but not the flags given with it.
        for leaf in TECHNIQUES[str(flags["technique"])]:
            values.get(LEAVES[leaf], {}).pop(leaf, None)
    is_grpo = [method == "grpo" for method in (train.get("method", "sft"), flags.get("method"))]
    if "method" in flags and is_grpo[0] != is_grpo[1] and "learning_rate" not in flags:
        train.pop("learning_rate", None)  # a rate for grpo is far too low for the other methods
    benchmark = evaluate.get("benchmark")
    for leaf, value in flags.items():
        values.setdefault(LEAVES[leaf], {})[leaf] = _converted(leaf, value)
    if "benchmark" in flags and values["evaluate"]["benchmark"] != benchmark and "max_new_tokens" not in flags:
        # A budget in the tree was chosen for another benchmark, or for none.
        values["evaluate"].pop("max_new_tokens", None)
        _set_budget(values["evaluate"])
    _set_rate(values)
    return values


def _set_rate(values: dict[str, dict[str, object]]) -> None:
    """Give GRPO a far lower learning rate than imitation, unless one is set."""
    train = values.get("train", {})
    if train.get("method") == "grpo":
        name = values.get("model", {}).get("model_name_or_path", TINY_BASE)
        train.setdefault("learning_rate", _GRPO_RATE_TINY if name == TINY_BASE else _GRPO_RATE)


def _set_budget(evaluate: dict[str, object]) -> None:
    """Take max_new_tokens from the benchmark, unless it is set too."""
    benchmark = BENCHMARKS.get(str(evaluate.get("benchmark")))
    if benchmark is not None:
        evaluate.setdefault("max_new_tokens", benchmark.max_new_tokens)


def _converted(leaf: str, value: FlagValue) -> object:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, str) and not is_list(leaf):
        return None if is_unset(leaf, value) else value
    return _as_list(leaf, value)


def _as_list(leaf: str, value: object) -> object:
    """Text for a list as its items, separated by commas; none is the empty list, as Hugging Face's `report_to: none`."""
    if not isinstance(value, str) or not is_list(leaf):
        return value
    return [] if is_unset(leaf, value) else [item.strip() for item in value.split(",") if item.strip()]
