"""The test-time curve: accuracy against tokens of an answer.

One chain at growing budgets, and, as a control, several independent chains at one budget: the majority of k (Wang et al.
2023, self-consistency) and any of k (pass@k; Chen et al. 2021), at k times the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cot_unsloth import tasks
from cot_unsloth.core import statistics, trace
from cot_unsloth.core.results import Accuracy
from cot_unsloth.core.results.curves import BudgetForcing, BudgetPoint, ParallelPoint, TestTimeCurve, TriesPoint
from cot_unsloth.core.statistics import mean
from cot_unsloth.core.types import Example, Score, ThinkingTags
from cot_unsloth.evaluation import score
from cot_unsloth.evaluation.budget_forcing import ANSWER_TOKENS, BudgetAnswers


def budget_curve(
    examples: Sequence[Example], levels: Sequence[BudgetAnswers], top: int, thinking_tags: ThinkingTags
) -> TestTimeCurve:
    """The sequential curve and its parallel controls.

    Wilson's intervals count each problem as one trial, because samples of one problem are not independent.
    """
    without_reopened = [level for level in levels if "+" not in level.name]
    sequential = [_point(level) for level in levels]
    budgets = [
        (float(level.budget), point.accuracy) for level, point in zip(without_reopened, sequential, strict=False)
    ]
    slope = statistics.scaling(budgets)
    return TestTimeCurve(
        sequential=tuple(sequential),
        parallel={level.name: _parallel(examples, level) for level in without_reopened},
        s1=BudgetForcing(
            control=mean(
                [
                    c.tokens <= level.budget + ANSWER_TOKENS
                    for level in without_reopened
                    for s in level.scores
                    for c in s
                ]
            ),
            scaling_per_1000_tokens=None if slope is None else 1000 * slope,
            maximum=max(point.accuracy for point in sequential),
        ),
        by_tries=_by_tries(examples, levels[[level.budget for level in levels].index(top)], thinking_tags),
    )


def _point(level: BudgetAnswers) -> BudgetPoint:
    right = [mean([s.correct for s in level.of_problem(at)]) for at in range(len(level.scores[0]))]
    result = _of_problems(right)
    return BudgetPoint(
        name=level.name,
        budget=level.budget,
        tokens=level.tokens,
        accuracy=result.accuracy,
        ci95=result.ci95,
        forced=level.forced,
    )


def _of_problems(shares: Sequence[float]) -> Accuracy:
    return Accuracy(accuracy=mean(shares), ci95=statistics.rounded(statistics.wilson(sum(shares), len(shares))))


def _parallel(examples: Sequence[Example], level: BudgetAnswers) -> tuple[ParallelPoint, ...]:
    """Accuracy of the majority of 1, 2, 4, ... samples, and of any of them, at 1, 2, 4, ... times the tokens."""
    n, points = len(level.scores), []
    voted = [_votes(example, level.of_problem(at)) for at, example in enumerate(examples)]
    for k in [2**i for i in range(n.bit_length()) if 2**i <= n]:
        majority = [statistics.majority_at_k(votes, right, k) for votes, right in voted]
        any_ = [statistics.pass_at_k(n, sum(s.correct for s in level.of_problem(at)), k) for at in range(len(examples))]
        points.append(
            ParallelPoint(k=k, tokens=k * level.tokens, majority=_of_problems(majority), any=_of_problems(any_))
        )
    return tuple(points)


def _votes(example: Example, scores: Sequence[Score]) -> tuple[list[int | None], set[int]]:
    """The number of each sample's answer, and the numbers of right ones; equal answers have equal numbers."""
    # Without its problem, by which a generator of reasoning-gym would compare an answer with the gold one, not with another.
    unchecked = replace(example, problem=None)
    different: list[str] = []
    votes: list[int | None] = []
    right: set[int] = set()
    for sample in scores:
        if sample.answer is None:
            votes.append(None)
            continue
        equal = (
            i
            for i, answer in enumerate(different)
            if answer.strip() == sample.answer.strip()
            or score.is_right(replace(unchecked, answer=answer), sample.answer)
        )
        number = next(equal, len(different))
        if number == len(different):
            different.append(sample.answer)
        votes.append(number)
        right |= {number} if sample.correct else set()
    return votes, right


def _by_tries(
    examples: Sequence[Example], level: BudgetAnswers, thinking_tags: ThinkingTags, most: int = 6
) -> dict[str, tuple[TriesPoint, ...]]:
    """Accuracy within 1, 2, ... tries, for each task in which a solution can start again.

    A completion has no token count for each try, so tokens are divided in proportion to characters.
    """
    curves = {}
    for task in sorted({e.task for e in examples if tasks.task_of(e)}):
        scores = [s for sample in level.scores for s in sample if s.task == task]
        if all(s.tries is None for s in scores):
            continue
        problems = len(scores) // len(level.scores)
        curves[task] = tuple(_within_tries(scores, problems, k, thinking_tags) for k in range(1, most + 1))
    return curves


def _within_tries(scores: Sequence[Score], problems: int, k: int, thinking_tags: ThinkingTags) -> TriesPoint:
    accuracy = mean([s.correct and (s.tries or 0) <= k for s in scores])
    return TriesPoint(
        tries=k,
        tokens=mean([s.tokens * _part_within(s, k, thinking_tags) for s in scores]),
        accuracy=accuracy,
        ci95=statistics.rounded(statistics.wilson(accuracy * problems, problems)),
    )


def _part_within(solution: Score, k: int, thinking_tags: ThinkingTags) -> float:
    """The share of an answer's characters that its first k tries take."""
    task = tasks.TASKS[solution.task]
    begins = [
        begin
        for begin, end in trace.thinking_lines(solution.text, thinking_tags)
        if task.count_tries(trace.lines_as_steps(solution.text[begin:end])) == 1
    ]
    return 1.0 if len(begins) <= k else begins[k] / len(solution.text)
