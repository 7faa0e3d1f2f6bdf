"""Checks of rows: duplicates, answers that contradict their solution, lengths, tokens with loss.

Each check is a function from examples or samples to findings that name a few rows. Answers are compared as the scorer
compares them, so that a row is only reported if the scorer would call its answer wrong.
"""

from __future__ import annotations

import functools
import re
import shlex
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from cot_unsloth.core import answers
from cot_unsloth.core.answers.quantity import Quantity
from cot_unsloth.core.answers.quantity import quantity as read_quantity
from cot_unsloth.core.answers.quantity_equality import same_quantity
from cot_unsloth.core.findings import Finding
from cot_unsloth.core.results import Contamination
from cot_unsloth.core.samples import Samples
from cot_unsloth.core.types import Example, Reject
from cot_unsloth.data.column_report import ColumnReport
from cot_unsloth.data.duplicates import Duplicates
from cot_unsloth.data.layouts import REMEDIES
from cot_unsloth.storage.stored_rows import rows_at

_MAX_NAMED = 3
"""Most rows that a finding names."""
_MAX_SHOWN = 40
"""Most characters of an answer that a finding shows."""
_MIN_SUPERVISED_SHARE = 0.05
"""Share of tokens with loss below which most of the computation trains nothing."""


def _named(rows: Sequence[Example]) -> str:
    """The positions of the first rows, and how many more there are."""
    more = f" and {len(rows) - _MAX_NAMED} more" if len(rows) > _MAX_NAMED else ""
    return ", ".join(row.where for row in rows[:_MAX_NAMED]) + more


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line[:_MAX_SHOWN] + "…" * (len(line) > _MAX_SHOWN)


def _rows(n: int) -> str:
    return f"{n:,} row" + ("" if n == 1 else "s")


def layout(report: ColumnReport) -> Iterator[Finding]:
    """How the rows were read, and which columns were not used."""
    yield Finding("note", "layout", str(report))
    columns = [column for column in report.unused if not _IDENTIFIER.fullmatch(column)]
    if columns:
        many = len(columns) != 1
        yield Finding(
            "warning", "unused_columns", f"{len(columns)} column{'s' * many} {'hold' if many else 'holds'} data but {'are' if many else 'is'} "
            f"not used: {', '.join(columns[:8])}" + (f" and {len(columns) - 8} more" if len(columns) > 8 else ""),
            "", "name one with --question-column, --reasoning-column or --answer-column if it is needed",
        )  # fmt: skip


_IDENTIFIER = re.compile(r"(?:.*[_ -])?(?:id|uuid)|idx|index|unnamed: \d+", re.IGNORECASE)
"""Columns that number rows: not worth a warning, as the layout note lists them."""


def counts(rows_in: int, train: int, test: int, rejects: int) -> Iterator[Finding]:
    """How many rows are trained on, held out, and rejected."""
    yield Finding(
        "note", "rows", f"{rows_in:,} in = {train:,} to train on + {test:,} held out + {rejects:,} rejected or left out"
    )


def own_system_prompts(examples: Sequence[Example]) -> Iterator[Finding]:
    """Rows with their own system prompt, which chat, server and exported files do not use."""
    own, first, shared = 0, None, True
    for example in examples:
        first = example.system if not own and example.system is not None else first
        own += example.system is not None
        shared &= example.system is not None and example.system == first
    if first is not None:
        yield Finding(
            "warning", "own_system_prompts",
            f"{own:,} of {_rows(len(examples))} have their own system prompt; chat, serve and exported files send "
            + ("the one that all share" if shared else "the run's" if own < len(examples) else "none, because they differ"),
            "data.system_prompt",
            _to_send_always(first) if shared
            else "ask the model with the system prompt that its rows had",
        )  # fmt: skip


def _to_send_always(prompt: str) -> str:
    """A hint on how the system prompt of all rows becomes the run's. A long one is not shown cut off: it would be typed so."""
    if len(prompt) <= 60 and "\n" not in prompt:
        return f"to use it for other questions too: --system-prompt {shlex.quote(prompt)}"
    return f"to use it for other questions too, copy it, all {len(prompt):,} characters, to data.system_prompt in a settings file"


