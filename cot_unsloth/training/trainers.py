"""Shared by all methods that train with a Hugging Face Trainer: checkpoints, divergence checks, running, and the report.

It does not depend on the loss: `StagedCheckpoints` is mixed into a method's TRL trainer, and `run` starts it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import transformers

from cot_unsloth.config import LoraConfig, TrainConfig
from cot_unsloth.core import interrupts
from cot_unsloth.core.errors import EngineError
from cot_unsloth.core.progress import note, size
from cot_unsloth.core.results import VERSION, FitReport
from cot_unsloth.core.samples import Samples
from cot_unsloth.core.types import Sample
from cot_unsloth.models.devices import cpu_has_bfloat16, out_of_memory
from cot_unsloth.models.finite import require_finite
from cot_unsloth.models.protocols import AdapterStart, Trainable
from cot_unsloth.storage import checkpoints
from cot_unsloth.storage.atomic import free_space, remove_tree, staged
from cot_unsloth.storage.run_folder import checkpoint_step, complete_checkpoints
from cot_unsloth.training import optimizers, trackers
from cot_unsloth.training.callbacks import ReportProgress, SaveWhenInterrupted, StopAtDivergence, restart_hint
from cot_unsloth.training.method import TrainingHooks


class PausableContext:
    """A context that can be left temporarily: the training context, while the model answers."""

    def __init__(self, make: Callable[[], AbstractContextManager[None]]) -> None:
        self._make = make
        self._current: AbstractContextManager[None] | None = None

    def __enter__(self) -> None:
        self._current = self._make()
        self._current.__enter__()

    def __exit__(self, *error: Any) -> None:
        current, self._current = self._current, None
        if current is not None:
            current.__exit__(*error)

    @property
    def is_paused(self) -> bool:
        """Whether the context is left."""
        return self._current is None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the context, and enter it again afterwards."""
        self.__exit__(None, None, None)
        try:
            yield
        finally:
            self.__enter__()


class StagedCheckpoints:
    """Mixin for a `transformers.Trainer`: checkpoints appear complete and with finite weights, or not at all.

    The Trainer writes `checkpoint-N` in place, and resumes from the highest number even if that one is incomplete.
    Resumed from the checkpoint of the last step, it would train one step more. And it leaves the model changed when it
    has trained it: `restore_model` undoes that.
    """

    args: Any
    model: Any
    state: Any
    control: Any
    optimizer: Any
    lr_scheduler: Any
    checkpoints: Path
    save_total_limit: int
    context: PausableContext
    """The context that the model is trained in."""
    step_loss: float | None
    """Loss of the last optimizer step; None before the first."""
    losses: list[torch.Tensor]
    """Losses of the batches since the last optimizer step; kept on the device, because reading each would make a GPU wait."""
    lora: LoraConfig | None
    """The settings of the adapter that is trained; None for every weight."""
    initial_factors: AdapterStart | None

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        # TRL replaces the forward of the causal model for its chunked loss, as it is constructed; accelerate wraps that of
        # the whole model in autocast, as training begins. Unsloth has set some before.
        self._forwards = [(m, m.__dict__.get("forward"), set(m._forward_hooks)) for m in model.modules()]
        self._use_cache = getattr(model.config, "use_cache", True)
        super().__init__(model, *args, **kwargs)  # type: ignore[call-arg]

    def restore_model(self) -> None:
        """Undo what training changed in how the model computes, so that what is scored is what is saved.

        Under the autocast to bfloat16 that it would stay in, logits of the tiny base differed by 0.21 from those of the
        saved model.
        """
        model = self.model
        for module, forward, hooks in self._forwards:
            module.__dict__.pop("_original_forward", None)  # accelerate's
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.forward = forward
            for hook in module._forward_hooks.keys() - hooks:  # with gradient checkpointing, on the embedding
                del module._forward_hooks[hook]
        if self.args.gradient_checkpointing:
            model.gradient_checkpointing_disable()
        model.config.use_cache = self._use_cache
        model.eval()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """As the Trainer, but nothing after the last step: it would look at the number of steps only after one more."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)  # type: ignore[misc]
        else:
            self.control.should_training_stop = True

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer; keeps the loss for the divergence check."""
        loss = super().training_step(*args, **kwargs)  # type: ignore[misc]
        self.losses.append(loss.detach())
        return loss

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer, or the optimizer of a technique."""
        if self.optimizer is None and self.lora is not None:
            self.optimizer = optimizers.of_technique(self, self.lora)
        return super().create_optimizer(*args, **kwargs)  # type: ignore[misc]

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        if self.initial_factors is None:  # else `run` has loaded it
            super()._load_from_checkpoint(*args, **kwargs)  # type: ignore[misc]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is not None:
            self._set_base_rate(self.args.learning_rate)

    def _set_base_rate(self, rate: float) -> None:
        """Continue the schedule where it is, at the learning rate of the settings.

        A checkpoint brings back the rate that it was trained at, in its optimizer and in its scheduler, so that a
        lower --learning-rate on resume would have no effect.
        """
        scheduler = self.lr_scheduler
        first = scheduler.base_lrs[0]
        if first == rate:
            return
        # With LoRA+ the groups have rates of their own, in a fixed ratio to the first.
        bases = [rate * (base / first) for base in scheduler.base_lrs]
        scheduler.base_lrs = bases
        rates = [base * share(scheduler.last_epoch) for base, share in zip(bases, scheduler.lr_lambdas, strict=True)]
        for group, base, current in zip(self.optimizer.param_groups, bases, rates, strict=True):
            group["initial_lr"], group["lr"] = base, current
        scheduler._last_lr = rates

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step = self.state.global_step
        require_finite(model, f"after step {step}", restart_hint(self.checkpoints))
        name = f"checkpoint-{step}"
        with staged(self.checkpoints / name) as aside:
            # The Trainer appends its own `checkpoint-N` to output_dir, so its files end up one level too deep.
            output_dir, self.args.output_dir = self.args.output_dir, str(aside)
            try:
                super()._save_checkpoint(model, trial)  # type: ignore[misc]
            finally:
                self.args.output_dir = output_dir
            inner = aside / name
            for item in inner.iterdir():
                item.replace(aside / item.name)
            inner.rmdir()
            if self.initial_factors is not None:
                self.initial_factors.write_plain(aside)
            checkpoints.write_list(aside)
        self.remove_old_checkpoints()

    def remove_old_checkpoints(self) -> None:
        """Remove all but the newest `save_total_limit` checkpoints.

        One that an interruption saved between two regular ones is removed as soon as there is a newer one, so that a run that
        was interrupted ends with the checkpoints of one that was not.
        """
        known = complete_checkpoints(self.checkpoints)
        regular = [old for old in known if old == known[-1] or checkpoint_step(old) % self.args.save_steps == 0]
        for old in known:
            if old not in regular[-self.save_total_limit :] and not self._is_kept(checkpoint_step(old)):
                remove_tree(old)

    def _is_kept(self, step: int) -> bool:
        """Whether the checkpoint of a step is kept whatever its age."""
        return False

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """As the Trainer, but without warm-up in a run too short for one step of it: the first step's rate would be 0."""
        if 0 < self.args.warmup_steps < 1 and self.args.warmup_steps * num_training_steps < 1:
            self.args.warmup_steps = 0
        return super().create_scheduler(num_training_steps, optimizer)  # type: ignore[misc]

    def _send_telemetry(self) -> None:
        """Nothing: TRL 1.14 reports the kind of training, model and machine to the hub as a trainer is constructed."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: a checkpoint needs no model card."""


