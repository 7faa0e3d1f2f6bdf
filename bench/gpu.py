"""Training on one GPU, side by side: `python bench/gpu.py --out bench/results/gpu`.

Models of real shape with random weights, rows of random ids in realistic lengths, each contender in a process of
its own. What a stage found stands in `OUT/STAGE.json`, with hardware, versions and the command; its raw log
in `OUT/logs`. A stage that is done is not done again, so the script goes on where it was cut off, and none
takes more than some minutes. `--tiny` runs the same code on a CPU, which proves the code and no figure.

Contenders of the training stages (4-bit base, LoRA of rank 16 on all projections, batch 2 x 4):

- ours: the `unsloth` engine, rows packed;
- ours-unpacked: the same, rows padded;
- unsloth-notebook: FastLanguageModel and SFTTrainer as Unsloth's notebooks set them up, no packing; whether padding is
  left out is Unsloth's own decision there, as it is in the notebooks;
- trl: transformers, bitsandbytes, PEFT and SFTTrainer with SDPA as TRL's documentation of QLoRA sets them up.
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
"""Optimizer steps of a training stage, those at its beginning that are left out of the figures (kernels are compiled in
them), and those after its end that are run once more under a profiler."""
RANK, BATCH, ACCUMULATE = 16, 2, 4
CONTENDERS = ("ours", "ours-unpacked", "unsloth-notebook", "trl")
CAPS = (15, 12, 8)
"""GiB of memory that smaller cards have."""
LONGEST = (512, 1024, 2048, 4096, 8192, 16384)
GIB = 2**30
SEED = 3407


@dataclass(frozen=True)
class Work:
    """What a stage is asked to do."""

    model: str
    """One of `shapes.SHAPES`."""
    rows: str
    """Lengths, as `shapes.lengths` takes them."""
    longest: int
    """Tokens of a row, at the most."""
    contender: str = "ours"
    cap: float = 0.0
    """GiB of GPU memory that may be used; 0 for all."""
    dtype: str = "auto"
    bits: int = 4
    steps: int = STEPS

    @property
    def shape(self) -> dict[str, Any]:
        """The model's."""
        return shapes.SHAPES[self.model]


def stages(tiny: bool) -> dict[str, tuple[str, Work]]:
    """Every stage by its name: the function that does it, and what it is asked to do."""
    names = ("tiny",) if tiny else ("llama-3.2-3b", "qwen2.5-7b")
    found: dict[str, tuple[str, Work]] = {}
    for model in names:
        for rows, longest in (("gsm8k", 512),) if tiny else (("gsm8k", 2048), ("traces", 8192)):
            for contender in CONTENDERS:
                work = Work(model, rows, longest, contender, steps=6 if tiny else STEPS)
                found[f"train-{model}-{rows}-{contender}"] = ("train", work)
    for model in names:
        for cap in CAPS[:1] if tiny else CAPS:
            dtype = "float32" if tiny else "float16"
            work = Work(model, "", 0, "ours", cap, dtype, steps=2)
            found[f"cap-{model}-{cap}"] = ("cap", work)
    first = names[0]
    found[f"fp16-{first}"] = ("fp16", Work(first, "gsm8k", 512 if tiny else 2048, dtype="float32" if tiny else "float16",
                                           steps=6 if tiny else 30))  # fmt: skip
    found[f"resume-{first}"] = ("resume", Work(first, "gsm8k", 512, steps=4))
    found[f"generate-{first}"] = ("generate", Work(first, "256", 256, bits=16))
    found[f"export-{first}"] = ("export", Work(first, "", 0, bits=16))
    return found


def base_of(model: str, work: Path) -> Path:
    """A folder with a model of that shape, made where it is not there yet: random weights in 16 bits."""
    folder = work / model
    if (folder / "config.json").is_file():
        return folder
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from cot_unsloth.prompts.tokenizer import model_path

    known = AutoTokenizer.from_pretrained(model_path("tiny-base"), trust_remote_code=False)
    config = AutoConfig.for_model(**{k: v for k, v in shapes.SHAPES[model].items() if k != "architectures"})
    config.eos_token_id, config.pad_token_id, config.bos_token_id = known.eos_token_id, known.pad_token_id, None
    torch.manual_seed(SEED)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    made.generation_config.eos_token_id, made.generation_config.pad_token_id = known.eos_token_id, known.pad_token_id
    aside = folder.with_suffix(".part")
    made.save_pretrained(aside)
    known.save_pretrained(aside)
    aside.rename(folder)
    return folder


