"""Model cards of an export, and the repositories that it is uploaded to."""

from __future__ import annotations

import json
from pathlib import Path

from cot_unsloth.config import RunConfig
from cot_unsloth.core.errors import ConfigError
from cot_unsloth.core.results.verification import VERIFIED, Verification
from cot_unsloth.export import card
from cot_unsloth.export.card import Library
from cot_unsloth.export.hub import Content, Repository, RepositoryKind
from cot_unsloth.export.public_names import public_name
from cot_unsloth.export.subject import Subject
from cot_unsloth.export.targets import TARGETS
from cot_unsloth.storage import atomic
from cot_unsloth.storage.run_folder import RunDir


def write_cards(
    run: RunDir | None, config: RunConfig, trained_weights: Path | None, folder: Path, record: Verification
) -> None:
    """Write the model card of an export, and for each target that is a folder, its own card and `verified.json`."""
    folders = {target.folder_name for target in TARGETS if target.folder_name}
    library: Library = "gguf" if set(record.files) - folders else "transformers"
    atomic.write_text(folder / "README.md", card.write(run, config, record, library, trained_weights))
    for target in TARGETS:
        inner = folder / target.folder_name if target.folder_name else None
        if inner is not None and inner.is_dir():
            section = target.card_section(inner)
            text = card.write(run, config, record, target.repository.library, trained_weights, section)
            atomic.write_text(inner / "README.md", text)
            record.write(inner / VERIFIED)


def repositories(subject: Subject, out: Path, record: Verification) -> list[Repository]:
    """What is uploaded to which repository; targets of the same kind share one.

    Raises:
        ConfigError: there is nothing to upload.
        VerificationError: a file was changed since it was verified.
    """
    files: dict[RepositoryKind, dict[str, Content]] = {}
    sections: dict[RepositoryKind, str] = {}
    for target in TARGETS:
        # Reads every file to compare its hash, so that a changed one stops the push.
        kind, uploads = target.repository, target.uploads(subject, out, record)
        files[kind] = files.get(kind, {}) | uploads
        if uploads and target.folder_name:
            sections[kind] = target.card_section(out / target.folder_name)
    # The folder may contain an export of another base than the settings name now; its card is of that base.
    named = subject.config.model.model_name_or_path
    is_same = record.base is None or record.base == public_name(named)
    exported = subject.config.replaced(model_name_or_path=named if is_same else record.base)
    result = []
    for kind, contents in files.items():
        if contents:
            config = exported if kind.has_verification else subject.config
            extra: dict[str, Content] = {VERIFIED: _public_record(out, record)} if kind.has_verification else {}
            text = card.write(
                subject.run, config, record, kind.library, subject.trained_weights, sections.get(kind, "")
            )
            result.append(Repository(kind.suffix, contents | extra, text))
    if not result:
        raise ConfigError("there is nothing to push", where=str(out), hint="--merged or --gguf q4_k_m")
    return result


def _public_record(out: Path, record: Verification) -> Content:
    """`verified.json` with the public name of the base, in place of the path that older exports recorded."""
    if record.base is None or record.base == public_name(record.base):
        return out / VERIFIED
    tree = record.model_copy(update={"base": public_name(record.base)}).as_json()
    return json.dumps(tree, indent=2, ensure_ascii=False).encode()
