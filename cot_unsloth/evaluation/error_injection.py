"""Recovery: make steps of a model's solution wrong while it writes it, and see whether it mends them.

Owns the intervention and what is measured of it. A model is let write; as soon as it has written a
step, the step's result is made wrong with a given chance, and the model goes on from there. What it
says afterwards is its own. So an answer is right only if the model noticed, or was lucky. Needs a
task that can read a step and corrupt it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic import Field

from cot_unsloth import tasks
from cot_unsloth.config import Arm
from cot_unsloth.core import trace
from cot_unsloth.core.progress import bar
from cot_unsloth.core.results import Recovery, Share
from cot_unsloth.core.results.record import Value
from cot_unsloth.core.statistics import share
from cot_unsloth.core.types import Completion, Example, SamplingParams, Score, ThinkingTags
from cot_unsloth.evaluation import score
from cot_unsloth.models.generation import answers, draft_of
from cot_unsloth.models.protocols import Generator
from cot_unsloth.prompts.render import Prompter, Renderer
from cot_unsloth.storage.run_folder import RunDir
from cot_unsloth.tasks import TASKS
from cot_unsloth.tasks.task import Problem, wrong_result

MOST_ROUNDS = 64
"""A model that never comes to an end is stopped after so many interventions."""


@dataclass(frozen=True)
class CorruptedSolution:
    """One solution, written under interventions."""

    problem: Problem
    completion: Completion
    spoilt: frozenset[int]
    """The steps that were made wrong, counted from 0 among the lines of thinking, reflections left out."""


class InjectedErrors(Value):
    """What a model made of steps that were corrupted while it wrote."""

    n: int
    """Solutions."""
    accuracy: Share
    """Right in the end."""
    corrected: Share = Field(alias="mended")
    """Of the corrupted steps, those followed at once by a reflection whose own step is right."""
    false_alarms: Share
    """Of the lines of thinking that are right (a restated start is one), those followed at once by a reflection."""


def own_traces(
    generator: Generator,
    prompter: Prompter,
    examples: Sequence[Example],
    scores: Sequence[Score],
    *,
    sampling: SamplingParams,
    seed: int,
    place: RunDir | None = None,
    model: str = "",
) -> Recovery:
    """Make one step of each right answer wrong, let the model go on from there, and score what it comes to.

    A step is a line of thinking; of those that can be spoilt one is drawn. A task corrupts its own steps; of other
    data the last number of a line is changed.

    Args:
        generator: the model that gave the answers.
        prompter: how it was asked.
        examples: the problems.
        scores: its answers to them, in the same order.
        sampling: how it generates.
        seed: of the steps, and of what is put in their place.
        place: keeps the completions until all is scored, and goes on from those of a killed process.
        model: tells one model from another in that place.

    Returns:
        `n` answers that were spoilt, of `right` ones; the `accuracy` afterwards, and how many were `heeded`: the
        spoilt step followed at once by a reflection.
    """
    prompts, spoilt, tags = [], [], prompter.data.thinking_tags
    for example, found in zip(examples, scores, strict=True):
        rng = random.Random(f"{seed}|{example.id}")
        prefix = _spoilt(example, found.text, rng, tags) if found.correct else None
        if prefix is not None:
            prompts.append(replace(prompter.prompt(example, "tuned"), prefix=prefix))
            spoilt.append(example)
    draft = draft_of(place, "recovery", prompts, sampling, model) if place else None
    said = answers(generator, prompts, sampling, "recover", draft) if prompts else []
    right = sum(score.judge(e, c, tagged=True, thinking_tags=tags).correct for e, c in zip(spoilt, said, strict=True))
    heeded = sum(
        c.text[len(p.prefix) :].lstrip().startswith(trace.tags("reflection")[0])
        for p, c in zip(prompts, said, strict=True)
    )
    return Recovery(
        n=len(prompts),
        right=sum(each.correct for each in scores),
        accuracy=share(right, len(prompts)),
        detected=share(heeded, len(prompts)),
    )


_LAST_NUMBER = re.compile(r"(?<![\d.,])\d{1,9}(?![\d]|[.,]\d)(?=\D*$)")


def _spoilt(example: Example, text: str, rng: random.Random, thinking_tags: ThinkingTags = "thinking") -> str | None:
    """An answer up to and with one step, made wrong; None where no step can be."""
    lines = list(trace.thinking_lines(text, thinking_tags))
    for begin, end in rng.sample(lines, len(lines)):
        wrong = _wrong(example, text[begin:end], rng)
        if wrong is not None:
            return f"{text[:begin]}{wrong}\n"
    return None


def _wrong(example: Example, line: str, rng: random.Random) -> str | None:
    task = tasks.task_of(example)
    if task is not None and example.problem is not None:
        return task.corrupt_step(example.problem, line, rng)
    last = _LAST_NUMBER.search(line)
    return line[: last.start()] + str(wrong_result(int(last[0]), rng)) + line[last.end() :] if last else None


def recover(
    generator: Generator,
    renderer: Renderer,
    pairs: Sequence[tuple[Problem, Example]],
    *,
    rate: float,
    seed: int,
    sampling: SamplingParams,
    arm: Arm = "tuned",
) -> list[CorruptedSolution]:
    """Let a model solve each problem while each step it writes is made wrong with chance `rate`.

    The same seed spoils the same steps (by problem and number of the step) of every model.
    """
    texts = dict.fromkeys(range(len(pairs)), "")
    spoilt: dict[int, set[int]] = {i: set() for i in texts}
    done: dict[int, Completion] = {}
    with bar("recover", len(pairs)) as progress:
        for _ in range(MOST_ROUNDS):
            open_ = [i for i in texts if i not in done]
            if not open_:
                break
            prompts = [replace(renderer.prompt(pairs[i][1], arm), prefix=texts[i]) for i in open_]
            for i, said in zip(open_, generator.generate(prompts, sampling), strict=True):
                lines = list(trace.thinking_lines(said.text, renderer.data.thinking_tags))
                changed = _spoil(pairs[i][0], said.text, lines, len(texts[i]), rate, seed)
                if changed is None:
                    done[i] = said
                    progress.advance(1)
                else:
                    texts[i], number = changed
                    spoilt[i].add(number)
    for i in texts:
        done.setdefault(i, Completion(pairs[i][1].id, texts[i], 0, "length"))
    return [CorruptedSolution(pairs[i][0], done[i], frozenset(spoilt[i])) for i in texts]


def _spoil(
    problem: Problem, text: str, lines: Sequence[tuple[int, int]], written: int, rate: float, seed: int
) -> tuple[str, int] | None:
    """The text up to and with the first newly spoilt step, and its number; None if none is to be spoilt.

    Only whole lines of thinking past `written` characters, outside reflections, that the task can read.
    """
    task = TASKS[problem.task]
    for number, (begin, end) in enumerate(lines):
        if begin < written:
            continue
        rng = random.Random(f"{seed}|{problem.id}|{number}")
        if rng.random() < rate:
            wrong = task.corrupt_step(problem, text[begin:end], rng)
            if wrong is not None:
                return f"{text[:begin]}{wrong}\n", number
    return None


def summary(
    found: Sequence[CorruptedSolution], examples: Sequence[Example], thinking_tags: ThinkingTags = "thinking"
) -> InjectedErrors:
    """Accuracy, errors mended, and false alarms.

    mended: of the spoilt steps, those followed at once by a reflection whose own step is right.
    false alarms: of the lines of thinking that are right (a restated start is one), those followed at once by a reflection.
    """
    right = sum(
        score.judge(e, r.completion, tagged=True, thinking_tags=thinking_tags).correct
        for r, e in zip(found, examples, strict=True)
    )
    spoilt = mended = sound = alarms = 0
    for each in found:
        lines = _judged(each, thinking_tags)
        number = -1
        for at, (kind, verdict) in enumerate(lines):
            if kind != "think":
                continue
            number += 1
            after = lines[at + 1] if at + 1 < len(lines) else None
            reflects = after is not None and after[0] == "reflect"
            if number in each.spoilt:
                spoilt += 1
                mended += bool(reflects and after and after[1] == "right")
            elif verdict == "right":
                sound += 1
                alarms += reflects
    return InjectedErrors(
        n=len(found),
        accuracy=share(right, len(found)),
        corrected=share(mended, spoilt),
        false_alarms=share(alarms, sound),
    )


def _judged(found: CorruptedSolution, thinking_tags: ThinkingTags) -> list[tuple[str, str]]:
    """Kind and verdict of each line of a solution."""
    parts = trace.parse(found.completion.text, thinking_tags).parts
    kinds = [part.kind for part in parts for _ in part.text.splitlines()]
    return list(zip(kinds, TASKS[found.problem.task].judge(found.problem, parts), strict=True))
