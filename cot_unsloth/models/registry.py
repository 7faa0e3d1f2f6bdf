"""Chooses the engine that loads a model: once, with a reason. An engine that fails is never replaced by another."""

from __future__ import annotations

import importlib.metadata
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from cot_unsloth.config import ModelConfig, RunConfig, TrainConfig
from cot_unsloth.config.choices import ENGINES, import_object
from cot_unsloth.core.errors import ModelError
from cot_unsloth.models.protocols import Trainable
from cot_unsloth.prompts.chat_template import ChatTemplate
from cot_unsloth.storage.run_folder import is_full_model

# On a CPU bitsandbytes warns that it has no kernels from the hub, and for every 8-bit matrix product that it casts.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Choice:
    """An engine, and why it was chosen."""

    engine: str
    """A key of ENGINES."""
    why: str


def installed(name: str) -> bool:
    """Whether a distribution is installed. `find_spec` would also find a folder of that name in the working directory."""
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def choose(model: ModelConfig) -> Choice:
    """Choose the engine. A named engine is used or rejected, never replaced by another.

    Raises:
        ModelError: the library of a named engine is not installed, or vLLM is asked of another engine than unsloth.
    """
    choice = _choose(model)
    if model.fast_inference and choice.engine != "unsloth":
        raise ModelError(
            f"vLLM shares the weights of the unsloth engine; the engine would be {choice.engine}: {choice.why}",
            where="model.fast_inference",
            hint="--no-fast-inference",
            name="needs_unsloth",
        )
    return choice


def _choose(model: ModelConfig) -> Choice:
    if model.engine != "auto":
        engine = ENGINES[model.engine]
        if engine.library and not installed(engine.library):
            raise ModelError(
                f"{engine.library} is not installed",
                where="model.engine",
                hint=f"pip install {engine.install}, or --engine hf",
                name=f"{engine.library}_missing",
            )
        return Choice(model.engine, "asked for")
    if not installed("unsloth"):
        return Choice("hf", "unsloth, which is for GPUs, is not installed")
    import torch

    if not torch.cuda.is_available():
        return Choice("hf", "there is no CUDA GPU, which is where unsloth is faster")
    return Choice("unsloth", f"it is installed and there is a GPU ({torch.cuda.get_device_name()})")


def obstacle(model: ModelConfig) -> ModelError | None:
    """The reason why this machine cannot load a model with these settings, if that shows without loading it."""
    import torch

    if model.fast_inference and not (installed("vllm") and torch.cuda.is_available()):
        missing = "a CUDA GPU" if installed("vllm") else "vllm, which is not installed"
        return ModelError(
            f"needs {missing}", where="model.fast_inference", hint="--no-fast-inference", name="vllm_missing"
        )
    if model.quantization_bits is None:
        return None
    return _without_bitsandbytes(
        f"model.load_in_{model.quantization_bits}bit", f"--no-load-in-{model.quantization_bits}bit"
    )


def _without_bitsandbytes(where: str, instead: str) -> ModelError | None:
    if installed("bitsandbytes"):
        return None
    hint = f"pip install bitsandbytes, or {instead}"
    return ModelError("needs bitsandbytes, which is not installed", where=where, hint=hint, name="bitsandbytes_missing")


def check_optimizer(train: TrainConfig) -> None:
    """Check that the library of the optimizer is installed.

    Raises:
        ModelError: it is not.
    """
    missing = _without_bitsandbytes("train.optim", "--optim adamw_torch") if "8bit" in train.optim else None
    if missing:
        raise missing


def apply_patches(choice: Choice, cache: Path | None = None) -> None:
    """Import an engine that patches transformers, which only works before transformers is imported; else do nothing.

    Args:
        choice: the engine.
        cache: a folder for the code that Unsloth compiles.

    Raises:
        EngineError: transformers was imported before.
    """
    engine = ENGINES[choice.engine]
    if engine.imported_first:
        if cache is not None:
            os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache.absolute()))
        import_object(engine.path)


def load(config: RunConfig, chat: ChatTemplate, choice: Choice, trained_weights: Path | None = None) -> Trainable:
    """Load a base as it is, or with weights that were trained.

    Args:
        config: the settings.
        chat: the tokenizer, and the template that prompts are written with.
        choice: the engine.
        trained_weights: a folder with an adapter or a full model; None for the base.

    Raises:
        ModelError: the model or the adapter cannot be loaded.
    """
    missing = obstacle(config.model)
    if missing:
        raise missing
    if config.model.fast_inference and is_full_model(trained_weights):
        raise ModelError(
            "every weight was trained, and vLLM shares frozen ones",
            where=str(trained_weights),
            hint="--no-fast-inference",
        )
    engine: Trainable = import_object(ENGINES[choice.engine].path)(config, chat, trained_weights)
    return engine
