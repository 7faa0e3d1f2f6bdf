"""The losses of an engine, a step each: `python curve.py ENGINE START OUT DTYPE [SETTING=VALUE]...`.

A START that is not there is written: the adapter as it is before the first step. One that is there is
started from, so that two engines start alike. With full_finetuning=true they start from the base.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from cot_unsloth.config import load
from cot_unsloth.models import registry
from cot_unsloth.models.registry import Choice
from cot_unsloth.training.method import TrainingHooks
from cot_unsloth.training.sft import fit

STEPS = 20


def main() -> None:
    """Fit, and write the losses down."""
    engine_name, start, out, dtype = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    flags = {
        "engine": engine_name, "dtype": dtype, "autocast": "false", "packing": "false", "lora_r": "8", "lora_alpha": "16",
        "max_steps": str(STEPS), "logging_steps": "1", "save_steps": "1000", "learning_rate": "1e-3",
        "per_device_train_batch_size": "2", "gradient_accumulation_steps": "2",
    }  # fmt: skip
    flags |= dict(given.split("=") for given in sys.argv[5:])
    config = load(None, flags)
    choice = Choice(engine_name, "asked for")
    registry.apply_patches(choice)
    import torch
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file, save_file

    from cot_unsloth import tasks
    from cot_unsloth.prompts.opening import open_renderer

    torch.set_num_threads(1)
    renderer = open_renderer(config.model, config.data)
    examples = tasks.generate("world:chains:2-4,words:2-3", split="train", n=4 * STEPS, seed=1)
    samples = list(renderer.samples(examples).samples)
    engine = registry.load(config, renderer.chat, choice)
    attach = engine._attach_adapter  # type: ignore[attr-defined]

    def attach_alike(samples: object) -> object:
        model = attach(samples)
        if start.is_file():
            set_peft_model_state_dict(model, load_file(start))
        else:
            save_file({name: t.contiguous() for name, t in get_peft_model_state_dict(model).items()}, start)
        return model

    engine._attach_adapter = attach_alike  # type: ignore[attr-defined]
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        report = fit(engine, samples, TrainingHooks(Path(folder), on_log=lambda row: rows.append(dict(row))))
    seen = [[list(sample.ids), list(sample.labels)] for sample in samples]
    counts = {"rows": report.rows, "tokens": report.tokens, "supervised": report.supervised}
    result = {
        "losses": [row["loss"] for row in rows],
        "samples": seen,
        "counts": counts,
        "extra": report.extra.as_json(),
    }
    out.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