def stops(samples: Samples, ids: frozenset[int]) -> Iterator[Finding]:
    """Whether the last token of every row ends generation and carries loss. Otherwise the model would not learn to stop."""
    missing = sum(last not in ids or label != last for last, label in samples.last_tokens())
    if missing:
        yield Finding(
            "fault", "stop_not_supervised", f"{_rows(missing)} do not end in a token that generation stops at, with loss on it",
            "", "set --chat-template to one that ends the assistant's turn",
        )  # fmt: skip
    else:
        yield Finding("note", "stop_supervised", "every row ends in a token that generation stops at, with loss on it")


def duplicates(examples: Sequence[Example]) -> Iterator[Finding]:
    """Rows that occur twice, questions with different answers, and questions that are nearly the same."""
    duplicate_rows = Duplicates(examples)
    exact, differing = duplicate_rows.exact, duplicate_rows.differing
    if exact:
        yield Finding(
            "warning", "exact_duplicates", f"{_rows(len(exact))} repeat{'s' * (len(exact) == 1)} an earlier row word for word",
            _named(exact), "remove them: a repeated row is memorized",
        )  # fmt: skip
    if differing:
        yield Finding(
            "warning", "conflicting_answers", f"{_rows(len(differing))} repeat{'s' * (len(differing) == 1)} a question with a different answer",
            _named(differing), "keep the right one: the model is trained on both",
        )  # fmt: skip
    pairs, shown_pairs = duplicate_rows.near()
    if pairs:
        where = ", ".join(f"{first.where} and {second.where}" for first, second in shown_pairs)
        more = f" and {pairs - len(shown_pairs)} more pairs" if pairs > len(shown_pairs) else ""
        yield Finding(
            "warning", "near_duplicates", f"{pairs:,} pair{'s' * (pairs != 1)} of questions {'are' if pairs != 1 else 'is'} nearly the same",
            where + more, "keep one of each: otherwise a held-out problem may also be a training row",
        )  # fmt: skip


_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?")
_RESULT = re.compile(r"=\s*(?P<value>[^=\n]+)$")


@dataclass(frozen=True)
class Conclusion:
    """The result that the solution of an example ends in, compared with its answer."""

    differs: bool | None
    """Whether the result is another number or letter than the answer; None if that cannot be decided."""
    stated: str = ""
    """The result, if it differs."""
    undecided: Undecided | None = None
    """Why this cannot be decided."""


Undecided = Literal["no_solution", "answer", "comma", "ending", "earlier"]
_UNDECIDED: dict[Undecided, tuple[str, str]] = {
    "no_solution": ("row has no solution", "rows have no solution"),
    "answer": ("answer is not a number", "answers are not numbers"),
    "comma": (
        "answer has a decimal comma, so only the same text counts as right (187 is not 187,00)",
        "answers have a decimal comma, so only the same text counts as right (187 is not 187,00)",
    ),
    "ending": ("solution ends in no number", "solutions end in no number"),
    "earlier": ("solution states its answer before another number", "solutions state their answer before another number"),
}  # fmt: skip


def contradictions(examples: Sequence[Example]) -> Iterator[Finding]:
    """Rows whose answer differs from the result of their own solution or output, if both are numbers or letters of choices."""
    positions, undecided = array("Q"), Counter[Undecided]()
    stated: list[str] = []
    for position, example in enumerate(examples):
        result = conclusion(example)
        if result.undecided is not None:
            undecided[result.undecided] += 1
        if result.differs:
            positions.append(position)
            stated += [result.stated] if len(stated) < _MAX_NAMED else []
    wrong, checked = rows_at(examples, positions), len(examples) - undecided.total()
    if wrong:
        numbers = "; ".join(
            f"{row.where} ends in {_short(end)}, answer {_short(row.answer)}"
            for row, end in zip(wrong[:_MAX_NAMED], stated, strict=True)
        )
        yield Finding(
            "warning", "contradicted_answers",
            f"{_rows(len(wrong))} of {checked:,} that could be checked end{'s' * (len(wrong) == 1)} in another number or letter than the answer: {numbers}",
            _named(wrong), "look at them: an answer that does not follow from its solution trains the model to ignore its reasoning",
        )  # fmt: skip
    elif examples:
        why_not = ", ".join(f"{n:,} {_UNDECIDED[why][n != 1]}" for why, n in undecided.most_common())
        follow = ": each solution ends in its answer" if checked else ""
        yield Finding(
            "note",
            "answers_follow",
            f"{checked:,} of {_rows(len(examples))} could be checked{follow}"
            + (f"{'; not checked' if checked else ''}: {why_not}" if why_not else ""),
        )


