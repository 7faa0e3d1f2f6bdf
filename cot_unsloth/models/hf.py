"""The `hf` engine: transformers, PEFT and TRL's SFTTrainer, on a CPU or a GPU.

Trains on our own labels: TRL prepares the data (and packs it), and its counts of rows, tokens and
supervised tokens are then held against ours. Checkpoints are staged and renamed, so that one that
was never finished is never resumed from.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
import queue
import re
import shutil
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import peft
import torch
import transformers
import trl
from transformers import GenerationConfig, TrainerCallback
from transformers.utils import logging as transformers_logging

from cot_unsloth.config import RunConfig
from cot_unsloth.core.errors import DivergedError, EngineError, InvariantError, ModelError, cannot_load
from cot_unsloth.core.progress import note, size
from cot_unsloth.core.results import VERSION, EngineFacts, FitReport
from cot_unsloth.core.types import IGNORE, Completion, Prompt, Sample, SamplingParams
from cot_unsloth.models import quantization
from cot_unsloth.models.adapter_files import base_alone, check_known, local_adapter, read_config
from cot_unsloth.models.devices import cpu_has_bfloat16, pick_device, pick_dtype
from cot_unsloth.models.protocols import Advance, FitPlan, FitStep
from cot_unsloth.prompts.render import ChatTemplate, model_path, save_tokenizer
from cot_unsloth.storage.atomic import free_space, staged
from cot_unsloth.storage.run_folder import complete_checkpoints, is_full_model

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
transformers_logging.disable_progress_bar()
datasets.disable_progress_bars()
# Warns that packing needs FlashAttention: rows are isolated without it too, which a test holds.
logging.getLogger("trl.trainer.sft_trainer").setLevel(logging.ERROR)

_AMP = {"bfloat16": "bf16", "float16": "fp16"}
"""What the Trainer calls autocasting to each."""
PACK_WITHOUT_FLASH = 512
"""Tokens of a pack where attention is quadratic in it: longer packs cost more than padding saves."""


def free_memory() -> None:
    """Give back what a model took that nobody holds any more; Unsloth's hold themselves, in circles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _misfit(error: Exception) -> str:
    """Why an adapter does not fit, in a line: torch lists every weight, and the first will do."""
    found = re.search(r"size mismatch for (\S+): .*?Size\(\[(.*?)\]\) from .*?Size\(\[(.*?)\]\)", str(error))
    if found is None:
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"{found[1]} is ({found[2]}) in it, and ({found[3]}) on this base"


