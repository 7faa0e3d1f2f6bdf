"""Completion → Score → Scorecard.

Owns what counts as an answer and as right. An arm that was asked for tags is scored on its last
`<output>` alone. A base model that was not is read leniently (`\\boxed{}`, `####`, "Answer:", else
the last number), which favours the base: a gain must not come from format alone. A completion
without an answer counts as wrong, and its fault is named; denominators never shrink.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from cot_unsloth import trace
from cot_unsloth.stats import mcnemar, wilson
from cot_unsloth.values import Completion, Example, Score

_BOXED = re.compile(r"\\boxed\s*\{")
_MARKED = re.compile(r"(?:####|(?:final\s+)?answer\s*(?:is|:|=))\s*:?\s*(?P<answer>[^\n]+)", re.IGNORECASE)
_NUMBER = re.compile(r"(?:(?<![\w)])-)?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?")


def read_leniently(text: str) -> str | None:
    """The final answer of free text, or None.

    >>> read_leniently("so 3 + 4 = 7.\\nThe answer is 7."), read_leniently("maybe \\\\boxed{1/2}?")
    ('7', '1/2')
    """
    output = trace.parse(text).output
    if output is not None:
        return output
    boxed = _last_boxed(text)
    if boxed is not None:
        return boxed
    marked = list(_MARKED.finditer(text))
    if marked:
        inside = marked[-1]["answer"].strip(" *_`")
        numbers = _NUMBER.findall(inside)
        return numbers[0] if numbers else inside.rstrip(". ")
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else None


def _last_boxed(text: str) -> str | None:
    starts = list(_BOXED.finditer(text))
    if not starts:
        return None
    begin, depth = starts[-1].end(), 1
    for at in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[begin:at].strip()
    return None


def same(gold: str, answer: str) -> bool:
    """Whether an answer means the gold one.

    Equal text (case and spacing aside), equal numbers ("1,000" and "1000.0"), or equal in the
    eyes of math-verify, which reads LaTeX.

    >>> same("72", "$72.00"), same("1000", "1,000"), same("7", "17")
    (True, True, False)
    """
    if _plain(gold) == _plain(answer):
        return True
    left, right = _number(gold), _number(answer)
    if left is not None and right is not None:
        return left == right
    if left is not None and right is None:
        read = read_leniently(answer) if not trace.parse(answer).output else None
        return read is not None and read != answer and _number(read) == left
    return _same_maths(gold, answer)


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold().strip(" .$")


def _number(text: str) -> Decimal | None:
    stripped = text.strip().strip(".").replace(",", "").replace("$", "").removesuffix("%").strip()
    try:
        value = Decimal(stripped)
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def _same_maths(gold: str, answer: str) -> bool:
    if not re.search(r"[\d\\]", gold) or len(gold) > 200 or len(answer) > 200:
        return False
    from math_verify import parse, verify

    # Timeouts use SIGALRM, which is absent on Windows and refused off the main thread.
    parsed = [parse(f"${text}$", parsing_timeout=None, raise_on_error=False) for text in (gold, answer)]
    return bool(verify(*parsed, timeout_seconds=None, raise_on_error=False))


def judge(example: Example, completion: Completion, *, tagged: bool) -> Score:
    """Score one completion; `tagged` where the arm was asked for our tags."""
    parsed = trace.parse(completion.text)
    whole = completion.stopped == "stop"
    answer = parsed.output if tagged or not whole else read_leniently(completion.text)
    return Score(
        id=example.id,
        task=example.task,
        question=example.question,
        gold=example.answer,
        text=completion.text,
        answer=answer,
        correct=answer is not None and same(example.answer, answer),
        fault=parsed.faults[0] if parsed.faults else None,
        tokens=completion.tokens,
        stopped=completion.stopped,
    )


def arm_summary(scores: Sequence[Score]) -> dict[str, Any]:
    """One arm of the scorecard: shares are of all n, intervals Wilson's 95%."""
    n = len(scores)
    return {
        **_share(scores),
        "format_valid": _mean([score.fault is None for score in scores]),
        "truncated": _mean([score.stopped == "length" for score in scores]),
        "no_answer": _mean([score.answer is None for score in scores]),
        "mean_tokens": round(_mean([score.tokens for score in scores]), 2),
        "faults": dict(Counter(score.fault for score in scores if score.fault).most_common()),
        "by_task": {
            task: {"n": len(rows), **_share(rows)}
            for task in sorted({score.task for score in scores})
            if (rows := [score for score in scores if score.task == task])
        },
        "n": n,
    }


def _share(scores: Sequence[Score]) -> dict[str, Any]:
    right, n = sum(score.correct for score in scores), len(scores)
    low, high = wilson(right, n)
    return {"accuracy": right / n if n else 0.0, "ci95": [round(low, 4), round(high, 4)]}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def paired(before: str, after: str, arms: Mapping[str, Sequence[Score]]) -> dict[str, Any]:
    """Two arms on the same problems, compared problem by problem."""
    old = {score.id: score.correct for score in arms[before]}
    new = {score.id: score.correct for score in arms[after]}
    gained = sum(new[key] and not old[key] for key in new)
    lost = sum(old[key] and not new[key] for key in new)
    return {"before": before, "after": after, "gained": gained, "lost": lost, "mcnemar_p": mcnemar(gained, lost)}


def reflections(scores: Sequence[Score]) -> dict[str, Any]:
    """How often an arm reflected, and how often it was right when it did."""
    with_one = [s for s in scores if any(part.kind == "reflect" for part in trace.parse(s.text).parts)]
    return {
        "n": len(with_one),
        "share": len(with_one) / len(scores) if scores else 0.0,
        "accuracy": _mean([s.correct for s in with_one]) if with_one else None,
    }


def scorecard(arms: Mapping[str, Sequence[Score]], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The whole comparison, as it stands in `scorecard.json`.

    Args:
        arms: scores by arm, each over the same problems in the same order.
        settings: n, seed, decoding, budget and whatever else the figures depend on.

    Raises:
        ValueError: the arms were scored on different problems.
    """
    ids = {arm: [score.id for score in scores] for arm, scores in arms.items()}
    if len({tuple(found) for found in ids.values()}) > 1:
        raise ValueError(f"arms were scored on different problems: { {arm: len(found) for arm, found in ids.items()} }")
    after = "tuned"
    return {
        **settings,
        "arms": {arm: arm_summary(scores) for arm, scores in arms.items()},
        "paired": [paired(arm, after, arms) for arm in arms if after in arms and arm != after],
        "reflection": {arm: reflections(scores) for arm, scores in arms.items()},
    }
