"""What an export writes, decided before a model is loaded: names, and what becomes of files that stand already.

Owns how files are named, which requests are refused at once (nothing here imports torch or transformers), and
whether a file that stands is kept beside those that are missing: one that was verified, has not changed since and is of
the same model is; any other is refused by default, replaced by `--force`, or left as it is by `--skip-existing`, which
then vouches for nothing. Where all that is asked for stands, it is said at once rather than done again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cot_unsloth.config import EXPORTS, TINY_BASE, RunConfig
from cot_unsloth.errors import ConfigError, RunDirError
from cot_unsloth.progress import note

Existing = Literal["keep", "force", "skip"]
"""What becomes of names that are taken: keep what is verified and refuse the rest, write all anew, or keep all."""
VERIFIED = "verified.json"
_MOST_BYTES = 150
"""Of a stem, so that a name with what follows it fits into the 255 that file systems allow."""
_SAMPLES, _SAMPLE = 256, 1 << 16
_CHOICES = "--force writes it anew, --skip-existing leaves it as it is"


def nothing_yet(config: RunConfig) -> dict[str, Any]:
    """A run's settings as a tree that asks for no export: what train wrote is not written again."""
    tree = config.model_dump(mode="json")
    tree["export"] |= EXPORTS
    return tree


def stem(config: RunConfig, *, tuned: bool = True) -> str:
    """What the names of a model's files begin with: its hub id's last part, or the name of the folder it really is."""
    name = config.model.model_name_or_path
    folder = Path(name).expanduser()
    name = _folder_name(folder.resolve()) if name != TINY_BASE and folder.is_dir() else Path(name).name
    return _safe(name) + "-cot" * tuned


def _folder_name(folder: Path) -> str:
    """A folder's name; of a snapshot in the hub's cache, whose folder is a commit, that of its repository."""
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name


def _safe(name: str) -> str:
    """A name without what shells, Windows or Ollama read as something else.

    >>> _safe("Qwen2.5-7B"), _safe("my model (v2)"), _safe('..a:b"c'), _safe("--")
    ('qwen2.5-7b', 'my-model-v2', 'a-b-c', 'model')
    """
    name = re.sub(r"[^\w.-]+", "-", name.lower()).strip("-._")
    return name.encode()[:_MOST_BYTES].decode(errors="ignore").rstrip("-._") or "model"


