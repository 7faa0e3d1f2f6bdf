"""What a run will need of a machine, before any weight is loaded: memory, time and disk.

Owns the shape of a model (from its config.json, built without memory; from its name where it is not here) and the
arithmetic. Every figure is an estimate, good to a factor of about two, and says so where it is shown. `doctor` and
`check` use it.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cot_unsloth.config import ModelConfig, RunConfig
from cot_unsloth.core.progress import size
from cot_unsloth.prompts.tokenizer import model_path


@dataclass(frozen=True)
class Shape:
    """The size of a model."""

    parameters: int
    """All weights, tied ones counted once."""
    embedding: int
    """Of these, in embeddings and an untied output layer: they stay in 16 or 32 bits when the rest is quantized."""
    hidden: int
    layers: int
    vocabulary: int
    linear: tuple[str, ...]
    """Names of the linear modules of a layer, such as q_proj; empty where only its name is known."""
    linear_sizes: tuple[tuple[str, int, int], ...] = ()
    """(name, inputs, outputs) of every linear module that an adapter may be put on."""
    positions: int | None = None
    """Tokens that its positions were made for."""
    stored_bits: int | None = None
    """Bits that its weights are stored in, where fewer than 16."""
    guessed: bool = False
    """Whether only the name says how large it is."""


_SIZE_IN_NAME = re.compile(r"(?<![A-Za-z\d.])(\d+(?:\.\d+)?)\s*([bBmM])(?![A-Za-z])")


def shape_of(model: ModelConfig) -> Shape | None:
    """The shape of a model in a folder; of one that is not here, as far as its name tells; None where it tells nothing.

    Raises:
        ModelError: its config.json asks for code of its own.
    """
    name = model_path(model.model_name_or_path)
    if Path(name).is_dir() and (Path(name) / "config.json").is_file():
        return _built(name)
    return shape_in_name(model.model_name_or_path)


def shape_in_name(name: str) -> Shape | None:
    """What a name such as `Llama-3.2-3B-Instruct` tells.

    >>> shape_in_name("meta-llama/Llama-3.2-3B-Instruct").parameters, shape_in_name("mine")
    (3000000000, None)
    """
    found = _SIZE_IN_NAME.findall(name.rpartition("/")[2].replace("_", "-"))
    if not found:
        return None
    count, unit = found[-1]
    parameters = int(float(count) * (10**9 if unit in "bB" else 10**6))
    # Between the shapes of Llama-3.2, Qwen2.5 and SmolLM2: hidden size and depth grow with the cube root.
    scale = (parameters / 3e9) ** (1 / 3)
    hidden, layers = int(3072 * scale), max(1, int(28 * scale))
    return Shape(parameters, min(parameters // 3, 128_000 * hidden), hidden, layers, 128_000, (), guessed=True)


def _built(folder: str) -> Shape | None:
    """The shape of a model that is built from its config.json on torch's meta device, which takes no memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        model.tie_weights()
    except Exception:  # what cannot be built here is named when it is loaded
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
    """Weights of the adapter that the settings ask for."""
    r, wanted = config.lora.lora_r, config.lora.target_modules
    if shape.linear_sizes:
        chosen = [ins + outs for name, ins, outs in shape.linear_sizes if wanted == ("all-linear",) or name in wanted]
        return r * sum(chosen)
    # Seven projections a layer, of which three have about 3.5 times the width on one side.
    return r * shape.layers * shape.hidden * 22


