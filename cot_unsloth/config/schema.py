"""Every setting of a run: its name, type, default and what it trades.

Sections are `model, lora, data, train, evaluate, export`. Leaf names are unique, so each is also a
command-line flag; where Hugging Face has a name, ours is the same. A flag outranks the YAML, the
YAML outranks the defaults here. Faults are collected and shown together, each with the line or
the flag it came from.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cot_unsloth.core import trace
from cot_unsloth.core.errors import ConfigError
from cot_unsloth.core.types import Plan, ThinkingTags

ASSETS = Path(__file__).parent.parent / "assets"
TINY_BASE = "tiny-base"
"""The name of the embedded base model."""
DEFAULT_CONFIG = ASSETS / "tiny-cpu.yaml"
"""What `train` runs with when no file is named."""

DEFAULT_SYSTEM_PROMPT = (
    "Think step by step inside <thinking> tags. When a step is wrong, say why and mend it inside "
    "<reflection> tags. Then give only the final answer inside <output> tags."
)
_PROMPTS: Mapping[str, str] = {
    "thinking": DEFAULT_SYSTEM_PROMPT,
    "think": trace.with_tags(DEFAULT_SYSTEM_PROMPT, "think"),
}
Arm = Literal["base_direct", "base_cot", "base_tags", "tuned"]
ARMS: tuple[Arm, ...] = get_args(Arm)
AnyArm = Arm | Literal["gguf"]
"""The exported file is an arm too, once there is one."""
Benchmark = Literal["gsm8k", "math500", "aime24", "gpqa-diamond"]
BUDGETS: Mapping[str, int] = {"gsm8k": 2048, "math500": 8192, "aime24": 16384, "gpqa-diamond": 8192}
"""New tokens of an answer to each benchmark where max_new_tokens is not given: enough for its chains of thought."""
Quant = Literal["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"]


HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_DATA_FILE = re.compile(
    r".+\.(jsonl|ndjson|jsonlines|json|[ctp]sv|tab|parquet|arrow|feather)(\.(gz|zst|zstd|bz2|xz))?", re.I
)


def split_sources(dataset: str) -> tuple[str, ...]:
    """The files, globs, folders and hub ids that a text names, with commas between them.

    >>> split_sources("a.jsonl, b.csv.gz"), split_sources("openai/gsm8k"), split_sources("no such, file.jsonl")
    (('a.jsonl', 'b.csv.gz'), ('openai/gsm8k',), ('no such, file.jsonl',))
    """
    if dataset.startswith("world:") or "," not in dataset or _exists(dataset):
        return (dataset,)
    parts, names, first = dataset.split(","), [], 0
    while first < len(parts):
        # The longest name that is there wins, so that a file with a comma in its name is one.
        joined = ((end, ",".join(parts[first:end]).strip()) for end in range(len(parts), first + 1, -1))
        end, name = next(((end, name) for end, name in joined if _exists(name)), (first + 1, parts[first].strip()))
        names.append(name)
        first = end
    names = [name for name in names if name]
    known = all(_exists(n) or _DATA_FILE.fullmatch(n) or HUB_ID.fullmatch(n) or re.search(r"[*?\[]", n) for n in names)
    return tuple(names) if names and known else (dataset,)


def _exists(name: str) -> bool:
    try:
        return bool(name) and Path(name).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long for a name, a NUL, or ~ of no user
        return False


class _Section(BaseModel):
    # Validators are built when first used, which --help never does.
    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), defer_build=True, allow_inf_nan=False
    )


class ModelConfig(_Section):
    """Which model, and how it is loaded."""

    model_name_or_path: str = Field(
        TINY_BASE, min_length=1, description=f"Hub id, folder, or {TINY_BASE} (embedded, runs on any CPU)"
    )
    model_revision: str | None = Field(None, description="Hub revision; a commit hash makes the run repeatable")
    engine: Literal["auto", "hf", "unsloth"] = Field(
        "auto", description="auto takes unsloth where it can run and says why; a named engine never falls back"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Compute type; auto: bfloat16 on GPUs of capability 8.0 on, float16 on older, float32 on CPU",
    )
    load_in_4bit: bool = Field(
        False, description="QLoRA: a quarter of the weight memory, a little less exact; on a CPU slower too"
    )
    load_in_8bit: bool = Field(
        False, description="Half of the weight memory, hardly less exact, and slower; on a CPU the hf engine's alone"
    )
    fast_inference: bool = Field(
        False,
        description="Score in vLLM, which shares the weights with training (unsloth on a GPU, vllm installed)",
    )
    gpu_memory_utilization: float = Field(
        0.5, gt=0, lt=1, description="Share of the GPU's memory that vLLM takes with fast_inference"
    )
    chat_template: str | None = Field(
        None,
        description="Chat template in place of the model's own: a Jinja file, the name of one of the tokenizer's, or a "
        "training template: qwen2.5, qwen3, r1-distill, llama3, smollm2, mistral, gemma3, chatml. The run keeps its content "
        "(chat_template.jinja), so the file may change or go afterwards",
    )
    pad_token: str | None = Field(None, description="Padding token, where the tokenizer names none")
    date_string: str = Field(
        "26 Jul 2024",
        description="The date that templates print, Llama 3's by this name and others by strftime_now; frozen, so that "
        "training and export agree",
    )

    @property
    def few_bits(self) -> int | None:
        """Bits of a weight as it is loaded, 4 or 8; None where whole weights are."""
        return 4 if self.load_in_4bit else 8 if self.load_in_8bit else None


class LoraConfig(_Section):
    """The adapter; not looked at with full_finetuning."""

    lora_r: int = Field(32, ge=1, description="Rank; memory and capacity grow with it")
    lora_alpha: int = Field(64, ge=1, description="Scale times rank; twice the rank is the usual choice")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input")
    use_rslora: bool = Field(False, description="Scale by alpha / sqrt(r); pays from r = 64 on")
    target_modules: tuple[str, ...] = Field(
        ("all-linear",), min_length=1, description="Projections to adapt, comma-separated; all-linear learns best"
    )


class DataConfig(_Section):
    """What is learnt from, and how it is written."""

    dataset: str = Field(
        "world:chains,words,countdown",
        min_length=1,
        description="A file (JSONL, JSON, CSV, TSV, Parquet, Arrow; also compressed), several with commas between them, a "
        "quoted glob, a folder, a hub id, or world:NAME[:STEPS],...",
    )
    dataset_config_name: str | None = Field(None, description="Configuration of a hub data set, such as main")
    dataset_split: str = Field(
        "train",
        description="Split to read, of a hub data set, a folder, or a JSON object such as {train: [...], test: [...]}",
    )
    dataset_revision: str | None = Field(None, description="Hub revision; a commit hash makes the run repeatable")
    data_format: Literal[
        "auto", "messages", "sharegpt", "prompt_completion", "prompt_response", "alpaca", "think", "gsm8k",
        "reasoning_columns", "problem_solution", "question_answer", "multiple_choice", "generations", "svamp",
        "prm800k",
        "rated_steps",
    ] = Field("auto", description="Layout of the rows; auto looks at the columns")  # fmt: skip
    question_column: str | None = Field(None, description="Column with the question, where its name does not say so")
    reasoning_column: str | None = Field(None, description="Column with the reasoning")
    answer_column: str | None = Field(
        None, description="Column with the answer; beside a column that responds at length, the gold answer"
    )
    system_column: str | None = Field(None, description="Column with the row's own system prompt")
    messages_column: str | None = Field(None, description="Column with a conversation, a list of turns")
    system_prompt: str | None = Field(
        DEFAULT_SYSTEM_PROMPT, description="System prompt of the trained model; a row's own outranks it; '' for none"
    )
    trace_layout: Literal["nested", "sequential"] = Field(
        "nested", description="nested: reflections inside thinking; sequential: thinking, reflection, output"
    )
    thinking_tags: ThinkingTags = Field(
        "thinking",
        description="Tags around reasoning: think writes <think>, which other servers split off by themselves",
    )
    loss_on: Literal["last", "all"] = Field(
        "last",
        description="Which of the assistant's turns carry loss: the last, or the earlier ones of a conversation too",
    )
    max_seq_length: int = Field(2048, ge=16, description="Tokens; longer rows are dropped whole and counted, never cut")
    max_train_samples: int | None = Field(None, ge=1, description="Use at most this many training rows")
    test_fraction: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="Share of a file's questions held out for scoring (at most eval_samples are scored)",
    )
    world_samples: int = Field(4000, ge=1, description="Training problems to generate from a world")
    world_error_rate: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Chance that a step of a world's solution is made wrong, then mended in a reflection",
    )
    world_clean_first: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of a world's training problems that are solved without a wrong step whatever the rate; "
        "above 0, rows are trained on in order, these first",
    )
    decontaminate: bool = Field(
        True,
        description="Drop training rows whose question is in the test set, or, of a benchmark, that share 13 words in a row with it",
    )
    mask_wrong_steps: bool = Field(
        True,
        description="Take no loss on steps made wrong on purpose: the model learns to mend them, not to make them",
    )

    @field_validator("dataset", mode="before")
    @classmethod
    def _join_sources(cls, value: Any) -> Any:
        """Several files, given as a list."""
        if isinstance(value, list | tuple) and value:
            names = [os.fspath(name) if isinstance(name, str | os.PathLike) else "" for name in value]
            if not all(name.strip() for name in names):
                raise ValueError("every item of the list must be the name of a file")
            return ",".join(name.strip() for name in names)
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @model_validator(mode="before")
    @classmethod
    def _name_the_tags(cls, values: Any) -> Any:
        """The default system prompt names the tags that are trained; one of the user's own is left alone."""
        if not isinstance(values, dict) or values.get("system_prompt", DEFAULT_SYSTEM_PROMPT) not in _PROMPTS.values():
            return values
        tags = str(values.get("thinking_tags", "thinking"))  # anything may stand there before it is looked at
        return {**values, "system_prompt": _PROMPTS.get(tags, DEFAULT_SYSTEM_PROMPT)}

    @property
    def sources(self) -> tuple[str, ...]:
        """The names in `dataset`, one or more with commas between them; a file that has a comma in its name is one."""
        return split_sources(self.dataset)


