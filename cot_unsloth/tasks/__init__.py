"""Worlds of verifiable problems: generate, solve step by step, check.

A data set of worlds is named `world:NAME[:STEPS][,NAME[:STEPS]...]`, for example
`world:chains:4-8,words:2-5`. Everything is seeded; splits are disjoint by construction
(see `chained`).
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any

from cot_unsloth.core.errors import ConfigError
from cot_unsloth.core.types import Example, Split
from cot_unsloth.tasks.chains import Chains
from cot_unsloth.tasks.countdown import Countdown
from cot_unsloth.tasks.task import Problem, World, draw_problems, example_of
from cot_unsloth.tasks.words import Words

WORLDS: dict[str, World[Any]] = {world.name: world for world in (Chains(), Words(), Countdown())}
PREFIX = "world:"
_PART = re.compile(r"(?P<name>[a-z_]+)(?::(?P<low>\d+)(?:-(?P<high>\d+))?)?")


@dataclass(frozen=True)
class Family:
    """One world at one difficulty."""

    world: World[Any]
    steps: tuple[int, int]


def is_world(dataset: str) -> bool:
    """Whether a data set is one of ours to generate, and not a file or a hub id."""
    return dataset.startswith(PREFIX)


_STEPS = "write NAME or NAME:LOW-HIGH, such as chains:4-8"


def parse_spec(spec: str) -> tuple[Family, ...]:
    """Read `world:chains:4-8,words` into families.

    >>> [(f.world.name, f.steps) for f in parse_spec("world:chains:6,words")]
    [('chains', (6, 6)), ('words', (2, 5))]

    Raises:
        ConfigError: it names no world we have, or a difficulty that is no range.
    """
    return tuple(_family(part.strip(), spec) for part in spec.removeprefix(PREFIX).split(","))


def _family(part: str, spec: str) -> Family:
    found = _PART.fullmatch(part)
    if not found:
        raise ConfigError(
            f"{part!r} is not a world",
            where=f"dataset {spec}",
            hint=_STEPS,
            name="unknown_task",
        )
    world = WORLDS.get(found["name"])
    if world is None:
        near = difflib.get_close_matches(found["name"], WORLDS, 1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"there is no world {found['name']!r}",
            where=f"dataset {spec}",
            hint=f"{guess}worlds: {', '.join(WORLDS)}",
            name="unknown_task",
        )
    low = int(found["low"]) if found["low"] else world.default_steps[0]
    high = int(found["high"] or low) if found["low"] else world.default_steps[1]
    if not 1 <= low <= high:
        raise ConfigError(
            f"{part!r}: steps must run from 1 upwards", where=f"dataset {spec}", hint=_STEPS, name="unknown_task"
        )
    if high > world.most_steps:
        raise ConfigError(
            f"{part!r}: {world.name} has at most {world.most_steps} steps",
            where=f"dataset {spec}",
            hint=_STEPS,
            name="unknown_task",
        )
    return Family(world, (low, high))


def problems(spec: str, *, split: Split, n: int, seed: int) -> list[Problem]:
    """`n` problems over the families of `spec`, shared out evenly and interleaved.

    Raises:
        ConfigError: the spec is not understood, or a family holds too few such problems.
    """
    families = parse_spec(spec)
    shares = [n // len(families) + (i < n % len(families)) for i in range(len(families))]
    lists: list[list[Problem]] = []
    for f, share in zip(families, shares, strict=True):
        taken = {problem.id for rows in lists for problem in rows}
        try:
            lists.append(draw_problems(f.world, split=split, n=share, seed=seed, steps=f.steps, taken=taken))
        except ValueError as error:
            raise ConfigError(
                str(error),
                where=f"dataset {spec}",
                hint="ask for fewer rows or more steps",
                name="too_few_problems_in_task",
            ) from error
    return [rows[i] for i in range(max(shares)) for rows in lists if i < len(rows)]


def generate(
    spec: str, *, split: Split, n: int, seed: int, error_rate: float = 0.0, clean_first: float = 0.0
) -> list[Example]:
    """The same problems with their solutions, steps made wrong and mended at `error_rate`.

    The first `clean_first` of them, a share, have clean solutions whatever the rate.

    Raises:
        ConfigError: as `problems`.
    """
    return [
        example_of(
            WORLDS[problem.task],
            problem,
            split=split,
            seed=seed,
            error_rate=error_rate if index >= clean_first * n else 0.0,
            where=f"{spec}#{split}-{index}",
        )
        for index, problem in enumerate(problems(spec, split=split, n=n, seed=seed))
    ]


def world_of(example: Example) -> World[Any] | None:
    """The world an example comes from; None where it comes from no world of ours."""
    return WORLDS.get(example.task) if is_world(example.where) else None
