"""One export, top to bottom: estimate, write to a temporary folder, verify, move into place.

No file gets its final name before it has been read back and compared with the adapter on its base; `verified.json`
records the results, of a failure too. Verified files that exist already are not written again. What each kind of
file needs is in `targets`; everything here is a loop over them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cot_unsloth.config import RunConfig
from cot_unsloth.core.errors import InputError, VerificationError
from cot_unsloth.core.progress import note, size
from cot_unsloth.core.results.verification import VERIFIED, Check, Status, Verification, read_verification
from cot_unsloth.export import file_names, hub, plan, verify, weights
from cot_unsloth.export.gguf.tokens import exported_template
from cot_unsloth.export.hashes import source_hashes
from cot_unsloth.export.model import Model, check_tokens, open_model
from cot_unsloth.export.plan import Existing, Remaining
from cot_unsloth.export.public_names import public_name
from cot_unsloth.export.reference import Reference
from cot_unsloth.export.subject import Subject, subject_of_model, subject_of_run
from cot_unsloth.export.targets import TARGETS, ExportTarget, Job
from cot_unsloth.export.targets.full_gguf import FullGguf
from cot_unsloth.export.uploads import repositories, write_cards
from cot_unsloth.models.adapter_files import starting_adapter
from cot_unsloth.prompts.chat_template import ChatTemplate
from cot_unsloth.storage import atomic, environment
from cot_unsloth.storage.hashes import sha256_of
from cot_unsloth.storage.lock import folder_lock
from cot_unsloth.storage.run_folder import RunDir

_DISK_MARGIN = 1.02
"""Extra disk space on top of the estimate, which leaves out file headers, the tokenizer and the card."""


def check_base(config: RunConfig, chat: ChatTemplate) -> None:
    """Make sure, before hours of training, that the files that the settings ask for can be written from their base.

    And from the adapter that training continues, if there is one: what it becomes is of the same kind.

    Raises:
        ModelError: its weights are quantized, or it cannot be written to GGUF; or the adapter cannot be merged.
        RenderError: the chat template cannot be exported so that other programs render prompts as in training.
    """
    stem = file_names.stem(config)
    targets = plan.requested(config, stem)
    if targets:
        model = open_model(weights.base_folder(config), starting_adapter(config), chat, stem)
        _check(model, targets, config.data.max_seq_length + config.evaluate.max_new_tokens)
        exported_template(chat)


def _check(model: Model, targets: Sequence[ExportTarget], longest: int) -> None:
    check_tokens(model)
    for target in targets:
        target.check(model, longest)


def export_run(run: RunDir, config: RunConfig, out: Path | None = None, existing: Existing = "keep") -> Verification:
    """Write what the settings ask for of a finished run, into its `export/` unless `out` says otherwise.

    Existing files that are verified, unchanged and made from the same model are kept; `existing` can change that.

    Raises:
        InputError: the run has no trained weights; a name is taken; the model cannot be written as asked.
        VerificationError: what was written is not what was trained, or could not be compared.
        OSError: for example, the disk is full. No file has its final name then.
    """
    return export(subject_of_run(run, config), out or run.export, existing)


def export_model(config: RunConfig, adapter: Path | None, out: Path, existing: Existing = "keep") -> Verification:
    """The same for a base and an adapter that no run trained, or for an unchanged base. Raises as `export_run`.

    The settings are those of `models.target.settings_of`.
    """
    return export(subject_of_model(config, adapter), out, existing)


def update_cards(run: RunDir, config: RunConfig) -> None:
    """Write the cards of a run's export again, with what was scored since it was exported."""
    write_cards(run, config, run.trained_weights, run.export, read_verification(run.export))


def push_run(run: RunDir, config: RunConfig) -> None:
    """Push what a run's export holds, and its adapter.

    Raises:
        VerificationError: something in it was changed since it was verified.
        CotError: the hub refused.
    """
    hub.push(config, repositories(subject_of_run(run, config), run.export, read_verification(run.export)))


def gguf_names(config: RunConfig) -> list[str]:
    """The names of the GGUF files of the full model that the settings ask for."""
    return FullGguf().names(config, file_names.stem(config))


def remaining(run: RunDir, config: RunConfig) -> RunConfig:
    """The settings, asking only for files that are not in the run's folder yet; pushes nothing."""
    stem = file_names.stem(config)
    done = {name for name in plan.names(config, stem) if (run.export / name).exists()}
    return plan.without(config, stem, done).replaced(push_to_hub=None)


def export(subject: Subject, out: Path, existing: Existing = "keep") -> Verification:
    """Write, verify and push; returns what `verified.json` holds. Raises as `export_run`."""
    config = subject.config
    plan.check(config, out, subject.trained_weights, existing=existing)
    # Before anything is written: an export of a 7B model takes minutes, a wrong token is found in a second.
    hub.check_access(config)
    # Two exports that both found the folder without a file moved each other's away while they were written.
    with folder_lock(out):
        if atomic.is_half_moved(out):
            note(f"{out}: the last export was interrupted while moving its verified files here; moving the rest now")
            atomic.finish_move(out, VERIFIED)
        atomic.remove_asides(out)
        return _export(subject, out, existing)


def _export(subject: Subject, out: Path, existing: Existing) -> Verification:
    config, stem = subject.config, subject.stem
    record = read_verification(out)
    if plan.names(config, stem):
        source = _source(subject)
        in_run = subject.run is not None and out.resolve() == subject.run.export.resolve()
        left = plan.remaining(config, out, stem, existing, source, in_run=in_run)
        if plan.names(left.config, stem):
            record = _write_and_verify(replace(subject, config=left.config), out, existing, left, source)
        else:
            record = _nothing_to_write(subject, out, record, left)
    if config.export.push_to_hub is not None:
        hub.push(config, repositories(subject, out, record))
    return record


