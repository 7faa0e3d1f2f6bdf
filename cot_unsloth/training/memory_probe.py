"""Checks before the first training step whether the longest batch fits into a GPU's memory.

Rows come in random order, so the longest ones may come only after hours. Once everything for training is in memory,
`ProbeMemory` computes loss and gradients of the longest rows and discards them: weights, random state and metrics are unchanged.
Adam allocates its moments only in the first step, so the probe reserves as many bytes meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow.compute as pc
import torch
from transformers import TrainerCallback

from cot_unsloth.core.errors import EngineError
from cot_unsloth.models.devices import free_memory
from cot_unsloth.models.protocols import Trainable

Row = dict[str, list[int]]


def is_needed(engine: Trainable) -> bool:
    """Whether memory may run out at once: on a GPU. On a CPU the system swaps, and a step takes seconds."""
    return engine.device == "cuda"


class ProbeMemory(TrainerCallback):
    """Stops training at its start if the batch of the longest rows does not fit.

    A batch consists of these rows in the worst case. A padded batch needs as much memory if only one of them is in it.
    """

    def __init__(self, trainer: Any, hint: str) -> None:
        """A probe of TRL's SFTTrainer; `hint` is what a user can change if not even one row fits."""
        self.trainer, self.hint = trainer, hint

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Try the longest batch, then halves of it.

        Raises:
            EngineError: it does not fit; the hint gives a size that does.
        """
        size = self.trainer.args.per_device_train_batch_size
        rows = longest_rows(self.trainer.train_dataset, size)
        fitting = next((n for n in _halves(len(rows)) if self._fits(rows[:n])), 0)
        if fitting < len(rows):
            raise self._does_not_fit(rows, fitting)

    def _fits(self, rows: Sequence[Row]) -> bool:
        trainer, devices = self.trainer, range(torch.cuda.device_count())
        tokens, passes = trainer._total_train_tokens, trainer.args.gradient_accumulation_steps
        trainer.current_gradient_accumulation_steps = passes  # set with each step's batches otherwise
        try:
            with torch.random.fork_rng(devices):  # dropout and NEFTune draw
                moments = torch.empty(self._bytes_of_moments(), dtype=torch.uint8, device=trainer.model.device)
                # The second pass has its activations beside the gradients of the first.
                for _ in range(min(2, passes)):
                    trainer.training_step(trainer.model_wrapped, trainer.data_collator(rows))
            return True
        except torch.OutOfMemoryError:
            return False
        finally:
            moments = None  # noqa: F841  (frees it)
            trainer.model_wrapped.zero_grad(set_to_none=True)
            trainer.losses.clear()
            trainer._metrics["train"].clear()
            trainer._total_train_tokens = tokens
            free_memory()

    def _bytes_of_moments(self) -> int:
        """What Adam will take in its first step: 8 bytes for each trained weight, 2 in 8 bits, none on the GPU if paged."""
        optimizer, name = self.trainer.optimizer, self.trainer.args.optim
        if optimizer.state or "paged" in name:  # a checkpoint has brought them
            return 0
        trained = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
        return trained * (2 if "8bit" in name else 8)

    def _does_not_fit(self, rows: Sequence[Row], fitting: int) -> EngineError:
        tokens = len(rows[0]["input_ids"])
        args = self.trainer.args
        if not fitting:
            return EngineError(f"the longest row ({tokens} tokens) does not fit into memory", hint=self.hint)
        accumulated = -(-len(rows) * args.gradient_accumulation_steps // fitting)
        return EngineError(
            f"the {len(rows)} longest rows (up to {tokens} tokens) do not fit into memory together; {fitting} of them do",
            hint=f"--per-device-train-batch-size {fitting} --gradient-accumulation-steps {accumulated}; or {self.hint}",
        )


def longest_rows(dataset: Any, count: int) -> list[Row]:
    """The longest rows of a trainer's data set, or its longest packs; the longest first."""
    lengths = pc.list_value_length(dataset.with_format("arrow")[:]["input_ids"])
    order = pc.array_sort_indices(lengths, order="descending")
    return [dataset[i] for i in order[:count].to_pylist()]


def _halves(size: int) -> Iterator[int]:
    """A number, half of it, and so on down to 1.

    >>> list(_halves(12))
    [12, 6, 3, 1]
    """
    while size:
        yield size
        size //= 2
