"""TRL's SFTTrainer, with its defaults or with options that its documentation has for speed."""

from __future__ import annotations

from typing import Any

from bench.speed import data, preparation
from bench.speed.session import Session, Work
from bench.speed.training import ALPHA, RANK, SEED, Blocks, adapter_folder, data_folder, read_lines, rows


def watcher(blocks: Blocks, session: Session) -> Any:
    """A callback that ends blocks."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            session.mark("ready")
            blocks.begin()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in (logs or {}):
                blocks.losses.append(float(logs["loss"]))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            blocks.step(int(state.num_input_tokens_seen), last=state.global_step >= state.max_steps)

    return Watch()


def arguments(work: Work, options: dict[str, Any]) -> Any:
    """What all SFTTrainers share: the same batches, epochs, learning rate and schedule as ours; the rest is their default."""
    import trl

    shared = {
        "output_dir": str(work.folder / f"checkpoints-{work.name}"),
        "per_device_train_batch_size": work.settings["batch"], "num_train_epochs": 1, "max_steps": -1,
        "learning_rate": work.settings["learning_rate"], "lr_scheduler_type": "linear", "warmup_steps": 0.03,
        "optim": "adamw_torch", "weight_decay": 0.0, "max_length": None, "seed": SEED, "data_seed": SEED,
        "logging_first_step": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True,
        "include_num_input_tokens_seen": "non_padding",
    }  # fmt: skip
    return trl.SFTConfig(**(shared | {"max_steps": work.settings.get("max_steps", -1)} | options))


def dataset(work: Work) -> Any:
    """The rows as token ids and labels; as messages where the measurement includes tokenizing."""
    import datasets

    if work.settings.get("from_text"):
        return datasets.Dataset.from_list(read_lines(data_folder(work) / "train.messages.jsonl"))
    return datasets.Dataset.from_list(rows(work))


def train(work: Work, session: Session) -> dict[str, Any]:
    """As its documentation shows: the model by name, and a LoraConfig."""
    import peft
    import torch
    import trl
    from transformers import AutoTokenizer

    session.mark("imported")
    blocks = Blocks(work, session)
    trainer = trl.SFTTrainer(
        model=str(work.settings["base"]),
        args=arguments(work, work.options),
        train_dataset=dataset(work),
        processing_class=AutoTokenizer.from_pretrained(work.settings["base"], trust_remote_code=False),
        peft_config=peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[watcher(blocks, session)],
    )
    trainer.train()
    trainer.model.save_pretrained(str(adapter_folder(work)))
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in trainer.model.parameters()})
    return blocks.facts() | {
        "bf16": trainer.args.bf16, "gradient_checkpointing": trainer.args.gradient_checkpointing, "weights": dtypes,
        "attention": trainer.model.config._attn_implementation, "threads": torch.get_num_threads(),
    }  # fmt: skip


def prepare(work: Work, session: Session) -> dict[str, Any]:
    """The maps that SFTTrainer runs over prompts and completions in its constructor.

    `_prepare_dataset` is private; a trainer constructed once for each block would also be charged with loading the model.
    The model of that trainer is a tiny one, whatever the tokenizer.
    """
    import datasets
    import trl
    from transformers import AutoModelForCausalLM, LlamaConfig

    rows, renderer = preparation.examples(work)
    tokenizer = renderer.chat.tokenizer
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    config = arguments(work, work.options)
    few = datasets.Dataset.from_list([data.messages(renderer, row) for row in rows[:8]])
    trainer = trl.SFTTrainer(
        model=AutoModelForCausalLM.from_config(shape), args=config, train_dataset=few, processing_class=tokenizer
    )
    tokens = 0
    for some in preparation.slices(rows, work):
        source = datasets.Dataset.from_list([data.messages(renderer, row) for row in some])
        session.start()
        mapped = trainer._prepare_dataset(source, tokenizer, config, False, None, "train")
        session.done(rows=len(mapped))
        tokens += sum(map(len, mapped["input_ids"]))
    return {"columns": mapped.column_names, "tokens": tokens}
