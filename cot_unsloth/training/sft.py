"""`train.method: sft`: supervised fine-tuning on traces, with TRL's SFTTrainer on our own labels.

TRL only batches (and packs) the rows: which tokens carry loss was decided in `prompts`. Its counts of rows, tokens and
supervised tokens are compared with ours before the first step, because TRL cuts, drops and masks without a warning.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Sequence
from typing import Any

import datasets
import pyarrow.compute as pc
import transformers
import trl

from cot_unsloth import tasks
from cot_unsloth.config import RunConfig
from cot_unsloth.core.errors import InvariantError
from cot_unsloth.core.progress import note
from cot_unsloth.core.results import FitReport
from cot_unsloth.core.samples import Samples
from cot_unsloth.core.types import IGNORE, Sample
from cot_unsloth.models.protocols import Trainable
from cot_unsloth.training import memory_probe, trainers
from cot_unsloth.training.batches import JoinedRows
from cot_unsloth.training.memory_probe import ProbeMemory
from cot_unsloth.training.method import TrainingHooks
from cot_unsloth.training.preparation import Prepared
from cot_unsloth.training.trainers import StagedCheckpoints

datasets.disable_progress_bars()
# It warns that packing needs FlashAttention. Rows of a pack are isolated without it too (a test measures it): SDPA
# masks between them if it gets position ids, no attention mask and use_cache=False.
logging.getLogger("trl.trainer.sft_trainer").setLevel(logging.ERROR)

PACK_WITHOUT_FLASH = 512
"""Tokens per pack where attention is quadratic in the pack's length.

Measured on a CPU: 5,245 tokens/s packed to 512, 4,922 padded, 1,042 packed to 4 x 1,024.
"""


class SftTrainer(StagedCheckpoints, trl.SFTTrainer):
    """TRL's trainer with our checkpoints; batches of joined rows carry the rows' lengths."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.padding_free:
            self.data_collator: Any = JoinedRows(self.data_collator, self.processing_class.pad_token_id)


class SupervisedFineTuning:
    """Cross-entropy on the supervised tokens of the samples."""

    name = "sft"

    def train(self, engine: Trainable, data: Prepared, hooks: TrainingHooks) -> FitReport:
        """Train on the samples; see `TrainingMethod`."""
        return fit(engine, data.samples, hooks, data.test_samples)


def fit(
    engine: Trainable, samples: Sequence[Sample], hooks: TrainingHooks, held_out: Sequence[Sample] = ()
) -> FitReport:
    """Train a new adapter, or every weight with `full_finetuning`. Raises as `TrainingMethod.train`.

    With `eval_steps`, the loss on `held_out` is measured during training.
    """
    began = time.monotonic()
    train = engine.config.train
    transformers.set_seed(train.seed)  # before the adapter, whose A matrices are drawn at random
    model = engine.attach_trainable_weights(() if hooks.resume_from else samples)
    if train.full_finetuning:
        trainers.require_disk_space(model, train, hooks)
    arguments = training_arguments(engine, samples, hooks, measured=bool(held_out))
    trainer = SftTrainer(
        model=model,
        args=arguments,
        train_dataset=_dataset(samples),
        eval_dataset=_dataset(held_out) if arguments.eval_steps else None,
        processing_class=engine.chat.tokenizer,
    )
    trainers.configure_trainer(trainer, engine, hooks)
    if train.packing and not trainers.is_packed(trainer):
        note(f"the rows are not packed: {_why_not_packed(engine)}")
    assert_counts(trainer.train_dataset, samples)
    hint = _out_of_memory_hint(train.full_finetuning)
    if memory_probe.is_needed(engine):
        trainer.add_callback(ProbeMemory(trainer, hint))
    trainers.run(trainer, engine, hooks, hint)
    report = trainers.report(trainer, engine, samples, began)
    engine.training_finished()
    return report