class TrainConfig(_Section):
    """How it is fitted."""

    run_dir: str | None = Field(None, description="Folder of the run; default runs/DATE-MODEL-DATASET")
    full_finetuning: bool = Field(
        False,
        description="Train every weight, held in float32, in place of an adapter: about 16 bytes a parameter, and a rate "
        "of 1e-5 or so in billions of parameters",
    )
    per_device_train_batch_size: int = Field(2, ge=1, description="Rows at a time; memory grows with it")
    gradient_accumulation_steps: int = Field(
        4, ge=1, description="Batches per step; effective batch = this x the above"
    )
    num_train_epochs: float = Field(1.0, gt=0, description="Passes over the data, unless max_steps is set")
    max_steps: int = Field(-1, ge=-1, description="Optimizer steps; -1 counts epochs instead")
    learning_rate: float = Field(2e-4, gt=0, description="Matters more than the kind of adapter; sweep it first")
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "linear", description="How the rate falls"
    )
    warmup_ratio: float = Field(0.03, ge=0, lt=1, description="Share of the steps over which the rate rises")
    weight_decay: float = Field(0.0, ge=0, description="Pull towards zero on the adapter")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm")
    optim: Literal["auto", "adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "auto", description="auto: adamw_8bit for 4-bit models on a GPU, else adamw_torch"
    )
    gradient_checkpointing: bool = Field(False, description="Trade about a third of the speed for far less memory")
    packing: bool = Field(
        False,
        description="Join short rows, each seeing only itself; without FlashAttention a pack at a time, the batch made up by accumulation",
    )
    autocast: bool = Field(
        True,
        description="On a CPU with bfloat16 instructions, compute in it around float32 weights; false: float32 throughout",
    )
    seed: int = Field(
        3407,
        ge=0,
        le=2**32 - 1,
        description="Of the adapter's start, the order of rows, and a world's training problems",
    )
    logging_steps: int = Field(10, ge=1, description="Steps between rows of metrics.jsonl")
    save_steps: int = Field(100, ge=1, description="Steps between checkpoints")
    save_total_limit: int = Field(2, ge=1, description="Newest checkpoints to keep")

    @property
    def rows_per_step(self) -> int:
        """Rows of an optimizer step: the effective batch."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps


class EvaluateConfig(_Section):
    """How it is scored."""

    eval_samples: int = Field(200, ge=0, description="Held-out problems per arm; 0 scores nothing")
    eval_seed: int = Field(
        1234, ge=0, le=2**32 - 1, description="Of the held-out problems, or of a file's split; apart from seed"
    )
    benchmark: Benchmark | None = Field(
        None,
        description="Score on this test set in place of held-out rows: gsm8k, math500, aime24, gpqa-diamond; "
        "max_new_tokens, if not given, is then 2048, 8192, 16384, 8192",
    )
    benchmark_path: str | None = Field(None, description="A file with the benchmark's rows, in place of the hub")
    eval_batch_size: int = Field(16, ge=1, description="Prompts at a time; memory grows with it")
    max_new_tokens: int = Field(
        512, ge=1, description="Budget of a completion; too small cuts chains of thought, and is reported"
    )
    temperature: float = Field(0.0, ge=0, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus; only with temperature > 0")
    arms: tuple[Arm, ...] = Field(ARMS, description="Which of base_direct, base_cot, base_tags, tuned to score")
    recovery: bool = Field(
        False,
        description="After scoring, make one step of each right answer of the tuned arm wrong, let it go on, and score again",
    )
    gate: bool = Field(
        True,
        description="End in exit 3 where the tuned arm is worse than the base under the same prompt beyond noise "
        "(McNemar p < 0.05), or its format below min_format_valid",
    )
    min_format_valid: float = Field(
        0.0, ge=0, le=1, description="Share of the tuned arm's completions that must be whole traces; 0 asks for none"
    )

    @property
    def arms_in_order(self) -> tuple[Arm, ...]:
        """The arms to score, in the order they are scored in."""
        return tuple(arm for arm in ARMS if arm in self.arms)


class ExportConfig(_Section):
    """What is written for others to run."""

    merged: bool = Field(False, description="Write the merged folder for plain transformers")
    gguf: tuple[Quant, ...] = Field(
        (),
        description="GGUF files for llama.cpp and Ollama, comma-separated: f32, f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m",
    )
    lora_gguf: bool = Field(False, description="Write the adapter alone as a GGUF, to load beside any GGUF of its base")
    export_dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto",
        description="Of the merged folder; auto: the 16-bit type the base is stored in, bfloat16 where it is stored in 32 bits",
    )
    export_samples: int = Field(
        40, ge=0, description="Held-out questions that an exported file answers before it gets its name"
    )
    allow_unverified: bool = Field(
        False, description="Without xllamacpp, let NAME.unverified.gguf do: exit 0 in place of 3"
    )
    push_to_hub: str | None = Field(
        None,
        pattern=r"^[\w-][\w.-]*/[\w-][\w.-]*$",
        description="USER/NAME: push what was verified to the Hugging Face Hub, the merged folder there, GGUF files to "
        "USER/NAME-GGUF, the adapter to USER/NAME-LoRA",
    )
    hub_private_repo: bool = Field(True, description="Make the repositories that are not there yet private")

    @field_validator("gguf", mode="before")
    @classmethod
    def _each_once(cls, value: Any) -> Any:
        """Types as llama.cpp writes them (Q4_K_M) and people repeat them."""
        listed = isinstance(value, list | tuple)
        return (
            tuple(dict.fromkeys(each.lower() if isinstance(each, str) else each for each in value)) if listed else value
        )

    @property
    def asks(self) -> bool:
        """Whether there is anything to do."""
        return any(getattr(self, leaf) for leaf in EXPORTS)


EXPORTS: Mapping[str, Any] = {"merged": False, "gguf": (), "lora_gguf": False, "push_to_hub": None}
"""Settings that ask for something to be exported, as they are where nothing is."""


class RunConfig(_Section):
    """A whole run."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    lora: LoraConfig = Field(default_factory=LoraConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    export: ExportConfig = Field(default_factory=ExportConfig)

    @model_validator(mode="after")
    def _fits_together(self) -> RunConfig:
        if self.train.max_steps == 0:
            raise ValueError("train.max_steps is 0, so nothing would be trained; give -1 to count epochs")
        if self.model.load_in_4bit and self.model.load_in_8bit:
            raise ValueError("model.load_in_4bit and model.load_in_8bit are both on; take one")
        if self.model.fast_inference and self.model.engine == "hf":
            raise ValueError("model.fast_inference is the unsloth engine's; model.engine is hf")
        if self.model.fast_inference and (self.model.load_in_8bit or self.model.model_revision):
            raise ValueError(
                "model.fast_inference goes without load_in_8bit and model_revision, which vLLM cannot share"
            )
        if self.train.full_finetuning:
            self._fits_full_finetuning()
        if self.evaluate.benchmark_path and not self.evaluate.benchmark:
            raise ValueError("evaluate.benchmark_path is set without evaluate.benchmark, which says how it reads")
        if "all-linear" in self.lora.target_modules and len(self.lora.target_modules) > 1:
            raise ValueError("lora.target_modules names all-linear beside other modules; give one or the other")
        return self

    def _fits_full_finetuning(self) -> None:
        if self.model.few_bits:
            raise ValueError("train.full_finetuning needs whole weights; leave load_in_4bit and load_in_8bit off")
        if self.model.fast_inference:
            raise ValueError("train.full_finetuning goes without model.fast_inference, which shares frozen weights")
        if self.export.lora_gguf:
            raise ValueError("export.lora_gguf writes an adapter; with train.full_finetuning there is none")
        if self.export.push_to_hub and not (self.export.merged or self.export.gguf):
            raise ValueError(
                "export.push_to_hub with train.full_finetuning pushes a merged folder or GGUF files; add merged"
            )

    @property
    def plan(self) -> Plan:
        """How the run generates."""
        e = self.evaluate
        return Plan(e.max_new_tokens, e.temperature, e.top_p, e.eval_seed, e.eval_batch_size)

    def replaced(self, **leaves: Any) -> RunConfig:
        """These settings with some of them changed; what is given is not checked again."""
        sections: dict[str, dict[str, Any]] = {}
        for leaf, value in leaves.items():
            sections.setdefault(LEAVES[leaf], {})[leaf] = value
        return self.model_copy(
            update={name: getattr(self, name).model_copy(update=changed) for name, changed in sections.items()}
        )

    def fingerprint(self, *sections: str) -> str:
        """A hash of what decides the result: not the run's place, its log cadence, or what is asked of its scores."""
        plain = self.model_dump(mode="json", include=set(sections) or None)
        for leaf in ("run_dir", "save_total_limit", "logging_steps"):
            plain.get("train", {}).pop(leaf, None)
        for leaf in ("gate", "min_format_valid"):
            plain.get("evaluate", {}).pop(leaf, None)
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        """The resolved settings, as a file that gives them back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


SECTIONS: dict[str, type[_Section]] = {
    name: field.annotation  # type: ignore[misc]
    for name, field in RunConfig.model_fields.items()
}
LEAVES: dict[str, str] = {leaf: section for section, kind in SECTIONS.items() for leaf in kind.model_fields}
"""Each setting and the section it belongs to."""
HOW_LOADED = ("engine", "dtype", "load_in_4bit", "load_in_8bit")
"""Settings of how a model is loaded, whichever it is."""

_NICKNAMES = {
    "r": "lora_r", "rank": "lora_r", "lora_rank": "lora_r", "alpha": "lora_alpha", "dropout": "lora_dropout",
    "lr": "learning_rate", "batch_size": "per_device_train_batch_size", "epochs": "num_train_epochs",
    "max_length": "max_seq_length", "cutoff_len": "max_seq_length", "sequence_len": "max_seq_length",
    "base_model": "model_name_or_path", "model_name": "model_name_or_path", "output_dir": "run_dir",
    "quantization": "load_in_4bit", "scheduler": "lr_scheduler_type", "template": "chat_template",
}  # fmt: skip
"""What other trainers call our settings: for "did you mean" only."""


Lines = dict[tuple[str, ...], int]
"""The line each key of a file stands on."""


def is_flag_pair(leaf: str) -> bool:
    """True where a setting is a plain boolean, so that its flag takes no value."""
    return SECTIONS[LEAVES[leaf]].model_fields[leaf].annotation is bool


def is_list(leaf: str) -> bool:
    """True where a setting is a list, written with commas on the command line."""
    return get_origin(SECTIONS[LEAVES[leaf]].model_fields[leaf].annotation) is tuple


def load(path: str | Path | None = None, flags: Mapping[str, Any] | None = None) -> RunConfig:
    """Read a YAML or JSON file, then let `flags` outrank it.

    Args:
        path: the file. None takes the embedded demo's, whose rates and sizes are for its tiny model
            alone; so where a flag names another model, None takes the defaults.
        flags: leaf name to value, as given on the command line; text is converted.

    Raises:
        ConfigError: with every fault there is, each with its line or flag.
    """
    return _only(*load_all(path, flags))


def load_all(
    path: str | Path | None = None, flags: Mapping[str, Any] | None = None
) -> tuple[RunConfig | None, list[ConfigError]]:
    """As `load`, but every fault is returned, beside the settings without what is at fault.

    Returns:
        The settings, None where nothing can be made of them; and the faults.
    """
    if path is None and (flags or {}).get("model_name_or_path", TINY_BASE) != TINY_BASE:
        return _checked({}, flags or {})
    file = Path(path) if path is not None else DEFAULT_CONFIG
    try:
        tree, lines = _read(file)
    except ConfigError as error:
        return None, list(error.parts) or [error]
    return _checked(tree, flags or {}, file, lines)


def load_all_tree(tree: Mapping[str, Any], flags: Mapping[str, Any]) -> tuple[RunConfig | None, list[ConfigError]]:
    """As `load_all`, of settings given as a tree of sections."""
    return _checked(tree, flags)


def load_tree(
    tree: Mapping[str, Any], flags: Mapping[str, Any], file: Path = Path("settings"), lines: Lines | None = None
) -> RunConfig:
    """Check settings given as a tree of sections, after `flags` have outranked them.

    Raises:
        ConfigError: as `load`.
    """
    return _only(*_checked(tree, flags, file, lines))


def _only(config: RunConfig | None, faults: list[ConfigError]) -> RunConfig:
    if faults or config is None:
        raise _together(faults)
    return config


def _checked(
    tree: Mapping[str, Any], flags: Mapping[str, Any], file: Path = Path("settings"), lines: Lines | None = None
) -> tuple[RunConfig | None, list[ConfigError]]:
    lines = lines or {}
    faults = list(_unknown(tree, file, lines))
    known = _known(tree)
    _set_budget(known.get("evaluate", {}))
    for leaf, value in flags.items():
        if leaf in LEAVES:
            known.setdefault(LEAVES[leaf], {})[leaf] = _flag_value(leaf, value)
        else:
            faults.append(ConfigError(f"is not a setting{guess(leaf)}", where=leaf, name="unknown_setting"))
    if "max_new_tokens" not in flags and "benchmark" in flags:
        known["evaluate"].pop("max_new_tokens", None)
        _set_budget(known["evaluate"])
    while True:
        try:
            return RunConfig.model_validate(known), faults
        except ValidationError as error:
            found = error.errors()
            faults += [_fault(e, file, lines, flags) for e in found]
        left = {name: dict(section) for name, section in known.items()}
        for item in found:  # without what is at fault, the rest can be looked at
            section, *rest = item["loc"] or ("",)
            if rest and str(section) in left:
                left[str(section)].pop(str(rest[0]), None)
        if left == known:
            return None, faults
        known = left


def _set_budget(evaluate: dict[str, Any]) -> None:
    """A benchmark brings its budget along, where none is given beside it."""
    budget = BUDGETS.get(str(evaluate.get("benchmark")))
    if budget is not None:
        evaluate.setdefault("max_new_tokens", budget)


def _flag_value(leaf: str, value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, str):
        if is_list(leaf):
            return [item.strip() for item in value.split(",") if item.strip()]
        if value.lower() in ("none", "null"):
            return None
    return value


def _together(faults: list[ConfigError]) -> ConfigError:
    if len(faults) == 1:
        return faults[0]
    together = ConfigError(f"{len(faults)} settings cannot be used:\n" + "\n".join(str(fault) for fault in faults))
    together.parts = tuple(faults)
    return together


def _read(file: Path) -> tuple[dict[str, Any], Lines]:
    """A file's tree, and the line of each key (of a YAML file: JSON tells none)."""
    try:
        text = file.read_text(encoding="utf-8")
        tree = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
        node = None if file.suffix == ".json" else yaml.compose(text, Loader=yaml.SafeLoader)
        json.dumps(tree, ensure_ascii=False, default=str).encode()
    except FileNotFoundError as error:
        raise ConfigError(
            "there is no such file", where=str(file), hint="configs/ holds ready ones", name="config_missing"
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot be read: {error}", where=str(file), name="unreadable_settings") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise ConfigError(
            f"is not YAML: {error.problem}", where=f"{file}:{mark.line + 1 if mark else 1}", name="not_yaml"
        ) from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"is not JSON: {error.msg}", where=f"{file}:{error.lineno}", name="not_json") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"cannot be read: {error}", where=str(file), hint="save it as UTF-8 text", name="unreadable_settings"
        ) from error
    if tree is None:
        return {}, {}
    if not isinstance(tree, dict):
        raise ConfigError(
            "holds no settings",
            where=f"{file}:1",
            hint=f"write sections: {', '.join(SECTIONS)}",
            name="no_settings",
        )
    lines: Lines = {}
    repeated = list(_walk(node, (), lines))
    if repeated:
        raise _together(
            [
                ConfigError(f"{'.'.join(p)} is set twice", where=f"{file}:{line}", name="set_twice")
                for p, line in repeated
            ]
        )
    return tree, lines


