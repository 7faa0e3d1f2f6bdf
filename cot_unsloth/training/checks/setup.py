"""Checks of settings, model and machine: whether a run can start here, and what it would need.

Each check is a function from settings (and the prepared data) to findings. Only a tokenizer and the headers of weights are
loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from cot_unsloth import tasks
from cot_unsloth.config import TINY_BASE, RunConfig
from cot_unsloth.core.errors import ConfigError, CotError, DataError, InputError, cannot_load
from cot_unsloth.core.findings import Finding
from cot_unsloth.core.json_text import parse_json
from cot_unsloth.core.progress import size
from cot_unsloth.core.statistics import resolvable
from cot_unsloth.models import estimate, estimate_time, registry, techniques
from cot_unsloth.models.adapter_files import starting_adapter
from cot_unsloth.models.estimate import Shape
from cot_unsloth.models.estimate_time import Work
from cot_unsloth.prompts.tokenizer import model_path
from cot_unsloth.storage.atomic import free_space
from cot_unsloth.storage.run_folder import RunDir
from cot_unsloth.training import preparation, training_problems
from cot_unsloth.training.preparation import Prepared

_USUAL_RATES = {False: (1e-6, 2e-3), True: (1e-7, 1e-4)}
"""Usual learning rates by `full_finetuning`, for models of a hundred million weights and more ("LoRA Without Regret", PEFT's
method comparison); outside this range training diverges or changes nothing."""
_SMALL = 50_000_000
"""Smaller models take higher rates: the demo's 2.3M weights take 4e-3."""
_LARGE_BATCH = 64
"""Rows per optimizer step above which LoRA learns less from the same rows ("LoRA Without Regret" advises 32)."""
_MIN_DETECTABLE = 0.15
"""A difference that a comparison should be able to detect. The share of problems on which arms differ is a guess here, so
this is wider than the verdict's; the default of 200 problems detects 11 points."""
_DISCORDANT = 0.3
"""Assumed share of problems that exactly one of two arms solves; McNemar's test has only these to go by."""
_BILLIONS_NOT_FOR_LONG_CHAINS = 3.5e9
_LONG_CHAIN = 1024
"""Tokens: models of 3B and below do not gain reliably from longer chains (arXiv 2502.12143)."""
_TROUBLESHOOTING = "docs/troubleshooting.md lists messages and what helps"


def fault(error: CotError) -> Finding:
    """An error as a finding."""
    pages: dict[type[CotError], str] = {
        ConfigError: "docs/options.md lists every setting",
        DataError: "docs/data.md describes the formats and layouts that can be read",
    }
    documentation = next((page for kind, page in pages.items() if isinstance(error, kind)), _TROUBLESHOOTING)
    return Finding("fault", error.name, error.message, error.where or "", error.hint or documentation)


def run_folder(config: RunConfig) -> Iterator[Finding]:
    """Whether the run's folder can be written to."""
    if config.train.run_dir is None:
        return
    try:
        RunDir(config.train.run_dir).check(config, resume=False)
    except InputError as error:
        yield fault(error)


def forgetting_task(config: RunConfig) -> Iterator[Finding]:
    """Whether the task that forgetting is measured on exists, and is not trained on."""
    name, trained = config.evaluate.forgetting, config.data.dataset
    if name is None or not tasks.is_task_dataset(name):
        return
    try:
        shared = tasks.names_of(name) & (tasks.names_of(trained) if tasks.is_task_dataset(trained) else frozenset())
    except InputError as error:
        yield fault(error)
        return
    if shared:
        yield Finding(
            "fault", "trained_on", f"{', '.join(sorted(shared))} is trained on, so it cannot show what is forgotten",
            "evaluate.forgetting", "name a task that is not in data.dataset",
        )  # fmt: skip


def engine(config: RunConfig) -> Iterator[Finding]:
    """Whether the requested engine is installed, with the libraries it needs."""
    refused = None
    try:
        techniques.check(config, registry.choose(config.model).engine)
    except InputError as error:
        refused = error.where
        yield fault(error)
    obstacle = registry.obstacle(config.model)
    if obstacle and obstacle.where != refused:  # one fault per setting
        yield fault(obstacle)
    try:
        registry.check_optimizer(config.train)
    except InputError as error:
        yield fault(error)


