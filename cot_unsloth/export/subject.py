"""The model to export, from a run or from a base and an adapter, and the held-out rows that it is compared on."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path

from cot_unsloth.config import RunConfig
from cot_unsloth.core.types import Example
from cot_unsloth.data import load_problems
from cot_unsloth.export import file_names, weights
from cot_unsloth.models.adapter_files import local_adapter, trained_here, training_runs
from cot_unsloth.models.target import as_trained
from cot_unsloth.prompts.opening import open_renderer
from cot_unsloth.prompts.render import Renderer
from cot_unsloth.storage import records, run_folder
from cot_unsloth.storage.run_folder import RunDir

COMPARED_ROWS = 20
"""Held-out rows on which an export is compared token by token."""


@dataclass(frozen=True)
class Subject:
    """What is exported, and what it is compared on."""

    config: RunConfig
    trained_weights: Path | None
    """The folder of an adapter or of a fully fine-tuned model; None: the base is exported unchanged."""
    renderer: Renderer
    examples: tuple[Example, ...]
    """Held-out rows; the first `COMPARED_ROWS` of them are compared token by token."""
    tuned_correct: dict[str, bool] = field(default_factory=dict)
    """Whether the tuned model answered each of them correctly, by the row's id, if it was scored."""
    run: RunDir | None = None

    @property
    def stem(self) -> str:
        """What the files' names begin with."""
        return file_names.stem(self.config, tuned=self.trained_weights is not None)

    @property
    def is_full_model(self) -> bool:
        """Whether the trained weights are a full model and not an adapter."""
        return run_folder.is_full_model(self.trained_weights)

    @property
    def from_run(self) -> bool:
        """Whether a run of cot_unsloth trained it; this decides how an evaluation of the file reads its answers."""
        return self.trained_weights is not None and trained_here(self.trained_weights)

    @property
    def adapter(self) -> Path | None:
        """The adapter's folder; None for a full model, or the base alone."""
        return None if self.is_full_model else self.trained_weights

    @property
    def folder(self) -> Path:
        """The folder of the weights that are written, which an adapter is merged into."""
        if self.trained_weights is not None and self.is_full_model:
            return self.trained_weights
        return weights.base_folder(self.config)

    @property
    def context(self) -> int:
        """Tokens of the longest prompt and answer, which llama.cpp needs memory for."""
        return self.config.data.max_seq_length + self.config.evaluate.max_new_tokens


def subject_of_run(run: RunDir, config: RunConfig) -> Subject:
    """A finished run: its trained weights, its template and its held-out rows.

    Raises:
        RunDirError: it has no trained weights yet.
    """
    n = max(COMPARED_ROWS, config.export.export_samples)
    held_out = list(itertools.islice((row for row in records.iter_jsonl(run.kept) if row["split"] == "test"), n))
    # Of a run without a test split, its training rows: a comparison of two copies needs no unseen rows.
    rows = held_out or itertools.islice(records.iter_jsonl(run.kept), n)
    examples = tuple(map(records.kept_example, rows))
    correct = {row["id"]: row["correct"] for row in records.read_jsonl(run.completions("tuned"))}
    trained_weights, config = run.require_trained_weights(), as_trained(run, config)
    renderer = open_renderer(config.model, config.data, trained_weights)
    return Subject(config, trained_weights, renderer, examples, correct, run)


def subject_of_model(config: RunConfig, adapter: Path | None) -> Subject:
    """A base with an adapter that no run trained, or alone; `adapter` may be a fully fine-tuned model.

    It is compared on the data set that the settings name, without the questions that the adapter was trained on if
    a run folder next to it lists them.
    """
    if adapter is not None and not run_folder.is_full_model(adapter):
        adapter = local_adapter(adapter)
    renderer = open_renderer(config.model, config.data, adapter)
    runs = training_runs(adapter) if adapter is not None else []
    trained_on = {id_ for run in runs for id_ in run.question_ids("train")}
    n = max(COMPARED_ROWS, config.export.export_samples)
    examples = load_problems(
        config.data, eval_samples=n, eval_seed=config.evaluate.eval_seed, without=trained_on, to_score_on=False
    )
    return Subject(config, adapter, renderer, tuple(examples))
