"""Estimates of the memory, time and disk that a run needs, before any weight is loaded.

The shape of a model comes from its config.json, or from its name if it is not on this machine. Estimates are within a factor
of about two, which `doctor` and `check` say where they show them.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cot_unsloth.config import ModelConfig, RunConfig
from cot_unsloth.core.progress import size
from cot_unsloth.models.generation import MOST_AT_ONCE
from cot_unsloth.prompts.tokenizer import model_path


@dataclass(frozen=True)
class Shape:
    """The size of a model."""

    parameters: int
    """All weights, tied ones counted once."""
    embedding: int
    """Of these, in the embedding and an untied output layer: bitsandbytes quantizes neither, so they stay in 16 or 32 bits."""
    hidden: int
    layers: int
    vocabulary: int
    linear: tuple[str, ...]
    """Names of the linear modules of a layer, such as q_proj; empty if only the model's name is known."""
    linear_sizes: tuple[tuple[str, int, int], ...] = ()
    """(name, inputs, outputs) of every linear module that can take an adapter."""
    positions: int | None = None
    """Its context length in tokens (`max_position_embeddings`)."""
    stored_bits: int | None = None
    """Bits of its stored weights, if fewer than 16."""
    guessed: bool = False
    """Whether the shape is a guess from the model's name."""


_SIZE_IN_NAME = re.compile(r"(?<![A-Za-z\d.])(\d+(?:\.\d+)?)\s*([bBmM])(?![A-Za-z])")


def shape_of(model: ModelConfig) -> Shape | None:
    """The shape of a model in a folder, or a guess from the name of one that is not here; None if the name has no size.

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
        (path.rpartition(".")[2], module.in_features, module.out_features)
        for path, module in model.named_modules()
        if hasattr(module, "in_features") and not path.endswith("lm_head")
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
        linear=tuple(dict.fromkeys(name for name, _, _ in linear)),
        linear_sizes=tuple(linear),
        positions=getattr(text, "max_position_embeddings", None),
        stored_bits=bits,
    )


def _ends(model: Any) -> tuple[Any, Any]:
    return model.get_input_embeddings(), model.get_output_embeddings()


def adapter_parameters(config: RunConfig, shape: Shape) -> int:
    """Number of trained weights of the adapter.

    For each target module r * (inputs + outputs) with LoRA (arXiv 2106.09685), r + outputs with VeRA (arXiv 2310.11454).
    """
    r, targets = config.lora.lora_r, config.lora.target_modules
    if shape.linear_sizes:
        is_all = targets == ("all-linear",)
        sizes = [(ins, outs) for name, ins, outs in shape.linear_sizes if is_all or name in targets]
        if config.lora.use_vera:
            return sum(r + outs for _, outs in sizes)
        return r * sum(ins + outs for ins, outs in sizes)
    # Inputs + outputs of a layer in hidden sizes: 4 * 2 for q, k, v, o and 3 * 4.5 for gate, up, down, about 22. Grouped-query
    # attention and wider MLPs shift it: 17.7 in Llama-3.2-3B, 25.1 in Qwen2.5-7B.
    return r * shape.layers * shape.hidden * 22


@dataclass(frozen=True)
class Memory:
    """Bytes that training needs, by purpose."""

    weights: int
    training: int
    """Trained weights beyond those of the base, gradients, and the optimizer's moments."""
    activations: int
    """Of one batch of the longest rows, with its logits."""
    base: int = 600 * 2**20
    """Of the process: torch and transformers, imported."""

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
    # 7% for the scales of blocks of quantized weights.
    weights = int(body * (bits / 8 * 1.07 if bits else wide)) + shape.embedding * wide
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


def checkpoint_bytes(config: RunConfig, shape: Shape) -> int:
    """Bytes of the checkpoints that are kept, and of one more: the oldest is only deleted when the new one is complete."""
    if config.train.full_finetuning:
        one = shape.parameters * (4 + (2 if "8bit" in config.train.optim else 8))
    else:
        one = adapter_parameters(config, shape) * 12
    return (config.train.save_total_limit + 1) * one


_BYTES_A_WEIGHT = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 1.07, "q6_k": 0.82, "q5_k_m": 0.72, "q4_k_m": 0.61}
"""Bytes per weight of a GGUF file; the K-quants mix types (Q4_K_M keeps some tensors in Q6_K)."""


def export_bytes(config: RunConfig, shape: Shape) -> int:
    """Bytes of what is exported."""
    files = sum(_BYTES_A_WEIGHT[quant] for quant in config.export.gguf) * shape.parameters
    wide = 4 if config.export.export_dtype == "float32" else 2
    return int(files + (wide * shape.parameters if config.export.merged else 0))


@dataclass(frozen=True)
class Seconds:
    """Estimated seconds of a run, by stage."""

    training: float
    scoring: float

    @property
    def total(self) -> float:
        """The sum."""
        return self.training + self.scoring


