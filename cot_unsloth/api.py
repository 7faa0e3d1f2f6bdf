"""The Python API: the commands of the command line as functions, and the types they take.

`from cot_unsloth import train_run` imports from here. Settings are named like their flags, and errors are the same as on the
command line (`CotError`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

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

if TYPE_CHECKING:
    from cot_unsloth.core.results.combination import Combination, CombineMethod
    from cot_unsloth.core.results.comparison import Comparison, ListedRun
    from cot_unsloth.core.results.sweep import Sweep
    from cot_unsloth.core.results.transfer import Transfer
    from cot_unsloth.sampling.records import SampleSummary

__all__ = [
    "CotError", "Example", "Finding", "Part", "RunConfig", "RunDir", "Trace", "ask", "check", "combine_adapters",
    "compare_runs", "dry_run", "evaluate_run", "export_run", "list_runs", "load_config", "measure_curves", "parse",
    "print_scorecard", "render_trace", "sample_run", "sweep_settings", "train_run", "transfer_adapters", "write_traces",
]  # fmt: skip


def load_config(path: str | Path | None = None, **flags: Any) -> RunConfig:
    """The settings of a file (without one, those of the embedded demo), overridden by `flags`.

    Args:
        path: YAML or JSON.
        flags: any setting by name, such as `learning_rate=1e-4`. None is a value: it is not the same as leaving the flag out.

    Raises:
        ConfigError: settings are wrong; the error lists all of them.
    """
    return settings.load(path, flags)


def check(target: str | Path | None = None, **flags: Any) -> list[Finding]:
    """Check settings or a data set, without loading weights: faults, warnings and notes, faults first.

    Args:
        target: a settings file or a data set; None for the embedded demo.
        flags: any setting by name.
    """
    limit_spinning()
    return checks.check_target(str(target) if target is not None else None, flags)


def dry_run(config: RunConfig) -> str:
    """Describe what would be trained, and show one row as the model sees it. Writes nothing; raises the errors of `train_run`."""
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
        VerificationError: the export differs from the model that was trained.
    """
    limit_spinning()
    return pipeline.train(config, resume=resume)


def evaluate_run(run: str | Path | RunDir, *, out: str | Path | None = None, **flags: Any) -> Scorecard:
    """Score a run again, or a `.gguf` file; returns the scorecard. Settings are the run's own, overridden by `flags`.

    Raises:
        RunDirError: there is no run.
    """
    limit_spinning()
    path = _folder(run)
    folder = Path(out) if out is not None else None
    if path.suffix == ".gguf":
        return evaluate.evaluate_file(path, flags, folder)
    return evaluate.evaluate_run(path, flags, folder)


def measure_curves(
    runs: Sequence[str | Path | RunDir], *, out: str | Path | None = None, checkpoints: int = 8, **options: Any
) -> Curves:
    """Measure accuracy against tokens at test time and in training, and plot it; returns the content of `curves.json`.

    Args:
        runs: runs that differ only in their seed; the test-time curve is measured on the first one.
        out: folder for the results; None for the first run's folder.
        checkpoints: the most checkpoints to score per run; 0 leaves the training curve out.
        options: `budgets`, `samples`, `temperature` and `extend` configure the test-time curve; all others are settings.

    Raises:
        ConfigError: the runs differ in more than their seed.
        RunDirError: there is no run, or it has no checkpoints.
    """
    limit_spinning()
    paths = [_folder(run) for run in runs]
    curve_options = {name: options.pop(name) for name in BudgetOptions.__annotations__ if name in options}
    return curves.measure(
        paths, options, cast("BudgetOptions", curve_options), checkpoints, Path(out) if out is not None else None
    )


