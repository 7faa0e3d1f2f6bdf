"""The kinds of export targets: one file each, listed here."""

from __future__ import annotations

from cot_unsloth.export.targets.adapter_folder import AdapterFolder
from cot_unsloth.export.targets.full_gguf import FullGguf
from cot_unsloth.export.targets.lora_gguf import LoraGguf
from cot_unsloth.export.targets.merged_folder import MergedFolder
from cot_unsloth.export.targets.ollama_modelfile import OllamaModelfile
from cot_unsloth.export.targets.target import ExportTarget, Job

__all__ = ["TARGETS", "ExportTarget", "Job"]

TARGETS: tuple[ExportTarget, ...] = (
    MergedFolder(),
    FullGguf(),
    LoraGguf(),
    OllamaModelfile(),
    AdapterFolder(),
)
"""In the order in which they are named and written; checks are made in the reverse order, adapter file first."""
