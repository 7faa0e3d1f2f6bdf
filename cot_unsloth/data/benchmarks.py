"""Test sets that people know by name, from the hub or from a file of the same rows.

Owns where each lies, how its rows read, and its sampling budget (in `config.BUDGETS`). They are for scoring
alone: none is ever trained on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cot_unsloth.config import DataConfig, EvaluateConfig
from cot_unsloth.core.errors import DataError
from cot_unsloth.core.types import Example, Reject, Trace
from cot_unsloth.data import files, layouts, splits
from cot_unsloth.data.layouts import cells

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """A test set."""

    hub_id: str
    config_name: str | None
    split: str
    read: Callable[[Row], tuple[str, str]]
    """A row's question and gold answer."""


def _gsm8k(row: Row) -> tuple[str, str]:
    example = layouts.example(row, "gsm8k", "")
    return example.question, example.answer


def _problem_answer(row: Row) -> tuple[str, str]:
    return str(row["problem"]).strip(), cells.gold(row["answer"], "answer")


def _gpqa(row: Row) -> tuple[str, str]:
    """Four choices in an order drawn by the question itself, so that it is the same in every run; the answer is a letter."""
    question = str(row["Question"]).strip()
    wrong = [str(row[f"Incorrect Answer {i}"]).strip() for i in (1, 2, 3)]
    right = str(row["Correct Answer"]).strip()
    choices = [right, *wrong]
    random.Random(question).shuffle(choices)
    lines = [f"({letter}) {choice}" for letter, choice in zip("ABCD", choices, strict=True)]
    text = "\n".join([question, "", *lines, "", "Answer with the letter of the right choice."])
    return text, "ABCD"[choices.index(right)]


BENCHMARKS: dict[str, Benchmark] = {
    "gsm8k": Benchmark("openai/gsm8k", "main", "test", _gsm8k),
    "math500": Benchmark("HuggingFaceH4/MATH-500", None, "test", _problem_answer),
    "aime24": Benchmark("HuggingFaceH4/aime_2024", None, "train", _problem_answer),
    "gpqa-diamond": Benchmark("Idavidrein/gpqa", "gpqa_diamond", "train", _gpqa),
}
"""The sources as their authors publish them; GPQA is gated, and asks that its questions not be shown in plain text."""


def load(wanted: EvaluateConfig, without: Collection[str] = ()) -> list[Example]:
    """The problems of the benchmark that the settings name, at most `eval_samples`, chosen by `eval_seed`.

    Args:
        wanted: names it, and the file to read it from in place of the hub.
        without: ids of questions to leave out.

    Raises:
        DataError: it cannot be read, or a row of it is not what it should be.
    """
    name = wanted.benchmark
    assert name is not None
    known = BENCHMARKS[name]
    source = DataConfig(
        dataset=wanted.benchmark_path or known.hub_id,
        dataset_config_name=None if wanted.benchmark_path else known.config_name,
        dataset_split=known.split,
    )
    try:
        examples = [_example(row, where, name) for where, row in files.read_rows(source)]
    except DataError as error:
        if wanted.benchmark_path is None:
            error.hint = (
                f"without the network, give --benchmark-path FILE with the rows of {known.hub_id}; {error.hint}"
            )
        raise
    if not examples:
        raise DataError("holds no rows", where=source.dataset, name="no_rows")
    return splits.distinct_questions(
        (e for e in examples if e.id not in without), wanted.eval_samples, wanted.eval_seed
    )


def _example(row: Any, where: str, name: str) -> Example:
    try:
        if isinstance(row, Reject):
            raise DataError(row.detail, where=where)
        question, answer = BENCHMARKS[name].read(row)
    except (KeyError, TypeError, layouts.RowError) as error:
        detail = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"is no row of {name}: {detail}",
            where=where,
            hint=f"the file must hold the columns of {BENCHMARKS[name].hub_id}",
        ) from error
    made = Example(layouts.question_id(question), question, Trace((), answer), answer, name, "test", where)
    return replace(made, where=f"benchmark:{name} {where}")
