"""Which held-out problems a model is scored on, and how far a run's training rows overlap with them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from cot_unsloth import tasks
from cot_unsloth.config import RunConfig
from cot_unsloth.core.errors import DataError
from cot_unsloth.core.progress import note
from cot_unsloth.core.results import Contamination
from cot_unsloth.core.types import Example
from cot_unsloth.data import benchmarks, decontaminate, distinct_questions, load_problems, with_comparable_answers
from cot_unsloth.storage import records
from cot_unsloth.storage.run_folder import RunDir
from cot_unsloth.storage.stored_rows import StoredRows

_SELECT_ROWS = (
    "dataset", "dataset_config_name", "dataset_split", "dataset_revision", "data_format",
    "question_column", "reasoning_column", "answer_column", "system_column", "messages_column",
)  # fmt: skip
"""Settings that decide which rows a file or a hub data set gives."""


def held_out_problems(run: RunDir, trained: RunConfig, config: RunConfig) -> list[Example]:
    """Problems that a run was not trained on.

    Args:
        run: the run.
        trained: its own settings.
        config: the settings to score under. A run that was scored on development problems is scored on them again. Where they name the file that the run was trained on, its problems are the
            rows that were held out then, and no others: another seed would draw rows that it was trained on.

    Raises:
        DataError: the run held no rows out of that file, or the data cannot be read.
    """
    same_rows = all(getattr(config.data, leaf) == getattr(trained.data, leaf) for leaf in _SELECT_ROWS)
    by_development = trained.development.score_on == "development"
    generated = tasks.is_task_dataset(trained.data.dataset) and not by_development
    if config.evaluate.benchmark or generated or not same_rows:
        return named_problems(config, run.question_ids("train"))
    held_out = [records.kept_example(row) for row in records.iter_jsonl(run.kept) if row["split"] == "test"]
    problems = distinct_questions(
        with_comparable_answers(held_out), config.evaluate.eval_samples, config.evaluate.eval_seed
    )
    dataset = trained.data.dataset
    if not problems:
        raise DataError(
            "the run held nothing out of it to score on",
            where=dataset,
            hint="name other data with --dataset, or train again with --eval-samples above 0",
        )
    note(f"scoring on {len(problems)} of the {len(held_out)} rows held out of {dataset} when it was trained on")
    return problems


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
    """A sentence about how more than the `n` problems that were scored can be, which depends on where they are from.

    Args:
        config: the settings that they were scored under.
        run: the folder that the scores are in; where it is that of a run, its held-out rows are all that a file has for it.
        n: problems scored.
    """
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
    return f"Every row that was held out is scored: train again with a larger {larger}, or {other}."


def contamination_of(run: RunDir, folder: RunDir, problems: Sequence[Example]) -> Contamination | None:
    """How far the rows that a run was trained on overlap with problems; None where the rows are generated by a task.

    Args:
        run: the run.
        folder: where the scores go. If that is the run's own folder, the problems are its own, and the overlap is the
            one that was measured, and dropped, before training.
        problems: what is scored.
    """
    manifest = run.read_manifest() if folder is run else None
    if manifest is not None:
        return manifest.contamination
    kept = (row for row in records.iter_jsonl(run.kept) if row["split"] == "train")
    rows = StoredRows(map(records.kept_example, kept))
    if not rows or all(tasks.is_task_dataset(row.where) for row in rows):
        return None
    return decontaminate.find_overlap(rows, problems).counts(0)