# On two cores of an AMD EPYC (AVX512-BF16) with torch 2.13.0, whose product of 1024 x 1024 in bfloat16 reaches 403 GFLOP/s
# when nothing else runs: training the demo (2.3M weights, 1.13M tokens) took 114 s at its fastest, estimated 120 s; a Llama
# of 34M (8 layers of 512, batches of 8 rows of 204 tokens) took 1.0 ms of both cores per token beside other work, with
# padded batches, estimated 1.1 ms. Answers of 100 tokens to 16 problems: 0.6 s and 3.5 s, estimated 0.6 s and 3.1 s.
_EFFICIENCY = {"cpu": 0.35, "cuda": 0.35}
"""Share of the speed of a large matrix product that training reaches."""
_ELEMENTWISE = {"cpu": 3e-8, "cuda": 2e-10}
"""Seconds per token, layer and hidden unit of all but matrix products: norms, activations, RoPE, casts, sums of LoRA."""
_STEP_OVERHEAD = {"cpu": 0.004, "cuda": 0.002}
"""Seconds per layer of a forward and backward pass that do not depend on its size."""
_TOKEN_OVERHEAD = {"cpu": 0.0008, "cuda": 0.0007}
"""Seconds per layer and generated token of a batch that do not depend on the layer's size."""
_BANDWIDTH = {"cpu": 8e9, "cuda": 6e11}
"""Bytes of weights read per second when a token is generated, on two laptop cores and on a data-centre GPU."""


def room(device: str) -> tuple[int, str]:
    """Bytes of memory of the GPU or of this machine, and which of the two, in words."""
    if device != "cpu":
        import torch

        return int(torch.cuda.mem_get_info()[1]), "of the GPU"
    import psutil

    return int(psutil.virtual_memory().total), "here"


def speed(device: str, dtype: str) -> float:
    """Floating-point operations per second of a matrix product, measured on this machine in a fraction of a second.

    Args:
        device: cpu or cuda.
        dtype: the type that training computes in, as torch calls it.
    """
    import torch

    width = 1024 if device == "cpu" else 4096
    left, right = (torch.rand(width, width, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        began = time.perf_counter()
        product = left @ right
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
        del product
    return 2 * width**3 / best


def seconds(
    config: RunConfig, shape: Shape, *, tokens: int, steps: int, problems: int, written: int, flops: float, device: str
) -> Seconds:
    """Seconds of training and scoring.

    Training takes 6 operations per weight and token: 2 forward, 2 for the gradient of the activations, 2 for that of the
    weights (Kaplan et al. 2020, arXiv 2001.08361, section 2.1). An adapter saves the last 2; checkpointing repeats the
    first 2.

    Args:
        config: the settings.
        shape: of the model.
        tokens: trained on, in all epochs.
        steps: optimizer steps.
        problems: answered by each arm.
        written: tokens per answer.
        flops: operations per second, from `speed`.
        device: cpu or cuda.
    """
    train = config.train
    operations = (6 if train.full_finetuning else 4) + (2 if train.gradient_checkpointing else 0)
    work = operations * shape.parameters * tokens / (flops * _EFFICIENCY[device])
    passes = steps * train.gradient_accumulation_steps
    elementwise = tokens * shape.layers * shape.hidden * _ELEMENTWISE[device]
    training = work + elementwise + passes * shape.layers * _STEP_OVERHEAD[device]
    arms = len(config.evaluate.arms) + bool(config.export.gguf)
    together = min(problems, config.evaluate.eval_batch_size or MOST_AT_ONCE) or 1
    batches = -(-problems // together) * arms
    width = (config.model.quantization_bits or (16 if device != "cpu" else 32)) / 8
    # Generating is bound by memory: each step of a batch reads every weight once, whatever the batch size.
    token = shape.layers * _TOKEN_OVERHEAD[device] + shape.parameters * width / _BANDWIDTH[device]
    compute = 2 * shape.parameters * together / (flops * _EFFICIENCY[device])
    return Seconds(training, batches * written * (token + compute) if problems else 0.0)


def duration(seconds: float) -> str:
    """A time in words.

    >>> duration(40), duration(400), duration(40_000), duration(4_000_000)
    ('40 s', '7 min', '11 h', '46 days')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"


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


def describe_training_time(seconds: float, rows: str = "") -> str:
    """The time that training takes on this machine, in words; `rows` says on which rows if no data set is known."""
    return f"training{rows} takes about {duration(seconds)} here"


SMALLER = "take a smaller model, --load-in-4bit, --gradient-checkpointing, or --per-device-train-batch-size 1"
"""What to do if memory does not suffice."""
FASTER = "take a smaller model, fewer rows (--max-train-samples), or a GPU"
"""What to do if training takes too long."""