def _source(subject: Subject) -> dict[str, str]:
    base = None if subject.is_full_model else subject.folder
    return source_hashes(subject.config, base, subject.trained_weights, subject.renderer.chat)


def _nothing_to_write(subject: Subject, out: Path, before: Verification, left: Remaining) -> Verification:
    """Take files that are kept unverified out of the record."""
    note("nothing left to write")
    record = before.without_files(left.unverified)
    if record.as_json() != before.as_json():
        record.write(out / VERIFIED)
        write_cards(subject.run, subject.config, subject.trained_weights, out, record)
    return record


def _write_and_verify(
    subject: Subject, out: Path, existing: Existing, left: Remaining, source: Mapping[str, str]
) -> Verification:
    before, targets = read_verification(out), plan.requested(subject.config, subject.stem)
    model = open_model(subject.folder, subject.adapter, subject.renderer.chat, subject.stem)
    _check(model, targets, subject.context)
    job = Job(subject, model, out, overwrite=existing == "force")
    _check_disk(job, targets)
    checks: list[Check] = []
    try:
        # verified.json moves first: after a kill in between, it lists files that are not there, and never the reverse.
        with atomic.staged_into(out, VERIFIED) as folder:
            for target in targets:
                target.write(job, folder)
            checks = _verify(job, targets, folder)
            unverified = _mark_unverified(job, targets, folder)
            status = _status(checks, unverified)
            if status == "failed":
                raise verify.failure(checks, out)
            for target in TARGETS:
                target.finish(job, folder)
            record = _record(job, checks, status, folder).model_copy(update={"made_from": dict(source)})
            record = record.without_files(left.unverified)
            record.write(folder / VERIFIED)
            write_cards(subject.run, subject.config, subject.trained_weights, folder, record)
    except VerificationError:
        if any((out / name).exists() for name in plan.names(subject.config, subject.stem)):
            # The files to be replaced are unchanged, and their recorded checks are still valid.
            failed = before.model_copy(update={"failed_replacement": tuple(checks)})
        else:
            failed = _record(job, checks, "failed").without_files(left.unverified)
        failed.write(out / VERIFIED)
        raise
    _report(out, checks, unverified, allowed=subject.config.export.allow_unverified)
    return record


def _check_disk(job: Job, targets: Sequence[ExportTarget]) -> None:
    """Print the space that the files need, and stop if the disk has less.

    Raises:
        InputError: the disk has less.
    """
    needed = sum(target.size(job) for target in targets)
    folder, free = atomic.free_space(job.out)
    note(f"needs about {size(needed)} on disk ({size(free)} free)")
    if needed * _DISK_MARGIN > free:
        raise InputError(f"needs {size(needed)}, the disk has {size(free)} free", where=str(folder), hint="--out DIR")


def _verify(job: Job, targets: Sequence[ExportTarget], folder: Path) -> list[Check]:
    """Every check of everything that was written and can be verified here.

    In reverse order: scripts read the file of the last check, which is the merged folder if there is one.
    """
    verifiable = [target for target in reversed(targets) if target.can_verify()]
    kinds = {target.compared_with for target in verifiable if target.compared_with is not None}
    # Raises if there is nothing to compare on, also if llama.cpp is not installed.
    reference = Reference(job.model, job.subject, kinds)
    return [check for target in verifiable for check in target.verify(job, folder, reference)]


def _mark_unverified(job: Job, targets: Sequence[ExportTarget], folder: Path) -> list[str]:
    unverifiable = [target for target in targets if not target.can_verify()]
    return sorted(name for target in unverifiable for name in target.mark_unverified(job, folder))


def _status(checks: Sequence[Check], unverified: Sequence[str]) -> Status:
    if any(not check.passed for check in checks):
        return "failed"
    return "unverified" if unverified else "passed"


def _record(job: Job, checks: Sequence[Check], status: Status, folder: Path | None = None) -> Verification:
    """These checks beside those of files that were exported before; `folder` holds what was written now."""
    before, subject = read_verification(job.out), job.subject
    checked = {check.file for check in checks}
    # Earlier checks of files that exist and were not written again.
    kept = [check for check in before.checks if check.file not in checked and (job.out / check.file).exists()]
    hashes = {name: sha for name, sha in before.sha256.items() if (job.out / name).exists()}
    if folder is not None:
        written = sorted(path for path in folder.rglob("*") if path.is_file())
        hashes |= {path.relative_to(folder).as_posix(): sha256_of(path) for path in written}
    return Verification(
        status=status,
        base=public_name(subject.config.model.model_name_or_path),
        system_prompt=subject.config.data.system_prompt,
        thinking_tags=subject.config.data.thinking_tags,
        trained=subject.from_run,
        checks=(*kept, *checks),
        sha256=hashes,
        versions=environment.versions(),
    )


def _report(out: Path, checks: Sequence[Check], unverified: Sequence[str], *, allowed: bool) -> None:
    """Print what was verified.

    Raises:
        VerificationError: something could not be compared, and `--allow-unverified` was not given.
    """
    for name in dict.fromkeys(check.file for check in checks):
        passed = [check.name for check in checks if check.file == name]
        note(f"{out / name}: verified ({', '.join(passed)})")
    if unverified:
        message = f"could not be verified because xllamacpp is not installed: {', '.join(unverified)}"
        if not allowed:
            raise VerificationError(message, where=str(out), hint="pip install xllamacpp, or --allow-unverified")
        note(message)
