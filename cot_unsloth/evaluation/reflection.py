"""Measures how a model reasons: the effect of its reflections, and whether its steps are right.

These are measures of a chain of thought beyond its answer, each defined where it is computed. A task checks every line of
its own problems. For other data only what the text itself shows is measured; the rest is None, never guessed.

A reflection may correct, confirm, or harm. Counting wrong→right against right→wrong is from Huang et al., "Large
Language Models Cannot Self-Correct Reasoning Yet" (2024), and Kumar et al., "Training Language Models to Self-Correct
via Reinforcement Learning" (2024); the share of reflections that only confirm from Kang et al., "First Try Matters"
(2025).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from cot_unsloth import tasks
from cot_unsloth.core import trace
from cot_unsloth.core.results import Aims, ReflectionMetrics, Share
from cot_unsloth.core.statistics import share
from cot_unsloth.core.types import Example, Part, Score, ThinkingTags, TraceLayout
from cot_unsloth.evaluation import score

AIMS = ("decomposition", "sequential_reasoning", "transparency", "self_correction")
"""The goals of training, with one measured figure each."""

_SHOWN = 10
"""Most answers with a corrected error that a scorecard names: the report shows three per group."""


@dataclass(frozen=True)
class Reasoning:
    """Measures of one completion; None if a measure does not apply."""

    reflections: int
    called_for: int | None
    """Reflections right after an error; known only for tasks, and only where reflections are nested."""
    confirming: int
    """Reflections that change nothing: for a task, those not after an error; else those whose words say so."""
    due: int | None
    """Errors: lines with a wrong step, or with the end of a failed try."""
    detected: int | None
    """Errors that a reflection follows at once."""
    first_right: bool | None
    """Whether it would have been right without its reflections; None if it has none.

    For a task: whether the text before the first reflection, continued without another error, leads to a right answer.
    Else: whether a right answer can be read in the thinking before it (leniently, which favours the first answer, so
    that the reflection is not given credit for it).
    """
    right: bool
    lines: int
    """Lines of thinking that can be checked: for a task all, else the equations in them."""
    sound: int
    """The number of these lines that follow from the lines before them, or of equations that hold."""
    consistent: bool | None
    """Whether the output follows from the thinking; None where there is no output, or no thinking."""
    steps_as_solved: bool | None
    """Whether it takes as many steps as the task's own solution."""


def read(
    example: Example, answer: Score, thinking_tags: ThinkingTags = "thinking", layout: TraceLayout = "nested"
) -> Reasoning | None:
    """Measure one completion; None where there is nothing between its thinking tags.

    In the layout `sequential` reflections follow all steps, and so does the correction of a step that others build on: what
    depends on the place of a reflection is None, and lines are read as on other data.
    """
    # No problem has numbers of 13 digits; without this, a model that repeats a digit costs minutes of exact arithmetic.
    text = re.sub(r"\d{13,}", "#", answer.text)
    of_task = tasks.task_of(example) is not None and example.problem is not None
    if answer.stopped == "length":
        text = (
            trace.without_incomplete_end(text, thinking_tags)
            if of_task
            else text[: max(text.rfind(" "), text.rfind("\n")) + 1]
        )
    parsed = trace.parse(text, thinking_tags)
    parts = trace.trimmed_lines(parsed.parts)
    if not parts:
        return None
    at = [i for i, part in enumerate(parts) if part.kind == "reflect"]
    before = parts[: at[0]] if at else None
    if of_task:
        measured = _of_task(example, answer, parts, parsed, before)
        return measured if layout == "nested" else _without_places(measured, parts)
    thinking = "\n".join(part.text for part in parts)
    lines = list(_equations(thinking))
    return Reasoning(
        reflections=len(at),
        called_for=None,
        confirming=_confirming(parts),
        due=None,
        detected=None,
        first_right=None if before is None else _can_be_read(before, example),
        right=answer.correct,
        lines=len(lines),
        sound=sum(lines),
        consistent=None if parsed.output is None else _says(thinking, parsed.output),
        steps_as_solved=None,
    )


