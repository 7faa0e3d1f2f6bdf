"""The data of a run, read, split and rendered, before a model is loaded. Writes nothing but the cache of rendered rows.

Rows in = rows kept + rows rejected, over every step: reading, decontamination, `max_train_samples`, rendering.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cot_unsloth import tasks
from cot_unsloth.config import RunConfig
from cot_unsloth.config.starter import USUAL_STEPS
from cot_unsloth.core.errors import DataError, InvariantError
from cot_unsloth.core.progress import bar, note
from cot_unsloth.core.results import Contamination
from cot_unsloth.core.samples import Samples
from cot_unsloth.core.types import Example, Reject
from cot_unsloth.data import (
    Loaded,
    benchmarks,
    count_reasons,
    decontaminate,
    describe_prose_answers,
    distinct_questions,
    load_examples,
    with_comparable_answers,
)
from cot_unsloth.evaluation.problems import not_trained_on, trained_questions
from cot_unsloth.models.adapter_files import starts_of, training_runs
from cot_unsloth.prompts.opening import open_renderer
from cot_unsloth.prompts.render import Renderer
from cot_unsloth.storage.stored_rows import JoinedRows, StoredRows, rows_at, rows_where, rows_without
from cot_unsloth.training import development, rendered_cache, training_problems


@dataclass(frozen=True)
class Prepared:
    """The data of a run, ready for training and scoring."""

    loaded: Loaded
    renderer: Renderer
    train: Sequence[Example]
    samples: Samples
    """One for each of `train`, in its order."""
    test: Sequence[Example]
    """All held-out rows."""
    test_samples: Samples
    """One for each of `test`, in its order."""
    rejects: Sequence[Reject]
    contamination: Contamination | None
    """The overlap of training rows with test rows; None if both come from a task, which keeps them separate."""
    trained_before: Collection[str] = ()
    """Ids of the questions that the model was trained on before this run, by runs that it continues."""

    @property
    def problems(self) -> list[Example]:
        """The problems to score: each held-out question once, without those whose gold answer is prose."""
        return with_comparable_answers(self.held_out_questions)

    @property
    def held_out_questions(self) -> list[Example]:
        """Each held-out question once."""
        return distinct_questions(self.test, len(self.test), 0)


def prepare(config: RunConfig, run_template: Path | None = None) -> Prepared:
    """Read, split and render the data.

    Args:
        config: the settings.
        run_template: the chat template stored in a run folder, when a run is resumed; see `open_renderer`.

    Raises:
        InputError: settings, data, tokenizer or template cannot be used.
    """
    e = config.evaluate
    held_out = 0 if e.benchmark else e.eval_samples
    loaded = load_examples(
        config.data,
        seed=config.train.seed,
        eval_samples=held_out,
        eval_seed=e.eval_seed,
        to_train_on=config.needs_traces,
    )
    if loaded.columns is not None:
        note(str(loaded.columns))
    if e.benchmark and e.eval_samples:
        problems = benchmarks.load(e)
        loaded = loaded.with_problems(problems)
    if config.needs_traces:
        _require_solutions(loaded, config)
    renderer = open_renderer(config.model, config.data, run_template=run_template)
    clean, overlapping, contamination = _decontaminate(loaded, config)
    before = trained_questions(run for start in starts_of(config) for run in training_runs(start))
    clean, scored, not_scored = _problems_to_score(clean, loaded.in_split("test"), config, before)
    selected, not_sampled = _limit(clean, config)
    unused = not_sampled, overlapping, not_scored
    with bar("render", len(loaded.examples) - sum(map(len, unused))) as progress:
        splits = selected, scored
        train, test = (rendered_cache.rendered(renderer, rows, progress.advance) for rows in splits)
    rejects = JoinedRows(loaded.rejects, train.rejects, test.rejects, *unused)
    if not train.samples:
        raise _nothing_left(config, rejects)
    prepared = Prepared(
        loaded, renderer, train.kept, train.samples, test.kept, test.samples, rejects, contamination, before
    )
    kept_rows = len(prepared.train) + len(prepared.test)
    if loaded.rows != kept_rows + len(rejects):
        raise InvariantError(f"{loaded.rows} rows came in, {kept_rows} kept and {len(rejects)} rejected")
    return prepared


def _require_solutions(loaded: Loaded, config: RunConfig) -> None:
    """Reject problems without solutions, such as reasoning-gym's; rows of files without reasoning were rejected before."""
    if not any(example.trace.parts for example in loaded.in_split("train")):
        raise DataError(
            "its problems have answers but no solutions, so there is nothing to imitate",
            where=config.data.dataset,
            hint="--method rft or grpo learns from the model's own attempts",
            name="no_reasoning",
        )


def _decontaminate(
    loaded: Loaded, config: RunConfig
) -> tuple[Sequence[Example], Sequence[Reject], Contamination | None]:
    """The training rows without those that overlap with the test rows. Rows of a task never overlap, by construction."""
    train, test = loaded.in_split("train"), loaded.in_split("test")
    if tasks.is_task_dataset(config.data.dataset) or not test:
        return train, [], None
    overlap = decontaminate.find_overlap(train, test)
    if not config.data.decontaminate:
        return train, [], overlap.counts(0)
    kept, rejects = decontaminate.remove_overlap(train, overlap, ngrams=config.evaluate.benchmark is not None)
    return kept, rejects, overlap.counts(len(rejects))


