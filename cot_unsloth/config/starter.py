"""The text of a first settings file: a model, data and a machine as YAML, each line with its reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from cot_unsloth.config.schema import DEFAULT_CONFIG, TINY_BASE

Machine = Literal["laptop", "t4", "gpu"]


@dataclass(frozen=True)
class _Line:
    section: str
    leaf: str
    value: object
    reason: str


def starter(model: str, dataset: str, machine: Machine, file: str) -> str:
    """A settings file in YAML.

    Args:
        model: hub id or folder, or the embedded `tiny-base`, whose own settings are taken, whatever the machine.
        dataset: as in `data.dataset`.
        machine: what it is sized for: no GPU, 16 GB of GPU memory, or more.
        file: what it will be called, for the commands at its top.
    """
    if model == TINY_BASE:
        return _tiny(dataset, file)
    lines = [
        _Line("model", "model_name_or_path", model, "a hub id, or a folder"),
        *([_Line("model", "load_in_4bit", True, "a quarter of the memory for weights")] if machine == "t4" else []),
        _Line("data", "dataset", dataset, "a file, a folder, a hub id, or generated problems (docs/data.md)"),
        *_training(machine),
        _Line("evaluate", "eval_samples", 100 if machine == "laptop" else 300, "more problems detect smaller differences"),
        _Line("evaluate", "max_new_tokens", 1024, "a smaller budget would count against a base that reasons at length"),
        _Line("export", "gguf", ["q4_k_m"], "a verified file for llama.cpp and Ollama; [] for none"),
    ]  # fmt: skip
    return "\n".join([*_head(file), *_sections(lines)]) + "\n"


def _training(machine: Machine) -> Iterator[_Line]:
    yield _Line("train", "method", "sft", "imitates the reasoning in the data; rft if they have answers alone")
    yield _Line("train", "learning_rate", 1e-4, "low, because an instruct model can lose what it knows; tune it first")
    if machine == "laptop":
        yield _Line("train", "max_steps", 200, "to see an end; take it out for a whole pass over the data")
    else:
        yield _Line("train", "gradient_checkpointing", True, "saves memory at the cost of speed")


def _head(file: str) -> list[str]:
    return [
        f"# cot-unsloth check {file}     every fault in data and settings, in seconds",
        f"# cot-unsloth train {file}",
        "#",
        "# Settings that are not here have their defaults: docs/options.md, or cot-unsloth train --help.",
    ]


def _sections(lines: list[_Line]) -> Iterator[str]:
    for section in dict.fromkeys(line.section for line in lines):
        yield f"\n{section}:"
        written = [(f"  {line.leaf}: {_yaml(line.value)}", line.reason) for line in lines if line.section == section]
        width = max(len(text) for text, _ in written)
        yield from (f"{text:<{width}}  # {reason}" for text, reason in written)


def _yaml(value: object) -> str:
    """A value in YAML, of which JSON is a part; names that cannot be misread stay without quotes."""
    if isinstance(value, float):
        return f"{value:.1e}"  # YAML 1.1 takes 1e-4 for text
    if isinstance(value, str) and value.replace("/", "").replace("-", "").replace("_", "").replace(".", "").isalnum():
        return value if not value.replace(".", "").isdigit() else json.dumps(value)
    return json.dumps(value, ensure_ascii=False)


def _tiny(dataset: str, file: str) -> str:
    """The embedded demo's file with other commands at its top, and the data set."""
    _, _, settings = DEFAULT_CONFIG.read_text(encoding="utf-8").partition("\ndata:\n")
    data = f"\nmodel:\n  model_name_or_path: {TINY_BASE}\n\ndata:\n  dataset: {_yaml(dataset)}\n"
    return "\n".join(_head(file)) + "\n" + data + settings
