"""From rows to Examples: every row is an Example with its split, or a Reject with its reason."""

from __future__ import annotations

import difflib
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cot_unsloth import tasks
from cot_unsloth.config import DataConfig
from cot_unsloth.core import answers, trace
from cot_unsloth.core.errors import DataError
from cot_unsloth.core.progress import note
from cot_unsloth.core.types import Example, Reject, Split
from cot_unsloth.data import files, layouts, splits
from cot_unsloth.data.rows import SourceRow, shorten

ROW = '{"question": "3 + 4?", "reasoning": "3 + 4 = 7", "answer": "7"}'
"""What a row may look like, for messages."""


@dataclass(frozen=True)
class Recognised:
    """How the rows of a file were read."""

    name: str
    """The layout."""
    rows: int
    """Rows that were read so."""
    roles: Mapping[str, tuple[str, ...]]
    """Each role, and the columns that it was read from."""
    unused: Mapping[str, int]
    """Columns that were used for nothing, and in how many rows they hold something."""
    notes: Mapping[str, int]
    """What else was left out, and in how many rows."""

    def __str__(self) -> str:
        """One line to announce it.

        >>> print(Recognised("alpaca", 9, {"question": ("instruction", "input")}, {"id": 9, "tags": 2}, {}))
        layout alpaca: question ← instruction + input; not used: id, tags (in 2 of 9 rows)
        """
        order = ("system", "history", "question", "options", "reasoning", "answer", "gold")
        roles = sorted(self.roles, key=lambda role: order.index(role) if role in order else len(order))
        read = ", ".join(f"{role} ← {' + '.join(self.roles[role])}" for role in roles)
        unused = ", ".join(column + self._share(count) for column, count in self.unused.items())
        notes = "".join(f"; {text}{self._share(count, always=True)}" for text, count in self.notes.items())
        return f"layout {self.name}: {read}" + (f"; not used: {unused}" if unused else "") + notes

    def _share(self, count: int, *, always: bool = False) -> str:
        return f" (in {count} of {self.rows} rows)" if always or count < self.rows else ""


@dataclass(frozen=True)
class Loaded:
    """Every row accounted for: `rows == len(examples) + len(rejects)`."""

    rows: int
    examples: tuple[Example, ...]
    rejects: tuple[Reject, ...]
    layout: Recognised | None = None
    """How they were read; None of a task's."""
    answers_only: tuple[str, ...] = ()
    """The first outputs of rows that were rejected because they hold no reasoning."""

    def of(self, split: Split) -> list[Example]:
        """The examples of one split."""
        return [example for example in self.examples if example.split == split]


def load_examples(data: DataConfig, *, seed: int, eval_samples: int, eval_seed: int) -> Loaded:
    """All examples of a data set, each with its split; rows without reasoning are rejected.

    Tasks give `world_samples` training and `eval_samples` test problems. A file's or hub's
    questions are split by hash, seeded by `eval_seed` and grouped by question.

    Raises:
        DataError: it cannot be read, is empty, or every row of it is rejected.
        ConfigError: a task is not understood.
    """
    if tasks.is_task_dataset(data.dataset):
        return _task_data(data, seed, eval_samples, eval_seed)
    loaded = _read(data, to_train_on=True)
    held_out = splits.held_out(loaded.examples, data.test_fraction, eval_samples, eval_seed)
    examples = tuple(replace(e, split="test" if e.id in held_out else "train") for e in loaded.examples)
    return replace(loaded, examples=examples)


def load_problems(
    data: DataConfig, *, eval_samples: int, eval_seed: int, without: Collection[str] = (), to_score_on: bool = True
) -> list[Example]:
    """Problems to score a model on that is not trained on this data: all of a file's questions are in play.

    Rows that hold an answer and no reasoning will do; those whose gold answer is prose are left out. How the rows
    were read is announced on stderr.

    Args:
        data: the data set.
        eval_samples: the most problems to take.
        eval_seed: chooses among them.
        without: ids of questions to leave out.
        to_score_on: whether answers are compared with the gold ones, which those that are prose are no use for.

    Raises:
        DataError: as `load_examples`, or every gold answer is prose.
    """
    if tasks.is_task_dataset(data.dataset):
        return tasks.generate(data.dataset, split="test", n=eval_samples, seed=eval_seed)
    loaded = _read(data, to_train_on=False)
    note(str(loaded.layout))
    if loaded.rejects:
        note(
            f"rows: {loaded.rows} in = {len(loaded.examples)} to score on + {len(loaded.rejects)} rejected ({count_reasons(loaded.rejects)})"
        )
    problems = with_comparable_answers(loaded.examples) if to_score_on else list(loaded.examples)
    if not problems:
        raise DataError(
            "every gold answer is prose, with which no arm can be scored by comparison",
            where=data.dataset,
            hint="name a column of short answers with --answer-column",
            name="prose_answers",
        )
    if len(problems) < len(loaded.examples):
        note(describe_prose_answers(len(loaded.examples) - len(problems), len(loaded.examples)))
    problems_left = (example for example in problems if example.id not in without)
    return splits.distinct_questions(problems_left, eval_samples, eval_seed)