def export_run(
    run: str | Path | RunDir, *, out: str | Path | None = None, existing: Existing = "keep", **flags: Any
) -> Verification:
    """Export a run's model: `gguf="q4_k_m,q8_0"`, `merged=True`, `lora_gguf=True`.

    Args:
        run: the run, or its folder.
        out: folder for the files; None for the run's `export/`.
        existing: what to do with files that already exist: "keep" them if they are verified and unchanged, and stop
            otherwise; "force" writes all of them again; "skip" keeps all of them, verified or not.
        flags: settings by their names.

    Returns:
        The content of `verified.json`: every check of every file, and their hashes.

    Raises:
        VerificationError: the export differs from the model that was trained.
    """
    limit_spinning()
    from cot_unsloth.export import run as exporting

    folder = run if isinstance(run, RunDir) else RunDir.open(run)
    config = folder.read_config().without_export().overridden(flags)
    return exporting.export_run(folder, config, Path(out) if out is not None else None, existing)


def ask(target: str | Path | RunDir, question: str, **flags: Any) -> str:
    """Ask a run's model, or a `.gguf` file, one question; returns the text of its answer, tags included.

    Raises:
        InputError: there is no such model.
    """
    limit_spinning()
    path = _folder(target)
    resolved = resolve_target(path, flags=flags)
    engine, config = resolved.load_streamer(), resolved.config
    user_turn: Message = {"role": "user", "content": question}
    messages = (*system_turn(config.data.system_prompt), user_turn)
    try:
        prompt = Prompt("question", messages)
        return engine.generate([prompt], config.sampling_params)[0].text
    finally:
        if isinstance(engine, LlamaCpp):
            engine.close()


def sample_run(target: str | Path | RunDir, *, out: str | Path | None = None, **flags: Any) -> SampleSummary:
    """Let a model solve training problems, and keep the right answers as a data set to train on: `OUT/data.jsonl`.

    Args:
        target: a run, a `.gguf` file, or the name or folder of a model.
        out: folder for the results; an interrupted call continues there. None for the run's `samples/`, or
            `samples/MODEL-DATASET`.
        flags: settings by name, such as `samples_per_problem=8`.

    Raises:
        DataError: there are no problems, or no attempt was accepted.
    """
    limit_spinning()
    from cot_unsloth.sampling.targets import sample_target

    path = _folder(target)
    is_own = path.suffix == ".gguf" or RunDir(path).config.is_file()
    model = resolve_target(path if is_own else None, base=None if is_own else str(target), flags=flags, use="score")
    return sample_target(model, Path(out) if out is not None else None)[1]


def combine_adapters(
    adapters: Sequence[str | Path | RunDir],
    *,
    out: str | Path,
    method: CombineMethod = "cat",
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    density: float | None = None,
    seed: int | None = None,
) -> Combination:
    """Combine LoRA adapters of the same base into one plain adapter, written to `out`.

    Args:
        adapters: at least two runs or adapter folders.
        out: a folder that does not exist yet.
        method: see `cot-unsloth combine --help`.
        weights: a factor for each adapter; None for 1 each.
        rank: rank of the result; not with `cat` or `linear`.
        density: share of each adapter's weight update that ties, dare_* and magnitude_prune keep.
        seed: random seed for the entries that dare_* keeps.

    Returns:
        What was combined, and its error against the weighted sum of the adapters' weight updates.

    Raises:
        ConfigError: the arguments conflict, or `out` exists.
        ModelError: the adapters cannot be combined.
    """
    limit_spinning()
    from cot_unsloth.lab import combine, factors

    paths = [_folder(adapter) for adapter in adapters]
    factor_of_each = tuple(weights) if weights is not None else (1.0,) * len(paths)
    return combine.combine(paths, factor_of_each, factors.recipe(method, rank, density, seed), Path(out))