def rates(config: RunConfig, shape: Shape | None) -> Iterator[Finding]:
    """Optimizer and adapter settings far from what usually works."""
    train = config.train
    low, high = _USUAL_RATES[train.full_finetuning]
    small = config.model.model_name_or_path == TINY_BASE or (shape is not None and shape.parameters < _SMALL)
    if not (low <= train.learning_rate < (10 * high if small else high)):
        yield Finding(
            "warning", "unusual_learning_rate",
            f"{train.learning_rate:g} is outside the usual range for {'every weight' if train.full_finetuning else 'an adapter'} of "
            f"such a model ({low:g} to {high:g})",
            "train.learning_rate", "--learning-rate 1e-5" if train.full_finetuning else "--learning-rate 2e-4",
        )  # fmt: skip
    batch = train.rows_per_step
    if batch > _LARGE_BATCH and not train.full_finetuning:
        yield Finding(
            "warning", "large_batch", f"an optimizer step takes {batch} rows; LoRA learns more from the same rows with 32 or fewer",
            "train.gradient_accumulation_steps", "lower it, or --per-device-train-batch-size",
        )  # fmt: skip
    if not config.lora.use_rslora and config.lora.lora_alpha > 8 * config.lora.lora_r:
        yield Finding(
            "warning", "unusual_alpha", f"lora_alpha {config.lora.lora_alpha} is {config.lora.lora_alpha / config.lora.lora_r:g} times "
            "the rank, which scales the adapter's steps as much", "lora.lora_alpha", "twice the rank is the usual choice",
        )  # fmt: skip


def modules(config: RunConfig, shape: Shape | None) -> Iterator[Finding]:
    """Target modules of the adapter that the model does not have."""
    requested = config.lora.target_modules
    if shape is None or not shape.linear or requested == ("all-linear",) or config.train.full_finetuning:
        return
    absent = [name for name in requested if name.rpartition(".")[2] not in shape.linear]
    if absent:
        yield Finding(
            "fault", "no_such_module", f"the model has no module {', '.join(absent)}",
            "lora.target_modules", f"it has {', '.join(sorted(shape.linear))}",
        )  # fmt: skip


def check_model_files(config: RunConfig) -> Iterator[Finding]:
    """Whether the weights of a local model exist and are complete, and the adapter to continue belongs to it."""
    try:
        starting_adapter(config)
    except InputError as error:
        yield fault(error)
    folder = Path(model_path(config.model.model_name_or_path))
    if not folder.is_dir():
        return
    from cot_unsloth.export.weights import Weights  # imports numpy

    if not (folder / "config.json").is_file():
        yield Finding(
            "fault", "no_model_config", "holds no config.json", str(folder), "give a folder with a complete model"
        )
        return
    yield from _architecture(folder)
    try:
        Weights(folder)
    except InputError as error:
        yield fault(error)


