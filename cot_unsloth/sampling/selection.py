"""Which attempts become rows to train on: accepted ones, each once, more of them the harder the problem; and corrections.

Of a problem that is solved with rate p, at most ceil(m (1 - p)) accepted attempts are kept, and at least one: m is
`max_per_problem`. Plain rejection sampling does the reverse, since easy problems yield the most accepted attempts; DART-Math
(arXiv 2407.13690, "Prop2Diff") allots responses in proportion to the rate of failure instead. Among the attempts at one
problem the shortest are kept: models of 3B and below learn better from short chains (arXiv 2502.12143).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cot_unsloth.config import RunConfig, SampleConfig
from cot_unsloth.core import trace
from cot_unsloth.core.types import Example, ThinkingTags, Trace
from cot_unsloth.data import decontaminate
from cot_unsloth.sampling import steps
from cot_unsloth.sampling.records import Attempt
from cot_unsloth.storage.stored_rows import rows_without


@dataclass(frozen=True)
class Selected:
    """The rows, and what became of every accepted attempt: accepted = kept + duplicates + surplus + unsound."""

    rows: tuple[Example, ...]
    """Problem by problem, accepted attempts before corrections; leaked rows are not among them."""
    kept: int
    reflections: int
    duplicates: int
    surplus: int
    unsound: int
    leaked: int


def select(
    problems: Sequence[Example],
    attempts: Sequence[Attempt],
    config: RunConfig,
    tests: Sequence[Example] = (),
    *,
    ngrams: bool = False,
) -> Selected:
    """The rows that attempts become.

    Args:
        problems: what was asked.
        attempts: at these problems, of one round or of several.
        config: sections `sample` and `data`.
        tests: problems that a model is scored on; rows that overlap with them are dropped.
        ngrams: whether 13 words in a row count as an overlap; see `decontaminate`.
    """
    by_id: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        by_id.setdefault(attempt.id, []).append(attempt)
    nested = config.data.trace_layout == "nested"
    if not nested:
        # Reflections come after all steps there, so a line says nothing of the one before it: no step is checked.
        problems = [replace(problem, problem=None) for problem in problems]
    settings = config.sample.model_copy(update={"own_reflections": config.sample.own_reflections and nested})
    chosen = [_of_problem(p, by_id.get(p.id, []), settings, config.data.thinking_tags) for p in problems]
    rows = _balanced([row for selection in chosen for row in selection.rows])
    leaks = decontaminate.find_overlap(rows, tests).dropped(ngrams=ngrams) if tests else ()
    clean = rows_without(rows, leaks)
    reflections = sum(_is_correction(row) for row in clean)
    task_of = {problem.id: problem.task for problem in problems}
    return Selected(
        rows=tuple(replace(row, task=task_of[row.id]) for row in clean),
        kept=len(clean) - reflections,
        reflections=reflections,
        duplicates=sum(selection.duplicates for selection in chosen),
        surplus=sum(selection.surplus for selection in chosen),
        unsound=sum(selection.unsound for selection in chosen),
        leaked=len(leaks),
    )


def _balanced(rows: list[Example]) -> list[Example]:
    """The rows with at most as many corrections as accepted attempts, drawn at random but always alike.

    A model of many errors gives far more corrections (tiny base, half trained: 86 beside 43 attempts), and rows that mostly
    begin with an error would not teach to solve a problem without one.
    """
    corrections = [at for at, row in enumerate(rows) if _is_correction(row)]
    most = len(rows) - len(corrections)
    kept = set(random.Random(len(rows)).sample(corrections, min(most, len(corrections))))
    return [row for at, row in enumerate(rows) if at in kept or not _is_correction(row)]


CORRECTED = "own mistake, corrected"
"""`Example.task` of a row with a correction, until the rows are selected."""


def _is_correction(row: Example) -> bool:
    return row.task == CORRECTED


def allowed(right: int, attempts: int, most: int) -> int:
    """Accepted attempts that may be kept of a problem of whose attempts so many are right.

    >>> [allowed(right, 8, 4) for right in (1, 4, 6, 8)], allowed(7, 10, 10)
    ([4, 2, 1, 1], 3)
    """
    # In whole numbers: 10 * (1 - 0.7) is 3.0000000000000004, of which the ceiling is 4.
    return max(1, -(-most * (attempts - right) // attempts)) if attempts else 1


def _of_problem(problem: Example, attempts: Sequence[Attempt], settings: SampleConfig, tags: ThinkingTags) -> Selected:
    complete = (
        trace.without_incomplete_end(attempt.text, tags) if attempt.stopped == "length" else attempt.text
        for attempt in attempts
    )
    parsed = [trace.parse(text, tags) for text in complete]
    lines = [steps.lines_of(parsed_trace.parts) for parsed_trace in parsed]
    right: dict[str, tuple[int, Trace]] = {}
    accepted = unsound = 0
    for attempt, parsed_trace, attempt_lines in zip(attempts, parsed, lines, strict=True):
        if not attempt.accepted or parsed_trace.trace is None or not attempt_lines:
            continue
        accepted += 1
        checked = steps.check(problem, attempt_lines)
        if checked is not None and checked.unnoticed is not None:
            unsound += 1  # right by luck, or by errors that cancel out
            continue
        parts = steps.with_marks(attempt_lines, checked.wrong if checked else [False] * len(attempt_lines))
        key = _normalized(trace.render(parsed_trace.trace))
        right.setdefault(key, (attempt.tokens, Trace(parts, parsed_trace.trace.output)))
    ordered = [
        kept_trace for _, kept_trace in sorted(right.values(), key=lambda pair: (pair[0], trace.render(pair[1])))
    ]
    correct = sum(attempt.correct for attempt in attempts)
    kept = ordered[: allowed(correct, len(attempts), settings.max_per_problem)]
    corrections = _corrections(problem, attempts, lines, ordered, settings) if settings.own_reflections else []
    rows = [replace(problem, trace=kept_trace) for kept_trace in kept]
    rows += [replace(problem, trace=kept_trace, task=CORRECTED) for kept_trace in corrections]
    duplicates = accepted - unsound - len(right)
    return Selected(tuple(rows), len(kept), len(corrections), duplicates, len(ordered) - len(kept), unsound, 0)


def _corrections(
    problem: Example,
    attempts: Sequence[Attempt],
    lines: Sequence[Sequence[steps.Line]],
    right: Sequence[Trace],
    settings: SampleConfig,
) -> list[Trace]:
    """Corrections of distinct errors, at most half as many as accepted attempts may be kept, and at least one."""
    ended_right = [attempt_lines for attempt, attempt_lines in zip(attempts, lines, strict=True) if attempt.correct]
    corrections: dict[str, Trace] = {}
    for attempt, attempt_lines in zip(attempts, lines, strict=True):
        if not attempt_lines:
            continue
        correction = steps.corrected_by_task(problem, attempt_lines)
        if correction is None and not attempt.correct and steps.check(problem, attempt_lines) is None:
            correction = steps.corrected_by_sibling(attempt_lines, right, ended_right)
        if correction is not None:
            corrections.setdefault(_key_of_error(correction), correction)
    return list(corrections.values())[: max(1, settings.max_per_problem // 2)]


def _key_of_error(correction: Trace) -> str:
    """The text up to the error that is corrected: a part that is marked, before the last reflection that follows one."""
    last = max(at for at, part in enumerate(correction.parts) if part.injected)
    return _normalized("\n".join(part.text for part in correction.parts[: last + 1]))


def _normalized(text: str) -> str:
    return " ".join(text.split()).casefold()
