"""Estimates of the memory and disk that a run needs, before any weight is loaded; `estimate_time` has the time.

The shape of a model comes from its config.json, or from its name if it is not on this machine. Estimates are rough, and
`doctor`, `check` and `train` say so; bench/estimates.py compares them with real runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cot_unsloth.config import ModelConfig, RunConfig
from cot_unsloth.config.techniques import layer_numbers
from cot_unsloth.core.errors import ModelError
from cot_unsloth.core.progress import size
from cot_unsloth.models import registry
from cot_unsloth.prompts.tokenizer import model_path


@dataclass(frozen=True)
class Shape:
    """The size of a model."""

    parameters: int
    """Number of weights; tied weights are counted once."""
    embedding: int
    """Weights in the embedding and an untied output layer, which bitsandbytes does not quantize: they stay in 16 or 32 bits."""
    hidden: int
    layers: int
    vocabulary: int
    linear: tuple[str, ...]
    """Names of the linear modules of a layer, such as q_proj; empty if only the model's name is known."""
    linear_sizes: tuple[tuple[str, int, int], ...] = ()
    """(path, inputs, outputs) of every linear module that can take an adapter."""
    positions: int | None = None
    """Its context length in tokens (`max_position_embeddings`)."""
    stored_bits: int | None = None
    """Bits of its stored weights, if fewer than 16."""
    guessed: bool = False
    """Whether the shape is a guess from the model's name."""


_SIZE_IN_NAME = re.compile(r"(?<![A-Za-z\d.])(\d+(?:\.\d+)?)\s*([bBmM])(?![A-Za-z])")


def shape_of(model: ModelConfig) -> Shape | None:
    """The shape of a model in a folder, or else a guess from its name; None if the name contains no size.

    Raises:
        ModelError: its config.json needs code of its own.
    """
    name = model_path(model.model_name_or_path)
    if Path(name).is_dir() and (Path(name) / "config.json").is_file():
        return _built(name)
    return shape_in_name(model.model_name_or_path)


