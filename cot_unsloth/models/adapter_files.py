"""Reads the files of a PEFT adapter: only its JSON and safetensors, nothing that could run code.

Only the named adapter is loaded, not one in the folder of its base. Also reads which base an adapter names, and finds it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from cot_unsloth.config import ASSETS, HUB_ID, TINY_BASE, RunConfig
from cot_unsloth.core import network
from cot_unsloth.core.errors import CotError, ModelError
from cot_unsloth.core.json_text import parse_json
from cot_unsloth.core.progress import note
from cot_unsloth.core.results.combination import read_combination
from cot_unsloth.models import adapter_patterns
from cot_unsloth.prompts import tokenizer_files
from cot_unsloth.prompts.tokenizer import model_path
from cot_unsloth.storage.hashes import weights_hash
from cot_unsloth.storage.records import JsonObject
from cot_unsloth.storage.run_folder import RunDir, is_full_model

_NAME_ONE = "name a run, the folder of an adapter, or a hub id"
CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
DEFAULT_ADAPTER = "default"
"""PEFT's name for an adapter without one."""
CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that take the factors out of the base's weights (PiSSA: its largest singular vectors), so that the
adapter belongs to the remaining weights, which are not the base's."""


@contextlib.contextmanager
def base_alone(base: str) -> Iterator[None]:
    """Inside this context, transformers loads a base's folder without an adapter that the folder contains.

    It would load the adapter too, and has no setting against that (5.17: `maybe_load_adapters`, and before it
    `AutoModelForCausalLM.from_pretrained`); so the function that looks for one is replaced meanwhile.
    """
    folder = Path(base)
    if not ((folder / "config.json").is_file() and (folder / CONFIG).is_file()):
        yield
        return
    import transformers.integrations.peft as loading
    import transformers.models.auto.auto_factory as choosing

    original = loading.find_adapter_config_file
    with contextlib.ExitStack() as undo:
        for module in (loading, choosing):
            undo.callback(setattr, module, "find_adapter_config_file", original)
            module.find_adapter_config_file = lambda *args, **kwargs: None
        yield


def local_adapter(adapter: Path) -> Path:
    """The folder to load an adapter from; for a hub id, only JSON and safetensors are downloaded.

    Raises:
        ModelError: it has no safetensors (PEFT would unpickle `adapter_model.bin` instead), or its config names
            a library to import, or patterns that take too long to match.
    """
    if not adapter.is_dir() and not HUB_ID.fullmatch(adapter.as_posix()):
        raise ModelError(
            "holds no adapter: there is no such folder",
            where=str(adapter),
            hint=_NAME_ONE,
        )
    folder = adapter if adapter.is_dir() else _downloaded(adapter)
    config = read_config(folder)
    adapter_patterns.require_quick(config, folder)
    if config.get("megatron_config"):  # PEFT before 0.21 imports whatever `megatron_core` names
        raise ModelError("names a library to import (megatron_core), which is never imported", where=str(adapter))
    return folder


@dataclass(frozen=True)
class Base:
    """A base model as named by an adapter or a user."""

    name: str
    """A hub id or a folder; empty if an adapter names none."""
    revision: str | None

    def is_same(self, other: str) -> bool:
        """Whether this is another name of the same model."""
        if not self.name or self.name == other:
            return True
        mine, others = Path(self.name), Path(model_path(other))
        if other == TINY_BASE and mine.parts[-3:] == (*ASSETS.parts[-2:], TINY_BASE):
            return True  # the embedded base of another installation
        return mine.exists() and others.exists() and mine.resolve() == others.resolve()

    def is_same_as(self, other: Base) -> bool:
        """Whether both are the same model: equal names, or folders with equal weights, and no conflicting revisions.

        A missing name or revision matches any.
        """
        if self.revision and other.revision and self.revision != other.revision:
            return False
        if self.is_same(other.name) or other.is_same(self.name):
            return True
        folders = [Path(model_path(base.name)) for base in (self, other)]
        return all(folder.is_dir() for folder in folders) and len({weights_hash(folder) for folder in folders}) == 1

    def __str__(self) -> str:
        return f"{self.name} at revision {self.revision}" if self.revision else self.name

    def require_existing(self, adapter: Path) -> Base:
        """This base, after checking that it exists.

        Raises:
            ModelError: the adapter names none, or it cannot be found.
        """
        where, hint = str(adapter / CONFIG), "name it: --model BASE"
        if not self.name:
            raise ModelError("names no base (base_model_name_or_path)", where=where, hint=hint, name="base_missing")
        if self.is_same(TINY_BASE):
            return Base(TINY_BASE, None)
        if Path(self.name).is_dir():
            return self
        missing = f"the base that it names cannot be found: {self.name}"
        if not HUB_ID.fullmatch(self.name):
            raise ModelError(missing, where=where, hint=hint, name="base_missing")
        from huggingface_hub import hf_hub_download

        network.check_hub()
        try:
            hf_hub_download(self.name, "config.json", revision=self.revision)
        except Exception as error:  # hub and network faults share no base class
            reason = str(error).strip().splitlines()[0]
            raise ModelError(f"{missing} ({reason})", where=where, hint=hint, name="base_missing") from error
        return self


def named_base(adapter: Path) -> Base:
    """The base that an adapter names, and its revision.

    Raises:
        ModelError: it is not an adapter.
    """
    config = read_config(local_adapter(adapter))
    name, revision = (config.get(key) for key in ("base_model_name_or_path", "revision"))
    return Base(name if isinstance(name, str) else "", revision if isinstance(revision, str) and revision else None)


def weights_of(path: Path) -> Path:
    """The weights that a path names: a run's trained weights, or else the path itself (a folder or a hub id).

    Raises:
        RunDirError: it is a run whose training has not finished.
    """
    run = RunDir(path)
    return run.require_trained_weights() if run.config.is_file() else path