def training_arguments(config_class: Callable[..., Any], engine: Trainable, hooks: TrainingHooks, **own: object) -> Any:
    """The arguments of a TRL trainer: those that every method takes from the settings, and its own.

    Every field that Unsloth overrides by default (optim, seed, warm-up...) is given.

    Args:
        config_class: such as `trl.SFTConfig`.
        engine: whose weights are trained.
        hooks: where checkpoints go.
        own: fields of this method alone.
    """
    train, half, on_gpu = engine.config.train, half_precision(engine), engine.device == "cuda"
    arguments = config_class(
        output_dir=str(hooks.checkpoints),
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.lr_scheduler_type,
        warmup_steps=train.warmup_ratio,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        optim=engine.default_optimizer if train.optim == "auto" else train.optim,
        adam_beta1=0.9,
        adam_beta2=0.999,
        bf16=half == torch.bfloat16,
        fp16=half == torch.float16,
        gradient_checkpointing=train.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        seed=train.seed,
        data_seed=train.seed,
        logging_nan_inf_filter=False,  # by default a NaN loss is logged as the mean of the others
        save_strategy="steps",
        save_steps=train.save_steps,
        disable_tqdm=True,
        dataloader_pin_memory=on_gpu,
        use_cpu=not on_gpu,
        **trackers.arguments(train, hooks.run),
        **own,
    )
    engine.adapt_arguments(arguments)
    # With several GPUs, the Trainer would multiply the batch by their number and split it among copies of the model.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def half_precision(engine: Trainable) -> Any:
    """The 16-bit torch.dtype that autocast computes in, or float32 on a GPU; None for float32 on a CPU."""
    if engine.device == "cuda":
        return engine.dtype
    return torch.bfloat16 if engine.config.train.autocast and cpu_has_bfloat16() else None


def joins_rows(engine: Trainable) -> bool:
    """Whether batches are joined rows without padding. On a GPU that is left to Unsloth, and to packing."""
    return engine.device == "cpu" and engine.has_varlen_attention


