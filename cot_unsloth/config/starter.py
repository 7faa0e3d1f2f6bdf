"""The text of a first settings file: YAML for a model, data and a machine, each line with its reason."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import yaml

from cot_unsloth.config.schema import DEFAULT_CONFIG, TINY_BASE

Machine = Literal["laptop", "t4", "gpu"]


@dataclass(frozen=True)
class OwnData:
    """The properties of a data set in files that settings depend on."""

    rows: int
    """Number of usable rows; of a large file, only the first rows are counted."""
    with_reasoning: int
    """Number of these that have reasoning, which imitation needs."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Column settings that were given, such as `question_column`, with their columns."""

    @property
    def method(self) -> str:
        """Imitation if most rows have reasoning, else rejection sampling, which needs only answers."""
        return "sft" if 2 * self.with_reasoning >= self.rows else "rft"

    @property
    def test_fraction(self) -> float:
        """The share of the questions to hold out."""
        return round(min(max(_HELD_OUT / self.rows, 0.05), 0.2), 2)


@dataclass(frozen=True)
class _Line:
    section: str
    leaf: str
    value: object
    reason: str


USUAL_STEPS = 100
"""Optimizer steps that fine-tuning usually takes to change what a model does.

s1 took 315 (1,000 rows, batch 16, 5 epochs; arXiv 2501.19393), LIMA about 470 (1,000 rows, batch 32, 15 epochs; arXiv
2305.11206), our demo 1,500; Unsloth's notebooks take 60 to show that it runs, and advise a full epoch.
"""
_BATCH = 8
"""The default effective batch size, and the one of the embedded model."""
_MOST_EPOCHS = 5
"""Most passes for a pretrained model: s1 still improved in 5 passes over 1,000 rows; far more passes memorize them."""
_HELD_OUT = 100
"""Held-out questions to aim for: they give an interval of about ±10 points. At most a fifth of the questions."""


def starter(
    model: str, dataset: str, machine: Machine, file: str, own: OwnData | None = None, *, generated: bool = False
) -> str:
    """A settings file in YAML.

    Args:
        model: hub id or folder, or the embedded `tiny-base`, which uses its own settings whatever the machine.
        dataset: the value of `data.dataset`.
        machine: the machine to size it for: no GPU, 16 GB of GPU memory, or more.
        file: the file's name, for the commands at its top.
        own: properties of the rows; None for generated problems, and for data that could not be read.
        generated: whether the data set is generated problems with solutions, like those of the demo.
    """
    if model == TINY_BASE and generated:
        return _tiny(dataset, file)
    tiny = model == TINY_BASE
    lines = [
        _Line("model", "model_name_or_path", model, "embedded, runs on any CPU" if tiny else "a hub id, or a folder"),
        *([_Line("model", "load_in_4bit", True, "a quarter of the memory for weights")] if machine == "t4" and not tiny else []),
        _Line("data", "dataset", dataset, "a file, a folder, a hub id, or generated problems (docs/data.md)"),
        *_own_data(own),
        *(_tiny_training(own) if tiny else _training(machine, dataset, own)),
        *_evaluation(machine, tiny),
        _Line("export", "gguf", ["q8_0" if tiny else "q4_k_m"], "a verified file for llama.cpp and Ollama; [] for none"),
    ]  # fmt: skip
    return "\n".join([*_head(file), *_sections(lines)]) + "\n"


def _own_data(own: OwnData | None) -> Iterator[_Line]:
    if own is None:
        return
    for leaf, column in own.columns.items():
        yield _Line("data", leaf, column, "a column of the data; item.answer is one inside an object")
    yield _Line(
        "data",
        "test_fraction",
        own.test_fraction,
        "share of the questions held out to score on; more detect smaller differences",
    )


