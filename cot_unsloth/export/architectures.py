"""The architectures that can be written to GGUF: one class each, registered under transformers' name of it.

A class says what its GGUF calls itself, which rows change their order, what its norms are stored as, which
biases and rope tensors llama.cpp reads for it, what it does about sliding windows, and what of its settings
llama.cpp takes for granted, which is then held against config.json. What differs is refused by name. Adding an
architecture is adding a class; `docs/export.md` has the table.

Settings are read through transformers' own config class, so that what config.json leaves out has the value
that it had in training.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import gguf

from cot_unsloth.export import rope
from cot_unsloth.export.refusal import not_for_gguf
from cot_unsloth.export.rope import Rope

_KNOWN: dict[str, type[Architecture]] = {}
_ATTENTION = frozenset({"attn_q", "attn_k", "attn_v"})
_ALL_LINEAR = _ATTENTION | {"attn_output", "ffn_gate", "ffn_up", "ffn_down"}

A = TypeVar("A", bound="type[Architecture]")


def register(name: str) -> Callable[[A], A]:
    """Make a class the one for transformers' model class of this name."""

    def add(kind: A) -> A:
        kind.name = name
        _KNOWN[name] = kind
        return kind

    return add


def known() -> dict[str, type[Architecture]]:
    """All of them, by transformers' name."""
    return dict(_KNOWN)


