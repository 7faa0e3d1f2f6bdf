"""The architectures that can be written to GGUF: one class each, registered under its name in transformers.

A class gives its name in GGUF, the rows whose order changes, how norms are stored, the biases and rope tensors that
llama.cpp reads for it, how sliding windows are handled, and the settings that llama.cpp assumes. These are compared with
config.json, and a difference is refused by name, because llama.cpp ignores keys that it does not know and would run
another model. To add an architecture, add a class; `docs/export.md` has the table.

Settings are read through transformers' own config class, so a setting that config.json leaves out has the same
value as in training.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module
from typing import Any, ClassVar, TypeVar

import gguf

from cot_unsloth.export.gguf import rope
from cot_unsloth.export.gguf.rope import Rope
from cot_unsloth.export.refusal import not_for_gguf
from cot_unsloth.export.weights import HfConfig

_KNOWN: dict[str, type[Architecture]] = {}
_ATTENTION = frozenset({"attn_q", "attn_k", "attn_v"})
_ALL_LINEAR = _ATTENTION | {"attn_output", "ffn_gate", "ffn_up", "ffn_down"}

_MODULES: tuple[str, ...] = ()
"""Modules of this folder that register more architectures. Imported at first use, because they import this one."""

A = TypeVar("A", bound="type[Architecture]")


def register(name: str) -> Callable[[A], A]:
    """Register a class for the transformers model class of this name."""

    def add(kind: A) -> A:
        kind.name = name
        _KNOWN[name] = kind
        return kind

    return add


def known() -> dict[str, type[Architecture]]:
    """All of them, by transformers' name."""
    for module in _MODULES:
        import_module(f"cot_unsloth.export.gguf.{module}")
    return dict(_KNOWN)


