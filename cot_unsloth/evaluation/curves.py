"""`curves`: both curves of one run, or of several that differ in their seed, as `curves.json`, plots and a report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from cot_unsloth.config import Flags, RunConfig
from cot_unsloth.core.errors import ConfigError, DataError, RunDirError
from cot_unsloth.core.progress import note, whole
from cot_unsloth.core.results import VERSION, Curves
from cot_unsloth.core.results.curves import BudgetSettings, TestTimeCurve, TrainingCurve
from cot_unsloth.core.types import Example, ThinkingTags
from cot_unsloth.evaluation.budget_curve import budget_curve
from cot_unsloth.evaluation.budget_forcing import (
    ANSWER_TOKENS,
    BudgetAnswers,
    BudgetOptions,
    answer_at_budgets,
    budget_settings,
    default_budgets,
    parts,
)
from cot_unsloth.evaluation.problems import (
    held_out_problems,
    naming_problems,
    not_trained_on,
    scored_dataset,
    settings_to_score,
    trained_questions,
)
from cot_unsloth.evaluation.training_curve import scored_models, training_curve
from cot_unsloth.models.adapter_files import training_runs
from cot_unsloth.models.generation import identity
from cot_unsloth.models.target import Target
from cot_unsloth.reporting import curve_plots, report
from cot_unsloth.storage import atomic, environment
from cot_unsloth.storage.run_folder import RunDir


def measure(paths: Sequence[Path], flags: Flags, options: BudgetOptions, checkpoints: int, out: Path | None) -> Curves:
    """Both curves of one run or of several that differ in their seed; the test-time curve is the first run's.

    Args:
        paths: run folders.
        flags: settings that override the first run's.
        options: options of the test-time curve that were given; see `budget_settings` for the defaults.
        checkpoints: the most checkpoints to score per run; 0 leaves the training curve out.
        out: folder for the results; None for the first run's.

    Writes `curves.json`, `curves-test-time.png` and `curves-train-time.png` into `out`, or into the first run's folder.

    Raises:
        ConfigError: the runs differ in more than their seed, or two have the same one.
        RunDirError: there is no run, or it has no trained weights, or no checkpoints.
    """
    runs = [RunDir.open(path) for path in paths]
    run_config = runs[0].read_config()
    weights = runs[0].require_trained_weights()
    for run in runs[1:]:
        _same_but_seed(runs[0], run)
    _require_other_seeds(runs)
    config = settings_to_score(run_config, run_config.overridden(naming_problems(flags)))
    trained_on = trained_questions(one for run in runs[1:] for one in training_runs(run.path))
    examples = not_trained_on(held_out_problems(runs[0], run_config, config), trained_on)
    if not examples:
        raise DataError("no rows are held out to score on", where=config.data.dataset, hint="raise --eval-samples")
    folder = RunDir(out or runs[0].path)
    drafts = RunDir(folder.path / "curves")  # not `unfinished`, which an evaluation removes when it ends
    # If drafts are left, the command was interrupted before its plots, and is continued.
    if out is not None and (out / "curves.json").exists() and not drafts.path.exists():
        atomic.remove_left_behind(drafts.path)
        raise RunDirError("already holds curves", where=str(out), hint="name another --out")
    options = {"budgets": default_budgets(config), **options}
    settings = budget_settings(**options)
    renderer, engine = Target(_with_room(config, settings), weights).load()
    models = sum(len(scored_models(run, checkpoints)) for run in runs) if checkpoints else 0
    with folder.locked_for_scores():
        with whole("curves", parts(settings) + models):
            levels = answer_at_budgets(
                engine, renderer, examples, "tuned", config.sampling_params, settings, drafts, identity(config, weights)
            )
            engine.close()
            trained = training_curve(runs, config, examples, checkpoints, drafts) if checkpoints else None
        curves = _curves(runs, config, settings, examples, levels, trained)
        curves.write(folder.path / "curves.json")
        drawn = curve_plots.draw(curves, folder.path)
        for name, svg in drawn.items():
            atomic.write_text(folder.path / f"curves-{name}.svg", svg)
        _remove_plots(folder, curve_plots.NAMES - drawn.keys())
        if folder.scorecard.is_file():
            report.write(folder)
        atomic.remove_tree(drafts.path)
    note(f"curves: {folder.path / 'curves.json'}")
    return curves


def _remove_plots(folder: RunDir, names: Iterable[str]) -> None:
    """Remove plots of an earlier command: the report would show them beside those of this one."""
    for name in names:
        for suffix in ("png", "svg"):
            (folder.path / f"curves-{name}.{suffix}").unlink(missing_ok=True)


def _curves(
    runs: Sequence[RunDir],
    config: RunConfig,
    settings: BudgetSettings,
    examples: Sequence[Example],
    levels: Sequence[BudgetAnswers],
    trained: TrainingCurve | None,
) -> Curves:
    """Both curves, from the answers at each budget and at each checkpoint."""
    return Curves(
        version=VERSION,
        model=config.model.model_name_or_path,
        dataset=scored_dataset(config),
        n=len(examples),
        seed=config.evaluate.eval_seed,
        train_seeds=tuple(run.read_config().train.seed for run in runs),
        budgets=settings,
        answer_tokens=ANSWER_TOKENS,
        environment=environment.environment(),
        test_time=budget_curve(examples, levels, settings.budgets[-1], config.data.thinking_tags),
        test_time_by_task=_by_task(examples, levels, settings, config.data.thinking_tags),
        train_time=trained,
    )


def _with_room(config: RunConfig, settings: BudgetSettings) -> RunConfig:
    """The settings with a token limit that covers the longest chain: engines allocate their context by it."""
    longest = settings.budgets[-1] * (1 + settings.extend) + ANSWER_TOKENS
    return config.replaced(max_new_tokens=max(config.evaluate.max_new_tokens, longest))


def _by_task(
    examples: Sequence[Example], levels: Sequence[BudgetAnswers], settings: BudgetSettings, thinking_tags: ThinkingTags
) -> dict[str, TestTimeCurve]:
    """The test-time curve of each task, where there are several."""
    names = sorted({example.task for example in examples})
    if len(names) < 2:
        return {}
    curves = {}
    for task in names:
        at = [i for i, example in enumerate(examples) if example.task == task]
        of_task = [replace(level, scores=tuple(tuple(s[i] for i in at) for s in level.scores)) for level in levels]
        curves[task] = budget_curve([examples[i] for i in at], of_task, settings.budgets[-1], thinking_tags)
    return curves


def _same_but_seed(first: RunDir, other: RunDir) -> None:
    """Check that two runs differ only in their seed, apart from settings that do not affect the result.

    Raises:
        ConfigError: with the first setting that differs.
    """
    a, b = (run.read_config().model_dump(mode="json") for run in (first, other))
    may_differ = ("run_dir", "seed", "save_total_limit", "logging_steps", "report_to", "save_steps")
    for tree in (a, b):
        for leaf in may_differ:
            tree["train"].pop(leaf)
    chosen = {
        "evaluate": ("eval_seed", "eval_samples", "benchmark", "benchmark_path"),
        "development": ("score_on",),
    }
    of_method = {"rft": ("sample",), "grpo": ("grpo",)}.get(a["train"]["method"], ())
    for section in ("model", "lora", "data", "train", *of_method, *chosen):
        for leaf in chosen.get(section, a[section]):
            value = a[section][leaf]
            if b[section][leaf] != value:
                raise ConfigError(
                    f"{section}.{leaf} is {b[section][leaf]!r}, in {first.path} {value!r}",
                    where=str(other.path),
                    hint="the runs of one curve may differ only in train.seed",
                )


def _require_other_seeds(runs: Sequence[RunDir]) -> None:
    """Check that no two runs have the same seed.

    Counted as two, one run makes the interval of their mean too narrow, which covers the effect of the seed.

    Raises:
        ConfigError: with the first run whose seed another one has.
    """
    paths: dict[int, Path] = {}
    for run in runs:
        seed = run.read_config().train.seed
        if seed in paths:
            message = f"has the seed {seed}, as {paths[seed]} has"
            raise ConfigError(message, where=str(run.path), hint="the runs of one curve must differ in train.seed")
        paths[seed] = run.path