def training_arguments(
    engine: Trainable, samples: Sequence[Sample], hooks: TrainingHooks, *, measured: bool = False
) -> Any:
    """The trainer's arguments."""
    train = engine.config.train
    # Without FlashAttention TRL flattens a batch of packs into one row, and attention is quadratic in all of it.
    # So a batch is one pack of about 512 tokens, and the rows of a batch become accumulation steps.
    # Packs are made longest first, which would begin with the rows that a curriculum ends with.
    packing = train.packing and not trainers.joins_rows(engine) and not _is_curriculum(engine.config)
    short_packs = packing and not engine.has_varlen_attention
    batch_size = train.per_device_train_batch_size
    longest = int(Samples.of(samples).lengths.max())
    eval_steps = engine.config.development.eval_steps if measured else None
    pack_length = max(longest, PACK_WITHOUT_FLASH if short_packs else engine.config.data.max_seq_length)
    return trainers.training_arguments(
        trl.SFTConfig,
        engine,
        hooks,
        per_device_train_batch_size=1 if short_packs else batch_size,
        gradient_accumulation_steps=train.gradient_accumulation_steps * (batch_size if short_packs else 1),
        num_train_epochs=train.num_train_epochs,
        max_steps=train.max_steps,
        packing=packing,
        packing_strategy="bfd",
        padding_free=trainers.joins_rows(engine),
        # TRL's default of 1,024 cuts the end of a row: the answer and the stop token. Rows longer than
        # max_seq_length were rejected before, so nothing needs to be cut.
        max_length=pack_length if packing else None,
        train_sampling_strategy="sequential" if _is_curriculum(engine.config) else "random",
        neftune_noise_alpha=train.neftune_noise_alpha,
        logging_steps=train.logging_steps,
        logging_first_step=True,
        eval_strategy="steps" if eval_steps else "no",
        eval_steps=eval_steps,
        per_device_eval_batch_size=batch_size,
        prediction_loss_only=True,
        include_num_input_tokens_seen="non_padding",  # TRL's own num_tokens restarts at 0 after a resume
    )


def _is_curriculum(config: RunConfig) -> bool:
    """Whether rows are trained on in their order. Those of a task are in random order otherwise; those of a file may be sorted."""
    return config.data.world_clean_first > 0 and tasks.is_task_dataset(config.data.dataset)


def _why_not_packed(engine: Trainable) -> str:
    if trainers.joins_rows(engine):
        return "rows need no padding on a CPU"
    if _is_curriculum(engine.config):
        return "packs would not keep their order (world_clean_first)"
    return "the trainer padded them"


def _out_of_memory_hint(full_finetuning: bool) -> str:
    hint = "lower --per-device-train-batch-size (raise --gradient-accumulation-steps), or --gradient-checkpointing"
    return hint + ("; or train an adapter: --no-full-finetuning" if full_finetuning else "")


def _dataset(samples: Sequence[Sample]) -> datasets.Dataset:
    # With a fingerprint: to make one, datasets would pickle the whole table in memory.
    return datasets.Dataset(Samples.of(samples).columns, fingerprint=secrets.token_hex(8))


def assert_counts(prepared: Any, samples: Sequence[Sample]) -> None:
    """Compare the trainer's data set with the samples: rows, tokens and supervised tokens.

    Raises:
        InvariantError: they differ, so TRL cut, dropped or masked something.
    """
    packed = "seq_lengths" in prepared.column_names
    rows = tokens = supervised = 0
    # In columns of many rows: one row at a time takes longer than it took to tokenize it.
    for batch in prepared.with_format("arrow").iter(1000):
        ids, labels = (pc.list_flatten(batch[name]) for name in ("input_ids", "labels"))
        rows += len(pc.list_flatten(batch["seq_lengths"])) if packed else batch.num_rows
        tokens += len(ids)
        supervised += pc.sum(pc.not_equal(labels, IGNORE)).as_py() or 0
    trainer_counts = (rows, tokens, supervised)
    ours = Samples.of(samples)
    our_counts = (len(ours), int(ours.lengths.sum()), int(ours.supervised.sum()))
    if trainer_counts != our_counts:
        raise InvariantError(
            f"the trainer would train on {trainer_counts} (rows, tokens, supervised tokens), but was given {our_counts}",
            hint="this is a bug in cot_unsloth or in the installed trl; try the versions in constraints.txt",
        )
