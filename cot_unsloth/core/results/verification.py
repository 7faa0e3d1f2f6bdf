"""`verified.json`: the checks of an export, and hashes that show whether it has changed since.

The only reader and writer of that file. In records of earlier versions, a missing key means:

- without `thinking_tags`: only `<thinking>` existed;
- without `trained`: nearly all exports were made from runs, because `export --model` was rare;
- without `made_from`: the export cannot be compared with the weights that it was made from.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import JsonValue

from cot_unsloth.core.results.record import Record, Value
from cot_unsloth.core.types import ThinkingTags

VERIFIED = "verified.json"
Status = Literal["passed", "failed", "unverified"]


class Check(Value):
    """The result of one check of one exported file or folder.

    The measured values and their bounds are further keys, which differ from check to check:
    `Check(name="kl", passed=True, mean_nats=1e-5, bound=1e-3)`.
    """

    file: str = ""
    """Name in the export's folder: a GGUF file, or `merged`."""
    name: str
    passed: bool

    @property
    def figures(self) -> Mapping[str, JsonValue]:
        """The measured values, by key."""
        return self.model_extra or {}


class Verification(Record):
    """The content of `verified.json`; no field is set if there is no such file."""

    described_as: ClassVar[str] = "record of an export"
    hint: ClassVar[str | None] = "name another --out, or remove it"

    status: Status = "unverified"
    """`failed` if any check failed; `unverified` if llama.cpp was not installed to compare a GGUF file."""
    base: str | None = None
    """The base that was exported, as the settings name it: a hub id, a folder, or `tiny-base`."""
    system_prompt: str | None = None
    thinking_tags: ThinkingTags = "thinking"
    trained: bool = True
    """Whether a run of cot_unsloth trained the weights; decides how an evaluation reads the file's answers."""
    checks: tuple[Check, ...] = ()
    sha256: Mapping[str, str] = {}
    """Hashes by the path of each file in the folder, with forward slashes."""
    versions: Mapping[str, str | None] = {}
    """Versions of the installed libraries."""
    made_from: Mapping[str, str] | None = None
    """Hashes of the chat template, the tokenizer and its stop tokens, the trained weights and the base's weights."""
    failed_replacement: tuple[Check, ...] = ()
    """Failed checks of new files that would have replaced existing ones; the existing files are unchanged."""

    @property
    def is_empty(self) -> bool:
        """Whether there is no record: nothing was exported here."""
        return not self.model_fields_set

    @property
    def has_system_prompt(self) -> bool:
        """Whether the record names the system prompt, if only as none."""
        return "system_prompt" in self.model_fields_set

    @property
    def files(self) -> list[str]:
        """Every file and folder that was checked, in the order of the checks."""
        return list(dict.fromkeys(check.file for check in self.checks))

    @property
    def passed_files(self) -> list[str]:
        """The files that passed all of their checks."""
        failed = {check.file for check in self.checks if not check.passed}
        return [file for file in self.files if file not in failed]

    def checks_of(self, file: str) -> list[Check]:
        """The checks of one file or folder."""
        return [check for check in self.checks if check.file == file]

    def hashes_of(self, name: str) -> dict[str, str]:
        """The hash of a file, or of each file of a folder, by path."""
        return {path: sha for path, sha in self.sha256.items() if path == name or path.startswith(f"{name}/")}

    def without_files(self, names: Collection[str]) -> Verification:
        """A copy without the checks and hashes of these files and folders."""
        paths = {path for name in names for path in self.hashes_of(name)}
        return self.model_copy(
            update={
                "checks": tuple(check for check in self.checks if check.file not in names),
                "sha256": {path: sha for path, sha in self.sha256.items() if path not in paths},
            }
        )


def read_verification(folder: Path) -> Verification:
    """The record in an export's folder; nothing is set in it if there is none.

    Raises:
        RunDirError: it is damaged.
    """
    return Verification.read_if_there(folder / VERIFIED) or Verification()
