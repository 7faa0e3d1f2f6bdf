"""Every setting of a run: its name, type, default, and what it trades off.

Sections are `model, lora, data, train, sample, grpo, development, evaluate, export`; some are in modules of their own, such
as `schema_lora`. Names are unique across sections, so each is also a command-line flag. Where Hugging Face has a name for a
setting, ours is the same. Descriptions are the help texts of the flags and the option reference
(`scripts/make_options.py`). `settings` finds settings by name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from cot_unsloth.config.benchmarks import BENCHMARKS
from cot_unsloth.config.choices import ENGINES, LAYOUTS, METHODS
from cot_unsloth.config.section import LocalPath, Section, one_of
from cot_unsloth.config.sources import split_sources
from cot_unsloth.core import trace
from cot_unsloth.core.types import ThinkingTags

ASSETS = Path(__file__).parent.parent / "assets"
TINY_BASE = "tiny-base"
"""The name of the embedded base model."""
DEFAULT_CONFIG = ASSETS / "tiny-cpu.yaml"
"""The settings of `train` without a file."""

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
AnyArm = Arm | Literal["start", "gguf", "forgetting_before", "forgetting_after"]
"""Arms that cannot be chosen in the settings: `start` is the adapter that training continued, `gguf` an exported file."""


def _untrained_task(name: str) -> object:
    return name if name.startswith(("world:", "gym:")) else one_of("auto", "general", *BENCHMARKS)(name)


Quant = Literal["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"]


class ModelConfig(Section):
    """The model, and how it is loaded."""

    model_name_or_path: LocalPath = Field(
        TINY_BASE, min_length=1, description=f"Hub id, folder, or {TINY_BASE} (embedded, runs on any CPU)"
    )
    model_revision: str | None = Field(
        None, description="Revision on the hub; a commit hash makes the run reproducible"
    )
    engine: Annotated[str, BeforeValidator(one_of("auto", *ENGINES))] = Field(
        "auto", description="auto: unsloth where it can run, else hf; a named engine never falls back to the other"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Compute type; auto: bfloat16 on GPUs of compute capability 8.0 or higher, float16 on older ones, float32 on a CPU",
    )
    load_in_4bit: bool = Field(
        False, description="QLoRA: a quarter of the memory for weights, slightly less accurate; slower on a CPU"
    )
    load_in_8bit: bool = Field(
        False, description="Half the memory for weights, nearly as accurate, slower; on a CPU it needs the hf engine"
    )
    fast_inference: bool = Field(
        False,
        description="Score in vLLM, which shares the weights with training (needs unsloth, a GPU and vllm)",
    )
    gpu_memory_utilization: float = Field(
        0.5, gt=0, lt=1, description="Share of the GPU's memory for vLLM, with fast_inference"
    )
    chat_template: LocalPath | None = Field(
        None,
        description="Chat template to use instead of the model's: a Jinja file, the name of a template in the tokenizer, or a training "
        "template: qwen2.5, qwen3, r1-distill, llama3, smollm2, mistral, gemma3, chatml. The run keeps a copy "
        "(chat_template.jinja)",
    )
    pad_token: str | None = Field(None, description="Padding token, for a tokenizer that has none")
    date_string: str = Field(
        "26 Jul 2024",
        description="The date that chat templates print (Llama 3's date_string, others' strftime_now); fixed, so that training "
        "and export agree",
    )

    @property
    def quantization_bits(self) -> int | None:
        """Bits per weight that the model is quantized to when it is loaded, 4 or 8; None for 16 or 32 bits."""
        return 4 if self.load_in_4bit else 8 if self.load_in_8bit else None


class DataConfig(Section):
    """The data, and how rows are written for the model."""

    dataset: str = Field(
        "world:chains,words,countdown",
        min_length=1,
        description="A file (JSONL, JSON, CSV, TSV, Parquet, Arrow; also compressed), several separated by commas, a quoted glob, "
        "a folder, a hub id, or generated tasks: world:NAME[:STEPS],..., gym:NAME,...",
    )
    dataset_config_name: str | None = Field(None, description="Configuration of a hub data set, such as main")
    dataset_split: str = Field(
        "train",
        description="Split to read from a hub data set, a folder, or a JSON object such as {train: [...], test: [...]}",
    )
    dataset_revision: str | None = Field(
        None, description="Revision on the hub; a commit hash makes the run reproducible"
    )
    data_format: Annotated[str, BeforeValidator(one_of("auto", *LAYOUTS))] = Field(
        "auto", description="Layout of the rows; auto: recognised by their columns"
    )
    question_column: str | None = Field(None, description="Column with the question, if its name is not recognised")
    reasoning_column: str | None = Field(None, description="Column with the reasoning")
    answer_column: str | None = Field(
        None, description="Column with the answer; if another column has the full response, the gold answer"
    )
    system_column: str | None = Field(None, description="Column with a system prompt for each row")
    messages_column: str | None = Field(None, description="Column with a conversation: a list of turns")
    system_prompt: str | None = Field(
        DEFAULT_SYSTEM_PROMPT,
        description="System prompt of the trained model; a row's own takes precedence; '' for none",
    )
    trace_layout: Literal["nested", "sequential"] = Field(
        "nested", description="nested: reflections inside thinking; sequential: thinking, reflection, output"
    )
    thinking_tags: ThinkingTags = Field(
        "thinking",
        description="Tags around the reasoning; think writes <think>, which many servers recognise",
    )
    loss_on: Literal["last", "all"] = Field(
        "last",
        description="Turns of the assistant that carry loss: the last one, or all in a conversation",
    )
    max_seq_length: int = Field(2048, ge=16, description="Tokens; longer rows are rejected and counted, never cut")
    max_train_samples: int | None = Field(None, ge=1, description="Use at most this many training rows")
    dataset_num_proc: int | None = Field(
        None,
        ge=1,
        description="Number of processes that render rows; unset: one, or from 40,000 rows one per core, at most 4",
    )
    test_fraction: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="Share of the questions in a file held out for scoring (at most eval_samples are scored)",
    )
    world_samples: int = Field(4000, ge=1, description="Training problems to generate, with world:NAME and gym:NAME")
    world_error_rate: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Probability that a step of a generated solution is corrupted, then corrected in a reflection",
    )
    world_clean_first: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the generated rows, placed first, without corrupted steps; above 0, they are not shuffled or packed",
    )
    decontaminate: bool = Field(
        True,
        description="Drop training rows whose question is in the test set, or shares 13 consecutive words with the benchmark",
    )
    mask_wrong_steps: bool = Field(
        True,
        description="No loss on corrupted steps: the model learns to correct them, not to make them",
    )

    @field_validator(
        "question_column", "reasoning_column", "answer_column", "system_column", "messages_column", mode="before"
    )
    @classmethod
    def _recognize_unnamed(cls, value: object) -> object:
        """Accept '' for none, so that a flag can take back the name of a run or of a settings file."""
        return None if isinstance(value, str) and not value.strip() else value

    @field_validator("dataset", mode="before")
    @classmethod
    def _join_sources(cls, value: object) -> object:
        """Accept several files as a list, and paths."""
        if isinstance(value, list | tuple) and value:
            names = [os.fspath(name) if isinstance(name, str | os.PathLike) else "" for name in value]
            if not all(name.strip() for name in names):
                raise ValueError("every item of the list must be the name of a file")
            return ",".join(name.strip() for name in names)
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @model_validator(mode="before")
    @classmethod
    def _name_the_tags(cls, values: object) -> object:
        """Make the default system prompt name the tags in use; any other prompt is kept as it is."""
        if not isinstance(values, dict) or values.get("system_prompt", DEFAULT_SYSTEM_PROMPT) not in _PROMPTS.values():
            return values
        tags = str(values.get("thinking_tags", "thinking"))  # not validated yet, so of any type
        return {**values, "system_prompt": _PROMPTS.get(tags, DEFAULT_SYSTEM_PROMPT)}

    @property
    def sources(self) -> tuple[str, ...]:
        """The names in `dataset`, which are separated by commas; a file whose own name has a comma counts as one."""
        return split_sources(self.dataset)


class TrainConfig(Section):
    """How the model is trained."""

    run_dir: LocalPath | None = Field(None, description="Folder of the run; default: runs/DATE-MODEL-DATASET")
    method: Annotated[str, BeforeValidator(one_of(*METHODS))] = Field(
        "sft",
        description="How to train: sft imitates the data's traces; rft the model's own right answers, in rounds; grpo reinforces them",
    )
    init_adapter: LocalPath | None = Field(
        None,
        description="Continue training the adapter of a run or in a folder, on the same base; its rank, modules and scale are kept, "
        "and those of lora are ignored. It is scored as the arm start",
    )
    full_finetuning: bool = Field(
        False,
        description="Train every weight, in float32, instead of an adapter: about 16 bytes of memory per parameter; use a learning "
        "rate near 1e-5 for models of billions of parameters",
    )
    per_device_train_batch_size: int = Field(2, ge=1, description="Rows per forward pass; memory grows with it")
    gradient_accumulation_steps: int = Field(
        4, ge=1, description="Forward passes per optimizer step; effective batch = this x per_device_train_batch_size"
    )
    num_train_epochs: float = Field(1.0, gt=0, description="Passes over the data; ignored if max_steps is set")
    max_steps: int = Field(-1, ge=-1, description="Optimizer steps; -1: as many as num_train_epochs takes")
    learning_rate: float = Field(
        2e-4,
        gt=0,
        description="Peak learning rate; it matters more than the kind of adapter, so tune it first. Unset with grpo: 1e-5, and 4e-4 "
        "for tiny-base",
    )
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "linear", description="Schedule of the learning rate after warm-up"
    )
    warmup_ratio: float = Field(
        0.03, ge=0, lt=1, description="Share of the steps in which the learning rate rises from 0"
    )
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of the trained weights")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm")
    optim: Literal["auto", "adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "auto", description="auto: adamw_8bit for 4-bit models on a GPU, adamw_torch_fused on a CPU, else adamw_torch"
    )
    neftune_noise_alpha: float | None = Field(
        None,
        gt=0,
        description="NEFTune: uniform noise of this strength on the embeddings of training rows; 5 is usual. For methods sft and rft",
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations: far less memory, about a third slower"
    )
    packing: bool = Field(
        False,
        description="Pack short rows into one sequence, without attention between them. Without FlashAttention, one pack per forward "
        "pass and more gradient accumulation instead. No effect on a CPU, where rows need no padding",
    )
    autocast: bool = Field(
        True,
        description="On a CPU with bfloat16 instructions, compute in bfloat16 with float32 weights; false: float32 only",
    )
    seed: int = Field(
        3407,
        ge=0,
        le=2**32 - 1,
        description="Random seed for the adapter's initial weights, the order of rows, and generated training problems",
    )
    logging_steps: int = Field(10, ge=1, description="Steps between rows of metrics.jsonl")
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = Field(
        (), description="Experiment trackers; they write into the run's folder unless their own variables name a server"
    )
    save_steps: int = Field(100, ge=1, description="Steps between checkpoints")
    save_total_limit: int = Field(2, ge=1, description="Number of newest checkpoints to keep")

    @property
    def rows_per_step(self) -> int:
        """Rows per optimizer step: the effective batch size."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps


