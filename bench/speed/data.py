"""Rows and models of the measurements, made once: `python -m bench.speed.data KIND FOLDER SETTINGS`.

Training rows are problems of the demo's tasks, a tenth of whose steps is corrupted and corrected. Longer rows join several
problems and their solutions into one, shorter ones are picked. They are written as a data set (`train.jsonl`, which
cot_unsloth reads), as messages (`train.messages.jsonl`) and as token ids with labels (`train.tokens.jsonl`), so that every
contender trains on the same tokens with the same loss mask.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

TASKS = "world:chains,words,countdown"
SHORTEST = 0.75
"""Rows of a given length have at least this share of its tokens."""


def config(settings: dict[str, Any], **flags: Any) -> Any:
    """The settings of cot_unsloth for a measurement."""
    from cot_unsloth.config import load_tree

    shared = {"model_name_or_path": settings["base"], "max_seq_length": settings.get("longest", 2048), "seed": 3407}
    prompt = {"system_prompt": settings["system_prompt"]} if "system_prompt" in settings else {}
    return load_tree({}, {**shared, **prompt, **flags})


def joined(examples: Sequence[Any]) -> Any:
    """Several problems as one."""
    from cot_unsloth.core.types import Trace

    parts = tuple(part for example in examples for part in example.trace.parts)
    return dataclasses.replace(
        examples[0],
        question="\n".join(example.question for example in examples),
        trace=Trace(parts, examples[-1].trace.output),
        answer=examples[-1].answer,
    )


def of_length(examples: Iterable[Any], renderer: Any, tokens: int) -> Iterator[Any]:
    """Problems of at most `tokens` tokens, and not much shorter ones, joined where one is too short."""
    buffer: list[Any] = []
    for example in examples:
        buffer.append(example)
        whole = joined(buffer)
        (sample,) = renderer.samples([whole]).samples or (None,)
        if sample is None or len(sample.ids) > tokens:
            buffer = []
        elif len(sample.ids) >= SHORTEST * tokens:
            buffer = []
            yield whole


def draw(settings: dict[str, Any], renderer: Any, split: Any, n: int) -> list[Any]:
    """`n` problems with solutions."""
    from cot_unsloth import tasks

    tokens = settings.get("tokens")
    if not tokens:
        return tasks.generate(TASKS, split=split, n=n, seed=3407, error_rate=0.1)
    some = n * max(8, tokens // 40)
    return list(of_length(tasks.generate(TASKS, split=split, n=some, seed=3407, error_rate=0.1), renderer, tokens))[:n]


def make_rows(folder: Path, settings: dict[str, Any]) -> None:
    """Write training and held-out rows.

    Raises:
        RuntimeError: too few problems have the length.
    """
    from cot_unsloth.core import trace
    from cot_unsloth.prompts.opening import open_renderer

    wide = config(settings, max_seq_length=4096)
    renderer = open_renderer(wide.model, wide.data)
    for split, n in (("train", settings["rows"]), ("test", settings["held_out"])):
        examples = draw(settings, renderer, split, n)
        if len(examples) < n:
            raise RuntimeError(f"{len(examples)} rows of {settings.get('tokens')} tokens, {n} are needed")
        write_lines(
            folder / f"{split}.jsonl",
            ({"question": e.question, "response": trace.render(e.trace), "answer": e.answer} for e in examples),
        )
        if split == "test":
            write_tokens(folder / "test.tokens.jsonl", renderer.samples(examples).samples)
    write_training_rows(folder, settings)


def write_training_rows(folder: Path, settings: dict[str, Any]) -> None:
    """Token ids and messages of the rows as cot_unsloth reads and renders them from the data set."""
    from cot_unsloth.training.preparation import prepare

    prepared = prepare(training_config(folder, settings))
    if len(prepared.samples) != settings["rows"]:
        raise RuntimeError(f"{len(prepared.samples)} of {settings['rows']} rows were kept: {prepared.rejects[:1]}")
    write_tokens(folder / "train.tokens.jsonl", prepared.samples)
    renderer = prepared.renderer
    write_lines(folder / "train.messages.jsonl", (messages(renderer, example) for example in prepared.train))


def messages(renderer: Any, example: Any) -> dict[str, list[Any]]:
    """A row as TRL's prompt and completion."""
    prompt = [dict(message) for message in renderer.prompt(example, "tuned").messages]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": renderer.solution(example)}]}


def training_config(folder: Path, settings: dict[str, Any], **flags: Any) -> Any:
    """The settings of our runs on these rows."""
    return config(
        settings, dataset=str(folder / "train.jsonl"), eval_samples=0, engine="hf", save_steps=100_000,
        per_device_train_batch_size=settings["batch"], gradient_accumulation_steps=1,
        learning_rate=settings["learning_rate"], **flags,
    )  # fmt: skip


def write_tokens(path: Path, samples: Iterable[Any]) -> None:
    """Ids and labels, a row a line."""
    write_lines(path, ({"input_ids": list(s.ids), "labels": list(s.labels)} for s in samples))


def write_lines(path: Path, values: Iterable[Any]) -> None:
    """Values as JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")


def make_run(folder: Path, settings: dict[str, Any]) -> None:
    """Train the demo for some steps, export it as GGUF, and merge it: the model of the scoring measurements."""
    run = folder / "run"
    command = [sys.executable, "-m", "cot_unsloth.train", "--max-steps", str(settings["train_steps"])]
    more = ["--eval-samples", "0", "--gguf", settings["gguf"], "--merged", "--run-dir", str(run)]
    subprocess.run([*command, *more], check=True, stdout=subprocess.DEVNULL)


def make_export_base(folder: Path, settings: dict[str, Any]) -> None:
    """The random base and adapter of `bench/export.py`."""
    script = Path(__file__).parent.parent / "export.py"
    command = [sys.executable, str(script), "--step", "make", settings["size"], settings["tokenizer"], str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


KINDS = {"rows": make_rows, "run": make_run, "export_base": make_export_base}


def main() -> None:
    """Make one kind of data, unless it is there."""
    kind, folder, settings = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    if not (folder / "made").exists():
        folder.mkdir(parents=True, exist_ok=True)
        KINDS[kind](folder, settings)
        (folder / "made").touch()


if __name__ == "__main__":
    main()
