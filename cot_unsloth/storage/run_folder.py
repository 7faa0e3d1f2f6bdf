"""The folder of a run: the names of its files, and whether it can take a run.

`train` creates it; every other command reads it. `atomic` writes files, `records` defines the rows, and `lock` the lock.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import platform
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from cot_unsloth.config import RunConfig, load
from cot_unsloth.core.errors import RunDirError
from cot_unsloth.core.logs import LOG, log_to
from cot_unsloth.core.results import Manifest
from cot_unsloth.core.results.verification import VERIFIED
from cot_unsloth.core.types import Split
from cot_unsloth.storage import atomic
from cot_unsloth.storage.atomic import ASIDE, write_text
from cot_unsloth.storage.environment import versions
from cot_unsloth.storage.lock import LOCK, folder_lock, is_locked
from cot_unsloth.storage.records import iter_jsonl

_MAY_BE_LOWERED = ("learning_rate", "max_grad_norm")
"""Settings of `train` that may be lower in a resumed run, for one that diverged: they scale only the steps still to come.

Every other setting decides what a checkpoint is (its data, model, adapter, optimizer state or place in the schedule) or
what existing scores mean; a higher rate or norm is another experiment.
"""
_MAY_CHANGE = ("save_steps",)
"""Settings that change no result; those that `RunConfig.fingerprint` leaves out may change as well."""


def _meant(path: Path) -> str:
    """What a path that is no run could have been meant to name."""
    models = sorted(path.glob("*.gguf"))
    if path.is_dir() and models:
        return f"did you mean {models[0]}?"
    if (path / "adapter_config.json").is_file():
        return f"for an adapter, write --adapter {path}"
    if (path / "tokenizer_config.json").is_file():
        return f"for a model, write --model {path}"
    inside = next((folder for folder in path.parents[:2] if RunDir(folder).config.is_file()), None)
    if inside is not None:
        return f"did you mean the run that it is in, {inside}?"
    runs = sorted((run.parent for run in path.glob("*/manifest.json")), key=lambda run: run.stat().st_mtime)
    if runs:
        return f"did you mean a run in it, such as {runs[-1]}?"
    if path.parent.is_dir() and not path.exists():
        names = [run.parent.name for run in path.parent.glob("*/manifest.json")]
        begun_so = [name for name in names if name.startswith(path.name)]
        similar = begun_so or difflib.get_close_matches(path.name, names, 1)
        if similar:
            return f"did you mean {path.parent / similar[0]}?"
    return "give the folder that train wrote (it has a config.yaml); cot-unsloth runs lists them"


class RunDir:
    """A run folder, with the names of everything in it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.manifest = self.path / "manifest.json"
        self.template = self.path / "chat_template.jinja"
        """The chat template that the run started with; the file named in the settings may change afterwards."""
        self.kept = self.path / "data" / "kept.jsonl"
        self.rejected = self.path / "data" / "rejected.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.adapter = self.path / "adapter"
        self.model = self.path / "model"
        """The full model, if every weight was trained instead of an adapter."""
        self.compiled = self.path / "compiled"
        """Code that an engine compiled; may be removed."""
        self.metrics = self.path / "metrics.jsonl"
        self.development = self.path / "development.jsonl"
        """Which development problems were solved, with a training method that draws attempts."""
        self.token_accuracy = self.path / "token_accuracy.json"
        self.fit_report = self.path / "fit.json"
        self.scorecard = self.path / "scorecard.json"
        self.rounds = self.path / "rounds"
        """With `rft`, a folder for each round, laid out as a run's."""
        self.rounds_report = self.path / "rounds.json"
        self.unfinished = self.path / "unfinished"
        """Completions of a scoring run that has not written its scorecard yet."""
        self.report = self.path / "report.html"
        self.log = self.path / "log.txt"
        self.export = self.path / "export"
        self.merged = self.export / "merged"
        self.verified = self.export / "verified.json"

    def completions(self, arm: str) -> Path:
        """The file with the completions of one arm."""
        return self.path / "completions" / f"{arm}.jsonl"

    @classmethod
    def open(cls, path: str | Path) -> RunDir:
        """An existing run.

        Raises:
            RunDirError: there is no run in that folder.
        """
        run = cls(path)
        if not run.config.is_file():
            wrong = "holds no run" if run.path.exists() else "there is no such folder"
            raise RunDirError(wrong, where=str(path), hint=_meant(run.path))
        return run

    @classmethod
    def of_export(cls, file: Path) -> RunDir | None:
        """The run that a file was exported from, if it still lies in that run's `export/`."""
        run = cls(file.resolve().parent.parent)
        return run if run.config.is_file() and run.manifest.is_file() else None

    @classmethod
    def of_weights(cls, folder: Path) -> RunDir | None:
        """The run that trained an adapter or a model, if the folder is the run's own, a round's, a checkpoint, or an export in it."""
        # RUN/adapter is one level below the run, RUN/checkpoints/checkpoint-N and RUN/export/merged are two; of a round of
        # rft, RUN/rounds/N/adapter is three, and RUN/rounds/N/checkpoints/checkpoint-N four.
        parents = folder.resolve().parents
        of_round = [parent.parent for parent in parents[:3] if parent == cls(parent.parent).rounds]
        runs = (cls(parent) for parent in (*parents[:2], *of_round))
        return next((run for run in runs if run.config.is_file() and run.manifest.is_file()), None)

    def question_ids(self, split: Split) -> set[str]:
        """The ids of the questions in one part of the run's split."""
        return {row["id"] for row in iter_jsonl(self.kept) if row["split"] == split}

    def system_prompts(self, default: str | None) -> set[str | None]:
        """The distinct system prompts of its training rows; `default` for rows without one of their own."""
        rows = (row for row in iter_jsonl(self.kept) if row["split"] == "train")
        return {(default if row["system"] is None else row["system"]) or None for row in rows}

    def exported_models(self) -> list[Path]:
        """The GGUF files of full models that it was exported to, without those that could not be verified."""
        files = (file for file in self.export.glob("*.gguf") if not file.name.endswith(".unverified.gguf"))
        return sorted(file for file in files if not is_adapter_gguf(file.name))

    @property
    def trained_weights(self) -> Path | None:
        """The adapter, or the full model where every weight was trained; None before training has finished."""
        return next((folder for folder in (self.adapter, self.model) if folder.is_dir()), None)

    def require_trained_weights(self) -> Path:
        """The adapter, or the full model where every weight was trained.

        Raises:
            RunDirError: training has not finished.
        """
        weights = self.trained_weights
        if weights is None:
            hint = f"finish it: {self._resume_command}"
            raise RunDirError("has no trained weights yet", where=str(self.path), hint=hint)
        return weights

    @property
    def _resume_command(self) -> str:
        return shlex.join(["cot-unsloth", "train", "--run-dir", str(self.path), "--resume"])

    def complete_checkpoints(self) -> list[Path]:
        """Checkpoints, oldest first."""
        return complete_checkpoints(self.checkpoints)

    def write_config(self, config: RunConfig) -> None:
        """Save the resolved settings of the run."""
        write_text(self.config, config.to_yaml())

    def read_config(self) -> RunConfig:
        """The resolved settings of the run."""
        return load(self.config)

    def read_manifest(self) -> Manifest | None:
        """How the run was made; None where nothing has been written of it yet."""
        return Manifest.read_if_there(self.manifest)

    def changed(self, config: RunConfig) -> dict[str, tuple[object, object]]:
        """Settings that differ from the run's: `{"train.learning_rate": (before, now)}`."""
        return self.read_config().differences(config)

    def check(self, config: RunConfig, *, resume: bool) -> None:
        """Check, without writing anything, that the folder can take this run.

        Raises:
            RunDirError: it holds a run and `resume` is off; it holds a run with other settings, or
                none to resume; it holds files that are not a run's.
        """
        if not resume:
            self._check_unused()
        elif not self.config.is_file():
            raise RunDirError(
                "holds no run to resume", where=str(self.path), hint="leave --resume out to start one there"
            )
        else:
            self._check_settings(config)

    def _check_unused(self) -> None:
        if self.path.is_file():
            raise RunDirError("is a file, not a folder", where=str(self.path), name="run_folder_is_a_file")
        if self.config.exists():
            raise RunDirError(
                "already holds a run",
                where=str(self.path),
                hint="add --resume to continue it, or name another --run-dir",
                name="run_folder_taken",
            )
        # A process that ended before its run began may have left these. The log of a command that failed is one of them.
        leftovers = (LOCK, ASIDE, self.compiled.name, self.log.name)
        if self.path.exists() and not all(child.name.startswith(leftovers) for child in self.path.iterdir()):
            raise RunDirError(
                "is not empty, and holds no run",
                where=str(self.path),
                hint="name another --run-dir",
                name="run_folder_not_empty",
            )

    def _check_settings(self, config: RunConfig) -> None:
        before, train = self.read_config(), config.train
        changes = ", ".join(f"{name} was {old!r}, now {new!r}" for name, (old, new) in self.changed(config).items())
        accepted = {leaf: min(getattr(before.train, leaf), getattr(train, leaf)) for leaf in _MAY_BE_LOWERED}
        accepted |= {leaf: getattr(train, leaf) for leaf in _MAY_CHANGE}
        # Compared by hash, since it leaves out what decides no result, such as logging_steps.
        if before.replaced(**accepted).fingerprint() != config.fingerprint():
            raise RunDirError(
                f"holds another run: {changes}",
                where=str(self.path),
                hint="--run-dir and --resume without other flags keep the run's settings (only a lower learning_rate or "
                "max_grad_norm may be given); or name another --run-dir",
            )
        if self.trained_weights is not None and before.fingerprint() != config.fingerprint():
            raise RunDirError(
                f"its training is finished, so a change would have no effect: {changes}",
                where=str(self.path),
                hint="leave it out, or start a new run in another --run-dir",
            )

    def check_identity(self, identity: Mapping[str, str]) -> None:
        """Check that the data, template and tokenizer that the run started with have not changed.

        Args:
            identity: the hashes that the manifest holds, as they are now.

        Raises:
            RunDirError: one of them has changed.
        """
        before = self.read_manifest() or Manifest()
        changed = [
            name.removesuffix("_hash") for name, value in identity.items() if getattr(before, name) not in (None, value)
        ]
        if changed:
            raise RunDirError(
                f"was started with another {' and '.join(changed)}",
                where=str(self.path),
                hint="restore the file, or start a new run in another --run-dir",
            )

    @contextlib.contextmanager
    def locked(self, config: RunConfig, *, resume: bool) -> Iterator[None]:
        """Lock the folder for this process, and log to its `log.txt`, for a new run or to resume one.

        Raises:
            RunDirError: as `check`; another process works in it; it cannot be written.
        """
        self.check(config, resume=resume)
        with folder_lock(self.path), log_to(self.log):
            LOG.info("Python %s, %s, %s", platform.python_version(), platform.platform(), versions())
            # Under the lock, so that nothing is removed that another process is still writing.
            _remove_incomplete(self.path)
            if not resume:
                self.write_config(config)
            try:
                yield
            except KeyboardInterrupt as error:
                error.add_note(f"{self._resume_command} continues it")
                raise

    @contextlib.contextmanager
    def locked_for_scores(self) -> Iterator[None]:
        """Lock the folder for a command that adds scores or curves to it.

        Raises:
            RunDirError: another process works in it; it cannot be written.
        """
        with folder_lock(self.path):
            _remove_incomplete(self.path)
            yield


