"""The tensors of an adapter's `adapter_model.safetensors`, by the module of the base that they belong to."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cot_unsloth.core.errors import ModelError
from cot_unsloth.export.lora_settings import LoraSettings
from cot_unsloth.export.weights import BLOCK, FLOATS, read_header
from cot_unsloth.models.adapter_files import WEIGHTS

TOKENS = "token_adapter.trainable_tokens_delta"
"""The part that holds the rows of trained tokens."""
_PREFIX = "base_model.model."
_PARTS = re.compile(
    r"(?P<module>.+?)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|base_layer|"
    r"modules_to_save|token_adapter\.trainable_tokens_delta)(\.default)?(\.(?P<of>weight|bias))?"
)
"""A tensor's name without the prefix. `default` is the adapter's own name, which PEFT leaves out when it saves."""
_PARAMETERS = ("lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", TOKENS)
"""Parts that are tensors themselves, not modules with a weight."""


@dataclass
class ModuleTensors:
    """An adapter's tensors for one module of the base: their names in the file, by their part."""

    parts: dict[str, str] = field(default_factory=dict)

    def has(self, *parts: str) -> bool:
        """Whether it has any of these parts."""
        return any(part in self.parts for part in parts)

    @property
    def has_factors(self) -> bool:
        """Whether it has LoRA factors, of a linear layer or of an embedding."""
        return self.has("lora_A", "lora_embedding_A")


class AdapterTensors:
    """The file, of which only the header is read at first.

    Raises:
        ModelError: it is damaged, or holds a tensor that cannot be merged, which is named.
    """

    def __init__(self, folder: Path, settings: LoraSettings) -> None:
        from safetensors import safe_open

        self.folder = folder
        self.modules: dict[str, ModuleTensors] = {}
        file = folder / WEIGHTS
        self._header = {name: entry for name, entry in read_header(file).items() if name != "__metadata__"}
        self._file = safe_open(file, framework="pt")
        if not self._header:
            raise self.cannot("holds no weights", "fetch the adapter again")
        unknown = [name for name in sorted(self._header) if not self._assign(name)]
        if unknown:
            raise self.cannot(f"cannot be merged: {', '.join(unknown[:3])}")
        self._check(settings)

    def cannot(self, message: str, hint: str | None = None) -> ModelError:
        """The error for an adapter that cannot be merged."""
        return ModelError(message, where=str(self.folder), hint=hint, name="adapter_not_folded")

    def _assign(self, name: str) -> bool:
        """Assign a tensor to its module; False if its kind is not known."""
        if not name.startswith(_PREFIX):  # PEFT would not load it either
            return False
        rest = name.removeprefix(_PREFIX)
        match = _PARTS.fullmatch(rest)
        # No part of LoRA: a weight or bias that was trained in full and has its name in the base.
        if match is None:
            module, _, part = rest.rpartition(".")
            if part not in ("weight", "bias") or "lora_" in module or not module:
                return False
        else:
            module, part, of = match["module"], match["part"], match["of"]
            if (of is None) != (part in _PARAMETERS) and not (part == "lora_magnitude_vector" and of == "weight"):
                return False
            if of == "bias" and part not in ("lora_B", "base_layer", "modules_to_save"):
                return False
            # The trained bias of a wrapped module is saved as base_layer.bias. Like modules_to_save, it replaces the
            # base's.
            part = of if part in ("base_layer", "modules_to_save") else f"{part}.bias" if of == "bias" else part
        self.modules.setdefault(module, ModuleTensors()).parts[part] = name
        return True

    def _check(self, settings: LoraSettings) -> None:
        """Check that each pair of factors is complete and of the rank in the settings, and that every number is finite."""
        for name, entry in self._header.items():
            if entry["dtype"] not in FLOATS:
                raise self.cannot(f"cannot be merged: {name} is stored as {entry['dtype']}")
        for module, tensors in self.modules.items():
            self._check_factors(module, tensors, settings)
        for name in self._header:
            # A diverged run leaves NaN, which would fail every later comparison without naming the cause.
            for begin, end in _row_blocks(self.shape(name)):
                if not bool(self.rows(name, begin, end).isfinite().all()):
                    raise self.cannot(f"{name} holds a number that is not finite", "train the adapter again")

    def _check_factors(self, module: str, tensors: ModuleTensors, settings: LoraSettings) -> None:
        for first, second in (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")):
            if tensors.has(first) != tensors.has(second):
                present, absent = (first, second) if tensors.has(first) else (second, first)
                raise self.cannot(f"has {present} of {module} but no {absent}", "fetch the adapter again")
            if not tensors.has(first):
                continue
            stored, expected = self.shape(tensors.parts[first])[0], settings.rank(module)
            if stored != expected:
                raise self.cannot(f"{module} has rank {stored}, but adapter_config.json says {expected}")
            dora = settings.use_dora
            if dora != tensors.has("lora_magnitude_vector"):
                stored_magnitude = "no magnitude" if dora else "a magnitude"
                raise self.cannot(f"use_dora is {str(dora).lower()}, but {module} has {stored_magnitude}")

    def of(self, module: str) -> ModuleTensors:
        """A module's tensors; an empty set if there are none."""
        return self.modules.get(module, ModuleTensors())

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, by its name in the file."""
        return tuple(self._header[name]["shape"])

    def rows(self, name: str, begin: int, end: int) -> Any:
        """Rows of a tensor, in the type they are stored in."""
        return self._file.get_slice(name)[begin:end]

    def read(self, name: str) -> Any:
        """A tensor, in float32."""
        return self._file.get_tensor(name).float()


def _row_blocks(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    step = max(1, BLOCK // max(1, math.prod(shape[1:])))
    for begin in range(0, shape[0] if shape else 1, step):
        yield begin, begin + step
