"""The folder of a run: what every verb reads and writes.

Owns the names of its files, atomic writes (aside, fsync, rename, so that a killed run or a full
disk leaves no half file under a final name), the lock that keeps two processes out of one folder,
the manifest, and the ledger of rows kept and rejected.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cot_unsloth import __version__
from cot_unsloth.config import RunConfig, load
from cot_unsloth.core import trace
from cot_unsloth.core.errors import RunDirError
from cot_unsloth.core.types import Example, Layout, Reject, Sample, Split, Trace

_ASIDE = ".aside-"
"""What the name of an unfinished file or folder begins with."""
_MAY_BE_LOWERED = ("learning_rate", "max_grad_norm")
"""Settings of `train` that may be lower in a resumed run: how large the steps still to come are, where they diverged.

Everything else decides what a checkpoint is (its data, model, adapter, optimizer state or place in the schedule) or what
the scores already made mean, and higher ones are another experiment.
"""
_MAY_CHANGE = ("save_steps",)
"""Settings that decide no result; those that `RunConfig.fingerprint` leaves out may change as well."""
_VERSIONED = (
    "torch", "transformers", "trl", "peft", "datasets", "accelerate", "tokenizers", "safetensors",
    "unsloth", "unsloth_zoo", "bitsandbytes", "xformers", "vllm", "gguf", "xllamacpp",
)  # fmt: skip


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; Windows has no handle on folders, and needs none."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{_ASIDE}{path.name}")
    try:
        with aside.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all, indented for people."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, whole or not at all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def append_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows to a file, which are there to stay when this returns; `read_appended` reads it back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        file.flush()
        os.fsync(file.fileno())


def read_appended(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a file that was appended to, whatever it ends in: a torn last line is cut off it."""
    if not path.exists():
        return []
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        with path.open("rb+") as file:
            file.truncate(len(whole))
    return [json.loads(line) for line in whole.decode("utf-8").split("\n") if line.strip()]


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a file we wrote; an absent file has none."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


@contextlib.contextmanager
def staged(final: Path) -> Iterator[Path]:
    """A folder that gets its final name only if the block ends well; an older one is replaced.

    Raises:
        OSError: what the block raised (a full disk, say); nothing stands under the final name then.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    aside = final.with_name(f"{_ASIDE}{final.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        mask = os.umask(0)
        os.umask(mask)
        for file in aside.rglob("*"):
            if file.is_file():
                file.chmod(0o666 & ~mask)  # safetensors writes for its owner's eyes only
                _sync_file(file)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    if final.exists():
        shutil.rmtree(final)
    aside.replace(final)
    _sync_folder(final.parent)


@contextlib.contextmanager
def staged_into(folder: Path, first: str) -> Iterator[Path]:
    """A folder whose items move into `folder` if the block ends well, the one named `first` before the others.

    What has their names is replaced.

    Raises:
        OSError: as `staged`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / f"{_ASIDE}whole"
    with staged(whole) as aside:
        yield aside
    for item in sorted(whole.iterdir(), key=lambda item: item.name != first):
        _replace(item, folder / item.name)
    whole.rmdir()
    _sync_folder(folder)


def _replace(item: Path, final: Path) -> None:
    """Give a file or a folder its name; a folder that has it already makes way, for nothing can replace one at once."""
    old = final.with_name(f"{_ASIDE}old-{final.name}")
    if final.is_dir() and not final.is_symlink():
        shutil.rmtree(old, ignore_errors=True)
        final.replace(old)
    item.replace(final)
    shutil.rmtree(old, ignore_errors=True)


def remove_tree(folder: Path) -> None:
    """Remove a folder of ours, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)


def room_at(path: Path) -> tuple[Path, int]:
    """The folder that a path would be written below, and the bytes that are free there."""
    place = next(each for each in (path, *path.absolute().parents) if each.exists())
    return place, shutil.disk_usage(place).free


def _sync_file(file: Path) -> None:
    with file.open("rb+") as handle:
        os.fsync(handle.fileno())


def text_hash(*texts: str) -> str:
    """SHA-256 of texts one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode())
    return digest.hexdigest()


