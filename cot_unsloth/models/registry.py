"""Which engine loads a model: decided once, with a reason, and never fallen back from."""

from __future__ import annotations

import importlib.metadata
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from cot_unsloth.config import ModelConfig, RunConfig, TrainConfig
from cot_unsloth.core.errors import ModelError
from cot_unsloth.models.protocols import Trainable
from cot_unsloth.prompts.chat_template import ChatTemplate
from cot_unsloth.storage.run_folder import is_full_model

# On a CPU bitsandbytes says that it works without kernels from a hub, and of each 8-bit product that it casts.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Choice:
    """An engine and why it was taken."""

    engine: str
    why: str


def installed(name: str) -> bool:
    """Whether a library is installed; a folder that is called like it is none."""
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def choose(model: ModelConfig) -> Choice:
    """Decide on the engine, once. A named engine is taken or refused, never replaced.

    Raises:
        ModelError: unsloth is asked for and not installed, or what only unsloth does is asked of another.
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
    has_unsloth = installed("unsloth")
    if model.engine == "hf":
        return Choice("hf", "asked for")
    if model.engine == "unsloth":
        if not has_unsloth:
            raise ModelError(
                "unsloth is not installed",
                where="model.engine",
                hint="pip install 'cot-unsloth[gpu]', or --engine hf",
                name="unsloth_missing",
            )
        return Choice("unsloth", "asked for")
    if not has_unsloth:
        return Choice("hf", "unsloth is not installed")
    import torch

    if not torch.cuda.is_available():
        return Choice("hf", "there is no CUDA GPU, which is where unsloth is faster")
    return Choice("unsloth", f"it is installed and there is a GPU ({torch.cuda.get_device_name()})")


def obstacle(model: ModelConfig) -> ModelError | None:
    """Why this machine cannot load a model as asked, where that is known without trying."""
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
    """Make sure that the optimizer that is named can be made.

    Raises:
        ModelError: it needs a library that is not installed.
    """
    missing = _without_bitsandbytes("train.optim", "--optim adamw_torch") if "8bit" in train.optim else None
    if missing:
        raise missing


def prepare(choice: Choice, cache: Path | None = None) -> None:
    """Import what has to come before transformers: unsloth patches it.

    Args:
        choice: the engine.
        cache: a folder for what it compiles.

    Raises:
        EngineError: transformers was imported before.
    """
    if choice.engine == "unsloth":
        if cache is not None:
            os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache.absolute()))
        from cot_unsloth.models import unsloth_engine

        unsloth_engine.import_unsloth()


def load(config: RunConfig, chat: ChatTemplate, choice: Choice, fitted: Path | None = None) -> Trainable:
    """Load a model as it is, or as it was trained.

    Args:
        config: the settings.
        chat: how it is spoken to.
        choice: the engine.
        fitted: a folder with an adapter, or with every weight of the model.

    Raises:
        ModelError: the model or the adapter cannot be loaded.
    """
    found = obstacle(config.model)
    if found:
        raise found
    if config.model.fast_inference and is_full_model(fitted):
        raise ModelError(
            "every weight was trained, and vLLM shares frozen ones", where=str(fitted), hint="--no-fast-inference"
        )
    if choice.engine == "unsloth":
        from cot_unsloth.models.unsloth_engine import UnslothEngine

        return UnslothEngine(config, chat, fitted)
    from cot_unsloth.models.hf import HfEngine

    return HfEngine(config, chat, fitted)
