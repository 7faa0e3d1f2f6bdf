"""`Modelfile` and `Modelfile.lora`: how Ollama loads the GGUF files beside them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cot_unsloth.core.errors import RenderError
from cot_unsloth.core.progress import note
from cot_unsloth.core.results.verification import Verification, read_verification
from cot_unsloth.export.hub import GGUF_FILES, Content
from cot_unsloth.export.targets.target import ExportTarget, Job, unchanged_files
from cot_unsloth.storage import atomic
from cot_unsloth.storage.hashes import sha256_of
from cot_unsloth.storage.run_folder import is_adapter_gguf

if TYPE_CHECKING:
    from cot_unsloth.export.subject import Subject


_UNVERIFIED = ".unverified."
"""In the name of a file that was not compared, which comes after those that were."""


class OllamaModelfile(ExportTarget):
    """Written whenever there are GGUF files; no setting asks for it. One that a user edited is kept."""

    repository = GGUF_FILES

    def finish(self, job: Job, folder: Path) -> None:
        """One for the first full model, and one for the adapter alone."""
        # Files of earlier exports count too, since one Modelfile describes the folder; files of others there do not.
        record = read_verification(job.out)
        earlier = {path.name for path in job.out.glob("*.gguf")} & {*record.files, *record.sha256}
        files = sorted(
            {path.name for path in folder.glob("*.gguf")} | earlier, key=lambda name: (_UNVERIFIED in name, name)
        )
        for name, text in _modelfiles(job, files).items():
            if not job.overwrite and is_edited(job.out, name, record):
                note(f"{job.out / name} is not the file that export wrote: kept (--force replaces it)")
            else:
                atomic.write_text(folder / name, text)

    def uploads(self, subject: Subject, out: Path, record: Verification) -> dict[str, Content]:
        """Only beside GGUF files that are uploaded."""
        files: dict[str, Content] = {}
        if any(name.endswith(".gguf") and (out / name).exists() for name in record.passed_files):
            for path in sorted(out.glob("Modelfile*")):
                files |= unchanged_files(out, path.name, record)
        return files


def _modelfiles(job: Job, files: list[str]) -> dict[str, str]:
    """The texts by name; a note in place of those that the chat template does not allow."""
    from cot_unsloth.export import ollama

    chat, config, context = job.subject.renderer.chat, job.config, job.model.context
    models = [name for name in files if not is_adapter_gguf(name)]
    adapters = [name for name in files if is_adapter_gguf(name)]
    texts = {}
    try:
        if models:
            texts["Modelfile"] = ollama.modelfile(f"./{models[0]}", chat, config, context)
        if adapters:
            base = ollama.base_name(config, job.out)
            texts["Modelfile.lora"] = ollama.modelfile(base, chat, config, context, f"./{adapters[0]}")
    except RenderError as error:
        note(f"no Modelfile: {error}")
    return texts


def is_edited(out: Path, name: str, record: Verification) -> bool:
    """Whether an existing file differs from the one that an export recorded."""
    return (out / name).is_file() and sha256_of(out / name) != record.sha256.get(name)
