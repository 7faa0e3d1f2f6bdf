"""The adapter alone as a GGUF file, to load beside any GGUF of its base (`llama-cli --lora`, Ollama's ADAPTER)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cot_unsloth.config import RunConfig
from cot_unsloth.core.errors import ConfigError
from cot_unsloth.core.results.verification import Check
from cot_unsloth.export.file_names import file_name
from cot_unsloth.export.hub import GGUF_FILES
from cot_unsloth.export.targets.full_gguf import llama_cpp_installed, open_llama, rename_unverified
from cot_unsloth.export.targets.target import ExportTarget, Job, of_file
from cot_unsloth.storage.run_folder import is_adapter_gguf

if TYPE_CHECKING:
    from cot_unsloth.export.model import Model
    from cot_unsloth.export.reference import Reference

_BASE_TYPE = "f16"
"""Type of the base that the adapter's file is tested on: the smallest whose rounding hides no error in the adapter."""


class LoraGguf(ExportTarget):
    """The adapter's own file; `export.lora_gguf` asks for it."""

    repository = GGUF_FILES
    compared_with = "positions"

    def names(self, config: RunConfig, stem: str) -> list[str]:
        """See `ExportTarget`."""
        return [file_name(stem, "lora")] * config.export.lora_gguf

    def without(self, config: RunConfig, stem: str, names: Collection[str]) -> RunConfig:
        """See `ExportTarget`."""
        return config.replaced(lora_gguf=config.export.lora_gguf and file_name(stem, "lora") not in names)

    def owns(self, name: str) -> bool:
        """See `ExportTarget`."""
        return name.endswith(".gguf") and is_adapter_gguf(name)

    def check_request(self, config: RunConfig, *, adapter: bool) -> None:
        """See `ExportTarget`."""
        if config.export.lora_gguf and not adapter:
            raise ConfigError("there is no adapter to write", where="export.lora_gguf", hint="--adapter DIR")

    def check(self, model: Model, longest: int) -> None:
        """The base must be one that can be written too, because the file is tried on it."""
        from cot_unsloth.export.gguf import lora, writer

        writer.check(model, longest)
        if model.adapter is not None:
            lora.check(model)

    def size(self, job: Job) -> int:
        """Bytes of the adapter, and of the temporary base that it is tried on."""
        from cot_unsloth.export.gguf import writer

        if job.subject.adapter is None:
            return 0
        adapter = sum(file.stat().st_size for file in job.subject.adapter.iterdir())
        return writer.size(job.model, _BASE_TYPE) + adapter

    def write(self, job: Job, folder: Path) -> None:
        """See `ExportTarget`."""
        from cot_unsloth.export.gguf import lora

        lora.write(job.model, folder / file_name(job.subject.stem, "lora"))

    def can_verify(self) -> bool:
        """Whether llama.cpp is installed."""
        return llama_cpp_installed()

    def verify(self, job: Job, folder: Path, reference: Reference) -> list[Check]:
        """Next-token distributions of the file on a GGUF of its base, which is written for that and removed."""
        from cot_unsloth.export.gguf import predictions, writer

        file, base = folder / file_name(job.subject.stem, "lora"), folder / "base.gguf"
        trained = reference.position_logprobs
        # 2 bytes a parameter of disk until the comparison is done; `size` counts them.
        writer.write(replace(job.model, adapter=None), {_BASE_TYPE: base})
        llama = open_llama(base, job.subject, [file])
        try:
            measured = predictions.llama_logprobs(llama, reference.positions, len(trained[0]))
        finally:
            llama.close()
            base.unlink()
        both = predictions.Compared(reference.positions, trained, trained, measured)
        return of_file(file.name, predictions.check_distributions(both, exact=False))

    def mark_unverified(self, job: Job, folder: Path) -> list[str]:
        """See `ExportTarget`."""
        return rename_unverified(folder, self.names(job.config, job.subject.stem))
