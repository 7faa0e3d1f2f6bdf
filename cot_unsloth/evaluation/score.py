"""Completion → Score → Scorecard.

Owns which reading of a completion counts as its answer, and the scorecard that scores are summed up in. An arm that was
asked for tags is scored on its last `<output>` alone. A base model that was not is read leniently: any final answer that
`answers.readings` finds may be right, which favours the base, for a gain must not come from format alone. A completion
without an answer counts as wrong, and its fault is named; denominators never shrink.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from cot_unsloth import tasks
from cot_unsloth.core import answers, trace
from cot_unsloth.core.answers import Budget, readings, same
from cot_unsloth.core.results import Accuracy, ArmResult, Paired, Scorecard, Settings, StepsResult, TaskResult
from cot_unsloth.core.statistics import mcnemar, paired_interval, resolvable, rounded, wilson
from cot_unsloth.core.types import Completion, Example, Score, ThinkingTags

__all__ = ["arm_summary", "is_right", "judge", "paired", "readings", "same", "scorecard", "steps_of"]


def is_right(example: Example, answer: str) -> bool:
    """Whether an answer, short or worked, is as good as the example's.

    By its task's rule if it has one, else by `answers.same`; one that takes too long to compare is not.
    """
    judge_one = _judge_of(example, Budget())
    return any(map(judge_one, answers.output_readings(answer)))


def _judge_of(example: Example, budget: Budget) -> Callable[[str], bool]:
    """What judges one reading of an answer to an example, within what the budget has left."""
    task, gold = tasks.task_of(example), answers.gold_answer(example.answer)

    @functools.cache
    def right(reading: str) -> bool:
        verdict = task.same_answer(example.answer, reading) if task else None
        return answers.compare(gold, reading, budget) == "same" if verdict is None else verdict

    return right


def judge(example: Example, completion: Completion, *, tagged: bool, thinking_tags: ThinkingTags = "thinking") -> Score:
    """Score one completion.

    Args:
        example: the problem and its gold answer.
        completion: what a model answered.
        tagged: whether the arm was asked for our tags, and is read in its last `<output>` alone; otherwise any final
            answer that can be read out of it counts.
        thinking_tags: what its thinking stands between, where it is a whole trace.
    """
    parsed = trace.parse(completion.text, thinking_tags)
    strict = [] if parsed.output is None else answers.output_readings(parsed.output)
    lenient = answers.readings(completion.text) if completion.stopped == "stop" else strict
    budget = Budget()
    right = _judge_of(example, budget)
    found = strict if tagged else lenient
    chosen = next(filter(right, found), None)
    task = tasks.task_of(example)
    return Score(
        id=example.id,
        task=example.task,
        question=example.question,
        gold=example.answer,
        text=completion.text,
        answer=chosen if chosen is not None else next(iter(found), None),
        correct=chosen is not None,
        strict=any(map(right, strict)),
        lenient=any(map(right, lenient)),
        fault=parsed.faults[0] if parsed.faults else None,
        tokens=completion.tokens,
        stopped=completion.stopped,
        steps=steps_of(example),
        tries=task.count_tries(parsed.parts) if task else None,
        too_costly=budget.exceeded,
    )


def steps_of(example: Example) -> int:
    """How many steps the gold solution takes: its lines of thinking, those that are wrong on purpose left out.

    A task numbers its steps; a line without a number restates where a solution starts.
    """
    numbered = tasks.task_of(example) is not None
    return sum(
        line.startswith("(") if numbered else bool(line.strip())
        for part in example.trace.parts
        if part.kind == "think" and not part.injected
        for line in part.text.splitlines()
    )


def arm_summary(scores: Sequence[Score]) -> ArmResult:
    """One arm of the scorecard: shares are of all n, intervals Wilson's 95%."""
    n, accuracy = len(scores), _accuracy(scores)
    return ArmResult(
        accuracy=accuracy.accuracy,
        ci95=accuracy.ci95,
        strict=_mean([bool(score.strict) for score in scores]),
        lenient=_mean([bool(score.lenient) for score in scores]),
        format_valid=_mean([score.fault is None for score in scores]),
        truncated=_mean([score.stopped == "length" for score in scores]),
        no_answer=_mean([score.answer is None for score in scores]),
        too_costly=sum(score.too_costly for score in scores),
        mean_tokens=round(_mean([score.tokens for score in scores]), 2),
        faults=dict(Counter(score.fault for score in scores if score.fault).most_common()),
        by_task={
            task: _task_result([score for score in scores if score.task == task])
            for task in sorted({score.task for score in scores})
        },
        n=n,
    )