def _walk(node: Any, path: tuple[str, ...], lines: Lines) -> Iterator[tuple[tuple[str, ...], int]]:
    """Note each key's line; yield the keys that stand twice."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        here = (*path, str(key.value))
        line = key.start_mark.line + 1
        if here in lines:
            yield here, line
        lines[here] = line
        yield from _walk(value, here, lines)


def _unknown(tree: Mapping[str, Any], file: Path, lines: Lines) -> Iterator[ConfigError]:
    for name, section in tree.items():
        if name not in SECTIONS:
            yield ConfigError(
                f"{name} is not a section{guess(str(name), top=True)}",
                where=f"{file}:{lines.get((str(name),), 1)}",
                name="unknown_section",
            )
        elif section is not None and not isinstance(section, dict):
            yield ConfigError(
                f"{name} must hold settings, not {section!r}",
                where=f"{file}:{lines.get((name,), 1)}",
                name="wrong_type",
            )
        else:
            for leaf in section or {}:
                if leaf not in SECTIONS[name].model_fields:
                    yield ConfigError(
                        f"{name}.{leaf} is not a setting{guess(str(leaf))}",
                        where=f"{file}:{lines.get((name, str(leaf)), 1)}",
                        name="misplaced_setting" if leaf in LEAVES else "unknown_setting",
                    )


def guess(name: str, *, top: bool = False) -> str:
    """What a misspelt section, setting or flag may have meant, as the end of a message.

    >>> guess("lr"), guess("--lr")
    ('; did you mean train.learning_rate?', '; did you mean --learning-rate?')
    """
    if name.startswith("--"):
        near = next(iter(difflib.get_close_matches(name[2:].replace("-", "_"), [*LEAVES, *_NICKNAMES], 1)), None)
        return f"; did you mean --{_NICKNAMES.get(near, near).replace('_', '-')}?" if near else ""
    if name in LEAVES:
        return f"; it belongs in section {LEAVES[name]}"
    choices = [*(SECTIONS if top else ()), *LEAVES, *_NICKNAMES]
    near = next(iter(difflib.get_close_matches(name, choices, 1)), None)
    if near is None:
        return f" (sections: {', '.join(SECTIONS)})" if top else ""
    near = _NICKNAMES.get(near, near)
    return f"; did you mean {near if near in SECTIONS else f'{LEAVES[near]}.{near}'}?"


def _known(tree: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The tree without what `_unknown` has already named."""
    return {
        name: {leaf: value for leaf, value in section.items() if leaf in SECTIONS[name].model_fields}
        for name, section in tree.items()
        if name in SECTIONS and isinstance(section, dict)
    }