def shape_in_name(name: str) -> Shape | None:
    """A guess from a name such as `Llama-3.2-3B-Instruct`.

    >>> shape_in_name("meta-llama/Llama-3.2-3B-Instruct").parameters, shape_in_name("mine")
    (3000000000, None)
    """
    sizes = _SIZE_IN_NAME.findall(name.rpartition("/")[2].replace("_", "-"))
    if not sizes:
        return None
    count, unit = sizes[-1]  # the last one: versions such as Qwen2.5 or Llama-3.2 come first
    parameters = int(float(count) * (10**9 if unit in "bB" else 10**6))
    # Parameters grow with layers * hidden^2, so both grow with the cube root; 3072 and 28 are those of Llama-3.2-3B.
    scale = (parameters / 3e9) ** (1 / 3)
    hidden, layers = int(3072 * scale), max(1, int(28 * scale))
    return Shape(parameters, min(parameters // 3, 128_000 * hidden), hidden, layers, 128_000, (), guessed=True)


def _built(folder: str) -> Shape | None:
    """The shape of a model that is built from its config.json on torch's meta device, whose tensors have no memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        model.tie_weights()
    except Exception:  # loading the model reports what is wrong with it
        return None
    text = config.get_text_config()
    embedding = {id(module.weight): module.weight.numel() for module in _ends(model) if module is not None}
    linear = [
        (path, *sizes)
        for path, module in model.named_modules()
        if (sizes := _linear_sizes(module)) and not path.endswith("lm_head")
    ]
    stored = getattr(config, "quantization_config", None) or {}
    stored = stored if isinstance(stored, dict) else stored.to_dict()
    bits = 4 if stored.get("load_in_4bit") else 8 if stored.get("load_in_8bit") else None
    return Shape(
        parameters=sum(p.numel() for p in model.parameters()),
        embedding=sum(embedding.values()),
        hidden=int(text.hidden_size),
        layers=int(text.num_hidden_layers),
        vocabulary=int(text.vocab_size),
        linear=tuple(dict.fromkeys(path.rpartition(".")[2] for path, _, _ in linear)),
        linear_sizes=tuple(linear),
        positions=getattr(text, "max_position_embeddings", None),
        stored_bits=bits,
    )


def _linear_sizes(module: Any) -> tuple[int, int] | None:
    """Inputs and outputs of a linear module; None for another."""
    from transformers.pytorch_utils import Conv1D

    if type(module) is Conv1D:  # GPT-2's, which stores its weight as (inputs, outputs)
        return module.nx, module.nf
    return (module.in_features, module.out_features) if hasattr(module, "in_features") else None


def _ends(model: Any) -> tuple[Any, Any]:
    return model.get_input_embeddings(), model.get_output_embeddings()


def adapter_parameters(config: RunConfig, shape: Shape) -> int:
    """Number of trained weights of the adapter.

    For each target module r * (inputs + outputs) with LoRA (arXiv 2106.09685), r + outputs with VeRA (arXiv 2310.11454).
    """
    r = config.lora.lora_r
    if shape.linear_sizes:
        is_target = _is_target(config, shape)
        sizes = [(ins, outs) for path, ins, outs in shape.linear_sizes if is_target(path)]
        if config.lora.use_vera:
            return sum(r + outs for _, outs in sizes)
        return r * sum(ins + outs for ins, outs in sizes)
    # Inputs + outputs of a layer in hidden sizes: 4 * 2 for q, k, v, o and 3 * 4.5 for gate, up, down, about 22. Grouped-query
    # attention and wider MLPs shift it: 17.7 in Llama-3.2-3B, 25.1 in Qwen2.5-7B.
    return r * shape.layers * shape.hidden * 22


def _is_target(config: RunConfig, shape: Shape) -> Callable[[str], bool]:
    """Whether a module, by its path, gets an adapter: as PEFT, by the end of its path and by its layer."""
    targets, layers = config.lora.target_modules, config.lora.layers_to_transform
    try:
        numbers = {str(number) for number in layer_numbers(layers, shape.layers)}
    except ValueError:  # there is no such layer, which is reported where the adapter is made
        numbers = set()

    def is_target(path: str) -> bool:
        named = targets == ("all-linear",) or any(path == t or path.endswith(f".{t}") for t in targets)
        return named and (not layers or not numbers.isdisjoint(path.split(".")))

    return is_target


@dataclass(frozen=True)
class Memory:
    """Bytes that training needs, by purpose."""

    weights: int
    training: int
    """Trained weights beyond those of the base, gradients, and the optimizer's moments."""
    activations: int
    """Activations of one batch of the longest rows, with its logits."""
    base: int = 600 * 2**20
    """The process itself, with torch and transformers imported."""

    @property
    def total(self) -> int:
        """The sum."""
        return self.weights + self.training + self.activations + self.base


def memory(config: RunConfig, shape: Shape, longest: int, device: str) -> Memory:
    """Peak memory of training on rows of at most `longest` tokens.

    Activations of a layer: 34 bytes per token and hidden unit in 16 bits (Korthikanti et al. 2022, "Reducing Activation
    Recomputation in Large Transformer Models", arXiv 2205.05198, without its term for attention scores, which fused
    attention does not store). With checkpointing, only each layer's input is kept, and one layer is recomputed at a time.
    """
    wide = 2 if device != "cpu" and config.model.dtype != "float32" else 4  # bytes per weight of the base
    bits = config.model.quantization_bits or shape.stored_bits
    body = shape.parameters - shape.embedding
    # PEFT copies to float32 what is not quantized, before an adapter is trained on the rest; Unsloth leaves it as it is.
    embedding = shape.embedding * (4 if bits and _engine(config.model) == "hf" else wide)
    # 7% for the scales of blocks of quantized weights.
    weights = int(body * (bits / 8 * 1.07 if bits else wide)) + embedding
    if config.train.full_finetuning:
        # Weights and gradients in float32; Adam keeps two moments, each of 4 bytes or, in 8 bits, of one.
        moments = 2 if "8bit" in config.train.optim else 8
        weights, training = shape.parameters * 4, shape.parameters * (4 + moments)
    else:
        training = adapter_parameters(config, shape) * 16  # weight, gradient and two moments, 4 bytes each
    rows = config.train.per_device_train_batch_size
    tokens = rows * longest
    layer = int(34 * shape.hidden * tokens * (wide / 2 if not config.train.autocast else 1))
    kept = layer * shape.layers
    if config.train.gradient_checkpointing:
        kept = wide * shape.hidden * tokens * shape.layers + layer
    # Three float32 tensors: the logits, their log-softmax, and their gradient. With a vocabulary of 128,256 (Llama 3), 2,048
    # tokens take 3.2 GB: often more than everything else.
    logits = 12 * shape.vocabulary * tokens
    return Memory(weights, training, kept + logits)


def _engine(model: ModelConfig) -> str:
    try:
        return registry.choose(model).engine
    except ModelError:  # it is not installed, which is reported where it is needed
        return model.engine


def checkpoint_bytes(config: RunConfig, shape: Shape) -> int:
    """Bytes of the kept checkpoints plus one: the oldest is deleted only once the new one is complete."""
    if config.train.full_finetuning:
        one = shape.parameters * (4 + (2 if "8bit" in config.train.optim else 8))
    else:
        one = adapter_parameters(config, shape) * 12
    return (config.train.save_total_limit + 1) * one


_BYTES_A_WEIGHT = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 1.07, "q6_k": 0.82, "q5_k_m": 0.72, "q4_k_m": 0.61}
"""Bytes per weight of a GGUF file; the K-quants mix types (Q4_K_M keeps some tensors in Q6_K)."""


def export_bytes(config: RunConfig, shape: Shape) -> int:
    """Bytes of the exported files."""
    files = sum(_BYTES_A_WEIGHT[quant] for quant in config.export.gguf) * shape.parameters
    wide = 4 if config.export.export_dtype == "float32" else 2
    return int(files + (wide * shape.parameters if config.export.merged else 0))


_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux says how much memory a container may use: control groups of version 2, and of version 1."""


def room(device: str) -> tuple[int, str]:
    """Bytes of memory of the GPU or this machine, and a phrase that says which.

    In a container with a lower limit than the machine's memory, the limit counts: a process that exceeds it is killed.
    """
    if device != "cpu":
        import torch

        return int(torch.cuda.mem_get_info()[1]), "of the GPU"
    import psutil

    limits = [int(text) for path in _LIMITS if path.is_file() and (text := path.read_text().strip()).isdecimal()]
    return min([psutil.virtual_memory().total, *limits]), "here"


def describe_memory(needed: Memory, total: int, location: str) -> str:
    """The memory that training needs, in words.

    Args:
        needed: the estimate.
        total: bytes of memory, from `room`.
        location: of that memory, from `room`.
    """
    return (
        f"training takes about {size(needed.total)} of {size(total)} {location} ({size(needed.weights)} for weights, "
        f"{size(needed.training)} for gradients and optimizer, {size(needed.activations)} for a batch of the longest rows, "
        f"{size(needed.base)} for the process)"
    )


SMALLER = "use a smaller model, --load-in-4bit, --gradient-checkpointing, or --per-device-train-batch-size 1"
"""What to do if memory does not suffice."""
