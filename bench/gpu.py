"""Training on one GPU, side by side: `python bench/gpu.py --out bench/results/gpu`.

Models have real shapes and random weights, rows have random ids and realistic lengths, and each contender is a process of
its own. The result of a stage is in `OUT/STAGE.json`, with hardware, versions and command; its raw log is in `OUT/logs`. A
finished stage is not repeated, so the script resumes where it was interrupted; no stage takes more than a few minutes.
`--tiny` runs the same code on a CPU, which tests the code and gives no figures.

Contenders of the training stages (4-bit base, LoRA of rank 16 on all projections, batch 2 x 4):

- ours: the `unsloth` engine with packed rows;
- ours-unpacked: the same with padded rows;
- unsloth-notebook: FastLanguageModel and SFTTrainer as in Unsloth's notebooks, without packing; as there, Unsloth itself
  decides whether to remove padding;
- trl: transformers, bitsandbytes, PEFT and SFTTrainer with SDPA as in TRL's documentation of QLoRA.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import shapes

STEPS, WARM_UP, PROFILED = 14, 4, 2
"""Optimizer steps of a training stage; of these, the first ones that do not count, because kernels are compiled in them;
and further steps that run under a profiler."""
RANK, BATCH, ACCUMULATE = 16, 2, 4
CONTENDERS = ("ours", "ours-unpacked", "unsloth-notebook", "trl")
CAPS = (15, 12, 8)
"""GiB of memory that training may use, to simulate smaller cards."""
LONGEST = (512, 1024, 2048, 4096, 8192, 16384)
GIB = 2**30
SEED = 3407


@dataclass(frozen=True)
class Work:
    """The task of a stage."""

    model: str
    """One of `shapes.SHAPES`."""
    rows: str
    """Lengths, as `shapes.lengths` takes them."""
    longest: int
    """Most tokens of a row."""
    contender: str = "ours"
    cap: float = 0.0
    """GiB of GPU memory that may be used; 0 for all."""
    dtype: str = "auto"
    bits: int = 4
    steps: int = STEPS

    @property
    def shape(self) -> dict[str, Any]:
        """The config of the model."""
        return shapes.SHAPES[self.model]


def stages(tiny: bool) -> dict[str, tuple[str, Work]]:
    """All stages by name: the key of their function in `DO`, and their task."""
    names = ("tiny",) if tiny else ("llama-3.2-3b", "qwen2.5-7b")
    by_name: dict[str, tuple[str, Work]] = {}
    for model in names:
        for rows, longest in (("gsm8k", 512),) if tiny else (("gsm8k", 2048), ("traces", 8192)):
            for contender in CONTENDERS:
                work = Work(model, rows, longest, contender, steps=6 if tiny else STEPS)
                by_name[f"train-{model}-{rows}-{contender}"] = ("train", work)
    for model in names:
        for cap in CAPS[:1] if tiny else CAPS:
            dtype = "float32" if tiny else "float16"
            work = Work(model, "", 0, "ours", cap, dtype, steps=2)
            by_name[f"cap-{model}-{cap}"] = ("cap", work)
    first = names[0]
    by_name[f"fp16-{first}"] = ("fp16", Work(first, "gsm8k", 512 if tiny else 2048, dtype="float32" if tiny else "float16",
                                           steps=6 if tiny else 30))  # fmt: skip
    by_name[f"resume-{first}"] = ("resume", Work(first, "gsm8k", 512, steps=4))
    by_name[f"generate-{first}"] = ("generate", Work(first, "256", 256, bits=16))
    by_name[f"export-{first}"] = ("export", Work(first, "", 0, bits=16))
    return by_name


def base_of(model: str, work: Path) -> Path:
    """The folder of a model of that shape with random 16-bit weights; made if it does not exist."""
    folder = work / model
    if (folder / "config.json").is_file():
        return folder
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from cot_unsloth.prompts.tokenizer import model_path

    tokenizer = AutoTokenizer.from_pretrained(model_path("tiny-base"), trust_remote_code=False)
    config = AutoConfig.for_model(**{k: v for k, v in shapes.SHAPES[model].items() if k != "architectures"})
    config.eos_token_id, config.pad_token_id, config.bos_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id, None
    torch.manual_seed(SEED)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        base = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    base.generation_config.eos_token_id, base.generation_config.pad_token_id = (
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )
    aside = folder.with_suffix(".part")
    base.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    aside.rename(folder)
    return folder


def samples_of(work: Work, n: int) -> list[Any]:
    """Rows of random ids; the last part of each carries loss."""
    from cot_unsloth.core.types import IGNORE, Sample

    rng, samples = random.Random(SEED), []
    for index, length in enumerate(shapes.lengths(work.rows, n, work.longest, SEED)):
        ids = tuple(rng.randrange(8, work.shape["vocab_size"] - 8) for _ in range(length))
        prompt = length - max(1, round(shapes.SUPERVISED * length))
        samples.append(Sample(ids, (IGNORE,) * prompt + ids[prompt:], str(index)))
    return samples


def settings_of(work: Work, base: Path, **more: Any) -> Any:
    """The settings of our runs."""
    from cot_unsloth.config import load_tree

    gpu = has_gpu()
    flags = {
        "model_name_or_path": str(base), "engine": "unsloth", "dtype": work.dtype if gpu else "float32",
        "load_in_4bit": work.bits == 4, "lora_r": RANK, "lora_alpha": RANK, "max_seq_length": work.longest or 2048,
        "per_device_train_batch_size": BATCH, "gradient_accumulation_steps": ACCUMULATE, "max_steps": work.steps,
        "gradient_checkpointing": True, "packing": work.contender == "ours", "logging_steps": 1, "save_steps": 100000,
        "autocast": False, "seed": SEED,
    }  # fmt: skip
    return load_tree({}, flags | more)


def has_gpu() -> bool:
    """Whether torch finds a GPU."""
    import torch

    return bool(torch.cuda.is_available())


def open_ours(config: Any) -> Any:
    """Our engine, with the model loaded."""
    from cot_unsloth.models import registry
    from cot_unsloth.models.registry import Choice
    from cot_unsloth.prompts.opening import open_renderer

    choice = Choice("unsloth", "asked for")
    registry.apply_patches(choice)
    return registry.load(config, open_renderer(config.model, config.data).chat, choice)


class Clock:
    """The end of each optimizer step, the real tokens (no padding) up to then, and the loss.

    With `profile_after`, the steps after that one run under a profiler and do not count.
    """

    def __init__(self, profile_after: int = 0) -> None:
        self.ends: list[float] = [time.perf_counter()]
        self.tokens: list[int] = [0]
        self.losses: list[float] = []
        self.profile: dict[str, Any] | None = None
        self.peak = (0, 0)
        """Peak bytes allocated and reserved in the timed steps."""
        self._profile_after = profile_after
        self._profiler: Any = None
        self._beyond: list[float] = []

    def tick(self, tokens: int) -> None:
        """Record the end of a step."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if self._profiler is not None:
            self._beyond.append(time.perf_counter())
            if len(self._beyond) > PROFILED:
                self.profile = profile_of(self._profiler, self._beyond[-1] - self._beyond[0])
            return
        self.ends.append(time.perf_counter())
        self.tokens.append(tokens)
        if torch.cuda.is_available():
            self.peak = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
            if len(self.tokens) - 1 == self._profile_after:
                self._profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
                self._profiler.__enter__()
                self._beyond = [time.perf_counter()]

    def figures(self, work: Work, warm_up: int) -> dict[str, Any]:
        """Speed, memory and losses; the first `warm_up` steps are listed separately."""
        import torch

        seconds = [b - a for a, b in zip(self.ends, self.ends[1:], strict=False)]
        kept = seconds[warm_up:]
        tokens = self.tokens[-1] - self.tokens[warm_up]
        rate = tokens / sum(kept)
        figures: dict[str, Any] = {
            "steps": len(kept), "tokens": tokens, "tokens_per_second": round(rate, 1),
            "step_seconds": {"median": round(statistics.median(kept), 4), "all": [round(s, 4) for s in kept]},
            "warm_up_seconds": [round(s, 3) for s in seconds[:warm_up]], "losses": self.losses[: len(seconds)],
        }  # fmt: skip
        if torch.cuda.is_available():
            name = torch.cuda.get_device_name()
            drawn = shapes.lengths(work.rows, 1000, work.longest, SEED)
            row = sum(n * n for n in drawn) / sum(drawn)
            peak = next((peak for card, peak in shapes.PEAK.items() if card in name), None)
            figures["peak_memory_gib"], figures["peak_reserved_gib"] = (round(size / GIB, 3) for size in self.peak)
            if peak:
                figures["model_flop_utilisation"] = round(rate * shapes.flops_per_token(work.shape, row) / peak, 4)
        return figures


