"""Reads rows as Examples: every row becomes an Example with its split, or a Reject with its reason."""

from __future__ import annotations

import difflib
import functools
import itertools
import shlex
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from cot_unsloth import tasks
from cot_unsloth.config import DataConfig
from cot_unsloth.core import answers, trace
from cot_unsloth.core.errors import DataError
from cot_unsloth.core.progress import note
from cot_unsloth.core.types import Example, Reject, Split
from cot_unsloth.data import files, layouts, splits
from cot_unsloth.data.column_report import ColumnCounts, ColumnReport
from cot_unsloth.data.layouts import cells
from cot_unsloth.data.rows import SourceRow, shorten
from cot_unsloth.storage.stored_rows import JoinedRows, Rows, StoredRows, rows_at

_SAMPLE_ROW = '{"question": "3 + 4?", "reasoning": "3 + 4 = 7", "answer": "7"}'
"""For messages."""
_SAMPLE_CONVERSATION = (
    '{"messages": [{"role": "user", "content": "3 + 4?"}, '
    '{"role": "assistant", "content": "<think>3 + 4 = 7</think>7"}]}'
)


@dataclass(frozen=True)
class Loaded:
    """Every row accounted for: `rows == len(examples) + len(rejects)`."""

    rows: int
    examples: Rows[Example]
    """On disk if there are many, so that each is unpickled when it is looked at."""
    rejects: Sequence[Reject]
    columns: ColumnReport | None = None
    """How the rows were read; None for generated problems."""
    answers_only: tuple[str, ...] = ()
    """The first outputs of rows that were rejected because they have no reasoning."""

    def in_split(self, split: Split) -> Sequence[Example]:
        """The examples of one split."""
        return rows_at(self.examples, self._positions[split])

    @functools.cached_property
    def _positions(self) -> dict[Split, array[int]]:
        positions: dict[Split, array[int]] = {split: array("Q") for split in get_args(Split)}
        for position, example in enumerate(self.examples):
            positions[example.split].append(position)
        return positions

    def with_problems(self, problems: Sequence[Example]) -> Loaded:
        """A copy with the problems of a benchmark added."""
        return replace(self, rows=self.rows + len(problems), examples=JoinedRows(self.examples, problems))


def load_examples(
    data: DataConfig, *, seed: int, eval_samples: int, eval_seed: int, to_train_on: bool = True
) -> Loaded:
    """All examples of a data set, each with its split; rows without reasoning are rejected if they are `to_train_on`.

    A task (`world:NAME`, `gym:NAME`) generates `world_samples` training and `eval_samples` test problems. Questions of files and hub
    data sets are split by hash, seeded with `eval_seed`, so that all rows of one question are on one side.

    Raises:
        DataError: the data cannot be read, are empty, or every row is rejected.
        ConfigError: there is no such task or layout.
    """
    if tasks.is_task_dataset(data.dataset):
        return _generate(data, seed, eval_samples, eval_seed)
    loaded = _read(data, to_train_on=to_train_on)
    held_out = splits.held_out_ids(loaded.examples, data.test_fraction, eval_samples, eval_seed)
    examples = loaded.examples.mapped(lambda e: replace(e, split="test") if e.id in held_out else e)
    return replace(loaded, examples=examples)


def load_problems(
    data: DataConfig,
    *,
    eval_samples: int,
    eval_seed: int,
    without: Collection[str] = (),
    to_score_on: bool = True,
    announced: bool = True,
) -> list[Example]:
    """Problems to score a model on that was not trained on this data, drawn from all of its questions.

    Rows need an answer but no reasoning. How the rows were read is announced on stderr.

    Args:
        data: the data set.
        eval_samples: how many problems to take at most.
        eval_seed: seed of the draw.
        without: ids of questions to leave out.
        to_score_on: whether to leave out problems whose gold answer is prose, which cannot be compared.
        announced: whether to say on stderr how the rows were read.

    Raises:
        DataError: as in `load_examples`; or every gold answer is prose.
    """
    if tasks.is_task_dataset(data.dataset):
        return tasks.generate(data.dataset, split="test", n=eval_samples, seed=eval_seed)
    loaded = _read(data, to_train_on=False)
    if announced:
        note(str(loaded.columns))
    if loaded.rejects:
        note(
            f"rows: {loaded.rows} in = {len(loaded.examples)} to score on + {len(loaded.rejects)} rejected ({count_reasons(loaded.rejects)})"
        )
    problems = with_comparable_answers(loaded.examples) if to_score_on else list(loaded.examples)
    if not problems:
        raise DataError(
            "every gold answer is prose, which cannot be compared with a model's answer",
            where=data.dataset,
            hint="name a column of short answers with --answer-column",
            name="prose_answers",
        )
    if len(problems) < len(loaded.examples):
        note(describe_prose_answers(len(loaded.examples) - len(problems), len(loaded.examples)))
    remaining = (example for example in problems if example.id not in without)
    return splits.distinct_questions(remaining, eval_samples, eval_seed)


