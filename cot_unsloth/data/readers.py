"""From rows to Examples: every row is an Example with its split, or a Reject with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from cot_unsloth import tasks
from cot_unsloth.config import DataConfig
from cot_unsloth.data import files, formats, splits
from cot_unsloth.errors import DataError
from cot_unsloth.values import Example, Reject, Split


@dataclass(frozen=True)
class Loaded:
    """Every row accounted for: `rows == len(examples) + len(rejects)`."""

    rows: int
    examples: tuple[Example, ...]
    rejects: tuple[Reject, ...]

    def of(self, split: Split) -> list[Example]:
        """The examples of one split."""
        return [example for example in self.examples if example.split == split]


def load_examples(data: DataConfig, *, seed: int, eval_samples: int, eval_seed: int) -> Loaded:
    """All examples of a data set, each with its split.

    Worlds give `world_samples` training and `eval_samples` test problems. A file's or hub's
    questions are split by hash, seeded by `eval_seed` and grouped by question.

    Raises:
        DataError: it cannot be read, is empty, or every row of it is rejected.
        ConfigError: a world is not understood.
    """
    if tasks.is_world(data.dataset):
        return _world(data, seed, eval_samples, eval_seed)
    loaded = _read(data)
    held_out = splits.held_out(loaded.examples, data.test_fraction, eval_samples, eval_seed)
    examples = tuple(replace(e, split="test" if e.id in held_out else "train") for e in loaded.examples)
    return replace(loaded, examples=examples)


def load_problems(
    data: DataConfig, *, eval_samples: int, eval_seed: int, without: Collection[str] = ()
) -> list[Example]:
    """Problems to score a model on that is not trained on this data: all of a file's questions are in play.

    Args:
        data: the data set.
        eval_samples: the most problems to take.
        eval_seed: chooses among them.
        without: ids of questions to leave out.

    Raises:
        DataError: as `load_examples`.
    """
    if tasks.is_world(data.dataset):
        return tasks.generate(data.dataset, split="test", n=eval_samples, seed=eval_seed)
    found = (example for example in _read(data).examples if example.id not in without)
    return splits.distinct(found, eval_samples, eval_seed)


def _read(data: DataConfig) -> Loaded:
    """All rows of a file or hub data set, not yet split."""
    loaded = _rows_to_examples(files.rows(data), data)
    if not loaded.rows:
        raise DataError("holds no rows", where=data.dataset)
    if not loaded.examples:
        raise _all_rejected(loaded, data)
    return loaded


def _world(data: DataConfig, seed: int, eval_samples: int, eval_seed: int) -> Loaded:
    train = tasks.generate(
        data.dataset,
        split="train",
        n=data.world_samples,
        seed=seed,
        error_rate=data.world_error_rate,
        clean_first=data.world_clean_first,
    )
    test = tasks.generate(data.dataset, split="test", n=eval_samples, seed=eval_seed) if eval_samples else []
    return Loaded(len(train) + len(test), (*train, *test), ())


def tally(rejects: Iterable[Reject]) -> str:
    """How many rows were rejected for what, the most frequent reason first.

    >>> tally([Reject("f:1", "too_long", ""), Reject("f:2", "too_long", ""), Reject("f:3", "broken_json", "")])
    '2 too_long, 1 broken_json'
    """
    return ", ".join(f"{n} {reason}" for reason, n in Counter(r.reason for r in rejects).most_common())


def _all_rejected(loaded: Loaded, data: DataConfig) -> DataError:
    first = loaded.rejects[0]
    return DataError(
        f"all {loaded.rows} rows were rejected: {tally(loaded.rejects)}",
        where=data.dataset,
        hint=f"the first, {first.where}: {first.detail}; if the layout was guessed wrong, set --data-format",
    )


def _rows_to_examples(given: Iterable[files.Numbered], data: DataConfig) -> Loaded:
    """Read each row in the layout asked for, or the one that the first rows suggest."""
    stream = iter(given)
    head = _head(stream)
    layout = data.data_format if data.data_format != "auto" else _detect(head, data)
    count, examples, rejects = 0, [], []
    for where, row in (item for part in (head, stream) for item in part):
        count += 1
        if isinstance(row, Reject):
            rejects.append(row)
            continue
        try:
            if not isinstance(row, dict):
                raise formats.RowError("not_an_object", f"the row is {type(row).__name__}, not an object")
            examples.append(formats.example(row, layout, where))
        except formats.RowError as error:
            rejects.append(Reject(where, error.reason, str(error), files.shorten(row)))
    return Loaded(count, tuple(examples), tuple(rejects))


def _head(stream: Iterator[files.Numbered], objects: int = 50) -> list[files.Numbered]:
    """Rows up to the 50th that can be looked at."""
    head: list[files.Numbered] = []
    for numbered in stream:
        head.append(numbered)
        objects -= isinstance(numbered[1], dict)
        if not objects:
            break
    return head


def _detect(head: list[files.Numbered], data: DataConfig) -> str:
    objects = [row for _, row in head if isinstance(row, dict)]
    guesses = Counter(guess for row in objects if (guess := formats.detect(row)))
    if guesses:
        return guesses.most_common(1)[0][0]
    if objects:
        raise DataError(
            f"its columns are no layout we know: {', '.join(map(str, objects[0]))}",
            where=data.dataset,
            hint=f"rename them, or set --data-format to one of {', '.join(formats.LAYOUTS)}",
        )
    return "messages"
