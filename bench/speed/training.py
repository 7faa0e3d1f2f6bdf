"""What all contenders of a training measurement share: rows, hyperparameters, blocks, and the loss on held-out rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.speed.session import Session, Work

RANK, ALPHA, SEED = 32, 64, 3407
"""Rank and alpha are the defaults of cot_unsloth."""


class Blocks:
    """Divides a training run into blocks of about equally many real tokens; a block ends with an optimizer step.

    The first is warm-up. By tokens and not by steps, because a step of packed rows has more of them.
    """

    def __init__(self, work: Work, session: Session) -> None:
        self._session, self._left = session, work.rounds
        self._total = token_count(rows(work))
        self._seen = self._steps = self._steps_before = 0
        self._until = 0.0
        self.losses: list[float] = []

    def begin(self) -> None:
        """Training begins."""
        self._until = self._seen + (self._total - self._seen) / max(1, self._left)
        self._session.start()

    def step(self, tokens: int, *, last: bool) -> None:
        """An optimizer step has ended.

        Args:
            tokens: real tokens (no padding) since training began.
            last: whether it was the last step.
        """
        self._steps += 1
        if tokens < self._until and not last:
            return
        self._session.done(tokens=tokens - self._seen, steps=self._steps - self._steps_before)
        self._seen, self._steps_before, self._left = tokens, self._steps, self._left - 1
        if not last:
            self.begin()

    def facts(self) -> dict[str, Any]:
        """What was trained on, and the losses that were logged."""
        return {
            "tokens": self._seen, "rows_tokens": self._total, "steps": self._steps,
            "loss_first": self.losses[0] if self.losses else None, "loss_last": self.losses[-1] if self.losses else None,
        }  # fmt: skip


def data_folder(work: Work) -> Path:
    """Where `data.make` has written the rows of a measurement."""
    return work.folder / "data"


def rows(work: Work) -> list[dict[str, list[int]]]:
    """The training rows: ids and labels, as `cot_unsloth` renders them."""
    return read_lines(data_folder(work) / "train.tokens.jsonl")


def read_lines(path: Path) -> list[Any]:
    """The values of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def token_count(samples: Iterable[dict[str, list[int]]]) -> int:
    """All tokens of some rows."""
    return sum(len(sample["input_ids"]) for sample in samples)


def adapter_folder(work: Work) -> Path:
    """Where a contender leaves its adapter."""
    return work.folder / f"adapter-{work.name}"


def held_out_loss(base: str, adapter: Path, tokens: Path) -> float:
    """Mean loss (nats) per supervised token of held-out rows, in float32, row by row: the same function for all contenders."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, trust_remote_code=False)
    model = PeftModel.from_pretrained(model, str(adapter)).eval()
    loss, n = 0.0, 0
    with torch.inference_mode():
        for row in read_lines(tokens):
            logits = model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0, :-1].float()
            labels = torch.tensor(row["labels"][1:])
            loss += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
            n += int((labels != -100).sum())
    return loss / n


def main() -> None:
    """`python -m bench.speed.training BASE TOKENS NAME=ADAPTER...`: prints the held-out loss of every adapter."""
    base, tokens, *adapters = sys.argv[1:]
    named = dict(adapter.split("=", 1) for adapter in adapters)
    print(json.dumps({name: round(held_out_loss(base, Path(path), Path(tokens)), 5) for name, path in named.items()}))


if __name__ == "__main__":
    main()