class EvaluateConfig(Section):
    """How models are scored."""

    eval_samples: int = Field(200, ge=0, description="Held-out problems that each arm answers; 0: no scoring")
    eval_seed: int = Field(
        1234,
        ge=0,
        le=2**32 - 1,
        description="Random seed for the held-out problems, or for the split of a file; independent of seed",
    )
    benchmark: Annotated[str, AfterValidator(one_of(*BENCHMARKS))] | None = Field(
        None,
        description=f"Score on this test set instead of held-out rows: {', '.join(BENCHMARKS)}; max_new_tokens, if not "
        f"given, is then {', '.join(str(benchmark.max_new_tokens) for benchmark in BENCHMARKS.values())}",
    )
    benchmark_path: str | None = Field(None, description="File with the rows of the benchmark, instead of the hub")
    eval_batch_size: int | None = Field(
        None, ge=1, description="Most prompts generated at a time; unset: up to 64, as memory allows"
    )
    max_new_tokens: int = Field(
        512,
        ge=1,
        description="Token limit of a completion; if it is too low, chains of thought are cut off, which is reported",
    )
    temperature: float = Field(0.0, ge=0, description="0: greedy decoding")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling; only with temperature > 0")
    arms: tuple[Arm, ...] = Field(ARMS, description="Arms to score: base_direct, base_cot, base_tags, tuned")
    forgetting: Annotated[str, AfterValidator(_untrained_task)] | None = Field(
        "auto",
        description="Task that is not trained on, scored before and after training: general (100 built-in questions), "
        "a benchmark, world:NAME or gym:NAME; auto: general, or none for the embedded base",
    )
    recovery: bool = Field(
        False,
        description="After scoring, corrupt one step of each correct answer of the tuned arm, let it continue, and score again",
    )
    gate: bool = Field(
        True,
        description="Exit code 3 if the tuned arm is significantly worse than the base with the same prompt, or than init_adapter "
        "(McNemar p < 0.05), or its share of valid completions is below min_format_valid",
    )
    min_format_valid: float = Field(
        0.0, ge=0, le=1, description="Share of the tuned arm's completions that must be valid traces; 0: no requirement"
    )

    @property
    def arms_in_order(self) -> tuple[Arm, ...]:
        """The arms to score, in the order they are scored in."""
        return tuple(arm for arm in ARMS if arm in self.arms)


