"""What an export writes, decided before a model is loaded: names, and what happens to existing files.

Owns how files are named, which requests are refused at once (nothing here imports torch or transformers), and
whether an existing file is kept while the missing ones are written. It is kept if it was verified, has not changed since
and was made from the same model. Any other file is refused by default, replaced by `--force`, or kept unverified by
`--skip-existing`. If everything that is asked for exists, the export stops at once with that message.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cot_unsloth.config import TINY_BASE, RunConfig
from cot_unsloth.core.errors import ConfigError, RunDirError
from cot_unsloth.core.progress import note
from cot_unsloth.core.results.verification import VERIFIED, Verification, read_verification

Existing = Literal["keep", "force", "skip"]
"""What happens to existing files: keep verified ones and refuse the rest, write all again, or keep all."""
_MOST_BYTES = 150
"""Longest stem, so that the name with its suffix fits into the 255 bytes that file systems allow."""
_SAMPLES, _SAMPLE = 256, 1 << 16
_CHOICES = "--force writes it again, --skip-existing keeps it unchanged"


def stem(config: RunConfig, *, tuned: bool = True) -> str:
    """What the names of a model's files begin with: the last part of its hub id, or the name of its resolved folder."""
    name = config.model.model_name_or_path
    folder = Path(name).expanduser()
    name = _folder_name(folder.resolve()) if name != TINY_BASE and folder.is_dir() else Path(name).name
    return _safe(name) + "-cot" * tuned


def _folder_name(folder: Path) -> str:
    """A folder's name; for a snapshot in the hub's cache, whose folder is a commit, that of its repository."""
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name


def _safe(name: str) -> str:
    """A name without characters that shells, Windows or Ollama treat specially.

    >>> _safe("Qwen2.5-7B"), _safe("my model (v2)"), _safe('..a:b"c'), _safe("--")
    ('qwen2.5-7b', 'my-model-v2', 'a-b-c', 'model')
    """
    name = re.sub(r"[^\w.-]+", "-", name.lower()).strip("-._")
    return name.encode()[:_MOST_BYTES].decode(errors="ignore").rstrip("-._") or "model"


def file_name(stem: str, quant: str) -> str:
    """A file's name.

    >>> file_name("tiny-base-cot", "q4_k_m")
    'tiny-base-cot-Q4_K_M.gguf'
    """
    return f"{stem}-{quant.upper()}.gguf"


def names(config: RunConfig, stem: str) -> list[str]:
    """The final names of all that the settings ask for."""
    e = config.export
    lora = [file_name(stem, "lora")] if e.lora_gguf else []
    return ["merged"] * e.merged + [file_name(stem, quant) for quant in e.gguf] + lora


def without(config: RunConfig, stem: str, done: Collection[str]) -> RunConfig:
    """The settings without the files that are `done`."""
    e = config.export
    return config.replaced(
        merged=e.merged and "merged" not in done,
        gguf=tuple(quant for quant in e.gguf if file_name(stem, quant) not in done),
        lora_gguf=e.lora_gguf and file_name(stem, "lora") not in done,
    )


@dataclass(frozen=True)
class Settled:
    """What is left to write if some of the files exist already."""

    config: RunConfig
    """The settings, asking only for the files that are still to be written."""
    disowned: tuple[str, ...] = ()
    """Files that are kept unchanged although they are not known to be verified."""


def check(config: RunConfig, out: Path, stem: str, *, adapter: bool, existing: Existing = "keep") -> None:
    """Refuse at once what cannot be done; `settle` checks whether files have changed, because that means reading them.

    Args:
        config: the settings.
        out: where the export goes.
        stem: what its names begin with.
        adapter: whether there is an adapter.
        existing: what becomes of names that are taken.

    Raises:
        ConfigError: nothing is asked for, or `--lora-gguf` without an adapter.
        RunDirError: as `settle`; or `out` is a file, or the folder of a model or an adapter.
    """
    e = config.export
    if not names(config, stem) and e.push_to_hub is None:
        raise ConfigError("say what to write", where="export", hint="--merged, --gguf q4_k_m,q8_0 or --lora-gguf")
    if e.lora_gguf and not adapter:
        raise ConfigError("there is no adapter to write", where="export.lora_gguf", hint="--adapter DIR")
    if out.exists() and not out.is_dir():
        raise RunDirError("is a file, not a folder", where=str(out), hint="name another --out")
    if any((out / name).is_file() for name in ("config.json", "adapter_config.json")):  # its README.md is of that
        raise RunDirError("holds a model or an adapter itself", where=str(out), hint="name another --out")
    _standing(config, out, stem, existing, None)


