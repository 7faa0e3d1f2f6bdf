"""Completion → Score: which reading of a completion counts as its answer, and whether it is right.

An arm that was asked for tags is scored only on its last `<output>`; several published scorers take the first match,
which scores a draft. A base model that was not asked for tags is read leniently: any final answer that
`answers.readings` finds may be right. That favours the base, because a gain must not come from the format alone. A
completion without an answer counts as wrong, and its fault is named; denominators never shrink.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from cot_unsloth import tasks
from cot_unsloth.core import answers, trace
from cot_unsloth.core.answers import TimeLimit, readings, same
from cot_unsloth.core.types import Completion, Example, Score, ThinkingTags

__all__ = ["is_right", "judge", "readings", "same", "steps_of"]


def is_right(example: Example, answer: str) -> bool:
    """Whether an answer, short or worked, matches the example's.

    By the rule of its task if that has one, else by `answers.same`; an answer that takes too long to compare is wrong.
    """
    judge_one = _judge_of(example, TimeLimit())
    return any(map(judge_one, answers.output_readings(answer)))


def _judge_of(example: Example, time_limit: TimeLimit) -> Callable[[str], bool]:
    """A function that judges one reading of an answer to an example, within the time that is left."""
    gold = answers.gold_answer(example.answer)

    @functools.cache
    def right(reading: str) -> bool:
        verdict = tasks.accepts(example, reading)
        return answers.compare(gold, reading, time_limit) == "same" if verdict is None else verdict

    return right


def judge(example: Example, completion: Completion, *, tagged: bool, thinking_tags: ThinkingTags = "thinking") -> Score:
    """Score one completion.

    Args:
        example: the problem and its gold answer.
        completion: the model's answer.
        tagged: whether only its last `<output>` is read; otherwise any final answer that can be found counts.
        thinking_tags: the name of the tags around its thinking.
    """
    parsed = trace.parse(completion.text, thinking_tags)
    strict = [] if parsed.output is None else answers.output_readings(parsed.output)
    lenient = answers.readings(completion.text) if completion.stopped == "stop" else strict
    time_limit = TimeLimit()
    right = _judge_of(example, time_limit)
    candidates = strict if tagged else lenient
    chosen = next(filter(right, candidates), None)
    task = tasks.task_of(example)
    return Score(
        id=example.id,
        task=example.task,
        question=example.question,
        gold=example.answer,
        text=completion.text,
        answer=chosen if chosen is not None else next(iter(candidates), None),
        correct=chosen is not None,
        strict=any(map(right, strict)),
        lenient=any(map(right, lenient)),
        fault=parsed.faults[0] if parsed.faults else None,
        tokens=completion.tokens,
        stopped=completion.stopped,
        steps=steps_of(example),
        tries=task.count_tries(trace.trimmed_lines(parsed.parts)) if task else None,
        too_costly=time_limit.exceeded,
    )


def steps_of(example: Example) -> int:
    """How many steps the gold solution takes, without injected errors and their corrections.

    A task counts its own steps; for other data, every non-blank line of thinking counts.
    """
    parts = [part for part in example.trace.parts if not part.injected]
    task = tasks.task_of(example)
    if task is not None:
        return task.count_steps(parts)
    return sum(bool(line.strip()) for part in parts if part.kind == "think" for line in part.text.splitlines())
