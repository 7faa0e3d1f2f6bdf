"""The search space of a sweep: settings, each with its choices or its range."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast, get_args, get_origin

from cot_unsloth import config as settings
from cot_unsloth.config import RunConfig
from cot_unsloth.core.errors import ConfigError

if TYPE_CHECKING:
    import optuna

Choice: TypeAlias = str | int | float | bool | None
Choices: TypeAlias = Mapping[str, Choice]
"""Settings by leaf name; the values of a list have commas between them."""
Combination: TypeAlias = tuple[Choice, ...]
"""A value for each dimension of a space, in their order."""


@dataclass(frozen=True)
class Dimension:
    """One setting and the values that it may take: `choices`, or else a range."""

    leaf: str
    choices: tuple[Choice, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    """Whether the range is of whole numbers."""

    def suggest(self, trial: optuna.Trial) -> Choice:
        """A value, drawn by the trial's sampler."""
        if self.choices:
            return trial.suggest_categorical(self.leaf, self.choices)
        if self.whole:
            return trial.suggest_int(self.leaf, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.leaf, self.low, self.high, log=self.log)

    def distribution(self) -> optuna.distributions.BaseDistribution:
        """What `suggest` draws from."""
        import optuna

        if self.choices:
            return optuna.distributions.CategoricalDistribution(self.choices)
        if self.whole:
            return optuna.distributions.IntDistribution(int(self.low), int(self.high), log=self.log)
        return optuna.distributions.FloatDistribution(self.low, self.high, log=self.log)

    @property
    def values(self) -> Sequence[Choice] | None:
        """All values; None for a continuous range."""
        return self.choices or (range(int(self.low), int(self.high) + 1) if self.whole else None)

    def contains(self, value: Choice) -> bool:
        """Whether it is one of the values."""
        if self.choices:
            return value in self.choices
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    def __str__(self) -> str:
        if self.choices:
            return ", ".join(map(str, self.choices))
        return f"{self.low:g} to {self.high:g}" + (", logarithmic" if self.log else "")


def parse(text: str) -> Dimension:
    """A dimension as on the command line.

    >>> parse("lora_r=4,8,16").choices, parse("learning_rate=1e-4:1e-2:log").low
    ((4, 8, 16), 0.0001)

    Raises:
        ConfigError: it is not understood, or there is no such setting.
    """
    leaf, equals, values = text.partition("=")
    leaf = leaf.strip().removeprefix("--").replace("-", "_")
    if not equals or not values:
        hint = "--vary lora_r=4,8,16 or --vary learning_rate=1e-4:1e-2:log"
        raise ConfigError("names no values", where=f"--vary {text}", hint=hint)
    ends = values.split(":")
    if len(ends) in (2, 3) and _is_number(ends[0]) and _is_number(ends[1]) and ends[2:] in ([], ["log"]):
        return _range(leaf, float(ends[0]), float(ends[1]), log=len(ends) == 3, where=f"--vary {text}")
    return _choices(leaf, [_listed(leaf, item.strip()) for item in values.split(",")], f"--vary {text}")


def _listed(leaf: str, text: str) -> str:
    """A list, such as of modules, is written with +, as commas separate the choices. `lora+` and `1e+3` are not lists."""
    is_list = leaf in settings.LEAVES and get_origin(settings.field_of(leaf).annotation) is tuple
    return text.replace("+", ",") if is_list else text


def read(file: Path) -> list[Dimension]:
    """The dimensions of a YAML file: `lora_r: [4, 8]`, or `learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}`.

    Raises:
        ConfigError: it cannot be read, or names no such setting.
    """
    tree = settings.read_file(file, hint="lora_r: [4, 8, 16]")
    if not tree:
        raise ConfigError("holds no settings to vary", where=str(file), hint="lora_r: [4, 8, 16]")
    return [_of_file(str(leaf), values, f"{file}: {leaf}") for leaf, values in tree.items()]


def _of_file(leaf: str, values: object, where: str) -> Dimension:
    if isinstance(values, list) and values:
        texts = [",".join(map(str, one)) if isinstance(one, list) else one for one in values]
        if all(one is None or isinstance(one, str | int | float) for one in texts):
            return _choices(leaf, texts, where)
    is_range = isinstance(values, dict) and {"low", "high"} <= set(values) <= {"low", "high", "log"}
    if is_range and isinstance(values, dict) and isinstance(values.get("log", False), bool):
        ends = [_value(str(values[name])) for name in ("low", "high")]
        if all(isinstance(end, int | float) for end in ends):
            low, high = (float(str(end)) for end in ends)
            return _range(leaf, low, high, log=values.get("log") is True, where=where)
    raise ConfigError("is neither a list of choices nor {low, high, log}", where=where)


def _choices(leaf: str, choices: Sequence[Choice], where: str) -> Dimension:
    _require_setting(leaf, where)
    values = [_value(one, leaf) if isinstance(one, str) else one for one in choices]
    return Dimension(leaf, tuple(dict.fromkeys(values)))