def require_adapter(weights: Path, where: str, hint: str | None = None) -> None:
    """Raise an error for a full model.

    Raises:
        ModelError: the weights are a full model; the error has `where` and `hint`.
    """
    if is_full_model(weights):
        raise ModelError("is a full model, not an adapter", where=where, hint=hint)


def starting_adapter(config: RunConfig) -> Path | None:
    """The folder of the adapter that training continues; None where `train.init_adapter` names none.

    Raises:
        ModelError: it names no adapter, or an adapter of another base.
        RunDirError: it names a run whose training has not finished.
    """
    name = config.train.init_adapter
    if name is None:
        return None
    weights = weights_of(Path(name))
    hint = f"train a new adapter on it: --model-name-or-path {weights}"
    require_adapter(weights, "train.init_adapter", hint)
    folder, base = local_adapter(weights), config.model.model_name_or_path
    named = named_base(folder)
    if not named.is_same(base):
        raise ModelError(
            f"is an adapter of {named.name}, and the run's base is {base}",
            where="train.init_adapter",
            hint=f"--model-name-or-path {named.name}",
            name="other_base",
        )
    return folder


def training_runs(weights: Path) -> list[RunDir]:
    """The runs that trained the weights, if known and still present, and those that trained what these began with.

    Several for a combined adapter, and for one that continued another.
    """
    folders, runs = [weights], dict[Path, RunDir]()
    while folders:
        folder = folders.pop(0)
        if (combination := read_combination(folder)) is not None:
            folders += [Path(one.path) for one in combination.adapters]
            continue
        run = RunDir(folder) if RunDir(folder).config.is_file() else RunDir.of_weights(folder)
        if run is not None and run.path.resolve() not in runs:
            runs[run.path.resolve()] = run
            folders += _begun_with(run)
    return list(runs.values())


def _begun_with(run: RunDir) -> list[Path]:
    try:
        config = run.read_config()
    except CotError:  # of another version, or damaged: what is read of it says so
        return []
    return starts_of(config)


def starts_of(config: RunConfig) -> list[Path]:
    """The folders with what training begins with, the adapter that it continues and its base; none for a hub id."""
    names = [config.train.init_adapter, config.model.model_name_or_path]
    return [Path(name) for name in names if name is not None and Path(name).is_dir()]


def trained_here(weights: Path) -> bool:
    """Whether cot_unsloth trained the weights: they are in a run, or all parts of a combined adapter come from runs."""
    combination = read_combination(weights)
    return RunDir.of_weights(weights) is not None if combination is None else combination.trained


def read_config(folder: Path) -> JsonObject:
    """The settings of an adapter.

    Raises:
        ModelError: there is no adapter, its weights are not safetensors, or its settings are damaged.
    """
    if not (folder / CONFIG).is_file():
        raise ModelError(f"holds no adapter: there is no {CONFIG}", where=str(folder))
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / PICKLED).is_file()
        raise ModelError(
            f"its weights are in {PICKLED}, a pickle; only safetensors are loaded"
            if pickled
            else f"holds no adapter: there is no {WEIGHTS}",
            where=str(folder),
            hint="ask its author to save it with safe_serialization=True" if pickled else None,
        )
    try:
        config = parse_json((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(folder, f"is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise _damaged(folder, "is not a JSON object")
    if not isinstance(config.get("peft_type"), str):
        raise _damaged(folder, "has no peft_type: it is not a PEFT adapter, or is incomplete")
    return config


def check_known(config: Mapping[str, object], folder: Path) -> None:
    """Make sure that the installed PEFT knows an adapter's kind, and every setting that affects its computation.

    PEFT ignores settings that it does not know; an unknown setting that is on may mean a different computation.

    Raises:
        ModelError: it does not know one of them.
    """
    import peft

    kind, where, hint = config["peft_type"], str(folder / CONFIG), "pip install -U peft"
    if kind not in peft.PeftType.__members__:
        raise ModelError(f"it is {kind}, which the installed PEFT does not know", where=where, hint=hint)
    known_settings = {field.name for field in fields(peft.LoraConfig)} if kind == "LORA" else set(config)
    for name in sorted(set(config) - known_settings - {"auto_map"}):  # transformers' own, of code that is never run
        value = config[name]
        if value and (value is True or name.startswith("use_") or isinstance(value, list | dict)):
            message = f"{name} is {value!r}, which the installed PEFT does not know and would ignore"
            raise ModelError(message, where=where, hint=hint, name="adapter_not_folded")
        note(f"adapter_config.json: {name} ({value!r}) is not known and is ignored")


def _damaged(folder: Path, message: str) -> ModelError:
    return ModelError(message, where=str(folder / CONFIG), hint="fetch the adapter again", name="damaged_adapter")


def _downloaded(adapter: Path) -> Path:
    from huggingface_hub import snapshot_download

    network.check_hub()
    try:
        return Path(
            snapshot_download(
                adapter.as_posix(), allow_patterns=[CONFIG, WEIGHTS, *tokenizer_files.FILES, tokenizer_files.TEMPLATE]
            )
        )
    except Exception as error:  # hub and network faults share no base class
        raise ModelError(
            f"is not a local folder, and cannot be downloaded as a hub id: {error}",
            where=str(adapter),
            hint=_NAME_ONE,
        ) from error


def first_mismatch(error: Exception) -> str:
    """The first reason why an adapter does not fit, in one line: torch lists every weight."""
    match = re.search(r"size mismatch for (\S+): .*?Size\(\[(.*?)\]\) from .*?Size\(\[(.*?)\]\)", str(error))
    if match is None:
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"{match[1]} is ({match[2]}) in it, and ({match[3]}) on this base"
