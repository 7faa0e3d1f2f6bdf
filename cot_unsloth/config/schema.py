"""Every setting of a run: its name, type, default and what it trades.

Sections are `model, lora, data, train, evaluate, export`. Leaf names are unique, so each is also a
command-line flag; where Hugging Face has a name, ours is the same. A flag outranks the YAML, the
YAML outranks the defaults here. Faults are collected and shown together, each with the line or
the flag it came from.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.fields import FieldInfo

from cot_unsloth.config.sources import split_sources
from cot_unsloth.core import trace
from cot_unsloth.core.types import ThinkingTags

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


class Section(BaseModel):
    """A section of the settings: unknown names are refused, values are finite and do not change."""

    # Validators are built when first used, which --help never does.
    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), defer_build=True, allow_inf_nan=False
    )


class ModelConfig(Section):
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
    def quantization_bits(self) -> int | None:
        """Bits per weight that the model is quantized to when it is loaded, 4 or 8; None for 16 or 32 bits."""
        return 4 if self.load_in_4bit else 8 if self.load_in_8bit else None


class LoraConfig(Section):
    """The adapter; not looked at with full_finetuning."""

    lora_r: int = Field(32, ge=1, description="Rank; memory and capacity grow with it")
    lora_alpha: int = Field(64, ge=1, description="Scale times rank; twice the rank is the usual choice")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input")
    use_rslora: bool = Field(False, description="Scale by alpha / sqrt(r); pays from r = 64 on")
    target_modules: tuple[str, ...] = Field(
        ("all-linear",), min_length=1, description="Projections to adapt, comma-separated; all-linear learns best"
    )


class DataConfig(Section):
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
    def _join_sources(cls, value: object) -> object:
        """Several files, given as a list."""
        if isinstance(value, list | tuple) and value:
            names = [os.fspath(name) if isinstance(name, str | os.PathLike) else "" for name in value]
            if not all(name.strip() for name in names):
                raise ValueError("every item of the list must be the name of a file")
            return ",".join(name.strip() for name in names)
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @model_validator(mode="before")
    @classmethod
    def _name_the_tags(cls, values: object) -> object:
        """The default system prompt names the tags that are trained; one of the user's own is left alone."""
        if not isinstance(values, dict) or values.get("system_prompt", DEFAULT_SYSTEM_PROMPT) not in _PROMPTS.values():
            return values
        tags = str(values.get("thinking_tags", "thinking"))  # anything may stand there before it is looked at
        return {**values, "system_prompt": _PROMPTS.get(tags, DEFAULT_SYSTEM_PROMPT)}

    @property
    def sources(self) -> tuple[str, ...]:
        """The names in `dataset`, one or more with commas between them; a file that has a comma in its name is one."""
        return split_sources(self.dataset)


class TrainConfig(Section):
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


class EvaluateConfig(Section):
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


class ExportConfig(Section):
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
    def _lower_case_once(cls, value: object) -> object:
        """Accept llama.cpp's spelling (Q4_K_M), and a type given twice."""
        if not isinstance(value, list | tuple):
            return value
        return tuple(dict.fromkeys(item.lower() if isinstance(item, str) else item for item in value))

    @property
    def asks(self) -> bool:
        """Whether there is anything to do."""
        return any(getattr(self, leaf) for leaf in EXPORTS)


EXPORTS: Mapping[str, bool | tuple[str, ...] | None] = {
    "merged": False,
    "gguf": (),
    "lora_gguf": False,
    "push_to_hub": None,
}
"""Settings that ask for something to be exported, as they are where nothing is."""


SECTIONS: dict[str, type[Section]] = {
    "model": ModelConfig,
    "lora": LoraConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
}
"""The sections of a settings file. Register a section here, and in `RunConfig`."""
LEAVES: dict[str, str] = {leaf: section for section, kind in SECTIONS.items() for leaf in kind.model_fields}
"""Each setting and the section it belongs to. Names are unique, so that each is a command-line flag."""
HOW_LOADED = ("engine", "dtype", "load_in_4bit", "load_in_8bit")
"""Settings of how a model is loaded, whichever it is."""


def field_of(leaf: str) -> FieldInfo:
    """The pydantic field of a setting: its type, default and description."""
    return SECTIONS[LEAVES[leaf]].model_fields[leaf]


def is_flag_pair(leaf: str) -> bool:
    """True where a setting is a plain boolean, so that its flag takes no value."""
    return field_of(leaf).annotation is bool


def is_list(leaf: str) -> bool:
    """True where a setting is a list, written with commas on the command line."""
    return get_origin(field_of(leaf).annotation) is tuple


def reference() -> Iterator[tuple[str, str, str, str]]:
    """Every setting as (section, leaf, default as JSON, description), for the option reference."""
    for leaf, section in LEAVES.items():
        field = field_of(leaf)
        yield section, leaf, json.dumps(field.default), field.description or ""