class RunDir:
    """One run's folder, with the names of all that stands in it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.manifest = self.path / "manifest.json"
        self.template = self.path / "chat_template.jinja"
        """The chat template that the run was begun with, whatever becomes of the file that its settings name."""
        self.kept = self.path / "data" / "kept.jsonl"
        self.rejected = self.path / "data" / "rejected.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.adapter = self.path / "adapter"
        self.model = self.path / "model"
        """Every weight, where all of them were trained and not an adapter."""
        self.compiled = self.path / "compiled"
        """What an engine compiles on the way; may be removed."""
        self.metrics = self.path / "metrics.jsonl"
        self.token_accuracy = self.path / "token_accuracy.json"
        self.fit_report = self.path / "fit.json"
        self.scorecard = self.path / "scorecard.json"
        self.unfinished = self.path / "unfinished"
        """Completions of a scoring that has not come to its scorecard yet."""
        self.report = self.path / "report.html"
        self.export = self.path / "export"
        self.merged = self.export / "merged"
        self.verified = self.export / "verified.json"

    def completions(self, arm: str) -> Path:
        """Where the completions of one arm are kept."""
        return self.path / "completions" / f"{arm}.jsonl"

    @classmethod
    def open(cls, path: str | Path) -> RunDir:
        """An existing run, for `evaluate` and `export`.

        Raises:
            RunDirError: there is no run in that folder.
        """
        run = cls(path)
        if not run.config.is_file():
            raise RunDirError(
                "holds no run", where=str(path), hint="give the folder that train wrote (it has a config.yaml)"
            )
        return run

    @classmethod
    def around(cls, exported: Path) -> RunDir | None:
        """The run whose export a file is, if it lies in one."""
        run = cls(exported.resolve().parent.parent)
        return run if run.config.is_file() and run.manifest.is_file() else None

    @classmethod
    def of_weights(cls, folder: Path) -> RunDir | None:
        """The run that trained an adapter or a model: its final weights, a checkpoint, or an export in its folder."""
        runs = (cls(parent) for parent in folder.resolve().parents[:2])
        return next((run for run in runs if run.config.is_file() and run.manifest.is_file()), None)

    def questions(self, split: Split) -> set[str]:
        """The ids of the questions that fell on one side of its split."""
        return {row["id"] for row in read_jsonl(self.kept) if row["split"] == split}

    def system_prompts(self, own: str | None) -> set[str | None]:
        """What its rows were trained under, each once: `own`, the settings' prompt, where a row brought none itself."""
        rows = (row for row in read_jsonl(self.kept) if row["split"] == "train")
        return {(own if row["system"] is None else row["system"]) or None for row in rows}

    def exported_models(self) -> list[Path]:
        """The GGUF files of whole models that it was exported to."""
        return sorted(file for file in self.export.glob("*.gguf") if not holds_adapter(file.name))

    @property
    def fitted(self) -> Path | None:
        """What the run was fitted to: its adapter, or its model where every weight was trained; None if neither is there yet."""
        return next((folder for folder in (self.adapter, self.model) if folder.is_dir()), None)

    def finished(self) -> Path:
        """What the run was fitted to.

        Raises:
            RunDirError: it has not come to that yet.
        """
        found = self.fitted
        if found is None:
            hint = f"finish it: {shlex.join(['cot-unsloth', 'train', '--run-dir', str(self.path), '--resume'])}"
            raise RunDirError("has no tuned model yet", where=str(self.path), hint=hint)
        return found

    def write_config(self, config: RunConfig) -> None:
        """Keep the resolved settings of the run."""
        write_text(self.config, config.to_yaml())

    def read_manifest(self) -> dict[str, Any]:
        """What was written of how the run was made; nothing where it has not come to that yet."""
        if not self.manifest.is_file():
            return {}
        found: dict[str, Any] = json.loads(self.manifest.read_text(encoding="utf-8"))
        return found

    def read_config(self) -> RunConfig:
        """The resolved settings of the run."""
        return load(self.config)

    def check(self, config: RunConfig, *, resume: bool) -> None:
        """Make sure, writing nothing, that the folder can hold this run.

        Raises:
            RunDirError: it holds a run and `resume` is off; it holds a run with other settings, or
                none to resume; it holds files that are not a run's.
        """
        if not resume:
            self._refuse_taken()
        elif not self.config.is_file():
            raise RunDirError(
                "holds no run to resume", where=str(self.path), hint="leave --resume out to start one there"
            )
        else:
            self._refuse_changed(config)

    def changed(self, config: RunConfig) -> dict[str, list[Any]]:
        """Settings that differ from those the run has: `{"train.learning_rate": [before, now]}`."""
        return {name: [old, new] for name, old, new in _differences(self.read_config(), config)}

    @contextlib.contextmanager
    def claim(self, config: RunConfig, *, resume: bool) -> Iterator[None]:
        """Hold the folder for one process; the lock goes with the process, however it ends.

        Raises:
            RunDirError: as `check`; another process works in it; it cannot be written.
        """
        from filelock import FileLock, Timeout

        self.check(config, resume=resume)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock", timeout=0)
            lock.acquire()
        except Timeout as error:
            raise RunDirError("is in use by another process", where=str(self.path)) from error
        except OSError as error:
            raise RunDirError(f"cannot be written: {error}", where=str(self.path)) from error
        with lock:
            self._clear_aside()
            if not resume:
                self.write_config(config)
            yield

    def _refuse_taken(self) -> None:
        if self.path.is_file():
            raise RunDirError("is a file, not a folder", where=str(self.path), name="run_folder_is_a_file")
        if self.config.exists():
            raise RunDirError(
                "already holds a run",
                where=str(self.path),
                hint="add --resume to go on with it, or name another --run-dir",
                name="run_folder_taken",
            )
        leftovers = (".lock", _ASIDE, self.compiled.name)  # of a process that ended before its run began
        if self.path.exists() and not all(child.name.startswith(leftovers) for child in self.path.iterdir()):
            raise RunDirError(
                "is not empty, and holds no run",
                where=str(self.path),
                hint="name another --run-dir",
                name="run_folder_not_empty",
            )

    def _refuse_changed(self, config: RunConfig) -> None:
        before, train = self.read_config(), config.train
        differences = [f"{name} was {old!r}, now {new!r}" for name, old, new in _differences(before, config)]
        accepted = {leaf: min(getattr(before.train, leaf), getattr(train, leaf)) for leaf in _MAY_BE_LOWERED}
        accepted |= {leaf: getattr(train, leaf) for leaf in _MAY_CHANGE}
        if before.replaced(**accepted).fingerprint() != config.fingerprint():
            raise RunDirError(
                f"holds another run: {', '.join(differences)}",
                where=str(self.path),
                hint="--run-dir and --resume alone take the run's own settings (a lower learning_rate or max_grad_norm may "
                "be given too); or name another --run-dir",
            )
        if self.fitted is not None and before.fingerprint() != config.fingerprint():
            raise RunDirError(
                f"its training is finished, so nothing would come of a change: {', '.join(differences)}",
                where=str(self.path),
                hint="leave it out, or start a new run in another --run-dir",
            )

    def check_identity(self, identity: Mapping[str, str]) -> None:
        """Make sure that the files a run was begun with still hold what they held.

        Raises:
            RunDirError: the data set, the template or the tokenizer has changed since.
        """
        before = self.read_manifest()
        changed = [name.removesuffix("_hash") for name, value in identity.items() if before.get(name, value) != value]
        if changed:
            raise RunDirError(
                f"was begun with another {' and '.join(changed)}",
                where=str(self.path),
                hint="bring the file back, or start a new run in another --run-dir",
            )

    def _clear_aside(self) -> None:
        """Remove what a killed process left unfinished."""
        for child in list(self.path.rglob(f"{_ASIDE}*")):
            if child.is_dir():
                shutil.rmtree(child, ignore_errors=True)
            else:
                child.unlink(missing_ok=True)

    def whole_checkpoints(self) -> list[Path]:
        """Checkpoints, oldest first. One that was never finished has no such name."""
        return whole_checkpoints(self.checkpoints)