def _architecture(folder: Path) -> Iterator[Finding]:
    """Whether transformers supports the model in config.json, without code from the model's repository."""
    import transformers

    about, where = folder / "config.json", str(folder / "config.json")
    hint = "choose a model whose architecture is part of transformers, or upgrade transformers"
    try:
        kind = parse_json(about.read_text(encoding="utf-8")).get("model_type")
        model_config = transformers.AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        yield Finding(
            "fault", "broken_model_config", f"cannot be read: {reason}", where, "give a folder with a complete model"
        )
        return
    except Exception as error:  # an unknown type, custom code, or values that its class refuses
        known = kind in transformers.CONFIG_MAPPING
        message = (
            f"cannot be used: {str(error).splitlines()[0]}"
            if known
            else f"model_type {kind!r} is not known to transformers"
        )
        name = "broken_model_config" if known else "unknown_architecture"
        yield fault(cannot_load(message, error, where=where, hint=hint, name=name))
        return
    if type(model_config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        yield Finding("fault", "unknown_architecture", f"model_type {kind!r} is not a language model", where, hint)


def positions(config: RunConfig, shape: Shape | None) -> Iterator[Finding]:
    """Rows or answers longer than the model's number of positions."""
    if shape is None or shape.positions is None:
        return
    for leaf, value in (
        ("data.max_seq_length", config.data.max_seq_length),
        ("evaluate.max_new_tokens", config.evaluate.max_new_tokens),
    ):
        if value > shape.positions:
            flag = "--" + leaf.rpartition(".")[2].replace("_", "-")
            yield Finding(
                "warning", "beyond_positions", f"{leaf} is {value:,}; the model supports {shape.positions:,} positions",
                leaf, f"{flag} {shape.positions}",
            )  # fmt: skip


def exports(config: RunConfig, prepared: Prepared) -> Iterator[Finding]:
    """Whether the requested exports can be written from this model, and verified here.

    A model on the hub is not checked, since that would download its weights; `train` checks it once it has them.
    """
    if not config.export.asks:
        return
    if Path(model_path(config.model.model_name_or_path)).is_dir():
        from cot_unsloth.export import run as exporting  # imports numpy

        try:
            exporting.check_base(config, prepared.renderer.chat)
        except InputError as error:
            yield fault(error)
    if (config.export.gguf or config.export.lora_gguf) and not registry.installed("xllamacpp"):
        yield Finding(
            "warning" if config.export.allow_unverified else "fault", "no_llama_cpp",
            "xllamacpp is not installed, so an exported file cannot be verified", "export.gguf", "pip install xllamacpp",
        )  # fmt: skip


def power(config: RunConfig, problems: int) -> Iterator[Finding]:
    """Whether the number of held-out problems can show a difference."""
    if not config.evaluate.eval_samples or not config.evaluate.arms:
        yield Finding(
            "warning", "nothing_scored", "eval_samples is 0, so nothing will show whether the model got better",
            "evaluate.eval_samples", "--eval-samples 200",
        )  # fmt: skip
        return
    world = tasks.is_task_dataset(config.data.dataset)
    more = "--eval-samples" if world or problems >= config.evaluate.eval_samples else "--test-fraction, or add rows"
    if not problems:
        yield Finding(
            "warning", "nothing_scored", "no question is held out that can be scored: nothing will show whether the model got better",
            "data.test_fraction", "--test-fraction 0.2, add rows, or score on --benchmark gsm8k",
        )  # fmt: skip
        return
    least = resolvable(problems, _DISCORDANT)
    if least is not None and least <= _MIN_DETECTABLE:
        yield Finding(
            "note", "problems", f"{problems:,} held-out problems will be scored, which detects differences of {100 * least:.0f} points or more "
            f"if two arms disagree on {_DISCORDANT:.0%} of the problems",
        )  # fmt: skip
    else:
        detected = (
            f"detects only differences of {100 * least:.0f} points or more"
            if least is not None
            else "can show no difference at all"
        )
        yield Finding(
            "warning", "few_problems", f"{problems:,} held-out problem{'s' * (problems != 1)} will be scored, which {detected}"
            + (f" (if two arms disagree on {_DISCORDANT:.0%} of the problems)" if least is not None else ""),
            "evaluate.eval_samples", f"raise {more}" + ("" if world else "; or score on --benchmark gsm8k"),
        )  # fmt: skip


def steps(config: RunConfig, prepared: Prepared) -> Iterator[Finding]:
    """The number of optimizer steps, with a warning if it is low."""
    if config.train.method == "rft":  # its rows are not known yet
        return
    try:
        rows = preparation.examples_per_epoch(config, prepared)
    except DataError as error:
        yield fault(error)
        return
    count = preparation.optimizer_steps(config, rows)
    few = count < preparation.FEW_STEPS
    line, _, advice = preparation.describe_steps(config, rows).partition(": ")
    how = advice.partition("; ")
    epochs = -(-preparation.USUAL_STEPS * config.train.num_train_epochs // max(count, 1))
    hint = (
        f"{how[2]} (about {epochs:g} epochs would make {preparation.USUAL_STEPS} steps)"
        if config.train.max_steps < 1
        else how[2]
    )
    yield Finding(
        "warning" if few else "note", "few_steps" if few else "steps", f"{line}: {how[0]}" if few else line, "", hint
    )
    if count < config.train.save_steps and count > preparation.USUAL_STEPS:
        yield Finding(
            "warning", "no_checkpoint", f"a checkpoint is saved every {config.train.save_steps} steps, and the run has {count}: if killed, "
            "it starts over", "train.save_steps", f"--save-steps {max(1, count // 5)}",
        )  # fmt: skip


def chain_length(shape: Shape | None, prepared: Prepared) -> Iterator[Finding]:
    """Long chains of thought in the data of a small model."""
    lengths = prepared.samples.supervised.copy()
    lengths.sort()
    median = int(lengths[len(lengths) // 2])
    if shape is not None and shape.parameters < _BILLIONS_NOT_FOR_LONG_CHAINS and median > _LONG_CHAIN:
        yield Finding(
            "warning", "long_chains", f"half of the answers have {median:,} tokens or more; models of 3B and below do not gain reliably "
            "from chains that long (arXiv 2502.12143)", "", "mix in short ones, about four to one",
        )  # fmt: skip


def check_machine(config: RunConfig, shape: Shape | None, prepared: Prepared | None) -> Iterator[Finding]:
    """Estimates of the memory, disk and time that a run needs, with their margins, against what this machine has."""
    if shape is None:
        name = config.model.model_name_or_path
        message = (
            f"{name} is not on this machine, and its name does not contain its size: memory and time are not estimated"
        )
        yield Finding("note", "unknown_size", message)
        return
    from cot_unsloth.models.devices import pick_device  # imports torch

    device = pick_device()
    yield _memory(config, shape, prepared, device)
    yield from _disk(config, shape)
    yield _time(config, shape, prepared, device)


def _memory(config: RunConfig, shape: Shape, prepared: Prepared | None, device: str) -> Finding:
    longest = int(prepared.samples.lengths.max()) if prepared else config.data.max_seq_length
    needed, (total, location) = estimate.memory(config, shape, longest, device), estimate.room(device)
    guessed = ", a guess from its name" if shape.guessed else ""
    line = f"{estimate.describe_memory(needed, total, location)}; {shape.parameters / 1e6:,.0f}M weights{guessed}"
    if needed.weights > total:
        line += ", which alone do not fit"
        if not shape.guessed:
            return Finding("fault", "too_little_memory", line, "", estimate.SMALLER)
    if needed.total > total:
        return Finding("warning", "tight_memory", line, "", estimate.SMALLER)
    return Finding("note", "memory", line)


def _disk(config: RunConfig, shape: Shape) -> Iterator[Finding]:
    place, free = free_space(Path(config.train.run_dir or "runs").absolute())
    kept, exported = estimate.checkpoint_bytes(config, shape), estimate.export_bytes(config, shape)
    line = f"checkpoints take about {size(kept)}, exported files {size(exported)}; {size(free)} are free at {place}"
    if kept + exported > free:
        yield Finding("fault", "too_little_disk", line, "", "free some, --save-total-limit 1, or another --run-dir")
    else:
        yield Finding("note", "disk", line)


def _time(config: RunConfig, shape: Shape, prepared: Prepared | None, device: str) -> Finding:
    if config.train.method == "sft":
        work = _work(config, prepared)
        took = estimate_time.seconds_here(config, shape, work, device)
        total, line = took.total, estimate_time.describe_time(config, took, work, device)
    else:
        drawn = estimate_time.attempts(config, _problems(config, prepared))
        total, line = estimate_time.describe_attempts(config, shape, drawn, device)
    if total > estimate_time.LONG:
        return Finding("warning", "takes_long", line, "", estimate_time.FASTER)
    return Finding("note", "time", line)


def _problems(config: RunConfig, prepared: Prepared | None) -> int | None:
    """The number of problems that attempts are drawn at, if it is known; that there are none is reported with the steps."""
    try:
        return training_problems.count(config, prepared.train) if prepared else None
    except DataError:
        return None


def _work(config: RunConfig, prepared: Prepared | None) -> Work:
    if prepared is None:
        return estimate_time.assumed_work(config)
    lengths, supervised = prepared.samples.lengths, prepared.samples.supervised
    steps = preparation.optimizer_steps(config, len(prepared.samples))
    tokens = int(steps * config.train.rows_per_step * float(lengths.mean()))
    return Work(tokens, steps, len(prepared.problems), int(supervised.mean()))


def in_short(config: RunConfig, shape: Shape, prepared: Prepared) -> str:
    """The estimated time and memory of a run on this machine, in one line."""
    from cot_unsloth.models.devices import pick_device

    device = pick_device()
    needed = estimate.memory(config, shape, int(prepared.samples.lengths.max()), device).total
    total, location = estimate.room(device)
    time = _time(config, shape, prepared, device).message
    return f"estimate: {time}; memory {size(needed)} of {size(total)} {location}"
