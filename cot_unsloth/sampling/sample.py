"""Sampling from start to end: problems, attempts, rows, and the files of the folder.

Each stage leaves a complete file, so that a killed command continues: answers are kept as they come in, `attempts.jsonl`
once all are there, and `summary.json` last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cot_unsloth import tasks
from cot_unsloth.config import RunConfig, SampleConfig
from cot_unsloth.core.errors import DataError, RunDirError
from cot_unsloth.core.progress import note
from cot_unsloth.core.results import VERSION, PassPoint
from cot_unsloth.core.statistics import mean, pass_at_k, rounded, wilson
from cot_unsloth.core.types import Example
from cot_unsloth.data import (
    benchmarks,
    count_reasons,
    decontaminate,
    describe_prose_answers,
    distinct_questions,
    load_examples,
    with_comparable_answers,
)
from cot_unsloth.data.layouts.own_samples import row_of
from cot_unsloth.models.protocols import Generator
from cot_unsloth.prompts.arms import Prompter
from cot_unsloth.reporting import plots
from cot_unsloth.sampling import records
from cot_unsloth.sampling.attempts import as_turns, draw, worked_examples
from cot_unsloth.sampling.records import Attempt, ProblemRate, SampleFolder, SampleSummary
from cot_unsloth.sampling.selection import Selected, select
from cot_unsloth.storage import atomic, environment
from cot_unsloth.storage.lock import LOCK
from cot_unsloth.storage.records import write_jsonl
from cot_unsloth.storage.stored_rows import rows_without

SELECTION = ("max_per_problem", "own_reflections")
"""Settings that decide which attempts become rows, and nothing about the attempts."""
_SELECTION_DEFAULTS = {leaf: SampleConfig.model_fields[leaf].default for leaf in SELECTION}


@dataclass(frozen=True)
class Problems:
    """What is asked, and what must not be."""

    asked: tuple[Example, ...]
    """With distinct ids and gold answers that can be compared."""
    shown: tuple[Example, ...] = ()
    """Worked examples, which are not among those asked."""
    tests: tuple[Example, ...] = ()
    """Problems that a model is scored on, where the data are not generated: rows must not overlap with them."""
    ngrams: bool = False
    """Whether 13 consecutive words are an overlap."""
    leaked: int = 0
    """Training problems that were left out because they overlap with the tests."""


def training_problems(config: RunConfig, *, trained: bool) -> Problems:
    """The training problems of the data set in the settings; rows need no reasoning.

    Args:
        config: the settings.
        trained: whether the model knows our format, so that no examples are shown.

    Raises:
        DataError: the data cannot be read, or no problem is left.
    """
    e = config.evaluate
    held_out = 0 if e.benchmark else e.eval_samples
    loaded = load_examples(
        config.data, seed=config.train.seed, eval_samples=held_out, eval_seed=e.eval_seed, to_train_on=False
    )
    if loaded.columns is not None:
        note(str(loaded.columns))
    if loaded.rejects:
        note(f"rows: {loaded.rows} in, {len(loaded.rejects)} rejected ({count_reasons(loaded.rejects)})")
    generated = tasks.is_task_dataset(config.data.dataset)
    tests = benchmarks.load(e) if e.benchmark else [] if generated else loaded.in_split("test")
    return choose_problems(loaded.in_split("train"), tests, config, trained=trained)


def choose_problems(
    train: Sequence[Example], tests: Sequence[Example], config: RunConfig, *, trained: bool
) -> Problems:
    """Which of the training problems are asked: not those of the tests, nor those that are shown as examples.

    Raises:
        DataError: no problem is left.
    """
    ngrams = config.evaluate.benchmark is not None
    leaks = decontaminate.find_overlap(train, tests).dropped(ngrams=ngrams) if tests else ()
    clean = rows_without(train, leaks)
    comparable = with_comparable_answers(clean)
    if len(comparable) < len(clean):
        note(describe_prose_answers(len(clean) - len(comparable), len(clean)).replace("scoring:", "sampling:"))
    shown = () if trained else worked_examples(clean, config.sample.worked_examples)
    ids = {example.id for example in shown}
    left = [row for row in comparable if row.id not in ids]
    asked = distinct_questions(left, config.sample.sample_problems or len(left), config.train.seed)
    if not asked:
        raise DataError("holds no problem to sample", where=config.data.dataset, name="no_problems")
    return Problems(tuple(asked), shown, tuple(tests), ngrams, len(leaks))


def sample(
    engine: Generator,
    prompter: Prompter,
    problems: Problems,
    config: RunConfig,
    folder: SampleFolder,
    *,
    seed: int,
    model: str,
    earlier: Sequence[Attempt] = (),
) -> SampleSummary:
    """Draw attempts, select rows, and write the folder; what is there of an interrupted command is continued.

    Args:
        engine: the model.
        prompter: writes its prompts.
        problems: what to ask.
        config: the settings.
        folder: where everything goes.
        seed: of the attempts.
        model: identifies the model.
        earlier: attempts of earlier rounds at the same problems, from which rows are selected too.

    Raises:
        RunDirError: the folder holds samples of another model, or of other settings.
        DataError: as `attempts.draw`.
    """
    done = completed(problems, config, folder, seed=seed, model=model, earlier=earlier)
    if done is not None:
        return done
    example_turns = as_turns(problems.shown)
    attempts = draw(engine, prompter, problems.asked, config, folder, seed=seed, model=model, shown=example_turns)
    records.write_attempts(folder.attempts, attempts)
    atomic.remove_tree(folder.unfinished)
    return _with_rows(attempts, problems, config, folder, seed, earlier)


def completed(
    problems: Problems,
    config: RunConfig,
    folder: SampleFolder,
    *,
    seed: int,
    model: str,
    earlier: Sequence[Attempt] = (),
) -> SampleSummary | None:
    """The summary of a folder in which all attempts are; None where a model has to be asked, which is then the folder's purpose.

    Rows are selected again from the attempts where they are missing, or were selected under other settings.

    Raises:
        RunDirError: the folder holds something else.
    """
    problem_ids = [problem.id for problem in (*problems.asked, *problems.shown)]
    keys = [
        environment.text_hash(model, str(seed), settings.fingerprint("data", "evaluate", "sample"), *problem_ids)
        # The second is what versions wrote that did not select again.
        for settings in (config.replaced(**_SELECTION_DEFAULTS), config)
    ]
    if folder.settings.is_file() and folder.settings.read_text(encoding="utf-8") not in keys:
        raise RunDirError(
            "holds samples of another model or other settings", where=str(folder.path), hint="name another --out"
        )
    other_files = (
        [child for child in folder.path.iterdir() if not child.name.startswith((LOCK, atomic.ASIDE))]
        if folder.path.is_dir()
        else []
    )
    if other_files and not folder.settings.is_file():
        raise RunDirError("is not empty, and holds no samples", where=str(folder.path), hint="name another --out")
    atomic.write_text(folder.settings, keys[0])
    if folder.attempts.is_file():
        atomic.remove_tree(folder.unfinished)  # a killed process may have left it
    if folder.summary.is_file():
        summary = SampleSummary.read(folder.summary)
        if all(summary.sample[leaf] == getattr(config.sample, leaf) for leaf in SELECTION):
            note(f"{folder.path} is complete; nothing is asked")
            return summary
        note(f"{folder.path}: nothing is asked; rows are selected again, as {' or '.join(SELECTION)} has changed")
        folder.summary.unlink()
    if not folder.attempts.is_file():
        return None
    return _with_rows(records.read_attempts(folder.attempts), problems, config, folder, seed, earlier)


def _with_rows(
    attempts: Sequence[Attempt],
    problems: Problems,
    config: RunConfig,
    folder: SampleFolder,
    seed: int,
    earlier: Sequence[Attempt],
) -> SampleSummary:
    """Select the rows, and write them, the pass rates and the summary."""
    rates = rates_of(problems.asked, attempts)
    records.write_rates(folder.problems, rates)
    chosen = select(problems.asked, [*earlier, *attempts], config, problems.tests, ngrams=problems.ngrams)
    write_jsonl(folder.data, map(row_of, chosen.rows))
    summary = _summary(config, attempts, rates, chosen, problems, seed)
    _plot(folder, summary, rates)
    summary.write(folder.summary)
    return summary


def rates_of(problems: Sequence[Example], attempts: Sequence[Attempt]) -> list[ProblemRate]:
    """The pass rate of each problem."""
    made: dict[str, list[bool]] = {}
    for attempt in attempts:
        made.setdefault(attempt.id, []).append(attempt.correct)
    return [
        ProblemRate(p.id, p.question, p.answer, p.task, len(made.get(p.id, ())), sum(made.get(p.id, ())))
        for p in problems
    ]


def pass_points(rates: Sequence[ProblemRate]) -> tuple[PassPoint, ...]:
    """pass@k at k = 1, 2, 4, ... and at all attempts.

    >>> rates = [ProblemRate("a", "?", "1", "data", 2, 1), ProblemRate("b", "?", "1", "data", 2, 0)]
    >>> [(point.k, point.rate) for point in pass_points(rates)]
    [(1, 0.25), (2, 0.5)]
    """
    most = min((rate.attempts for rate in rates), default=0)
    ks = sorted({2**i for i in range(most.bit_length()) if 2**i <= most} | ({most} if most else set()))
    points = []
    for k in ks:
        rate = mean([pass_at_k(problem.attempts, problem.correct, k) for problem in rates])
        points.append(PassPoint(k=k, rate=rate, ci95=rounded(wilson(rate * len(rates), len(rates)))))
    return tuple(points)


def _summary(
    config: RunConfig,
    attempts: Sequence[Attempt],
    rates: Sequence[ProblemRate],
    chosen: Selected,
    problems: Problems,
    seed: int,
) -> SampleSummary:
    return SampleSummary(
        version=VERSION,
        model=config.model.model_name_or_path,
        dataset=config.data.dataset,
        seed=seed,
        problems=len(rates),
        attempts=len(attempts),
        correct=sum(attempt.correct for attempt in attempts),
        accepted=sum(attempt.accepted for attempt in attempts),
        tokens=sum(attempt.tokens for attempt in attempts),
        truncated=sum(attempt.stopped == "length" for attempt in attempts),
        always=sum(rate.correct == rate.attempts for rate in rates),
        sometimes=sum(0 < rate.correct < rate.attempts for rate in rates),
        never=sum(not rate.correct for rate in rates),
        pass_at=pass_points(rates),
        rows=len(chosen.rows),
        kept=chosen.kept,
        reflections=chosen.reflections,
        duplicates=chosen.duplicates,
        surplus=chosen.surplus,
        unsound=chosen.unsound,
        leaked=chosen.leaked + problems.leaked,
        sample=config.sample.model_dump(mode="json"),
        versions=environment.versions(),
    )


def _plot(folder: SampleFolder, summary: SampleSummary, rates: Sequence[ProblemRate]) -> None:
    k = max(rate.attempts for rate in rates)
    solved = [sum(rate.correct == right for rate in rates) for right in range(k + 1)]
    points = [(float(point.k), point.rate, point.ci95) for point in summary.pass_at]
    temperature = summary.sample["sample_temperature"]
    title = f"{summary.problems} training problems, {k} attempts each at temperature {temperature}"
    plots.attempts(title, solved, points, folder.plot)


def without_rows(summary: SampleSummary, folder: SampleFolder) -> DataError:
    """The error of samples that nothing can be trained on: says what was missing."""
    if not summary.correct:
        missing = f"no answer of {summary.attempts} is right"
        hint = "more --samples-per-problem, easier problems, or a model that solves some of them"
    else:
        missing = f"{summary.correct} of {summary.attempts} answers are right, and none of them is a valid trace"
        hint = "--worked-examples 2, or teach the format first: train --method sft on a few traces"
    return DataError(f"holds no row to train on: {missing}", where=str(folder.path), hint=hint, name="no_accepted_row")
