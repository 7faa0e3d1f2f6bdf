"""Attempts: a model answers each training problem k times in our format, and a checker says which answers are right.

The model is asked as in training. A model that was not trained on our format gets it from the system prompt and, with
`worked_examples`, from solved problems shown as earlier turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cot_unsloth import tasks
from cot_unsloth.config import RunConfig, SampleConfig
from cot_unsloth.core import trace
from cot_unsloth.core.answers.choices import choice
from cot_unsloth.core.errors import DataError
from cot_unsloth.core.types import Completion, Example, Message, Prompt, SamplingParams, ThinkingTags
from cot_unsloth.evaluation import score
from cot_unsloth.models.generation import complete_prompts, draft_of
from cot_unsloth.models.protocols import Generator
from cot_unsloth.prompts.arms import Prompter
from cot_unsloth.sampling.records import Attempt, SampleFolder
from cot_unsloth.storage.run_folder import RunDir


def draw(
    engine: Generator,
    prompter: Prompter,
    problems: Sequence[Example],
    config: RunConfig,
    folder: SampleFolder,
    *,
    seed: int,
    model: str = "",
    shown: Sequence[Message] = (),
) -> list[Attempt]:
    """Ask each problem `samples_per_problem` times; answers that a killed command received are not requested again.

    Args:
        engine: the model.
        prompter: writes the prompts.
        problems: the problems, with distinct ids.
        config: the settings; sections `sample` and `evaluate` are used.
        folder: where the answers are kept as they come in.
        seed: random seed of the attempts. With the `hf` engine, it and the prompt determine an answer.
        model: identifies the model.
        shown: worked examples, as earlier turns.

    Returns:
        The attempts, problem by problem.

    Raises:
        DataError: the checker does not fit the problems.
    """
    check_checker(config.sample, problems)
    k = config.sample.samples_per_problem
    numbered_problems = [(problem, number) for problem in problems for number in range(k)]
    prompts = [attempt_prompt(prompter, problem, number, shown) for problem, number in numbered_problems]
    sampling = _sampling_params(config, seed)
    draft = draft_of(RunDir(folder.path), "sample", prompts, sampling, model)
    completions = complete_prompts(engine, prompts, sampling, "sample", draft)
    tags = prompter.data.thinking_tags
    return [
        _attempt(problem, number, completion, config.sample, tags)
        for (problem, number), completion in zip(numbered_problems, completions, strict=True)
    ]


def attempt_prompt(prompter: Prompter, problem: Example, number: int, shown: Sequence[Message]) -> Prompt:
    """The prompt of an attempt, by its number; `shown` are worked examples, as earlier turns."""
    # The examples are shown to the model, but not added to `problem`, from which the training rows are made.
    prompt = prompter.prompt(replace(problem, history=(*shown, *problem.history)), "tuned")
    return replace(prompt, id=f"{problem.id}#{number}")


def _sampling_params(config: RunConfig, seed: int) -> SamplingParams:
    s, evaluate = config.sample, config.evaluate
    budget = s.sample_max_new_tokens or evaluate.max_new_tokens
    return SamplingParams(budget, s.sample_temperature, s.sample_top_p, seed, evaluate.eval_batch_size)


def _attempt(
    problem: Example, number: int, completion: Completion, settings: SampleConfig, tags: ThinkingTags
) -> Attempt:
    judged = score.judge(_as_checked(problem, settings), completion, tagged=True, thinking_tags=tags)
    correct = judged.correct
    if settings.checker == "exact":
        output = trace.parse(completion.text, tags).output or ""
        correct = output.split() == problem.answer.split()
    return Attempt(
        problem.id, number, completion.text, completion.tokens, completion.stopped, judged.answer, correct, judged.fault
    )


def _as_checked(problem: Example, settings: SampleConfig) -> Example:
    """The problem as the checker sees it: without its task's own rule if answers are to be compared."""
    return replace(problem, where="", problem=None) if settings.checker in ("math", "choice") else problem


def check_checker(settings: SampleConfig, problems: Sequence[Example]) -> None:
    """Check that the checker fits every problem.

    Raises:
        DataError: `task`, and a problem does not belong to a task; or `choice`, and a gold answer is not a choice.
    """
    fits = {
        "task": lambda problem: tasks.task_of(problem) is not None,
        "choice": lambda problem: choice(problem.answer) is not None,
    }.get(settings.checker)
    misfit = next((problem for problem in problems if fits is not None and not fits(problem)), None)
    if misfit is not None:
        reason = "belongs to no task" if settings.checker == "task" else f"has the gold answer {misfit.answer[:40]!r}"
        raise DataError(
            f"{reason}, and sample.checker is {settings.checker}", where=misfit.where, hint="--checker auto"
        )


def worked_examples(rows: Sequence[Example], count: int) -> tuple[Example, ...]:
    """Rows to show to a model that does not know our format: of median length, starting with one that has a reflection.

    The model must not be asked these problems, because it sees their answers.
    """
    solved = sorted((row for row in rows if row.trace.parts), key=lambda row: (len(trace.render(row.trace)), row.id))
    middle = len(solved) // 2
    by_distance = [row for _, row in sorted(enumerate(solved), key=lambda pair: abs(pair[0] - middle))]
    reflecting = [row for row in by_distance if any(part.kind == "reflect" for part in row.trace.parts)][:1]
    distinct = {row.id: row for row in (*reflecting, *by_distance)}
    return tuple(distinct.values())[:count]


def as_turns(examples: Sequence[Example]) -> tuple[Message, ...]:
    """Worked examples as earlier turns, in the default tags; the prompter changes them to the run's tags."""
    turns: list[Message] = []
    for example in examples:
        turns.append({"role": "user", "content": example.question})
        turns.append({"role": "assistant", "content": trace.render(example.trace)})
    return tuple(turns)
