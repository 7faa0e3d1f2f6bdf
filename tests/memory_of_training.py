"""`python memory_of_training.py`: train 300 steps on rows of many lengths; prints resident memory (bytes) after steps 50 and 300."""

from __future__ import annotations

import tempfile
from pathlib import Path

import psutil
from helpers import chains

from cot_unsloth.config import load
from cot_unsloth.models.hf import HfEngine
from cot_unsloth.training import sft
from cot_unsloth.training.method import TrainingHooks, TrainingStep

STEPS = 300


def main() -> None:
    """Train, and print."""
    config = load(None, {
        "max_steps": str(STEPS), "per_device_train_batch_size": "1", "gradient_accumulation_steps": "1", "lora_r": "4",
        "learning_rate": "1e-3", "save_steps": "1000",
    })  # fmt: skip
    renderer, samples = chains(config, STEPS, "2-8")
    resident: list[int] = []

    def on_step(step: TrainingStep) -> None:
        resident.append(psutil.Process().memory_info().rss)

    with tempfile.TemporaryDirectory() as folder:
        sft.fit(HfEngine(config, renderer.chat), samples, TrainingHooks(Path(folder), on_step=on_step))
    print(resident[49], resident[-1])


if __name__ == "__main__":
    main()
