"""What is measured: each measurement with its work and its contenders."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cot_unsloth.core.threads import SPINS

ROOT = Path(__file__).parent.parent.parent
TINY_BASE = str(ROOT / "cot_unsloth" / "assets" / "tiny-base")
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": SPINS}
"""For every contender: libgomp's threads spin while they wait, which costs CPU seconds that do nothing."""


@dataclass(frozen=True)
class Contender:
    """One way to do the work of a measurement."""

    name: str
    path: str = ""
    """`module:function` below `bench.speed`."""
    options: dict[str, Any] = field(default_factory=dict)
    python: str = ""
    """Which interpreter: "" for this one, or a key of the parameter `pythons`."""
    environment: dict[str, str | None] = field(default_factory=dict)
    """Variables that it gets beyond the measurement's; None removes one."""
    command: tuple[str, ...] = ()
    """Instead of `path`: arguments of Python, where the whole process is measured. {folder} is the measurement's, {run} the
    trained run, {name} the contender's name."""


@dataclass(frozen=True)
class Measurement:
    """Contenders that do the same work in alternation."""

    name: str
    suite: str
    what: str
    """In one sentence, for the table."""
    unit: str
    """What is counted in a block."""
    contenders: tuple[Contender, ...]
    settings: dict[str, Any]
    threads: int = 1
    fresh: bool = False
    """Whether each block is a process of its own, whose imports count."""
    data: str = ""
    """What `data` makes before it."""
    rounds: int | None = None
    """Rounds, where not as many as pairs are asked for."""
    warm_up: int = 0
    """First rounds that do not count."""
    needs: str = ""
    """A path without which it is skipped."""
    extra: bool = False
    """Whether it runs only where `--only` names it."""


def trl(name: str, **options: Any) -> Contender:
    """TRL with options."""
    return Contender(name, "contenders.trl:train", options)


FAST = {"gradient_checkpointing": False}
GROUPED = {"train_sampling_strategy": "group_by_length"}
VARIANTS = (
    trl("trl-defaults"),
    trl("trl-float32", **FAST, bf16=False),
    trl("trl-bf16", **FAST, bf16=True),
    trl("trl-float32-grouped", **FAST, bf16=False, **GROUPED),
    trl("trl-bf16-grouped", **FAST, bf16=True, **GROUPED),
    trl("trl-bf16-padded-64", **FAST, bf16=True, **GROUPED, pad_to_multiple_of=64),
    trl("trl-bf16-packed", **FAST, bf16=True, packing=True, max_length=512),
    trl("trl-bf16-packed-alone", **FAST, bf16=True, packing=True, max_length=512,
        per_device_train_batch_size=1, gradient_accumulation_steps=8),
    trl("trl-bf16-padding-free", **FAST, bf16=True, padding_free=True),
    trl("trl-liger", **FAST, bf16=True, use_liger_kernel=True),
)  # fmt: skip
"""Everything that TRL's documentation has for speed and that a CPU may run, each tried once."""
COMPILED = trl("trl-bf16-compiled", **FAST, bf16=True, **GROUPED, torch_compile=True)
"""Its first steps compile with a C++ compiler for many minutes, so it is measured only where it is asked for."""
OURS = Contender("ours", "contenders.ours:train")
PACKED = Contender("ours-packed", "contenders.ours:train", {"packing": True})
UNSLOTH = Contender("unsloth", "contenders.unsloth:train", python="unsloth")
FACTORY = Contender(
    "llamafactory", "contenders.llamafactory:train", python="llamafactory", environment={"DISABLE_VERSION_CHECK": "1"}
)
WELL = ("trl-bf16-grouped", "trl-bf16-padded-64")
"""The two variants of TRL that were fastest."""


def variants(*names: str) -> tuple[Contender, ...]:
    """Variants of TRL by name."""
    return tuple(variant for variant in VARIANTS if variant.name in names)


def training(name: str, what: str, contenders: tuple[Contender, ...], **more: Any) -> Measurement:
    """A measurement of training steps."""
    settings = {
        "base": TINY_BASE, "learning_rate": 4e-3, "batch": 8, "rows": 336, "held_out": 64, "longest": 2048,
    } | more.pop("settings", {})  # fmt: skip
    return Measurement(name, "training", what, "tokens", contenders, settings, data="rows", warm_up=1, **more)


def as_installed(contender: Contender) -> Contender:
    """Without any setting of threads or of their waiting."""
    unset: dict[str, str | None] = dict.fromkeys((*PASSIVE, "OMP_NUM_THREADS", "MKL_NUM_THREADS"))
    return replace(contender, name=f"{contender.name}, as installed", environment=unset)


def measurements(smollm2: Path, shared_data: Path) -> list[Measurement]:
    """All measurements in the order in which they run."""
    peers = (*variants("trl-defaults", *WELL), UNSLOTH, FACTORY)
    well = variants(*WELL)
    return [
        training("training-200", "rows of the demo (about 210 tokens), 8 a step", (OURS, PACKED, *peers)),
        training("training-2000", "rows of 1,536 to 2,048 tokens, 4 a step", (OURS, PACKED, *peers),
                 settings={"tokens": 2048, "rows": 40, "batch": 4, "held_out": 8}),
        *scoring(),
        *preparation(shared_data),
        training("training-threads", "rows of the demo, 8 a step, 2 threads",
                 (OURS, *well, *map(as_installed, (*well, UNSLOTH))), threads=2, rounds=3, settings={"rows": 128}),
        training("training-128", "rows of 96 to 128 tokens without a system prompt, 8 a step", (OURS, *well), rounds=3,
                 settings={"tokens": 128, "rows": 256, "system_prompt": ""}),
        training("training-512", "rows of 384 to 512 tokens, 8 a step", (OURS, *well), rounds=3,
                 settings={"tokens": 512, "rows": 64}),
        training("training-smollm2", "SmolLM2-135M, rows of the demo, 4 a step", (OURS, *well[:1]), rounds=3,
                 settings={"base": str(smollm2), "rows": 32, "batch": 4, "held_out": 8, "learning_rate": 2e-4},
                 needs=str(smollm2)),
        training("training-variants", "every variant of TRL once, rows of the demo, 8 a step", (OURS, *VARIANTS), rounds=1,
                 settings={"rows": 112}),
        training("training-compiled", "torch.compile, rows of the demo, 8 a step", (OURS, COMPILED), rounds=1,
                 settings={"rows": 336}, extra=True),
        first_step(),
        *commands(shared_data),
    ]  # fmt: skip


