"""LLaMA-Factory 0.9.5 with the settings of its LoRA example.

It needs older versions of what we use, so an environment of its own: transformers 5.6.0, trl 0.24.0, peft 0.18.1,
datasets 4.0.0, accelerate 1.11.0, tokenizers 0.22.2, torchdata 0.11.0, av 16.0.0, einops, omegaconf 2.4.0, and the same
torch. It imports torchaudio, which has no build for torch 2.13 on a CPU; an empty module in its place is enough for text.
"""

from __future__ import annotations

from typing import Any

from bench.speed.contenders import trl as trl_contender
from bench.speed.session import Session, Work
from bench.speed.training import ALPHA, RANK, SEED, Blocks, adapter_folder, rows


def train(work: Work, session: Session) -> dict[str, Any]:
    """`llamafactory-cli train` as a function, on rows that are tokenized already."""
    import datasets
    from llamafactory.train.tuner import run_exp

    session.mark("imported")
    tokenized = work.folder / "tokenized-llamafactory"
    samples = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows(work)]
    datasets.DatasetDict({"train": datasets.Dataset.from_list(samples)}).save_to_disk(str(tokenized))
    blocks = Blocks(work, session)
    arguments = {
        "model_name_or_path": str(work.settings["base"]), "stage": "sft", "do_train": True, "finetuning_type": "lora",
        "lora_rank": RANK, "lora_alpha": ALPHA, "lora_target": "all", "tokenized_path": str(tokenized),
        "dataset": "rows", "template": "chatml", "cutoff_len": work.settings.get("longest", 2048),
        "output_dir": str(adapter_folder(work)), "per_device_train_batch_size": work.settings["batch"],
        "gradient_accumulation_steps": 1, "learning_rate": work.settings["learning_rate"], "num_train_epochs": 1,
        "lr_scheduler_type": "linear", "warmup_ratio": 0.03, "optim": "adamw_torch", "bf16": True, "use_cpu": True,
        "seed": SEED, "report_to": "none", "save_strategy": "no", "logging_steps": 10, "disable_tqdm": True,
        "include_num_input_tokens_seen": "non_padding", **work.options,
    }  # fmt: skip
    run_exp(arguments, callbacks=[trl_contender.watcher(blocks, session)])
    return blocks.facts()
