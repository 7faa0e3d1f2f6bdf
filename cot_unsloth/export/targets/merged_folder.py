"""`merged/`: the base's safetensors with the adapter merged into them, for plain transformers and vLLM."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from cot_unsloth.config import RunConfig
from cot_unsloth.core.json_text import parse_json
from cot_unsloth.core.progress import note
from cot_unsloth.core.results.verification import Check
from cot_unsloth.export.hub import MERGED_MODEL
from cot_unsloth.export.targets.target import ExportTarget, Job, of_file

if TYPE_CHECKING:
    from cot_unsloth.export.reference import Reference

NAME = "merged"


class MergedFolder(ExportTarget):
    """The merged folder; `export.merged` asks for it."""

    repository = MERGED_MODEL
    folder_name = NAME
    compared_with = "supervised"

    def names(self, config: RunConfig, stem: str) -> list[str]:
        """One folder, whatever the stem."""
        return [NAME] * config.export.merged

    def without(self, config: RunConfig, stem: str, names: Collection[str]) -> RunConfig:
        """See `ExportTarget`."""
        return config.replaced(merged=config.export.merged and NAME not in names)

    def owns(self, name: str) -> bool:
        """See `ExportTarget`."""
        return name == NAME

    def mismatch(self, config: RunConfig, path: Path) -> str | None:
        """Its dtype, if the settings ask for another; `auto` accepts any."""
        dtype = _dtype(path)
        return f"in {dtype}" if dtype and config.export.export_dtype not in ("auto", dtype) else None

    def size(self, job: Job) -> int:
        """Bytes of its weights; the tokenizer's few MB are within the margin that is added to every estimate."""
        from cot_unsloth.export import merge

        return merge.size(job.model, job.config.export.export_dtype)

    def write(self, job: Job, folder: Path) -> None:
        """See `ExportTarget`."""
        from cot_unsloth.export import merge

        (folder / NAME).mkdir()
        dtype = merge.write(job.model, folder / NAME, job.config.export.export_dtype)
        note(f"merged in {dtype}")

    def verify(self, job: Job, folder: Path, reference: Reference) -> list[Check]:
        """Its tokenizer, generation settings and next-token distributions, read by transformers."""
        from cot_unsloth.export import verify
        from cot_unsloth.export.reference import comparison_device

        trained = reference.supervised_logprobs
        chat = job.subject.renderer.chat
        checks = verify.merged(folder / NAME, chat, trained, reference.samples, comparison_device())
        return of_file(NAME, checks)

    def card_section(self, folder: Path) -> str:
        """Which transformers reads its tokenizer, if an older one does not."""
        from cot_unsloth.prompts import tokenizer_files

        if not tokenizer_files.needs_transformers_5(folder):
            return ""
        return "Its tokenizer files are those of the base: transformers 5 reads them, earlier versions do not."


def _dtype(folder: Path) -> str | None:
    """The dtype that a merged folder's config.json names; None if it cannot be read."""
    try:
        return str(parse_json((folder / "config.json").read_text(encoding="utf-8"))["dtype"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
