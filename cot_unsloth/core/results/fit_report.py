"""`fit.json`: what training did."""

from __future__ import annotations

from cot_unsloth.core.results.record import Record, Value


class EngineFacts(Value):
    """How an engine computed; an engine may add facts of its own."""

    engine: str = ""
    device: str = ""
    dtype: str | None = None
    """Data type of the computation, such as "bfloat16"."""
    weight_bits: int = 16
    """Bits of the base's weights in memory during training: 4, 8, 16 or 32."""
    trainable_parameters: int | None = None
    gpu: str | None = None
    peak_gpu_bytes: int | None = None
    """Only on a GPU, like `gpu`."""
    threads: int | None = None
    """Only on a CPU."""
    fused: dict[str, tuple[int, int]] | None = None
    """For each part of a layer, the number of layers in which it runs fused, and of all layers; only unsloth."""
    unfused_because: tuple[str, ...] = ()
    packed: bool = False
    """Whether several rows shared one sequence."""
    autocast: str | None = None
    """Type of automatic mixed precision, if it was on."""


class FitReport(Record):
    """What training did."""

    steps: int
    """Total optimizer steps, including those before a resume."""
    seconds: float
    """Wall time; of a resumed run, that of the steps before the checkpoint too."""
    loss_first: float | None
    loss_last: float | None
    """Mean loss (nats per supervised token) over the first and the last logging interval; None where there was none."""
    rows: int
    tokens: int
    supervised: int
    """This and the fields above count the data, each row once: rows, their tokens, and the tokens that carry loss. With grpo:
    problems, the tokens of all prompts and attempts, and those of the attempts."""
    extra: EngineFacts = EngineFacts()
