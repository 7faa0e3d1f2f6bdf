"""GGUF files of the full model, one a quantization, for llama.cpp and Ollama."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cot_unsloth.config import RunConfig
from cot_unsloth.core.errors import InputError
from cot_unsloth.core.progress import Bar, bar, note
from cot_unsloth.core.results.verification import Check
from cot_unsloth.export.file_names import file_name
from cot_unsloth.export.hub import GGUF_FILES
from cot_unsloth.export.targets.target import ExportTarget, Job, of_file
from cot_unsloth.storage.run_folder import is_adapter_gguf

if TYPE_CHECKING:
    from cot_unsloth.export.gguf.predictions import Position
    from cot_unsloth.export.model import Model
    from cot_unsloth.export.reference import Reference
    from cot_unsloth.export.subject import Subject
    from cot_unsloth.models.llamacpp import LlamaCpp

_SMALL = 64 << 20
"""Bytes of a file that is opened to be fast; larger ones are opened to take little memory."""
_SLOTS = 2
"""Answers that llama.cpp generates in parallel while a large file is verified; each keeps a KV cache for a full context."""
_STAGES = 5
"""Of verifying a file, for its progress bar: contents, loading, prompts, next tokens, answers."""
_EXACT = ("f32", "f16")
"""Quantizations whose rounding is too small to change a clear next token: they are held to tighter bounds."""


class FullGguf(ExportTarget):
    """One file for each quantization in `export.gguf`; all are written in one pass over the base."""

    repository = GGUF_FILES
    compared_with = "positions"

    def names(self, config: RunConfig, stem: str) -> list[str]:
        """See `ExportTarget`."""
        return [file_name(stem, quant) for quant in config.export.gguf]

    def without(self, config: RunConfig, stem: str, names: Collection[str]) -> RunConfig:
        """See `ExportTarget`."""
        return config.replaced(gguf=tuple(quant for quant in config.export.gguf if file_name(stem, quant) not in names))

    def owns(self, name: str) -> bool:
        """See `ExportTarget`."""
        return name.endswith(".gguf") and not is_adapter_gguf(name)

    def check(self, model: Model, longest: int) -> None:
        """Also says if llama.cpp is exact only for shorter texts than the model was made for."""
        from cot_unsloth.export.gguf import writer

        writer.check(model, longest)
        limit = model.architecture.limit
        if limit and limit[0] < int(model.settings.max_position_embeddings):
            note(
                f"the GGUF's context is limited to {limit[0]:,} tokens, because llama.cpp does not reproduce {limit[1]}"
            )

    def size(self, job: Job) -> int:
        """See `ExportTarget`."""
        from cot_unsloth.export.gguf import writer

        return sum(writer.size(job.model, quant) for quant in job.config.export.gguf)

    def write(self, job: Job, folder: Path) -> None:
        """See `ExportTarget`."""
        from cot_unsloth.export.gguf import writer

        quants = job.config.export.gguf
        writer.write(job.model, {quant: folder / file_name(job.subject.stem, quant) for quant in quants})

    def can_verify(self) -> bool:
        """Whether llama.cpp is installed."""
        return llama_cpp_installed()

    def verify(self, job: Job, folder: Path, reference: Reference) -> list[Check]:
        """See `verify_file`."""
        checks: list[Check] = []
        for quant in job.config.export.gguf:
            file = folder / file_name(job.subject.stem, quant)
            trained = reference.position_logprobs
            with bar(f"verify {file.name}", _STAGES) as progress:
                of_quant = verify_file(
                    job.model, job.subject, file, reference.positions, trained, exact=quant in _EXACT, progress=progress
                )
            checks += of_file(file.name, of_quant)
        return checks

    def mark_unverified(self, job: Job, folder: Path) -> list[str]:
        """See `ExportTarget`."""
        return rename_unverified(folder, self.names(job.config, job.subject.stem))


def llama_cpp_installed() -> bool:
    """Whether `xllamacpp`, in which GGUF files are verified, can be imported."""
    from cot_unsloth.models import llamacpp

    return llamacpp.available()


def rename_unverified(folder: Path, names: Sequence[str]) -> list[str]:
    """Rename GGUF files to `NAME.unverified.gguf`; returns the new names."""
    files = [(folder / name).with_suffix(".unverified.gguf") for name in names]
    for name, file in zip(names, files, strict=True):
        (folder / name).replace(file)
    return [file.name for file in files]


def open_llama(file: Path, subject: Subject, adapters: Sequence[Path] = ()) -> LlamaCpp:
    """A file in llama.cpp, if it is large with as little memory as a comparison needs.

    Without `repack`, llama.cpp keeps the file mapped and does not copy quantized weights into a layout for the CPU's
    vector instructions, which would need the size of the file again.
    """
    from cot_unsloth.models.llamacpp import SLOTS, LlamaCpp

    small = file.stat().st_size <= _SMALL
    slots = SLOTS if small else _SLOTS
    return LlamaCpp(file, context=subject.context, slots=slots, adapters=adapters, repack=small)


def verify_file(
    model: Model,
    subject: Subject,
    file: Path,
    positions: Sequence[Position],
    trained: Sequence[Any],
    *,
    exact: bool,
    progress: Bar,
) -> list[Check]:
    """All checks of a GGUF file, cheapest first; if it cannot be opened, the checks end there.

    Args:
        model: what it was made from.
        subject: the rows that it is compared on.
        file: the file.
        positions: where next tokens are compared.
        trained: log-probabilities of the trained model at these positions: (vocabulary,) float32 each.
        exact: whether the file's type is precise enough for the tighter bounds.
        progress: counts _STAGES.
    """
    from cot_unsloth.export import layerwise
    from cot_unsloth.export.gguf import predictions
    from cot_unsloth.export.gguf import verify as contents
    from cot_unsloth.export.reference import comparison_device
    from cot_unsloth.export.subject import COMPARED_ROWS
    from cot_unsloth.export.verify import check

    progress.advance(0, now="tensors and tokens")
    try:
        reader = contents.read_file(file)
    except ValueError as error:
        return [check("readable", False, error=str(error))]
    # The cheap checks first: they tell what is wrong, where a KL only tells that something is.
    checks = [contents.check_weights(reader, model), *contents.check_tokens(reader, subject.renderer)]
    progress.advance(1, now="loads in llama.cpp")
    try:
        llama = open_llama(file, subject)
    except InputError as error:
        return [*checks, check("loads", False, error=str(error))]
    progress.advance(1, now="prompts")
    try:
        checks += contents.check_text(llama, subject.renderer, subject.examples[:COMPARED_ROWS])
        progress.advance(1, now="next tokens")
        source = contents.GgufSource(reader, model)
        # The file's weights, without the adapter: they have it merged in.
        network = layerwise.open_network(subject.folder, source, device=comparison_device())
        checks += predictions.check_predictions(
            llama, network, positions, trained, subject.renderer.chat.stops, exact=exact
        )
        progress.advance(1, now="answers")
        problems = subject.examples[: subject.config.export.export_samples]
        if problems:
            checks.append(
                predictions.check_answers(
                    llama, subject.renderer, problems, subject.tuned_correct, subject.config.sampling_params
                )
            )
        progress.advance(1, now="")
    finally:
        llama.close()
    return checks
