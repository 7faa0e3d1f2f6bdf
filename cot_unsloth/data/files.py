"""Reads the rows of a data set, given as files, folders or hub ids, each row with its position.

`sources` finds the files, `formats` reads them. A hub id is loaded with `datasets`, the only use of the network here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cot_unsloth.config import DataConfig
from cot_unsloth.core import network
from cot_unsloth.core.errors import DataError
from cot_unsloth.core.progress import note
from cot_unsloth.data import arrow_files, formats, sources, split_names
from cot_unsloth.data.rows import SourceRow


def read_rows(data: DataConfig, *, split_is_given: bool = True) -> Iterator[SourceRow]:
    """Every row of the files or hub data sets that the settings name.

    Args:
        data: the settings.
        split_is_given: whether to note that a file does not hold the split; the split of a benchmark is not the user's choice.

    Raises:
        DataError: a file does not exist, or cannot be read.
    """
    for source in sources.find_sources(data):
        if isinstance(source, str):
            yield from _read_hub(source, data)
        elif source.is_dir():
            yield from arrow_files.read_saved(source, data.dataset_split)
        else:
            rows = formats.read_file(source, data.dataset_split)
            is_named = any(Path(name).expanduser() == source for name in data.sources)
            expected = ("train", sources.split_in_name(source) or "train")  # the default, and what its name says
            noted = (
                split_is_given and is_named and not any(split_names.is_split(s, data.dataset_split) for s in expected)
            )
            yield from _announce_unsplit(rows, source, data.dataset_split) if noted else rows


def _announce_unsplit(rows: Iterator[SourceRow], path: Path, split: str) -> Iterator[SourceRow]:
    """The rows of a file; a split that is asked for and that the file does not hold is noted."""
    first = next(rows, None)
    if first is None:
        return
    if not first.where.startswith(f"{path}["):
        note(f"{path}: has no splits, so all of its rows are read, not only {split!r}")
    yield first
    yield from rows


def _read_hub(name: str, data: DataConfig) -> Iterator[SourceRow]:
    network.require("dataset", name)
    import datasets

    try:
        rows = datasets.load_dataset(
            name, data.dataset_config_name, split=data.dataset_split, revision=data.dataset_revision
        )
    except Exception as error:  # errors of the hub, network, cache and builders share no base class
        hint = "check the name, --dataset-split, --dataset-config-name and the network"
        raise DataError(
            f"is not a local file, and cannot be loaded as a hub data set: {error}",
            where=name,
            hint="; ".join(filter(None, [sources.suggest_name(Path(name)), hint])),
            name="not_on_the_hub",
        ) from error
    yield from arrow_files.rows_of(rows, f"{name}[{data.dataset_split}]")
