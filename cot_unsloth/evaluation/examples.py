"""Problems that a user can try on a trained model: like those of its training data, and never among them."""

from __future__ import annotations

import random
from collections.abc import Callable

from cot_unsloth import tasks
from cot_unsloth.config import RunConfig
from cot_unsloth.core.types import Example, Trace
from cot_unsloth.storage import records
from cot_unsloth.storage.run_folder import RunDir


def examples_of(run: RunDir, config: RunConfig) -> Callable[[int], Example] | None:
    """A function that returns, for a seed, a problem like those that a run was trained on.

    These are test problems of its tasks, or else the held-out problems without earlier turns that it was scored on; None
    without any.
    """
    if tasks.is_task_dataset(config.data.dataset):
        return lambda seed: random.Random(seed).choice(
            tasks.generate(config.data.dataset, split="test", n=6, seed=seed)
        )
    # A question that follows earlier turns is another one without them, and they are not among the scores.
    follow_ups = {row["id"] for row in records.iter_jsonl(run.kept) if row["split"] == "test" and row["history"]}
    scored = [score for score in records.read_completions(run.completions("tuned")) if score.id not in follow_ups]
    if not scored:
        return None

    def draw(seed: int) -> Example:
        score = random.Random(seed).choice(scored)
        return Example(score.id, score.question, Trace((), score.gold), score.gold, score.task)

    return draw


def example_questions(run: RunDir, config: RunConfig, n: int) -> list[str]:
    """Up to n distinct questions of `examples_of`, of different tasks if there are several; the same ones each time, shortest first."""
    draw = examples_of(run, config)
    if draw is None:
        return []
    drawn = [draw(seed) for seed in range(8 * n)]
    first_of_task = {example.task: example for example in reversed(drawn)}.values()
    questions = dict.fromkeys(example.question for example in (*first_of_task, *drawn))
    return sorted(list(questions)[:n], key=len)
