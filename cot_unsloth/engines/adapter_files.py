"""Which files of a PEFT adapter are loaded: its JSON and its safetensors, and nothing that could run code.

And which adapter: the one that was named, not one that lies in the folder of its base.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cot_unsloth.errors import ModelError

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"


@contextlib.contextmanager
def base_alone(base: str) -> Iterator[None]:
    """Within, transformers loads a base's folder without an adapter that lies in it.

    It would put the adapter on, and has no setting against that (5.17: `maybe_load_adapters`, and before it
    `AutoModelForCausalLM.from_pretrained`); so the function that looks for one is replaced meanwhile.
    """
    folder = Path(base)
    if not ((folder / "config.json").is_file() and (folder / CONFIG).is_file()):
        yield
        return
    import transformers.integrations.peft as loading
    import transformers.models.auto.auto_factory as choosing

    found = loading.find_adapter_config_file
    with contextlib.ExitStack() as undo:
        for module in (loading, choosing):
            undo.callback(setattr, module, "find_adapter_config_file", found)
            module.find_adapter_config_file = lambda *args, **kwargs: None
        yield


def local_adapter(adapter: Path) -> Path:
    """The folder to load an adapter from; of a hub id, only JSON and safetensors are downloaded.

    Raises:
        ModelError: it has no safetensors (PEFT would unpickle `adapter_model.bin` instead), or its config names
            a library to import.
    """
    folder = adapter if adapter.is_dir() else _downloaded(adapter)
    if not (folder / CONFIG).is_file():
        raise ModelError(f"holds no adapter: there is no {CONFIG}", where=str(adapter))
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / PICKLED).is_file()
        raise ModelError(
            f"its weights are in {PICKLED}, a pickle, and only safetensors are loaded"
            if pickled
            else f"holds no adapter: there is no {WEIGHTS}",
            where=str(adapter),
            hint="have whoever made it save it again with safe_serialization=True" if pickled else None,
        )
    if read_config(folder).get("megatron_config"):  # PEFT before 0.21 imports whatever `megatron_core` names
        raise ModelError("names a library to import (megatron_core), which is never done", where=str(adapter))
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """The settings of an adapter.

    Raises:
        ModelError: there is no adapter, or its settings are damaged.
    """
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise ModelError("holds no adapter", where=str(folder), hint=f"it needs {CONFIG} and {WEIGHTS}")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(folder, f"is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise _damaged(folder, "is no JSON object")
    if not isinstance(config.get("peft_type"), str):
        raise _damaged(folder, "has no peft_type: it is no adapter of PEFT's, or incomplete")
    return config


def _damaged(folder: Path, message: str) -> ModelError:
    return ModelError(message, where=str(folder / CONFIG), hint="fetch the adapter again", name="damaged_adapter")


def _downloaded(adapter: Path) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(adapter.as_posix(), allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # hub and network faults share no base class
        raise ModelError(
            f"is no folder here, and cannot be downloaded as a hub id: {error}", where=str(adapter)
        ) from error