class Architecture:
    """What all have in common; a subclass says what is different.

    Raises:
        ModelError: of `check` and `rope`: a setting is one that llama.cpp does not follow, by name.
    """

    name: ClassVar[str]
    """Transformers' class."""
    arch: ClassVar[gguf.MODEL_ARCH]
    """As GGUF calls it."""
    tokenizers: ClassVar[tuple[str, ...]] = ("byte-level BPE", "SentencePiece")
    """Kinds that are written, of those that `splitting` knows; llama.cpp reads every kind for every architecture."""
    ropes: ClassVar[tuple[str, ...]] = ("default", "linear", "yarn")
    rope_tensors: ClassVar[frozenset[str]] = frozenset()
    """Factors of frequencies that llama.cpp reads."""
    partial: ClassVar[bool] = False
    """Whether it can rotate a part of each head."""
    window: ClassVar[str] = "none"
    """What is done about a sliding window, for the table."""
    pairs: ClassVar[bool] = False
    """Whether rows of queries and keys are stored as pairs of rotary dimensions."""
    norm_offset: ClassVar[float] = 0.0
    """Added to the weight of a norm in the file: transformers multiplies by 1 + weight."""
    biases: ClassVar[frozenset[str]] = frozenset()
    """Projections whose bias llama.cpp adds."""
    activations: ClassVar[tuple[str, ...]] = ("silu", "swish")

    def __init__(self, config: Any, where: str) -> None:
        self.config = config
        self.where = where

    @property
    def heads(self) -> tuple[int, int]:
        """Query heads and key heads."""
        heads = int(self.config.num_attention_heads)
        return heads, int(getattr(self.config, "num_key_value_heads", None) or heads)

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return int(getattr(self.config, "head_dim", None) or self.config.hidden_size // self.heads[0])

    def permuted_heads(self, source: str) -> int:
        """How many heads the rows of a weight are permuted within; 0 where they stay."""
        which = {"q_proj": 0, "k_proj": 1}.get(source.split(".")[-2]) if self.pairs else None
        return 0 if which is None else self.heads[which]

    @functools.cached_property
    def rope(self) -> Rope:
        """How positions are rotated (in layers of full attention, where there are others)."""
        return rope.written(
            self.config, self.where, takes=self.rope_tensors, head_dim=self.head_dim, partial=self.partial
        )

    def sliding_window(self) -> int | None:
        """Tokens that a layer looks back over, itself among them, where llama.cpp would look over all; None: no limit."""
        return None

    @property
    def limit(self) -> tuple[int, str] | None:
        """Tokens up to which llama.cpp computes what transformers does, and what is different after them."""
        found = []
        window, short = self.sliding_window(), rope.longrope_limit(self.config)
        if window is not None:
            found.append((window, f"attention over a sliding window of {window:,} tokens"))
        if short is not None:
            found.append((short, f"rope scaling longrope beyond its {short:,} original_max_position_embeddings"))
        return min(found, default=None)

    @property
    def context(self) -> int:
        """Tokens that the file says it takes: those that the model was made for, and on which llama.cpp is exact."""
        made_for = int(self.config.max_position_embeddings)
        return min(made_for, self.limit[0]) if self.limit else made_for

    def check(self, longest: int = 0) -> None:
        """Make sure that llama.cpp computes this model.

        Args:
            longest: tokens of the longest text that the model is trained on or asked for, as far as is known.

        Raises:
            ModelError: it does not; the setting is named.
        """
        activation = getattr(self.config, "hidden_act", None) or getattr(self.config, "hidden_activation", None)
        if activation not in self.activations:
            raise not_for_gguf(f"hidden_act {activation} of {self.name}", self.where)
        if (
            getattr(self.config, "use_sliding_window", False)
            and type(self).sliding_window is Architecture.sliding_window
        ):
            raise not_for_gguf(f"use_sliding_window, a sliding window that {self.name} does not have,", self.where)
        self.rope  # noqa: B018  raises
        if self.limit and self.limit[0] < min(longest, int(self.config.max_position_embeddings)):
            raise not_for_gguf(
                f"{self.limit[1]}, for rows and answers of up to {longest:,} tokens,",
                self.where,
                f"lower --max-seq-length and --max-new-tokens to {self.limit[0]:,} together, or --merged",
            )

    def add_settings(self, writer: Any) -> None:
        """Write the keys that are its own."""


def of(config: Mapping[str, Any], where: str) -> Architecture:
    """The architecture that a config.json describes.

    Raises:
        ModelError: none that is known here, or transformers would load it as another; with the list of those that are.
    """
    import transformers

    declared = (config.get("architectures") or ["a model without architectures"])[0]
    if declared not in _KNOWN:
        raise not_for_gguf(declared, where, f"{', '.join(_KNOWN)} can; or --merged")
    kind = config.get("model_type")
    if kind not in transformers.CONFIG_MAPPING:
        raise not_for_gguf(f"model_type {kind!r}", where)
    try:
        settings = transformers.CONFIG_MAPPING[kind].from_dict(dict(config))
    except Exception as error:  # validators of many kinds
        raise not_for_gguf(f"a config.json that transformers cannot read ({error})", where) from error
    loaded = transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(settings), None)
    if loaded is None or loaded.__name__ != declared:
        actual = loaded.__name__ if loaded else "no language model"
        raise not_for_gguf(f"{declared}, of which model_type {kind} makes {actual},", where)
    return _KNOWN[declared](settings, where)


@register("LlamaForCausalLM")
class Llama(Architecture):
    """Llama 2 and 3, SmolLM2, TinyLlama, the Llama distillations of R1."""

    arch = gguf.MODEL_ARCH.LLAMA
    ropes = ("default", "llama3", "linear", "yarn")
    rope_tensors = frozenset({rope.FREQUENCIES})
    pairs = True
    biases = _ALL_LINEAR


@register("MistralForCausalLM")
class Mistral(Llama):
    """Mistral 7B and what was made of it: Llama's computation, and a sliding window in its first version."""

    window = "null, or no shorter than the rows; the file's context ends with it"

    def sliding_window(self) -> int | None:
        """Of every layer."""
        return self.config.sliding_window or None


@register("Qwen2ForCausalLM")
class Qwen2(Architecture):
    """Qwen2 and Qwen2.5, the Qwen distillations of R1."""

    arch = gguf.MODEL_ARCH.QWEN2
    window = Mistral.window
    biases = _ATTENTION

    def sliding_window(self) -> int | None:
        """Of the layers from `max_window_layers` on, where `use_sliding_window` is set."""
        return self.config.sliding_window if "sliding_attention" in self.config.layer_types else None