def load_first_rows(data: DataConfig, most: int = 2000, *, to_train_on: bool = False) -> Loaded:
    """The first rows of files, to inspect them; rows without reasoning are rejected if they are `to_train_on`.

    No question is held out.

    Raises:
        DataError: as in `load_examples`.
    """
    return _require_rows(_rows_to_examples(itertools.islice(files.read_rows(data), most), data, to_train_on), data)


def with_comparable_answers(examples: Iterable[Example]) -> list[Example]:
    """The examples whose answers can be judged: by their task, or by comparison with a gold answer that is not prose."""
    return [example for example in examples if example.problem is not None or not answers.is_prose(example.answer)]


def describe_prose_answers(prose: int, problems: int) -> str:
    """A note on problems whose gold answer is prose.

    >>> print(describe_prose_answers(2, 9))
    scoring: 2 of 9 gold answers are prose, which cannot be compared with a model's answer; they are left out
    """
    consequence = "they are left out"
    if prose == problems:
        consequence = "nothing will be scored (--answer-column names short answers, --benchmark a test set)"
    return f"scoring: {prose} of {problems} gold answers are prose, which cannot be compared with a model's answer; {consequence}"


def _read(data: DataConfig, *, to_train_on: bool) -> Loaded:
    """All rows of files or a hub data set, not yet split.

    Raises:
        DataError: there are no rows, or no row can be used.
    """
    return _require_rows(_rows_to_examples(files.read_rows(data), data, to_train_on), data)


def _require_rows(loaded: Loaded, data: DataConfig) -> Loaded:
    if not loaded.rows:
        raise DataError("holds no rows", where=data.dataset, name="no_rows")
    if not loaded.examples:
        raise _all_rejected(loaded, data)
    return loaded


def _generate(data: DataConfig, seed: int, eval_samples: int, eval_seed: int) -> Loaded:
    train = tasks.generate(
        data.dataset,
        split="train",
        n=data.world_samples,
        seed=seed,
        error_rate=data.world_error_rate,
        clean_first=data.world_clean_first,
    )
    test = tasks.generate(data.dataset, split="test", n=eval_samples, seed=eval_seed) if eval_samples else []
    return Loaded(len(train) + len(test), JoinedRows(train, test), ())


def count_reasons(rejects: Iterable[Reject]) -> str:
    """How many rows were rejected for each reason, the most frequent first.

    >>> count_reasons([Reject("f:1", "too_long", ""), Reject("f:2", "too_long", ""), Reject("f:3", "broken_json", "")])
    '2 too_long, 1 broken_json'
    """
    return ", ".join(f"{n} {reason}" for reason, n in Counter(r.reason for r in rejects).most_common())


def _all_rejected(loaded: Loaded, data: DataConfig) -> DataError:
    first = loaded.rejects[0]
    mark_answers = "" if not _has_prose_answers(loaded) else (
        "end each answer in a line '#### 7' or in \\boxed{7}, so that what is before it is its reasoning; or "
    )  # fmt: skip
    if all(reject.reason == "no_reasoning" for reject in loaded.rejects):
        advice = Counter(reject.detail.partition(": ")[2] for reject in loaded.rejects).most_common(1)[0][0]
        if "--reasoning-column" in advice:
            advice += f"; or write rows such as {_SAMPLE_ROW}"
        return DataError(
            "these rows hold answers but no reasoning, so there is nothing to teach a model to reason with"
            f" ({loaded.columns})",
            where=data.dataset,
            hint=f"{mark_answers}{advice}; or score a model on them: cot-unsloth evaluate --model MODEL "
            f"--dataset {shlex.quote(data.dataset)} --out scores/NAME",
            name="no_reasoning",
        )
    name = loaded.columns.layout if loaded.columns else data.data_format
    reasons = {reject.reason for reject in loaded.rejects}
    hints = [f"the first, {first.where}, read as {name}: {first.detail}"]
    hints += dict.fromkeys(remedy for reason, remedy in layouts.REMEDIES.items() if reason in reasons)
    if not reasons <= _INDEPENDENT_OF_LAYOUT | layouts.REMEDIES.keys():
        hints.append(_how_rows_look(name, reasons))
    return DataError(
        f"all {loaded.rows} rows were rejected: {count_reasons(loaded.rejects)}",
        where=data.dataset,
        hint="; ".join(hints),
        name="all_rows_rejected",
    )


