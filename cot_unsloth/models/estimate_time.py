"""Estimates of the time that a run takes on this machine, from the speed of a matrix product that is measured here.

They are rough, and `doctor`, `check` and `train` say so; bench/estimates.py compares them with real runs.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from cot_unsloth.config import RunConfig
from cot_unsloth.core.progress import duration
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
        clock: returns seconds; a CPU clock if the measurement must not depend on other programs.
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
    """The amount of work in a run."""

    tokens: int
    """Tokens trained on, over all epochs."""
    steps: int
    """Optimizer steps."""
    problems: int = 0
    """Problems answered by each arm."""
    written: int = 0
    """Tokens of an answer."""
    assumed: str = ""
    """A description of the rows, if they are assumed because no data was read."""


ASSUMED_TOKENS = 300
"""Tokens per row if no data was read: the longest tenth of GSM8K's rows."""
_ASSUMED_ROWS = 1000


def assumed_work(config: RunConfig) -> Work:
    """The work of a run whose data was not read: rows as far as the settings specify them, else 1,000 rows of 300 tokens.

    >>> assumed_work(RunConfig().replaced(dataset="mine.jsonl", num_train_epochs=2)).assumed
    '1,000 rows of 300 tokens, 2 epochs'
    """
    train = config.train
    tokens = min(ASSUMED_TOKENS, config.data.max_seq_length)
    if train.max_steps > 0:
        steps, rows = train.max_steps, train.max_steps * train.rows_per_step
        words = f"{rows:,} rows of {tokens} tokens"
    else:
        rows = _assumed_rows(config)
        steps = math.ceil(math.ceil(rows / train.rows_per_step) * train.num_train_epochs)
        epochs = train.num_train_epochs
        words = f"{rows:,} rows of {tokens} tokens" + (f", {epochs:g} epochs" if epochs != 1 else "")
    return Work(steps * train.rows_per_step * tokens, steps, assumed=words)


def _assumed_rows(config: RunConfig) -> int:
    data = config.data
    generated = data.world_samples if data.dataset.startswith(("world:", "gym:")) else _ASSUMED_ROWS
    return min(data.max_train_samples or generated, generated)


def seconds_here(config: RunConfig, shape: Shape, work: Work, device: str) -> Seconds:
    """Seconds that the work takes here, from the speed of a matrix product that is measured now."""
    return seconds(config, shape, work, flops=_speed_of_training(config, device), device=device)


def _speed_of_training(config: RunConfig, device: str) -> float:
    from cot_unsloth.models.devices import training_dtype  # imports torch

    return speed(device, str(training_dtype(config, device)).removeprefix("torch."))


def seconds(config: RunConfig, shape: Shape, work: Work, *, flops: float, device: str) -> Seconds:
    """Seconds of training and scoring.

    Training takes 6 operations per weight and token: 2 forward, 2 for the gradient of the activations, 2 for the gradient of
    the weights (Kaplan et al. 2020, arXiv 2001.08361, section 2.1). An adapter saves the last 2; checkpointing repeats the
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
    answering = _answering(config, shape, work.problems, work.written, flops=flops, device=device)
    return Seconds(training, arms * answering)


def _answering(config: RunConfig, shape: Shape, answers: int, tokens: int, *, flops: float, device: str) -> float:
    """Seconds to generate answers of this many tokens each, in batches."""
    together = min(answers, config.evaluate.eval_batch_size or MOST_AT_ONCE) or 1
    width = (config.model.quantization_bits or (16 if device != "cpu" else 32)) / 8
    # Generating is bound by memory: each step of a batch reads every weight once, whatever the batch size.
    token = shape.layers * _TOKEN_OVERHEAD[device] + shape.parameters * width / _BANDWIDTH[device]
    compute = 2 * shape.parameters * together / (flops * _EFFICIENCY[device])
    return -(-answers // together) * tokens * (token + compute)


def attempts(config: RunConfig, problems: int | None = None) -> int:
    """Attempts that `rft` draws in one round, or `grpo` in total.

    Args:
        config: the settings.
        problems: training problems; None takes those of `assumed_work`.
    """
    problems = _assumed_rows(config) if problems is None else problems
    if config.train.method == "rft":
        return min(problems, config.sample.sample_problems or problems) * config.sample.samples_per_problem
    steps = config.train.max_steps
    if steps < 1:
        steps = math.ceil(math.ceil(problems / config.examples_per_step) * config.train.num_train_epochs)
    return steps * config.grpo.generation_batch_size


def describe_attempts(config: RunConfig, shape: Shape, drawn: int, device: str) -> tuple[float, str]:
    """Seconds that drawing attempts takes here if they are short, and a sentence with this estimate."""
    flops = _speed_of_training(config, device)
    seconds = _answering(config, shape, drawn, _SHORT_ATTEMPT, flops=flops, device=device)
    of = " of a round" if config.train.method == "rft" else ""
    line = (
        f"drawing the {drawn:,} attempts{of} takes about {duration(seconds)} here if they have {_SHORT_ATTEMPT} tokens each "
        f"(within a factor of {WITHIN[device]}), and training on them comes on top; their length is not known beforehand"
    )
    return seconds, line


_SHORT_ATTEMPT = 100
"""Tokens: about half of what Llama-3.2-3B-Instruct writes on a problem of GSM8K."""


def describe_time(config: RunConfig, took: Seconds, work: Work, device: str) -> str:
    """A sentence on the time that a run takes on this machine, and what the estimate leaves out."""
    rows = f" on {work.assumed}" if work.assumed else ""
    scoring = f", scoring {duration(took.scoring)}" if work.problems else ""
    bits = config.model.quantization_bits
    left_out = f"; dequantizing the {bits}-bit weights at every use comes on top" if bits and device == "cpu" else ""
    return f"training{rows} takes about {duration(took.training)} here{scoring} (within a factor of {WITHIN[device]}{left_out})"


WITHIN = {"cpu": "about two", "cuda": "about three"}
"""Largest factor between real and estimated time: bench/results/estimates.json on a CPU, bench/results/gpu on one H100."""
LONG = 24 * 3600
"""Seconds from which a run is reported as long."""


FASTER = "use a smaller model, fewer rows (--max-train-samples), or a GPU"
"""What to do if training takes too long."""
