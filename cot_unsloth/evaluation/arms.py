"""Arms: how a model is asked the held-out problems, and how its answers are read.

The base is asked directly, step by step, and under our system prompt; the adapter that training began with, the tuned
model and the exported file under our system prompt. All arms answer the same problems, and every completion is kept in `completions/ARM.jsonl`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import get_args

from cot_unsloth.config import AnyArm, Arm, RunConfig
from cot_unsloth.core import arm_names
from cot_unsloth.core.results import Reading
from cot_unsloth.core.types import Example, SamplingParams, Score
from cot_unsloth.evaluation import score
from cot_unsloth.models.adapter_files import starting_adapter
from cot_unsloth.models.generation import complete_prompts, draft_of, identity, most_tokens
from cot_unsloth.models.llamacpp import LlamaCpp
from cot_unsloth.models.protocols import Generator, Trainable
from cot_unsloth.prompts.arms import Prompter
from cot_unsloth.prompts.render import Renderer
from cot_unsloth.storage import records
from cot_unsloth.storage.run_folder import RunDir

ARM_NAMES = ("base", *get_args(Arm), "start", "gguf", "forgetting_before", "forgetting_after")
"""Names that no adapter beside the scored model can have."""
Arms = dict[str, list[Score]]
"""Scores by arm, each over the same problems."""


def named_arms(arms: Iterable[str]) -> list[str]:
    """The arms that are additional adapters, under names of their own."""
    return [arm for arm in arms if arm not in ARM_NAMES]


def reading_of(arm: str, trained: bool | Mapping[str, bool]) -> Reading:
    """How an arm's answers are read, given whether cot_unsloth trained the model (or, by name, each adapter).

    The base is read leniently, under our system prompt too, so that a gain never comes from the format alone. So is any
    model that cot_unsloth did not train: it never learned to answer inside `<output>`.
    """
    ours = trained if isinstance(trained, bool) else trained.get(arm, trained["tuned"])
    return "last <output>" if ours and not arm.startswith(("base_", "forgetting_")) else "lenient"


def score_arm(
    engine: Generator,
    prompter: Prompter,
    examples: Sequence[Example],
    arm: str,
    sampling: SamplingParams,
    folder: RunDir | None = None,
    model: str = "",
    trained: bool = True,
) -> list[Score]:
    """Ask one arm every problem, and judge its answers.

    Args:
        engine: the model.
        prompter: writes the prompts.
        examples: the problems.
        arm: the arm, which decides the prompt; any other name is that of an adapter, which is asked like `tuned`.
        sampling: the sampling parameters.
        folder: where the completions are kept; those left by a killed process are not generated again.
        model: distinguishes models whose completions are in the same folder.
        trained: whether cot_unsloth trained the model; see `reading_of`.

    Returns:
        A score for each problem, in the same order.
    """
    prompts = [prompter.prompt(example, arm) for example in examples]
    draft = draft_of(folder, arm, prompts, sampling, model) if folder else None
    completions = complete_prompts(engine, prompts, sampling, f"score {arm_names.title(arm)}", draft)
    tagged = reading_of(arm, trained) == "last <output>"
    tags = prompter.data.thinking_tags
    scores = [score.judge(e, c, tagged=tagged, thinking_tags=tags) for e, c in zip(examples, completions, strict=True)]
    if folder:
        records.write_jsonl(folder.completions(arm), [dataclasses.asdict(score_) for score_ in scores])
    return scores


def score_arms(
    engine: Trainable,
    renderer: Renderer,
    examples: Sequence[Example],
    arms: Iterable[AnyArm],
    config: RunConfig,
    folder: RunDir,
    weights: Path | None,
    trained: bool = True,
) -> Arms:
    """Score several arms in the given order.

    Base arms are scored on the base, `start` on `train.init_adapter`, `tuned` on the trained weights: `weights`, the
    adapter or full model that the engine has loaded. The other parameters are those of `score_arm`.
    """
    scores: Arms = {}
    # If every weight was trained, `as_base` loads the base beside the model: only once for all of its arms.
    for role, group in itertools.groupby(arms, lambda arm: arm if arm in ("start", "tuned") else "base"):
        with _answering_as(engine, role):
            model = identity(config, starting_adapter(config) if role == "start" else weights)
            for arm in group:
                scores[arm] = score_arm(engine, renderer, examples, arm, config.sampling_params, folder, model, trained)
    return scores


def _answering_as(engine: Trainable, role: str) -> AbstractContextManager[None]:
    if role == "tuned":
        return contextlib.nullcontext()
    return engine.as_start() if role == "start" else engine.as_base()


def score_gguf(
    file: Path,
    prompter: Prompter,
    examples: Sequence[Example],
    sampling: SamplingParams,
    folder: RunDir,
    trained: bool = True,
) -> list[Score]:
    """Score a GGUF file in llama.cpp as the arm `gguf`, and keep its completions in a folder.

    Raises:
        ModelError: it cannot be loaded.
    """
    # With less, answers after long prompts would be cut off before their token limit.
    longest = most_tokens(prompter.prompt(example, "gguf") for example in examples)
    engine = LlamaCpp(file, context=longest + prompter.data.max_seq_length + sampling.max_new_tokens)
    try:
        model = f"{file.stat().st_mtime_ns} {file.name}"
        return score_arm(engine, prompter, examples, "gguf", sampling, folder, model, trained)
    finally:
        engine.close()


def read_scores(path: Path, examples: Sequence[Example]) -> list[Score] | None:
    """The scores of an arm from an earlier command, if they are for exactly these problems; else None."""
    scores = records.read_completions(path)
    same = [(s.id, s.question, s.gold) for s in scores] == [(e.id, e.question, e.answer) for e in examples]
    return scores if scores and same else None