def is_whole_model(fitted: Path | None) -> bool:
    """Whether there is a folder, and it holds every weight of a model and not an adapter."""
    return fitted is not None and (fitted / "config.json").is_file() and not (fitted / "adapter_config.json").is_file()


def holds_adapter(name: str) -> bool:
    """Whether an exported GGUF file is an adapter alone, by its name.

    >>> holds_adapter("tiny-base-cot-LORA.gguf"), holds_adapter("tiny-base-cot-Q8_0.gguf")
    (True, False)
    """
    return name.removesuffix(".gguf").removesuffix(".unverified").endswith("-LORA")


def checkpoint_step(checkpoint: Path) -> int:
    """The optimizer step that a checkpoint was taken after.

    >>> checkpoint_step(Path("checkpoints/checkpoint-120"))
    120
    """
    return int(checkpoint.name.removeprefix("checkpoint-"))


def whole_checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints of a folder, oldest first."""
    found = [p for p in folder.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=checkpoint_step)


def kept_row(example: Example, sample: Sample | None, layout: Layout) -> dict[str, Any]:
    """An Example as a line of `kept.jsonl`; `sample` is absent for rows held out for scoring.

    Its text has the default tags whichever the run writes, so that a line is read without the run's settings.
    """
    return {
        "id": example.id,
        "where": example.where,
        "split": example.split,
        "task": example.task,
        "question": example.question,
        "answer": example.answer,
        "system": example.system,
        "history": [dict(message) for message in example.history],
        "history_loss": list(example.history_loss),
        "text": trace.render(example.trace, layout),
        "injected": example.trace.injected,
        "tokens": len(sample.ids) if sample else None,
        "supervised": sample.supervised if sample else None,
    }


def kept_example(row: Mapping[str, Any]) -> Example:
    """A line of `kept.jsonl` as an Example. Which steps were injected is not told apart any more."""
    parsed = trace.parse(row["text"])
    return Example(
        id=row["id"],
        question=row["question"],
        trace=Trace(parsed.parts, parsed.output or ""),
        answer=row["answer"],
        task=row["task"],
        split=row["split"],
        where=row["where"],
        system=row["system"],
        history=tuple(row["history"]),
        history_loss=tuple(row.get("history_loss", ())),
    )


def reject_row(reject: Reject) -> dict[str, Any]:
    """A Reject as a line of `rejected.jsonl`."""
    return dataclasses.asdict(reject)


def _differences(before: RunConfig, after: RunConfig) -> Iterator[tuple[str, Any, Any]]:
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    for section, leaves in old.items():
        for leaf, value in leaves.items():
            if leaf != "run_dir" and new[section][leaf] != value:
                yield f"{section}.{leaf}", value, new[section][leaf]


def default_run_dir(config: RunConfig) -> Path:
    """`runs/DATE-MODEL-DATASET`, in the working directory; a number is added where it is taken."""
    model = Path(config.model.model_name_or_path).name
    data = config.data.dataset
    if data.startswith("world:"):
        named = "-".join(world.split(":")[0] for world in data.removeprefix("world:").split(","))
    else:
        named = _data_name(config.data.sources)
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{model}-{named}".lower()
    path, number = Path("runs") / stem, 2
    while path.exists():
        path, number = Path("runs") / f"{stem}-{number}", number + 1
    return path


_PACKED = re.compile(r"\.(gz|zst|zstd|bz2|xz)$", re.IGNORECASE)


def _data_name(sources: Sequence[str]) -> str:
    """A short name for files, globs, folders and hub ids.

    >>> _data_name(["data/rows.jsonl.gz"]), _data_name(["data/*.jsonl"]), _data_name(["a.json", "b.json", "c.json", "d.json"])
    ('rows', 'data', 'a-and-3-more')
    """
    names = list(dict.fromkeys(filter(None, map(_source_name, sources)))) or ["data"]
    joined = "-".join(names)
    if len(names) > 3 or len(joined) > 60:
        return f"{names[0][:60]}-and-{len(names) - 1}-more" if len(names) > 1 else names[0][:60]
    return joined


def _source_name(source: str) -> str:
    """A file's or folder's name without suffixes; of a glob, the last part that says something without its wildcards."""
    path = Path(source).expanduser()
    if any(char in source for char in "*?[") and not path.exists():
        plain = [
            _PACKED.sub("", re.sub(r"\[[^\]]*\]|[*?]", "", part)) for part in path.parts if part not in ("/", "..")
        ]
        stems = [stem for part in plain if (stem := re.sub(r"\.\w+$", "", part).strip("-_. "))]
        return stems[-1] if stems else ""
    if path.is_dir():
        return path.resolve().name
    return Path(_PACKED.sub("", path.name)).stem


def now() -> str:
    """The time in UTC, to the second.

    >>> len(now())
    20
    """
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def environment() -> dict[str, Any]:
    """Versions, hardware and commit: what a figure needs beside it."""
    return {
        "cot_unsloth": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "versions": versions(),
        "git": _git(),
    }


def versions() -> dict[str, str]:
    """The installed versions of the libraries that decide a result."""
    return {name: found for name in _VERSIONED if (found := _version(name))}


def _version(name: str) -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git() -> dict[str, Any] | None:
    """The commit of the working directory's repository, if it is in one."""
    import subprocess

    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        dirty = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.stdout.strip(), "dirty": bool(dirty.stdout.strip())}
