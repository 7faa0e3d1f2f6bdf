"""Generates answers to many prompts, so that an interrupted command neither loses nor repeats an answer.

Finished completions are appended to a draft, a file that belongs to one model, one list of prompts and one set of
sampling parameters. The next command with the same three reads it and asks only the prompts that are left.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from cot_unsloth.config import RunConfig
from cot_unsloth.core.progress import bar, note
from cot_unsloth.core.types import Completion, Prompt, SamplingParams
from cot_unsloth.models.protocols import Generator
from cot_unsloth.storage import environment, records
from cot_unsloth.storage.run_folder import RunDir

MOST_AT_ONCE = 64
"""Answers generated at a time on this machine, if neither settings nor memory say fewer. More gain little: 100 answers of
the tiny base took 9.3 CPU seconds in 16 slots, 7.3 in 32 and 7.0 in 64."""


def complete_prompts(
    engine: Generator, prompts: Sequence[Prompt], sampling: SamplingParams, title: str, draft: Path | None = None
) -> list[Completion]:
    """One completion per prompt, in the order of the prompts; answers in the draft are not generated again.

    Args:
        engine: answers the prompts.
        prompts: with unique ids.
        sampling: budget, temperature and seed.
        title: of the progress bar.
        draft: the file; None keeps nothing.
    """
    completions = {row["id"]: Completion(**row) for row in records.read_appended(draft)} if draft else {}
    remaining = [prompt for prompt in prompts if prompt.id not in completions]
    if len(remaining) < len(prompts):
        note(f"{title}: {len(prompts) - len(remaining)} of {len(prompts)} were answered before")
    began, tokens = time.monotonic(), 0
    with bar(title, len(remaining)) as progress:

        def advance(done: Sequence[Completion]) -> None:
            nonlocal tokens
            if draft:
                records.append_jsonl(draft, map(dataclasses.asdict, done))
            tokens += sum(completion.tokens for completion in done)
            progress.advance(len(done), **{"tokens/s": f"{tokens / (time.monotonic() - began):.0f}"})

        completions |= {completion.id: completion for completion in engine.generate(remaining, sampling, advance)}
    return [completions[prompt.id] for prompt in prompts]


def most_tokens(prompts: Iterable[Prompt]) -> int:
    """Tokens that the longest prompt has at most: a text rarely has more than characters, and a turn 100 more in its template."""
    return max((sum(len(turn["content"]) + 100 for turn in prompt.messages) for prompt in prompts), default=0)


def identity(config: RunConfig, weights: Path | None) -> str:
    """A text that identifies a model: how it is loaded, and which weights, written when, are on it."""
    files = weights.glob("*.safetensors") if weights else ()
    written = max((file.stat().st_mtime_ns for file in files), default=0)
    return f"{config.fingerprint('model')} {weights.resolve() if weights else ''} {written}"


def draft_of(folder: RunDir, arm: str, prompts: Sequence[Prompt], sampling: SamplingParams, model: str) -> Path:
    """The draft of an arm in a folder of scores, for one model, list of prompts and set of sampling parameters."""
    keys = [json.dumps(dataclasses.asdict(prompt), sort_keys=True) for prompt in prompts]
    parameters = dataclasses.asdict(dataclasses.replace(sampling, batch_size=1))  # the batch size decides no answer
    # "Plan" is the class's former name: with it, drafts of a run that an older version began are found again.
    text = f"Plan({', '.join(f'{name}={value!r}' for name, value in parameters.items())})"
    key = environment.text_hash(model, text, *keys)
    return folder.unfinished / f"{arm}-{key[:16]}.jsonl"
