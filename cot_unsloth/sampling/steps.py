"""Which steps of an attempt are wrong, and what a row that corrects the first of them looks like.

A task checks every line of its own problems. For other data, siblings say: of two attempts that begin alike, a line with
which no attempt ended right, beside one with which an attempt did, is taken to be the first wrong step (the estimate of
Math-Shepherd, arXiv 2312.08935, from the attempts that are there).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cot_unsloth import tasks
from cot_unsloth.core.types import Example, Part, PartKind, Trace
from cot_unsloth.evaluation import score

Line = tuple[PartKind, str]
"""The kind of a line, and its text, with a line break for each blank line after it."""
SHARED = 1
"""Lines that two attempts must share before they part, for the one to correct the other."""


def lines_of(parts: Sequence[Part]) -> list[Line]:
    """The lines of a trace, each with the kind of its part. A blank line belongs to the line before it: it is no step."""
    lines: list[Line] = []
    for part in parts:
        begun = len(lines)
        for text in part.text.splitlines():
            if text.strip():
                lines.append((part.kind, text))
            elif len(lines) > begun:
                lines[-1] = part.kind, f"{lines[-1][1]}\n"
    return lines


def marks_of(parts: Sequence[Part]) -> list[bool]:
    """For each of `lines_of`, whether its part is marked as wrong."""
    return [part.injected for part in parts for line in part.text.splitlines() if line.strip()]


@dataclass(frozen=True)
class Checked:
    """What a task says of each line of an attempt."""

    wrong: tuple[bool, ...]
    """Lines of thinking that are not steps towards the answer; they carry no loss."""
    due: tuple[bool, ...]
    """Lines that a reflection should follow."""
    unnoticed: int | None
    """The first error that no reflection follows; None if there is none."""
    repeated: int | None
    """The first line of a try that failed before, word for word; None if there is none."""


def check(problem: Example, lines: Sequence[Line]) -> Checked | None:
    """Check the lines of an attempt; None where the problem is of no task, or the task cannot read a line."""
    task = tasks.task_of(problem)
    if task is None or problem.problem is None or not lines:
        return None
    parts = _as_parts(lines)
    verdicts, due = task.judge(problem.problem, parts), task.reflection_due(problem.problem, parts)
    if "unreadable" in verdicts:
        return None
    hopeful = [True] + [task.can_still_succeed(problem.problem, parts[: end + 1]) for end in range(len(parts))]
    wrong, off_the_way = [], False
    for at, ((kind, _), verdict) in enumerate(zip(lines, verdicts, strict=True)):
        # From a step after which the answer is out of reach, until a reflection: the rest of a failed try is none either.
        off_the_way = kind == "think" and (off_the_way or (hopeful[at] and not hopeful[at + 1]))
        wrong.append(off_the_way or (kind == "think" and verdict != "right"))
    noticed = [at + 1 < len(lines) and lines[at + 1][0] == "reflect" for at in range(len(lines))]
    unnoticed = next((at for at in range(len(lines)) if due[at] and not noticed[at]), None)
    return Checked(tuple(wrong), tuple(due), unnoticed, _repeated_try(lines, due))


def _as_parts(lines: Sequence[Line]) -> list[Part]:
    """A part for each line, as a task reads them."""
    return [Part(kind, line.rstrip()) for kind, line in lines]


def _repeated_try(lines: Sequence[Line], due: Sequence[bool]) -> int | None:
    """Where an attempt first begins to repeat lines that a reflection has rejected.

    Args:
        lines: of an attempt.
        due: for each of them, whether a reflection should follow.
    """
    rejected: set[tuple[str, ...]] = set()
    begun = 0
    for at, (kind, _) in enumerate(lines):
        if kind != "reflect":
            continue
        passage = tuple(" ".join(text.split()) for _, text in lines[begun:at])
        if passage in rejected:
            return begun
        if passage and due[at - 1]:
            rejected.add(passage)
        begun = at + 1
    return None


def with_marks(lines: Sequence[Line], wrong: Sequence[bool]) -> tuple[Part, ...]:
    """Lines as parts, with the blank lines between them: neighbours of one kind are one part, and wrong ones are marked."""
    parts: list[Part] = []
    for (kind, line), is_wrong in zip(lines, wrong, strict=True):
        if parts and (parts[-1].kind, parts[-1].injected) == (kind, is_wrong):
            parts[-1] = replace(parts[-1], text=f"{parts[-1].text}\n{line}")
        else:
            parts.append(Part(kind, line, is_wrong))
    kinds = [part.kind for part in parts]
    return tuple(
        part if kinds[at + 1 : at + 2] == [part.kind] else replace(part, text=part.text.rstrip("\n"))
        for at, part in enumerate(parts)
    )


def corrected_by_task(problem: Example, lines: Sequence[Line]) -> Trace | None:
    """An attempt up to its first unnoticed error, that error without loss, and the task's correction and continuation.

    An attempt that repeats a failed try is one that has not noticed an error either, and so is one whose reflection is false:
    what it should have written in place of that reflection, or of the one before the repeated try, is the task's.

    None where there is no such error, or the task cannot correct it, or the false reflection follows a right step.
    """
    task, checked = tasks.task_of(problem), check(problem, lines)
    if task is None or checked is None:
        return None
    ends = [] if checked.unnoticed is None else [checked.unnoticed + 1]
    if checked.repeated is not None:
        ends.append(checked.repeated)
    end = min(ends, default=0)
    while end and lines[end - 1][0] == "reflect":
        end -= 1
    if end == 0 or not checked.due[end - 1]:  # else a reflection on a right step would be taught
        return None
    begun = lines[:end]
    ending = task.finish(problem.problem, _as_parts(begun), random.Random(f"{problem.id}|{begun}"))
    if ending is None:
        return None
    corrected_trace = Trace((*with_marks(begun, (*checked.wrong[: end - 1], True)), *ending.parts), ending.output)
    # What a task writes is checked as what a model writes: the correction must correct.
    again = check(problem, lines_of(corrected_trace.parts))
    sound = again is not None and again.unnoticed is None and score.is_right(problem, ending.output)
    return corrected_trace if sound else None


def corrected_by_sibling(
    lines: Sequence[Line], right: Sequence[Trace], tried: Sequence[Sequence[Line]]
) -> Trace | None:
    """A wrong attempt up to where it leaves a right one, that step without loss, and the right one's continuation.

    Steps of the right attempt that are marked as wrong stay without loss, and none of them is a correction.

    Args:
        lines: of the wrong attempt.
        right: accepted attempts at the problem, with marks on their wrong steps.
        tried: the lines of all its attempts that ended right; with none of them may the step occur at this place.
    """
    best: tuple[int, Trace] | None = None
    for sibling in right:
        theirs = lines_of(sibling.parts)
        shared = sum(1 for _ in _common(lines, theirs))
        parts_ways = SHARED <= shared < min(len(lines), len(theirs)) and not marks_of(sibling.parts)[shared]
        if parts_ways and (best is None or shared > best[0]):
            best = shared, sibling
    if best is None:
        return None
    shared, sibling = best
    theirs, marks = lines_of(sibling.parts), marks_of(sibling.parts)
    wrong, right_step = lines[shared], theirs[shared]
    occurs = any(_same(attempt[: shared + 1], lines[: shared + 1]) for attempt in tried)
    if wrong[0] != "think" or right_step[0] != "think" or occurs:
        return None
    reflection = Part("reflect", f"That step is wrong. {right_step[1].strip()}")
    return Trace(
        (
            *with_marks(lines[: shared + 1], [*marks[:shared], True]),
            reflection,
            *with_marks(theirs[shared + 1 :], marks[shared + 1 :]),
        ),
        sibling.output,
    )


def _common(ours: Sequence[Line], theirs: Sequence[Line]) -> Iterator[Line]:
    for mine, other in zip(ours, theirs, strict=False):
        if not _same([mine], [other]):
            return
        yield mine


def _same(ours: Sequence[Line], theirs: Sequence[Line]) -> bool:
    def plain(lines: Sequence[Line]) -> list[tuple[str, list[str]]]:
        return [(kind, line.split()) for kind, line in lines]

    return plain(ours) == plain(theirs)
