"""What a PEFT adapter changes in a base: each change by the weight that it applies to, a block of rows at a time.

Owns reading `adapter_config.json` and `adapter_model.safetensors`, and folding their contents into rows of the base in
float32, as PEFT's own `merge_and_unload` does. What cannot be folded is refused; the error names it. If output layer
and embedding are tied and an adapter changes only one of them, the other keeps its weights, as in PEFT before merging;
PEFT's `merge_and_unload` writes a LoRA of either one into both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cot_unsloth.core.errors import ModelError
from cot_unsloth.export.weights import BLOCK, FLOATS, OUTPUT, Weights, blocks, read_header
from cot_unsloth.models.adapter_files import WEIGHTS, check_known, read_config

_PREFIX = "base_model.model."
_PARTS = re.compile(
    r"(?P<module>.+?)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|base_layer|"
    r"modules_to_save|token_adapter\.trainable_tokens_delta)(\.default)?(\.(?P<of>weight|bias))?"
)
"""A tensor's name without the prefix. `default` is the adapter's own name, which PEFT leaves out when it saves."""
_PARAMETERS = ("lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "token_adapter.trainable_tokens_delta")
"""Parts that are tensors themselves, not modules with a weight."""
_TOKENS = "token_adapter.trainable_tokens_delta"
_SHIFTED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that take the factors from the base's weights, so that the adapter applies to the remaining weights."""
_NOT_FOLDED = {
    "use_qalora": "QALoRA pools the inputs",
    "use_bdlora": "its factors are block-diagonal",
    "alora_invocation_tokens": "it applies only after certain tokens of the prompt",
    "arrow_config": "it chooses an adapter for each token",
    "kasa_config": "KaSA truncates the base's weights",
    "monteclora_config": "it samples its factors",
    "layer_replication": "it repeats layers of the base",
    "target_parameters": "it changes parameters of experts",
    "megatron_config": "it adapts Megatron's layers",
}
"""Settings of a LoRA that is not W + s * B @ A of this base, and why."""
_CONV1D = {"gpt2", "openai-gpt"}
_CONV1D_MODULES = ("c_attn", "q_attn", "c_proj", "c_fc")
"""Modules of GPT-2 that hold a weight as (in, out), whatever the adapter's `fan_in_fan_out` says: PEFT corrects that."""


class Delta(Protocol):
    """A change of one weight of the base."""

    def fold(self, weight: Any, begin: int = 0) -> Any:
        """The changed rows in float32, given the base's rows; the first of them is row `begin` of the whole weight."""


@dataclass(frozen=True)
class LowRank:
    """LoRA: W becomes W + scale * B @ A."""

    a: Any
    """(r, columns of W) float32."""
    b: Any
    """(rows of W, r) float32."""
    scale: float

    def fold(self, weight: Any, begin: int = 0) -> Any:
        """See `Delta`."""
        return weight.float() + self.scale * (self.b[begin : begin + weight.shape[0]] @ self.a)


@dataclass(frozen=True)
class MagnitudeOfRows:
    """DoRA: rows of W + scale * B @ A, each scaled to its trained length."""

    direction: LowRank
    magnitude: Any
    """(rows of W,) float32."""

    def fold(self, weight: Any, begin: int = 0) -> Any:
        """See `Delta`."""
        rows = self.direction.fold(weight, begin)
        lengths = rows.square().sum(1).sqrt()
        return rows * (self.magnitude[begin : begin + rows.shape[0]] / lengths).unsqueeze(1)


@dataclass(frozen=True)
class FactorOfColumns:
    """DoRA of an embedding, or of a weight that is stored as (in, out): the columns have the lengths."""

    direction: LowRank
    factor: Any
    """(columns of W,) float32: each column's trained length divided by its present length."""

    def fold(self, weight: Any, begin: int = 0) -> Any:
        """See `Delta`."""
        return self.direction.fold(weight, begin) * self.factor


@dataclass(frozen=True)
class Replaced:
    """A weight that was trained in full: `modules_to_save`, a bias, or an embedding saved with the adapter."""

    rows: Callable[[int, int], Any]
    """Reads rows, from the first index up to the second."""

    def fold(self, weight: Any, begin: int = 0) -> Any:
        """See `Delta`."""
        return self.rows(begin, begin + weight.shape[0]).float()