def settle(
    config: RunConfig, out: Path, stem: str, existing: Existing, source: Mapping[str, str], *, own: bool
) -> Settled:
    """What is left to write.

    Args:
        config: the settings.
        out: where the export goes.
        stem: what its names begin with.
        existing: what becomes of names that are taken.
        source: what is exported, as `source_of` says.
        own: whether `out` is the export folder of a run, so that everything in it was made from the run's weights.

    Raises:
        RunDirError: a file exists that is not known to be verified, unchanged and of this model, and `existing` is
            "keep"; or the folder holds another model's export.
    """
    known = source if read_verification(out).made_from is not None or not own else {}
    flaws = _standing(config, out, stem, existing, known)
    for name, flaw in flaws.items():
        note(
            f"{out / name} exists already, {flaw}: kept unchanged, unverified"
            if flaw
            else f"{out / name} exists already, verified and unchanged: kept (--force writes it again)"
        )
    return Settled(without(config, stem, flaws), tuple(name for name, flaw in flaws.items() if flaw))


def _standing(
    config: RunConfig, out: Path, stem: str, existing: Existing, source: Mapping[str, str] | None
) -> dict[str, str | None]:
    """Existing files among those asked for, each with its fault or None; without `source`, files are not hashed."""
    wanted, record = names(config, stem), read_verification(out)
    there = [name for name in wanted if (out / name).exists()]
    listed = {file for file in record.files if (out / file).exists()}
    other = _other_model(config, record, source or {}) if wanted else None
    if other and (listed - set(wanted) or existing != "force"):
        way = "" if listed - set(wanted) else ", or --force to replace it"
        raise RunDirError(f"holds an export of {other}", where=str(out), hint=f"name another --out{way}")
    if existing == "force":
        return {}
    if existing == "keep" and there == wanted and wanted and config.export.push_to_hub is None:
        raise RunDirError(f"{there[0]} exists already", where=str(out), hint=f"{_CHOICES}; or name another --out")
    flaws = {name: _flaw(name, out, record, config, source) for name in there}
    for name, flaw in flaws.items():
        if flaw and existing == "keep":
            raise RunDirError(
                f"{name} exists already, {flaw}", where=str(out), hint=f"{_CHOICES}; or name another --out"
            )
    return flaws


def _other_model(config: RunConfig, record: Verification, source: Mapping[str, str]) -> str | None:
    """What a folder holds an export of, if that differs from the present export."""
    base = config.model.model_name_or_path
    if record.base is not None and record.base != base:
        return record.base
    before = record.made_from or {}
    changed = [key for key, value in source.items() if key in before and before[key] != value]
    if changed:
        return f"other {changed[0].replace('_', ' ')}"
    for leaf, what in (("system_prompt", "another system prompt"), ("thinking_tags", "other thinking tags")):
        if leaf in record.model_fields_set and getattr(record, leaf) != getattr(config.data, leaf):
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
    if name == "merged" and (dtype := _dtype(out / name)) and config.export.export_dtype not in ("auto", dtype):
        return f"in {dtype}"
    if source is None:
        return None
    if source and record.made_from is None:
        return "written by an older version, which did not record what it was made from"
    changed = [path for path, digest in hashes.items() if not (out / path).is_file() or hash_of(out / path) != digest]
    return f"and has changed since it was verified ({changed[0]})" if changed else None


def _dtype(folder: Path) -> str | None:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))["dtype"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(found)


def edited(out: Path, name: str, record: Verification) -> bool:
    """Whether an existing file differs from the one that an export recorded."""
    digest = record.sha256.get(name)
    return (out / name).is_file() and hash_of(out / name) != digest


def source_of(config: RunConfig, base: Path | None, trained: Path | None, template: str) -> dict[str, str]:
    """Hashes of what an export is made from, so that an export of other weights is detected.

    Args:
        config: the settings.
        base: the base's folder; None where every weight was trained.
        trained: the adapter's folder, or that of a model of which every weight was trained.
        template: the chat template.
    """
    model = config.model
    given = json.dumps([template, model.date_string, model.pad_token])
    found = {"chat_template": hashlib.sha256(given.encode()).hexdigest(), "trained_weights": _weights_hash(trained)}
    return found | {"base_weights": _weights_hash(base)}


def _weights_hash(folder: Path | None) -> str:
    """A hash of a folder's weights and settings; of large files, only samples spread over the file are hashed.

    Training changes nearly every weight, so 16 MiB of a file are enough, and reading them is fast.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*")) if folder else []:
        if file.name in ("config.json", "adapter_config.json"):
            digest.update(file.read_bytes())
        elif file.suffix == ".safetensors":
            length = file.stat().st_size
            digest.update(f"{file.name} {length}".encode())
            step = max(_SAMPLE, length // _SAMPLES)
            with file.open("rb") as handle:
                for at in range(0, length, step):
                    handle.seek(at)
                    digest.update(handle.read(_SAMPLE))
    return digest.hexdigest()


def hash_of(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