def file_name(stem: str, quant: str) -> str:
    """What a file is called.

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
    """The settings, asking no longer for the files that are `done`."""
    e = config.export
    return config.replaced(
        merged=e.merged and "merged" not in done,
        gguf=tuple(quant for quant in e.gguf if file_name(stem, quant) not in done),
        lora_gguf=e.lora_gguf and file_name(stem, "lora") not in done,
    )


@dataclass(frozen=True)
class Settled:
    """What is left to do where some of what was asked for stands already."""

    config: RunConfig
    """The settings, asking only for what is to be written."""
    disowned: tuple[str, ...] = ()
    """What stays as it is without being known to be verified."""


def check(config: RunConfig, out: Path, stem: str, *, adapter: bool, existing: Existing = "keep") -> None:
    """Refuse at once what cannot be done; whether files have changed, which takes reading them, is left to `settle`.

    Args:
        config: the settings.
        out: where the export goes.
        stem: what its names begin with.
        adapter: whether there is an adapter.
        existing: what becomes of names that are taken.

    Raises:
        ConfigError: nothing is asked for, or an adapter that there is not.
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
        own: whether `out` is the export of a run, so that all in it comes of the run's weights.

    Raises:
        RunDirError: a name is taken by what is not known to be verified, unchanged and of this model, and `existing`
            keeps only such; or the folder holds another model's export.
    """
    known = source if "made_from" in read(out) or not own else {}
    flaws = _standing(config, out, stem, existing, known)
    for name, flaw in flaws.items():
        note(
            f"{out / name} exists already, {flaw}: kept as it is, unverified"
            if flaw
            else f"{out / name} exists already, verified and unchanged: kept (--force writes it anew)"
        )
    return Settled(without(config, stem, flaws), tuple(name for name, flaw in flaws.items() if flaw))


def _standing(
    config: RunConfig, out: Path, stem: str, existing: Existing, source: Mapping[str, str] | None
) -> dict[str, str | None]:
    """What is kept of what is asked for, and what speaks against each; without `source`, as far as a look tells."""
    wanted, record = names(config, stem), read(out)
    there = [name for name in wanted if (out / name).exists()]
    listed = {each["file"] for each in record.get("checks", []) if (out / each["file"]).exists()}
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


def _other_model(config: RunConfig, record: Mapping[str, Any], source: Mapping[str, str]) -> str | None:
    """What a folder holds an export of, where that is not what is exported now."""
    base = config.model.model_name_or_path
    if record.get("base", base) != base:
        return str(record["base"])
    before = record.get("made_from", {})
    changed = [key for key, value in source.items() if key in before and before[key] != value]
    if changed:
        return f"other {changed[0].replace('_', ' ')}"
    for leaf, what in (("system_prompt", "another system prompt"), ("thinking_tags", "other thinking tags")):
        now = getattr(config.data, leaf)
        if record.get(leaf, now) != now:
            return what
    return None


def _flaw(
    name: str, out: Path, record: Mapping[str, Any], config: RunConfig, source: Mapping[str, str] | None
) -> str | None:
    """Why something that stands is not known to be what an export would write now."""
    hashes = recorded(record, name)
    checks = [each for each in record.get("checks", []) if each["file"] == name]
    if not hashes or not checks:
        return f"and {VERIFIED} does not list it"
    if not all(each["passed"] for each in checks):
        return "and did not pass its checks"
    if name == "merged" and (dtype := _dtype(out / name)) and config.export.export_dtype not in ("auto", dtype):
        return f"in {dtype}"
    if source is None:
        return None
    if source and "made_from" not in record:
        return "of an older version, which did not write down what it was made from"
    changed = [path for path, digest in hashes.items() if not (out / path).is_file() or hash_of(out / path) != digest]
    return f"and has changed since it was verified ({changed[0]})" if changed else None


def _dtype(folder: Path) -> str | None:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))["dtype"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(found)


def read(out: Path) -> dict[str, Any]:
    """What `verified.json` of a folder holds; nothing where there is none.

    Raises:
        RunDirError: it is damaged.
    """
    file = out / VERIFIED
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunDirError(
            f"cannot be read: {error}", where=str(file), hint="name another --out, or remove it"
        ) from error
    if not isinstance(found, dict):
        raise RunDirError("holds no record of an export", where=str(file), hint="name another --out, or remove it")
    return found


def recorded(record: Mapping[str, Any], name: str) -> dict[str, str]:
    """The hashes of a file, or of the files of a folder, as they were verified."""
    return {
        path: digest for path, digest in record.get("sha256", {}).items() if path == name or path.startswith(f"{name}/")
    }


def disowned(record: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """A record that no longer vouches for what it is not known to be true of."""
    gone = {path for name in names for path in recorded(record, name)}
    checks = [each for each in record.get("checks", []) if each["file"] not in names]
    hashes = {path: digest for path, digest in record.get("sha256", {}).items() if path not in gone}
    return {**record, "checks": checks, "sha256": hashes}


def edited(out: Path, name: str, record: Mapping[str, Any]) -> bool:
    """Whether a file that an export wrote was changed by hand since."""
    digest = recorded(record, name).get(name)
    return (out / name).is_file() and hash_of(out / name) != digest


def source_of(config: RunConfig, base: Path | None, trained: Path | None, template: str) -> dict[str, str]:
    """What an export is made from, so that one of other weights is not taken for it.

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
    """A hash of the weights in a folder, and of its settings: of large files, of samples all over them.

    Training changes nearly every weight, so that 16 MiB of a file tell as much as all of it and take no time.
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