def _range(leaf: str, low: float, high: float, *, log: bool, where: str) -> Dimension:
    _require_setting(leaf, where)
    if not low < high or (log and low <= 0):
        raise ConfigError("is not a range: the first number must be the smaller one, and above 0 with log", where=where)
    kinds = {settings.field_of(leaf).annotation, *get_args(settings.field_of(leaf).annotation)}  # of `int | None`, too
    whole = int in kinds and float not in kinds
    if whole and not (low.is_integer() and high.is_integer()):
        raise ConfigError(f"{leaf} takes whole numbers", where=where)
    return Dimension(leaf, low=low, high=high, log=log, whole=whole)


_OF_THE_SWEEP = (
    "run_dir", "score_on", "eval_steps", "development_problems", "eval_seed", "eval_samples", "dataset", "dataset_config_name",
    "dataset_split", "dataset_revision", "seed", "benchmark", "benchmark_path", "arms", "forgetting", "recovery", "gate",
)  # fmt: skip
"""Settings that must be the same in every trial, so that all answer the same problems and can be compared; or that the sweep
sets itself."""


def _require_setting(leaf: str, where: str) -> None:
    if leaf not in settings.LEAVES:
        raise ConfigError(f"there is no setting {leaf}{settings.guess(leaf)}", where=where)
    if leaf in _OF_THE_SWEEP or settings.LEAVES[leaf] == "export":
        raise ConfigError(f"{leaf} must be the same in every trial", where=where)


def _is_number(text: str) -> bool:
    return isinstance(_value(text), int | float) and not isinstance(_value(text), bool)


def _value(text: str, leaf: str | None = None) -> Choice:
    annotation = None if leaf is None else settings.field_of(leaf).annotation
    is_text = str in (annotation, *get_args(annotation)) and get_origin(annotation) is not tuple
    for kind in () if is_text else (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    if leaf is not None and settings.is_unset(leaf, text):
        return None
    return text if is_text else {"true": True, "false": False}.get(text.lower(), text)


def default_space(config: RunConfig) -> list[Dimension]:
    """The default space: learning rate first, then the adapter's size, position and kind."""
    rate, batch = config.train.learning_rate, config.train.per_device_train_batch_size
    optimizer = [
        Dimension("learning_rate", low=rate / 5, high=rate * 5, log=True),
        Dimension("lr_scheduler_type", ("linear", "cosine", "constant_with_warmup")),
        Dimension("per_device_train_batch_size", tuple(sorted({max(1, batch // 2), batch, 2 * batch}))),
    ]
    if config.train.full_finetuning or config.train.init_adapter:
        return optimizer
    return [
        *optimizer,
        Dimension("lora_r", (8, 16, 32, 64)),
        Dimension("lora_alpha", (16, 32, 64, 128)),
        Dimension("target_modules", ("all-linear", "q_proj,k_proj,v_proj,o_proj")),
        Dimension("lora_dropout", (0.0, 0.05)),
        Dimension("technique", ("lora", "rslora", "lora+", "olora")),
    ]


def grid(space: Sequence[Dimension]) -> Iterator[Choices]:
    """Every combination.

    Raises:
        ConfigError: a dimension is a range.
    """
    for dimension in space:
        if not dimension.choices:
            raise ConfigError("is a range, and a grid needs choices", where=f"--grid, {dimension.leaf}")
    for values in itertools.product(*(dimension.choices for dimension in space)):
        yield {dimension.leaf: value for dimension, value in zip(space, values, strict=True)}


def count(space: Sequence[Dimension]) -> int | None:
    """The number of combinations; None if a dimension is a continuous range."""
    sizes = [None if dimension.values is None else len(dimension.values) for dimension in space]
    return None if None in sizes else math.prod(size for size in sizes if size is not None)


def combination(space: Sequence[Dimension], number: int) -> Choices:
    """A combination of a finite space, by its number from 0."""
    chosen: dict[str, Choice] = {}
    for dimension in space:
        values = dimension.values or ()
        number, index = divmod(number, len(values))
        chosen[dimension.leaf] = values[index]
    return chosen


def of_values(values: Mapping[str, object], space: Sequence[Dimension]) -> Combination | None:
    """Settings as a combination; None if one is missing."""
    if any(dimension.leaf not in values for dimension in space):
        return None
    return tuple(cast("Choice", values[dimension.leaf]) for dimension in space)


def values_in(config: RunConfig, space: Sequence[Dimension]) -> Choices:
    """The settings' values in those dimensions of the space that contain them."""
    values: dict[str, Choice] = {}
    for dimension in space:
        value = getattr(getattr(config, settings.LEAVES[dimension.leaf]), dimension.leaf)
        value = ",".join(map(str, value)) if isinstance(value, tuple) else value
        if dimension.leaf == "technique":  # expanded when settings are read
            value = config.techniques[0] if len(config.techniques) == 1 else None
        if dimension.contains(value):
            values[dimension.leaf] = value
    return values


def require_valid(config: RunConfig, space: Sequence[Dimension]) -> None:
    """Check that each value can be set by itself; some may still conflict with others in a trial.

    Raises:
        ConfigError: one cannot.
    """
    for dimension in space:
        for value in dimension.choices or (dimension.low, dimension.high):
            config.overridden({dimension.leaf: int(value) if dimension.whole and value is not None else value})
