"""Adapters on a transformers model, through PEFT: loading one or several with no tensor missing, and switching between them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft

from cot_unsloth.core.errors import ModelError, cannot_load
from cot_unsloth.models.adapter_files import (
    CHANGED_BASE,
    CONFIG,
    DEFAULT_ADAPTER,
    check_known,
    first_mismatch,
    local_adapter,
    read_config,
)


def load(model: Any, adapter: Path, base: str, *, name: str = DEFAULT_ADAPTER, trainable: bool = False) -> Any:
    """Load an adapter on a model; if there are others, it is not made active.

    Args:
        model: a transformers model, or a PeftModel, which is changed.
        adapter: its folder, or a hub id.
        base: the name of the model, for messages.
        name: of the adapter on the model.
        trainable: whether it will be trained.

    Raises:
        ModelError: it is not an adapter of this model.
    """
    folder = local_adapter(adapter)
    check_known(read_config(folder), folder)
    try:
        return _load(model, folder, name, trainable)
    except UserWarning as warning:  # PEFT only warns, and leaves the missing tensors at their initial values
        absent = str(warning).partition("[")[2].partition(",")[0].strip("'] .")
        raise ModelError(
            f"its tensors are not those that its adapter_config.json asks for: there is no {absent}",
            where=str(adapter),
            hint="PEFT would leave out those of other names; have it saved again with save_pretrained",
            name="adapter_ignored",
        ) from warning
    except Exception as error:  # errors of file, shape and format have no common base class
        raise cannot_load(f"is not an adapter of {base}: {first_mismatch(error)}", error, where=str(adapter)) from error


def _load(model: Any, folder: Path, name: str, trainable: bool) -> Any:
    """The model with the adapter; a UserWarning that lists them if tensors are missing."""
    if isinstance(model, peft.PeftModel):
        absent = model.load_adapter(str(folder), name, is_trainable=trainable).missing_keys
        # PEFT compares names by parts of them: to it, a tensor of "v10" is one of "v1" too.
        missing = [key for key in absent if name in key.split(".")]
        if missing:
            raise UserWarning(str(missing))  # as `from_pretrained` warns
        return model
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Found missing adapter keys")
        loaded = peft.PeftModel.from_pretrained(model, str(folder), name, is_trainable=trainable)
    if trainable:
        # What is saved after training names the base that it was trained on: the path in `folder` may be of another machine.
        loaded.peft_config[name].base_model_name_or_path = model.name_or_path
    return loaded


@contextlib.contextmanager
def beside(model: Any, adapter: Path, base: str) -> Iterator[None]:
    """Within the context, a PeftModel computes with another adapter, which is loaded for that and removed again."""
    load(model, adapter, base, name="start")
    model.set_adapter("start")
    try:
        yield
    finally:
        model.set_adapter(DEFAULT_ADAPTER)
        model.delete_adapter("start")


def changes_base(folder: Path) -> str | None:
    """How loading an adapter changes the weights of its base, which no switching off undoes; None if it does not.

    PEFT copies trained biases into the base, and takes the initial factors of PiSSA and others out of its weights.
    """
    config = read_config(local_adapter(folder))
    return _change_of(config.get("bias"), config.get("init_lora_weights"))


def base_is_changed(model: Any) -> bool:
    """Whether the weights below a model's adapters are not those of the base: see `changes_base`."""
    loaded = model.peft_config.values() if isinstance(model, peft.PeftModel) else ()
    settings = ((getattr(config, "bias", None), getattr(config, "init_lora_weights", None)) for config in loaded)
    return any(_change_of(bias, init) for bias, init in settings)


def _change_of(bias: object, init: object) -> str | None:
    if bias not in (None, "none"):
        return f"bias: {bias}"
    return f"init_lora_weights: {init}" if str(init).lower().startswith(CHANGED_BASE) else None


def check_shares_base(folder: Path) -> None:
    """Make sure that an adapter leaves the weights of its base unchanged as it is loaded.

    Raises:
        ModelError: it changes them, below every other adapter.
    """
    change = changes_base(folder)
    if change is not None:
        raise ModelError(
            f"changes the base as it is loaded ({change}), so it cannot be beside other adapters",
            where=str(folder / CONFIG),
            hint="use it alone",
            name="changes_base",
        )


@contextlib.contextmanager
def active(model: Any, adapter: str | None) -> Iterator[None]:
    """Within the context, the model computes with this adapter alone; None: without any."""
    if not isinstance(model, peft.PeftModel):
        yield
        return
    if adapter is None:
        with model.disable_adapter():
            yield
        return
    before = model.active_adapter
    model.set_adapter(adapter, inference_mode=True)
    try:
        yield
    finally:
        model.set_adapter(before, inference_mode=True)