def _how_rows_look(layout: str, reasons: Collection[str]) -> str:
    """A hint for rows rejected for these reasons: what a row may look like, and the settings that change how rows are read."""
    if layout in layouts.BY_NAME and layouts.BY_NAME[layout].is_conversation:
        answer = "; --answer-column names a column that answers it" if "no_assistant_turn" in reasons else ""
        return f"a row may look like {_SAMPLE_CONVERSATION}{answer}"
    return (
        f"a row may look like {_SAMPLE_ROW}, or have its reasoning between {trace.COMMON_TAGS}; name columns with "
        "--question-column, --reasoning-column and --answer-column, or the layout with --data-format"
    )


def _has_prose_answers(loaded: Loaded) -> bool:
    outputs = [output for output in loaded.answers_only if output.strip()]
    return sum(answers.is_prose(output) for output in outputs) * 2 > len(outputs)


_INDEPENDENT_OF_LAYOUT = {
    "tool_turn", "image_part", "no_loss", "two_system_prompts", "two_reasonings", "printed_array", "broken_json",
    "bad_unicode", "no_correct_generation", "wrong_response", "no_answer",
}  # fmt: skip
"""Reasons that do not depend on the columns or the layout."""


_SAMPLE_SIZE = 50
"""Number of rows from which the layout, the columns and the meaning of choice numbers are detected."""
_MOST_ROWS = 100_000
"""Number of rows after which no more are read to learn the meaning of choice numbers."""


def _rows_to_examples(source_rows: Iterable[SourceRow], data: DataConfig, to_train_on: bool) -> Loaded:
    """Read each row with the layout that the settings name, or that most of the first rows match."""
    stream = (SourceRow(where, layouts.unwrap_conversation(row)) for where, row in source_rows)
    first_rows, named = _take_objects(stream), layouts.NamedColumns.from_config(data)
    while layouts.is_choice_numbering_open(objects := [row for _, row in first_rows if isinstance(row, dict)], named):
        if len(first_rows) > _MOST_ROWS or not (more := _take_objects(stream, len(first_rows))):
            break
        first_rows += more
    _check_columns_exist(objects, named, data)
    named = layouts.with_choice_numbering(objects, named)
    auto = data.data_format == "auto"
    layout = _detect(objects, named, data) if auto else data.data_format
    count, used, used_without_reasoning = 0, ColumnCounts(), ColumnCounts()
    examples, rejects = StoredRows[Example](), StoredRows[Reject]()
    answers_only: list[str] = []
    for where, row in itertools.chain(first_rows, stream):
        count += 1
        if isinstance(row, Reject):
            rejects.append(row)
            continue
        try:
            if not isinstance(row, dict):
                kind = layouts.describe_value(row, shown=False)
                raise layouts.RowError("not_an_object", f"the row is {kind}, not an object")
            read = layouts.read(row, layout, where, named, strictly=not auto, thinking_tags=data.thinking_tags)
            if to_train_on and not read.example.trace.parts:
                used_without_reasoning.add(read)
                answers_only += [read.example.trace.output] if len(answers_only) < _SAMPLE_SIZE else []
                detail = layouts.explain_missing_reasoning(row, read.layout, named, used.reasoning_columns)
                raise layouts.RowError("no_reasoning", detail)
            used.add(read)
            examples.append(read.example)
        except layouts.RowError as error:
            rejects.append(Reject(where, error.reason, str(error), shorten(row)))
    report = (used if examples else used_without_reasoning).report(layout)
    return Loaded(count, examples, rejects, report, tuple(answers_only))


def _take_objects(stream: Iterator[SourceRow], objects: int = _SAMPLE_SIZE) -> list[SourceRow]:
    """Rows up to the 50th that is an object."""
    rows: list[SourceRow] = []
    for source_row in stream:
        rows.append(source_row)
        objects -= isinstance(source_row.row, dict)
        if not objects:
            break
    return rows