@register("Qwen3ForCausalLM")
class Qwen3(Qwen2):
    """Qwen3: norms on queries and keys, heads as wide as it says, no biases."""

    arch = gguf.MODEL_ARCH.QWEN3
    biases = frozenset()


@register("Phi3ForCausalLM")
class Phi3(Architecture):
    """Phi-3, Phi-3.5 and Phi-4: one matrix for queries, keys and values, one for gate and up, both as llama.cpp has them."""

    arch = gguf.MODEL_ARCH.PHI3
    ropes = ("default", "longrope")
    rope_tensors = frozenset({rope.LONG, rope.SHORT})
    partial = True
    window = Mistral.window

    def sliding_window(self) -> int | None:
        """Of every layer; llama.cpp (2026-10) reads the key for it, warns, and looks over all."""
        return self.config.sliding_window or None


@register("SmolLM3ForCausalLM")
class SmolLM3(Architecture):
    """SmolLM3: every fourth layer has no positions."""

    arch = gguf.MODEL_ARCH.SMOLLM3
    window = Mistral.window
    pairs = True

    def sliding_window(self) -> int | None:
        """Of some layers, where `use_sliding_window` is set."""
        return self.config.sliding_window if "sliding_attention" in self.config.layer_types else None

    def check(self, longest: int = 0) -> None:
        """Also that the layers without positions are those that llama.cpp takes: it reads no key for them."""
        super().check(longest)
        expected = [int((layer + 1) % 4 != 0) for layer in range(self.config.num_hidden_layers)]
        if list(self.config.no_rope_layers) != expected:
            raise not_for_gguf("no_rope_layers other than every fourth", self.where)


@register("Gemma3ForCausalLM")
class Gemma3(Architecture):
    """Gemma 3, text alone: local layers over a sliding window, global ones between, each with a rope of its own."""

    arch = gguf.MODEL_ARCH.GEMMA3
    ropes = ("default", "linear")
    window = "written; one global layer after each so many local ones"
    norm_offset = 1.0
    activations = ("gelu_pytorch_tanh",)

    @functools.cached_property
    def rope(self) -> Rope:
        """Of the global layers; that of the local ones has a base alone."""
        return rope.written(self.config, self.where, takes=frozenset(), head_dim=self.head_dim, layers="full_attention")

    @functools.cached_property
    def period(self) -> int:
        """Every so many-th layer is global."""
        kinds = list(self.config.layer_types)
        period = kinds.index("full_attention") + 1 if "full_attention" in kinds else 0
        expected = [
            period and ("sliding_attention" if (i + 1) % period else "full_attention") for i in range(len(kinds))
        ]
        if kinds != expected or period == 1:  # llama.cpp crashes where no layer is local
            raise not_for_gguf("layer_types other than local layers and one global after each so many", self.where)
        return period

    def check(self, longest: int = 0) -> None:
        """Also what llama.cpp takes for granted of scores and of local layers."""
        self.period  # noqa: B018  raises
        super().check(longest)
        config = self.config
        local = rope.parameters(config, "sliding_attention")
        fields = {
            "query_pre_attn_scalar": (config.query_pre_attn_scalar, self.head_dim),
            "attn_logit_softcapping": (config.attn_logit_softcapping, None),
            "final_logit_softcapping": (config.final_logit_softcapping, None),
            "use_bidirectional_attention": (bool(config.use_bidirectional_attention), False),
            "rope_type of sliding_attention": (local["rope_type"], "default"),
        }
        for field, (value, expected) in fields.items():
            if value != expected:
                raise not_for_gguf(f"{field} {value} (llama.cpp has {expected})", self.where)
        if self.rope.kind not in (None, gguf.RopeScalingType.LINEAR):
            raise not_for_gguf(f"rope scaling {self.rope.kind.value} of {self.name}", self.where)

    def add_settings(self, writer: Any) -> None:
        """The window, its period, and the base of local layers."""
        writer.add_sliding_window(int(self.config.sliding_window))
        writer.add_sliding_window_pattern(self.period)
        writer.add_rope_freq_base_swa(float(rope.parameters(self.config, "sliding_attention")["rope_theta"]))