def _of_task(
    example: Example, answer: Score, parts: Sequence[Part], parsed: trace.Parsed, before: Sequence[Part] | None
) -> Reasoning:
    task, problem = tasks.TASKS[example.task], example.problem
    verdicts, due = task.judge(problem, parts), task.reflection_due(problem, parts)
    kinds = [(part.kind, number) for number, part in enumerate(parts) for _ in part.text.splitlines()]
    thought = [i for i, (kind, _) in enumerate(kinds) if kind == "think"]
    reflected = [i for i in range(len(kinds)) if kinds[i][0] == "reflect" and (i == 0 or kinds[i] != kinds[i - 1])]
    called_for = sum(i > 0 and due[i - 1] for i in reflected)
    # What would have followed the last line of a text that was cut off is not known.
    cut = answer.stopped == "length" and "unclosed_thinking" in parsed.faults
    followed = [i for i in thought if not cut or i + 1 < len(kinds)]
    return Reasoning(
        reflections=len(reflected),
        called_for=called_for,
        confirming=len(reflected) - called_for,
        due=sum(due[i] for i in followed),
        detected=sum(due[i] and i + 1 in reflected for i in followed),
        first_right=None if before is None else task.can_still_succeed(problem, before),
        right=answer.correct,
        lines=len(thought),
        sound=sum(verdicts[i] == "right" for i in thought),
        consistent=None if parsed.output is None else task.output_follows(problem, parts, parsed.output),
        steps_as_solved=task.count_steps(parts) == score.steps_of(example),
    )


def _without_places(measured: Reasoning, parts: Sequence[Part]) -> Reasoning:
    """The measures of a task's solution whose reflections follow all steps."""
    lines = list(_equations("\n".join(part.text for part in parts)))
    return replace(
        measured,
        called_for=None,
        confirming=_confirming(parts),
        due=None,
        detected=None,
        lines=len(lines),
        sound=sum(lines),
        # A reflection may correct a step that others build on already, so the last line need not be the result.
        consistent=None if measured.reflections else measured.consistent,
    )


def _confirming(parts: Sequence[Part]) -> int:
    """Reflections that, by their words, find nothing to change."""
    return sum(part.kind == "reflect" and _only_confirms(part.text) for part in parts)


def _can_be_read(parts: Sequence[Part], example: Example) -> bool:
    text = "\n".join(part.text for part in parts)
    return any(score.is_right(example, answer) for answer in score.readings(text))


def _says(thinking: str, output: str) -> bool:
    return any(score.same(output, answer) for answer in score.readings(thinking))


_CONFIRMS = re.compile(
    r"\b(?:correct|right|checks out|confirm\w*|consistent|verified|holds|(?:no|without) (?:error|mistake)s?|looks good)\b",
    re.IGNORECASE,
)
_DOUBTS = re.compile(
    r"\b(?:wrong|incorrect|mistaken?|mistakes|errors?|not|n't|wait|instead|however|should (?:be|have)|actually|missed|forgot)\b",
    re.IGNORECASE,
)


def _only_confirms(text: str) -> bool:
    """Whether a reflection, by its words, finds nothing to change.

    >>> [_only_confirms(t) for t in ("Yes, 12 is correct.", "No mistakes here.", "That is not right: 3, not 4.")]
    [True, True, False]
    """
    doubts = _DOUBTS.search(re.sub(r"\b(?:no|without) (?:error|mistake)s?\b", "", text, flags=re.IGNORECASE))
    return _CONFIRMS.search(text) is not None and doubts is None


_EQUATION = re.compile(
    r"(?<![\w.)])(?P<left>-?\$?\d[\d,.]{0,20}(?:\s{0,3}[-+*/×÷]\s{0,3}\$?\d[\d,.]{0,20}){1,12})"
    r"\s{0,3}=\s{0,3}(?P<right>-?\$?\d[\d,]{0,20}(?:\.\d{1,20})?)(?![\d,.]*\d)(?!\s{0,3}[-+*/×÷^]\s{0,3}[\d(])"
)
_GOES_BEFORE = frozenset("+-*/×÷^√(")
"""A character that shows, before an equation, that it is the end of a longer expression."""
_LONGEST_EQUATION = 100


def _equations(text: str) -> Iterator[bool]:
    """For each equation written out in a text, whether it holds to the decimals given.

    >>> list(_equations("48 / 2 = 24, so 48 + 24 = 72. And 2 * 3 + 4 = 11; 10 / 3 = 3.33"))
    [True, True, False, True]
    """
    for equation in _EQUATION.finditer(text):
        before = text[max(0, equation.start() - 4) : equation.start()].rstrip()[-1:]
        if len(equation[0]) > _LONGEST_EQUATION or before in _GOES_BEFORE or (before == ")" and equation[0][0] == "-"):
            continue
        left, right = (_plain(equation[side]) for side in ("left", "right"))
        try:
            value, written = _value_of(ast.parse(left, mode="eval").body), Fraction(right)
        except (SyntaxError, ValueError, ZeroDivisionError):
            continue
        decimals = len(right.partition(".")[2])
        yield abs(value - written) <= Fraction(1, 2 * 10**decimals) * (decimals > 0)