def conclusion(example: Example) -> Conclusion:
    """Compare the output of an example, and the result of its solution, with its answer.

    The result is the answer that the last line marks, or what follows its last equals sign, or, if the answer's number
    occurs nowhere in the solution, the last number of the last line.
    """
    if (stated_output := _other_output(example)) is not None:
        return Conclusion(differs=True, stated=stated_output)
    text = "\n".join(part.text for part in example.trace.parts)
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), None)
    if last is None:
        return Conclusion(None, undecided="no_solution")
    result = answers.explicit_answer(last)
    if result is None:
        equation = _RESULT.search(last.rstrip(" .!"))
        result = equation["value"] if equation else None
    if result is not None and result.strip(" .$").replace(",", "") == example.answer:
        return _FOLLOWS  # the fast path of most rows
    expected, numbers = quantity(answers.gold_answer(example.answer)), _NUMBER.findall(last)
    if expected is None:
        return Conclusion(None, undecided="comma" if _DECIMAL_COMMA.fullmatch(example.answer.strip()) else "answer")
    if result is None:
        if not numbers:
            return Conclusion(None, undecided="ending")
        if any(_equals(expected, number) for number in _NUMBER.findall(text)):
            return _FOLLOWS if _equals(expected, numbers[-1]) else Conclusion(None, undecided="earlier")
        result = numbers[-1]
    stated = quantity(result)
    if stated is None:
        return Conclusion(None, undecided="ending")
    follows = same_quantity(expected, stated) or _rounded_or_rescaled(expected.value, stated.value)
    # The last line may verify its result: "120 / 1.5 = 80, and 80 * 1.5 = 120".
    follows = follows or any(_equals(expected, number) for number in numbers)
    return _FOLLOWS if follows else Conclusion(differs=True, stated=result.strip())


_DECIMAL_COMMA = re.compile(
    r"[-\u2212$\u20ac\u00a3 ]{0,3}(?:\d{1,3}(?:\.\d{3})+|\d{1,20}),\d{1,2}(?:\s?[^\d,.]{1,20})?"
)
_FOLLOWS = Conclusion(differs=False)
_CHOICE = re.compile(r"\(?[A-J]\)?\.?")


def _other_output(example: Example) -> str | None:
    """The answer that an example's output gives, if it is another number or letter than the gold one; else None."""
    output = example.trace.output
    if output == example.answer or not example.trace.parts:
        return None
    expected, stated = answers.gold_answer(example.answer), answers.explicit_answer(output) or output
    gold_number, number = quantity(expected), quantity(stated)
    if gold_number is not None and number is not None:
        is_same = same_quantity(gold_number, number) or _rounded_or_rescaled(gold_number.value, number.value)
        return None if is_same else stated
    letters = _CHOICE.fullmatch(expected.strip()) and _CHOICE.fullmatch(stated.strip())
    return stated if letters and expected.strip("() .") != stated.strip("() .") else None


@functools.lru_cache(maxsize=8192)  # most answers and results are small numbers, which many rows share
def quantity(text: str) -> Quantity | None:
    """`core.answers.quantity`, cached."""
    return read_quantity(text)


def _equals(expected: Quantity, number: str) -> bool:
    value = quantity(number)
    return value is not None and same_quantity(expected, value)


def _rounded_or_rescaled(answer: Fraction, stated: Fraction) -> bool:
    """Whether an answer is a result rounded to a whole number, or the same in cents, per cent, thousands or millions."""
    rounded = answer.denominator == 1 and abs(answer - stated) < 1
    return rounded or any(answer in (stated * scale, stated / scale) for scale in (100, 10**3, 10**6))


def rejected(rejects: Sequence[Reject], rows: int) -> Iterator[Finding]:
    """Rows that cannot be used, one finding for each reason; rows left out on purpose are not counted."""
    reasons: dict[str, _Rejected] = {}
    for reject in rejects:
        reasons.setdefault(reject.reason, _Rejected()).add(reject)
    for reason, some in sorted(reasons.items(), key=lambda item: -item[1].count):
        if reason in ("not_sampled", "contaminated"):
            continue
        first, *others = some.different.values()
        if reason == "too_long" and some.count > 1:
            message = f"{first.detail.partition(':')[0]} and the like: {some.by_section()}"
        else:
            others = [] if reason == "too_long" else others
            message = first.detail + "".join(f"; {other.where}: {other.detail}" for other in others)
        where = first.where + (f" and {some.count - 1:,} more" if some.count > 1 else "")
        yield Finding(
            "warning", reason, f"{_rows(some.count)} of {rows:,} cannot be used: {message}", where,
            (_HINTS | REMEDIES).get(reason, "fix the row, or leave it out; the others are kept"),
        )  # fmt: skip