def _problems_to_score(
    rows: Sequence[Example], test: Sequence[Example], config: RunConfig, before: Collection[str]
) -> tuple[Sequence[Example], Sequence[Example], Sequence[Reject]]:
    """Rows to train on, problems to score, and unused rows: with `score_on: development`, the held-out ones.

    Development problems are training problems. Settings that are chosen by their accuracy on the held-out problems would
    make that accuracy too high.
    """
    if config.development.score_on == "held_out":
        return rows, *_without_trained(test, before)
    most, seed = config.sample.development_problems, config.train.seed
    train, chosen = development.held_out(rows, most, seed, before)
    not_scored = StoredRows(Reject(row.where, "held_out", "score_on is development") for row in test)
    left = {row.id for row in chosen}
    for row in rows_where(rows, lambda row: row.id in left):
        if row.id in left:
            left.remove(row.id)  # this row is scored
        else:  # further solutions of a development problem are not trained on either
            not_scored.append(Reject(row.where, "development", "its question is a development problem"))
    return train, [replace(row, split="test") for row in chosen], not_scored


def _without_trained(test: Sequence[Example], before: Collection[str]) -> tuple[Sequence[Example], Sequence[Reject]]:
    """The held-out rows without those that the model was trained on before this run, which become rejects.

    The rows of `sample` are such: a run that continues an adapter on its own samples of its training problems holds some out.
    """
    left = {row.id for row in not_trained_on(test, before)} if before else None
    if left is None or all(row.id in left for row in test):
        return test, []
    detail = "the model that this run begins with was trained on its question"
    rejects = StoredRows(Reject(row.where, "trained_on", detail) for row in test if row.id not in left)
    note(
        f"scoring: {len(rejects)} of {len(test)} held-out rows are left out, as the model that this run begins with was trained on "
        "them; evaluate RUN --dataset DATA scores it on others, --benchmark on a test set"
    )
    return rows_where(test, lambda row: row.id in left), rejects


def _nothing_left(config: RunConfig, rejects: Sequence[Reject]) -> DataError:
    return DataError(
        f"no row is left to train on: {count_reasons(rejects)}",
        where=config.data.dataset,
        hint=f"the last, {rejects[-1].where}: {rejects[-1].detail}" if rejects else None,
        name="no_row_left",
    )


def _limit(examples: Sequence[Example], config: RunConfig) -> tuple[Sequence[Example], Sequence[Reject]]:
    """At most max_train_samples rows, drawn with the training seed; the others become rejects."""
    most = config.data.max_train_samples
    if most is None or most >= len(examples):
        return examples, []
    selected = sorted(random.Random(config.train.seed).sample(range(len(examples)), most))
    unused = rows_without(examples, selected)
    detail = f"max_train_samples is {most}"
    return rows_at(examples, selected), StoredRows(Reject(e.where, "not_sampled", detail) for e in unused)


FEW_STEPS = 50
"""A run with fewer steps prints a warning."""


def examples_per_epoch(config: RunConfig, prepared: Prepared) -> int:
    """The rows, or the problems of `grpo`, that an epoch trains on; more than there will be if rows are packed.

    Raises:
        DataError: no problem is left for `grpo`.
    """
    if config.train.method == "grpo":
        return training_problems.count(config, prepared.train)
    return len(prepared.samples)


def optimizer_steps(config: RunConfig, rows: int) -> int:
    """Optimizer steps of a run on `rows` rows or problems; an upper bound if rows are packed.

    >>> optimizer_steps(RunConfig(), rows=15)
    2
    """
    if config.train.max_steps > 0:
        return config.train.max_steps
    return math.ceil(math.ceil(rows / config.examples_per_step) * config.train.num_train_epochs)


def describe_steps(config: RunConfig, rows: int) -> str:
    """The steps of a run, with advice if they are too few.

    >>> describe_steps(RunConfig(), rows=15).partition(":")[0]
    '2 optimizer steps (15 rows, batch 8, 1 epoch)'
    """
    train = config.train
    if train.method == "rft":
        return f"at most {config.sample.rounds} rounds; each trains on all attempts accepted so far"
    steps, epochs = optimizer_steps(config, rows), train.num_train_epochs
    how_long = "--max-steps" if train.max_steps > 0 else f"{epochs:g} epoch{'s' * (epochs != 1)}"
    packed = ", fewer when packed" if train.packing and train.max_steps <= 0 else ""
    unit = "problem" if train.method == "grpo" else "row"
    line = f"{steps:,} optimizer step{'s' * (steps != 1)} ({rows:,} {unit}{'s' * (rows != 1)}, batch {config.examples_per_step}, {how_long}{packed})"
    if steps >= FEW_STEPS:
        return line
    raise_it = "--max-steps" if train.max_steps > 0 else "--num-train-epochs, or add rows"
    return f"{line}: too few to change the model noticeably. Runs usually take {USUAL_STEPS} or more; raise {raise_it}"


def announce(prepared: Prepared, config: RunConfig) -> None:
    """Announce rows, problems, tokens and steps on stderr."""
    lengths = prepared.samples.lengths
    supervised = int(prepared.samples.supervised.sum())
    reasons = f" ({count_reasons(prepared.rejects)})" if prepared.rejects else ""
    note(
        f"rows: {prepared.loaded.rows} in = {len(lengths)} train + {len(prepared.test)} test + {len(prepared.rejects)} rejected{reasons}"
    )
    requested, held_out = config.evaluate.eval_samples, len(prepared.held_out_questions)
    prose = held_out - len(prepared.problems)
    if prose:
        note(describe_prose_answers(prose, held_out))
    if held_out < requested and (prose < held_out or not held_out):
        there = (
            f"{config.evaluate.benchmark} has {held_out}"
            if config.evaluate.benchmark
            else f"{held_out} held out{'' if held_out else '; nothing will be scored'} (--test-fraction holds out more)"
        )
        note(f"scoring: {requested} problems requested, {there}")
    note(f"tokens: {lengths.sum():,} in all, {supervised:,} with loss, longest row {lengths.max()}")
    note(f"steps: {describe_steps(config, examples_per_epoch(config, prepared))}")