@dataclass(frozen=True)
class Memory:
    """Bytes a run takes, by what they are for."""

    weights: int
    training: int
    """Adapter or weights in training, their gradients and the optimizer's moments."""
    activations: int
    """Of one batch of the longest rows, its logits among them."""
    base: int = 600 * 2**20
    """Of the process itself: torch and transformers, loaded."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.training + self.activations + self.base


def memory(config: RunConfig, shape: Shape, longest: int, device: str) -> Memory:
    """What training takes at most, for rows of at most `longest` tokens.

    Activations of a layer after V. Korthikanti and others (2022, "Reducing Activation Recomputation"): 34 bytes a token
    and hidden unit in 16 bits with attention that does not keep its scores; with checkpointing, its input alone and one
    layer whole. Logits are held three times in 32 bits (themselves, their log-softmax, their gradient).
    """
    gpu = device != "cpu"
    wide = 2 if gpu and config.model.dtype != "float32" else 4
    bits = config.model.quantization_bits or shape.stored_bits
    body = shape.parameters - shape.embedding
    weights = int(body * (bits / 8 * 1.07 if bits else wide)) + shape.embedding * wide
    if config.train.full_finetuning:
        moments = 2 if "8bit" in config.train.optim else 8
        weights, training = shape.parameters * 4, shape.parameters * (4 + moments)
    else:
        training = adapter_parameters(config, shape) * 16
    rows = config.train.per_device_train_batch_size
    tokens = rows * longest
    layer = int(34 * shape.hidden * tokens * (wide / 2 if not config.train.autocast else 1))
    kept = layer * shape.layers
    if config.train.gradient_checkpointing:
        kept = wide * shape.hidden * tokens * shape.layers + layer
    logits = 12 * shape.vocabulary * tokens
    return Memory(weights, training, kept + logits)


def checkpoint_bytes(config: RunConfig, shape: Shape) -> int:
    """Bytes of the checkpoints that are kept, and of one that is being written."""
    if config.train.full_finetuning:
        one = shape.parameters * (4 + (2 if "8bit" in config.train.optim else 8))
    else:
        one = adapter_parameters(config, shape) * 12
    return (config.train.save_total_limit + 1) * one


_BYTES_A_WEIGHT = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 1.07, "q6_k": 0.82, "q5_k_m": 0.72, "q4_k_m": 0.61}
"""Of an exported file: bits a weight of each type and its mix of types, an eighth of that."""


def export_bytes(config: RunConfig, shape: Shape) -> int:
    """Bytes of what is exported."""
    files = sum(_BYTES_A_WEIGHT[quant] for quant in config.export.gguf) * shape.parameters
    wide = 4 if config.export.export_dtype == "float32" else 2
    return int(files + (wide * shape.parameters if config.export.merged else 0))


@dataclass(frozen=True)
class Seconds:
    """What a run takes, by what it does; a guess within a factor of about two."""

    training: float
    scoring: float

    @property
    def total(self) -> float:
        """Both."""
        return self.training + self.scoring


# On two cores of an AMD EPYC (AVX512-BF16) with torch 2.13.0, whose product of 1024 x 1024 in bfloat16 reaches 403 GFLOP/s
# when nothing else runs: the demo's fit (2.3M weights, 1.13M tokens) took 168 to 173 s at its fastest, and comes out as 174 s
# here; a Llama of 34M (8 layers of 512, batches of 8 rows of 204 tokens) took 1.0 ms of both cores a token beside other work,
# and comes out as 1.3 ms. An answer of 100 tokens of 16 problems: 0.6 s and 3.5 s, estimated 0.6 s and 3.1 s.
_EFFICIENCY = {"cpu": 0.35, "cuda": 0.35}
"""Share of the speed of a large matrix product that training reaches."""
_ELEMENTWISE = {"cpu": 8e-8, "cuda": 2e-10}
"""Seconds a token, layer and hidden unit of what is no matrix product: norms, activations, rotations, casts, LoRA's sums."""
_STEP_OVERHEAD = {"cpu": 0.004, "cuda": 0.002}
"""Seconds a layer and step, forward and backward, that do not depend on its size."""
_TOKEN_OVERHEAD = {"cpu": 0.0008, "cuda": 0.0007}
"""Seconds a layer and generated token of a batch that do not depend on its size."""
_BANDWIDTH = {"cpu": 8e9, "cuda": 6e11}
"""Bytes a second at which weights are read when one token is generated: of two laptop cores, and of a data-centre GPU."""


def room(device: str) -> tuple[int, str]:
    """Bytes of memory that training can have at most, and where they are, for people."""
    if device != "cpu":
        import torch

        return int(torch.cuda.mem_get_info()[1]), "of the GPU"
    import psutil

    return int(psutil.virtual_memory().total), "here"


def speed(device: str, dtype: str) -> float:
    """Floating-point operations a second of a matrix product on this machine, measured in a fraction of a second.

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
    """What training and scoring take.

    Training takes 4 operations a weight and token for an adapter (forward, and the gradient of the activations), 6 for
    every weight, and 2 more where activations are computed again (J. Kaplan and others, 2020, section 2.1).

    Args:
        config: the settings.
        shape: the model's.
        tokens: that are trained on, all epochs together.
        steps: optimizer steps.
        problems: that every arm answers.
        written: tokens of an answer.
        flops: operations a second, as `speed` gives.
        device: cpu or cuda.
    """
    train = config.train
    each = (6 if train.full_finetuning else 4) + (2 if train.gradient_checkpointing else 0)
    work = each * shape.parameters * tokens / (flops * _EFFICIENCY[device])
    passes = steps * train.gradient_accumulation_steps
    elementwise = tokens * shape.layers * shape.hidden * _ELEMENTWISE[device]
    training = work + elementwise + passes * shape.layers * _STEP_OVERHEAD[device]
    arms = len(config.evaluate.arms) + bool(config.export.gguf)
    batches = -(-problems // config.evaluate.eval_batch_size) * arms
    width = (config.model.quantization_bits or (16 if device != "cpu" else 32)) / 8
    token = shape.layers * _TOKEN_OVERHEAD[device] + shape.parameters * width / _BANDWIDTH[device]
    compute = 2 * shape.parameters * config.evaluate.eval_batch_size / (flops * _EFFICIENCY[device])
    return Seconds(training, batches * written * (token + compute) if problems else 0.0)


def duration(seconds: float) -> str:
    """Time, for people.

    >>> duration(40), duration(400), duration(40_000), duration(4_000_000)
    ('40 s', '7 min', '11 h', '46 days')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"


def describe_memory(needed: Memory, total: int, location: str) -> str:
    """What training needs of a machine's memory, in words.

    Args:
        needed: the estimate.
        total: bytes of memory, as `room` gives them.
        location: where they are, as `room` says it.
    """
    return (
        f"training takes about {size(needed.total)} of {size(total)} {location} ({size(needed.weights)} for weights, "
        f"{size(needed.training)} for gradients and optimizer, {size(needed.activations)} for a batch of the longest rows, "
        f"{size(needed.base)} for the process)"
    )


def describe_training_time(seconds: float, rows: str = "") -> str:
    """How long training takes on this machine, in words; `rows` says on what, if no data set is known."""
    return f"training{rows} takes about {duration(seconds)} here"


SMALLER = "take a smaller model, --load-in-4bit, --gradient-checkpointing, or --per-device-train-batch-size 1"
"""What to do if memory does not suffice."""
FASTER = "take a smaller model, fewer rows (--max-train-samples), or a GPU"
"""What to do if training takes too long."""
