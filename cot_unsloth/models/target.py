"""A model to chat with, opened from what the user names: a run, a GGUF file, or a model.

Owns which engine a target is opened with, and its settings: the base that an adapter names, and the system prompt
that it was trained with. That prompt is known only for our runs; any other model gets none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cot_unsloth import config as settings
from cot_unsloth.config import RunConfig
from cot_unsloth.core.errors import ConfigError, RunDirError
from cot_unsloth.core.progress import note
from cot_unsloth.core.results.verification import VERIFIED, Verification, read_verification
from cot_unsloth.models import registry
from cot_unsloth.models.adapter_files import Base, named_base
from cot_unsloth.models.llamacpp import LlamaCpp
from cot_unsloth.models.protocols import Streamer
from cot_unsloth.prompts.render import model_path
from cot_unsloth.storage.run_folder import RunDir, is_full_model


def open_target(
    target: Path | None, base: str | None, adapter: Path | None, flags: Mapping[str, Any], slots: int = 1
) -> tuple[Streamer, RunConfig]:
    """The model and its settings.

    Args:
        target: a run's folder or a GGUF file.
        base: a model to load instead.
        adapter: an adapter for it; without `base`, for the base that the adapter names.
        flags: settings given on the command line.
        slots: concurrent conversations, for a GGUF file.

    Raises:
        InputError: it is not one of these, or cannot be loaded.
    """
    if target is not None and adapter is not None:
        raise ConfigError("cannot be combined with a run or a file", where="--adapter")
    if (target is None) == (base is None and adapter is None):
        raise ConfigError("name a run, a .gguf file, or a model with --model", where="arguments")
    if target is not None and target.suffix == ".gguf":
        refuse_loading(flags, target.name)
        home = RunDir.of_export(target)
        if home:
            config = as_trained(home, home.read_config()).overridden(flags)
        else:
            config = settings.load_tree(exported_with(target.parent), flags)
        note(f"engine llamacpp: {target}")
        return LlamaCpp(target, slots=slots), config
    fitted = adapter
    if target is not None:
        run = RunDir.open(target)
        fitted = run.require_trained_weights()
        config = as_trained(run, run.read_config()).overridden(flags)
    else:
        config = settings.load_tree(settings_of(base, adapter, flags), flags)
    # vLLM is for many prompts at once; what streams is the model itself.
    config = config.replaced(fast_inference=False)
    _, engine = registry.opened(config, fitted)
    if not isinstance(engine, Streamer):
        raise ConfigError(f"the {engine.name} engine cannot stream", where="model.engine", hint="--engine hf")
    return engine, config


def as_trained(run: RunDir, config: RunConfig) -> RunConfig:
    """A run's settings with the system prompt that its rows were trained with, if that is not the one in the settings.

    Rows may have their own prompts. If all rows have the same prompt, it is used. If they differ, the prompt in the
    settings is used if some rows had it, and otherwise none.
    """
    own = config.data.system_prompt or None
    prompts = run.system_prompts(own)
    if not prompts or own in prompts:
        return config
    if len(prompts) > 1:
        note(f"system prompt: none, because the rows of {run.path} have {len(prompts)} different ones of their own")
        return config.replaced(system_prompt=None)
    return config.replaced(system_prompt=prompts.pop())


_AS_TRAINED = {"model": ("date_string", "pad_token"), "data": ("trace_layout", "thinking_tags", "max_seq_length")}
"""Settings that belong to the weights of our runs, besides the template and the system prompt."""


def settings_of(base: str | None, adapter: Path | None, flags: Mapping[str, Any] = {}) -> dict[str, Any]:
    """Settings for a base and an adapter, as a tree of sections; flags are applied over it later.

    Args:
        base: a model; None takes the one that the adapter names.
        adapter: an adapter, or a model from full fine-tuning; None for the base alone.
        flags: settings given on the command line; they decide which notes are printed.

    Raises:
        ModelError: no base is given, and the adapter names none that can be found.
    """
    model = _base_of(base, adapter, flags.get("model_revision"))
    tree: dict[str, Any] = {
        "model": {"model_name_or_path": model.name, "model_revision": model.revision},
        "data": {"system_prompt": None},
    }
    weights = adapter or Path(model_path(model.name))
    run = RunDir.of_weights(weights) if weights.is_dir() else None
    if run is not None:
        config = as_trained(run, run.read_config())
        before = config.model_dump(mode="json")
        for section, leaves in _AS_TRAINED.items():
            tree[section] |= {leaf: before[section][leaf] for leaf in leaves}
        tree["data"]["system_prompt"] = config.data.system_prompt
    elif (weights / VERIFIED).is_file():
        tree["data"] |= exported_with(weights)["data"]
    elif "system_prompt" not in flags:
        whose = adapter or model.name
        note(
            f"system prompt: none, because {whose} does not say which one it was trained with (--system-prompt TEXT sets it)"
        )
    return tree


def _base_of(base: str | None, adapter: Path | None, revision: str | None) -> Base:
    """The given base, or else the one that the adapter names; prints a note if they differ."""
    if adapter is None or is_full_model(adapter):
        return Base(base or str(adapter), revision)
    if base is None:
        return named_base(adapter).found(adapter)
    named = named_base(adapter)
    if not named.is_same(base):
        note(f"{adapter} names another base than {base}: {named.name}")
        return Base(base, revision)
    if named.revision and revision not in (None, named.revision):
        note(f"{adapter} names another revision of {base} than {revision}: {named.revision}")
    return Base(base, revision or named.revision)


def refuse_loading(flags: Mapping[str, Any], where: str) -> None:
    """Refuse model-loading settings for a GGUF file, which loads no such weights.

    Raises:
        ConfigError: there is such a setting.
    """
    asked = [f"--{leaf.replace('_', '-')}" for leaf in flags if settings.LEAVES.get(leaf) == "model"]
    if asked:
        raise ConfigError("needs a run, or --model", where=f"{' '.join(asked)} with {where}")


def exported_with(folder: Path) -> dict[str, Any]:
    """The settings that an export outside a run recorded in its folder: its system prompt and its tags."""
    record = _record_in(folder)
    if record.has_system_prompt:
        return {"data": {"system_prompt": record.system_prompt, "thinking_tags": record.thinking_tags}}
    note(
        f"system prompt: none, because {folder} does not say which one the model was trained with "
        "(--system-prompt TEXT sets it)"
    )
    return {"data": {"system_prompt": None}}


def exported_from_run(file: Path) -> bool:
    """Whether the record in a file's folder lists the file, and says that one of our runs trained it."""
    record = _record_in(file.parent)
    return file.name in record.sha256 and record.trained


def _record_in(folder: Path) -> Verification:
    """The record of an export; an empty one also if it is damaged, because what it says is only a help here."""
    try:
        return read_verification(folder)
    except RunDirError:
        return Verification()
