"""The problems that `grpo` and `rft` draw attempts at: each question of the training rows once, less those for development."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from cot_unsloth.config import RunConfig
from cot_unsloth.core.errors import DataError
from cot_unsloth.core.progress import note
from cot_unsloth.core.types import Example
from cot_unsloth.data import distinct_questions, with_comparable_answers
from cot_unsloth.data.splits import held_out_ids
from cot_unsloth.sampling.records import read_rates
from cot_unsloth.training import development


def split_for_grpo(
    config: RunConfig, rows: Sequence[Example], trained_before: Collection[str] = ()
) -> tuple[Sequence[Example], list[Example]]:
    """The problems to train on, and those for development; see `development.held_out`.

    Raises:
        DataError: none is left to train on.
    """
    distinct = questions(rows)
    chosen = solved_sometimes(config, distinct)
    if config.grpo.pass_rates:
        note(f"pass rates: {len(chosen)} of {len(distinct)} problems were sometimes solved, and are kept")
    return development.held_out(chosen, config.grpo.dev_problems, config.train.seed, trained_before)


def count(config: RunConfig, rows: Sequence[Example]) -> int:
    """The number of problems that `grpo` or `rft` trains on; `rft` also sets aside a few as worked examples.

    Raises:
        DataError: none is left to train on.
    """
    problems = questions(rows)
    if config.train.method == "grpo":
        problems, most = solved_sometimes(config, problems), config.grpo.dev_problems
    else:
        most = config.sample.development_problems
    return len(problems) - len(held_out_ids(problems, development.SHARE, most, config.train.seed))


def questions(rows: Sequence[Example]) -> list[Example]:
    """Each question of the training rows once, where its answer can be compared: rows may be several solutions of one."""
    comparable = with_comparable_answers(rows)
    return distinct_questions(comparable, len(comparable), 0)


def solved_sometimes(config: RunConfig, examples: Sequence[Example]) -> list[Example]:
    """The problems with a pass rate between 0 and 1; all problems if no pass rates are named.

    Raises:
        DataError: none is left.
    """
    path = config.grpo.pass_rates
    rates = {rate.id: rate.rate for rate in read_rates(path)} if path else {}
    chosen = [example for example in examples if not path or 0 < rates.get(example.id, 0) < 1]
    if not chosen:
        raise DataError(
            "no problem is left to train on",
            where=path or config.data.dataset,
            hint="sample more problems of this data set, with this seed" if path else "give problems with gold answers",
            name="no_problem_left",
        )
    return chosen