@dataclass
class _Rejected:
    """The rows that were rejected for one reason, as a finding reports them."""

    count: int = 0
    different: dict[str, Reject] = field(default_factory=dict)
    """By detail, the first rows whose details differ, at most `_MAX_NAMED`."""
    cut_in: Counter[str] = field(default_factory=Counter)
    """Section in which a row would be cut → number of rows."""

    def add(self, reject: Reject) -> None:
        self.count += 1
        if len(self.different) < _MAX_NAMED:
            self.different.setdefault(reject.detail, reject)
        if match := _CUT_IN.search(reject.detail):
            self.cut_in[match[1]] += 1

    def by_section(self) -> str:
        """The sections in which the rows would be cut, with counts."""
        return "the cut would fall " + ", ".join(f"in the {name} of {n}" for name, n in self.cut_in.most_common())


_HINTS = {
    "too_long": "raise --max-seq-length, or shorten them; rows are dropped, never cut",
    "broken_json": "each line must be one JSON object",
    "not_utf8": "save the file as UTF-8",
    "no_reasoning": "the others are kept",
    "control_token": "take the token out of the text",
}
_CUT_IN = re.compile(r"in the (prompt|thinking|reflection|output|stop token)$")


def overlap(contamination: Contamination | None, *, by_words: bool) -> Iterator[Finding]:
    """Training rows that contain test questions. Rows that share words with one are reported only if `by_words` drops them."""
    if contamination is None:
        return
    exact, long = contamination.exact, contamination.ngram_13
    if exact or (long and by_words):
        dropped = contamination.dropped
        consequence = (
            f"{dropped:,} {'is' if dropped == 1 else 'are'} left out of training"
            if dropped
            else "they are kept, because decontaminate is off"
        )
        words = f", {long:,} share 13 words in a row with one" if by_words else ""
        yield Finding(
            "warning", "test_overlap",
            f"{exact:,} training {'row asks' if exact == 1 else 'rows ask'} a test question{words}: {consequence}",
            "", "remove them from the data: scores on questions seen in training mean nothing",
        )  # fmt: skip


def lengths(samples: Samples, budget: int) -> Iterator[Finding]:
    """Number of tokens, the share with loss, and answers longer than the generation budget of scoring."""
    total, supervised = int(samples.lengths.sum()), int(samples.supervised.sum())
    yield Finding(
        "note", "tokens",
        f"{total:,} tokens in {_rows(len(samples))}, {supervised:,} with loss ({supervised / total:.0%}); "
        f"longest row {samples.lengths.max():,}",
    )  # fmt: skip
    if supervised < _MIN_SUPERVISED_SHARE * total:
        yield Finding(
            "warning", "few_supervised_tokens", f"{supervised / total:.1%} of all tokens carry loss",
            "", "long prompts cost time and train nothing: shorten them, or the system prompt",
        )  # fmt: skip
    longer = int((samples.supervised > budget).sum())
    if longer > 0.02 * len(samples):
        most = samples.supervised.max()
        yield Finding(
            "warning", "budget_below_answers",
            f"{longer / len(samples):.0%} of the answers to train on have more than max_new_tokens = {budget} tokens: "
            "in scoring, such an answer is cut off and counts as wrong",
            "evaluate.max_new_tokens", f"--max-new-tokens {most}",
        )  # fmt: skip


def prose_golds(problems: Sequence[Example]) -> Iterator[Finding]:
    """Held-out problems whose gold answer is prose, which cannot be compared."""
    prose = [problem for problem in problems if answers.is_prose(problem.answer)]
    if prose:
        all_ = len(prose) == len(problems)
        yield Finding(
            "warning", "prose_answers",
            ("every held-out problem has" if all_ else f"{len(prose):,} of {len(problems):,} held-out problems have")
            + f" a prose answer, which cannot be scored by comparison; {'nothing is' if all_ else 'they are not'} scored",
            _named(prose), "name a column with short answers: --answer-column, or --benchmark gsm8k",
        )  # fmt: skip
