"""The data of a run, read, split and rendered: all that is known before a model is loaded. Writes nothing.

Rows in = rows kept + rows rejected, over every step: reading, decontamination, `max_train_samples`, rendering.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cot_unsloth import tasks
from cot_unsloth.config import RunConfig, TrainConfig
from cot_unsloth.core.errors import DataError, InvariantError
from cot_unsloth.core.progress import bar, note
from cot_unsloth.core.results import Contamination
from cot_unsloth.core.types import Example, Reject, Sample
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
from cot_unsloth.prompts.render import Renderer, open_renderer


@dataclass(frozen=True)
class Prepared:
    """All that is known before a model is loaded."""

    loaded: Loaded
    renderer: Renderer
    train: tuple[Example, ...]
    samples: tuple[Sample, ...]
    """One for each of `train`, in its order."""
    test: tuple[Example, ...]
    """Every row held out."""
    test_samples: tuple[Sample, ...]
    """One for each of `test`, in its order."""
    rejects: tuple[Reject, ...]
    contamination: Contamination | None
    """Training rows that overlapped with the test rows; None where both come from a task."""

    @property
    def problems(self) -> list[Example]:
        """What is scored: each held-out question once, but for those whose gold answer is prose."""
        return with_comparable_answers(self.held_out_questions)

    @property
    def held_out_questions(self) -> list[Example]:
        """Each held-out question once."""
        return distinct_questions(self.test, len(self.test), 0)


def prepare(config: RunConfig, begun: Path | None = None) -> Prepared:
    """Read, split and render the data; writes nothing. `begun`: the template that a run was begun with, see `open_renderer`.

    Raises:
        InputError: settings, data, tokenizer or template cannot be used.
    """
    e = config.evaluate
    own = 0 if e.benchmark else e.eval_samples
    loaded = load_examples(config.data, seed=config.train.seed, eval_samples=own, eval_seed=e.eval_seed)
    if loaded.columns is not None:
        note(str(loaded.columns))
    if e.benchmark and e.eval_samples:
        named = benchmarks.load(e)
        loaded = replace(loaded, rows=loaded.rows + len(named), examples=(*loaded.examples, *named))
    renderer = open_renderer(config.model, config.data, begun=begun)
    clean, given_away, contamination = _decontaminate(loaded, config)
    chosen, unused = _limit(clean, config)
    unused += given_away
    with bar("render", len(loaded.examples) - len(unused)) as progress:
        train, test = (renderer.samples(rows, progress.advance) for rows in (chosen, loaded.in_split("test")))
    rejects = (*loaded.rejects, *train.rejects, *test.rejects, *unused)
    if not train.samples:
        raise _nothing_left(config, rejects)
    prepared = Prepared(loaded, renderer, train.kept, train.samples, test.kept, test.samples, rejects, contamination)
    kept = len(prepared.train) + len(prepared.test)
    if loaded.rows != kept + len(rejects):
        raise InvariantError(f"{loaded.rows} rows came in, {kept} kept and {len(rejects)} rejected")
    return prepared


def _decontaminate(loaded: Loaded, config: RunConfig) -> tuple[list[Example], list[Reject], Contamination | None]:
    """The training rows that do not give the test rows away; a task's cannot, by construction."""
    train, test = loaded.in_split("train"), loaded.in_split("test")
    if tasks.is_task_dataset(config.data.dataset) or not test:
        return train, [], None
    found = decontaminate.find_overlap(train, test)
    if not config.data.decontaminate:
        return train, [], found.counts(0)
    kept, rejects = decontaminate.remove_overlap(train, found, ngrams=config.evaluate.benchmark is not None)
    return kept, rejects, found.counts(len(rejects))


def _nothing_left(config: RunConfig, rejects: Sequence[Reject]) -> DataError:
    return DataError(
        f"no row is left to train on: {count_reasons(rejects)}",
        where=config.data.dataset,
        hint=f"the last, {rejects[-1].where}: {rejects[-1].detail}" if rejects else None,
        name="no_row_left",
    )


def _limit(examples: list[Example], config: RunConfig) -> tuple[list[Example], list[Reject]]:
    """At most max_train_samples, chosen by seed; the others are in the ledger too."""
    most = config.data.max_train_samples
    if most is None or most >= len(examples):
        return examples, []
    taken = set(random.Random(config.train.seed).sample(range(len(examples)), most))
    unused = [
        Reject(e.where, "not_sampled", f"max_train_samples is {most}") for i, e in enumerate(examples) if i not in taken
    ]
    return [e for i, e in enumerate(examples) if i in taken], unused


USUAL_STEPS = 100
"""Optimizer steps from which on fine-tuning is usually seen to change what a model does.

s1 took 315 (1,000 rows, batch 16, 5 epochs; arXiv 2501.19393), LIMA about 470 (1,000 rows, batch 32, 15 epochs; arXiv
2305.11206), our demo 1,500; Unsloth's notebooks take 60 to show that it runs, and say to take an epoch instead.
"""
FEW_STEPS = 50
"""Below as many, a run says so."""


def optimizer_steps(train: TrainConfig, rows: int) -> int:
    """How many optimizer steps a run on `rows` rows takes; at most so many where rows are packed.

    >>> optimizer_steps(TrainConfig(), rows=15)
    2
    """
    if train.max_steps > 0:
        return train.max_steps
    return math.ceil(math.ceil(rows / train.rows_per_step) * train.num_train_epochs)


def describe_steps(train: TrainConfig, rows: int) -> str:
    """The steps of a run, and what is usual where they are too few to teach much.

    >>> describe_steps(TrainConfig(), rows=15).partition(";")[0]
    '2 optimizer steps (15 rows, batch 8, 1 epoch)'
    """
    steps, epochs = optimizer_steps(train, rows), train.num_train_epochs
    how_long = "--max-steps" if train.max_steps > 0 else f"{epochs:g} epoch{'s' * (epochs != 1)}"
    packed = ", fewer when packed" if train.packing and train.max_steps <= 0 else ""
    line = f"{steps:,} optimizer step{'s' * (steps != 1)} ({rows:,} row{'s' * (rows != 1)}, batch {train.rows_per_step}, {how_long}{packed})"
    if steps >= FEW_STEPS:
        return line
    raise_it = "--max-steps" if train.max_steps > 0 else "--num-train-epochs, or add rows"
    return f"{line}; so few teach next to nothing, runs usually take {USUAL_STEPS} or more: raise {raise_it}"


def announce(prepared: Prepared, config: RunConfig) -> None:
    """The data, in a few lines."""
    lengths = [len(sample.ids) for sample in prepared.samples]
    supervised = sum(sample.supervised for sample in prepared.samples)
    why = f" ({count_reasons(prepared.rejects)})" if prepared.rejects else ""
    note(
        f"rows: {prepared.loaded.rows} in = {len(lengths)} train + {len(prepared.test)} test + {len(prepared.rejects)} rejected{why}"
    )
    asked, found = config.evaluate.eval_samples, len(prepared.held_out_questions)
    prose = found - len(prepared.problems)
    if prose:
        note(describe_prose_answers(prose, found))
    if found < asked and (prose < found or not found):
        note(
            f"scoring: {asked} problems asked for, {found} held out"
            + ("; nothing will be scored" if not found else "")
            + " (--test-fraction holds out more)"
        )
    note(f"tokens: {sum(lengths):,} in all, {supervised:,} with loss, longest row {max(lengths)}")
    note(f"steps: {describe_steps(config.train, len(lengths))}")
