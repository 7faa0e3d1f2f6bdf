"""Completion → Score → Scorecard.

Owns what counts as an answer and as right. An arm that was asked for tags is scored on its last
`<output>` alone. A base model that was not is read leniently: any of `\\boxed{}`, what follows
"Answer:", the last line or the last number may be right, which favours the base, for a gain must
not come from format alone. A completion
without an answer counts as wrong, and its fault is named; denominators never shrink.
"""

from __future__ import annotations

import functools
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from cot_unsloth import tasks, trace
from cot_unsloth.answers import readings
from cot_unsloth.stats import mcnemar, paired_interval, resolvable, wilson
from cot_unsloth.values import Completion, Example, Score

_NUMBER = re.compile(r"(?:(?<![\w)])-)?\$?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?%?")
_PLAIN_WORDS = re.compile(r"[A-Za-z\s.,:;?'\"*_()$%-]*")
"""What may stand around a number without changing what it says."""
_NOT_MATHS = re.compile(r"\d:\d|\d-\d+-\d|\d\s*[A-Za-z]{2,}|\bor\b|\band\b|%\s*\S")
"""Clocks, dates, units, choices and what LaTeX takes for a remark: math-verify would read only a number out of them."""
_COSTLY = re.compile(r"!|\*\*|\\(?:binom|sum|prod|int|lim)|\^[^^]*\^|\^\W*\d{4,}|\d{19,}")
"""What may take for ever to evaluate, as nothing can interrupt a power of large integers."""


def same(gold: str, answer: str) -> bool:
    """Whether an answer means the gold one.

    Equal text (case and spacing aside), equal numbers ("1,000", "1000.0", "2000/2"), a number with
    words around it but no other number, or equal in the eyes of math-verify, which reads LaTeX.

    >>> same("72", "$72.00"), same("1000", "1,000"), same("7", "17"), same("7", "7 or 8")
    (True, True, False, False)
    """
    if _plain(gold) == _plain(answer):
        return True
    left, right = _number(gold), _number(answer)
    if left is not None and right is not None:
        return left == right and _same_unit(gold, answer)
    if left is not None and "\\" not in answer:
        return _only_number(answer) == left
    return _same_maths(gold, answer)


def _plain(text: str) -> str:
    stripped = " ".join(text.replace("\u2212", "-").split()).casefold().strip(" .$")
    return stripped[1:-1] if re.fullmatch(r"\([a-z]\)", stripped) else stripped


def _number(text: str) -> Fraction | None:
    """A text that is a number and nothing else."""
    stripped = text.replace("\u2212", "-").strip().rstrip(".")
    if not re.fullmatch(r"-?\$?-?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:/\d+)?\s?%?", stripped) or len(stripped) > 40:
        return None
    try:
        return Fraction(re.sub(r"[,$%\s]", "", stripped))
    except (ValueError, ZeroDivisionError):
        return None


def _same_unit(gold: str, answer: str) -> bool:
    """Dollars are not per cent; a bare number is either."""
    units = [{unit for unit in "$%" if unit in text} for text in (gold, answer)]
    return not (units[0] and units[1]) or units[0] == units[1]


def _only_number(text: str) -> Fraction | None:
    """The one number of a text (of what follows its last equals sign), if words alone surround it."""
    tail = text.replace("\u2212", "-").rpartition("=")[2]
    found = _NUMBER.findall(tail)
    values = {(_number(text), "%" in text) for text in found}
    return values.pop()[0] if len(values) == 1 and _PLAIN_WORDS.fullmatch(_NUMBER.sub("", tail)) else None


def _same_maths(gold: str, answer: str) -> bool:
    texts = (gold, answer)
    if not re.search(r"[\d\\]", gold) or any(len(text) > 200 or _COSTLY.search(text) for text in texts):
        return False
    if any("\\" not in text and _NOT_MATHS.search(text) for text in texts):
        return False
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of timeouts that are left out on purpose
    # Its timeouts use SIGALRM, which is absent on Windows, refused off the main thread, and does not
    # interrupt the arithmetic that hangs; what is costly is left out above instead.
    parsed = [parse(f"${text}$", parsing_timeout=None, raise_on_error=False) for text in texts]
    return bool(verify(*parsed, timeout_seconds=None, raise_on_error=False))