def with_comparable_answers(examples: Iterable[Example]) -> list[Example]:
    """Those whose gold answer can be compared with another; prose cannot."""
    return [example for example in examples if not answers.is_prose(example.answer)]


def describe_prose_answers(prose: int, problems: int) -> str:
    """What to say of problems whose gold answers are prose.

    >>> describe_prose_answers(2, 9)
    'scoring: 2 of 9 gold answers are prose, with which no arm can be scored by comparison; they are left out'
    """
    rest = "they are left out"
    if prose == problems:
        rest = "nothing will be scored (--answer-column names short answers, --benchmark a test set)"
    return (
        f"scoring: {prose} of {problems} gold answers are prose, with which no arm can be scored by comparison; {rest}"
    )


def _read(data: DataConfig, *, to_train_on: bool) -> Loaded:
    """All rows of a file or hub data set, not yet split."""
    loaded = _rows_to_examples(files.read_rows(data), data, to_train_on)
    if not loaded.rows:
        raise DataError("holds no rows", where=data.dataset, name="no_rows")
    if not loaded.examples:
        raise _all_rejected(loaded, data)
    return loaded


def _task_data(data: DataConfig, seed: int, eval_samples: int, eval_seed: int) -> Loaded:
    train = tasks.generate(
        data.dataset,
        split="train",
        n=data.world_samples,
        seed=seed,
        error_rate=data.world_error_rate,
        clean_first=data.world_clean_first,
    )
    test = tasks.generate(data.dataset, split="test", n=eval_samples, seed=eval_seed) if eval_samples else []
    return Loaded(len(train) + len(test), (*train, *test), ())


def count_reasons(rejects: Iterable[Reject]) -> str:
    """How many rows were rejected for what, the most frequent reason first.

    >>> count_reasons([Reject("f:1", "too_long", ""), Reject("f:2", "too_long", ""), Reject("f:3", "broken_json", "")])
    '2 too_long, 1 broken_json'
    """
    return ", ".join(f"{n} {reason}" for reason, n in Counter(r.reason for r in rejects).most_common())


def _all_rejected(loaded: Loaded, data: DataConfig) -> DataError:
    first = loaded.rejects[0]
    worked = "" if not _answers_at_length(loaded) else (
        "end each answer in a line '#### 7' or in \\boxed{7}, so that what is before it is its reasoning; or "
    )  # fmt: skip
    if all(reject.reason == "no_reasoning" for reject in loaded.rejects):
        way_out = Counter(reject.detail.partition(": ")[2] for reject in loaded.rejects).most_common(1)[0][0]
        if "--reasoning-column" in way_out:
            way_out += f"; or write rows such as {ROW}"
        return DataError(
            "these rows hold answers but no reasoning, so there is nothing to teach a model to think with"
            f" ({loaded.layout})",
            where=data.dataset,
            hint=f"{worked}{way_out}; or score a model on them: cot-unsloth evaluate --model MODEL "
            f"--dataset {shlex.quote(data.dataset)} --out scores/NAME",
            name="no_reasoning",
        )
    name = loaded.layout.name if loaded.layout else data.data_format
    hint = f"the first, {first.where}, read as {name}: {first.detail}"
    if not {reject.reason for reject in loaded.rejects} <= _NOT_OF_SHAPE:
        hint += (
            f"; a row may look like {ROW}, or have its reasoning between {trace.COMMON_TAGS}; name columns with "
            "--question-column, --reasoning-column and --answer-column, or the layout with --data-format"
        )
    return DataError(
        f"all {loaded.rows} rows were rejected: {count_reasons(loaded.rejects)}",
        where=data.dataset,
        hint=hint,
        name="all_rows_rejected",
    )


def _answers_at_length(loaded: Loaded) -> bool:
    answered = [answer for answer in loaded.answers_only if answer.strip()]
    return sum(answers.is_prose(answer) for answer in answered) * 2 > len(answered)


_NOT_OF_SHAPE = {
    "tool_turn", "image_part", "no_loss", "two_system_prompts", "two_reasonings", "printed_array", "broken_json",
    "bad_unicode", "unknown_role", "no_correct_generation", "wrong_response",
}  # fmt: skip
"""Reasons that no other name of a column or layout does away with."""


@dataclass
class _Seen:
    """What was seen while rows were read."""

    rows: int = 0
    roles: dict[str, Counter[str]] = field(default_factory=dict)
    unused: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def add(self, reading: layouts.Reading) -> None:
        self.rows += 1
        for role, columns in reading.roles.items():
            self.roles.setdefault(role, Counter()).update(columns)
        self.unused.update(reading.unused)
        self.notes.update(set(reading.notes))

    @property
    def reasoning(self) -> list[str]:
        """The columns that rows were read to reason in."""
        return list(self.roles.get("reasoning", ()))

    def recognised(self, name: str) -> Recognised:
        roles = {role: tuple(columns) for role, columns in self.roles.items()}
        return Recognised(name, self.rows, roles, dict(self.unused), dict(self.notes))