def _plain(side: str) -> str:
    text = side.replace("$", "").replace(",", "").replace("×", "*").replace("÷", "/")
    return re.sub(r"(?<![\d.])0+(?=\d)", "", text).rstrip(".")


def _value_of(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int(number) | float(number)):
            return Fraction(str(number))
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_value_of(inner)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _value_of(left), _value_of(right)
            match op:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
                case ast.Div():
                    return a / b
    raise ValueError("not arithmetic")


def _corrects_an_error(reasoning: Reasoning) -> bool:
    """Whether an answer is right because of its reflections, and every one of them has a reason.

    A model that learned the form alone writes "5 is 7, not 7" and may still guess the answer.
    """
    repaired = reasoning.first_right is False and reasoning.right
    every_error = reasoning.due is None or reasoning.due == reasoning.detected
    return repaired and every_error and not reasoning.confirming and reasoning.consistent is not False


def summary(
    examples: Sequence[Example],
    scores: Sequence[Score],
    thinking_tags: ThinkingTags = "thinking",
    layout: TraceLayout = "nested",
) -> tuple[ReflectionMetrics, Aims]:
    """The effect of an arm's reflections, and its figures for the four aims; shares have Wilson's 95% interval."""
    read_ = [read(example, score_, thinking_tags, layout) for example, score_ in zip(examples, scores, strict=True)]
    measured = [reasoning for reasoning in read_ if reasoning is not None]
    reflecting = [reasoning for reasoning in measured if reasoning.reflections]
    firsts = [reasoning for reasoning in reflecting if reasoning.first_right is not None]
    repaired = sum(not reasoning.first_right and reasoning.right for reasoning in firsts)
    corrupted = sum(bool(reasoning.first_right) and not reasoning.right for reasoning in firsts)
    first_right = sum(bool(reasoning.first_right) for reasoning in firsts)
    reflections = sum(reasoning.reflections for reasoning in measured)
    judged = [reasoning for reasoning in measured if reasoning.due is not None]
    counted = [reasoning.steps_as_solved for reasoning in measured if reasoning.steps_as_solved is not None]
    concluding = [reasoning.consistent for reasoning in measured if reasoning.consistent is not None]
    n = len(scores)
    metrics = ReflectionMetrics(
        n=len(reflecting),
        share=len(reflecting) / n if n else 0.0,
        accuracy=sum(reasoning.right for reasoning in reflecting) / len(reflecting) if reflecting else None,
        first=share(first_right, len(firsts)),
        final=share(sum(reasoning.right for reasoning in firsts), len(firsts)),
        repaired=repaired,
        corrupted=corrupted,
        repair_rate=share(repaired, len(firsts) - first_right),
        corruption_rate=share(corrupted, first_right),
        only_confirm=share(sum(reasoning.confirming for reasoning in measured), reflections),
        alarm_precision=share(
            sum(reasoning.called_for or 0 for reasoning in judged), sum(reasoning.reflections for reasoning in judged)
        ),
        alarm_recall=share(
            sum(reasoning.detected or 0 for reasoning in judged), sum(reasoning.due or 0 for reasoning in judged)
        ),
    )
    correcting = [
        (reasoning.reflections, score_.id)
        for reasoning, score_ in zip(read_, scores, strict=True)
        if reasoning is not None and _corrects_an_error(reasoning)
    ]
    fewest = sorted(correcting, key=lambda item: item[0])[:_SHOWN]
    metrics = metrics.model_copy(update={"corrected_ids": tuple(id_ for _, id_ in fewest)})
    aims = Aims(
        decomposition=share(sum(counted), len(counted)),
        sequential_reasoning=share(
            sum(reasoning.sound for reasoning in measured), sum(reasoning.lines for reasoning in measured)
        ),
        transparency=share(sum(concluding), len(concluding)),
        self_correction=Share(share=(repaired - corrupted) / n if measured else None, of=n),
    )
    return metrics, aims