@dataclass(frozen=True)
class ReplacedRows:
    """Single trained tokens (`trainable_token_indices`): some rows of an embedding."""

    values: Mapping[int, Any]
    """By row of W: (columns,) float32."""

    def fold(self, weight: Any, begin: int = 0) -> Any:
        """See `Delta`."""
        rows = weight.float().clone()
        for index in range(begin, begin + rows.shape[0]):
            if index in self.values:
                rows[index - begin] = self.values[index]
        return rows


@dataclass(frozen=True)
class Added:
    """B's own bias (`lora_bias`): it is added to the base's bias."""

    value: Any
    """(rows,) float32, scaled."""

    def fold(self, weight: Any, begin: int = 0) -> Any:
        """See `Delta`."""
        return weight.float() + self.value[begin : begin + weight.shape[0]]


@dataclass(frozen=True)
class InTurn:
    """Several changes of one weight, applied one after another."""

    parts: Sequence[Delta]

    def fold(self, weight: Any, begin: int = 0) -> Any:
        """See `Delta`."""
        for part in self.parts:
            weight = part.fold(weight, begin)
        return weight


@dataclass
class _Module:
    """An adapter's tensors for one module of the base: their names in its file, by their part."""

    parts: dict[str, str] = field(default_factory=dict)

    def has(self, *parts: str) -> bool:
        return any(part in self.parts for part in parts)