def transfer_adapters(
    config: RunConfig,
    datasets: str | Sequence[str] = (),
    *,
    out: str | Path,
    adapters: Mapping[str, str | Path | RunDir] | None = None,
    rows: Mapping[str, str] | None = None,
    combine: str | Sequence[str] = (),
    joint: bool = True,
) -> Transfer:
    """Score each task's adapter on every task; missing adapters are trained first.

    Args:
        config: settings for training and scoring; its data set is not used.
        datasets: one task each, as DATASET or NAME=DATASET; if empty, the data sets of the runs in `adapters`.
        out: folder for the runs, scores and `transfer.json`; an interrupted call continues there.
        adapters: existing runs by name. A run named like a task is that task's adapter; any other is scored as well.
        rows: data sets to train on, by task, for tasks without solutions.
        combine: combinations to score, as METHOD or METHOD:WEIGHT.
        joint: whether to train one adapter on all tasks.

    Raises:
        ConfigError: a name or a task cannot be used.
        ModelError: an adapter belongs to another base.
    """
    limit_spinning()
    from cot_unsloth.lab import transfer, transfer_plan

    existing = {name: _folder(run) for name, run in (adapters or {}).items()}
    options = transfer_plan.Options(
        folder=Path(out),
        tasks=transfer_plan.tasks_of(_texts(datasets), rows, existing),
        adapters=existing,
        joint=joint,
        mixtures=tuple(map(transfer_plan.mixture_of, _texts(combine))),
    )
    return transfer.transfer(config, options)


def sweep_settings(
    config: RunConfig,
    vary: str | Sequence[str] = (),
    *,
    out: str | Path,
    trials: int = 20,
    seed: int = 0,
    grid: bool = False,
    final: bool = True,
) -> Sweep:
    """Search for settings that train a better model; needs `cot-unsloth[lab]`.

    Args:
        config: the default settings, which are the first trial.
        vary: what to vary, such as `learning_rate=1e-4:1e-2:log` or `lora_r=8,16`; if empty, the usual settings.
        out: folder for the trials, `sweep.json` and `best.yaml`; an interrupted call continues there.
        trials: total number of trials.
        seed: random seed of the search.
        grid: whether to try every combination of the choices instead of searching.
        final: whether to train the default and the best settings again and compare them on held-out problems.

    Raises:
        ConfigError: `vary` is not understood, or Optuna is missing.
    """
    limit_spinning()
    from cot_unsloth.lab import space, sweep

    folder = Path(out)
    options = sweep.Options(
        name=sweep.require_name(folder.name),
        folder=folder,
        study=sweep.default_study(folder),
        trials=trials,
        seed=seed,
        grid=grid,
        final=final,
    )
    return sweep.sweep(config, [space.parse(text) for text in _texts(vary)] or space.default_space(config), options)


def compare_runs(runs: Sequence[str | Path | RunDir], *, arm: str | None = None) -> Comparison:
    """Compare runs in pairs, on the problems that all of them answered.

    Args:
        runs: at least two runs.
        arm: the arm to compare in each run; None for the tuned arm.

    Raises:
        RunDirError: there is no run, or it has no scores.
    """
    from cot_unsloth.lab import compare

    return compare.compare([_folder(run) for run in runs], arm)


def list_runs(folder: str | Path = "runs") -> list[ListedRun]:
    """The runs in a folder, newest first.

    Raises:
        DataError: there is no such folder.
    """
    from cot_unsloth.lab import runs

    return runs.list_runs(Path(folder))


def write_traces(path: str | Path, rows: Sequence[tuple[str, Trace]]) -> None:
    """Write questions and their traces as a data set (JSON Lines), completely or not at all.

    If a part is marked as `injected`, all rows are written in parts, with these marks, and such steps carry no loss.
    """
    if any(part.injected for _, trace in rows for part in trace.parts):
        from cot_unsloth.data.layouts.own_samples import row_of

        examples = [Example(id="", question=question, trace=trace, answer=trace.output) for question, trace in rows]
        write_jsonl(Path(path), map(row_of, examples))
    else:
        write_jsonl(Path(path), [{"prompt": question, "response": render_trace(trace)} for question, trace in rows])


def _folder(run: str | Path | RunDir) -> Path:
    return run.path if isinstance(run, RunDir) else Path(run)


def _texts(value: str | Sequence[str]) -> Sequence[str]:
    """A list of texts. A single text needs wrapping: it is itself a sequence, of characters."""
    return [value] if isinstance(value, str) else value
