"""Checks of rows: duplicates, answers that contradict their solution, lengths, tokens with loss.

Each check is a function from examples or samples to findings that name a few rows. Answers are compared as the scorer
compares them, so that a row is only reported if the scorer would call its answer wrong.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from fractions import Fraction

from cot_unsloth.core import answers
from cot_unsloth.core.answers.quantity import Quantity
from cot_unsloth.core.answers.quantity import quantity as read_quantity
from cot_unsloth.core.answers.quantity_equality import same_quantity
from cot_unsloth.core.findings import Finding
from cot_unsloth.core.results import Contamination
from cot_unsloth.core.samples import Samples
from cot_unsloth.core.types import Example, Reject, Trace
from cot_unsloth.data.column_report import ColumnReport
from cot_unsloth.data.decontaminate import words

_MAX_NAMED = 3
"""Rows that a finding names."""
_MIN_SUPERVISED_SHARE = 0.05
"""Share of tokens with loss below which most of the computation trains nothing."""
_NEAR_DUPLICATE = 0.8
"""Jaccard similarity of word triples from which two questions are near duplicates. K. Lee and others (2022,
arXiv 2107.06499) use 0.8 of 5-grams for documents; questions are shorter."""


def _named(rows: Sequence[Example]) -> str:
    """The positions of the first rows, and how many more there are."""
    more = f" and {len(rows) - _MAX_NAMED} more" if len(rows) > _MAX_NAMED else ""
    return ", ".join(row.where for row in rows[:_MAX_NAMED]) + more


def _rows(n: int) -> str:
    return f"{n:,} row" + ("" if n == 1 else "s")


def _text(trace: Trace) -> str:
    return "\n".join([*(part.text for part in trace.parts), trace.output])


def layout(report: ColumnReport) -> Iterator[Finding]:
    """How the rows were read, and which columns were not used."""
    yield Finding("note", "layout", str(report))
    columns = [column for column in report.unused if not _IDENTIFIER.fullmatch(column)]
    if columns:
        many = len(columns) != 1
        yield Finding(
            "warning", "unused_columns", f"{len(columns)} column{'s' * many} {'hold' if many else 'holds'} data but {'are' if many else 'is'} "
            f"not used: {', '.join(columns[:8])}",
            "", "name one with --question-column, --reasoning-column or --answer-column if it is needed",
        )  # fmt: skip


_IDENTIFIER = re.compile(r"(?:.*[_ -])?(?:id|uuid)|idx|index|unnamed: \d+", re.IGNORECASE)
"""Columns that number rows: not worth a warning, as the layout note lists them."""


def counts(rows_in: int, train: int, test: int, rejects: int) -> Iterator[Finding]:
    """Where every row went."""
    yield Finding(
        "note", "rows", f"{rows_in:,} in = {train:,} to train on + {test:,} held out + {rejects:,} rejected or left out"
    )


def own_system_prompts(examples: Sequence[Example]) -> Iterator[Finding]:
    """Rows with their own system prompt, which chat, server and exported files do not use."""
    prompts = Counter(example.system for example in examples if example.system is not None)
    if prompts:
        most, n = prompts.most_common(1)[0]
        shared = n == len(examples)
        yield Finding(
            "warning", "own_system_prompts",
            f"{sum(prompts.values()):,} of {_rows(len(examples))} bring a system prompt of their own; chat, serve and exported files send "
            + ("the one that all share" if shared else "the run's" if sum(prompts.values()) < len(examples) else "none, for they differ"),
            "data.system_prompt",
            f"questions of others are asked with it by --system-prompt {most[:60]!r}{'…' * (len(most or '') > 60)}" if shared
            else "ask the model with the prompt that its rows had",
        )  # fmt: skip


def stops(samples: Samples, ids: frozenset[int]) -> Iterator[Finding]:
    """Whether the last token of every row is one that generation stops at, and carries loss. Without it a model never stops."""
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
    seen: set[tuple[str, str]] = set()
    first: dict[str, Example] = {}
    exact: list[Example] = []
    differing: list[Example] = []
    for example in examples:
        key = (example.id, " ".join(_text(example.trace).split()))
        if key in seen:
            exact.append(example)
        seen.add(key)
        before = first.setdefault(example.id, example)
        if before.answer != example.answer and not _agree(before.answer, example.answer):
            differing.append(example)
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
    near = near_duplicates(list(first.values()))
    if near:
        pairs = ", ".join(f"{one.where} and {other.where}" for one, other in near[:_MAX_NAMED])
        more = f" and {len(near) - _MAX_NAMED} more pairs" if len(near) > _MAX_NAMED else ""
        yield Finding(
            "warning", "near_duplicates", f"{len(near):,} pair{'s' * (len(near) != 1)} of questions {'are' if len(near) != 1 else 'is'} nearly the same",
            pairs + more, "keep one of each: otherwise a held-out problem may also be a training row",
        )  # fmt: skip


def _agree(gold: str, other: str) -> bool:
    """Whether two gold answers are equal, without the symbolic comparison, which is too slow for all rows."""
    return answers.compare(gold, other, answers.TimeLimit(0.0)) == "same"


_HASHES, _BANDS = 24, 8
"""MinHash with 8 bands of 3 hashes finds a pair of similarity 0.8 with probability 1 - (1 - 0.8^3)^8 = 99.7%."""
_PRIME = (1 << 61) - 1


def near_duplicates(examples: Sequence[Example]) -> list[tuple[Example, Example]]:
    """Pairs of questions that share most of their word triples, numbers included, by MinHash (A. Broder, 1997)."""
    import numpy as np

    grams = [_triples(example.question) for example in examples]
    numbers: dict[tuple[str, ...], int] = {}
    sets = [frozenset(numbers.setdefault(gram, len(numbers)) for gram in triples) for triples in grams]
    rng = np.random.default_rng(1)
    # A table of random numbers in place of hash functions, as the triples are numbered anyway.
    hashed = rng.integers(0, _PRIME, size=(len(numbers), _HASHES), dtype=np.int64)
    buckets: dict[tuple[int, ...], list[int]] = defaultdict(list)
    width = _HASHES // _BANDS
    for index, triples in enumerate(sets):
        # Short questions, such as "What is 3 plus 4?", share most triples by chance.
        if len(triples) < 3:
            continue
        # The minima of two sets are equal with a probability that is their Jaccard similarity.
        least = hashed[list(triples)].min(axis=0)
        for band in range(_BANDS):
            buckets[band, *least[band * width : (band + 1) * width].tolist()].append(index)
    pairs: set[tuple[int, int]] = set()
    for bucket in buckets.values():
        for one, other in itertools.pairwise(bucket):  # neighbours only: enough to report each member of a cluster
            shared = sets[one] & sets[other]
            if len(shared) >= _NEAR_DUPLICATE * len(sets[one] | sets[other]):
                pairs.add((one, other))
    return [(examples[one], examples[other]) for one, other in sorted(pairs)]


def _triples(question: str) -> set[tuple[str, ...]]:
    question_words = words(question)
    return set(zip(question_words, question_words[1:], question_words[2:], strict=False)) or {question_words}


_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?")
_RESULT = re.compile(r"=\s*(?P<value>[^=\n]+)$")


def contradictions(examples: Sequence[Example]) -> Iterator[Finding]:
    """Rows whose answer differs from the result of their own solution, if both are numbers."""
    checked, wrong = 0, []
    for example in examples:
        verdict = contradicts(example)
        checked += verdict is not None
        if verdict:
            wrong.append(example)
    if wrong:
        yield Finding(
            "warning", "contradicted_answers",
            f"{_rows(len(wrong))} of {checked:,} that could be checked end{'s' * (len(wrong) == 1)} in another number than the answer",
            _named(wrong), "look at them: an answer that does not follow from its solution trains the model to ignore its reasoning",
        )  # fmt: skip
    elif examples:
        yield Finding(
            "note",
            "answers_follow",
            f"{checked:,} of {_rows(len(examples))} could be checked{': each solution ends in its answer' if checked else ''}",
        )


def contradicts(example: Example) -> bool | None:
    """Whether the solution of an example ends in another number than its answer; None if that cannot be decided.

    Compared is the answer that the last line marks, or what follows its last equals sign, or, if the answer's number
    occurs nowhere in the solution, the last number of the last line.
    """
    text = "\n".join(part.text for part in example.trace.parts)
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), None)
    if last is None:
        return None
    result = answers.explicit_answer(last)
    if result is None:
        equation = _RESULT.search(last.rstrip(" .!"))
        result = equation["value"] if equation else None
    if result is not None and result.strip(" .$").replace(",", "") == example.answer:
        return False  # the fast path of most rows
    expected, numbers = quantity(answers.gold_answer(example.answer)), _NUMBER.findall(last)
    if expected is None:
        return None
    if result is None:
        if not numbers or any(_equals(expected, number) for number in _NUMBER.findall(text)):
            return None if not numbers or not _equals(expected, numbers[-1]) else False
        result = numbers[-1]
    stated = quantity(result)
    if stated is None:
        return None
    if same_quantity(expected, stated) or _rounded_or_rescaled(expected.value, stated.value):
        return False
    # The last line may verify its result: "120 / 1.5 = 80, and 80 * 1.5 = 120".
    return not any(_equals(expected, number) for number in numbers)


@functools.lru_cache(maxsize=8192)  # most answers and results are small numbers, which many rows share
def quantity(text: str) -> Quantity | None:
    """As `core.answers.quantity`."""
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
    reasons: dict[str, list[Reject]] = defaultdict(list)
    for reject in rejects:
        reasons[reject.reason].append(reject)
    for reason, rows_rejected in sorted(reasons.items(), key=lambda item: -len(item[1])):
        if reason in ("not_sampled", "contaminated"):
            continue
        if reason == "too_long":
            message = (
                f"{rows_rejected[0].detail.partition(':')[0]} and the like: {_by_section(rows_rejected)}"
                if len(rows_rejected) > 1
                else rows_rejected[0].detail
            )
            where = rows_rejected[0].where + (f" and {len(rows_rejected) - 1:,} more" if len(rows_rejected) > 1 else "")
        else:
            different = {reject.detail: reject for reject in reversed(rows_rejected)}
            first, *others = list(different.values())[::-1]
            message = first.detail + "".join(f"; {other.where}: {other.detail}" for other in others[: _MAX_NAMED - 1])
            where = first.where + (f" and {len(rows_rejected) - 1:,} more" if len(rows_rejected) > 1 else "")
        yield Finding(
            "warning", reason, f"{_rows(len(rows_rejected))} of {rows:,} cannot be used: {message}", where,
            _HINTS.get(reason, "fix the row, or leave it out; the others are kept"),
        )  # fmt: skip


_HINTS = {
    "too_long": "raise --max-seq-length, or shorten them; rows are dropped, never cut",
    "broken_json": "each line must be one JSON object",
    "not_utf8": "save the file as UTF-8",
    "no_reasoning": "the others are kept",
    "control_token": "take the token out of the text",
}
_CUT_IN = re.compile(r"in the (prompt|thinking|reflection|output|stop token)$")


def _by_section(rejects: Sequence[Reject]) -> str:
    """In which section the rows would be cut, and how many in each."""
    counts = Counter(match[1] for reject in rejects if (match := _CUT_IN.search(reject.detail)))
    return "the cut would fall " + ", ".join(f"in the {name} of {n}" for name, n in counts.most_common())


def overlap(contamination: Contamination | None, *, by_words: bool) -> Iterator[Finding]:
    """Training rows that contain test questions."""
    if contamination is None:
        return
    exact, long = contamination.exact, contamination.ngram_13
    if exact or (long and by_words):
        dropped = contamination.dropped
        consequence = f"{dropped:,} are left out of training" if dropped else "they stay, as decontaminate is off"
        yield Finding(
            "warning", "test_overlap",
            f"{exact:,} training rows ask a test question, {long:,} share 13 words in a row with one: {consequence}",
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
            f"{longer / len(samples):.0%} of the answers that are trained on have more than max_new_tokens = {budget} tokens: "
            "scored, such an answer is cut off and counts as wrong",
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
