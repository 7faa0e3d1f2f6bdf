"""The plan of a `transfer`: its tasks, existing adapters and combinations, parsed from command-line text."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cot_unsloth import tasks as generated
from cot_unsloth.core.errors import ConfigError
from cot_unsloth.evaluation.problems import SELECT_ROWS
from cot_unsloth.lab import factors
from cot_unsloth.lab.factors import Recipe
from cot_unsloth.storage.run_folder import RunDir

JOINT = "joint"
_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Task:
    """A task of the matrix."""

    name: str
    dataset: str
    """Its held-out problems are scored; its own adapter is trained on the others, or on `rows`."""
    rows: str | None = None
    """A data set with solutions, where `dataset` has none."""
    reading: Mapping[str, object] = field(default_factory=dict)
    """Settings of an existing run that determine the rows of `dataset`, such as its columns."""

    @property
    def trained_on(self) -> str:
        """The data set that its own adapter is trained on."""
        return self.rows or self.dataset


@dataclass(frozen=True)
class Mixture:
    """A combination of the adapters of all tasks, each with the same weight."""

    name: str
    recipe: Recipe
    weight: float


@dataclass(frozen=True)
class Options:
    """The adapters and tasks of a transfer."""

    folder: Path
    """Folder for the runs, the combined adapters, the scores and the result."""
    tasks: tuple[Task, ...]
    adapters: Mapping[str, Path] = field(default_factory=dict)
    """Existing adapters by name. Under a task's name, it is that task's adapter, which is then not trained; any other name adds
    a row."""
    joint: bool = True
    """Whether to train an adapter on the rows of all tasks."""
    mixtures: tuple[Mixture, ...] = ()


def task_of(text: str) -> Task:
    """A task as on the command line: a data set, or NAME=DATASET.

    >>> task_of("world:words:2-3"), task_of("sums=rows/a.jsonl").name, task_of("rows/b.jsonl.gz").name
    (Task(name='words-2-3', dataset='world:words:2-3', rows=None, reading={}), 'sums', 'b')
    """
    name, equals, dataset = text.partition("=")
    if equals and _NAME.fullmatch(name) and not Path(text).exists():
        return Task(name, dataset)
    plain = text.partition(":")[2] if generated.is_task_dataset(text) else Path(text).name.partition(".")[0]
    return Task(re.sub(r"[^\w.-]+", "-", plain).strip("-") or "data", text)


def tasks_of(
    datasets: Sequence[str],
    rows: Mapping[str, str] | None = None,
    adapters: Mapping[str, Path] | None = None,
    flags: Collection[str] = (),
) -> tuple[Task, ...]:
    """The tasks of data sets, or, without any, of the runs that `adapters` names.

    The data set of a task's run is read as that run has read it: its answers may be in a column of another name.

    Args:
        datasets: each as `task_of` takes it.
        rows: solutions to train on, by the name of a task.
        adapters: runs by name.
        flags: settings that were given, which take precedence over those of the runs.

    Raises:
        ConfigError: `rows` names none of the tasks.
        RunDirError: no data sets are given, and an adapter has no run.
    """
    tasks = [task_of(text) for text in datasets] or [
        Task(name, RunDir.open(path).read_config().data.dataset) for name, path in (adapters or {}).items()
    ]
    unknown = (rows or {}).keys() - {task.name for task in tasks}
    if unknown:
        known = ", ".join(task.name for task in tasks) or "none"
        raise ConfigError(f"no task is called {min(unknown)}; the tasks are {known}", where="--rows")
    return tuple(
        Task(
            task.name, task.dataset, (rows or {}).get(task.name), _reading(task, (adapters or {}).get(task.name), flags)
        )
        for task in tasks
    )


def _reading(task: Task, adapter: Path | None, flags: Collection[str]) -> dict[str, object]:
    if adapter is None or not (run := RunDir(adapter)).config.is_file():
        return {}
    data = run.read_config().data
    return {leaf: getattr(data, leaf) for leaf in SELECT_ROWS if leaf not in flags and data.dataset == task.dataset}


def mixtures_of(texts: Sequence[str], rank: int | None = None, density: float | None = None) -> tuple[Mixture, ...]:
    """Combinations as on the command line, with the options that their methods take.

    Raises:
        ConfigError: one is not understood, or none has an option that is given.
    """
    mixtures = tuple(mixture_of(text, rank, density) for text in texts)
    for flag, value, methods in (("--combine-rank", rank, factors.RANKED), ("--density", density, factors.PRUNING)):
        if value is not None and not any(mixture.recipe.method in methods for mixture in mixtures):
            raise ConfigError(f"applies to none of the combinations, only to {', '.join(methods)}", where=flag)
    return mixtures


def mixture_of(text: str, rank: int | None = None, density: float | None = None) -> Mixture:
    """A combination as on the command line: METHOD or METHOD:WEIGHT.

    Args:
        text: such as `cat:0.5`.
        rank: of the result, where the method takes one.
        density: share of each weight update that is kept, if the method drops entries.

    Raises:
        ConfigError: there is no such method, or the weight is not a number other than 0.

    >>> mixture_of("cat:0.5").name, mixture_of("ties").weight
    ('cat-0.5', 1.0)
    """
    name, _, number = text.partition(":")
    method = factors.require_method(name, f"--combine {text}")
    try:
        weight = float(number or 1)
    except ValueError:
        weight = float("nan")
    if not 0 < abs(weight) < float("inf"):
        raise ConfigError("has no number other than 0 after the colon", where=f"--combine {text}")
    recipe = factors.recipe(
        method,
        rank if method in factors.RANKED else None,
        density if method in factors.PRUNING else None,
    )
    return Mixture(text.replace(":", "-"), recipe, weight)
