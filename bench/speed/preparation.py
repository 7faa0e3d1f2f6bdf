"""What all contenders of a preparation measurement share: problems of the demo's tasks or rows of a file, in slices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.speed import data
from bench.speed.session import Work


def examples(work: Work) -> tuple[list[Any], Any]:
    """Rows that are read but not rendered, enough for every round, and their renderer."""
    from cot_unsloth.data import load_examples
    from cot_unsloth.prompts.opening import open_renderer

    n = work.settings["rows"] * work.rounds
    source = work.settings.get("dataset", data.TASKS)
    config = data.config(work.settings, dataset=source, world_samples=n, world_error_rate=0.1)
    loaded = load_examples(config.data, seed=3407, eval_samples=0, eval_seed=1234)
    renderer = open_renderer(config.model, config.data)
    # A row that we would reject is in no contender's work.
    rows = loaded.in_split("train")
    return [rows[i % len(rows)] for i in range(n)], renderer


def slices(rows: Sequence[Any], work: Work) -> Iterator[Sequence[Any]]:
    """The rows of each round."""
    n = work.settings["rows"]
    return (rows[i * n : (i + 1) * n] for i in range(work.rounds))


def tokenizer_folder(work: Work) -> Path:
    """The folder of the tokenizer."""
    return Path(work.settings["base"])
