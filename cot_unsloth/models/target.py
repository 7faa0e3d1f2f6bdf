"""Resolves what a user names: a run, a GGUF file, an adapter, a model, or a model behind a server.

Every command starts here. A `Target` holds the settings, the run that trained the weights (where it is known), the
weights themselves, and loads the engine that answers with them.

Where the settings come from:
- a run: its own, and for a conversation the system prompt that its rows were trained with;
- a GGUF file: those of the run whose export it is in, else what `verified.json` beside it records;
- an adapter or a model: the defaults, with the base that the adapter names and with what `verified.json` or the run
  that trained it says of the prompt. Other models get no system prompt, because theirs is not known.
Flags override all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cot_unsloth import config as settings
from cot_unsloth.config import Flags, ModelConfig, RunConfig
from cot_unsloth.core import network
from cot_unsloth.core.errors import ConfigError, ModelError, RunDirError
from cot_unsloth.core.progress import note
from cot_unsloth.core.results.combination import read_combination
from cot_unsloth.core.results.verification import VERIFIED, Verification, read_verification
from cot_unsloth.models import openai_api, registry
from cot_unsloth.models.adapter_files import Base, local_adapter, named_base, trained_here
from cot_unsloth.models.llamacpp import LlamaCpp
from cot_unsloth.models.protocols import Streamer, Trainable
from cot_unsloth.prompts.opening import open_renderer
from cot_unsloth.prompts.render import Renderer
from cot_unsloth.prompts.tokenizer import model_path
from cot_unsloth.storage.run_folder import RunDir, is_full_model

Use = Literal["converse", "score", "export"]
"""The purpose for which a target is resolved.

- converse: with the system prompt that the weights were trained with.
- score: with the run's settings as they are, because its rows bring prompts of their own; a base alone is asked under
  the default prompt, like the base arms of a run.