class ExportConfig(Section):
    """The files that are exported for other programs."""

    merged: bool = Field(False, description="Write a folder with adapter and base merged, for transformers")
    gguf: tuple[Quant, ...] = Field(
        (),
        description="GGUF files for llama.cpp and Ollama, comma-separated: f32, f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m",
    )
    lora_gguf: bool = Field(False, description="Write the adapter alone as GGUF, to load beside any GGUF of its base")
    export_dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto",
        description="Type of the weights in the merged folder; auto: the base's 16-bit type, or bfloat16 if the base is stored in 32 bits",
    )
    export_samples: int = Field(40, ge=0, description="Held-out questions used to verify an exported file")
    allow_unverified: bool = Field(
        False, description="Without xllamacpp, accept NAME.unverified.gguf: exit code 0 instead of 3"
    )
    push_to_hub: str | None = Field(
        None,
        pattern=r"^[\w-][\w.-]*/[\w-][\w.-]*$",
        description="USER/NAME: push verified files to the Hugging Face Hub: the merged folder to USER/NAME, GGUF files to "
        "USER/NAME-GGUF, the adapter to USER/NAME-LoRA",
    )
    hub_private_repo: bool = Field(True, description="Make new repositories private")

    @field_validator("gguf", mode="before")
    @classmethod
    def _lower_case_once(cls, value: object) -> object:
        """Accept llama.cpp's spelling (Q4_K_M), and drop repeated types."""
        if not isinstance(value, list | tuple):
            return value
        return tuple(dict.fromkeys(item.lower() if isinstance(item, str) else item for item in value))

    @property
    def asks(self) -> bool:
        """Whether the settings ask for any export."""
        return any(getattr(self, leaf) for leaf in EXPORTS)


EXPORTS: Mapping[str, bool | tuple[str, ...] | None] = {
    "merged": False,
    "gguf": (),
    "lora_gguf": False,
    "push_to_hub": None,
}
"""The settings that say what to export, with the values that export nothing."""