def samples_of(work: Work, n: int) -> list[Any]:
    """Rows of random ids, of which the last part carries loss."""
    from cot_unsloth.core.types import IGNORE, Sample

    rng, found = random.Random(SEED), []
    for at, length in enumerate(shapes.lengths(work.rows, n, work.longest, SEED)):
        ids = tuple(rng.randrange(8, work.shape["vocab_size"] - 8) for _ in range(length))
        asked = length - max(1, round(shapes.SUPERVISED * length))
        found.append(Sample(ids, (IGNORE,) * asked + ids[asked:], str(at)))
    return found


def settings_of(work: Work, base: Path, **more: Any) -> Any:
    """Settings of a run of ours."""
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
    """Whether torch sees one."""
    import torch

    return bool(torch.cuda.is_available())


def open_ours(config: Any) -> Any:
    """Our engine with a model loaded."""
    from cot_unsloth.models import registry
    from cot_unsloth.models.registry import Choice
    from cot_unsloth.prompts.opening import open_renderer

    choice = Choice("unsloth", "asked for")
    registry.prepare(choice)
    return registry.load(config, open_renderer(config.model, config.data).chat, choice)


class Clock:
    """When each optimizer step ended, how many real tokens had been seen by then, and the loss.

    With `profile_after`, what the GPU does in the steps beyond that one is recorded and kept out of the times.
    """

    def __init__(self, profile_after: int = 0) -> None:
        self.ends: list[float] = [time.perf_counter()]
        self.tokens: list[int] = [0]
        self.losses: list[float] = []
        self.profile: dict[str, Any] | None = None
        self.peak = (0, 0)
        """Bytes allocated and reserved at most in the timed steps."""
        self._profile_after = profile_after
        self._profiler: Any = None
        self._beyond: list[float] = []

    def tick(self, tokens: int) -> None:
        """A step has ended."""
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
        """Speed, memory and losses; the first steps are told apart."""
        import torch

        seconds = [b - a for a, b in zip(self.ends, self.ends[1:], strict=False)]
        kept = seconds[warm_up:]
        tokens = self.tokens[-1] - self.tokens[warm_up]
        rate = tokens / sum(kept)
        found: dict[str, Any] = {
            "steps": len(kept), "tokens": tokens, "tokens_per_second": round(rate, 1),
            "step_seconds": {"median": round(statistics.median(kept), 4), "all": [round(s, 4) for s in kept]},
            "warm_up_seconds": [round(s, 3) for s in seconds[:warm_up]], "losses": self.losses[: len(seconds)],
        }  # fmt: skip
        if torch.cuda.is_available():
            name = torch.cuda.get_device_name()
            drawn = shapes.lengths(work.rows, 1000, work.longest, SEED)
            row = sum(n * n for n in drawn) / sum(drawn)
            peak = next((peak for card, peak in shapes.PEAK.items() if card in name), None)
            found["peak_memory_gib"], found["peak_reserved_gib"] = (round(each / GIB, 3) for each in self.peak)
            if peak:
                found["model_flop_utilisation"] = round(rate * shapes.flops_per_token(work.shape, row) / peak, 4)
        return found


