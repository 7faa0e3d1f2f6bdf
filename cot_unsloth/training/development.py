"""Development problems: some of the training problems, held out to check that accuracy rises with the reward.

They are answered greedily every few steps, and never trained on. The test set is not used here: problems that decide when
training stops must not be those that the model is finally scored on.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cot_unsloth.core.types import Example
from cot_unsloth.storage import records
from cot_unsloth.storage.stored_rows import rows_where

MOST_SHARE = 0.2
"""At most this share of the problems is held out."""


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


def held_out(problems: Sequence[Example], most: int, seed: int) -> tuple[Sequence[Example], list[Example]]:
    """Split problems into those to train on and at most `most` for development; each question is in only one of them."""
    questions = list(dict.fromkeys(problem.id for problem in problems))
    count = min(most, int(MOST_SHARE * len(questions)))
    chosen = set(random.Random(f"{seed}|development").sample(questions, count))
    train = rows_where(problems, lambda problem: problem.id not in chosen)
    return train, list(_first_of_each(problem for problem in problems if problem.id in chosen))


def _first_of_each(problems: Iterable[Example]) -> Iterable[Example]:
    seen: set[str] = set()
    for problem in problems:
        if problem.id not in seen:
            seen.add(problem.id)
            yield problem
