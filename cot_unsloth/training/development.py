"""Development problems: some of the training problems, held out to check that accuracy rises with the reward.

They are answered greedily every few steps, and never trained on. The test set is not used here: problems that decide when
training stops must not be those that the model is finally scored on.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from cot_unsloth.core.progress import note
from cot_unsloth.core.types import Example
from cot_unsloth.data.splits import distinct_questions, held_out_ids
from cot_unsloth.storage import records
from cot_unsloth.storage.stored_rows import rows_where

SHARE = 0.2
"""Largest share of the distinct problems that is held out."""


@dataclass(frozen=True)
class DevelopmentScore:
    """A line of `development.jsonl`."""

    step: int
    """Optimizer steps before this score."""
    n: int
    right: frozenset[str]
    """Ids of the problems that were answered correctly."""


class Development:
    """The scores on development problems, kept in a file so that a resumed run has the earlier ones."""

    def __init__(self, file: Path, upto: int) -> None:
        """Read the scores up to a step; later ones were made after the checkpoint that training resumes from."""
        self.file = file
        rows = records.read_jsonl(file)
        self.scores = [DevelopmentScore(row["step"], row["n"], frozenset(row["right"])) for row in rows]
        self.scores = [score for score in self.scores if score.step <= upto]

    @property
    def best(self) -> DevelopmentScore:
        """The score with the most right answers; the earliest of several."""
        return max(self.scores, key=lambda score: (len(score.right), -score.step))

    def add(self, score: DevelopmentScore) -> None:
        """Append a score, and write the file."""
        self.scores.append(score)
        rows = ({"step": score.step, "n": score.n, "right": sorted(score.right)} for score in self.scores)
        records.write_jsonl(self.file, rows)


def held_out(
    problems: Sequence[Example], most: int, seed: int, trained_before: Collection[str] = ()
) -> tuple[Sequence[Example], list[Example]]:
    """Split problems into those to train on and at most `most` for development; each question is in only one of them.

    Args:
        problems: the rows of a run.
        most: development problems at most; a fifth of the problems at most, rounded up.
        seed: determines which problems are chosen.
        trained_before: ids of questions that the model was trained on before this run. They are chosen only where the others
            are too few: the model knows their solutions, so its accuracy on them says little.
    """
    chosen = held_out_ids(problems, SHARE, most, seed)
    known = sorted(id_ for id_ in chosen if id_ in trained_before)
    if known:
        new = rows_where(problems, lambda problem: problem.id not in trained_before)
        others = held_out_ids(new, 1, len(chosen), seed)
        known = known[: len(chosen) - len(others)]
        chosen = others.union(known)
    if known:
        note(
            f"warning, development_seen: the model that this run begins with was trained on {len(known)} of {len(chosen)} development "
            "problems, as there are too few others; its accuracy on them is too high"
        )
    train = rows_where(problems, lambda problem: problem.id not in chosen)
    return train, distinct_questions((problem for problem in problems if problem.id in chosen), len(chosen), seed)
