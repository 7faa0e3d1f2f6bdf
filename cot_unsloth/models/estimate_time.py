"""Estimates of the time that a run takes on this machine, from the speed of a matrix product that is measured here.

They are rough, which `doctor`, `check` and `train` say where they show them; bench/estimates.py compares them with real runs.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from cot_unsloth.config import RunConfig
from cot_unsloth.models.estimate import Shape
from cot_unsloth.models.generation import MOST_AT_ONCE


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


@functools.cache
def speed(device: str, dtype: str, clock: Callable[[], float] = time.perf_counter) -> float:
    """Floating-point operations per second of a matrix product, measured on this machine in a fraction of a second.

    Args:
        device: cpu or cuda.
        dtype: the type that training computes in, as torch calls it.
        clock: seconds; of the CPU where a measurement must not depend on what else the machine does.
    """
    import torch

    width = 1024 if device == "cpu" else 4096
    left, right = (torch.rand(width, width, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        began = clock()
        product = left @ right
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, clock() - began)
        del product
    return 2 * width**3 / best


@dataclass(frozen=True)
class Work:
    """What a run computes."""

    tokens: int
    """Trained on, in all epochs."""
    steps: int
    """Of the optimizer."""
    problems: int = 0
    """Answered by each arm."""
    written: int = 0
    """Tokens of an answer."""
    assumed: str = ""
    """The rows in words, where they are assumed because no data was read."""


ASSUMED_TOKENS = 300
"""Of a row where no data was read: the longest tenth of GSM8K's."""
_ASSUMED_ROWS = 1000


def assumed_work(config: RunConfig) -> Work:
    """The training of a run whose data was not read: its rows as far as the settings say, else 1,000 of 300 tokens.

    >>> assumed_work(RunConfig().replaced(dataset="mine.jsonl", num_train_epochs=2)).assumed
    '1,000 rows of 300 tokens, 2 epochs'
    """
    train, data = config.train, config.data
    tokens = min(ASSUMED_TOKENS, data.max_seq_length)
    if train.max_steps > 0:
        steps, rows = train.max_steps, train.max_steps * train.rows_per_step
        words = f"{rows:,} rows of {tokens} tokens"
    else:
        generated = data.world_samples if data.dataset.startswith(("world:", "gym:")) else _ASSUMED_ROWS
        rows = min(data.max_train_samples or generated, generated)
        steps = math.ceil(math.ceil(rows / train.rows_per_step) * train.num_train_epochs)
        epochs = train.num_train_epochs
        words = f"{rows:,} rows of {tokens} tokens" + (f", {epochs:g} epochs" if epochs != 1 else "")
    return Work(steps * train.rows_per_step * tokens, steps, assumed=words)


def seconds_here(config: RunConfig, shape: Shape, work: Work, device: str) -> Seconds:
    """Seconds that the work takes here, from the speed of a matrix product that is measured now."""
    from cot_unsloth.models.devices import training_dtype  # imports torch

    flops = speed(device, str(training_dtype(config, device)).removeprefix("torch."))
    return seconds(config, shape, work, flops=flops, device=device)


def seconds(config: RunConfig, shape: Shape, work: Work, *, flops: float, device: str) -> Seconds:
    """Seconds of training and scoring.

    Training takes 6 operations per weight and token: 2 forward, 2 for the gradient of the activations, 2 for that of the
    weights (Kaplan et al. 2020, arXiv 2001.08361, section 2.1). An adapter saves the last 2; checkpointing repeats the
    first 2.

    Args:
        config: the settings.
        shape: of the model.
        work: of the run.
        flops: operations per second, from `speed`.
        device: cpu or cuda.
    """
    train = config.train
    operations = (6 if train.full_finetuning else 4) + (2 if train.gradient_checkpointing else 0)
    products = operations * shape.parameters * work.tokens / (flops * _EFFICIENCY[device])
    passes = work.steps * train.gradient_accumulation_steps
    elementwise = work.tokens * shape.layers * shape.hidden * _ELEMENTWISE[device]
    training = products + elementwise + passes * shape.layers * _STEP_OVERHEAD[device]
    arms = len(config.evaluate.arms) + bool(config.export.gguf)
    together = min(work.problems, config.evaluate.eval_batch_size or MOST_AT_ONCE) or 1
    batches = -(-work.problems // together) * arms
    width = (config.model.quantization_bits or (16 if device != "cpu" else 32)) / 8
    # Generating is bound by memory: each step of a batch reads every weight once, whatever the batch size.
    token = shape.layers * _TOKEN_OVERHEAD[device] + shape.parameters * width / _BANDWIDTH[device]
    compute = 2 * shape.parameters * together / (flops * _EFFICIENCY[device])
    return Seconds(training, batches * work.written * (token + compute) if work.problems else 0.0)


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


def describe_time(config: RunConfig, took: Seconds, work: Work, device: str) -> str:
    """The time that a run takes on this machine, in words, with what it leaves out."""
    rows = f" on {work.assumed}" if work.assumed else ""
    scoring = f", scoring {duration(took.scoring)}" if work.problems else ""
    bits = config.model.quantization_bits
    left_out = f"; dequantizing the {bits}-bit weights at every use comes on top" if bits and device == "cpu" else ""
    return f"training{rows} takes about {duration(took.training)} here{scoring} (within a factor of {WITHIN[device]}{left_out})"


def not_timed(config: RunConfig) -> str | None:
    """Why the time of a run cannot be estimated, or None if it can."""
    if config.train.method == "sft":
        return None
    return (
        f"not estimated: {config.train.method} trains on the model's own answers, whose length is not known beforehand"
    )


WITHIN = {"cpu": "about two", "cuda": "about three"}
"""How far real runs are from the estimated time: bench/results/estimates.json on a CPU, bench/results/gpu on one H100."""
LONG = 24 * 3600
"""Seconds from which a run is reported as long."""


FASTER = "take a smaller model, fewer rows (--max-train-samples), or a GPU"
"""What to do if training takes too long."""
