"""Forgetting: scores on a task that is not trained on, before and after training.

Training on one kind of problem can cost others: fine-tuning narrows a model more than reinforcement learning does (arXiv
2509.04259, 2510.18874). The model that training began with (the base, or `init_adapter`) and the trained model answer the same
problems of a task that is not trained on. They are asked directly, without our system prompt, and both are read leniently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cot_unsloth import tasks
from cot_unsloth.config import ASSETS, TINY_BASE, AnyArm, DataConfig, RunConfig
from cot_unsloth.core.results import Forgetting
from cot_unsloth.core.types import Example, Score
from cot_unsloth.data import benchmarks, load_problems
from cot_unsloth.evaluation import scorecard
from cot_unsloth.evaluation.arms import read_scores, score_arm
from cot_unsloth.models.adapter_files import starting_adapter
from cot_unsloth.models.generation import identity
from cot_unsloth.models.protocols import Trainable
from cot_unsloth.prompts.render import Renderer
from cot_unsloth.storage.run_folder import RunDir
from cot_unsloth.tasks.short_answers import ShortAnswer

GENERAL = "general"
"""The built-in questions: general knowledge, language, simple instructions and arithmetic, written for this."""
PROBLEMS = 100
"""Problems of any such task."""
_BEFORE: AnyArm = "forgetting_before"
_AFTER: AnyArm = "forgetting_after"


def task_of(config: RunConfig) -> str | None:
    """The task that forgetting is measured on; None if it is not measured.

    By default the built-in questions, and nothing for the embedded base, which knows no English beyond its own tasks.
    """
    name = config.evaluate.forgetting
    if name != "auto":
        return name
    return None if config.model.model_name_or_path == TINY_BASE else GENERAL


def problems(config: RunConfig) -> list[Example]:
    """The problems of the task that forgetting is measured on.

    Raises:
        InputError: they cannot be read or generated.
    """
    name, evaluate = task_of(config), config.evaluate
    if name is None or not evaluate.eval_samples or not evaluate.arms:
        return []
    if name == GENERAL:
        source = DataConfig(dataset=str(ASSETS / "general.jsonl"), data_format="question_answer")
        rows = load_problems(source, eval_samples=PROBLEMS, eval_seed=evaluate.eval_seed, announced=False)
        return [replace(row, problem=ShortAnswer(row.question, row.answer)) for row in rows]
    if tasks.is_task_dataset(name):
        return tasks.generate(name, split="test", n=PROBLEMS, seed=evaluate.eval_seed)
    return benchmarks.load(
        evaluate.model_copy(update={"benchmark": name, "benchmark_path": None, "eval_samples": PROBLEMS})
    )


def score_before(
    engine: Trainable, renderer: Renderer, examples: Sequence[Example], config: RunConfig, folder: RunDir
) -> list[Score]:
    """The answers of the model that training begins with, from `folder` if they are there."""
    scores = read_scores(folder.completions(_BEFORE), examples)
    if scores is not None or not examples:
        return scores or []
    with engine.as_start() if config.train.init_adapter else engine.as_base():
        return _score(engine, renderer, examples, _BEFORE, config, folder, starting_adapter(config))


def measure(
    engine: Trainable,
    renderer: Renderer,
    examples: Sequence[Example],
    config: RunConfig,
    folder: RunDir,
    weights: Path | None,
) -> Forgetting | None:
    """Let the trained model answer too, and compare.

    Args:
        engine: the engine, with the trained weights.
        renderer: the run's renderer.
        examples: see `problems`.
        config: the settings.
        folder: keeps the answers.
        weights: the trained weights, which identify the answers.

    Returns:
        None without problems.
    """
    if not examples:
        return None
    before = score_before(engine, renderer, examples, config, folder)
    after = read_scores(folder.completions(_AFTER), examples)
    after = after or _score(engine, renderer, examples, _AFTER, config, folder, weights)
    return compare(str(task_of(config)), before, after, start="start" if config.train.init_adapter else "base")


def compare(task: str, before: Sequence[Score], after: Sequence[Score], start: str = "base") -> Forgetting:
    """Compare both models on the same problems; `start` names the arm that training began with."""
    arms = {start: before, "tuned": after}
    return Forgetting(
        task=task,
        n=len(before),
        before=scorecard.accuracy_of(before),
        after=scorecard.accuracy_of(after),
        paired=scorecard.paired(start, "tuned", arms),
    )


def _score(
    engine: Trainable,
    renderer: Renderer,
    examples: Sequence[Example],
    arm: AnyArm,
    config: RunConfig,
    folder: RunDir,
    weights: Path | None,
) -> list[Score]:
    return score_arm(engine, renderer, examples, arm, config.sampling_params, folder, identity(config, weights))