def _fault(error: Any, file: Path, lines: Lines, flags: Mapping[str, Any]) -> ConfigError:
    path = tuple(str(part) for part in error["loc"])
    leaf = path[1] if len(path) > 1 else ""
    if leaf in flags:
        where = "--" + leaf.replace("_", "-")
    else:
        line = lines.get(path[:2])
        where = f"{file}:{line}" if line else str(file)
    message = error["msg"].removeprefix("Value error, ")
    if not path:  # of settings that do not go together: the flags among them
        where = " ".join("--" + name.replace("_", "-") for name in flags if name in message) or where
    if leaf:
        message = f"{path[0]}.{leaf} is {error['input']!r}: {message[0].lower()}{message[1:]}"
    kind = error["type"]
    if not path or (kind == "value_error" and not leaf):
        name = "conflicting_settings"
    elif kind.endswith(("_type", "_parsing")) or kind in ("literal_error", "int_from_float"):
        name = "wrong_choice" if kind == "literal_error" else "wrong_type"
    else:
        name = "out_of_range"
    return ConfigError(message, where=where, name=name)


def reference() -> Iterator[tuple[str, str, str, str]]:
    """Every setting as (section, leaf, default, description): the option reference is made of it."""
    for section, kind in SECTIONS.items():
        for leaf, field in kind.model_fields.items():
            yield section, leaf, json.dumps(field.default), field.description or ""
