"""Benchmarks: public test sets, read from the hub or from a file with the same rows. They are only used for scoring.

`config.benchmarks` lists them; here is how their rows are read.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from typing import cast

from cot_unsloth.config import BENCHMARKS, DataConfig, EvaluateConfig
from cot_unsloth.core.errors import DataError
from cot_unsloth.core.types import Example, Reject, Trace
from cot_unsloth.data import files, layouts, splits
from cot_unsloth.data.layouts import Row, cells
from cot_unsloth.data.rows import SourceRow


def _gsm8k(row: Row) -> tuple[str, str]:
    example = layouts.example(row, "gsm8k", "")
    return example.question, example.answer


def _cell(row: Row, name: str) -> str:
    """A cell that must hold text or a number.

    Raises:
        KeyError: there is no such column.
        RowError: it holds nothing; str() would make "None" of a null.
    """
    text = cells.text(row[name], name).strip()
    if not text:
        raise layouts.RowError("missing_field", f"{name} is empty")
    return text


def _problem_answer(row: Row) -> tuple[str, str]:
    question, answer = _cell(row, "problem"), cells.gold_text(row["answer"], "answer").strip()
    if not answer:
        raise layouts.RowError("missing_field", "answer is empty")
    return question, answer


def _gpqa(row: Row) -> tuple[str, str]:
    """Four choices, shuffled with the question as seed so that every run shows the same order; the answer is a letter.

    In the published rows the right answer always comes first.
    """
    question = _cell(row, "Question")
    wrong = [_cell(row, f"Incorrect Answer {number}") for number in (1, 2, 3)]
    right = _cell(row, "Correct Answer")
    choices = [right, *wrong]
    # Seeding with a text hashes all of it (SHA-512), unlike hash(), which is salted per process.
    random.Random(question).shuffle(choices)
    lines = [f"({letter}) {choice}" for letter, choice in zip("ABCD", choices, strict=True)]
    text = "\n".join([question, "", *lines, "", "Answer with the letter of the right choice."])
    return text, "ABCD"[choices.index(right)]


READERS: dict[str, Callable[[Row], tuple[str, str]]] = {
    "gsm8k": _gsm8k,
    "problem_answer": _problem_answer,
    "gpqa": _gpqa,
}
"""Functions from a row to its question and gold answer; they may raise KeyError, TypeError and RowError."""


def load(settings: EvaluateConfig, without: Collection[str] = ()) -> list[Example]:
    """The problems of the benchmark in the settings, at most `eval_samples`, drawn with `eval_seed`.

    Args:
        settings: with `benchmark` set; `benchmark_path` is a file to read in place of the hub.
        without: ids of questions to leave out.

    Raises:
        DataError: the benchmark cannot be read, or one of its rows has another form.
    """
    name = settings.benchmark
    assert name is not None
    benchmark = BENCHMARKS[name]
    source = DataConfig(
        dataset=settings.benchmark_path or benchmark.hub_id,
        dataset_config_name=None if settings.benchmark_path else benchmark.config_name,
        dataset_split=benchmark.split,
    )
    try:
        examples = [_example(row, name) for row in files.read_rows(source, split_is_given=False)]
    except DataError as error:
        if settings.benchmark_path is None:
            error.hint = (
                f"without the network, give --benchmark-path FILE with the rows of {benchmark.hub_id}; {error.hint}"
            )
        raise
    if not examples:
        raise DataError("holds no rows", where=source.dataset, name="no_rows")
    remaining = (example for example in examples if example.id not in without)
    return splits.distinct_questions(remaining, settings.eval_samples, settings.eval_seed)


def _example(source_row: SourceRow, name: str) -> Example:
    where, row = source_row
    benchmark = BENCHMARKS[name]
    if isinstance(row, Reject):
        raise DataError(row.detail, where=where)
    try:
        question, answer = READERS[benchmark.reader](cast(Row, row))
    except (KeyError, TypeError, layouts.RowError) as error:
        detail = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"is not a row of {name}: {detail}",
            where=where,
            hint=f"the file must have the columns of {benchmark.hub_id}",
        ) from error
    id_ = layouts.question_id(question)
    return Example(id_, question, Trace((), answer), answer, name, "test", f"benchmark:{name} {where}")