class Adapter:
    """A LoRA adapter as PEFT saves it; its tensors are read when they are needed.

    Raises:
        ModelError: there is no adapter, it is damaged, or it contains something that cannot be folded, which is named.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self.folder = folder
        self.config = read_config(folder)
        _check_config(self.config, folder)
        file = folder / WEIGHTS
        self._header = {name: entry for name, entry in read_header(file).items() if name != "__metadata__"}
        self._tensors = safe_open(file, framework="pt")
        self._modules: dict[str, _Module] = {}
        self._base: Weights | None = None
        self._was_tied = False
        if not self._header:
            raise self._cannot("holds no weights", "fetch the adapter again")
        unknown = [name for name in sorted(self._header) if not self._take(name)]
        if unknown:
            raise self._cannot(f"cannot be folded: {', '.join(unknown[:3])}")
        self._check_tensors()

    def _cannot(self, message: str, hint: str | None = None) -> ModelError:
        return ModelError(message, where=str(self.folder), hint=hint, name="adapter_not_folded")

    def _take(self, name: str) -> bool:
        """Assign a tensor to its module; False if its kind is not known."""
        if not name.startswith(_PREFIX):  # PEFT would not load it either
            return False
        rest = name.removeprefix(_PREFIX)
        match = _PARTS.fullmatch(rest)
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
            part = of if part in ("base_layer", "modules_to_save") else f"{part}.bias" if of == "bias" else part
        self._modules.setdefault(module, _Module()).parts[part] = name
        return True

    def _check_tensors(self) -> None:
        """Check that each pair of factors is complete and has the rank in the settings, and that every number is finite."""
        for name, entry in self._header.items():
            if entry["dtype"] not in FLOATS:
                raise self._cannot(f"cannot be folded: {name} is stored as {entry['dtype']}")
        for module, held in self._modules.items():
            self._check_factors(module, held)
        for name in self._header:
            for begin, end in _row_blocks(self._shape(name)):
                if not bool(self._rows(name, begin, end).isfinite().all()):
                    raise self._cannot(f"{name} holds a number that is not finite", "train the adapter again")

    def _check_factors(self, module: str, held: _Module) -> None:
        for first, second in (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")):
            if held.has(first) != held.has(second):
                lone, lost = (first, second) if held.has(first) else (second, first)
                raise self._cannot(f"has {lone} of {module} but no {lost}", "fetch the adapter again")
            if held.has(first):
                stored, expected = self._shape(held.parts[first])[0], _rank(self.config, module)
                if stored != expected:
                    raise self._cannot(f"{module} has rank {stored}, but adapter_config.json says {expected}")
                dora = bool(self.config.get("use_dora"))
                if dora != held.has("lora_magnitude_vector"):
                    kept = "no magnitude" if dora else "a magnitude"
                    raise self._cannot(f"use_dora is {str(dora).lower()}, but {module} has {kept}")

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._header[name]["shape"])

    def _rows(self, name: str, begin: int, end: int) -> Any:
        return self._tensors.get_slice(name)[begin:end]

    def _float(self, name: str) -> Any:
        return self._tensors.get_tensor(name).float()

    @property
    def names(self) -> set[str]:
        """The base's weights that it changes; before `check_base`, those that are known so far."""
        found = set()
        for module, held in self._modules.items():
            if held.has("weight", "lora_A", "lora_embedding_A", _TOKENS):
                found.add(f"{module}.weight")
            if held.has("bias", "lora_B.bias"):
                found.add(f"{module}.bias")
        if self._follows_tokens() and self._base is not None and OUTPUT in self._base.shapes:
            found.add(OUTPUT)
        return found - (set() if self._base is None or OUTPUT in self._base.shapes else {OUTPUT})

    def kinds(self) -> dict[str, str]:
        """What it contains besides LoRA of linear layers: each kind, with one of its modules."""
        found: dict[str, str] = {}
        for module, held in self._modules.items():
            for kind, parts in _KINDS.items():
                if held.has(*parts):
                    found.setdefault(kind, module)
        return found

    def untied_modules(self) -> list[str]:
        """Embedding and output layer, if the base ties them and they have factors: LoRA of one does not change the other."""
        if self._base is None or not self._was_tied:
            return []
        names = [_module(name) for name in (self._base.embedding, OUTPUT)]
        return [name for name in names if self._modules.get(name, _Module()).has("lora_A", "lora_embedding_A")]

    def low_rank(self, name: str) -> LowRank | None:
        """The factors of one weight; None if it has none."""
        module = name.removesuffix(".weight")
        held = self._modules.get(module, _Module())
        if held.has("lora_A"):
            a, b = (self._float(held.parts[part]) for part in ("lora_A", "lora_B"))
            if self._is_transposed(module):
                a, b = b.T, a.T
            return LowRank(a, b, _scale(self.config, module))
        if held.has("lora_embedding_A"):  # (r, tokens) and (width, r): PEFT holds an embedding's the other way round
            a, b = (self._float(held.parts[part]) for part in ("lora_embedding_B", "lora_embedding_A"))
            return LowRank(a.T.contiguous(), b.T.contiguous(), _scale(self.config, module))
        return None

    def _is_transposed(self, module: str) -> bool:
        kind = self._base.config.get("model_type") if self._base is not None else None
        return kind in _CONV1D and module.rpartition(".")[2] in _CONV1D_MODULES

    def delta(self, name: str) -> Delta | None:
        """The change of one weight of the base; None if it has none.

        For DoRA of an embedding, the whole weight is read once to compute the length of its columns.
        """
        module, _, of = name.rpartition(".")
        held = self._modules.get(module, _Module())
        parts: list[Delta] = []
        if held.has(of):
            parts.append(self._replaced(held.parts[of]))
        elif name == OUTPUT and (shared := self._shared_embedding()) is not None:
            parts.append(self._replaced(shared))
        if of == "bias" and held.has("lora_B.bias"):
            parts.append(Added(self._float(held.parts["lora_B.bias"]) * _scale(self.config, module)))
        if of == "weight":
            low = self.low_rank(name)
            if low is not None:
                magnitude = held.parts.get("lora_magnitude_vector")
                parts.append(low if magnitude is None else self._dora(name, low, self._float(magnitude), parts))
            tokens = self._tokens(module, held)
            if tokens is not None:
                parts.append(tokens)
        if not parts:
            return None
        return parts[0] if len(parts) == 1 else InTurn(tuple(parts))

    def _replaced(self, tensor: str) -> Replaced:
        return Replaced(lambda begin, end: self._rows(tensor, begin, end))

    def _dora(self, name: str, low: LowRank, magnitude: Any, before: Sequence[Delta]) -> Delta:
        """PEFT's `DoraLinearLayer` and `DoraEmbeddingLayer`, whose weight is transposed first."""
        module = name.removesuffix(".weight")
        if not (self._modules[module].has("lora_embedding_A") or self._is_transposed(module)):
            return MagnitudeOfRows(low, magnitude)
        assert self._base is not None
        squares: Any = 0.0
        for begin, end in blocks(self._base, name):
            rows = InTurn((*before, low)).fold(self._base.rows(name, begin, end), begin)
            squares = squares + rows.double().square().sum(0)
        return FactorOfColumns(low, (magnitude.double() / squares.sqrt()).float())

    def _tokens(self, module: str, held: _Module) -> ReplacedRows | None:
        if module == _module(OUTPUT) and self._follows_tokens():
            assert self._base is not None
            module = _module(self._base.embedding)
            held = self._modules[module]
        name = held.parts.get(_TOKENS)
        if name is None:
            return None
        return ReplacedRows(dict(zip(self._indices(module), self._float(name), strict=True)))

    def _indices(self, module: str) -> Sequence[int]:
        """The rows of a module whose tokens were trained.

        Raises:
            ModelError: the settings do not name them.
        """
        said = self.config.get("trainable_token_indices")
        if isinstance(said, dict):
            said = next((indices for key, indices in said.items() if _is_named(module, [key])), None)
        held = self._shape(self._modules[module].parts[_TOKENS])[0]
        if not isinstance(said, list) or len(said) != held:
            given = len(said) if isinstance(said, list) else "no"
            raise self._cannot(f"has {held} trained tokens of {module}, but {given} trainable_token_indices")
        return [int(index) for index in said]

    # What an output layer that is tied to the embedding becomes.

    def _follows_tokens(self) -> bool:
        """Whether the output layer gets the embedding's trained tokens; PEFT decides this by the flag in config.json."""
        if self._base is None or not self._base.declared_tied or self._base.embedding is None:
            return False
        head, embedding = (self._modules.get(_module(n), _Module()) for n in (OUTPUT, self._base.embedding))
        return embedding.has(_TOKENS) and not head.has(_TOKENS)

    def _shared_embedding(self) -> str | None:
        """An embedding that was saved with the adapter and is tied to the output layer; None if it is not tied.

        PEFT loads it into the base's own weight, but one of `modules_to_save` into a separate weight.
        """
        if self._base is None or not self._was_tied or self._base.embedding is None:
            return None
        module = _module(self._base.embedding)
        tensor = self._modules.get(module, _Module()).parts.get("weight")
        return None if tensor is None or _is_named(module, self.config.get("modules_to_save") or []) else tensor

    def _changes_one(self) -> bool:
        """Whether embedding and output layer, tied in the base, differ with this adapter."""
        assert self._base is not None
        if self._base.embedding is None or self.config.get("ensure_weight_tying"):
            return False
        modules = [_module(name) for name in (self._base.embedding, OUTPUT)]
        low = any(self._modules.get(m, _Module()).has("lora_A", "lora_embedding_A") for m in modules)
        head = self._modules.get(modules[1], _Module())
        saved = [m for m in modules if self._modules.get(m, _Module()).has("weight")]
        apart = any(_is_named(m, self.config.get("modules_to_save") or []) for m in saved)
        tokens = any(self._modules.get(m, _Module()).has(_TOKENS) for m in modules) and not self._follows_tokens()
        return low or apart or tokens or head.has("bias")

    def check_base(self, weights: Weights) -> None:
        """Make sure that the adapter fits this base, and untie the output layer if the adapter does.

        Raises:
            ModelError: it changes a weight that the base does not have, has in another shape, or has
                in 4 or 8 bits only; or it lacks one that its settings name.
        """
        self._base, self._was_tied = weights, weights.tied
        self._check_saved(weights)
        self._forget_what_is_the_base()
        if weights.tied and self._changes_one():
            weights.untie()
        for name in sorted(self.names):
            module, _, of = name.rpartition(".")
            held = self._modules.get(module, _Module())
            if name not in weights.shapes and held.has("lora_B.bias") and of == "bias":
                raise self._cannot(f"lora_bias on {module}, which has no bias in the base: no weight can hold it")
            if name not in weights.shapes:
                raise ModelError(
                    f"the base has no {name}: the adapter belongs to another base", where=str(weights.folder)
                )
            if not weights.is_float(name):
                raise ModelError(
                    f"{name} is stored in 4 or 8 bits, so nothing can be folded into it exactly",
                    where=str(weights.folder),
                    hint="export with the 16-bit base: --model BASE",
                )
            self._check_shapes(module, of, held, weights.shapes[name])
        self._check_targets(weights)

    def _check_targets(self, weights: Weights) -> None:
        """Check that exactly the matrices that the settings target have factors: PEFT saves them all, and loads no others."""
        from peft import LoraConfig
        from peft.tuners.tuners_utils import check_target_module_exists

        names = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
        try:
            settings = LoraConfig(**{name: self.config.get(name) for name in names})
            check_target_module_exists(settings, "")
        except (ValueError, TypeError, re.error) as error:
            raise self._cannot(f"its target_modules cannot be used: {error}") from error
        if settings.target_modules == "all-linear":  # PEFT writes down what it stands for
            return
        for module in (_module(name) for name, shape in weights.shapes.items() if len(shape) == 2):
            held = self._modules.get(module, _Module()).has("lora_A", "lora_embedding_A")
            targeted = check_target_module_exists(settings, module)
            if targeted and not held:
                raise self._cannot(
                    f"targets {module} of the base but has no LoRA factors for it",
                    "is this the base that it was trained on?",
                )
            if held and not targeted:
                raise self._cannot(
                    f"has LoRA factors for {module}, which PEFT ignores: target_modules does not include it"
                )

    def _check_saved(self, weights: Weights) -> None:
        """Check that trained tokens, biases and `modules_to_save` that the settings name are there."""
        if self.config.get("trainable_token_indices") and not any(h.has(_TOKENS) for h in self._modules.values()):
            raise self._cannot("names trainable_token_indices but has no trained tokens")
        trained = self.config.get("bias") or "none"
        modules = [name.removesuffix(".bias") for name in weights.shapes if name.endswith(".bias")]
        biased = [m for m in modules if trained == "all" or self._modules.get(m, _Module()).has("lora_A")]
        if trained != "none" and biased and not any(held.has("bias") for held in self._modules.values()):
            raise self._cannot(f"bias is {trained}, but it has no biases, for example none of {biased[0]}")
        for wanted in self.config.get("modules_to_save") or []:
            in_base = any(_is_named(_module(name), [wanted]) for name in weights.shapes)
            if in_base and not any(_is_named(m, [wanted]) and h.has("weight") for m, h in self._modules.items()):
                raise self._cannot(f"names {wanted} in modules_to_save but has no weights for it")

    def _forget_what_is_the_base(self) -> None:
        """Drop weights that equal the base's: PEFT also saves an embedding that has LoRA, and every bias."""
        weights = self._base
        assert weights is not None
        for module, held in self._modules.items():
            for of in ("weight", "bias"):
                name = f"{module}.{of}"
                if name == OUTPUT and weights.tied and weights.embedding is not None:
                    name = weights.embedding
                if not held.has(of) or name not in weights.shapes or not weights.is_float(name):
                    continue
                tensor = held.parts[of]
                if self._shape(tensor) == weights.shapes[name] and all(
                    bool((self._rows(tensor, *block).float() == weights.rows(name, *block).float()).all())
                    for block in blocks(weights, name)
                ):
                    del held.parts[of]

    def _check_shapes(self, module: str, of: str, held: _Module, shape: tuple[int, ...]) -> None:
        for part, expected in self._expected(module, of, held, shape):
            stored = self._shape(held.parts[part])
            if stored != expected:
                resized = " or its vocabulary was resized" if of == "weight" and "embed" in module else ""
                change = self._change(held, of, stored)
                raise ModelError(
                    f"the adapter belongs to another base{resized}: it changes {change}, but the weight of {module} is {shape}",
                    where=str(self.folder),
                )
        if of == "weight" and held.has(_TOKENS) and not all(0 <= i < shape[0] for i in self._indices(module)):
            raise self._cannot(f"trainable_token_indices of {module} go beyond its {shape[0]} rows")

    def _expected(
        self, module: str, of: str, held: _Module, shape: tuple[int, ...]
    ) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The shape of each part, given that of the weight."""
        rank = _rank(self.config, module)
        rows, columns = shape[0], shape[-1]
        if self._is_transposed(module):
            rows, columns = columns, rows
        shapes: dict[str, tuple[int, ...]] = {of: shape}
        if of == "bias":
            shapes["lora_B.bias"] = shape
        else:
            embedding = held.has("lora_embedding_A")
            shapes |= {
                "lora_A": (rank, columns), "lora_B": (rows, rank), "lora_embedding_A": (rank, rows),
                "lora_embedding_B": (columns, rank), "lora_magnitude_vector": (columns if embedding else rows,),
            }  # fmt: skip
            if held.has(_TOKENS):
                shapes[_TOKENS] = (len(self._indices(module)), columns)
        yield from ((part, expected) for part, expected in shapes.items() if held.has(part))

    def _change(self, held: _Module, of: str, stored: tuple[int, ...]) -> tuple[int, ...]:
        if of == "weight" and held.has("lora_A"):
            return self._shape(held.parts["lora_B"])[0], self._shape(held.parts["lora_A"])[1]
        return stored


_KINDS = {
    "DoRA": ("lora_magnitude_vector",),
    "a bias": ("bias", "lora_B.bias"),
    "modules_to_save": ("weight",),
    "trained tokens": (_TOKENS,),
}
"""What a GGUF adapter cannot represent, and the parts that show it."""


def _module(name: str | None) -> str:
    return (name or "").removesuffix(".weight")


def _is_named(module: str, names: Sequence[str]) -> bool:
    """Whether a module, or one that it is part of, is named: PEFT compares the ends of names."""
    pieces = module.split(".")
    return any(".".join(pieces[:end]).endswith(name) for end in range(1, len(pieces) + 1) for name in names)


def _row_blocks(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    step = max(1, BLOCK // max(1, math.prod(shape[1:])))
    for begin in range(0, shape[0] if shape else 1, step):
        yield begin, begin + step


def _check_config(config: Mapping[str, Any], folder: Path) -> None:
    """Make sure that the settings describe a LoRA that can be folded.

    Raises:
        ModelError: a setting is missing or wrong, or means that the adapter cannot be folded.
    """

    def cannot(message: str, hint: str | None = None) -> ModelError:
        return ModelError(message, where=str(folder / "adapter_config.json"), hint=hint, name="adapter_not_folded")

    kind = config["peft_type"]
    if kind != "LORA":
        raise cannot(
            f"its type is {kind}, but only LoRA can be folded into a base",
            "if PEFT can merge it, save the result of merge_and_unload() and export that folder",
        )
    rank, alpha, targets = (config.get(name) for name in ("r", "lora_alpha", "target_modules"))
    ranks, alphas = (config.get(name) or {} for name in ("rank_pattern", "alpha_pattern"))
    saved, tokens = config.get("modules_to_save"), config.get("trainable_token_indices")
    groups = tokens.values() if isinstance(tokens, dict) else [tokens or []]
    sound = {
        "r": isinstance(rank, int) and rank > 0,
        "lora_alpha": isinstance(alpha, int | float) and math.isfinite(alpha),
        "target_modules": isinstance(targets, list | str),
        "rank_pattern": isinstance(ranks, dict) and all(isinstance(v, int) and v > 0 for v in ranks.values()),
        "alpha_pattern": isinstance(alphas, dict) and all(isinstance(v, int | float) for v in alphas.values()),
        "modules_to_save": saved is None or (isinstance(saved, list) and all(isinstance(v, str) for v in saved)),
        "trainable_token_indices": all(isinstance(g, list) and all(isinstance(i, int) for i in g) for g in groups),
        "bias": config.get("bias") in (None, "none", "all", "lora_only"),
    }
    for name in (name for name, fine in sound.items() if not fine):
        value = config.get(name)
        raise cannot(f"{name} is {'missing' if value is None else repr(value)}", "fetch the adapter again")
    found = [f"{name} ({why})" for name, why in _NOT_FOLDED.items() if config.get(name)]
    start = str(config.get("init_lora_weights", ""))
    if start.lower().startswith(_SHIFTED_BASE):
        found.append(f"init_lora_weights ({start}): it applies to a base that was changed first")
    if found:
        raise cannot(f"cannot be folded: {', '.join(found[:3])}")
    check_known(config, folder)


def _pattern(config: Mapping[str, Any], name: str, module: str) -> Any:
    from peft.utils.other import get_pattern_key

    patterns = config.get(name) or {}
    return patterns.get(get_pattern_key(patterns.keys(), module))


def _rank(config: Mapping[str, Any], module: str) -> int:
    found = _pattern(config, "rank_pattern", module)
    return int(config["r"] if found is None else found)


def _scale(config: Mapping[str, Any], module: str) -> float:
    """Alpha over rank (or its root, rsLoRA), with a pattern's own alpha and rank where one matches."""
    found = _pattern(config, "alpha_pattern", module)
    alpha, rank = float(config["lora_alpha"] if found is None else found), _rank(config, module)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