def require_disk_space(model: Any, train: TrainConfig, hooks: TrainingHooks) -> None:
    """Note what training every weight takes, and make sure that the checkpoints fit on the disk.

    Raises:
        EngineError: they do not.
    """
    weights = 4 * sum(p.numel() for p in model.parameters())  # bytes, in float32
    moments = weights // 2 if "8bit" in train.optim else 2 * weights
    note(
        f"every weight is trained: {size(2 * weights + moments)} for weights and gradients in float32 and Adam's "
        "two moments"
    )
    kept = train.save_total_limit
    needed = (kept + 1) * (weights + moments)  # an old checkpoint is removed only once the next one is complete
    folder, free = free_space(hooks.checkpoints)
    if needed > free:
        raise EngineError(
            f"{kept} checkpoints of every weight, and one that is written, take {size(needed)}; the disk has {size(free)} free",
            where=str(folder),
            hint="free some, or --save-total-limit 1; --resume goes on from here",
        )


def configure_trainer(trainer: Any, engine: Trainable, hooks: TrainingHooks) -> None:
    """Give a new trainer its progress, the divergence check and the fields that `StagedCheckpoints` needs; trained weights in float32."""
    trainer.remove_callback(transformers.PrinterCallback)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            # TRL casts the adapter of a 4- or 8-bit model to bfloat16. The fp16 loss scaler refuses to unscale
            # 16-bit gradients, and in 16 bits most updates of a usual learning rate would round to nothing.
            parameter.data = parameter.data.float()
    trainer.checkpoints = hooks.checkpoints
    trainer.save_total_limit = engine.config.train.save_total_limit
    trainer.losses, trainer.step_loss = [], None
    trainer.lora = None if engine.config.train.full_finetuning else engine.config.lora
    trainer.initial_factors = engine.initial_factors
    trainer.context = PausableContext(lambda: engine.training_context(autocast_dtype(trainer.args)))
    trainer.add_callback(ReportProgress(trainer, hooks))
    trainer.add_callback(StopAtDivergence(trainer, hooks))


def run(trainer: Any, engine: Trainable, hooks: TrainingHooks, out_of_memory_hint: str) -> None:
    """Train to the end, from `hooks.resume_from` if it names a checkpoint.

    Args:
        trainer: after `configure_trainer`.
        engine: whose weights are trained.
        hooks: where checkpoints are.
        out_of_memory_hint: what a user can lower.

    Raises:
        DivergedError: the loss or the gradient is not finite.
        EngineError: memory ran out, or a trained weight is not finite at the end.
        KeyboardInterrupt: Ctrl-C or SIGTERM, once the step is complete and its checkpoint saved.
    """
    if hooks.resume_from and engine.initial_factors is not None:
        # Before the context, whose faster layers take the weights of the base as they are.
        engine.initial_factors.resume(hooks.resume_from)
    trainer.remove_old_checkpoints()  # a process may have been killed between saving one and this
    announcement = "interrupted: the step is finished and a checkpoint saved; once more ends at once"
    try:
        with interrupts.deferred(announcement) as signals, trainer.context:
            trainer.add_callback(SaveWhenInterrupted(signals))
            trainer.train(resume_from_checkpoint=str(hooks.resume_from) if hooks.resume_from else None)
    except torch.OutOfMemoryError as error:
        raise out_of_memory("training", hint=out_of_memory_hint) from error
    finally:
        trainer.restore_model()
    require_finite(trainer.model, f"after step {trainer.state.global_step}", restart_hint(hooks.checkpoints))


def report(trainer: Any, engine: Trainable, samples: Sequence[Sample], began: float) -> FitReport:
    """What training did, for `fit.json`. Call it before `engine.training_finished`, which may change what is in use.

    Args:
        trainer: after `run`.
        engine: whose weights were trained.
        samples: the rows that were trained on.
        began: `time.monotonic()` when training began.
    """
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    table = Samples.of(samples)
    return FitReport(
        version=VERSION,
        steps=trainer.state.global_step,
        seconds=round(time.monotonic() - began, 2),
        loss_first=losses[0] if losses else None,
        loss_last=losses[-1] if losses else None,
        rows=len(samples),
        tokens=int(table.lengths.sum()),
        supervised=int(table.supervised.sum()),
        extra=engine.facts().model_copy(
            update={"packed": is_packed(trainer), "autocast": _autocast_name(trainer.args)}
        ),
    )


def is_packed(trainer: Any) -> bool:
    """Whether TRL put several rows into one sequence; it then adds a column with their lengths."""
    return "seq_lengths" in trainer.train_dataset.column_names


def autocast_dtype(arguments: Any) -> torch.dtype | None:
    """The type that autocast computes in; None without it."""
    return torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else None


def _autocast_name(arguments: Any) -> str | None:
    dtype = autocast_dtype(arguments)
    return None if dtype is None else str(dtype).removeprefix("torch.")