def is_right(example: Example, answer: str) -> bool:
    """Whether an answer is as good as the example's: by its world's rule if it has one, else by `same`."""
    world = tasks.world_of(example)
    verdict = world.same(example.answer, answer) if world else None
    return same(example.answer, answer) if verdict is None else verdict


def judge(example: Example, completion: Completion, *, tagged: bool) -> Score:
    """Score one completion; `tagged` where the arm was asked for our tags."""
    parsed = trace.parse(completion.text)
    outputs = [] if parsed.output is None else [parsed.output]
    loose = readings(completion.text) if completion.stopped == "stop" else outputs
    found = outputs if tagged else loose
    good = functools.cache(lambda answer: is_right(example, answer))
    right = next(filter(good, found), None)
    world = tasks.world_of(example)
    return Score(
        id=example.id,
        task=example.task,
        question=example.question,
        gold=example.answer,
        text=completion.text,
        answer=right if right is not None else next(iter(found), None),
        correct=right is not None,
        strict=any(map(good, outputs)),
        lenient=any(map(good, loose)),
        fault=parsed.faults[0] if parsed.faults else None,
        tokens=completion.tokens,
        stopped=completion.stopped,
        steps=steps_of(example),
        tries=world.tries(parsed.parts) if world else None,
    )


def steps_of(example: Example) -> int:
    """How many steps the gold solution takes: its lines of thinking, those that are wrong on purpose left out.

    A world numbers its steps; a line without a number restates where a solution starts.
    """
    numbered = tasks.world_of(example) is not None
    return sum(
        line.startswith("(") if numbered else bool(line.strip())
        for part in example.trace.parts
        if part.kind == "think" and not part.injected
        for line in part.text.splitlines()
    )


def arm_summary(scores: Sequence[Score]) -> dict[str, Any]:
    """One arm of the scorecard: shares are of all n, intervals Wilson's 95%."""
    n = len(scores)
    return {
        **_share(scores),
        "strict": _mean([bool(score.strict) for score in scores]),
        "lenient": _mean([bool(score.lenient) for score in scores]),  # of an arm, side by side; one is its accuracy
        "format_valid": _mean([score.fault is None for score in scores]),
        "truncated": _mean([score.stopped == "length" for score in scores]),
        "no_answer": _mean([score.answer is None for score in scores]),
        "mean_tokens": round(_mean([score.tokens for score in scores]), 2),
        "faults": dict(Counter(score.fault for score in scores if score.fault).most_common()),
        "by_task": {
            task: {"n": len(rows), **_share(rows), "by_steps": _by_steps(rows), "first_try": _first_try(rows)}
            for task in sorted({score.task for score in scores})
            if (rows := [score for score in scores if score.task == task])
        },
        "n": n,
    }


def _by_steps(scores: Sequence[Score]) -> dict[str, Any]:
    """Accuracy by how many steps the gold solution takes."""
    found: dict[int, list[Score]] = {}
    for each in scores:
        if each.steps is not None:
            found.setdefault(each.steps, []).append(each)
    return {str(steps): {"n": len(rows), **_share(rows)} for steps, rows in sorted(found.items())}


def _first_try(scores: Sequence[Score]) -> dict[str, Any] | None:
    """Share of all that are right and began only once; None where there is but one go."""
    if all(each.tries is None for each in scores):
        return None
    return _share([replace(each, correct=each.correct and each.tries == 1) for each in scores])


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
    n = len(new)
    low, high = paired_interval(n, gained, lost)
    least = resolvable(n, (gained + lost) / n) if n else None
    return {
        "before": before,
        "after": after,
        "gained": gained,
        "lost": lost,
        "difference": (gained - lost) / n if n else 0.0,
        "ci95": [round(low, 4), round(high, 4)],
        "mcnemar_p": mcnemar(gained, lost),
        "resolvable": None if least is None else round(least, 4),
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
    pairs = [(arm, "tuned") for arm in arms if "tuned" in arms and arm not in ("tuned", "gguf")]
    pairs += [("tuned", "gguf")] if {"tuned", "gguf"} <= set(arms) else []
    return {
        **settings,
        "arms": {arm: arm_summary(scores) for arm, scores in arms.items()},
        "paired": [paired(before, after, arms) for before, after in pairs],
    }
