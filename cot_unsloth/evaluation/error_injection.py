"""Error injection: corrupt steps of a model's solution, and measure whether it detects and corrects them.

A corrupted step has a wrong result in place of the right one; what the model writes after it is its own. So a final answer
is right only if the model corrected the error, or was lucky. Two designs: one step of each right answer is corrupted
afterwards (`corrupt_right_answers`, any data), or steps are corrupted at a given rate as the model writes them
(`solve_with_errors`, only for tasks that can read and corrupt a step). Figures must be called "injected" wherever they
are shown.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import Field

from cot_unsloth import tasks
from cot_unsloth.config import Arm, RunConfig
from cot_unsloth.core import trace
from cot_unsloth.core.progress import bar
from cot_unsloth.core.results import Recovery, Share
from cot_unsloth.core.results.record import Value
from cot_unsloth.core.statistics import share
from cot_unsloth.core.types import Completion, Example, SamplingParams, Score, ThinkingTags
from cot_unsloth.evaluation import score
from cot_unsloth.models.generation import complete_prompts, draft_of, identity
from cot_unsloth.models.protocols import Generator, Trainable
from cot_unsloth.prompts.arms import Prompter
from cot_unsloth.prompts.render import Renderer
from cot_unsloth.storage.run_folder import RunDir
from cot_unsloth.tasks import TASKS
from cot_unsloth.tasks.task import Problem, wrong_result

MOST_ROUNDS = 64
"""A solution that does not end is stopped after this many corrupted steps."""


@dataclass(frozen=True)
class CorruptedSolution:
    """One solution whose steps were corrupted while it was written."""

    problem: Problem
    completion: Completion
    corrupted: frozenset[int]
    """The corrupted steps, counted from 0 among the lines of thinking; reflections do not count."""


class InjectedErrors(Value):
    """Accuracy, corrections and false alarms over solutions whose steps were corrupted while they were written."""

    n: int
    """Solutions."""
    accuracy: Share
    """Right in the end."""
    corrected: Share = Field(alias="mended")  # the name in result files, which old runs have
    """Share of the corrupted steps that are immediately followed by a reflection whose own step is right."""
    false_alarms: Share
    """Share of the right lines of thinking (including a restated start) that are immediately followed by a reflection."""


def score_recovery(
    engine: Trainable,
    renderer: Renderer,
    examples: Sequence[Example],
    arms: Mapping[str, Sequence[Score]],
    config: RunConfig,
    folder: RunDir,
    weights: Path | None,
) -> Recovery | None:
    """`corrupt_right_answers` of the tuned arm, where the settings ask for it; else None."""
    if not config.evaluate.recovery or "tuned" not in arms:
        return None
    return corrupt_right_answers(
        engine,
        renderer,
        examples,
        arms["tuned"],
        sampling=config.sampling_params,
        seed=config.evaluate.eval_seed,
        folder=folder,
        model=identity(config, weights),
    )


def corrupt_right_answers(
    generator: Generator,
    prompter: Prompter,
    examples: Sequence[Example],
    scores: Sequence[Score],
    *,
    sampling: SamplingParams,
    seed: int,
    folder: RunDir | None = None,
    model: str = "",
) -> Recovery:
    """Corrupt one step of each right answer, let the model continue from there, and score the result.

    A step is a line of thinking; one is drawn from those that can be corrupted. A task corrupts its own steps; in other
    data the last number of a line is changed.

    Args:
        generator: the model that gave the answers.
        prompter: writes the prompts.
        examples: the problems.
        scores: its answers to them, in the same order.
        sampling: the sampling parameters.
        seed: random seed for the choice of steps and wrong results.
        folder: where completions are kept until all are scored; those left by a killed process are not generated again.
        model: distinguishes models whose completions are in the same folder.
    """
    prompts, problems, tags = [], [], prompter.data.thinking_tags
    for example, answer in zip(examples, scores, strict=True):
        rng = random.Random(f"{seed}|{example.id}")
        prefix = _corrupted_prefix(example, answer.text, rng, tags) if answer.correct else None
        if prefix is not None:
            prompts.append(replace(prompter.prompt(example, "tuned"), prefix=prefix))
            problems.append(example)
    draft = draft_of(folder, "recovery", prompts, sampling, model) if folder else None
    completions = complete_prompts(generator, prompts, sampling, "recover", draft) if prompts else []
    right = sum(
        score.judge(e, c, tagged=True, thinking_tags=tags).correct for e, c in zip(problems, completions, strict=True)
    )
    detected = sum(
        completion.text[len(prompt.prefix) :].lstrip().startswith(trace.tags("reflection")[0])
        for prompt, completion in zip(prompts, completions, strict=True)
    )
    return Recovery(
        n=len(prompts),
        right=sum(answer.correct for answer in scores),
        accuracy=share(right, len(prompts)),
        # In the layout sequential, reflections follow all steps, and none follows one at once.
        detected=share(detected, len(prompts)) if prompter.data.trace_layout == "nested" else share(0, 0),
    )


# The last number of a line, where it is an integer: not a part of "1,000" or "2.5".
_LAST_NUMBER = re.compile(r"(?<![\d.,])\d{1,9}(?![\d]|[.,]\d)(?=\D*$)")


def _corrupted_prefix(
    example: Example, text: str, rng: random.Random, thinking_tags: ThinkingTags = "thinking"
) -> str | None:
    """An answer up to and including one corrupted step; None where no step can be corrupted."""
    lines = list(trace.thinking_lines(text, thinking_tags))
    for begin, end in rng.sample(lines, len(lines)):
        wrong = _corrupt_line(example, text[begin:end], rng)
        if wrong is not None:
            return f"{text[:begin]}{wrong}\n"
    return None


def _corrupt_line(example: Example, line: str, rng: random.Random) -> str | None:
    task = tasks.task_of(example)
    if task is not None and example.problem is not None:
        return task.corrupt_step(example.problem, line, rng)
    last = _LAST_NUMBER.search(line)
    return line[: last.start()] + str(wrong_result(int(last[0]), rng)) + line[last.end() :] if last else None


def solve_with_errors(
    generator: Generator,
    renderer: Renderer,
    pairs: Sequence[tuple[Problem, Example]],
    *,
    rate: float,
    seed: int,
    sampling: SamplingParams,
    arm: Arm = "tuned",
) -> list[CorruptedSolution]:
    """Let a model solve each problem while each step that it writes is corrupted with probability `rate`.

    Each round generates to the end, cuts every solution after its first newly corrupted step, and continues from there.
    With the same seed, the same steps (by problem and number of the step) are corrupted for every model.
    """
    texts = dict.fromkeys(range(len(pairs)), "")
    corrupted: dict[int, set[int]] = {i: set() for i in texts}
    finished: dict[int, Completion] = {}
    with bar("recover", len(pairs)) as progress:
        for _ in range(MOST_ROUNDS):
            unfinished = [i for i in texts if i not in finished]
            if not unfinished:
                break
            prompts = [replace(renderer.prompt(pairs[i][1], arm), prefix=texts[i]) for i in unfinished]
            for i, completion in zip(unfinished, generator.generate(prompts, sampling), strict=True):
                tags = renderer.data.thinking_tags
                changed = _corrupt_next_step(pairs[i][0], completion.text, len(texts[i]), rate, seed, tags)
                if changed is None:
                    finished[i] = completion
                    progress.advance(1)
                else:
                    texts[i], number = changed
                    corrupted[i].add(number)
    for i in texts:
        finished.setdefault(i, Completion(pairs[i][1].id, texts[i], 0, "length"))
    return [CorruptedSolution(pairs[i][0], finished[i], frozenset(corrupted[i])) for i in texts]


def _corrupt_next_step(
    problem: Problem, text: str, written: int, rate: float, seed: int, thinking_tags: ThinkingTags
) -> tuple[str, int] | None:
    """The text up to and including the next step to corrupt, and its number; None if there is none.

    Only complete lines of thinking after the first `written` characters, outside reflections, that the task can read.
    """
    task = TASKS[problem.task]
    for begin, end in trace.thinking_lines(text, thinking_tags):
        if begin < written:
            continue
        # Among all lines of thinking, as they are judged: one beside a tag is a line too, but cannot be corrupted.
        before = trace.trimmed_lines(trace.parse(text[:begin], thinking_tags).parts)
        number = sum(len(part.text.splitlines()) for part in before if part.kind == "think")
        rng = random.Random(f"{seed}|{problem.id}|{number}")
        if rng.random() < rate:
            wrong = task.corrupt_step(problem, text[begin:end], rng)
            if wrong is not None:
                return f"{text[:begin]}{wrong}\n", number
    return None


def summarize(
    solutions: Sequence[CorruptedSolution], examples: Sequence[Example], thinking_tags: ThinkingTags = "thinking"
) -> InjectedErrors:
    """Accuracy, corrections and false alarms of solutions to the same problems, in the same order."""
    right = sum(
        score.judge(example, solution.completion, tagged=True, thinking_tags=thinking_tags).correct
        for solution, example in zip(solutions, examples, strict=True)
    )
    corrupted = corrected = sound = alarms = 0
    for solution in solutions:
        lines = judged_lines(solution.problem, solution.completion.text, thinking_tags)
        thinking = [at for at, (kind, _) in enumerate(lines) if kind == "think"]
        for number, at in enumerate(thinking):
            following = lines[at + 1] if at + 1 < len(lines) else None
            reflects = following is not None and following[0] == "reflect"
            if number in solution.corrupted:
                corrupted += 1
                corrected += bool(reflects and following and following[1] == "right")
            elif lines[at][1] == "right":
                sound += 1
                alarms += reflects
    return InjectedErrors(
        n=len(solutions),
        accuracy=share(right, len(solutions)),
        corrected=share(corrected, corrupted),
        false_alarms=share(alarms, sound),
    )


def judged_lines(problem: Problem, text: str, thinking_tags: ThinkingTags = "thinking") -> list[tuple[str, str]]:
    """Kind ("think", "reflect") and verdict of each line of a solution."""
    parts = trace.trimmed_lines(trace.parse(text, thinking_tags).parts)
    kinds = [part.kind for part in parts for _ in part.text.splitlines()]
    return list(zip(kinds, TASKS[problem.task].judge(problem, parts), strict=True))
