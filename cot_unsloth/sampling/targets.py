"""What `sample` can be asked of: a run, a model, a GGUF file or servers, each as a Generator with its prompts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cot_unsloth.core.progress import note
from cot_unsloth.models.generation import identity, most_tokens
from cot_unsloth.models.llamacpp import LlamaCpp
from cot_unsloth.models.protocols import Generator
from cot_unsloth.models.target import Target
from cot_unsloth.prompts.arms import Prompter
from cot_unsloth.sampling.attempts import as_turns, attempt_prompt
from cot_unsloth.sampling.records import SampleFolder, SampleSummary
from cot_unsloth.sampling.sample import Problems, completed, sample, training_problems, without_rows
from cot_unsloth.storage.lock import folder_lock


def sample_target(
    target: Target, out: Path | None = None, *, api_key: str | None = None, concurrency: int = 32
) -> tuple[SampleFolder, SampleSummary]:
    """Sample a model on the training problems of its settings.

    Args:
        target: the model, as `resolve_target` or `resolve_server` gave it.
        out: the folder; None for `default_folder`. An interrupted command is continued in it.
        api_key: for servers.
        concurrency: prompts that are sent to servers at a time.

    Returns:
        The folder, and what is in it.

    Raises:
        RunDirError: the folder holds samples of another model or other settings.
        DataError: there are no problems, or no attempt was accepted.
    """
    config, trained = target.config, _knows_the_format(target)
    folder = SampleFolder(out or default_folder(target))
    with folder_lock(folder.path):
        problems = training_problems(config, trained=trained)
        _announce(problems, target, trained)
        seed, model = config.train.seed, _identity(target)
        summary = completed(problems, config, folder, seed=seed, model=model)
        if summary is None:
            with _loaded(target, problems, api_key, concurrency) as (engine, prompter):
                summary = sample(engine, prompter, problems, config, folder, seed=seed, model=model)
    note(f"samples: {folder.path}")
    if not summary.rows:
        raise without_rows(summary, folder)
    return folder, summary


def default_folder(target: Target) -> Path:
    """`RUN/samples` of a run's own settings; else `samples/MODEL-DATASET`, which does not change when a command is repeated."""
    config = target.config
    if target.run is not None and not target.is_gguf and config == target.before_flags:
        return target.run.path / "samples"
    model = target.weights.name if target.weights and target.is_gguf else config.model.model_name_or_path
    source = target.run.path.name if target.run is not None else Path(model).name
    return Path("samples") / re.sub(r"[^\w.]+", "-", f"{source}-{config.data.dataset}".removesuffix("/"))[:100].strip(
        "-"
    )


def _knows_the_format(target: Target) -> bool:
    """Whether a run of ours trained the model; a base alone was not trained."""
    return target.trained and (target.weights is not None or bool(target.servers))


def _announce(problems: Problems, target: Target, trained: bool) -> None:
    k = target.config.sample.samples_per_problem
    leaked = f", {problems.leaked} that overlap with the test problems left out" if problems.leaked else ""
    note(f"sampling {len(problems.asked)} training problems, {k} attempts each{leaked}")
    if not trained:
        note(f"the model was not trained on our format: it is shown {len(problems.shown)} worked examples")


def _identity(target: Target) -> str:
    if target.servers:
        return target.config.model.model_name_or_path
    if target.is_gguf and target.weights is not None:
        return f"{target.weights.stat().st_mtime_ns} {target.weights.name}"
    return identity(target.config, target.weights)


@contextmanager
def _loaded(
    target: Target, problems: Problems, api_key: str | None, concurrency: int
) -> Iterator[tuple[Generator, Prompter]]:
    data = target.config.data
    if target.servers:
        yield target.connect(api_key, concurrency), Prompter(data)
    elif target.is_gguf and target.weights is not None:
        engine = LlamaCpp(target.weights, context=_context(problems, target))
        try:
            yield engine, Prompter(data)
        finally:
            engine.close()
    else:
        renderer, model = target.load()
        try:
            yield model, renderer
        finally:
            model.close()


def _context(problems: Problems, target: Target) -> int:
    """Tokens of a conversation. With less, attempts after long prompts would be cut off before their token limit."""
    config, shown = target.config, as_turns(problems.shown)
    prompter = Prompter(config.data)
    longest = most_tokens(attempt_prompt(prompter, problem, 0, shown) for problem in problems.asked)
    return longest + 256 + (config.sample.sample_max_new_tokens or config.evaluate.max_new_tokens)
