"""Chooses the held-out problems to score a model on, and measures their overlap with a run's training rows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from cot_unsloth import tasks
from cot_unsloth.config import Flags, RunConfig
from cot_unsloth.core.errors import DataError
from cot_unsloth.core.progress import note
from cot_unsloth.core.results import Contamination
from cot_unsloth.core.types import Example
from cot_unsloth.data import benchmarks, decontaminate, distinct_questions, load_problems, with_comparable_answers
from cot_unsloth.data.layouts import question_id
from cot_unsloth.models.adapter_files import training_runs
from cot_unsloth.storage import records
from cot_unsloth.storage.run_folder import RunDir
from cot_unsloth.storage.stored_rows import StoredRows

SELECT_ROWS = (
    "dataset", "dataset_config_name", "dataset_split", "dataset_revision", "data_format",
    "question_column", "reasoning_column", "answer_column", "system_column", "messages_column",
)  # fmt: skip
"""Settings that determine the rows of a file or a hub data set."""


def trained_questions(runs: Iterable[RunDir]) -> set[str]:
    """The ids of the questions that runs were trained on; those of a task also as their rows in a file have them."""
    rows = (row for run in runs for row in records.iter_jsonl(run.kept) if row["split"] == "train")
    return {id_ for row in rows for id_ in (row["id"], question_id(row["question"], row["history"]))}


def not_trained_on(problems: Iterable[Example], trained: Collection[str]) -> list[Example]:
    """The problems that are not among `trained_questions`."""
    return [p for p in problems if p.id not in trained and question_id(p.question, p.history) not in trained]


def naming_problems(flags: Flags) -> Flags:
    """Flags of a command that scores a run again, with those that follow from them: what the user names is what is scored.

    A data set replaces the run's benchmark, which would take precedence over it, and a benchmark its development problems.
    """
    if flags.get("benchmark"):
        return {"score_on": "held_out", **flags}
    return {"benchmark": None, "benchmark_path": None, **flags} if "dataset" in flags else flags


def settings_to_score(trained: RunConfig, config: RunConfig) -> RunConfig:
    """The settings to score a run under: its development problems are scored again only if no other data is named."""
    by_development = trained.development.score_on == config.development.score_on == "development"
    other_benchmark = config.evaluate.benchmark not in (None, trained.evaluate.benchmark)
    if not by_development or (not other_benchmark and _same_rows(trained, config)):
        return config
    return config.replaced(score_on="held_out")


def scored_dataset(config: RunConfig) -> str:
    """The data set or benchmark that the problems come from; development problems come from the data that is trained on."""
    by_development = config.development.score_on == "development"
    return config.data.dataset if by_development else config.evaluate.benchmark or config.data.dataset


def _same_rows(trained: RunConfig, config: RunConfig) -> bool:
    return all(getattr(config.data, leaf) == getattr(trained.data, leaf) for leaf in SELECT_ROWS)


def held_out_problems(run: RunDir, trained: RunConfig, config: RunConfig) -> list[Example]:
    """Problems that neither a run nor one that it continued was trained on.

    Args:
        run: the run.
        trained: its own settings.
        config: the settings to score under, of `settings_to_score`. A run that was scored on development problems is scored
            on them again. If the settings name the file that the run was trained on, only the rows held out then are used:
            another seed would draw rows that it was trained on.

    Raises:
        DataError: the run held no rows out of that file, or the data cannot be read.
    """
    by_development = config.development.score_on == "development"
    named = config.evaluate.benchmark or tasks.is_task_dataset(trained.data.dataset) or not _same_rows(trained, config)
    trained_on = trained_questions(training_runs(run.path))
    if named and not by_development:
        return named_problems(config, trained_on)
    held_out = [records.kept_example(row) for row in records.iter_jsonl(run.kept) if row["split"] == "test"]
    held_out = _as_generated(held_out, trained) if by_development else not_trained_on(held_out, trained_on)
    # Training scored all development problems, of which there may be more than eval_samples.
    all_again = by_development and config.evaluate.eval_samples == trained.evaluate.eval_samples
    most = len(held_out) if all_again else config.evaluate.eval_samples
    problems = distinct_questions(with_comparable_answers(held_out), most, config.evaluate.eval_seed)
    dataset = trained.data.dataset
    if not problems:
        raise DataError(
            "the run held out no rows of it to score on",
            where=dataset,
            hint="name other data with --dataset, or train again with --eval-samples above 0",
        )
    rows = f"rows held out of {dataset} when it was trained on"
    note(f"scoring on {len(problems)} of the {len(held_out)} {'development problems' if by_development else rows}")
    return problems


def _as_generated(problems: list[Example], trained: RunConfig) -> list[Example]:
    """Development problems with what their task checks them by, which `kept.jsonl` does not hold; rows of files as they are."""
    data = trained.data
    if not tasks.is_task_dataset(data.dataset):
        return problems
    generated = tasks.generate(data.dataset, split="train", n=data.world_samples, seed=trained.train.seed)
    by_id = {example.id: example.problem for example in generated}
    return [replace(problem, problem=by_id.get(problem.id)) for problem in problems]


def named_problems(config: RunConfig, without: Collection[str] = ()) -> list[Example]:
    """Problems of the benchmark, or else of the data set, that the settings name.

    Args:
        config: the settings.
        without: ids of questions to leave out, because the model was trained on them.
    """
    settings = config.evaluate
    if settings.benchmark:
        return benchmarks.load(settings, without)
    return load_problems(config.data, eval_samples=settings.eval_samples, eval_seed=settings.eval_seed, without=without)


def require_problems(problems: Sequence[Example], config: RunConfig) -> None:
    """Check that there is something to score.

    Raises:
        DataError: there are no problems.
    """
    if not problems:
        raise DataError("no rows are held out to score on", where=config.data.dataset, hint="raise --eval-samples")


def how_to_score_more(config: RunConfig, run: RunDir, n: int) -> str:
    """A sentence on how to score more than the `n` problems, which depends on where the problems come from.

    Args:
        config: the settings under which they were scored.
        run: the folder of the scores. If it is a run's folder, a file offers no more problems than the run's held-out rows.
        n: number of problems scored.
    """
    if config.development.score_on == "development":
        return "More development problems are set aside by a new run with a larger --development-problems."
    limited = n >= config.evaluate.eval_samples
    if benchmark := config.evaluate.benchmark:
        if limited:
            return f"More problems of {benchmark} can be scored with a larger --eval-samples."
        return f"Every problem of {benchmark} was scored; a larger benchmark would show smaller differences."
    if tasks.is_task_dataset(config.data.dataset):
        return "More problems can be generated and scored with a larger --eval-samples, without new training."
    other = "score another data set (evaluate RUN --benchmark gsm8k)"
    if not run.kept.is_file() and limited:
        return f"More held-out rows, if there are any, are scored with a larger --eval-samples; else {other}."
    larger = "--eval-samples" if limited else "--test-fraction"
    return f"Every held-out row was scored: train again with a larger {larger}, or {other}."


def contamination_of(run: RunDir, folder: RunDir, problems: Sequence[Example]) -> Contamination | None:
    """The overlap of a run's training rows with problems; None if the rows are generated by a task.

    Args:
        run: the run.
        folder: where the scores go. If this is the run's own folder, the problems are the run's, and the overlap is the one
            that was measured, and dropped, before training.
        problems: the problems to score.
    """
    manifest = run.read_manifest() if folder is run else None
    if manifest is not None:
        return manifest.contamination
    kept = (row for row in records.iter_jsonl(run.kept) if row["split"] == "train")
    rows = StoredRows(map(records.kept_example, kept))
    if not rows or all(tasks.is_task_dataset(row.where) for row in rows):
        return None
    return decontaminate.find_overlap(rows, problems).counts(0)
