"""A row as layouts see it: columns by role, whatever their capitalization, and a record of which were used.

A layout asks for a role (`columns.question_column()`) or for names, and marks what it reads with `columns.use`. Columns
that no layout has used are announced, so that nothing is dropped silently.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cot_unsloth.config import DataConfig
from cot_unsloth.data.layouts.column_names import (
    CLAIMS,
    CONTEXT,
    GOLD,
    GOLD_ENDINGS,
    GOLD_WITHOUT_RESPONSE,
    NOT_AN_ANSWER,
    QUESTION,
    REASONING,
    REASONING_ENDINGS,
    RESPONSE,
    RESPONSE_ENDINGS,
    SWITCHES,
    TAGGED_ENDINGS,
    VERDICTS,
)

Row = Mapping[str, object]
"""Column name → value: JSON's types, and from Arrow also dates, decimals, bytes and numpy arrays."""


class RowError(Exception):
    """A row that its layout cannot read; the row is rejected."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        """A short name in snake case, such as `empty_output`: rejects are counted by it, and scripts rely on it."""


@dataclass(frozen=True)
class NamedColumns:
    """Columns that the settings name (`--question-column` ...); they outrank what column names suggest."""

    question: str | None = None
    reasoning: str | None = None
    answer: str | None = None
    system: str | None = None
    messages: str | None = None
    choice_numbering: Literal["index", "number", "text"] = "index"
    """What a whole number in the answer column of a multiple-choice row is: the right option's index from 0, its number
    from 1, or its text. One row cannot show it; `with_choice_numbering` decides from the first rows of a file."""

    @classmethod
    def from_config(cls, data: DataConfig) -> NamedColumns:
        """The columns that the settings name."""
        return cls(
            data.question_column, data.reasoning_column, data.answer_column, data.system_column, data.messages_column
        )

    @property
    def columns(self) -> dict[str, str]:
        """Setting → column, for those that are given."""
        roles = ("question", "reasoning", "answer", "system", "messages")
        return {f"{role}_column": name for role in roles if (name := getattr(self, role)) is not None}


@functools.lru_cache(maxsize=4096)  # rows of a file have the same columns
def normalize_name(name: str) -> str:
    """A column's name in lower case, without punctuation.

    >>> normalize_name("Complex_CoT"), normalize_name("Ground-True Answer"), normalize_name("answerKey")
    ('complexcot', 'groundtrueanswer', 'answerkey')
    """
    return re.sub(r"[\W_]+", "", name).casefold()


@functools.lru_cache(maxsize=4096)
def _without_note(name: str) -> str:
    """A column's name without what is in parentheses at its end: "response (content)", as in Medical-R1-Distill."""
    return re.sub(r"\(.*\)\s*$", "", name)


def is_empty(value: object) -> bool:
    """Whether a cell holds nothing: null, blank text, an empty list, or NaN, which pandas writes for null (as text, too)."""
    if value is None or (isinstance(value, str) and value.strip().casefold() in ("", "nan", "<na>")):
        return True
    if isinstance(value, float) and math.isnan(value):
        return True
    return isinstance(value, Sequence | Mapping | set) and not value


def is_null_word(value: object) -> bool:
    """Whether a cell holds what programs write for null where text was expected: str(None), or a database's null."""
    return isinstance(value, str) and value.strip().casefold() in ("none", "null", "nil")


def describe_value(value: object, *, shown: bool = True) -> str:
    """The type of a value and the value, for messages.

    >>> describe_value([1, 2]), describe_value(None), describe_value(7, shown=False)
    ('a list ([1, 2])', 'null', 'a number')
    """
    if value is None:
        return "null"
    names = ((bool, "a truth value"), (int | float, "a number"), (str, "text"), (Mapping, "an object"))
    known = (*names, (bytes | bytearray, "bytes"), (Sequence, "a list"))
    name = next((name for type_, name in known if isinstance(value, type_)), f"of type {type(value).__name__}")
    written = repr(value)
    return f"{name} ({written[:60]}{'…' * (len(written) > 60)})" if shown else name


