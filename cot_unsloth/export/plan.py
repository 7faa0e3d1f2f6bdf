"""Decides what an export writes, before a model is loaded: which targets, and what happens to existing files.

Refuses at once what cannot be done; nothing here imports torch or transformers. An existing file is kept, and the
missing ones are written, if it was verified, has not changed since and was made from the same model. Any other existing
file is refused by default, replaced by `--force`, or kept unverified by `--skip-existing`. If everything that is asked
for exists, the export stops with that message.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cot_unsloth.config import RunConfig
from cot_unsloth.core.errors import ConfigError, RunDirError
from cot_unsloth.core.progress import note
from cot_unsloth.core.results.verification import VERIFIED, Verification, read_verification
from cot_unsloth.export import file_names
from cot_unsloth.export.public_names import public_name
from cot_unsloth.export.targets import TARGETS, ExportTarget
from cot_unsloth.storage import atomic
from cot_unsloth.storage.hashes import sha256_of
from cot_unsloth.storage.run_folder import is_full_model

Existing = Literal["keep", "force", "skip"]
"""What happens to existing files: keep verified ones and refuse the rest, write all again, or keep all."""
_CHOICES = "--force writes it again, --skip-existing keeps it unchanged"


def requested(config: RunConfig, stem: str) -> list[ExportTarget]:
    """The targets that the settings ask for."""
    return [target for target in TARGETS if target.names(config, stem)]


def names(config: RunConfig, stem: str) -> list[str]:
    """The final names of all that the settings ask for."""
    return [name for target in TARGETS for name in target.names(config, stem)]


def without(config: RunConfig, stem: str, names: Collection[str]) -> RunConfig:
    """The settings without the files of these names."""
    for target in TARGETS:
        config = target.without(config, stem, names)
    return config


@dataclass(frozen=True)
class Remaining:
    """What is still to be written if some of the files exist already."""

    config: RunConfig
    """The settings, asking only for these files."""
    unverified: tuple[str, ...] = ()
    """Files that are kept unchanged although they are not known to be verified."""


def check(config: RunConfig, out: Path, trained_weights: Path | None, *, existing: Existing = "keep") -> None:
    """Reject impossible requests at once; only `remaining` reads files, to see whether they have changed.

    Args:
        config: the settings.
        out: where the export goes.
        trained_weights: the folder or hub id of an adapter, or a fully fine-tuned model; None for the base alone.
        existing: what happens to files that exist already.

    Raises:
        ConfigError: nothing is asked for, or something that these weights do not have.
        RunDirError: as `remaining`; or `out` is a file, or the folder of a model or an adapter.
    """
    stem = file_names.stem(config, tuned=trained_weights is not None)
    if not names(config, stem) and config.export.push_to_hub is None:
        raise ConfigError("say what to write", where="export", hint="--merged, --gguf q4_k_m,q8_0 or --lora-gguf")
    for target in TARGETS:
        target.check_request(config, adapter=trained_weights is not None and not is_full_model(trained_weights))
    if out.exists() and not out.is_dir():
        raise RunDirError("is a file, not a folder", where=str(out), hint="name another --out")
    if any(
        (out / name).is_file() for name in ("config.json", "adapter_config.json")
    ):  # its README.md would be replaced
        raise RunDirError("already holds a model or an adapter", where=str(out), hint="name another --out")
    _flaws(config, out, stem, existing, None)
    # After a kill while files moved into place, the same command must be able to move the rest.
    if existing == "keep" and config.export.push_to_hub is None and not atomic.is_half_moved(out):
        _require_missing(names(config, stem), out)


def _require_missing(asked: Sequence[str], out: Path) -> None:
    if asked and all((out / name).exists() for name in asked):
        raise RunDirError(f"{asked[0]} already exists", where=str(out), hint=f"{_CHOICES}; or name another --out")


def remaining(
    config: RunConfig, out: Path, stem: str, existing: Existing, source: Mapping[str, str], *, in_run: bool
) -> Remaining:
    """What is still to be written.

    Args:
        config: the settings.
        out: where the export goes.
        stem: what file names begin with.
        existing: what happens to files that exist already.
        source: hashes of what is exported, from `source_hashes`.
        in_run: whether `out` is the export folder of a run, so that everything in it was made from the run's weights.

    Raises:
        RunDirError: a file exists that is not known to be verified, unchanged and of this model, and `existing` is
            "keep"; or the folder holds another model's export.
    """
    # An older record in a run's folder names no source, and needs none.
    known = source if read_verification(out).made_from is not None or not in_run else {}
    flaws = _flaws(config, out, stem, existing, known)
    for name, flaw in flaws.items():
        note(
            f"{out / name} already exists, {flaw}: kept unchanged, unverified"
            if flaw
            else f"{out / name} already exists, verified and unchanged: kept (--force writes it again)"
        )
    return Remaining(without(config, stem, flaws), tuple(name for name, flaw in flaws.items() if flaw))


def _flaws(
    config: RunConfig, out: Path, stem: str, existing: Existing, source: Mapping[str, str] | None
) -> dict[str, str | None]:
    """Existing files among those asked for, each with what is wrong with it or None; without `source`, no file is hashed."""
    asked, record = names(config, stem), read_verification(out)
    present = [name for name in asked if (out / name).exists()]
    listed = {file for file in record.files if (out / file).exists()}
    other = _other_model(config, record, source or {}) if asked else None
    # --force may replace another model's export, but only all of it: a mixture would have one verified.json.
    if other and (listed - set(asked) or existing != "force"):
        way = "" if listed - set(asked) else ", or --force to replace it"
        raise RunDirError(f"holds an export of {other}", where=str(out), hint=f"name another --out{way}")
    if existing == "force":
        return {}
    flaws = {name: _flaw(name, out, record, config, source) for name in present}
    for name, flaw in flaws.items():
        if flaw and existing == "keep":
            raise RunDirError(
                f"{name} already exists, {flaw}", where=str(out), hint=f"{_CHOICES}; or name another --out"
            )
    return flaws


def _other_model(config: RunConfig, record: Verification, source: Mapping[str, str]) -> str | None:
    """What a folder holds an export of, if that is not what is exported now."""
    base = config.model.model_name_or_path
    if record.base not in (None, base, public_name(base)):  # older records hold the path of a folder
        return record.base
    before = record.made_from or {}
    changed = [key for key, value in source.items() if key in before and before[key] != value]
    if changed:
        return f"other {changed[0].replace('_', ' ')}"
    for leaf, what in (("system_prompt", "another system prompt"), ("thinking_tags", "other thinking tags")):
        # An empty system prompt is none.
        if leaf in record.model_fields_set and (getattr(record, leaf) or None) != (getattr(config.data, leaf) or None):
            return what
    return None


def _flaw(
    name: str, out: Path, record: Verification, config: RunConfig, source: Mapping[str, str] | None
) -> str | None:
    """Why an existing file is not known to be what this export would write."""
    hashes, checks = record.hashes_of(name), record.checks_of(name)
    if not hashes or not checks:
        return f"and {VERIFIED} does not list it"
    if not all(check.passed for check in checks):
        return "and did not pass its checks"
    for target in TARGETS:
        # A merged folder of another dtype is not what is asked for, although it is verified.
        if target.owns(name) and (mismatch := target.mismatch(config, out / name)):
            return mismatch
    if source is None:
        return None
    if source and record.made_from is None:
        return "written by an older version, which did not record what it was made from"
    changed = [path for path, sha in hashes.items() if not (out / path).is_file() or sha256_of(out / path) != sha]
    return f"and has changed since it was verified ({changed[0]})" if changed else None