RUN = {"run": "run", "train_steps": 150, "gguf": "f16"}


def scoring() -> list[Measurement]:
    """Greedy answers of a trained model."""
    contenders = (
        Contender("ours", "contenders.ours:score"),
        Contender("ours-gguf", "contenders.ours:score_gguf"),
        Contender("hf-generate", "contenders.transformers:generate"),
        Contender("transformers-continuous", "contenders.transformers:continuous"),
    )
    settings = RUN | {"batch": 16, "questions": 48, "max_new_tokens": 400}
    what = "held-out questions of the demo, greedy, at most 400 new tokens"
    merged = Measurement("scoring", "scoring", what, "questions", contenders, settings, data="run", warm_up=1)
    adapter = Contender("hf-generate-adapter", "contenders.transformers:generate", {"merged": False})
    beside = replace(
        merged, name="scoring-adapter", what=f"{what}, the adapter beside the base for all", extra=True,
        contenders=(contenders[0], adapter),
    )  # fmt: skip
    return [merged, beside]


def preparation(shared_data: Path) -> list[Measurement]:
    """Rows to token ids and labels."""
    contenders = (Contender("ours", "contenders.ours:prepare"), Contender("trl-map", "contenders.trl:prepare"))
    shared = {"base": TINY_BASE, "batch": 8, "learning_rate": 1e-4}
    made = [
        Measurement(
            "preparation-demo",
            "preparation",
            "rows of the demo",
            "rows",
            contenders,
            shared | {"rows": 1000},
            warm_up=1,
        )
    ]
    for tokenizer in ("qwen2.5", "llama3.2"):
        folder = shared_data / "tokenizers" / tokenizer
        real = {"base": str(folder), "dataset": str(shared_data / "gsm8k" / "train.jsonl"), "rows": 1000}
        made.append(
            Measurement(f"preparation-gsm8k-{tokenizer}", "preparation", f"GSM8K with the tokenizer of {tokenizer}", "rows",
                        contenders, shared | real, needs=str(folder), warm_up=1)
        )  # fmt: skip
    for times in (1, 10, 100):
        growth = shared | {"rows": 400 * times, "dataset": "world:chains,words"}  # countdown has too few problems
        made.append(
            Measurement(f"preparation-{times}x", "preparation", f"{400 * times:,} rows of chains and words", "rows", contenders, growth,
                        rounds=1)
        )  # fmt: skip
    return made


def first_step() -> Measurement:
    """From the start of the process to the end of the first step, from text."""
    settings = {"from_text": True, "max_steps": 1, "rows": 64, "held_out": 8}
    contenders = (replace(OURS, options={"max_steps": 1}), *variants("trl-defaults", WELL[0]), UNSLOTH)
    what = "from the start of the process to the end of step 1, from 64 rows of text"
    whole = training("first-step", what, contenders, settings=settings)
    return replace(whole, suite="first-step", fresh=True, unit="steps", warm_up=0)


def commands(shared_data: Path) -> list[Measurement]:
    """Commands, each in a process of its own."""
    help_text = Contender("ours", command=("-m", "cot_unsloth.train", "--help"))
    imports = Contender("bare imports", command=("-c", "import click, yaml; from pydantic import BaseModel"))
    export = ("-m", "cot_unsloth.export", "{run}", "--out", "{folder}/{name}-{round}", "--gguf")
    exports = tuple(Contender(f"ours-{kind}", command=(*export, kind)) for kind in ("f16", "q8_0"))
    # The step of bench/export.py, whose committed result has figures of larger sizes and of llama.cpp's own way.
    step = (str(ROOT / "bench" / "export.py"), "--step", "ours", "{folder}/data", "{folder}/{name}-{round}.gguf")
    tokenizer = str(shared_data / "tokenizers" / "llama3.2")
    return [
        Measurement("export", "export", "`export RUN --gguf`, verification in llama.cpp included", "processes", exports, RUN,
                    fresh=True, data="run"),
        Measurement("export-300M", "export", "base of 300M and adapter to Q4_K_M, without verification", "processes",
                    (Contender("ours", command=step),), {"size": "300M", "tokenizer": tokenizer}, threads=2, rounds=3,
                    fresh=True, data="export_base", needs=tokenizer),
        Measurement("help", "help", "`train --help`, and importing click, yaml and pydantic", "processes",
                    (help_text, imports), {}, fresh=True, rounds=15, warm_up=1),
    ]  # fmt: skip


def tiny(measurement: Measurement) -> Measurement:
    """The same code with little work."""
    few = {
        "rows": 16,
        "held_out": 4,
        "questions": 4,
        "max_new_tokens": 12,
        "train_steps": 2,
        "batch": 4,
        "size": "tiny",
    }
    settings = {key: few.get(key, value) for key, value in measurement.settings.items()}
    if measurement.suite == "preparation":
        settings["rows"] = 40
    return replace(measurement, settings=settings, rounds=1)