def _epochs(own: OwnData | None, most: int) -> Iterator[_Line]:
    """Passes over few rows that make the usual number of steps."""
    if own is None or own.method != "sft":
        return
    trained = own.with_reasoning * (1 - own.test_fraction)
    epochs = min(math.ceil(USUAL_STEPS * _BATCH / trained), most)
    if epochs > 1:
        steps = round(epochs * trained / _BATCH)
        yield _Line(
            "train", "num_train_epochs", epochs, f"about {steps} steps; runs usually take {USUAL_STEPS} or more"
        )


def _tiny_training(own: OwnData | None) -> Iterator[_Line]:
    yield _Line(
        "train", "per_device_train_batch_size", _BATCH, "on so small a model, small batches learn more per second"
    )
    yield _Line("train", "gradient_accumulation_steps", 1, "eight rows fit into memory at once")
    yield _Line("train", "learning_rate", 4e-3, "a model of 2M parameters needs a far larger rate than one of 3B")
    yield from _epochs(own, most=100)


def _training(machine: Machine, dataset: str, own: OwnData | None) -> Iterator[_Line]:
    # Problems of reasoning-gym have answers and no solutions.
    method = own.method if own else "rft" if dataset.startswith("gym:") else "sft"
    reason = (
        "learns from its own right answers"
        if method == "rft"
        else "imitates the reasoning in the data; use rft if they have only answers"
    )
    yield _Line("train", "method", method, reason)
    yield _Line("train", "learning_rate", 1e-4, "low, because an instruct model can lose what it knows; tune it first")
    yield from _epochs(own, _MOST_EPOCHS)
    if machine != "laptop":
        yield _Line("train", "gradient_checkpointing", True, "saves memory at the cost of speed")
    elif own is None or own.with_reasoning > 200 * _BATCH:
        yield _Line("train", "max_steps", 200, "to finish soon; remove it for a whole pass over the data")


def _evaluation(machine: Machine, tiny: bool) -> Iterator[_Line]:
    if tiny:
        yield _Line(
            "evaluate", "max_new_tokens", 400, "about 600 characters; a longer answer is cut off and counts as wrong"
        )
        return
    samples = 100 if machine == "laptop" else 300
    yield _Line("evaluate", "eval_samples", samples, "more problems detect smaller differences")
    yield _Line(
        "evaluate", "max_new_tokens", 1024, "a smaller budget would count against a base that reasons at length"
    )


def _head(file: str) -> list[str]:
    return [
        f"# cot-unsloth check {shlex.quote(file)}     every fault in data and settings, in seconds",
        f"# cot-unsloth train {shlex.quote(file)}",
        "#",
        "# All other settings have their defaults: docs/options.md, or cot-unsloth train --help.",
    ]


def _sections(lines: list[_Line]) -> Iterator[str]:
    for section in dict.fromkeys(line.section for line in lines):
        yield f"\n{section}:"
        settings = [(f"  {line.leaf}: {_yaml(line.value)}", line.reason) for line in lines if line.section == section]
        width = max(len(text) for text, _ in settings)
        yield from (f"{text:<{width}}  # {reason}" for text, reason in settings)


def _yaml(value: object) -> str:
    """A value as YAML, of which JSON is a subset; names that cannot be misread are not quoted."""
    if isinstance(value, float):
        return f"{value:.1e}" if "e" in f"{value:g}" else f"{value:g}"  # YAML 1.1 reads 1e-5 as text, but not 1.0e-05
    if isinstance(value, str) and value.replace("/", "").replace("-", "").replace("_", "").replace(".", "").isalnum():
        # A folder may be called 2024-01-02, and a column no: YAML 1.1 reads a date, and a boolean.
        return value if yaml.safe_load(value) == value else json.dumps(value)
    return json.dumps(value, ensure_ascii=False)


def _tiny(dataset: str, file: str) -> str:
    """The embedded demo's file, with these commands at its top and this data set."""
    _, _, settings = DEFAULT_CONFIG.read_text(encoding="utf-8").partition("\ndata:\n")
    data = f"\nmodel:\n  model_name_or_path: {TINY_BASE}\n\ndata:\n  dataset: {_yaml(dataset)}\n"
    return "\n".join(_head(file)) + "\n" + data + settings