@dataclass
class Columns:
    """One row, and which of its columns have been used."""

    row: Row
    named: NamedColumns = NamedColumns()
    roles: dict[str, list[str]] = field(default_factory=dict)
    """Role (question, reasoning, answer, gold, system, history, options, chosen by) → columns it was read from."""
    used: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    """What else was left out of this row; counted and announced."""
    unused_fields: set[str] = field(default_factory=set)
    """Fields of messages that were not used, such as `messages[].name`."""

    def __post_init__(self) -> None:
        self._cache: dict[str, str | None] = {}
        self._by_name: dict[str, str] = {}
        for name, value in self.row.items():
            key = normalize_name(str(name))
            # Of columns that differ only in case and punctuation, one that is not empty counts, then one spelt in
            # lower case.
            taken = self._by_name.get(key)
            if taken is None or (is_empty(self.row[taken]) and not is_empty(value)) or name == key != taken:
                self._by_name[key] = name
        for name in self.row:
            self._by_name.setdefault(normalize_name(_without_note(str(name))), name)
        n = self.named
        if n.columns:
            question, reasoning, answer, system, messages = (
                self.actual_name(column) for column in (n.question, n.reasoning, n.answer, n.system, n.messages)
            )
            self.named = NamedColumns(question, reasoning, answer, system, messages, n.choice_numbering)

    def actual_name(self, column: str | None) -> str | None:
        """A column's name as the row spells it; the name itself if the row has no such column."""
        if column is None:
            return None
        return column if column in self.row else self._by_name.get(normalize_name(column), column)

    def first(self, names: Sequence[str], *, without: Sequence[str | None] = ()) -> str | None:
        """The first of these columns that is not empty."""
        return next(self.filled(names, without=without), None)

    def filled(self, names: Sequence[str], *, without: Sequence[str | None] = ()) -> Iterator[str]:
        """The named columns that are not empty; `names` are normalized."""
        if self._by_name.keys().isdisjoint(names):
            return  # most roles have no column, and a role has a dozen names
        for name in names:
            column = self._by_name.get(name)
            if column is not None and column not in without and not is_empty(self.row[column]):
                yield column

    def first_named(self, names: Sequence[str]) -> str | None:
        """The first of these columns that exists, even if it is empty."""
        return next((column for name in names if (column := self._by_name.get(name)) is not None), None)

    def value(self, column: str | None) -> Any:
        """The value of a column; `item.answer` also reaches into an object. None if there is none."""
        if column is None:
            return None
        if column in self.row:
            return self.row[column]
        same = self._by_name.get(normalize_name(column))
        if same is not None and "." not in column:
            return self.row[same]
        value: Any = self.row
        for name in column.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    def use(self, column: str, role: str, label: str | None = None) -> Any:
        """The value of a column, recorded as used for a role.

        Args:
            column: the column.
            role: one of `roles`.
            label: how the announcement names it; the column itself if None.
        """
        same = column if column in self.row else self._by_name.get(normalize_name(column), column.split(".")[0])
        self.used.add(same)
        labels = self.roles.setdefault(role, [])
        if (label or column) not in labels:
            labels.append(label or column)
        return self.value(column)

    def unused(self) -> list[str]:
        """Columns that are not empty and have not been used."""
        columns = [str(name) for name, value in self.row.items() if name not in self.used and not is_empty(value)]
        return [*columns, *sorted(self.unused_fields)]

    # Roles.

    def question_column(self) -> str | None:
        """The column that asks; None if there is none. Cached, as every layout asks for it."""
        if "question" not in self._cache:
            self._cache["question"] = self._find_question()
        return self._cache["question"]

    def _find_question(self) -> str | None:
        if self.named.question is not None:
            return self.named.question
        column = self.first(QUESTION)
        if column is not None:
            return column
        ends = [self._by_name[name] for name in self._by_name if name.endswith(("question", "problem"))]
        ends += [name for name in map(str, self.row) if normalize_name(name) == "source" and self._is_source(name)]
        if self.first(CONTEXT) is not None:
            ends += self.filled(CLAIMS)
        return next((name for name in ends if isinstance(text := self.row[name], str) and text.strip()), None)

    def _is_source(self, column: str) -> bool:
        """`source` is a question if there is a `target` (as in FLAN); otherwise it says where the row comes from."""
        text = self.row[column]
        return "target" in self._by_name and isinstance(text, str) and " " in text.strip()

    def reasoning_column(self) -> str | None:
        """The column with the reasoning; None if there is none. Cached."""
        if "reasoning" not in self._cache:
            self._cache["reasoning"] = self._find_reasoning()
        return self._cache["reasoning"]

    def _find_reasoning(self) -> str | None:
        if self.named.reasoning is not None:
            return self.named.reasoning if not is_empty(self.value(self.named.reasoning)) else None
        others = (self.named.question, self.named.answer)
        ends = [name for name in self._by_name if name.endswith(REASONING_ENDINGS)]
        columns = (c for c in self.filled((*REASONING, *ends), without=others) if may_be_reasoning(self.row[c]))
        # In PubMedQA `long_answer` is the reasoning beside `final_decision`; elsewhere it is the answer.
        return next((c for c in columns if normalize_name(c) != "longanswer" or self.first(GOLD) is not None), None)

    def empty_reasoning_column(self) -> str | None:
        """The column that is named like reasoning, and is empty in this row."""
        ends = [name for name in self._by_name if name.endswith(REASONING_ENDINGS)]
        column = self.reasoning_column() or self.named.reasoning or self.first_named((*REASONING, *ends))
        empty = column is not None and (column == self.reasoning_column() or is_empty(self.value(column)))
        return column if empty else None

    def response_column(self) -> str | None:
        """The column with a response at length; None if there is none, or if the settings name the answer's column. Cached."""
        if "response" not in self._cache:
            self._cache["response"] = self._find_response()
        return self._cache["response"]

    def _find_response(self) -> str | None:
        named = self.named
        if named.answer is not None and (named.reasoning is not None or named.question is not None):
            return None
        assigned = (named.question, named.reasoning, named.answer)
        reasoning = self.reasoning_column()
        prefix, trajectory, _ = normalize_name(reasoning or "").partition("thinkingtrajector")
        paired = (
            (f"{prefix}attempt",) if trajectory else ()
        )  # s1K-1.1: `deepseek_attempt` belongs to `deepseek_thinking_trajectory`
        others = (*assigned, reasoning, self.question_column())
        return self.first((*paired, *RESPONSE), without=others) or self._ending(RESPONSE_ENDINGS, others)

    def gold_column(self, *, beside: str | None) -> str | None:
        """The column that holds only the gold answer.

        Args:
            beside: the column of the response, so that names such as `label` are not taken for the answer.
        """
        if self.named.answer is not None:
            usable = beside != self.named.answer and not is_empty(self.value(self.named.answer))
            return self.named.answer if usable else None
        # A column `label` beside an empty `answer` says something else about the row.
        stands_in = beside is None and self.first_named(GOLD) is None
        names = (*GOLD, *GOLD_WITHOUT_RESPONSE) if stands_in else GOLD
        others = (beside, self.named.question, self.named.reasoning)
        filled = (column for column in self.filled(names, without=others) if not _is_link(self.row[column]))
        return next(filled, None) or (self._ending(GOLD_ENDINGS, others) if beside is None else None)

    def _ending(self, endings: tuple[str, ...], others: tuple[str | None, ...]) -> str | None:
        """A column whose name has one of these endings, such as `deepseek_response` and `gpt_answer`."""
        names = [name for name in self._by_name if name.endswith(endings) and not name.startswith(NOT_AN_ANSWER)]
        return next((c for c in self.filled(names, without=others) if not isinstance(self.row[c], bool)), None)

    def other_response_columns(self) -> Iterator[str]:
        """Columns whose names suggest a response of some model or stage, such as `reannotated_assistant_content`."""
        for name, column in self._by_name.items():
            if (
                name.endswith(TAGGED_ENDINGS)
                and not name.startswith(NOT_AN_ANSWER)
                and isinstance(self.row[column], str)
            ):
                yield column

    def negative_verdict(self) -> str | None:
        """The column that calls the row's own response wrong, as in KTO and OpenMathInstruct; None if none does."""
        return next((c for c in self.filled(VERDICTS, without=tuple(self.used)) if self._calls_wrong(c)), None)

    def _calls_wrong(self, column: str) -> bool:
        value = self.row[column]
        if normalize_name(column) == "label" and not isinstance(value, bool):
            # A number is a class, and a word may be one.
            return isinstance(value, str) and value.strip().casefold() in ("false", "incorrect", "wrong")
        return verdict(value) is False