- export: as score, with nothing of what the run exported before.
"""


@dataclass(frozen=True)
class Target:
    """A model to use, and the settings to use it with."""

    config: RunConfig
    """The settings, flags included."""
    weights: Path | None = None
    """An adapter, a full model or a GGUF file; None for the base of the settings, or a model behind a server."""
    run: RunDir | None = None
    """The run that trained the weights; None where it is not known."""
    stored: RunConfig | None = None
    """The settings before flags, where flags were given."""
    trained: bool = True
    """Whether cot_unsloth trained it: then answers are read only from `<output>`, otherwise leniently."""
    servers: tuple[str, ...] = ()
    """Addresses that a model is served at."""

    @property
    def is_gguf(self) -> bool:
        """Whether it is a GGUF file, which llama.cpp loads."""
        return self.weights is not None and self.weights.suffix == ".gguf"

    @property
    def before_flags(self) -> RunConfig:
        """The settings that the flags were applied to."""
        return self.stored or self.config

    def load(self) -> tuple[Renderer, Trainable]:
        """The model in the engine that the settings choose, and the renderer of its prompts; notes which engine and why.

        Raises:
            ModelError: the engine is not available, or the weights cannot be loaded.
        """
        network.require("model", model_path(self.config.model.model_name_or_path))
        choice = registry.choose(self.config.model)  # with Unsloth installed, it imports torch
        registry.apply_patches(choice)
        weights = self.weights
        if weights is not None and not is_full_model(weights):
            weights = local_adapter(weights)  # a hub id is downloaded: the tokenizer beside the weights is read, too
        note(f"engine {choice.engine}: {choice.why}")
        renderer = open_renderer(self.config.model, self.config.data, weights, prompts_only=True)
        return renderer, registry.load(self.config, renderer.chat, choice, weights)

    def load_streamer(self, slots: int = 1) -> Streamer:
        """The model in an engine that gives its answers token by token.

        Args:
            slots: concurrent conversations; used for a GGUF file alone.

        Raises:
            ConfigError: the engine cannot stream.
            ModelError: as `load`.
        """
        if self.weights is not None and self.is_gguf:
            note(f"engine llamacpp: {self.weights}")
            return LlamaCpp(self.weights, slots=slots)
        # vLLM answers many prompts at once and does not stream here; the model that shares its weights does.
        _, engine = Target(self.config.replaced(fast_inference=False), self.weights).load()
        if not isinstance(engine, Streamer):
            raise ConfigError(f"the {engine.name} engine cannot stream", where="model.engine", hint="--engine hf")
        return engine

    def connect(self, api_key: str | None, concurrency: int) -> openai_api.OpenAiApi:
        """The engine for a model behind servers."""
        model, tags = self.config.model.model_name_or_path, self.config.data.thinking_tags
        note(f"engine openai_api: {model} at {', '.join(self.servers)}, {concurrency} prompts at a time")
        return openai_api.OpenAiApi(self.servers, model, api_key=api_key, concurrency=concurrency, thinking_tags=tags)


def resolve_target(
    path: Path | None = None,
    *,
    base: str | None = None,
    adapter: Path | None = None,
    flags: Flags | None = None,
    use: Use = "converse",
) -> Target:
    """Resolve a command's arguments.

    Args:
        path: a run folder or a GGUF file.
        base: a model to load instead; with `adapter`, the base that the adapter is put on.
        adapter: an adapter, or a full model from full fine-tuning; without `base`, on the base that it names.
        flags: settings given on the command line.
        use: the purpose.

    Raises:
        ConfigError: not exactly one of a run, a file and a model is named; or flags do not fit.
        RunDirError: there is no run, or it has no trained weights yet.
        ModelError: there is no such file; or the adapter names no base that can be found.
    """
    flags = flags or {}
    if path is not None and adapter is not None:
        raise ConfigError("cannot be combined with a run or a file, which has its own weights", where="--adapter")
    if (path is None) == (base is None and adapter is None):
        raise ConfigError(
            "name a run, a .gguf file, or a model with --model", hint="cot-unsloth runs lists the runs here"
        )
    if path is None:
        return _model_target(base, adapter, flags, use)
    return _gguf_target(path, flags, use) if path.suffix == ".gguf" else _run_target(path, flags, use)


def _run_target(path: Path, flags: Flags, use: Use) -> Target:
    run = RunDir.open(path)
    weights = run.require_trained_weights()
    stored = run.read_config()
    if use == "converse":
        stored = as_trained(run, stored)
    elif use == "export":
        stored = stored.without_export()
    return Target(stored.overridden(flags), weights, run, stored)


def _gguf_target(file: Path, flags: Flags, use: Use) -> Target:
    refuse_model_flags(flags, file.name)
    if not file.is_file():
        raise ModelError("there is no such file", where=str(file), name="file_missing")
    run = RunDir.of_export(file)
    if run is None:
        stored = _recorded_settings(RunConfig(), file.parent)
    else:
        stored = as_trained(run, run.read_config()) if use == "converse" else run.read_config()
    trained = run is not None or exported_from_run(file)
    return Target(stored.overridden(flags), file, run, stored, trained)


def _model_target(base: str | None, adapter: Path | None, flags: Flags, use: Use) -> Target:
    if adapter is None and base is not None and use == "score":
        stored = RunConfig(model=ModelConfig(model_name_or_path=base))
    else:
        stored = _settings_for(base, adapter, flags)
    if adapter is None:
        return Target(stored.overridden(flags), None, None, stored, trained=False)
    run = None if read_combination(adapter) else RunDir.of_weights(adapter)
    return Target(stored.overridden(flags), adapter, run, stored, trained=trained_here(adapter))


def resolve_server(
    addresses: Sequence[str],
    model: str | None = None,
    *,
    run: Path | None = None,
    flags: Flags | None = None,
    api_key: str | None = None,
) -> Target:
    """A model behind one or several servers.

    Args:
        addresses: of the servers, each ending in /v1.
        model: its name there; None where the servers have only one.
        run: the run that the model came from, for its settings and for what it was trained on.
        flags: settings given on the command line.
        api_key: for the servers.

    Raises:
        ConfigError: a server does not have the model, or has several; or a flag is about loading weights.
        EngineError: a server does not answer.
    """
    refuse_model_flags(flags or {}, "--api")
    if not addresses:
        raise ConfigError("names no server", where="--api", hint="--api http://HOST:PORT/v1")
    home = RunDir.open(run) if run else None
    stored = home.read_config() if home else RunConfig()
    config = stored.overridden(flags or {})
    for address in addresses:
        served = openai_api.served_models(address, api_key)
        model = served[0] if model is None and len(served) == 1 else model
        if model not in served:
            raise ConfigError(
                f"serves {', '.join(served) or 'nothing'}" + (f", not {model}" if model else "; say which"),
                where=f"--api {address}",
                hint="--model NAME",
            )
    assert model is not None
    config = config.model_copy(update={"model": ModelConfig(model_name_or_path=model)})
    return Target(config, None, home, stored, home is not None, tuple(addresses))


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


def _settings_for(base: str | None, adapter: Path | None, flags: Flags) -> RunConfig:
    """Settings for a base and an adapter. `flags` only decide which notes are printed; they are applied later.

    Raises:
        ModelError: no base is given, and the adapter names none that can be found.
    """
    revision = flags.get("model_revision")
    named = _base_of(base, adapter, revision if isinstance(revision, str) else None)
    config = RunConfig().replaced(model_name_or_path=named.name, model_revision=named.revision, system_prompt=None)
    weights = adapter or Path(model_path(named.name))
    combination = read_combination(weights)
    if combination is not None:
        return config.replaced(
            date_string=combination.date_string,
            pad_token=combination.pad_token,
            trace_layout=combination.trace_layout,
            thinking_tags=combination.thinking_tags,
            max_seq_length=combination.max_seq_length,
            system_prompt=combination.system_prompt,
        )
    run = RunDir.of_weights(weights) if weights.is_dir() else None
    if run is not None:
        trained = as_trained(run, run.read_config())
        # These belong to the weights of our runs, beside the template and the tokenizer, which are in their folder.
        return config.replaced(
            date_string=trained.model.date_string,
            pad_token=trained.model.pad_token,
            trace_layout=trained.data.trace_layout,
            thinking_tags=trained.data.thinking_tags,
            max_seq_length=trained.data.max_seq_length,
            system_prompt=trained.data.system_prompt,
        )
    if (weights / VERIFIED).is_file():
        return _recorded_settings(config, weights)
    if "system_prompt" not in flags:
        whose = adapter or named.name
        note(
            f"system prompt: none, because {whose} does not say which one it was trained with (--system-prompt TEXT sets it)"
        )
    return config


def _base_of(base: str | None, adapter: Path | None, revision: str | None) -> Base:
    """The given base, or else the one that the adapter names; prints a note if they differ."""
    if adapter is None or is_full_model(adapter):
        return Base(base or str(adapter), revision)
    if base is None:
        return named_base(adapter).require_existing(adapter)
    named = named_base(adapter)
    if not named.is_same(base):
        note(f"{adapter} names another base than {base}: {named.name}")
        return Base(base, revision)
    if named.revision and revision not in (None, named.revision):
        note(f"{adapter} names another revision of {base} than {revision}: {named.revision}")
    return Base(base, revision or named.revision)


def refuse_model_flags(flags: Flags, where: str) -> None:
    """Reject settings of how a model is loaded for a GGUF file or a server, where they would have no effect.

    Raises:
        ConfigError: there is such a setting.
    """
    refused = [f"--{leaf.replace('_', '-')}" for leaf in flags if settings.LEAVES.get(leaf) == "model"]
    if refused:
        raise ConfigError("needs a run, or --model", where=f"{' '.join(refused)} with {where}")


def _recorded_settings(config: RunConfig, folder: Path) -> RunConfig:
    """`config` with the system prompt and the tags that an export recorded in its folder; with no prompt if it did not."""
    record = _record_in(folder)
    if record.has_system_prompt:
        return config.replaced(system_prompt=record.system_prompt, thinking_tags=record.thinking_tags)
    note(
        f"system prompt: none, because {folder} does not say which one the model was trained with "
        "(--system-prompt TEXT sets it)"
    )
    return config.replaced(system_prompt=None)


def exported_from_run(file: Path) -> bool:
    """Whether the record in a file's folder lists the file, and says that one of our runs trained it."""
    record = _record_in(file.parent)
    return file.name in record.sha256 and record.trained


def _record_in(folder: Path) -> Verification:
    """The record of an export; an empty one, with a note, if it is damaged: what it says is only a help here."""
    try:
        return read_verification(folder)
    except RunDirError as error:
        note(f"{error.where or folder} is ignored: it {error.message}")
        return Verification()
