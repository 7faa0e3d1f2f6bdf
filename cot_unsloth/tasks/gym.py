"""Problems of reasoning-gym (Stojanovski et al. 2025, arXiv 2505.24760): generated questions with a check of the answer.

A data set is named `gym:NAME[,NAME...]`, for example `gym:leg_counting,chain_sum`; `names()` lists them. The problems have no
worked solutions, so a model cannot imitate them: they are for sampling, rejection sampling, GRPO and scoring. An answer is
right where the generator's own `score_answer` gives it 1.0; partial credit counts as wrong. The package is optional and is
imported on use.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.util
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cot_unsloth.core.errors import ConfigError
from cot_unsloth.core.types import Example, Split, Trace
from cot_unsloth.tasks.task import split_of

PREFIX = "gym:"
UNSUITABLE = {
    "composite": "it has no problems of its own",
    "game_of_life_halting": "its score_answer accepts wrong answers",
    "boxnet": "it gives no right answer",
    "rush_hour": "it gives no right answer",
}
"""Generators of reasoning-gym 0.1.25 that cannot be used, and why."""
SIZE = 10_000
"""Problems of a generator with one seed. Fixed, because the problems of some (acre) depend on the size."""
PATIENCE = 500
"""Problems without a new one of the split, after which a generator has no more: a tenth of them are test problems."""
_GOLD = ("example_correct_answer", "example_answer", "possible_answer")
"""Keys of the metadata that hold a right answer if the entry has none."""


@dataclass(frozen=True)
class GymProblem:
    """One problem of a generator."""

    task: str
    question: str
    entry: Any = field(compare=False)
    """As the generator made it: what its `score_answer` reads."""

    @property
    def answer(self) -> str:
        """A right answer; empty where the generator gives none. `accepts` decides whether another is right."""
        metadata = self.entry.get("metadata") or {}
        gold = self.entry["answer"] or next((metadata[name] for name in _GOLD if metadata.get(name)), "")
        return json.dumps(gold) if isinstance(gold, dict) else str(gold)

    @property
    def id(self) -> str:
        """The task's name and 12 hex digits (48 bits) of the question's hash."""
        return f"{self.task}-{hashlib.sha256(self.question.encode()).hexdigest()[:12]}"


def installed() -> bool:
    """Whether reasoning-gym is installed."""
    return importlib.util.find_spec("reasoning_gym") is not None


@functools.cache
def names() -> tuple[str, ...]:
    """The generators that can be named, in alphabetical order.

    Raises:
        ConfigError: reasoning-gym is not installed.
    """
    _require_installed(PREFIX)
    from reasoning_gym.factory import DATASETS

    return tuple(sorted(set(DATASETS) - set(UNSUITABLE)))


def parse_spec(spec: str) -> tuple[str, ...]:
    """The generators that a data set names.

    Raises:
        ConfigError: reasoning-gym is not installed, or has no such generator, or its answers cannot be checked.
    """
    _require_installed(spec)
    parts = tuple(dict.fromkeys(part.strip() for part in spec.removeprefix(PREFIX).split(",")))
    for part in parts:
        if part in UNSUITABLE:
            raise _bad_spec(f"{part!r} cannot be used: {UNSUITABLE[part]}", spec, "name others")
        if part not in names():
            near = difflib.get_close_matches(part.lower(), names(), 3)
            guess = f"did you mean {' or '.join(map(repr, near))}?" if near else f"such as {', '.join(names()[:8])}"
            raise _bad_spec(f"reasoning-gym has no generator {part!r}", spec, guess)
    return parts


def generate(spec: str, *, split: Split, n: int, seed: int) -> list[Example]:
    """`n` distinct problems of one split, divided evenly among the generators and interleaved.

    The split is a hash of the question, as for our own tasks, so training and test problems never overlap.

    Raises:
        ConfigError: as `parse_spec`, or a generator has too few such problems.
    """
    parts = parse_spec(spec)
    shares = [n // len(parts) + (i < n % len(parts)) for i in range(len(parts))]
    drawn = [_draw(part, split, share, seed, spec) for part, share in zip(parts, shares, strict=True)]
    interleaved = [rows[i] for i in range(max(shares)) for rows in drawn if i < len(rows)]
    return [
        Example(
            problem.id,
            problem.question,
            Trace((), problem.answer),
            problem.answer,
            problem.task,
            split,
            f"{spec}#{split}-{index}",
            problem=problem,
        )
        for index, problem in enumerate(interleaved)
    ]


def _draw(name: str, split: Split, n: int, seed: int, spec: str) -> list[GymProblem]:
    drawn: dict[str, GymProblem] = {}
    since_new = 0
    for entry in _entries(name, seed):
        if len(drawn) == n or since_new == PATIENCE:
            break
        question = str(entry["question"])
        is_new = split_of(question) == split and question not in drawn
        since_new = 0 if is_new else since_new + 1
        if is_new:
            drawn[question] = GymProblem(name, question, entry)
    if len(drawn) < n:
        raise ConfigError(
            f"{name} of reasoning-gym has fewer than {n} {split} problems: {len(drawn)} were found",
            where=f"dataset {spec}",
            hint="ask for fewer (--world-samples, --eval-samples), or name further generators",
            name="too_few_problems_in_task",
        )
    return list(drawn.values())


def _entries(name: str, seed: int) -> Iterator[Any]:
    """Problems without end."""
    for number in itertools.count():
        generator = _generator(name, seed + number)
        yield from map(generator.__getitem__, range(SIZE))


@functools.lru_cache(maxsize=64)
def _generator(name: str, seed: int) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(name, size=SIZE, seed=seed)


def accepts(problem: GymProblem, answer: str) -> bool:
    """Whether a generator takes an answer for entirely right."""
    try:
        return float(_generator(problem.task, 0).score_answer(answer, problem.entry)) >= 1.0
    except Exception:  # several raise on text that they cannot read, each what its parser raises
        return False


def _require_installed(spec: str) -> None:
    if not installed():
        raise _bad_spec("reasoning-gym is not installed", spec, "pip install 'cot-unsloth[gym]'")


def _bad_spec(message: str, spec: str, hint: str) -> ConfigError:
    return ConfigError(message, where=f"dataset {spec}", hint=hint, name="unknown_task")