class Architecture:
    """What all architectures have in common; a subclass overrides what differs.

    Raises:
        ModelError: from `check` and `rope`: llama.cpp does not support a setting, which is named.
    """

    name: ClassVar[str]
    """Transformers' class."""
    arch: ClassVar[gguf.MODEL_ARCH]
    """Its name in GGUF."""
    # Unigram and WordPiece are left out: no architecture below uses them.
    tokenizers: ClassVar[tuple[str, ...]] = ("byte-level BPE", "SentencePiece")
    """Kinds that are written, of those in `tokenizers`; llama.cpp reads every kind for every architecture."""
    ropes: ClassVar[tuple[str, ...]] = ("default", "linear", "yarn")
    rope_tensors: ClassVar[frozenset[str]] = frozenset()
    """Tensors of frequency factors that llama.cpp reads."""
    partial: ClassVar[bool] = False
    """Whether it can rotate only a part of each head."""
    window: ClassVar[str] = "none"
    """How a sliding window is handled, for the table."""
    pairs: ClassVar[bool] = False
    """Whether rows of queries and keys are permuted into pairs of rotary dimensions; see `writer.to_pairs`."""
    norm_offset: ClassVar[float] = 0.0
    """Added to norm weights in the file, if transformers multiplies by 1 + weight (Gemma)."""
    biases: ClassVar[frozenset[str]] = frozenset()
    """Projections whose bias llama.cpp adds; it ignores any other."""
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
        # head_dim may be null in config.json; Qwen3-0.6B has 128 where hidden_size / heads is 64.
        return int(getattr(self.config, "head_dim", None) or self.config.hidden_size // self.heads[0])

    def permuted_heads(self, source: str) -> int:
        """How many heads the rows of a weight are permuted within; 0 if they are not permuted."""
        which = {"q_proj": 0, "k_proj": 1}.get(source.split(".")[-2]) if self.pairs else None
        return 0 if which is None else self.heads[which]

    @functools.cached_property
    def rope(self) -> Rope:
        """How positions are rotated (in full-attention layers, if there are several kinds)."""
        return rope.written(
            self.config, self.where, takes=self.rope_tensors, head_dim=self.head_dim, partial=self.partial
        )

    def sliding_window(self) -> int | None:
        """Tokens that a layer attends to, its own included, if llama.cpp would attend to all; None: no limit."""
        return None

    @property
    def limit(self) -> tuple[int, str] | None:
        """Tokens up to which llama.cpp computes the same as transformers, and what differs after them."""
        limits = []
        window, short = self.sliding_window(), rope.longrope_limit(self.config)
        if window is not None:
            limits.append((window, f"attention over a sliding window of {window:,} tokens"))
        if short is not None:
            limits.append((short, f"rope scaling longrope beyond its {short:,} original_max_position_embeddings"))
        return min(limits, default=None)

    @property
    def context(self) -> int:
        """The file's context length: that of the model, or fewer tokens if llama.cpp is exact only up to there."""
        made_for = int(self.config.max_position_embeddings)
        return min(made_for, self.limit[0]) if self.limit else made_for

    def check(self, longest: int = 0) -> None:
        """Make sure that llama.cpp computes this model correctly.

        Args:
            longest: tokens of the longest text that the model is trained on or generates, if known.

        Raises:
            ModelError: it does not; the setting is named.
        """
        # Gemma's config calls it hidden_activation.
        activation = getattr(self.config, "hidden_act", None) or getattr(self.config, "hidden_activation", None)
        if activation not in self.activations:
            raise not_for_gguf(f"hidden_act {activation} of {self.name}", self.where)
        if (
            getattr(self.config, "use_sliding_window", False)
            and type(self).sliding_window is Architecture.sliding_window
        ):
            raise not_for_gguf(f"use_sliding_window, a sliding window that {self.name} does not have,", self.where)
        # Rope scaling is checked here and not when the file is written, after an hour of training.
        self.rope  # noqa: B018  raises
        if self.limit and self.limit[0] < min(longest, int(self.config.max_position_embeddings)):
            raise not_for_gguf(
                f"{self.limit[1]}, for rows and answers of up to {longest:,} tokens,",
                self.where,
                f"lower --max-seq-length plus --max-new-tokens to {self.limit[0]:,}, or use --merged",
            )

    def add_settings(self, writer: Any) -> None:
        """Write the keys of this architecture."""


def of(config: HfConfig, where: str) -> Architecture:
    """The architecture that a config.json describes.

    Raises:
        ModelError: it is not supported, or transformers would load it as another; the hint lists the supported ones.
    """
    import transformers

    supported = known()
    declared = (config.get("architectures") or ["a model without architectures"])[0]
    if declared not in supported:
        raise not_for_gguf(declared, where, f"supported: {', '.join(supported)}; or use --merged")
    kind = config.get("model_type")
    if kind not in transformers.CONFIG_MAPPING:
        raise not_for_gguf(f"model_type {kind!r}", where)
    try:
        # Through the config class, so that a missing key has the default of the installed transformers, as in training.
        settings = transformers.CONFIG_MAPPING[kind].from_dict(dict(config))
    except Exception as error:  # validators of many kinds
        raise not_for_gguf(f"a config.json that transformers cannot read ({error})", where) from error
    # transformers chooses the class by model_type alone and does not read `architectures`.
    loaded = transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(settings), None)
    if loaded is None or loaded.__name__ != declared:
        actual = loaded.__name__ if loaded else "no language model"
        raise not_for_gguf(f"{declared}, which transformers loads as {actual} because of model_type {kind},", where)
    return supported[declared](settings, where)


@register("LlamaForCausalLM")
class Llama(Architecture):
    """Llama 2 and 3, SmolLM2, TinyLlama, the Llama distillations of R1."""

    arch = gguf.MODEL_ARCH.LLAMA
    ropes = ("default", "llama3", "linear", "yarn")
    rope_tensors = frozenset({rope.FREQUENCIES})
    pairs = True
    # attention_bias and mlp_bias of some derivatives; llama.cpp adds each if the tensor is there.
    biases = _ALL_LINEAR


@register("MistralForCausalLM")
class Mistral(Llama):
    """Mistral 7B and its derivatives: Llama's computation, with a sliding window in the first version."""

    window = "null, or no shorter than the rows; the file's context ends with it"

    def sliding_window(self) -> int | None:
        """The window of every layer."""
        return self.config.sliding_window or None


@register("Qwen2ForCausalLM")
class Qwen2(Architecture):
    """Qwen2 and Qwen2.5, the Qwen distillations of R1."""

    arch = gguf.MODEL_ARCH.QWEN2
    window = Mistral.window
    # Those of queries, keys and values; transformers has no setting that leaves them out.
    biases = _ATTENTION

    def sliding_window(self) -> int | None:
        """The window of the layers from `max_window_layers` on, if `use_sliding_window` is set."""
        return self.config.sliding_window if "sliding_attention" in self.config.layer_types else None


@register("Qwen3ForCausalLM")
class Qwen3(Qwen2):
    """Qwen3: norms on queries and keys, its own `head_dim`, no biases."""

    arch = gguf.MODEL_ARCH.QWEN3
    biases = frozenset()


