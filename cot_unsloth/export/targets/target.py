"""The protocol of an export target: one kind of thing that an export writes, verifies and uploads.

To add a kind, subclass `ExportTarget` in a file of its own, list it in `TARGETS` (`export/targets/__init__.py`) and add
the setting that asks for it to `ExportConfig`. Every method has a default, so a subclass writes only what it needs.

Modules of targets are imported before a command has checked its arguments, so they import torch, transformers and gguf
inside methods: importing torch alone takes 1 to 2 s.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cot_unsloth.config import RunConfig
from cot_unsloth.core.errors import VerificationError
from cot_unsloth.core.progress import note
from cot_unsloth.core.results.verification import Check, Verification
from cot_unsloth.export.hub import Content, RepositoryKind
from cot_unsloth.storage.hashes import sha256_of

if TYPE_CHECKING:
    from cot_unsloth.export.model import Model
    from cot_unsloth.export.reference import Reference, ReferenceKind
    from cot_unsloth.export.subject import Subject


@dataclass(frozen=True)
class Job:
    """One export: what is written, from which weights, to where."""

    subject: Subject
    model: Model
    out: Path
    """The folder that verified files are moved to; they are written to a temporary folder first."""
    overwrite: bool = False
    """Whether files that a user edited are replaced too (`--force`)."""

    @property
    def config(self) -> RunConfig:
        """The settings, asking only for what is still to be written."""
        return self.subject.config


class ExportTarget:
    """One kind of thing that is exported; see the module."""

    repository: ClassVar[RepositoryKind]
    """Where it is uploaded."""
    folder_name: ClassVar[str | None] = None
    """Name of the folder, for a target that is one; it gets a model card and `verified.json` of its own; None for single files."""
    compared_with: ClassVar[ReferenceKind | None] = None
    """What `verify` asks the reference for. All targets' kinds are computed while the trained model is open once."""

    def names(self, config: RunConfig, stem: str) -> list[str]:
        """The final names of what the settings ask for; none if they do not ask for this target.

        Args:
            config: the settings.
            stem: what file names begin with.
        """
        return []

    def without(self, config: RunConfig, stem: str, names: Collection[str]) -> RunConfig:
        """The settings without those of `names` that belong to this target."""
        return config

    def owns(self, name: str) -> bool:
        """Whether a name in an export's folder is of this kind, whichever export wrote it."""
        return False

    def check_request(self, config: RunConfig, *, adapter: bool) -> None:
        """Refuse a request that cannot be met, before anything is loaded.

        Args:
            config: the settings.
            adapter: whether the trained weights are an adapter.

        Raises:
            ConfigError: the settings ask for something that these weights do not have.
        """

    def mismatch(self, config: RunConfig, path: Path) -> str | None:
        """How an existing, verified file or folder differs from what the settings ask for; None if it does not."""
        return None

    def check(self, model: Model, longest: int) -> None:
        """Make sure that the model can be written as this kind.

        Args:
            model: base and adapter; before training, the base alone.
            longest: tokens of the longest prompt and answer.

        Raises:
            ModelError: it cannot; the field, tensor or tokenizer rule that prevents it is named.
        """

    def size(self, job: Job) -> int:
        """Bytes on disk that writing and verifying need."""
        return 0

    def write(self, job: Job, folder: Path) -> None:
        """Write into a temporary folder, under the final names.

        Raises:
            ModelError: a number does not fit into the type asked for.
            OSError: for example, the disk is full.
        """

    def can_verify(self) -> bool:
        """Whether the programs that `verify` needs are installed."""
        return True

    def verify(self, job: Job, folder: Path, reference: Reference) -> list[Check]:
        """Read back what was written, and compare it with what the trained model predicts."""
        return []

    def mark_unverified(self, job: Job, folder: Path) -> list[str]:
        """Rename what could not be verified so that the name says so; returns the new names."""
        return []

    def finish(self, job: Job, folder: Path) -> None:
        """Write what accompanies verified files; called after all checks passed, for every target."""

    def card_section(self, folder: Path) -> str:
        """A paragraph for the model card of what was written in `folder`; empty for none."""
        return ""

    def uploads(self, subject: Subject, out: Path, record: Verification) -> dict[str, Content]:
        """Files to upload, by their names in the repository: those that passed their checks and have not changed.

        Raises:
            VerificationError: a file has changed since it was verified.
        """
        files: dict[str, Content] = {}
        for name in record.passed_files:
            if self.owns(name):
                files |= unchanged_files(out, name, record)
        return files


def of_file(name: str, checks: Iterable[Check]) -> list[Check]:
    """The checks, as those of one file or folder."""
    return [check.model_copy(update={"file": name}) for check in checks]


def unchanged_files(out: Path, name: str, record: Verification) -> dict[str, Content]:
    """A verified file, or the files of a verified folder, by their names in its repository; none if it is gone.

    Raises:
        VerificationError: one of them is not the one that was verified.
    """
    hashes = record.hashes_of(name)
    if not (out / name).exists() or not hashes:
        note(f"{name} is not there, or was exported before hashes were recorded: not pushed")
        return {}
    changed = [path for path, sha in hashes.items() if not (out / path).is_file() or sha256_of(out / path) != sha]
    if changed:
        raise VerificationError(
            f"changed since it was verified: {', '.join(changed)}",
            where=str(out),
            hint="export it again, to another --out",
        )
    return {path.removeprefix(f"{name}/"): out / path for path in hashes}
