"""Several models that share one base in memory: the base, and adapters on it, each answering under its own name.

With transformers PEFT holds the adapters beside each other, and an answer is generated with one of them switched on.
With llama.cpp each request says how much of each adapter file it wants. Nothing is loaded again in either case.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from cot_unsloth.config import Flags, RunConfig
from cot_unsloth.core.errors import ConfigError, ModelError
from cot_unsloth.core.progress import note
from cot_unsloth.core.results.verification import read_verification
from cot_unsloth.core.types import Completion, Prompt, SamplingParams, StreamedText
from cot_unsloth.models.adapter_files import (
    DEFAULT_ADAPTER,
    Base,
    local_adapter,
    named_base,
    require_adapter,
    weights_of,
)
from cot_unsloth.models.llamacpp import LlamaCpp
from cot_unsloth.models.protocols import Advance, Streamer, Trainable
from cot_unsloth.models.target import Target, Use, exported_from_run, resolve_target
from cot_unsloth.prompts.chat_template import ChatTemplate
from cot_unsloth.prompts.opening import open_renderer
from cot_unsloth.prompts.render import Renderer
from cot_unsloth.storage.run_folder import RunDir, is_adapter_gguf, is_full_model

if TYPE_CHECKING:  # it imports transformers, before which Unsloth must be imported
    from cot_unsloth.models.hf import HfEngine

BASE = "base"
"""The name of the base below the adapters."""


@dataclass(frozen=True)
class NamedModel:
    """One of the models that share a base."""

    engine: Streamer
    config: RunConfig
    """The settings to use it with: system prompt, tags, sampling."""


@dataclass
class SwitchedModel:
    """A transformers model that answers with one of its adapters; not in two threads at once."""

    engine: HfEngine
    adapter: str | None
    """As the engine knows it; None for the base."""
    chat: ChatTemplate
    name: str = "hf"

    @property
    def context_length(self) -> int | None:
        """See `Streamer`."""
        return self.engine.context_length

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingParams, advance: Advance = lambda done: None
    ) -> list[Completion]:
        """See `Generator`."""
        with self.engine.answering_as(self.adapter, self.chat):
            return self.engine.generate(prompts, sampling, advance)

    def stream(self, prompt: Prompt, sampling: SamplingParams) -> Iterator[str]:
        """See `Streamer`."""
        with self.engine.answering_as(self.adapter, self.chat):
            yield from self.engine.stream(prompt, sampling)

    @property
    def has_logprobs(self) -> bool:
        """See `TokenStreamer`."""
        return self.engine.has_logprobs

    def stream_tokens(self, prompt: Prompt, sampling: SamplingParams, most: int) -> Iterator[StreamedText]:
        """See `TokenStreamer`."""
        with self.engine.answering_as(self.adapter, self.chat):
            yield from self.engine.stream_tokens(prompt, sampling, most)

    def prompt_tokens(self, prompt: Prompt) -> int:
        """See `Streamer`."""
        return len(self.chat.ids(self.chat.prompt_text(prompt)))


def check_names(own: str, named: Mapping[str, Path]) -> None:
    """Check that the model and the adapters beside it have different names.

    Raises:
        ConfigError: one is called as the model, or as the base.
    """
    for name in named:
        if name in (own, BASE):
            raise ConfigError(f"{name} is the name of another model here", where=f"--adapter {name}={named[name]}")


def load_models(
    target: Target, own: str, named: Mapping[str, Path], flags: Flags, slots: int = 1
) -> dict[str, NamedModel]:
    """The model of a target under its own name, and if adapters are named, these and the base below them.

    Args:
        target: a base with or without an adapter, or the GGUF file of a base.
        own: its name; without an adapter it is the base.
        named: adapters by name: runs, folders, hub ids; with a GGUF file, adapter files or runs that exported one.
        flags: settings given on the command line.
        slots: concurrent conversations; used for a GGUF file alone.

    Raises:
        ConfigError: two have the same name, or the engine cannot switch.
        ModelError: an adapter cannot be loaded, or is one of another base.
    """
    if not named:
        return {own: NamedModel(target.load_streamer(slots), target.config)}
    check_names(own, named)
    if target.is_gguf:
        return _load_files(target, named, flags, slots)
    adapters = resolve_adapters(target, named, flags)
    renderer, loaded = Target(target.config.replaced(fast_inference=False), target.weights).load()
    engine = require_switching(loaded)
    base = resolve_target(base=target.config.model.model_name_or_path, flags=_with_revision(target, flags))
    chat = open_renderer(base.config.model, base.config.data, prompts_only=True).chat
    base_model = {BASE: NamedModel(SwitchedModel(engine, None, chat), base.config)}
    tuned = NamedModel(SwitchedModel(engine, DEFAULT_ADAPTER, renderer.chat), target.config)
    named_models = {
        name: NamedModel(switched(engine, adapter_target, name)[1], adapter_target.config)
        for name, adapter_target in adapters.items()
    }
    return {**base_model, **named_models} if target.weights is None else {own: tuned, **named_models, **base_model}


def require_switching(engine: Trainable) -> HfEngine:
    """The engine, if it is one that holds several adapters.

    Raises:
        ConfigError: it is another.
    """
    if engine.name != "hf":
        raise ConfigError(f"the {engine.name} engine holds one adapter", where="model.engine", hint="--engine hf")
    return cast("HfEngine", engine)


def switched(engine: HfEngine, adapter: Target, name: str) -> tuple[Renderer, SwitchedModel]:
    """Load an adapter beside those of an engine; the renderer of its prompts, and the model that answers with it."""
    assert adapter.weights is not None
    folder = local_adapter(adapter.weights)
    # PEFT keeps adapters in a ModuleDict, whose keys have no dots. v1.0 and v1_0 stay two names: the second would be loaded
    # over the first.
    inside = "named-" + name.replace("_", "__").replace(".", "_dot_")
    engine.add_adapter(folder, inside)
    note(f"adapter {name}: {folder}")
    renderer = open_renderer(adapter.config.model, adapter.config.data, folder, prompts_only=True)
    return renderer, SwitchedModel(engine, inside, renderer.chat)


def resolve_adapters(
    target: Target, named: Mapping[str, Path], flags: Flags, use: Use = "converse"
) -> dict[str, Target]:
    """The adapters to load on the base of a target.

    Raises:
        ModelError: the target has no base below it, or an adapter is of another.
        RunDirError: a run's training has not finished.
    """
    if is_full_model(target.weights):
        raise ModelError(
            "is a full model, whose every weight was trained: adapters belong on its base",
            where=str(target.weights),
            hint=f"--model {target.config.model.model_name_or_path}",
        )
    base = target.config.model
    return {
        name: _resolve(path, Base(base.model_name_or_path, base.model_revision), flags, use)
        for name, path in named.items()
    }


def _resolve(path: Path, base: Base, flags: Flags, use: Use) -> Target:
    weights = weights_of(path)
    require_adapter(weights, str(path))
    other = named_base(weights)
    if not other.is_same_as(base):
        raise ModelError(f"is an adapter of {other}, and the base here is {base}", where=str(path), name="other_base")
    if weights != path:  # of a run
        return resolve_target(path, flags=flags, use=use)
    return resolve_target(base=base.name, adapter=path, flags=flags, use=use)


def _with_revision(target: Target, flags: Flags) -> Flags:
    revision = target.config.model.model_revision
    return flags if revision is None else {**flags, "model_revision": revision}


def _load_files(target: Target, named: Mapping[str, Path], flags: Flags, slots: int) -> dict[str, NamedModel]:
    """The GGUF file of a base, and adapter files on it."""
    assert target.weights is not None
    if target.run is not None or exported_from_run(target.weights):
        raise ModelError(
            "has trained weights in it, and adapters belong on their base",
            where=str(target.weights),
            hint=f"export the base: cot-unsloth export --model {target.config.model.model_name_or_path} --gguf q8_0 --out DIR",
            name="not_a_base",
        )
    files = {name: _adapter_file(path) for name, path in named.items()}
    base = read_verification(target.weights.parent).base
    for file in files.values():
        other = read_verification(file.parent).base
        if base and other and not Base(other, None).is_same(base):
            raise ModelError(
                f"is an adapter of {other}, and the base here is {base}", where=str(file), name="other_base"
            )
    note(f"engine llamacpp: {target.weights}, with {', '.join(map(str, files.values()))}")
    engine = LlamaCpp(target.weights, slots=slots, adapters=list(files.values()))
    models = {
        name: NamedModel(engine.with_adapter(index), resolve_target(file, flags=flags).config)
        for index, (name, file) in enumerate(files.items())
    }
    return {BASE: NamedModel(engine.with_adapter(None), target.config), **models}


def _adapter_file(path: Path) -> Path:
    """The adapter's GGUF file that a path names: itself, or the one that a run or a folder holds.

    Raises:
        ModelError: there is none, or several.
    """
    if path.suffix == ".gguf":
        return path
    run = RunDir(path)
    folder = run.export if run.config.is_file() else path
    files = [file for file in sorted(folder.glob("*.gguf")) if is_adapter_gguf(file.name)]
    if len(files) != 1:
        raise ModelError(
            f"has {len(files) or 'no'} GGUF files of an adapter",
            where=str(folder),
            hint=shlex.join(["cot-unsloth", "export", str(path), "--lora-gguf"])
            if not files
            else "name one of the files",
            name="file_missing",
        )
    return files[0]
