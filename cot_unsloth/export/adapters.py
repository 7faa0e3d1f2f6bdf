"""The changes that a PEFT adapter makes to a base: by the weight that they apply to, a block of rows at a time.

The changes are merged into rows of the base in float32, as PEFT's own `merge_and_unload` does. If output layer and
embedding are tied and an adapter changes only one of them, the other keeps its weights, as in PEFT before merging;
PEFT's `merge_and_unload` writes a LoRA of either one into both (0.21), which would not be the model that was trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cot_unsloth.export.adapter_tensors import TOKENS, AdapterTensors, ModuleTensors
from cot_unsloth.export.deltas import (
    Added,
    ColumnFactors,
    Delta,
    LowRank,
    Replaced,
    ReplacedRows,
    RowMagnitudes,
    Sequential,
)
from cot_unsloth.export.lora_settings import read_lora_settings
from cot_unsloth.export.weights import Weights, blocks

_CONV1D = {"gpt2", "openai-gpt"}
_CONV1D_MODULES = ("c_attn", "q_attn", "c_proj", "c_fc")
"""Modules of GPT-2 that hold a weight as (in, out), whatever the adapter's `fan_in_fan_out` says: PEFT corrects that."""


class Adapter:
    """A LoRA adapter as PEFT saves it; its tensors are read when they are needed.

    Raises:
        ModelError: there is no adapter, it is damaged, or it contains something that cannot be merged, which is named.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = read_lora_settings(folder)
        self.tensors = AdapterTensors(folder, self.settings)
        self.base: Weights | None = None
        """The base that it was checked against; None before `attach`."""
        self._was_tied = False

    def attach(self, base: Weights) -> None:
        """Name the base that it changes; `adapter_checks.attach_to_base` also checks that they fit."""
        self.base, self._was_tied = base, base.tied

    @property
    def names(self) -> set[str]:
        """The base's weights that it changes; before `attach`, those that are known so far."""
        names = set()
        for module, tensors in self.tensors.modules.items():
            if tensors.has("weight", "lora_A", "lora_embedding_A", TOKENS):
                names.add(f"{module}.weight")
            if tensors.has("bias", "lora_B.bias"):
                names.add(f"{module}.bias")
        if self.base is None:
            return names
        if self.follows_tokens() and not self.base.tied:
            names.add(self.base.output)
        # If the output layer is tied, the base has no lm_head.weight that could be changed.
        return names - {self.base.output} if self.base.tied else names

    def kinds(self) -> dict[str, str]:
        """What it contains besides LoRA of linear layers: each kind, with one of its modules."""
        kinds: dict[str, str] = {}
        for module, tensors in self.tensors.modules.items():
            for kind, parts in _KINDS.items():
                if tensors.has(*parts):
                    kinds.setdefault(kind, module)
        return kinds

    def untied_modules(self) -> list[str]:
        """Embedding and output layer, if the base ties them and they have factors: LoRA of one does not change the other."""
        if self.base is None or not self._was_tied:
            return []
        names = [module_of(name) for name in (self.base.embedding, self.base.output)]
        return [name for name in names if self.tensors.of(name).has_factors]

    def low_rank(self, name: str) -> LowRank | None:
        """The factors of one weight; None if it has none."""
        module = name.removesuffix(".weight")
        tensors = self.tensors.of(module)
        if tensors.has("lora_A"):
            a, b = (self.tensors.read(tensors.parts[part]) for part in ("lora_A", "lora_B"))
            # (in, out): the change of the stored weight is (B @ A) transposed, which is A.T @ B.T.
            if self.is_transposed(module):
                a, b = b.T, a.T
            return LowRank(a, b, self.settings.scale(module))
        if tensors.has("lora_embedding_A"):  # (r, tokens) and (width, r): PEFT stores those of an embedding transposed
            a, b = (self.tensors.read(tensors.parts[part]) for part in ("lora_embedding_B", "lora_embedding_A"))
            return LowRank(a.T.contiguous(), b.T.contiguous(), self.settings.scale(module))
        return None

    def is_transposed(self, module: str) -> bool:
        """Whether the base stores the module's weight as (in, out), as GPT-2 does."""
        kind = self.base.config.get("model_type") if self.base is not None else None
        return kind in _CONV1D and module.rpartition(".")[2] in _CONV1D_MODULES

    def delta(self, name: str) -> Delta | None:
        """The change of one weight of the base; None if it has none.

        For DoRA of an embedding, all of the weight is read once to compute the length of its columns.
        """
        module, _, of = name.rpartition(".")
        tensors = self.tensors.of(module)
        # In the order in which PEFT applies them: a trained weight, then single tokens, then LoRA.
        parts: list[Delta] = []
        if tensors.has(of):
            parts.append(self._replaced(tensors.parts[of]))
        elif self._is_output(name) and (shared := self._shared_embedding()) is not None:
            parts.append(self._replaced(shared))
        if of == "bias" and tensors.has("lora_B.bias"):
            parts.append(Added(self.tensors.read(tensors.parts["lora_B.bias"]) * self.settings.scale(module)))
        if of == "weight":
            tokens = self._tokens(module, tensors)
            if tokens is not None and tensors.has_factors:  # of a tied output layer: PEFT wraps LoRA around them
                parts.append(tokens)
            low = self.low_rank(name)
            if low is not None:
                magnitude = tensors.parts.get("lora_magnitude_vector")
                parts.append(low if magnitude is None else self._dora(name, low, self.tensors.read(magnitude), parts))
            elif tokens is not None:
                parts.append(tokens)
        if not parts:
            return None
        return parts[0] if len(parts) == 1 else Sequential(tuple(parts))

    def _is_output(self, name: str) -> bool:
        return self.base is not None and name == self.base.output

    def _replaced(self, tensor: str) -> Replaced:
        return Replaced(lambda begin, end: self.tensors.rows(tensor, begin, end))

    def _dora(self, name: str, low: LowRank, magnitude: Any, before: Sequence[Delta]) -> Delta:
        """PEFT's `DoraLinearLayer` and `DoraEmbeddingLayer`, whose weight is transposed first."""
        module = name.removesuffix(".weight")
        if not (self.tensors.modules[module].has("lora_embedding_A") or self.is_transposed(module)):
            return RowMagnitudes(low, magnitude)
        assert self.base is not None
        squares: Any = 0.0
        for begin, end in blocks(self.base, name):
            rows = Sequential((*before, low)).apply(self.base.rows(name, begin, end), begin)
            # In float64: columns of an embedding have as many terms as the vocabulary, 150,000 for Qwen.
            squares = squares + rows.double().square().sum(0)
        return ColumnFactors(low, (magnitude.double() / squares.sqrt()).float())

    def _tokens(self, module: str, tensors: ModuleTensors) -> ReplacedRows | None:
        if self._is_output(f"{module}.weight") and self.follows_tokens():
            assert self.base is not None
            module = module_of(self.base.embedding)
            tensors = self.tensors.modules[module]
        name = tensors.parts.get(TOKENS)
        if name is None:
            return None
        return ReplacedRows(dict(zip(self.token_rows(module), self.tensors.read(name), strict=True)))

    def token_rows(self, module: str) -> Sequence[int]:
        """The rows of a module whose tokens were trained.

        Raises:
            ModelError: the settings do not name them.
        """
        indices = self.settings.trainable_token_indices
        if isinstance(indices, Mapping):
            indices = next((rows for key, rows in indices.items() if is_named(module, [key])), None)
        stored = self.tensors.shape(self.tensors.modules[module].parts[TOKENS])[0]
        if indices is None or len(indices) != stored:
            index_count = "no" if indices is None else len(indices)
            raise self.tensors.cannot(
                f"has {stored} trained tokens of {module}, but {index_count} trainable_token_indices"
            )
        return list(indices)

    # An output layer that is tied to the embedding: PEFT treats each kind of change differently.

    def follows_tokens(self) -> bool:
        """Whether the output layer gets the embedding's trained tokens; PEFT decides this by the flag in config.json."""
        if self.base is None or not self.base.declared_tied or self.base.embedding is None:
            return False
        head, embedding = (self.tensors.of(module_of(n)) for n in (self.base.output, self.base.embedding))
        return embedding.has(TOKENS) and not head.has(TOKENS)

    def _shared_embedding(self) -> str | None:
        """An embedding that was saved with the adapter and is tied to the output layer; None if it is not tied.

        PEFT loads it into the base's own weight, but one of `modules_to_save` into a separate weight.
        """
        if self.base is None or not self._was_tied or self.base.embedding is None:
            return None
        module = module_of(self.base.embedding)
        tensor = self.tensors.of(module).parts.get("weight")
        return None if tensor is None or is_named(module, self.settings.modules_to_save) else tensor

    def unties(self) -> bool:
        """Whether embedding and output layer, tied in the base, differ with this adapter."""
        assert self.base is not None
        if self.base.embedding is None:
            return False
        modules = [module_of(name) for name in (self.base.embedding, self.base.output)]
        if self.settings.ensure_weight_tying:  # of all but tokens that are named for the output layer alone
            return self.tensors.of(modules[1]).has(TOKENS)
        # LoRA wraps one of the two modules; the other still uses the shared weight without it.
        low_rank = any(self.tensors.of(m).has_factors for m in modules)
        head = self.tensors.of(modules[1])
        saved = [m for m in modules if self.tensors.of(m).has("weight")]
        # PEFT trains a copy of a module in `modules_to_save`, which is no longer the shared weight.
        separate = any(is_named(m, self.settings.modules_to_save) for m in saved)
        tokens = any(self.tensors.of(m).has(TOKENS) for m in modules) and not self.follows_tokens()
        return low_rank or separate or tokens or head.has("bias")


_KINDS = {
    "DoRA": ("lora_magnitude_vector",),
    "a bias": ("bias", "lora_B.bias"),
    "modules_to_save": ("weight",),
    "trained tokens": (TOKENS,),
}
"""What a GGUF adapter cannot represent, and the parts that show it."""


def module_of(name: str | None) -> str:
    """The module of a weight; empty for None."""
    return (name or "").removesuffix(".weight")


def is_named(module: str, names: Sequence[str]) -> bool:
    """Whether a module, or one that it is part of, is named: PEFT compares the ends of names."""
    pieces = module.split(".")
    return any(".".join(pieces[:end]).endswith(name) for end in range(1, len(pieces) + 1) for name in names)
