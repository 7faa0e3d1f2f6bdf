"""The longest batch is tried before the first step: training is the same with it, and memory that is too small is named."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import chains, furthest, lora

from cot_unsloth.config import load
from cot_unsloth.core.errors import EngineError
from cot_unsloth.core.types import Sample
from cot_unsloth.models.hf import HfEngine
from cot_unsloth.training import memory_probe
from cot_unsloth.training.method import TrainingHooks
from cot_unsloth.training.sft import SftTrainer, _dataset, fit

SETTINGS = {
    "max_steps": "3", "per_device_train_batch_size": "4", "gradient_accumulation_steps": "2", "lora_r": "4", "logging_steps": "1",
    "lora_dropout": "0.2",
}  # fmt: skip


class Steps:
    """The batches that a trainer computes; more rows than `room` do not fit into memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int = 99) -> None:
        self.rows: list[int] = []
        self.longest: list[int] = []
        real = SftTrainer.training_step

        def training_step(trainer: SftTrainer, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            lengths = inputs["row_lengths"][:-1] if "row_lengths" in inputs else inputs["attention_mask"].sum(1)
            self.rows.append(len(lengths))
            self.longest.append(int(lengths.max()))
            loss = real(trainer, model, inputs, *args, **kwargs)
            if len(lengths) > room:
                raise torch.OutOfMemoryError
            return loss

        monkeypatch.setattr(SftTrainer, "training_step", training_step)


def trained(folder: Path, probed: bool, monkeypatch: pytest.MonkeyPatch, **more: str) -> tuple[Any, list[Any]]:
    """The adapter and the metrics of a short fit."""
    monkeypatch.setattr(memory_probe, "is_needed", lambda engine: probed)
    config = load(None, SETTINGS | more)
    renderer, samples = chains(config, 32)
    engine, rows = HfEngine(config, renderer.chat), []
    fit(engine, samples, TrainingHooks(folder, on_log=lambda row: rows.append(dict(row))))
    return lora(engine), [{k: v for k, v in row.items() if "second" not in k and "runtime" not in k} for row in rows]


@pytest.mark.parametrize("more", [{}, {"neftune_noise_alpha": "5"}], ids=["joined", "padded"])
def test_training_is_the_same_with_the_probe(
    more: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without, metrics = trained(tmp_path / "a", False, monkeypatch, **more)
    longest = max(len(sample.ids) for sample in chains(load(None, SETTINGS), 32)[1])
    steps = Steps(monkeypatch)
    probed, same = trained(tmp_path / "b", True, monkeypatch, **more)
    assert len(steps.rows) == 2 + 3 * 2  # the probe's two passes, and those of three steps
    assert steps.longest[:2] == [longest, longest]
    assert furthest(without, probed) == 0.0
    assert metrics == same


@pytest.mark.parametrize(
    ("room", "tried", "message", "hint"),
    [
        (2, [4, 2, 2], "4 longest rows .* do not fit into memory together; 2 of them do",
         "--per-device-train-batch-size 2 --gradient-accumulation-steps 4"),
        (0, [4, 2, 1], r"the longest row \(\d+ tokens\) does not fit", "--gradient-checkpointing"),
    ],
)  # fmt: skip
def test_rows_that_do_not_fit_end_training_before_its_first_step(
    room: int, tried: list[int], message: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(monkeypatch, room)
    with pytest.raises(EngineError, match=message) as error:
        trained(tmp_path, True, monkeypatch)
    assert hint in str(error.value.hint)
    assert steps.rows == tried
    assert not any(tmp_path.glob("checkpoint-*"))


def test_memory_that_runs_out_only_with_the_moments_of_adam_is_seen() -> None:
    optimizer = SimpleNamespace(state={}, param_groups=[{"params": [torch.zeros(30, 2), torch.zeros(40)]}])
    trainer = SimpleNamespace(args=SimpleNamespace(optim="adamw_torch"), optimizer=optimizer)
    probe = memory_probe.ProbeMemory(trainer, "")
    assert probe._bytes_of_moments() == 800
    trainer.args.optim = "adamw_8bit"
    assert probe._bytes_of_moments() == 200
    optimizer.state = {"step": 7}
    assert probe._bytes_of_moments() == 0


def test_the_longest_rows_come_first() -> None:
    lengths = [3, 9, 5, 7, 1]
    rows = memory_probe.longest_rows(_dataset([Sample((1,) * n, (1,) * n) for n in lengths]), 2)
    assert [len(row["input_ids"]) for row in rows] == [9, 7]
    assert rows[0].keys() == {"input_ids", "labels"}