def _rows_to_examples(given: Iterable[SourceRow], data: DataConfig, to_train_on: bool) -> Loaded:
    """Read each row in the layout asked for, or the one that the first rows suggest."""
    stream = (SourceRow(where, layouts.as_object(row)) for where, row in given)
    head = _head(stream)
    objects = [row for _, row in head if isinstance(row, dict)]
    named = layouts.Named.of(data)
    _check_named(objects, named, data)
    named = layouts.settled(objects, named)
    auto = data.data_format == "auto"
    layout = _detect(objects, named, data) if auto else data.data_format
    count, seen, unreasoned = 0, _Seen(), _Seen()
    examples: list[Example] = []
    rejects: list[Reject] = []
    answers_only: list[str] = []
    for where, row in (item for part in (head, stream) for item in part):
        count += 1
        if isinstance(row, Reject):
            rejects.append(row)
            continue
        try:
            if not isinstance(row, dict):
                raise layouts.RowError("not_an_object", f"the row is {layouts.kind(row, shown=False)}, not an object")
            reading = layouts.read(row, layout, where, named, strictly=not auto, thinking_tags=data.thinking_tags)
            if to_train_on and not reading.example.trace.parts:
                unreasoned.add(reading)
                answers_only += [reading.example.trace.output] if len(answers_only) < _LOOKED_AT else []
                raise layouts.RowError("no_reasoning", layouts.no_reasoning(row, reading.layout, named, seen.reasoning))
            seen.add(reading)
            examples.append(reading.example)
        except layouts.RowError as error:
            rejects.append(Reject(where, error.reason, str(error), shorten(row)))
    return Loaded(
        count,
        tuple(examples),
        tuple(rejects),
        (seen if examples else unreasoned).recognised(layout),
        tuple(answers_only),
    )


_LOOKED_AT = 50


def _head(stream: Iterator[SourceRow], objects: int = _LOOKED_AT) -> list[SourceRow]:
    """Rows up to the 50th that can be looked at."""
    head: list[SourceRow] = []
    for numbered in stream:
        head.append(numbered)
        objects -= isinstance(numbered[1], dict)
        if not objects:
            break
    return head


def _check_named(rows: list[dict[str, Any]], named: layouts.Named, data: DataConfig) -> None:
    """Columns that the settings name are there.

    Raises:
        DataError: one is not; those that are there are listed.
    """
    if not rows:
        return
    there = list(dict.fromkeys(str(name) for row in rows for name in row))
    absent = [(setting, name) for setting, name in named.columns.items() if not any(layouts.has(r, name) for r in rows)]
    if not absent:
        return
    by_case = {name.casefold(): name for name in there}
    near = {
        name: by_case[match] for _, name in absent for match in difflib.get_close_matches(name.casefold(), by_case, 1)
    }
    meant = "".join(f"; did you mean {near[name]!r} for {name!r}?" for _, name in absent if name in near)
    missing = ", ".join(f"--{setting.replace('_', '-')} {name}" for setting, name in absent)
    raise DataError(
        f"there is no such column: {missing}{meant}",
        where=data.dataset,
        hint=f"its columns: {', '.join(there)}",
        name="no_such_column",
    )


def _detect(rows: list[dict[str, Any]], named: layouts.Named, data: DataConfig) -> str:
    guesses = Counter(guess for row in rows if (guess := layouts.detect(row, named)))
    if guesses:
        return guesses.most_common(1)[0][0]
    if rows:
        columns = dict.fromkeys(str(name) for row in rows for name in row)
        empty = [name for name in columns if all(layouts.is_empty(row.get(name)) for row in rows)]
        blank = f"; {', '.join(empty)} {'is' if len(empty) == 1 else 'are'} empty in every row" if empty else ""
        raise DataError(
            f"its columns match no known layout: {', '.join(_names(rows[0]))}{_missing(rows[0], named)}{blank}",
            where=data.dataset,
            hint="name them with --question-column, --reasoning-column and --answer-column, or --messages-column; "
            f"or rename them: a row may look like {ROW}",
            name="unknown_layout",
        )
    return "messages"


def _names(row: dict[str, Any]) -> Iterator[str]:
    """The columns of a row; what stands in an object is named as the settings would name it."""
    for name, value in row.items():
        yield from (f"{name}.{inner}" for inner in value) if isinstance(value, dict) and value else (str(name),)


def _missing(row: dict[str, Any], named: layouts.Named) -> str:
    asks, answers = layouts.asking_and_answering(row, named)
    if asks is None:
        return "; none of them is a known column for the question"
    return f"; {asks!r} is the question, and none is a known column for the answer" if answers is None else ""
