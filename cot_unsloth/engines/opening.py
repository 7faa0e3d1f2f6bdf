"""A model that can be talked to, from whatever a user names: a run, a GGUF file, or a model.

Owns which engine a target is opened with, and the settings that go with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cot_unsloth import config as settings
from cot_unsloth.config import RunConfig
from cot_unsloth.engines import registry
from cot_unsloth.engines.base import Streamer
from cot_unsloth.engines.llamacpp import LlamaCpp
from cot_unsloth.errors import ConfigError
from cot_unsloth.progress import note
from cot_unsloth.rundir import RunDir


def open_target(
    target: Path | None, base: str | None, adapter: Path | None, flags: Mapping[str, Any], slots: int = 1
) -> tuple[Streamer, RunConfig]:
    """The model and its settings.

    Args:
        target: a run's folder or a GGUF file.
        base: a model to load in its place.
        adapter: with `base`, an adapter on it.
        flags: settings given on the command line.
        slots: conversations at a time, of a GGUF file.

    Raises:
        InputError: it is none of these, or cannot be loaded.
    """
    if (target is None) == (base is None):
        raise ConfigError("name a run, a .gguf file, or a model with --model", where="arguments")
    if target is not None and target.suffix == ".gguf":
        refuse_loading(flags, target.name)
        home = RunDir.around(target)
        before = home.read_config().model_dump(mode="json") if home else exported_with(target)
        config = settings.load_tree(before, flags)
        note(f"engine llamacpp: {target}")
        return LlamaCpp(target, slots=slots), config
    fitted = adapter
    if target is not None:
        run = RunDir.open(target)
        fitted = run.finished()
        config = settings.load_tree(run.read_config().model_dump(mode="json"), flags)
    else:
        config = settings.load_tree({"model": {"model_name_or_path": base}}, flags)
    # vLLM is for many prompts at once; what streams is the model itself.
    config = config.replaced(fast_inference=False)
    _, engine = registry.opened(config, fitted)
    if not isinstance(engine, Streamer):
        raise ConfigError(f"the {engine.name} engine cannot stream", where="model.engine", hint="--engine hf")
    return engine, config


def refuse_loading(flags: Mapping[str, Any], where: str) -> None:
    """Make sure that nothing is asked of how weights are loaded where none are.

    Raises:
        ConfigError: something is.
    """
    asked = [f"--{leaf.replace('_', '-')}" for leaf in flags if settings.LEAVES.get(leaf) == "model"]
    if asked:
        raise ConfigError("goes with a run, or with --model", where=f"{' '.join(asked)} with {where}")


def exported_with(file: Path) -> dict[str, Any]:
    """Of a GGUF file that lies in no run: the settings that its export left beside it, its system prompt and its tags."""
    verified = file.parent / "verified.json"
    try:
        found = json.loads(verified.read_text(encoding="utf-8"))
        # Older exports name no tags: there was but one kind.
        data = {"system_prompt": found["system_prompt"], "thinking_tags": found.get("thinking_tags", "thinking")}
    except (OSError, ValueError, KeyError, TypeError):
        note(f"nothing beside {file.name} says what it was trained with: it is asked with our own system prompt")
        return {}
    return {"data": data}


def exported_from_run(file: Path) -> bool:
    """Whether the export beside a file, `verified.json`, lists it and comes from what a run of ours trained."""
    try:
        found = json.loads((file.parent / "verified.json").read_text(encoding="utf-8"))
        # Older exports do not say; they were written of runs, but for `export --model`, which was rare.
        return file.name in found["sha256"] and bool(found.get("trained", True))
    except (OSError, ValueError, KeyError, TypeError):
        return False
