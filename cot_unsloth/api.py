"""The library from Python: the commands of the command line as functions, and the values they take.

`from cot_unsloth import train_run` imports from here. Settings have the names of their flags, and errors are the same as on the
command line (`CotError`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from cot_unsloth import config as settings
from cot_unsloth.config import RunConfig
from cot_unsloth.core.errors import CotError
from cot_unsloth.core.results import Curves, Scorecard
from cot_unsloth.core.results.verification import Verification
from cot_unsloth.core.threads import limit_spinning
from cot_unsloth.core.trace import parse
from cot_unsloth.core.trace import render as render_trace
from cot_unsloth.core.types import Example, Message, Part, Prompt, Trace
from cot_unsloth.evaluation import curves, evaluate
from cot_unsloth.evaluation.budget_forcing import BudgetOptions
from cot_unsloth.export.plan import Existing
from cot_unsloth.models.llamacpp import LlamaCpp
from cot_unsloth.models.target import resolve_target
from cot_unsloth.prompts.arms import system_turn
from cot_unsloth.reporting.tables import print_scorecard
from cot_unsloth.storage.records import write_jsonl
from cot_unsloth.storage.run_folder import RunDir
from cot_unsloth.training import checks, pipeline
from cot_unsloth.training.checks import Finding

__all__ = [
    "CotError", "Example", "Finding", "Part", "RunConfig", "RunDir", "Trace", "ask", "check", "dry_run", "evaluate_run", "export_run", "load_config",
    "measure_curves", "parse", "print_scorecard", "render_trace", "train_run", "write_traces",
]  # fmt: skip


def load_config(path: str | Path | None = None, **flags: Any) -> RunConfig:
    """The settings of a file (without one, those of the embedded demo), overridden by `flags`.

    Args:
        path: YAML or JSON.
        flags: any setting by its name, such as `learning_rate=1e-4`; None is a value too.

    Raises:
        ConfigError: it lists everything that is wrong with them.
    """
    return settings.load(path, flags)


def check(target: str | Path | None = None, **flags: Any) -> list[Finding]:
    """Check settings or a data set, without loading weights: faults, warnings and notes, faults first.

    Args:
        target: a file of settings, or a data set; None for the embedded demo.
        flags: any setting by its name.
    """
    limit_spinning()
    return checks.check_target(str(target) if target is not None else None, flags)


def dry_run(config: RunConfig) -> str:
    """What would be trained, and one row as the model sees it. Raises as `train_run`, and writes nothing."""
    limit_spinning()
    return pipeline.dry_run(config)


def train_run(config: RunConfig, *, resume: bool = False) -> tuple[RunDir, Scorecard]:
    """Score the base, fine-tune, score again, export what the settings ask for.

    Args:
        config: the settings.
        resume: continue the run in `config.train.run_dir`.

    Returns:
        The run's folder and its scorecard.

    Raises:
        InputError: before anything is written.
        EngineError: during the run; what was done is kept, and `resume` continues from there.
        VerificationError: the export is not the model that was trained.
    """
    limit_spinning()
    return pipeline.train(config, resume=resume)


def evaluate_run(run: str | Path | RunDir, *, out: str | Path | None = None, **flags: Any) -> Scorecard:
    """Score a run again, or a `.gguf` file; returns the scorecard. Settings are the run's own, overridden by `flags`.

    Raises:
        RunDirError: there is no run.
    """
    limit_spinning()
    path = run.path if isinstance(run, RunDir) else Path(run)
    folder = Path(out) if out is not None else None
    if path.suffix == ".gguf":
        return evaluate.evaluate_file(path, flags, folder)
    return evaluate.evaluate_run(path, flags, folder)


def measure_curves(
    runs: Sequence[str | Path | RunDir], *, out: str | Path | None = None, checkpoints: int = 8, **options: Any
) -> Curves:
    """Measure accuracy against tokens at test time and in training, and plot it; returns the content of `curves.json`.

    Args:
        runs: runs that differ only in their seed; the test-time curve is of the first one.
        out: folder for the results; None for the first run's folder.
        checkpoints: at most this many of each run; 0 leaves the training curve out.
        options: `budgets`, `samples`, `temperature` and `extend` of the test-time curve; the others are settings.

    Raises:
        ConfigError: the runs differ in more than their seed.
        RunDirError: there is no run, or it has no checkpoints.
    """
    limit_spinning()
    paths = [run.path if isinstance(run, RunDir) else Path(run) for run in runs]
    of_curve = {name: options.pop(name) for name in BudgetOptions.__annotations__ if name in options}
    return curves.measure(
        paths, options, cast("BudgetOptions", of_curve), checkpoints, Path(out) if out is not None else None
    )


def export_run(
    run: str | Path | RunDir, *, out: str | Path | None = None, existing: Existing = "keep", **flags: Any
) -> Verification:
    """Export a run's model: `gguf="q4_k_m,q8_0"`, `merged=True`, `lora_gguf=True`.

    Args:
        run: the run, or its folder.
        out: folder for the files; None for the run's `export/`.
        existing: what to do with files that exist: "keep" those that are verified and unchanged and refuse the others,
            "force" all to be written again, or "skip" all of them.
        flags: settings by their names.

    Returns:
        The content of `verified.json`: every check of every file, and their hashes.

    Raises:
        VerificationError: what was written is not what was trained.
    """
    limit_spinning()
    from cot_unsloth.export import run as exporting

    folder = run if isinstance(run, RunDir) else RunDir.open(run)
    config = folder.read_config().without_export().overridden(flags)
    return exporting.export_run(folder, config, Path(out) if out is not None else None, existing)


def ask(target: str | Path | RunDir, question: str, **flags: Any) -> str:
    """The answer of a run's model, or of a `.gguf` file, to one question: its text, tags included.

    Raises:
        InputError: there is no such model.
    """
    limit_spinning()
    path = target.path if isinstance(target, RunDir) else Path(target)
    resolved = resolve_target(path, flags=flags)
    engine, config = resolved.load_streamer(), resolved.config
    asked: Message = {"role": "user", "content": question}
    messages = (*system_turn(config.data.system_prompt), asked)
    try:
        prompt = Prompt("question", messages)
        return engine.generate([prompt], config.sampling_params)[0].text
    finally:
        if isinstance(engine, LlamaCpp):
            engine.close()


def write_traces(path: str | Path, rows: Sequence[tuple[str, Trace]]) -> None:
    """Write questions and their traces as a data set (JSON Lines), completely or not at all."""
    lines = [{"prompt": question, "response": render_trace(trace)} for question, trace in rows]
    write_jsonl(Path(path), lines)