def _check_columns_exist(rows: Sequence[layouts.Row], named: layouts.NamedColumns, data: DataConfig) -> None:
    """Check that the columns that the settings name exist.

    Raises:
        DataError: one does not; the message lists the columns that do.
    """
    if not rows:
        return
    absent = [
        (setting, name)
        for setting, name in named.columns.items()
        if not any(layouts.has_column(row, name) for row in rows)
    ]
    if not absent:
        return
    columns = list(dict.fromkeys(path for row in rows for path in _column_paths(row)))
    missing_columns = ", ".join(f"--{setting.replace('_', '-')} {name}" for setting, name in absent)
    enclosing = next((enclosing_list for _, name in absent if (enclosing_list := _enclosing_list(rows, name))), None)
    if enclosing is not None:
        column, holds_messages = enclosing
        remedy = (
            f"messages are read with --messages-column {column}"
            if holds_messages
            else "write the items that are needed into columns of their own"
        )
        raise DataError(
            f"there is no such column: {missing_columns}; {column!r} is a list, and what is inside a list cannot be named",
            where=data.dataset,
            hint=f"{remedy}; its columns: {', '.join(columns)}",
            name="no_such_column",
        )
    by_case = {name.casefold(): name for name in columns}
    similar = {
        name: by_case[match] for _, name in absent for match in difflib.get_close_matches(name.casefold(), by_case, 1)
    }
    suggestions = "".join(f"; did you mean {similar[name]!r} for {name!r}?" for _, name in absent if name in similar)
    raise DataError(
        f"there is no such column: {missing_columns}{suggestions}",
        where=data.dataset,
        hint=f"its columns: {', '.join(columns)}; {_without_names(absent)}",
        name="no_such_column",
    )


def _without_names(absent: Sequence[tuple[str, str]]) -> str:
    """What to type where the names come from a run or a settings file that was written for other data."""
    flags = " ".join(f"--{setting.replace('_', '-')} ''" for setting, _ in absent)
    return f"to have columns recognized instead: {flags}"


def _enclosing_list(rows: Sequence[layouts.Row], name: str) -> tuple[str, bool] | None:
    """The list that `name` reaches into, as `turns` for `turns.0.text`, and whether it holds objects; None if there is none."""
    parts = name.split(".")
    for column in (".".join(parts[:end]) for end in range(1, len(parts))):
        values = [cells.to_python(layouts.Columns(row).value(column)) for row in rows]
        if any(isinstance(value, list | tuple) for value in values):
            return column, any(cells.looks_like_list(value) for value in values)
    return None


def _detect(rows: Sequence[layouts.Row], named: layouts.NamedColumns, data: DataConfig) -> str:
    """The layout that most rows match.

    Raises:
        DataError: no row matches any.
    """
    matches = Counter(layout for row in rows if (layout := layouts.detect(row, named)))
    if matches:
        return matches.most_common(1)[0][0]
    if rows:
        columns = dict.fromkeys(str(name) for row in rows for name in row)
        empty = [name for name in columns if all(layouts.is_empty(row.get(name)) for row in rows)]
        blank = f"; {', '.join(empty)} {'is' if len(empty) == 1 else 'are'} empty in every row" if empty else ""
        raise DataError(
            f"its columns match no known layout: {', '.join(_column_paths(rows[0]))}{_missing_role(rows[0], named)}{blank}",
            where=data.dataset,
            hint="name them with --question-column, --reasoning-column and --answer-column, or --messages-column; "
            f"or rename them: a row may look like {_SAMPLE_ROW}",
            name="unknown_layout",
        )
    return "messages"  # no row is an object: any layout rejects them all


def _column_paths(row: layouts.Row) -> Iterator[str]:
    """The columns of a row; those inside an object as the settings would name them, `item.answer`."""
    for name, value in row.items():
        yield from (f"{name}.{inner}" for inner in value) if isinstance(value, dict) and value else (str(name),)


def _missing_role(row: layouts.Row, named: layouts.NamedColumns) -> str:
    question, answer = layouts.question_and_answer_columns(row, named)
    if question is None:
        return "; none of them is a known column for the question"
    return f"; {question!r} is the question, and none is a known column for the answer" if answer is None else ""
