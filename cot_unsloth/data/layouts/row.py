"""A row as layouts see it: columns by role, in any capitalisation, and a record of which were used.

Owns the names that data sets give to a question, its reasoning and its answer. A layout asks for a role; what no
layout asked for is named as not used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cot_unsloth.config import DataConfig

Row = Mapping[str, Any]


class RowError(Exception):
    """A row that does not fit its layout."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Named:
    """Columns that the settings name for a role; they outrank what names suggest."""

    question: str | None = None
    reasoning: str | None = None
    answer: str | None = None
    system: str | None = None
    messages: str | None = None
    choices_by: Literal["index", "number", "text"] = "index"
    """What a whole number says of the right choice: its index from 0, its number from 1, or its text; no row shows it by
    itself, so the first rows of a file settle it."""

    @classmethod
    def of(cls, data: DataConfig) -> Named:
        """The columns that settings name."""
        return cls(
            data.question_column, data.reasoning_column, data.answer_column, data.system_column, data.messages_column
        )

    @property
    def columns(self) -> dict[str, str]:
        """Each setting that names a column, and the column."""
        roles = ("question", "reasoning", "answer", "system", "messages")
        return {f"{role}_column": name for role in roles if (name := getattr(self, role)) is not None}


def normal(name: str) -> str:
    """A column's name without case and punctuation.

    >>> normal("Complex_CoT"), normal("Ground-True Answer"), normal("answerKey")
    ('complexcot', 'groundtrueanswer', 'answerkey')
    """
    return re.sub(r"[\W_]+", "", name).casefold()


def is_empty(value: Any) -> bool:
    """Whether a cell holds nothing: null, blank text, an empty list, or the NaN that pandas makes of null."""
    if value is None or (isinstance(value, str) and value.strip().casefold() in ("", "nan", "<na>")):
        return True
    if isinstance(value, float) and math.isnan(value):
        return True
    return isinstance(value, Sequence | Mapping | set) and not value


def kind(value: Any, *, shown: bool = True) -> str:
    """What a value is, for messages, with the value itself.

    >>> kind([1, 2]), kind(None), kind(7, shown=False)
    ('a list ([1, 2])', 'null', 'a number')
    """
    if value is None:
        return "null"
    names = ((bool, "a truth value"), (int | float, "a number"), (str, "text"), (Mapping, "an object"))
    known = (*names, (Sequence, "a list"))
    name = next((name for type_, name in known if isinstance(value, type_)), f"of type {type(value).__name__}")
    written = repr(value)
    return f"{name} ({written[:60]}{'…' * (len(written) > 60)})" if shown else name


QUESTION = (
    "prompt", "question", "instruction", "problem", "query", "input", "user", "human", "userprompt", "userquery",
    "questiontext", "problemstatement", "questionstem", "exercise", "goal", "ask", "inputs",
    "sentence", "qtext", "ctx", "sent1", "q",
)  # fmt: skip
"""In order of preference, as `normal` writes them; so are the others."""
REASONING = (
    "reasoningchains", "reasoning", "thinkingtrajectories", "deepseekthinkingtrajectory", "thinkingtrajectory",
    "reasoningcontent", "thinking", "thinkingcontent", "think", "thinkcontent", "complexcot", "longcot", "cot",
    "cotcontent", "chainofthought", "chainofthoughts", "chainsofthought", "thought", "thoughts", "thoughtprocess",
    "rationale", "rationales", "explanation", "explanation1", "explanations", "exp", "steps", "reasoningsteps", "solutionsteps",
    "stepbystep", "stepbystepsolution", "stepbystepreasoning", "reasoningtrace", "reasoningtraces", "scratchpad",
    "reason", "analysis", "justification", "derivation", "trace", "deliberation", "facts", "decomposition",
    "workings", "working", "longanswer", "taskb",
)  # fmt: skip
_REASONING_ENDS = (
    "reasoning", "thinking", "cot", "rationale", "explanation", "chainofthought", "thought", "thoughts",
    "trajectory", "trajectories", "reasoningtrace", "reasoningcontent", "thinkingtrace", "thinkingcontent",
)  # fmt: skip
RESPONSE = (
    "response", "completion", "output", "assistant", "generatedsolution", "attempt", "deepseekattempt",
    "modelresponse", "modeloutput", "modelanswer", "generation", "generatedtext", "genans", "assistantresponse",
    "fullresponse", "reply", "chosen", "solution", "r1solution", "deepseeksolution", "outputs",
    "answercontent", "content", "finalresponse", "response1", "completion1", "generation1", "output1", "r1solution1",
    "generatedsolution1", "final",
)  # fmt: skip
GOLD = (
    "finalanswer", "groundtruth", "groundtruthanswer", "groundtrueanswer", "expectedanswer", "referenceanswer",
    "goldanswer", "goldenanswer", "correctanswer", "answer", "gold", "target", "answers", "targets", "answerkey",
    "numericanswer", "answervalue", "rewardmodel", "reference", "solution", "groundtruthsolution",
    "solutions", "lsolutions", "finaldecision", "finalans", "answersspans", "answerspans", "goldstandardsolution",
    "qans", "a",
)  # fmt: skip
OPTIONS = (
    "options", "choices", "choice", "answerchoices", "answeroptions", "alternatives", "multiplechoices", "mcoptions",
    "optionlist", "candidates", "endings",
)  # fmt: skip
"""The options of a question, in one column."""
_RESPONSE_ENDS = ("response", "completion", "output", "reply")
_GOLD_ENDS = ("answer", "groundtruth")
_TAGGED_ENDS = (*_RESPONSE_ENDS, "generation", "content", "solution", "prediction", "answer", "text")
_NO_ANSWER = ("incorrect", "wrong", "bad", "rejected", "has", "is", "no", "num", "distractor", "system")
"""How names begin that end like one, and hold none."""
_GOLD_ALONE = ("correct", "label", "result")
"""Names of a gold answer where no other column answers; beside a response they grade or sort it."""
SYSTEM = ("system", "systemprompt", "sys", "systemmessage", "systeminstruction")
ABOUT = ("input", "context")
"""What an instruction is about."""
BEFORE = (
    "body", "context", "contexts", "passage", "paragraph", "article", "story", "theory", "premises", "premise", "text",
)  # fmt: skip
"""Text that a question is asked about, and stands before it."""
_CLAIMS = ("hypothesis", "conclusion", "statement", "claim")
"""What is asked whether it follows, beside text that it follows from."""
_VERDICTS = (
    "iscorrect", "correct", "correctness", "answercorrect", "answeriscorrect", "r1correctness", "isright", "verified",
    "passed", "label",
)  # fmt: skip
"""What a row says of its own response."""
_SWITCHES = frozenset(
    [
        "on",
        "off",
        "true",
        "false",
        "yes",
        "no",
        "none",
        "n/a",
        "na",
        "low",
        "medium",
        "high",
        "auto",
        "default",
        "0",
        "1",
    ]
)
"""Values of a column that says how, or whether, a model reasoned, and is named as if it held the reasoning."""
MEDIA = ("image", "images", "video", "videos", "audio", "audios")