def profile_of(profiler: Any, seconds: float) -> dict[str, Any]:
    """What the GPU did in the profiled steps: the share of time in which it computed, and the kernels that took most."""
    try:
        profiler.__exit__(None, None, None)
        events = profiler.key_averages()
    except RuntimeError as error:  # no permission to read the card's counters; the times do not need them
        return {"error": str(error)}
    kernels = [
        e
        for e in events
        if str(e.device_type).endswith("CUDA")
        and e.self_device_time_total
        and not getattr(e, "is_user_annotation", False)  # a span around kernels, which are counted one by one
    ]
    kernels.sort(key=lambda e: -e.self_device_time_total)
    busy = sum(e.self_device_time_total for e in kernels) / 1e6
    return {
        "steps": PROFILED,
        "seconds": round(seconds, 4),
        "gpu_busy": round(busy / seconds, 4),
        "launches": sum(e.count for e in kernels),
        "kernels": [
            {"name": e.key[:160], "count": e.count, "ms": round(e.self_device_time_total / 1e3, 2)}
            for e in kernels[:25]
        ],
    }


def rows_needed(work: Work) -> int:
    """Enough rows for all steps, packed or not: a pack has as many rows as fit."""
    packed = 1.0
    if work.contender == "ours":
        packed = max(1.0, work.longest / statistics.fmean(shapes.lengths(work.rows, 1000, work.longest, SEED)))
    return math.ceil((work.steps + PROFILED) * BATCH * ACCUMULATE * packed * 1.1)


