"""The estimates of `check`, `doctor` and `train` against real training: `python bench/estimates.py --case 2.3M --out FILE`.

A model with random weights is trained on this machine with one thread, and the CPU seconds of its optimizer steps after the
first, which allocates, are compared with the estimate: for one thread on a machine that does nothing else they are its wall
time, and beside other work they change little. The matrix product that estimates start from is timed by the same clock. Each
case has a process of its own, whose peak of memory is compared, too.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cot_unsloth import config
from cot_unsloth.config import ASSETS, TINY_BASE
from cot_unsloth.core.threads import limit_spinning
from cot_unsloth.models import estimate, estimate_time
from cot_unsloth.models.devices import training_dtype
from cot_unsloth.models.estimate_time import Work
from cot_unsloth.models.target import Target
from cot_unsloth.storage.atomic import write_json
from cot_unsloth.storage.environment import environment
from cot_unsloth.training.method import TrainingHooks, TrainingStep, training_method
from cot_unsloth.training.preparation import prepare


@dataclass(frozen=True)
class Case:
    """A model, and how it is trained."""

    shape: dict[str, int]
    """Fields of its config.json that differ from those of the embedded base."""
    batch: int
    steps: int
    """Measured; one more is made before them."""


CASES = {
    "2.3M": Case({}, 8, 20),
    "26M": Case({"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64}, 8, 5),
    "135M": Case({"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152}, 4, 3),
}  # fmt: skip
"""The embedded base, one between, and the shape of SmolLM2-135M; weights without effect on speed are random."""


def made_model(case: Case, folder: Path) -> Path:
    """A model of that shape with random weights and the embedded base's tokenizer."""
    base = ASSETS / TINY_BASE
    folder.mkdir()
    for file in base.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    written = json.loads((base / "config.json").read_text()) | case.shape
    (folder / "config.json").write_text(json.dumps(written))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(folder, trust_remote_code=False), trust_remote_code=False
    )
    model.save_pretrained(folder)
    return folder


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Estimated and measured seconds of a step, and bytes of the process."""
    settings = config.load(
        None,
        {
            "model_name_or_path": str(made_model(case, folder / "model")), "dataset": "world:chains:2-3", "lora_r": 16,
            "world_samples": case.batch * (case.steps + 1), "max_steps": case.steps + 1, "eval_samples": 0,
            "per_device_train_batch_size": case.batch, "gradient_accumulation_steps": 1, "gradient_checkpointing": False,
            "save_steps": 1000,
        },
    )  # fmt: skip
    shape = estimate.shape_of(settings.model)
    assert shape is not None
    dtype = str(training_dtype(settings, "cpu")).removeprefix("torch.")
    flops = estimate_time.speed("cpu", dtype, time.process_time)
    data = prepare(settings)
    marks: list[tuple[float, TrainingStep]] = []
    hooks = TrainingHooks(folder / "checkpoints", on_step=lambda step: marks.append((time.process_time(), step)))
    training_method("sft").train(Target(settings).load()[1], data, hooks)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    took = [after - before for (before, _), (after, _) in pairwise(marks)]
    tokens = marks[-1][1].tokens - marks[0][1].tokens
    work = Work(tokens, len(took))
    estimated = estimate_time.seconds(settings, shape, work, flops=flops, device="cpu").training
    needed = estimate.memory(settings, shape, int(data.samples.lengths.max()), "cpu").total
    return {
        "parameters": shape.parameters,
        "case": asdict(case),
        "tokens": tokens,
        "dtype": dtype,
        "flops_per_second": round(flops),
        "seconds": {"measured": round(sum(took), 3), "estimated": round(estimated, 3)},
        "median_step_seconds": round(statistics.median(took), 4),
        "bytes": {"measured": peak, "estimated": needed},
        "estimated_over_measured": {"seconds": round(estimated / sum(took), 2), "bytes": round(needed / peak, 2)},
    }


def main() -> None:
    """Measure a case, and keep the others that the file has."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--case", choices=CASES, required=True)
    args = parser.parse_args()
    limit_spinning()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        made = measure(CASES[args.case], Path(folder))
    cases = json.loads(args.out.read_text())["cases"] if args.out.is_file() else {}
    cases[args.case] = made | {
        "command": f"python bench/estimates.py --case {args.case} --out bench/results/estimates.json",
        "environment": environment().as_json(),
    }
    write_json(args.out, {"threads": 1, "n": 1, "seed": 3407, "cases": cases})
    print(json.dumps(made))


if __name__ == "__main__":
    main()