_VERDICT_WORDS = {
    **dict.fromkeys(("true", "correct", "right", "yes", "t", "1", "1.0"), True),
    **dict.fromkeys(("false", "incorrect", "wrong", "no", "f", "0", "0.0"), False),
}


def verdict(value: object) -> bool | None:
    """Whether a verdict says that a response is right; None if it says neither, as a score between 0 and 1 does.

    >>> verdict(0), verdict("Correct"), verdict(0.5), verdict(None)
    (False, True, None, None)
    """
    if isinstance(value, bool | int | float):
        return bool(value) if value in (0, 1) else None
    return _VERDICT_WORDS.get(value.strip().casefold()) if isinstance(value, str) else None


def _is_link(value: object) -> bool:
    """Whether a cell is an address, as `reference` often is."""
    return isinstance(value, str) and re.fullmatch(r"https?://\S+", value.strip()) is not None


def has_column(row: Row, column: str) -> bool:
    """Whether a row has a column, even an empty one; `item.answer` also reaches into an object."""
    names = {normalize_name(str(name)) for name in row}
    return column in row or normalize_name(column) in names or Columns(row).value(column) is not None


def may_be_reasoning(value: object) -> bool:
    """Whether a cell can be reasoning: text or a list of steps.

    A setting ("on"), the reason why generation stopped, a verdict, a number of steps or an identifier is none.

    >>> [may_be_reasoning(value) for value in ("on", "stop", "3", "run-12", "3f2a77b0-1c", "3 + 4 = 7", "12/3")]
    [False, False, False, False, False, True, True]
    """
    if isinstance(value, str):
        word = value.strip().casefold()
        return word not in SWITCHES | _VERDICT_WORDS.keys() and _NO_REASONING.fullmatch(word) is None
    return isinstance(value, Sequence | Mapping) or hasattr(value, "tolist")


_NO_REASONING = re.compile(
    r"[-+]?\d[\d.,]*%?|[a-z][\w.:-]*\d[\w.:-]*|[\da-f-]{8,}"
    r"|stop|length|eos|end_turn|stop_sequence|max_tokens|tool_calls|content_filter|completed?|null|nil",
    re.ASCII,
)