@register("Phi3ForCausalLM")
class Phi3(Architecture):
    """Phi-3, Phi-3.5 and Phi-4: one matrix for queries, keys and values, one for gate and up, as in llama.cpp."""

    arch = gguf.MODEL_ARCH.PHI3
    ropes = ("default", "longrope")
    rope_tensors = frozenset({rope.LONG, rope.SHORT})
    # Phi-4-mini rotates three quarters of each head.
    partial = True
    window = Mistral.window

    def sliding_window(self) -> int | None:
        """The window of every layer; llama.cpp (2026-10) reads its key, warns, and attends to all tokens."""
        return self.config.sliding_window or None


@register("SmolLM3ForCausalLM")
class SmolLM3(Architecture):
    """SmolLM3: every fourth layer has no positions."""

    arch = gguf.MODEL_ARCH.SMOLLM3
    window = Mistral.window
    pairs = True

    def sliding_window(self) -> int | None:
        """The window of some layers, if `use_sliding_window` is set."""
        return self.config.sliding_window if "sliding_attention" in self.config.layer_types else None

    def check(self, longest: int = 0) -> None:
        """Also check that the layers without positions are those that llama.cpp assumes: it reads no key for them."""
        super().check(longest)
        # In spite of the field's name, 1 is a layer with rotary positions and 0 one without.
        expected = [int((layer + 1) % 4 != 0) for layer in range(self.config.num_hidden_layers)]
        if list(self.config.no_rope_layers) != expected:
            raise not_for_gguf("no_rope_layers other than every fourth", self.where)


@register("Gemma3ForCausalLM")
class Gemma3(Architecture):
    """Gemma 3, text only: local layers with a sliding window and global layers between them, each kind with its own rope."""

    arch = gguf.MODEL_ARCH.GEMMA3
    ropes = ("default", "linear")
    window = "written; one global layer after each so many local ones"
    # Gemma multiplies by (1 + weight); llama.cpp multiplies by the stored number, so the 1 is added in the file.
    norm_offset = 1.0
    activations = ("gelu_pytorch_tanh",)

    @functools.cached_property
    def rope(self) -> Rope:
        """The rope of the global layers; that of the local layers is only a base."""
        return rope.written(self.config, self.where, takes=frozenset(), head_dim=self.head_dim, layers="full_attention")

    @functools.cached_property
    def period(self) -> int:
        """The interval of global layers: every `period`-th layer is global."""
        # Gemma 3 has five local layers before each global one: a period of 6.
        kinds = list(self.config.layer_types)
        period = kinds.index("full_attention") + 1 if "full_attention" in kinds else 0
        expected = [
            period and ("sliding_attention" if (i + 1) % period else "full_attention") for i in range(len(kinds))
        ]
        if kinds != expected or period == 1:  # llama.cpp crashes where no layer is local
            raise not_for_gguf(
                "layer_types without a global layer at a fixed interval between local layers", self.where
            )
        return period

    def check(self, longest: int = 0) -> None:
        """Also check what llama.cpp assumes about attention scores and local layers."""
        self.period  # noqa: B018  raises
        super().check(longest)
        config = self.config
        local = rope.parameters(config, "sliding_attention")
        fields = {
            # Attention scores are divided by its root. Gemma 3 27B has 168, for heads of 128.
            "query_pre_attn_scalar": (config.query_pre_attn_scalar, self.head_dim),
            "attn_logit_softcapping": (config.attn_logit_softcapping, None),
            "final_logit_softcapping": (config.final_logit_softcapping, None),
            "use_bidirectional_attention": (bool(config.use_bidirectional_attention), False),
            "rope_type of sliding_attention": (local["rope_type"], "default"),
        }
        for field, (value, expected) in fields.items():
            if value != expected:
                raise not_for_gguf(f"{field} {value} (llama.cpp assumes {expected})", self.where)
        if self.rope.kind not in (None, gguf.RopeScalingType.LINEAR):
            raise not_for_gguf(f"rope scaling {self.rope.kind.value} of {self.name}", self.where)

    def add_settings(self, writer: Any) -> None:
        """The window, its period, and the base of local layers."""
        writer.add_sliding_window(int(self.config.sliding_window))
        writer.add_sliding_window_pattern(self.period)
        # 10,000 in Gemma 3, where global layers have 1,000,000.
        writer.add_rope_freq_base_swa(float(rope.parameters(self.config, "sliding_attention")["rope_theta"]))