class HfEngine:
    """A causal language model with at most one adapter on it, or one of which every weight was trained."""

    name = "hf"

    def __init__(self, config: RunConfig, chat: ChatTemplate, fitted: Path | None = None) -> None:
        self.config = config
        self.chat = chat
        self.device = pick_device()
        self.dtype = pick_dtype(config.model.dtype, self.device)
        self.fitted = fitted
        self._whole = is_full_model(fitted)
        """Whether the weights are no longer the base's, so that there is no adapter to take off."""
        self.model = self._load(fitted if self._whole else None)
        if not self._whole and not config.train.full_finetuning:
            self._check_targets()
        if fitted is not None and not self._whole:
            self.model = self._load_adapter(fitted)

    def _load(self, folder: Path | None = None, *, every_weight: bool = False) -> Any:
        """The base, or the whole model that lies in a folder; in float32 where every weight is to be trained."""
        wanted = self.config.model
        name = str(folder or wanted.model_name_or_path)
        revision = None if folder else wanted.model_revision
        try:
            with base_alone(model_path(name)):
                model = self._from_pretrained(model_path(name), revision, every_weight)
        except torch.OutOfMemoryError as error:
            raise _out_of_memory("loading the model") from error
        except ModelError:
            raise
        except Exception as error:  # hub, file and format faults share no base class
            raise cannot_load(f"cannot be loaded: {error}", error, where=name) from error
        self._check_vocabulary(model, name)
        self._check_bits(model, name)
        quantization.compute_alike(model, self.dtype)
        self._freeze_generation(model)
        return model

    def _from_pretrained(self, name: str, revision: str | None, every_weight: bool) -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(
            name,
            revision=revision,
            dtype=torch.float32 if every_weight else self.dtype,
            device_map={"": 0} if self.device == "cuda" else None,
            use_safetensors=True,
            trust_remote_code=False,  # without it transformers asks on a terminal whether to run a repository's code
            **quantization.asked_for(self.config.model, self.dtype),
        )

    def _load_adapter(self, adapter: Path) -> Any:
        folder = local_adapter(adapter)
        check_known(read_config(folder), folder)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", "Found missing adapter keys")
                return peft.PeftModel.from_pretrained(self.model, str(folder))
        except UserWarning as error:  # PEFT would go on with what is missing at random, and so with the base
            absent = str(error).partition("[")[2].partition(",")[0].strip("'] .")
            raise ModelError(
                f"its tensors are not those that its adapter_config.json asks for: there is no {absent}",
                where=str(adapter),
                hint="PEFT would leave out those of other names; have it saved again with save_pretrained",
                name="adapter_ignored",
            ) from error
        except Exception as error:  # file, shape and format faults share no base class
            message = f"is no adapter of {self.config.model.model_name_or_path}: {_misfit(error)}"
            raise cannot_load(message, error, where=str(adapter)) from error

    def _check_vocabulary(self, model: Any, name: str) -> None:
        rows, tokens = model.get_input_embeddings().weight.shape[0], len(self.chat.tokenizer)
        if tokens > rows:
            raise ModelError(
                f"its tokenizer has {tokens} tokens, its embedding {rows} rows",
                where=name,
                hint="model and tokenizer do not belong together",
            )

    def _check_bits(self, model: Any, name: str) -> None:
        """Weights are in as few bits as was asked for, or in those that they are stored in."""
        asked, found = self.config.model.quantization_bits, quantization.of_weights(model)
        if asked not in (None, found):
            raise ModelError(
                f"the {self.name} engine loaded it in {found} bits",
                where=name,
                hint=f"--no-load-in-{asked}bit" + ("" if self.name == "hf" else ", or --engine hf"),
            )
        if self.config.train.full_finetuning and found < 16:
            raise ModelError(
                f"is stored in {found} bits, of which every weight cannot be trained",
                where=name,
                hint="name the model that it was made from, or --no-full-finetuning",
            )
        if found < 16 and self.device == "cpu":
            note(f"{found}-bit weights on a CPU: they save memory, and every use of them takes longer")

    def _check_targets(self) -> None:
        """Every module asked for is there: PEFT is content if one of them is."""
        wanted = self.config.lora.target_modules
        linear = {name.rpartition(".")[2] for name, m in self.model.named_modules() if hasattr(m, "in_features")}
        linear.discard("lm_head")  # often tied to the embedding, and then not to be folded on export
        absent = [name for name in wanted if name != "all-linear" and name.rpartition(".")[2] not in linear]
        if absent:
            raise ModelError(
                f"the model has no module {', '.join(absent)}",
                where="lora.target_modules",
                hint=f"it has {', '.join(sorted(linear))}",
            )

    def _freeze_generation(self, model: Any) -> None:
        """Models bring their own sampling (Qwen2.5: temperature 0.7, repetition penalty 1.05). Only SamplingParams decide here."""
        model.generation_config = GenerationConfig(
            eos_token_id=sorted(self.chat.stops), pad_token_id=self.chat.tokenizer.pad_token_id
        )
        model.config.pad_token_id = self.chat.tokenizer.pad_token_id

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingParams, advance: Advance = lambda done: None
    ) -> list[Completion]:
        """One completion a prompt, in their order; prompts of like length share a batch."""
        encoded = [self.chat.ids(self.chat.prompt_text(prompt)) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
        done: dict[int, Completion] = {}
        torch.manual_seed(sampling.seed)
        self.model.eval()
        for start in range(0, len(order), sampling.batch_size):
            batch = order[start : start + sampling.batch_size]
            answers = self._generate_batch([encoded[i] for i in batch], sampling)
            for i, new in zip(batch, answers, strict=True):
                done[i] = self._completion(prompts[i], new)
            advance([done[i] for i in batch])
        return [done[i] for i in range(len(prompts))]

    def foreseen(self, samples: Sequence[Sample]) -> list[list[bool | None]]:
        """Whether each supervised token is the likeliest after those before it; a row at a time."""
        self.model.eval()
        found: list[list[bool | None]] = []
        with torch.inference_mode():
            for sample in samples:
                logits = self.model(input_ids=torch.tensor([sample.ids], device=self.device), use_cache=False).logits
                best = [None, *logits[0, :-1].argmax(-1).tolist()]
                found.append(
                    [
                        None if label == IGNORE or guess is None else guess == label
                        for guess, label in zip(best, sample.labels, strict=True)
                    ]
                )
        return found

    def prompt_tokens(self, prompt: Prompt) -> int:
        """Tokens of a prompt."""
        return len(self.chat.ids(self.chat.prompt_text(prompt)))

    def stream(self, prompt: Prompt, sampling: SamplingParams) -> Iterator[str]:
        """The completion piece by piece, the prefix left out."""
        listener = _Listener(self.chat)
        stopping = threading.Event()
        ids = self.chat.ids(self.chat.prompt_text(prompt))

        def speak() -> None:
            try:
                torch.manual_seed(sampling.seed)
                self.model.eval()
                ends = transformers.StoppingCriteriaList([lambda *_, **__: stopping.is_set()])
                self._generate_batch([ids], sampling, streamer=listener, stopping_criteria=ends)
            except BaseException as error:
                listener.pieces.put(error)

        speaker = threading.Thread(target=speak, daemon=True)
        speaker.start()
        try:
            while (piece := listener.pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            stopping.set()
            speaker.join()

    def _generate_batch(self, rows: list[list[int]], sampling: SamplingParams, **more: Any) -> list[list[int]]:
        """New ids of each row, the stop token included, padding taken off."""
        width, pad = max(map(len, rows)), self.chat.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=self.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self.device)
        decoding = (
            {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0} if sampling.temperature else {}
        )
        try:
            with torch.inference_mode():
                out = self.model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=sampling.max_new_tokens,
                    do_sample=bool(sampling.temperature),
                    **decoding,
                    **more,
                )
        except torch.OutOfMemoryError as error:
            raise _out_of_memory("generating", hint="lower --eval-batch-size or --max-new-tokens") from error
        return [self._to_stop(row) for row in out[:, width:].tolist()]

    def _to_stop(self, row: list[int]) -> list[int]:
        end = next((at for at, id_ in enumerate(row) if id_ in self.chat.stops), None)
        return row if end is None else row[: end + 1]

    def _completion(self, prompt: Prompt, new: list[int]) -> Completion:
        stopped = bool(new) and new[-1] in self.chat.stops
        text = self.chat.decode(new[:-1] if stopped else new)
        return Completion(prompt.id, prompt.prefix + text, len(new), "stop" if stopped else "length")

    def fit(self, samples: Sequence[Sample], plan: FitPlan) -> FitReport:
        """Train a fresh adapter, or every weight; see `Trainable`."""
        began = time.monotonic()
        transformers.set_seed(self.config.train.seed)
        full = self.config.train.full_finetuning
        if isinstance(self.model, peft.PeftModel):  # an adapter that was trained before, and given up
            self.close()
            self.model = self._load()
        self.model = self._all_weights(plan.checkpoints) if full else self._attach_adapter()
        watch = _Watch(plan)
        trainer = StagedTrainer(
            model=self.model,
            args=self._arguments(samples, plan),
            train_dataset=_dataset(samples),
            processing_class=self.chat.tokenizer,
            callbacks=[watch],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:  # TRL takes the adapter of a 4-bit model to bfloat16, which fp16 cannot scale
                parameter.data = parameter.data.float()
        packed = "seq_lengths" in trainer.train_dataset.column_names
        if self.config.train.packing and not packed:
            note("the trainer did not pack the rows; they are padded")
        half = next((name for name in ("bfloat16", "float16") if getattr(trainer.args, _AMP[name])), None)
        trainer.checkpoints = plan.checkpoints
        trainer.keep = self.config.train.save_total_limit
        trainer.losses = []
        trainer.add_callback(_StopAtDivergence(trainer, plan))
        assert_counts(trainer.train_dataset, samples)
        try:
            trainer.train(resume_from_checkpoint=str(plan.resume_from) if plan.resume_from else None)
        except torch.OutOfMemoryError as error:
            hint = (
                "lower --per-device-train-batch-size (raise --gradient-accumulation-steps), or --gradient-checkpointing"
            )
            if self.config.train.full_finetuning:
                hint += "; or train an adapter: --no-full-finetuning"
            raise _out_of_memory("training", hint=hint) from error
        refuse_non_finite(trainer.model, f"after step {trainer.state.global_step}", plan.checkpoints)
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        return FitReport(
            version=VERSION,
            steps=trainer.state.global_step,
            seconds=round(time.monotonic() - began, 2),
            loss_first=losses[0] if losses else None,
            loss_last=losses[-1] if losses else None,
            rows=len(samples),
            tokens=sum(len(sample.ids) for sample in samples),
            supervised=sum(sample.supervised for sample in samples),
            extra=EngineFacts.model_validate(self._facts() | {"packed": packed, "autocast": half}),
        )

    def _all_weights(self, checkpoints: Path) -> Any:
        """The base in float32: in 16 bits most steps of a usual rate would be rounded away, and fp16 cannot be scaled."""
        self._whole = True
        self.close()  # before it is loaded anew, so that it is never held twice
        model = self._load(every_weight=True)
        weights = 4 * sum(p.numel() for p in model.parameters())
        moments = weights // 2 if "8bit" in self.config.train.optim else 2 * weights
        note(
            f"every weight is trained: {size(2 * weights + moments)} for weights and gradients in float32 and Adam's "
            "two moments"
        )
        kept = self.config.train.save_total_limit
        needed = (kept + 1) * (weights + moments)
        place, free = free_space(checkpoints)
        if needed > free:
            raise EngineError(
                f"{kept} checkpoints of every weight, and one that is written, take {size(needed)}; the disk has {size(free)} free",
                where=str(place),
                hint="free some, or --save-total-limit 1; --resume goes on from here",
            )
        return model

    def _attach_adapter(self) -> Any:
        lora = self.config.lora
        if quantization.of_weights(self.model) < 16:
            self.model = peft.prepare_model_for_kbit_training(
                self.model, use_gradient_checkpointing=self.config.train.gradient_checkpointing
            )
        all_linear = lora.target_modules == ("all-linear",)
        wanted = peft.LoraConfig(
            r=lora.lora_r,
            lora_alpha=lora.lora_alpha,
            lora_dropout=lora.lora_dropout,
            use_rslora=lora.use_rslora,
            target_modules="all-linear" if all_linear else list(lora.target_modules),
            bias="none",
            task_type="CAUSAL_LM",
        )
        try:
            return peft.get_peft_model(self.model, wanted)
        except ValueError as error:
            raise ModelError(f"cannot take the adapter: {error}", where="lora.target_modules") from error

    def _arguments(self, samples: Sequence[Sample], plan: FitPlan) -> Any:
        train, gpu = self.config.train, self.device == "cuda"
        packs = train.packing and not self._has_flash_attention()
        rows = train.per_device_train_batch_size
        longest = max(len(sample.ids) for sample in samples)
        pack_length = max(longest, PACK_WITHOUT_FLASH) if packs else max(longest, self.config.data.max_seq_length)
        half = self.dtype if gpu else torch.bfloat16 if train.autocast and cpu_has_bfloat16() else None
        return trl.SFTConfig(
            output_dir=str(plan.checkpoints),
            # TRL flattens a batch of packs into one row, whose attention would be quadratic in all of it.
            per_device_train_batch_size=1 if packs else rows,
            gradient_accumulation_steps=train.gradient_accumulation_steps * (rows if packs else 1),
            num_train_epochs=train.num_train_epochs,
            max_steps=train.max_steps,
            learning_rate=train.learning_rate,
            lr_scheduler_type=train.lr_scheduler_type,
            warmup_steps=train.warmup_ratio,
            weight_decay=train.weight_decay,
            max_grad_norm=train.max_grad_norm,
            optim=self._optimizer(),
            adam_beta1=0.9,
            adam_beta2=0.999,
            bf16=half == torch.bfloat16,
            fp16=half == torch.float16,
            gradient_checkpointing=train.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            packing=train.packing,
            packing_strategy="bfd",
            padding_free=False,
            # Rows are never longer than max_seq_length: they were dropped whole before.
            max_length=pack_length if train.packing else None,
            seed=train.seed,
            data_seed=train.seed,
            # Rows of a task come in random order already; a curriculum is the order they come in.
            train_sampling_strategy="sequential" if self.config.data.world_clean_first else "random",
            logging_steps=train.logging_steps,
            logging_first_step=True,
            include_num_input_tokens_seen="non_padding",  # TRL's own count starts anew after a resume
            logging_nan_inf_filter=False,
            save_strategy="steps",
            save_steps=train.save_steps,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=gpu,
            use_cpu=not gpu,
        )

    def _optimizer(self) -> str:
        wanted = self.config.train.optim
        if wanted != "auto":
            return wanted
        return "adamw_8bit" if quantization.of_weights(self.model) < 16 and self.device == "cuda" else "adamw_torch"

    def _has_flash_attention(self) -> bool:
        return "flash" in str(getattr(self.model.config, "_attn_implementation", ""))

    def _facts(self) -> dict[str, Any]:
        """What is worth knowing of how it was computed."""
        facts: dict[str, Any] = {
            "engine": self.name,
            "device": self.device,
            "dtype": str(self.dtype).removeprefix("torch."),
            "weight_bits": quantization.of_weights(self.model),
        }
        facts["trainable_parameters"] = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        if self.device == "cuda":
            facts["gpu"] = torch.cuda.get_device_name()
            facts["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
        else:
            facts["threads"] = torch.get_num_threads()
        return facts

    def save(self, folder: Path) -> None:
        """Write what was trained and its tokenizer, whole or not at all; a whole model as it was trained, in float32."""
        refuse_non_finite(self.model, "at the end", None)
        self.model.config.use_cache = True  # off while gradients are checkpointed, and slow for whoever loads it so
        with staged(folder) as aside:
            self.model.save_pretrained(aside, safe_serialization=True)
            save_tokenizer(self.chat, aside)
        if self._whole:
            self.model.to(self.dtype)  # as it is loaded when it is scored again

    def close(self) -> None:
        """Give back the memory of the model."""
        self.model = None
        free_memory()

    @contextlib.contextmanager
    def as_base(self) -> Iterator[None]:
        """Within, the model answers as its base, which is loaded for it where every weight was trained."""
        if isinstance(self.model, peft.PeftModel):
            with self.model.disable_adapter():
                yield
        elif self._whole:
            tuned = self.model.to("cpu")  # a GPU that is large enough for one need not be so for two
            try:
                self.model = self._load()
                yield
            finally:
                self.close()
                self.model = tuned.to(self.device)
        else:
            yield


def _out_of_memory(doing: str, hint: str = "take a smaller model, or --load-in-4bit") -> EngineError:
    return EngineError(f"ran out of memory while {doing}", hint=hint)


def _dataset(samples: Sequence[Sample]) -> Any:
    return datasets.Dataset.from_dict(
        {"input_ids": [list(s.ids) for s in samples], "labels": [list(s.labels) for s in samples]}
    )


def assert_counts(prepared: Any, samples: Sequence[Sample]) -> None:
    """Hold the trainer's data against ours: rows, tokens and supervised tokens.

    Raises:
        InvariantError: they differ, so something was cut, dropped or masked on the way.
    """
    packed = "seq_lengths" in prepared.column_names
    rows = tokens = supervised = 0
    for row in prepared:
        rows += len(row["seq_lengths"]) if packed else 1
        tokens += len(row["input_ids"])
        supervised += sum(label != IGNORE for label in row["labels"])
    theirs = (rows, tokens, supervised)
    ours = (len(samples), sum(len(s.ids) for s in samples), sum(s.supervised for s in samples))
    if theirs != ours:
        raise InvariantError(
            f"the trainer would train on {theirs} (rows, tokens, supervised tokens), we gave it {ours}",
            hint="this is a fault of cot_unsloth or of the installed trl; try the versions in constraints.txt",
        )


def is_finite(model: Any) -> bool:
    """Whether every weight that is trained is a finite number."""
    return all(bool(torch.isfinite(p.detach()).all()) for p in model.parameters() if p.requires_grad)


def refuse_non_finite(model: Any, when: str, checkpoints: Path | None) -> None:
    """Make sure that no weight that is about to be kept is infinite or NaN.

    Raises:
        EngineError: one is.
    """
    if not is_finite(model):
        raise EngineError(
            f"the trained weights are no longer finite {when}; they are not saved", hint=_way_on(checkpoints)
        )


def _way_on(checkpoints: Path | None) -> str:
    """What to do once training has diverged: which checkpoint is left, and how to go on from it."""
    names = [checkpoint.name for checkpoint in complete_checkpoints(checkpoints)] if checkpoints else []
    if names:
        return (
            f"{names[-1]} is the newest checkpoint, and finite: go on from it with --resume and a lower --learning-rate"
        )
    return "there is no checkpoint: start again with --resume and a lower --learning-rate"


class StagedTrainer(trl.SFTTrainer):
    """SFTTrainer whose checkpoints appear whole, and with finite weights, or not at all.

    Trainer writes `checkpoint-N` in place, and takes the highest number even if it is half a one.
    """

    checkpoints: Path
    keep: int
    losses: list[Any]
    """Of the batches since the last optimizer step; left on the device, since reading each would make a GPU wait."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer, and keeps the loss."""
        loss = super().training_step(*args, **kwargs)
        self.losses.append(loss.detach())
        return loss

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._set_base_rate(self.args.learning_rate)

    def _set_base_rate(self, rate: float) -> None:
        """Have the schedule go on from where it is, at the learning rate of the settings.

        A checkpoint brings back the rate it was trained at, in its optimizer and in its scheduler.
        """
        scheduler = self.lr_scheduler
        if all(base == rate for base in scheduler.base_lrs):
            return
        scheduler.base_lrs = [rate for _ in scheduler.base_lrs]
        rates = [rate * share(scheduler.last_epoch) for share in scheduler.lr_lambdas]
        for group, now in zip(self.optimizer.param_groups, rates, strict=True):
            group["initial_lr"], group["lr"] = rate, now
        scheduler._last_lr = rates

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        refuse_non_finite(model, f"after step {self.state.global_step}", self.checkpoints)
        name = f"checkpoint-{self.state.global_step}"
        with staged(self.checkpoints / name) as aside:
            parent, self.args.output_dir = self.args.output_dir, str(aside)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.args.output_dir = parent
            inner = aside / name
            for item in inner.iterdir():
                item.replace(aside / item.name)
            inner.rmdir()
        self._rotate()

    def _rotate(self) -> None:
        for old in complete_checkpoints(self.checkpoints)[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """As the Trainer, but a run too short for a whole step of warm-up has none: its first step would have a rate of 0."""
        if 0 < self.args.warmup_steps < 1 and self.args.warmup_steps * num_training_steps < 1:
            self.args.warmup_steps = 0
        return super().create_scheduler(num_training_steps, optimizer)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """A checkpoint needs none."""


class _Listener:
    """What `generate` tells its tokens to: puts text into a queue as soon as it is whole letters."""

    def __init__(self, chat: ChatTemplate) -> None:
        self.chat = chat
        self.pieces: queue.Queue[str | BaseException | None] = queue.Queue()
        self._ids: list[int] = []
        self._said = ""
        self._prompt = True

    def put(self, ids: Any) -> None:
        if self._prompt:  # the first call repeats what was asked
            self._prompt = False
            return
        self._ids += [id_ for id_ in ids.reshape(-1).tolist() if id_ not in self.chat.stops]
        text = self.chat.decode(self._ids)
        if not text.endswith("\ufffd"):
            self._say(text)

    def end(self) -> None:
        self._say(self.chat.decode(self._ids))
        self.pieces.put(None)

    def _say(self, text: str) -> None:
        if len(text) > len(self._said):
            self.pieces.put(text[len(self._said) :])
            self._said = text


class _Watch(TrainerCallback):
    """Tells a FitPlan's watchers what the Trainer does."""

    def __init__(self, plan: FitPlan) -> None:
        self.plan = plan
        self._loss: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.compute_steps(args, state.max_steps)  # a checkpoint brings back the cadence it was saved at
        self.plan.on_start(state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        logs = logs or {}
        if "loss" not in logs:
            return
        self._loss = float(logs["loss"])
        self.plan.on_log({"step": state.global_step, **logs, "num_tokens": int(state.num_input_tokens_seen)})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True  # the last loss belongs in the record too
        self.plan.on_step(FitStep(state.global_step, state.max_steps, self._loss, int(state.num_input_tokens_seen)))


class _StopAtDivergence(TrainerCallback):
    """Stops before an optimizer step that would make the weights NaN, whenever the next row of metrics is due.

    What is looked at are the loss of the step's batches and their gradients, which cost one wait for the GPU a step.
    """

    def __init__(self, trainer: StagedTrainer, plan: FitPlan) -> None:
        self.trainer = trainer
        self.plan = plan

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        losses, self.trainer.losses = self.trainer.losses, []
        loss, step = float(torch.stack([loss.float() for loss in losses]).sum()), state.global_step + 1
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss}", step)
        # With float16 the scaler looks for infinite gradients itself: it skips such a step and scales less.
        if self.trainer.accelerator.scaler is None and not self._gradients_are_finite():
            raise self._diverged("the gradient is not finite", step)

    def _gradients_are_finite(self) -> bool:
        gradients = [p.grad for p in self.trainer.model.parameters() if p.grad is not None]
        return bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients)))

    def _diverged(self, message: str, step: int) -> DivergedError:
        half = next(self.trainer.model.parameters()).dtype in (torch.float16, torch.bfloat16)
        hint = _way_on(self.plan.checkpoints) + ("; or a new run with --dtype float32" if half else "")
        return DivergedError(f"{message} at step {step}", step=step, hint=hint)
