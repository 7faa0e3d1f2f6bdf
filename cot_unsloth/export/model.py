"""A base, an adapter on it, and its template: what every target is written from."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from cot_unsloth.core.errors import ModelError
from cot_unsloth.export.adapter_checks import attach_to_base
from cot_unsloth.export.adapters import Adapter
from cot_unsloth.export.gguf import architectures
from cot_unsloth.export.gguf.architectures import Architecture
from cot_unsloth.export.safetensors_files import WIDTHS
from cot_unsloth.export.weights import HfConfig, Weights
from cot_unsloth.prompts.chat_template import ChatTemplate

_DEFAULT_CONTEXT = 2048
"""Tokens, for a base whose config.json names no `max_position_embeddings`."""


@dataclass(frozen=True)
class Model:
    """What is exported: a base, an adapter on it, and its template."""

    weights: Weights
    adapter: Adapter | None
    chat: ChatTemplate
    name: str
    """What file names begin with, and `general.name` of a GGUF."""
    context: int
    """Tokens that the base was made for, or fewer if llama.cpp is exact only up to there."""

    @property
    def config(self) -> HfConfig:
        """The base's config.json."""
        return self.weights.config

    @functools.cached_property
    def architecture(self) -> Architecture:
        """How its architecture is written to GGUF.

        Raises:
            ModelError: it is none that can be written.
        """
        return architectures.of(self.config, str(self.weights.folder))

    @property
    def arch(self) -> gguf.MODEL_ARCH:
        """Its architecture, as GGUF names it."""
        return self.architecture.arch

    @property
    def settings(self) -> Any:
        """Its transformers config, with defaults for what config.json leaves out."""
        return self.architecture.config

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.architecture.head_dim

    @property
    def tied(self) -> bool:
        """Whether the embedding is the output layer too."""
        return self.weights.tied

    def merged(self, name: str) -> Callable[[int, int], Any]:
        """A reader of rows of one weight, with the adapter's change merged in if it has one.

        The rows are float32 if the adapter changes the weight, and of the stored type otherwise.
        """
        delta = self.adapter.delta(name) if self.adapter is not None else None

        def read(begin: int, end: int) -> Any:
            rows = self.weights.rows(name, begin, end)
            return rows if delta is None else delta.apply(rows, begin)

        return read


def open_model(folder: Path, adapter: Path | None, chat: ChatTemplate, name: str) -> Model:
    """A base and an adapter, checked for everything that would prevent writing them.

    Raises:
        ModelError: files are missing or damaged, the adapter does not fit the base, or the base is quantized.
    """
    weights = Weights(folder)
    # Weights reads it leniently, for models that are only looked at.
    if not weights.config:
        raise ModelError("its config.json is missing, or is not a JSON object", where=str(folder))
    if method := _quantization(weights):
        raise ModelError(
            f"its weights are quantized ({method}), so nothing can be merged into them exactly",
            where=str(folder),
            hint="export with the 16-bit model that it was made from, --model BASE; a run is trained without an export first",
            name="base_in_few_bits",
        )
    if unknown := [name for name, kind in weights.types.items() if kind not in WIDTHS]:
        raise ModelError(
            f"{unknown[0]} is stored as {weights.types[unknown[0]]}, which cannot be written",
            where=str(weights.file_of[unknown[0]]),
            hint="export with a base that is stored in 16 or 32 bits: --model BASE",
            name="base_in_few_bits",
        )
    opened = Adapter(adapter) if adapter is not None else None
    if opened is not None:
        attach_to_base(opened, weights)
    return Model(weights, opened, chat, name, _context(weights))


def _quantization(weights: Weights) -> str | None:
    """How the weights are quantized; None if they are not."""
    for name in ("quantization_config", "quantization"):  # that of transformers, and that of MLX
        settings = weights.config.get(name)
        if settings:
            named = settings if isinstance(settings, dict) else {}
            return str(named.get("quant_method") or f"{named.get('bits', 'an unknown number of')} bits")
    return None


def check_tokens(model: Model) -> None:
    """Make sure that the base has an embedding for each token.

    Raises:
        ModelError: it does not, for example because the adapter was trained with added tokens.
    """
    # The largest id, not the number of tokens: ids can have gaps.
    last, rows = max(model.chat.tokenizer.get_vocab().values()), model.config.get("vocab_size")
    if isinstance(rows, int) and last >= rows:
        raise ModelError(
            f"the tokenizer has a token {last}, but the base's embedding has {rows} rows",
            where=str(model.chat.files or model.weights.folder),
            hint="give the base that it was trained on, with the resized embedding: --model BASE",
            name="more_tokens_than_rows",
        )


def _context(weights: Weights) -> int:
    try:
        return architectures.of(weights.config, str(weights.folder)).context
    except ModelError:  # an architecture that cannot be written to GGUF can still be merged
        return int(weights.config.get("max_position_embeddings", _DEFAULT_CONTEXT))
