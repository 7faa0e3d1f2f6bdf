"""Unsloth's CPU backend with SFTTrainer, as its documentation shows."""

from __future__ import annotations

import os
from typing import Any

from bench.speed.contenders import trl as trl_contender
from bench.speed.session import Session, Work
from bench.speed.training import ALPHA, RANK, SEED, Blocks, adapter_folder

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SWITCHES = {"UNSLOTH_DISABLE_STATISTICS": "1", "UNSLOTH_AUTO_INSTALL": "0", "UNSLOTH_FORCE_CPU": "1"}


def train(work: Work, session: Session) -> dict[str, Any]:
    """FastLanguageModel with its own gradient checkpointing, then SFTTrainer."""
    os.environ.update(SWITCHES | {"UNSLOTH_COMPILE_LOCATION": str(work.folder / "compiled")})
    from unsloth import FastLanguageModel  # isort: skip  (before trl)
    import trl

    session.mark("imported")
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=str(work.settings["base"]), max_seq_length=work.settings.get("longest", 2048), dtype=None,
        load_in_4bit=False, trust_remote_code=False,
    )  # fmt: skip
    model = FastLanguageModel.get_peft_model(
        model, r=RANK, lora_alpha=ALPHA, target_modules=PROJECTIONS, lora_dropout=0, bias="none",
        use_gradient_checkpointing="unsloth", random_state=SEED,
    )  # fmt: skip
    blocks = Blocks(work, session)
    trainer = trl.SFTTrainer(
        model=model, args=trl_contender.arguments(work, work.options), train_dataset=trl_contender.dataset(work),
        processing_class=tokenizer, callbacks=[trl_contender.watcher(blocks, session)],
    )  # fmt: skip
    trainer.train()
    model.save_pretrained(str(adapter_folder(work)))
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})
    return blocks.facts() | {"bf16": trainer.args.bf16, "weights": dtypes}