@dataclass
class Columns:
    """One row, and what was used of it so far."""

    row: Row
    named: Named = Named()
    roles: dict[str, list[str]] = field(default_factory=dict)
    """Each role, and the columns that it was read from."""
    used: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    """What was left out of this row and is no column: counted and announced."""
    unused_fields: set[str] = field(default_factory=set)
    """Fields of messages that were not used."""

    def __post_init__(self) -> None:
        self._known: dict[str, str | None] = {}
        self._by_name: dict[str, str] = {}
        for name, value in self.row.items():
            key = normal(str(name))
            taken = self._by_name.get(key)
            if taken is None or (is_empty(self.row[taken]) and not is_empty(value)) or name == key != taken:
                self._by_name[key] = name
        for name in self.row:  # "response (content)", as in Medical-R1-Distill
            self._by_name.setdefault(normal(re.sub(r"\(.*\)\s*$", "", str(name))), name)
        n = self.named
        if n.columns:
            question, reasoning, answer, system, messages = (
                self.spelt(column) for column in (n.question, n.reasoning, n.answer, n.system, n.messages)
            )
            self.named = Named(question, reasoning, answer, system, messages, n.choices_by)

    def spelt(self, column: str | None) -> str | None:
        """A column's name as the row spells it."""
        if column is None:
            return None
        return column if column in self.row else self._by_name.get(normal(column), column)

    def first(self, names: Sequence[str], *, without: Sequence[str | None] = ()) -> str | None:
        """The first of these columns that holds something."""
        return next(self.each(names, without=without), None)

    def each(self, names: Sequence[str], *, without: Sequence[str | None] = ()) -> Iterator[str]:
        """Those of these columns that hold something."""
        for name in names:
            column = self._by_name.get(name)
            if column is not None and column not in without and not is_empty(self.row[column]):
                yield column

    def present(self, names: Sequence[str]) -> str | None:
        """The first of these columns that there is, whatever it holds."""
        return next((column for name in names if (column := self._by_name.get(name)) is not None), None)

    def value(self, column: str | None) -> Any:
        """What a column holds; of a dotted name that is no column, what stands there inside an object."""
        if column is None:
            return None
        if column in self.row:
            return self.row[column]
        same = self._by_name.get(normal(column))
        if same is not None and "." not in column:
            return self.row[same]
        value: Any = self.row
        for name in column.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    def use(self, column: str, role: str, label: str | None = None) -> Any:
        """What a column holds, noted as read for a role."""
        same = column if column in self.row else self._by_name.get(normal(column), column.split(".")[0])
        self.used.add(same)
        labels = self.roles.setdefault(role, [])
        if (label or column) not in labels:
            labels.append(label or column)
        return self.value(column)

    def unused(self) -> list[str]:
        """Columns that hold something, and were used for nothing."""
        columns = [str(name) for name, value in self.row.items() if name not in self.used and not is_empty(value)]
        return [*columns, *sorted(self.unused_fields)]

    # Roles.

    def question(self) -> str | None:
        """See `_question`; a row is asked several times while its layout is found out."""
        if "question" not in self._known:
            self._known["question"] = self._question()
        return self._known["question"]

    def _question(self) -> str | None:
        """The column that asks."""
        if self.named.question is not None:
            return self.named.question
        column = self.first(QUESTION)
        if column is not None:
            return column
        ends = [self._by_name[name] for name in self._by_name if name.endswith(("question", "problem"))]
        ends += [name for name in map(str, self.row) if normal(name) == "source" and self._is_source(name)]
        if self.first(BEFORE) is not None:
            ends += self.each(_CLAIMS)
        return next((name for name in ends if isinstance(self.row[name], str) and self.row[name].strip()), None)

    def _is_source(self, column: str) -> bool:
        """`source` with `target` asks (as in FLAN); alone it tells where a row comes from."""
        return "target" in self._by_name and isinstance(self.row[column], str) and " " in self.row[column].strip()

    def reasoning(self) -> str | None:
        """See `_reasoning`; a row is asked several times while its layout is found out."""
        if "reasoning" not in self._known:
            self._known["reasoning"] = self._reasoning()
        return self._known["reasoning"]

    def _reasoning(self) -> str | None:
        """The column that reasons."""
        if self.named.reasoning is not None:
            return self.named.reasoning if not is_empty(self.value(self.named.reasoning)) else None
        taken = (self.named.question, self.named.answer)
        ends = [name for name in self._by_name if name.endswith(_REASONING_ENDS)]
        there = (c for c in self.each((*REASONING, *ends), without=taken) if reasons(self.row[c]))
        return next((c for c in there if normal(c) != "longanswer" or self.first(GOLD) is not None), None)

    def empty_reasoning(self) -> str | None:
        """The column that would reason, and holds nothing."""
        ends = [name for name in self._by_name if name.endswith(_REASONING_ENDS)]
        column = self.reasoning() or self.named.reasoning or self.present((*REASONING, *ends))
        empty = column is not None and (column == self.reasoning() or is_empty(self.value(column)))
        return column if empty else None

    def response(self) -> str | None:
        """See `_response`; a row is asked several times while its layout is found out."""
        if "response" not in self._known:
            self._known["response"] = self._response()
        return self._known["response"]

    def _response(self) -> str | None:
        """The column that answers at length; where an answer is named beside the reasoning, there is none."""
        named = self.named
        if named.answer is not None and (named.reasoning is not None or named.question is not None):
            return None
        taken = (named.question, named.reasoning, named.answer)
        reasoning = self.reasoning()
        prefix, trajectory, _ = normal(reasoning or "").partition("thinkingtrajector")
        paired = (f"{prefix}attempt",) if trajectory else ()  # s1K: one attempt for each model's trajectory
        others = (*taken, reasoning, self.question())
        return self.first((*paired, *RESPONSE), without=others) or self._ending(_RESPONSE_ENDS, others)

    def gold(self, *, beside: str | None) -> str | None:
        """The column with the gold answer alone, beside a response if there is one."""
        if self.named.answer is not None:
            there = beside != self.named.answer and not is_empty(self.value(self.named.answer))
            return self.named.answer if there else None
        names = GOLD if beside is not None else (*GOLD, *_GOLD_ALONE)
        taken = (beside, self.named.question, self.named.reasoning)
        return self.first(names, without=taken) or (self._ending(_GOLD_ENDS, taken) if beside is None else None)

    def _ending(self, ends: tuple[str, ...], taken: tuple[str | None, ...]) -> str | None:
        """A column whose name ends so (`deepseek_response`, `gpt_answer`), where none is named outright."""
        names = [name for name in self._by_name if name.endswith(ends) and not name.startswith(_NO_ANSWER)]
        return next((c for c in self.each(names, without=taken) if not isinstance(self.row[c], bool)), None)

    def tagged_elsewhere(self) -> Iterator[str]:
        """Columns that by their names hold a response, of whatever model or stage (`reannotated_assistant_content`)."""
        for name, column in self._by_name.items():
            if name.endswith(_TAGGED_ENDS) and not name.startswith(_NO_ANSWER) and isinstance(self.row[column], str):
                yield column

    def found_wrong(self) -> str | None:
        """The column that says that the row's own response is wrong (as in KTO and in OpenMathInstruct)."""
        for column in self.each(_VERDICTS, without=tuple(self.used)):
            value = self.row[column]
            written = isinstance(value, str) and normal(column) not in _GOLD_ALONE
            if value is False or (written and value.strip().casefold() in ("false", "incorrect", "wrong")):
                return column
        return None


def has(row: Row, column: str) -> bool:
    """Whether a row has a column that settings name, whatever it holds."""
    names = {normal(str(name)) for name in row}
    return column in row or normal(column) in names or Columns(row).value(column) is not None


def reasons(value: Any) -> bool:
    """Whether a cell can be reasoning: text or a list of steps, and no switch such as "on"."""
    if isinstance(value, str):
        return value.strip().casefold() not in _SWITCHES
    return isinstance(value, Sequence | Mapping) or hasattr(value, "tolist")