def profile_of(profiler: Any, seconds: float) -> dict[str, Any]:
    """What the GPU did in some steps: the share of their time in which it computed, and its kernels by time."""
    try:
        profiler.__exit__(None, None, None)
        events = profiler.key_averages()
    except RuntimeError as error:  # no right to the card's counters; the times stand without it
        return {"error": str(error)}
    kernels = [
        e
        for e in events
        if str(e.device_type).endswith("CUDA")
        and e.self_device_time_total
        and not getattr(e, "is_user_annotation", False)  # a span around kernels that are counted themselves
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
    """Rows that are enough for all steps, packed too: a pack holds as many rows as fit."""
    packed = 1.0
    if work.contender == "ours":
        packed = max(1.0, work.longest / statistics.fmean(shapes.lengths(work.rows, 1000, work.longest, SEED)))
    return math.ceil((work.steps + PROFILED) * BATCH * ACCUMULATE * packed * 1.1)


def train(work: Work, place: Path) -> dict[str, Any]:
    """One contender, trained for a few steps."""
    fit = {"trl": fit_trl, "unsloth-notebook": fit_notebook}.get(work.contender, fit_ours)
    clock = Clock(profile_after=work.steps)
    longer = replace(work, steps=work.steps + PROFILED) if has_gpu() else work
    facts = fit(longer, base_of(work.model, place), samples_of(work, rows_needed(work)), place, clock)
    return clock.figures(work, min(WARM_UP, work.steps // 3)) | {"facts": facts, "profile": clock.profile}


def fit_ours(work: Work, base: Path, rows: Sequence[Any], place: Path, clock: Clock, **more: Any) -> Any:
    """Our engine.

    Raises:
        RuntimeError: rows were to be packed, and the trainer did not pack them.
    """
    from cot_unsloth.training.method import TrainingHooks
    from cot_unsloth.training.sft import fit

    engine = open_ours(settings_of(work, base, **more))

    def on_start(total: int) -> None:
        clock.ends = [time.perf_counter()]

    hooks = TrainingHooks(
        place / "checkpoints", on_start=on_start, on_step=lambda step: clock.tick(step.tokens),
        on_log=lambda row: clock.losses.append(float(row["loss"])),
    )  # fmt: skip
    report = fit(engine, rows, hooks)
    if has_gpu() and work.contender == "ours" and not report.extra.packed:
        raise RuntimeError("the rows were not packed: these figures would be those of ours-unpacked")
    return report.extra.as_json()


def watcher(clock: Clock) -> Any:
    """The same clock for a trainer that is not ours."""
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


def peers_arguments(place: Path, **more: Any) -> Any:
    """What both peers set alike: the same work, and a count of real tokens."""
    import trl

    return trl.SFTConfig(
        output_dir=str(place / "peer"), per_device_train_batch_size=BATCH, gradient_accumulation_steps=ACCUMULATE,
        logging_steps=1, logging_first_step=True, report_to="none", save_strategy="no", seed=SEED,
        data_seed=SEED, train_sampling_strategy="random", disable_tqdm=True,
        include_num_input_tokens_seen="non_padding", max_length=None, use_cpu=not has_gpu(), **more,
    )  # fmt: skip


def dataset_of(rows: Sequence[Any]) -> Any:
    """The rows as both peers take them."""
    import datasets

    return datasets.Dataset.from_dict(
        {"input_ids": [list(r.ids) for r in rows], "labels": [list(r.labels) for r in rows]}
    )


def fit_notebook(work: Work, base: Path, rows: Sequence[Any], place: Path, clock: Clock) -> Any:
    """Unsloth as its notebooks set it up: batch 2 x 4, adamw_8bit, its own checkpointing, no packing."""
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
        place, max_steps=work.steps, learning_rate=2e-4, warmup_steps=5, weight_decay=0.01, lr_scheduler_type="linear",
        optim="adamw_8bit" if gpu else "adamw_torch", bf16=gpu and half, fp16=gpu and not half, packing=False,
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        model=model, args=arguments, train_dataset=dataset_of(rows), processing_class=tokenizer,
        callbacks=[watcher(clock)],
    )  # fmt: skip
    trainer.train()
    return {"attention": "unsloth's own"}


def fit_trl(work: Work, base: Path, rows: Sequence[Any], place: Path, clock: Clock) -> Any:
    """TRL's QLoRA: NF4 with double quantization, SDPA, gradient checkpointing."""
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
        place, max_steps=work.steps, learning_rate=2e-4, bf16=gpu and half == torch.bfloat16,
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


def cap(work: Work, place: Path) -> dict[str, Any]:
    """The longest rows that train under a cap of memory, each length in a process of its own.

    As many at a time as the card's memory holds caps of that size. Lengths that were tried before are not tried again.

    Raises:
        RuntimeError: one failed for another reason than memory.
    """
    import torch

    known = place / f"cap-{work.model}-{work.cap:g}.json"  # a call that is cut off goes on after its last length
    tried: dict[str, Any] = json.loads(known.read_text(encoding="utf-8")) if known.is_file() else {}
    holds = torch.cuda.get_device_properties(0).total_memory / GIB if has_gpu() else 0
    failed = []
    with ThreadPoolExecutor(max(1, int(0.9 * holds / work.cap))) as pool:
        lengths = [length for length in LONGEST[: 1 if work.model == "tiny" else None] if str(length) not in tried]
        asked = {pool.submit(within, work, length, place): length for length in lengths}
        for done in as_completed(asked):
            length, (found, said) = asked[done], done.result()
            if found is None:
                failed.append(f"{length} tokens within {work.cap} GiB: {said}")
                continue
            tried[str(length)] = found
            known.write_text(json.dumps(tried), encoding="utf-8")
    if failed:
        raise RuntimeError("\n".join(failed))
    fits = max((int(length) for length, found in tried.items() if found != _NO_MEMORY), default=0)
    tried = dict(sorted(tried.items(), key=lambda item: int(item[0])))
    return {"cap_gib": work.cap, "dtype": work.dtype, "longest": fits, "tried": tried, "batch": 1}


def within(work: Work, length: int, place: Path) -> tuple[Any, str]:
    """What rows of one length took within a cap, or that they do not fit; None with the error where it failed otherwise."""
    asked = {"cap": work.cap, "length": length, "model": work.model}
    command = [sys.executable, __file__, "--probe", json.dumps(asked), "--work", str(place)]
    # Unsloth sizes the chunks of its loss by the memory of the card, and does not know of the cap.
    # Compiling each block would take longer than the two steps.
    environment = {
        **os.environ,
        "UNSLOTH_CE_LOSS_TARGET_GB": str(work.cap / 16),
        "UNSLOTH_BLOCK_COMPILE": "0",
        "UNSLOTH_COMPILE_LOCATION": str(place / f"compiled-{work.model}-{work.cap:g}-{length}"),
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    said = [line for line in done.stdout.splitlines() if line.startswith('{"peak')]
    if done.returncode == 0 and said:
        return json.loads(said[-1]), ""
    if "out of memory" in done.stderr.lower():
        return _NO_MEMORY, ""
    return None, done.stderr[-2000:]


def probe(asked: dict[str, Any], place: Path) -> None:
    """Train two steps on rows of one length, one at a time, within a cap of memory; prints what it took."""
    import torch

    work = Work(
        asked["model"], str(asked["length"]), asked["length"], "ours-unpacked", asked["cap"], "float16", steps=2
    )  # fmt: skip
    if has_gpu():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, asked["cap"] * GIB / total))
    one = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    clock = Clock()
    apart = place / f"probe-{os.getpid()}"
    fit_ours(work, base_of(work.model, place), samples_of(work, 2), apart, clock, **one)
    print(json.dumps({"peak_gib": clock.figures(work, 0).get("peak_reserved_gib"), "losses": clock.losses}))


def fp16(work: Work, place: Path) -> dict[str, Any]:
    """Thirty steps in float16, as a T4 computes: is every loss a number?"""
    from cot_unsloth.core.errors import EngineError

    clock, ended = Clock(), None
    try:
        facts = fit_ours(work, base_of(work.model, place), samples_of(work, rows_needed(work)), place, clock)
    except EngineError as error:  # the engine stops at a loss that is no number
        facts, ended = None, error.message
    return {
        "dtype": work.dtype,
        "losses": [loss if math.isfinite(loss) else str(loss) for loss in clock.losses],
        "finite": ended is None and len(clock.losses) == work.steps and all(map(math.isfinite, clock.losses)),
        "ended": ended,
        "facts": facts,
    }


def resume(work: Work, place: Path) -> dict[str, Any]:
    """Four steps through, and two and two with a new process's worth of state between: the same losses?"""
    from cot_unsloth.training.method import TrainingHooks
    from cot_unsloth.training.sft import fit

    base, rows = base_of(work.model, place), samples_of(work, rows_needed(work))
    losses: dict[str, list[float]] = {}
    for name in ("through", "resumed"):
        found: list[float] = []
        engine = open_ours(settings_of(work, base, save_steps=2))
        after = place / "resume" / "checkpoint-2" if name == "resumed" else None
        hooks = TrainingHooks(
            place / "resume", resume_from=after, on_log=lambda row, found=found: found.append(row["loss"])
        )
        fit(engine, rows, hooks)
        losses[name] = found
    last = len(losses["resumed"])
    gaps = [abs(a - b) for a, b in zip(losses["through"][-last:], losses["resumed"], strict=True)]
    return {"losses": losses, "largest_gap": max(gaps)}


def generate(work: Work, place: Path) -> dict[str, Any]:
    """New tokens a second when scoring: batches of greedy answers, the first left out."""
    from cot_unsloth.core.types import Prompt, SamplingParams

    engine = open_ours(settings_of(work, base_of(work.model, place)))
    new, batch, n = (8, 2, 4) if work.model == "tiny" else (256, 32, 96)
    prompts = [Prompt(str(i), ({"role": "user", "content": f"{i} " * 50},)) for i in range(n)]
    engine.generate(prompts[:batch], SamplingParams(max_new_tokens=new, batch_size=batch))
    began = time.perf_counter()
    said = engine.generate(prompts, SamplingParams(max_new_tokens=new, batch_size=batch))
    seconds = time.perf_counter() - began
    return {"batch": batch, "new_tokens": new, "tokens_per_second": round(sum(c.tokens for c in said) / seconds, 1)}


def export(work: Work, place: Path) -> dict[str, Any]:
    """Base to a Q4_K_M file, quantized on the GPU where there is one, and on the CPU."""
    import numpy as np

    from cot_unsloth.export.gguf import writer
    from cot_unsloth.export.model import open_model
    from cot_unsloth.prompts.opening import open_renderer

    base, found = base_of(work.model, place), {}
    config = settings_of(work, base)
    model = open_model(base, None, open_renderer(config.model, config.data).chat, "bench")
    for device in ["cuda"] * has_gpu() + ["cpu"]:
        began = time.perf_counter()
        writer.write(model, {"q4_k_m": place / f"{device}.gguf"}, device)
        found[device] = round(time.perf_counter() - began, 2)
    made = [np.memmap(place / f"{device}.gguf", mode="r") for device in found]
    same = float((made[0] == made[-1]).mean())
    return {"seconds": found, "parameters": model.weights.parameters, "share_of_bytes_that_are_equal": round(same, 6)}


DO: dict[str, Callable[[Work, Path], dict[str, Any]]] = {
    "train": train, "cap": cap, "fp16": fp16, "resume": resume, "generate": generate, "export": export,
}  # fmt: skip


def one_stage(name: str, out: Path, place: Path, tiny: bool) -> None:
    """Do a stage in this process, and write down what it found."""
    what, work = stages(tiny)[name]
    if work.contender in ("ours", "ours-unpacked", "unsloth-notebook"):
        from cot_unsloth.models import unsloth_engine  # before transformers

        assert unsloth_engine
    from cot_unsloth.storage.atomic import write_json
    from cot_unsloth.storage.environment import environment

    began = time.perf_counter()
    found = DO[what](work, place)
    gpu = None
    if has_gpu():
        import torch

        gpu = {"name": torch.cuda.get_device_name(), "capability": torch.cuda.get_device_capability()}
    write_json(
        out / f"{name}.json",
        {
            "command": f"python bench/gpu.py --only {name}" + " --tiny" * tiny, "environment": environment().as_json(), "gpu": gpu,
            "tiny": tiny, "work": vars(work), "seconds": round(time.perf_counter() - began, 1), "found": found,
        },
    )  # fmt: skip


def summary(out: Path, tiny: bool) -> str:
    """A line for each stage that is done."""
    lines = []
    for name in stages(tiny):
        file = out / f"{name}.json"
        if not file.is_file():
            lines.append(f"{name}: not measured")
            continue
        found = json.loads(file.read_text(encoding="utf-8"))["found"]
        shown = {k: v for k, v in found.items() if isinstance(v, int | float | bool) or k == "seconds"}
        lines.append(f"{name}: {shown}")
    return "\n".join(lines)


def bounded(command: Sequence[str], log: Any, timeout: float | None) -> None:
    """Run a command; at its time it is ended with all that it began, which would go on holding the GPU.

    Raises:
        subprocess.TimeoutExpired: it was ended.
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
    """Do every stage that is not done yet, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench/results/gpu"))
    parser.add_argument("--work", type=Path, default=Path("/tmp/cot-unsloth-gpu"), help="for models, some 25 GB")
    parser.add_argument("--only", help="stages whose name holds this")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, on a CPU too")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="end the stage that runs after these, and begin none"
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
        itself = [sys.executable, __file__, "--out", str(args.out), "--work", str(args.work)]
        steps = (["--make", work.model], ["--stage", name, *["--tiny"] * args.tiny])
        try:
            with (args.out / "logs" / f"{name}.log").open("w", encoding="utf-8") as log:
                for step in steps:
                    left = args.seconds - (time.monotonic() - began)
                    timeout = max(1.0, left) if math.isfinite(left) else None
                    bounded([*itself, *step], log, timeout)
            ended = "done"
        except subprocess.CalledProcessError:
            ended = "FAILED, see its log"
        except subprocess.TimeoutExpired:
            ended = "cut off; the same call goes on"
        print(f"{name}: {ended}", flush=True)
        failed += [name] * (ended != "done")
    print(summary(args.out, args.tiny))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
