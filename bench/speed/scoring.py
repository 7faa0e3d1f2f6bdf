"""What all contenders of a scoring measurement share: the questions, in slices, and their answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.speed import data
from bench.speed.session import Session, Work


def run_folder(work: Work) -> Path:
    """The run whose model answers; `data.make_run` has trained it."""
    return work.folder.parent / work.settings["run"] / "run"


def questions(work: Work, renderer: Any) -> list[list[Any]]:
    """For each round, its prompts: held-out problems of the demo, as the arm `tuned` is asked."""
    from cot_unsloth import tasks

    per_round, rounds = work.settings["questions"], work.rounds
    examples = tasks.generate(data.TASKS, split="test", n=per_round * rounds, seed=1234)
    prompts = [renderer.prompt(example, "tuned") for example in examples]
    return [prompts[i * per_round : (i + 1) * per_round] for i in range(rounds)]


def answer_all(
    work: Work,
    session: Session,
    rounds: Sequence[Sequence[Any]],
    answer: Callable[[Sequence[Any]], list[tuple[str, int]]],
) -> dict[str, Any]:
    """Answer the questions of each round; `answer` gives text and new tokens of each prompt."""
    texts: list[str] = []
    session.mark("ready")
    for prompts in rounds:
        session.start()
        answers = answer(prompts)
        session.done(questions=len(answers), new_tokens=sum(tokens for _, tokens in answers))
        texts += [text for text, _ in answers]
    data.write_lines(work.folder / f"answers-{work.name}.jsonl", texts)
    return {}


def trained_run(work: Work) -> tuple[Any, Any]:
    """Settings and renderer of the run."""
    from cot_unsloth.prompts.opening import open_renderer
    from cot_unsloth.storage.run_folder import RunDir

    run = RunDir(run_folder(work))
    config = run.read_config().overridden({"max_new_tokens": work.settings["max_new_tokens"]})
    return config, open_renderer(config.model, config.data, run.adapter)