def _remove_incomplete(path: Path) -> None:
    """Remove what killed processes were writing, and finish what one was moving into place.

    Not in a folder in which another process works now, such as an export.
    """
    atomic.remove_asides(path)
    for folder, names, _ in os.walk(path):
        names[:] = [name for name in names if not name.startswith(ASIDE) and not is_locked(Path(folder, name))]
        for inner in (Path(folder, name) for name in names):
            if atomic.is_half_moved(inner):
                atomic.finish_move(inner, VERIFIED)
            atomic.remove_asides(inner)


def is_full_model(folder: Path | None) -> bool:
    """Whether a folder holds a full model rather than an adapter; False for None."""
    return folder is not None and (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file()


def is_adapter_gguf(name: str) -> bool:
    """Whether an exported GGUF file is an adapter alone, by its name.

    >>> is_adapter_gguf("tiny-base-cot-LORA.gguf"), is_adapter_gguf("tiny-base-cot-Q8_0.gguf")
    (True, False)
    """
    return name.removesuffix(".gguf").removesuffix(".unverified").endswith("-LORA")


def checkpoint_step(checkpoint: Path) -> int:
    """The optimizer step that a checkpoint was taken after.

    >>> checkpoint_step(Path("checkpoints/checkpoint-120"))
    120
    """
    return int(checkpoint.name.removeprefix("checkpoint-"))


def complete_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first; one that is still being written has another name."""
    names = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    # By number: as text, checkpoint-1000 sorts before checkpoint-200.
    return sorted(names, key=checkpoint_step)
