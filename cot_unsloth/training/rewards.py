"""Rewards: small functions from an attempt to a number; their weights are settings of `grpo`.

Only a right answer earns a positive reward. The other rewards are penalties, 0 at best, so that wrong answers or deliberate
mistakes earn nothing. The format reward, weight · (valid - 1), is from tinker-cookbook; the length penalty is from DAPO (Yu et
al. 2025, arXiv 2503.14476, equation 13).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cot_unsloth.config import RunConfig
from cot_unsloth.core.types import Completion, Example, Score, ThinkingTags, TraceLayout
from cot_unsloth.evaluation import reflection
from cot_unsloth.evaluation.score import judge


@dataclass(frozen=True)
class Attempt:
    """One answer of the model to a problem, and its score."""

    example: Example
    score: Score
    """Judged like the tuned arm: only by the last `<output>`."""
    thinking_tags: ThinkingTags = "thinking"
    layout: TraceLayout = "nested"

    @classmethod
    def of(
        cls,
        example: Example,
        completion: Completion,
        thinking_tags: ThinkingTags = "thinking",
        layout: TraceLayout = "nested",
    ) -> Attempt:
        """A completion as an attempt, with its score."""
        score = judge(example, completion, tagged=True, thinking_tags=thinking_tags)
        return cls(example, score, thinking_tags, layout)


Reward = Callable[[Attempt], float]


def correct(attempt: Attempt) -> float:
    """1 for a right answer, else 0.

    >>> from cot_unsloth.core.types import Trace
    >>> example = Example("1", "2 + 2?", Trace((), "4"), "4")
    >>> text = "<thinking>\\n2 + 2 = 4\\n</thinking>\\n<output>{}</output>"
    >>> [correct(Attempt.of(example, Completion("1", text.format(answer), 9, "stop"))) for answer in (4, 5)]
    [1.0, 0.0]
    """
    return float(attempt.score.correct)


def valid_format(attempt: Attempt) -> float:
    """0 for a valid trace that ends by itself, -1 for one with a fault.

    >>> from cot_unsloth.core.types import Trace
    >>> example = Example("1", "2 + 2?", Trace((), "4"), "4")
    >>> texts = "<thinking>\\n2 + 2 = 4\\n</thinking>\\n<output>4</output>", "<output>4</output>"
    >>> [valid_format(Attempt.of(example, Completion("1", text, 9, "stop"))) for text in texts]
    [0.0, -1.0]
    """
    return 0.0 if attempt.score.fault is None and attempt.score.stopped == "stop" else -1.0


def placed_reflections(attempt: Attempt) -> float:
    """0 if every error, and nothing else, is followed by a reflection; down to -1 the more often this fails.

    It is the negated share of errors without a reflection and of reflections without an error. Only tasks can check this, and only
    where reflections are nested; else it is 0. A bonus for corrected errors would reward deliberate errors.

    >>> from cot_unsloth.core.types import Trace
    >>> example = Example("1", "2 + 2?", Trace((), "4"), "4")
    >>> placed_reflections(Attempt.of(example, Completion("1", "<output>4</output>", 9, "stop")))
    0.0
    """
    read = reflection.read(attempt.example, attempt.score, attempt.thinking_tags, attempt.layout)
    if read is None or read.due is None or read.detected is None:
        return 0.0
    missed = read.due - read.detected
    of = read.due + read.confirming
    return -(missed + read.confirming) / of if of else 0.0


def overlong(most: int, share: float) -> Reward:
    """The length penalty: 0 up to the last `share` of `most` tokens, and from there down to -1 at `most`.

    >>> from cot_unsloth.core.types import Trace
    >>> penalty, example = overlong(100, 0.2), Example("1", "2 + 2?", Trace((), "4"), "4")
    >>> [penalty(Attempt.of(example, Completion("1", "4", tokens, "stop"))) for tokens in (80, 90, 100)]
    [0.0, -0.5, -1.0]
    """
    last = share * most
    return lambda attempt: min(0.0, max(-1.0, (most - last - attempt.score.tokens) / last))


def weighted(config: RunConfig) -> dict[str, tuple[Reward, float]]:
    """The rewards of the settings and their weights, by the name they have in `metrics.jsonl`."""
    grpo = config.grpo
    length = overlong(config.max_completion_length, grpo.overlong_share)
    return {
        "correct": (correct, grpo.reward_correct),
        "format": (valid_format, grpo.reward_format),
        "reflection": (placed_reflections, grpo.reward_reflection),
        "overlong": (length, grpo.reward_overlong),
    }