def train(work: Work, folder: Path) -> dict[str, Any]:
    """Train one contender for a few steps."""
    fit = {"trl": fit_trl, "unsloth-notebook": fit_notebook}.get(work.contender, fit_ours)
    clock = Clock(profile_after=work.steps)
    longer = replace(work, steps=work.steps + PROFILED) if has_gpu() else work
    facts = fit(longer, base_of(work.model, folder), samples_of(work, rows_needed(work)), folder, clock)
    return clock.figures(work, min(WARM_UP, work.steps // 3)) | {"facts": facts, "profile": clock.profile}


def fit_ours(work: Work, base: Path, rows: Sequence[Any], folder: Path, clock: Clock, **more: Any) -> Any:
    """Train with our engine.

    Raises:
        RuntimeError: rows should have been packed, and the trainer did not pack them.
    """
    from cot_unsloth.training.method import TrainingHooks
    from cot_unsloth.training.sft import fit

    engine = open_ours(settings_of(work, base, **more))

    def on_start(total: int) -> None:
        clock.ends = [time.perf_counter()]

    hooks = TrainingHooks(
        folder / "checkpoints", on_start=on_start, on_step=lambda step: clock.tick(step.tokens),
        on_log=lambda row: clock.losses.append(float(row["loss"])),
    )  # fmt: skip
    report = fit(engine, rows, hooks)
    if has_gpu() and work.contender == "ours" and not report.extra.packed:
        raise RuntimeError("the rows were not packed: these figures would be those of ours-unpacked")
    return report.extra.as_json()


def watcher(clock: Clock) -> Any:
    """A callback that reports to the clock, for trainers that are not ours."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.ends = [time.perf_counter()]

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in (logs or {}):
                clock.losses.append(float(logs["loss"]))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.tick(int(state.num_input_tokens_seen))

    return Watch()


def peers_arguments(folder: Path, **more: Any) -> Any:
    """The arguments that both peers share: the same work, and a count of real tokens."""
    import trl

    return trl.SFTConfig(
        output_dir=str(folder / "peer"), per_device_train_batch_size=BATCH, gradient_accumulation_steps=ACCUMULATE,
        logging_steps=1, logging_first_step=True, report_to="none", save_strategy="no", seed=SEED,
        data_seed=SEED, train_sampling_strategy="random", disable_tqdm=True,
        include_num_input_tokens_seen="non_padding", max_length=None, use_cpu=not has_gpu(), **more,
    )  # fmt: skip


def dataset_of(rows: Sequence[Any]) -> Any:
    """The rows as a data set for both peers."""
    import datasets

    return datasets.Dataset.from_dict(
        {"input_ids": [list(r.ids) for r in rows], "labels": [list(r.labels) for r in rows]}
    )


def fit_notebook(work: Work, base: Path, rows: Sequence[Any], folder: Path, clock: Clock) -> Any:
    """Train as Unsloth's notebooks do: batch 2 x 4, adamw_8bit, its own checkpointing, no packing."""
    from cot_unsloth.models.unsloth_engine import import_unsloth

    fast = import_unsloth().FastLanguageModel
    import torch
    import trl

    gpu = has_gpu()
    model, tokenizer = fast.from_pretrained(
        model_name=str(base), max_seq_length=work.longest, dtype=None if gpu else torch.float32,
        load_in_4bit=work.bits == 4, trust_remote_code=False,
    )  # fmt: skip
    model = fast.get_peft_model(
        model, r=RANK, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        lora_alpha=RANK, lora_dropout=0, bias="none", use_gradient_checkpointing="unsloth", random_state=SEED,
    )  # fmt: skip
    half = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    arguments = peers_arguments(
        folder, max_steps=work.steps, learning_rate=2e-4, warmup_steps=5, weight_decay=0.01, lr_scheduler_type="linear",
        optim="adamw_8bit" if gpu else "adamw_torch", bf16=gpu and half, fp16=gpu and not half, packing=False,
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        model=model, args=arguments, train_dataset=dataset_of(rows), processing_class=tokenizer,
        callbacks=[watcher(clock)],
    )  # fmt: skip
    trainer.train()
    return {"attention": "unsloth's own"}


def fit_trl(work: Work, base: Path, rows: Sequence[Any], folder: Path, clock: Clock) -> Any:
    """Train as TRL's documentation of QLoRA shows: NF4 with double quantization, SDPA, gradient checkpointing."""
    import peft
    import torch
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    gpu = has_gpu()
    half = torch.bfloat16 if gpu and torch.cuda.get_device_capability() >= (8, 0) else torch.float16
    dtype = half if gpu else torch.float32
    bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    model = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=bits, attn_implementation="sdpa", dtype=dtype, device_map={"": 0} if gpu else None,
        trust_remote_code=False,
    )  # fmt: skip
    arguments = peers_arguments(
        folder, max_steps=work.steps, learning_rate=2e-4, bf16=gpu and half == torch.bfloat16,
        fp16=gpu and half == torch.float16, gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        model=model, args=arguments, train_dataset=dataset_of(rows),
        processing_class=AutoTokenizer.from_pretrained(base, trust_remote_code=False), callbacks=[watcher(clock)],
        peft_config=peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip
    trainer.train()
    return {"attention": str(trainer.model.config._attn_implementation)}


_NO_MEMORY = "out of memory"


def cap(work: Work, folder: Path) -> dict[str, Any]:
    """The longest rows that can be trained within a limit of memory; each length is a process of its own.

    As many run at a time as fit into the card's memory. Lengths that were tried before are not repeated.

    Raises:
        RuntimeError: one failed for a reason other than memory.
    """
    import torch

    record = folder / f"cap-{work.model}-{work.cap:g}.json"  # an interrupted call resumes after its last length
    tried: dict[str, Any] = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    total = torch.cuda.get_device_properties(0).total_memory / GIB if has_gpu() else 0
    failed = []
    with ThreadPoolExecutor(max(1, int(0.9 * total / work.cap))) as pool:
        lengths = [length for length in LONGEST[: 1 if work.model == "tiny" else None] if str(length) not in tried]
        probes = {pool.submit(within, work, length, folder): length for length in lengths}
        for done in as_completed(probes):
            length, (outcome, error) = probes[done], done.result()
            if outcome is None:
                failed.append(f"{length} tokens within {work.cap} GiB: {error}")
                continue
            tried[str(length)] = outcome
            record.write_text(json.dumps(tried), encoding="utf-8")
    if failed:
        raise RuntimeError("\n".join(failed))
    fits = max((int(length) for length, outcome in tried.items() if outcome != _NO_MEMORY), default=0)
    tried = dict(sorted(tried.items(), key=lambda item: int(item[0])))
    return {"cap_gib": work.cap, "dtype": work.dtype, "longest": fits, "tried": tried, "batch": 1}


def within(work: Work, length: int, folder: Path) -> tuple[Any, str]:
    """Memory and losses with rows of one length, or that they do not fit; None and the error if it failed otherwise."""
    probed = {"cap": work.cap, "length": length, "model": work.model}
    command = [sys.executable, __file__, "--probe", json.dumps(probed), "--work", str(folder)]
    # Unsloth sizes the chunks of its loss by the card's memory, and does not know the limit. Compiling each block would take
    # longer than the two steps.
    environment = {
        **os.environ,
        "UNSLOTH_CE_LOSS_TARGET_GB": str(work.cap / 16),
        "UNSLOTH_BLOCK_COMPILE": "0",
        "UNSLOTH_COMPILE_LOCATION": str(folder / f"compiled-{work.model}-{work.cap:g}-{length}"),
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    reports = [line for line in done.stdout.splitlines() if line.startswith('{"peak')]
    if done.returncode == 0 and reports:
        return json.loads(reports[-1]), ""
    if "out of memory" in done.stderr.lower():
        return _NO_MEMORY, ""
    return None, done.stderr[-2000:]


def probe(probed: dict[str, Any], folder: Path) -> None:
    """Train two steps on rows of one length, one row at a time, within a limit of memory; prints memory and losses."""
    import torch

    work = Work(
        probed["model"], str(probed["length"]), probed["length"], "ours-unpacked", probed["cap"], "float16", steps=2
    )  # fmt: skip
    if has_gpu():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, probed["cap"] * GIB / total))
    one = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    clock = Clock()
    own_folder = folder / f"probe-{os.getpid()}"
    fit_ours(work, base_of(work.model, folder), samples_of(work, 2), own_folder, clock, **one)
    print(json.dumps({"peak_gib": clock.figures(work, 0).get("peak_reserved_gib"), "losses": clock.losses}))


def fp16(work: Work, folder: Path) -> dict[str, Any]:
    """Thirty steps in float16, as on a T4: whether every loss is finite.

    float16 ends at 65,504, so gradients are computed of a scaled loss, and the scaler (2**16 at first) is halved after an
    overflow; the first steps may be skipped for that, which is no failure.
    """
    from cot_unsloth.core.errors import EngineError

    clock, ended = Clock(), None
    try:
        facts = fit_ours(work, base_of(work.model, folder), samples_of(work, rows_needed(work)), folder, clock)
    except EngineError as error:  # training stops at a loss that is not finite
        facts, ended = None, error.message
    return {
        "dtype": work.dtype,
        "losses": [loss if math.isfinite(loss) else str(loss) for loss in clock.losses],
        "finite": ended is None and len(clock.losses) == work.steps and all(map(math.isfinite, clock.losses)),
        "ended": ended,
        "facts": facts,
    }


def resume(work: Work, folder: Path) -> dict[str, Any]:
    """Four steps without interruption, and two resumed from a checkpoint with a new engine: the gap between their losses."""
    from cot_unsloth.training.method import TrainingHooks
    from cot_unsloth.training.sft import fit

    base, rows = base_of(work.model, folder), samples_of(work, rows_needed(work))
    losses: dict[str, list[float]] = {}
    for name in ("through", "resumed"):
        logged: list[float] = []
        engine = open_ours(settings_of(work, base, save_steps=2))
        after = folder / "resume" / "checkpoint-2" if name == "resumed" else None
        hooks = TrainingHooks(
            folder / "resume", resume_from=after, on_log=lambda row, logged=logged: logged.append(row["loss"])
        )
        fit(engine, rows, hooks)
        losses[name] = logged
    last = len(losses["resumed"])
    gaps = [abs(a - b) for a, b in zip(losses["through"][-last:], losses["resumed"], strict=True)]
    return {"losses": losses, "largest_gap": max(gaps)}


def generate(work: Work, folder: Path) -> dict[str, Any]:
    """New tokens per second when scoring: batches of greedy answers, after one that is not counted."""
    from cot_unsloth.core.types import Prompt, SamplingParams

    engine = open_ours(settings_of(work, base_of(work.model, folder)))
    new, batch, n = (8, 2, 4) if work.model == "tiny" else (256, 32, 96)
    prompts = [Prompt(str(i), ({"role": "user", "content": f"{i} " * 50},)) for i in range(n)]
    engine.generate(prompts[:batch], SamplingParams(max_new_tokens=new, batch_size=batch))
    began = time.perf_counter()
    completions = engine.generate(prompts, SamplingParams(max_new_tokens=new, batch_size=batch))
    seconds = time.perf_counter() - began
    return {
        "batch": batch,
        "new_tokens": new,
        "tokens_per_second": round(sum(c.tokens for c in completions) / seconds, 1),
    }


def export(work: Work, folder: Path) -> dict[str, Any]:
    """Seconds from a base to a Q4_K_M file, quantized on the GPU if there is one, and on the CPU."""
    import numpy as np

    from cot_unsloth.export.gguf import writer
    from cot_unsloth.export.model import open_model
    from cot_unsloth.prompts.opening import open_renderer

    base, seconds = base_of(work.model, folder), {}
    config = settings_of(work, base)
    model = open_model(base, None, open_renderer(config.model, config.data).chat, "bench")
    for device in ["cuda"] * has_gpu() + ["cpu"]:
        began = time.perf_counter()
        writer.write(model, {"q4_k_m": folder / f"{device}.gguf"}, device)
        seconds[device] = round(time.perf_counter() - began, 2)
    files = [np.memmap(folder / f"{device}.gguf", mode="r") for device in seconds]
    same = float((files[0] == files[-1]).mean())
    return {"seconds": seconds, "parameters": model.weights.parameters, "share_of_bytes_that_are_equal": round(same, 6)}


DO: dict[str, Callable[[Work, Path], dict[str, Any]]] = {
    "train": train, "cap": cap, "fp16": fp16, "resume": resume, "generate": generate, "export": export,
}  # fmt: skip


def one_stage(name: str, out: Path, folder: Path, tiny: bool) -> None:
    """Run a stage in this process and write its result."""
    what, work = stages(tiny)[name]
    if work.contender in ("ours", "ours-unpacked", "unsloth-notebook"):
        from cot_unsloth.models import unsloth_engine  # before transformers

        assert unsloth_engine
    from cot_unsloth.storage.atomic import write_json
    from cot_unsloth.storage.environment import environment

    began = time.perf_counter()
    result = DO[what](work, folder)
    gpu = None
    if has_gpu():
        import torch

        gpu = {"name": torch.cuda.get_device_name(), "capability": torch.cuda.get_device_capability()}
    write_json(
        out / f"{name}.json",
        {
            "command": f"python bench/gpu.py --only {name}" + " --tiny" * tiny, "environment": environment().as_json(), "gpu": gpu,
            "tiny": tiny, "work": vars(work), "seconds": round(time.perf_counter() - began, 1), "found": result,
        },
    )  # fmt: skip


def summary(out: Path, tiny: bool) -> str:
    """One line per stage."""
    lines = []
    for name in stages(tiny):
        file = out / f"{name}.json"
        if not file.is_file():
            lines.append(f"{name}: not measured")
            continue
        result = json.loads(file.read_text(encoding="utf-8"))["found"]
        shown = {k: v for k, v in result.items() if isinstance(v, int | float | bool) or k == "seconds"}
        lines.append(f"{name}: {shown}")
    return "\n".join(lines)


def bounded(command: Sequence[str], log: Any, timeout: float | None) -> None:
    """Run a command; after `timeout` seconds, kill it with its child processes, which would keep the GPU's memory.

    Raises:
        subprocess.TimeoutExpired: it was killed.
        subprocess.CalledProcessError: it failed.
    """
    child = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        if child.wait(timeout):
            raise subprocess.CalledProcessError(child.returncode, command)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        raise


def main() -> None:  # noqa: PLR0915
    """Run every stage that has no result yet, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench/results/gpu"))
    parser.add_argument(
        "--work", type=Path, default=Path("/tmp/cot-unsloth-gpu"), help="folder for models, about 25 GB"
    )
    parser.add_argument("--only", help="only stages whose name contains this")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, on a CPU too")
    parser.add_argument(
        "--seconds",
        type=float,
        default=math.inf,
        help="after so many seconds, kill the running stage and start no other",
    )
    parser.add_argument("--make", help=argparse.SUPPRESS)
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--probe", help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if args.probe:
        from cot_unsloth.models import unsloth_engine

        assert unsloth_engine
        probe(json.loads(args.probe), args.work)
        return
    if args.make:
        base_of(args.make, args.work)
        return
    if args.stage:
        one_stage(args.stage, args.out, args.work, args.tiny)
        return
    began = time.monotonic()
    (args.out / "logs").mkdir(parents=True, exist_ok=True)
    args.work.mkdir(parents=True, exist_ok=True)
    failed = []
    for name, (_, work) in stages(args.tiny).items():
        if (args.out / f"{name}.json").is_file() or (args.only and args.only not in name):
            continue
        if time.monotonic() - began > args.seconds:
            break
        this_script = [sys.executable, __file__, "--out", str(args.out), "--work", str(args.work)]
        steps = (["--make", work.model], ["--stage", name, *["--tiny"] * args.tiny])
        try:
            with (args.out / "logs" / f"{name}.log").open("w", encoding="utf-8") as log:
                for step in steps:
                    left = args.seconds - (time.monotonic() - began)
                    timeout = max(1.0, left) if math.isfinite(left) else None
                    bounded([*this_script, *step], log, timeout)
            ended = "done"
        except subprocess.CalledProcessError:
            ended = "FAILED, see its log"
        except subprocess.TimeoutExpired:
            ended = "interrupted; the same command resumes"
        print(f"{name}: {ended}", flush=True)
        failed += [name] * (ended != "done")
    print(summary(args.out, args.tiny))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