def _task_result(scores: Sequence[Score]) -> TaskResult:
    accuracy = _accuracy(scores)
    return TaskResult(
        n=len(scores),
        accuracy=accuracy.accuracy,
        ci95=accuracy.ci95,
        by_steps=_by_steps(scores),
        first_try=_first_try(scores),
    )


def _by_steps(scores: Sequence[Score]) -> dict[str, StepsResult]:
    """Accuracy by how many steps the gold solution takes."""
    groups: dict[int, list[Score]] = {}
    for score in scores:
        if score.steps is not None:
            groups.setdefault(score.steps, []).append(score)
    results = {}
    for steps, group in sorted(groups.items()):
        accuracy = _accuracy(group)
        results[str(steps)] = StepsResult(n=len(group), accuracy=accuracy.accuracy, ci95=accuracy.ci95)
    return results


def _first_try(scores: Sequence[Score]) -> Accuracy | None:
    """Share of all that is right without having started again; None where there is a single attempt."""
    if all(score.tries is None for score in scores):
        return None
    return _accuracy([replace(score, correct=score.correct and score.tries == 1) for score in scores])


def _accuracy(scores: Sequence[Score]) -> Accuracy:
    right, n = sum(score.correct for score in scores), len(scores)
    return Accuracy(accuracy=right / n if n else 0.0, ci95=rounded(wilson(right, n)))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def paired(before: str, after: str, arms: Mapping[str, Sequence[Score]]) -> Paired:
    """Two arms on the same problems, compared problem by problem."""
    old = {score.id: score.correct for score in arms[before]}
    new = {score.id: score.correct for score in arms[after]}
    gained = sum(new[key] and not old[key] for key in new)
    lost = sum(old[key] and not new[key] for key in new)
    n = len(new)
    least = resolvable(n, (gained + lost) / n) if n else None
    return Paired(
        before=before,
        after=after,
        gained=gained,
        lost=lost,
        difference=(gained - lost) / n if n else 0.0,
        ci95=rounded(paired_interval(n, gained, lost)),
        mcnemar_p=mcnemar(gained, lost),
        resolvable=None if least is None else round(least, 4),
    )


def scorecard(arms: Mapping[str, Sequence[Score]], settings: Settings) -> Scorecard:
    """The arms and their paired comparisons; what follows from them is added by `evaluate.write_scorecard`.

    Args:
        arms: scores by arm, each over the same problems in the same sequence.
        settings: n, seed, decoding, budget and whatever else the figures depend on.

    Raises:
        ValueError: the arms were scored on different problems.
    """
    ids = {arm: [score.id for score in scores] for arm, scores in arms.items()}
    if len({tuple(ids_of_arm) for ids_of_arm in ids.values()}) > 1:
        counts = {arm: len(ids_of_arm) for arm, ids_of_arm in ids.items()}
        raise ValueError(f"arms were scored on different problems: {counts}")
    pairs = [(arm, "tuned") for arm in arms if "tuned" in arms and arm not in ("tuned", "gguf")]
    pairs += [("tuned", "gguf")] if {"tuned", "gguf"} <= set(arms) else []
    given = {name: getattr(settings, name) for name in Settings.model_fields if name in settings.model_fields_set}
    return Scorecard(
        **given,
        arms={arm: arm_summary(scores) for arm, scores in arms.items()},
        paired=tuple(paired(before, after, arms) for before, after in pairs),
    )
