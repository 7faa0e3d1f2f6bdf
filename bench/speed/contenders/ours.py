"""cot_unsloth, through the calls that its own commands make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.speed import data, preparation, scoring
from bench.speed.session import Session, Work
from bench.speed.training import Blocks, adapter_folder, data_folder


def train(work: Work, session: Session) -> dict[str, Any]:
    """`prepare`, the engine and the method of `train.method`, as `pipeline.train` calls them."""
    from cot_unsloth.models import registry
    from cot_unsloth.training.method import TrainingHooks, training_method
    from cot_unsloth.training.preparation import prepare

    config = data.training_config(data_folder(work), work.settings, **work.options)
    choice = registry.choose(config.model)
    registry.apply_patches(choice)
    prepared = prepare(config)
    session.mark("prepared")
    engine = registry.load(config, prepared.renderer.chat, choice)
    blocks, totals = Blocks(work, session), [0]

    def on_start(total: int) -> None:
        totals[0] = total
        session.mark("ready")
        blocks.begin()

    hooks = TrainingHooks(
        work.folder / f"checkpoints-{work.name}",
        on_start=on_start,
        on_step=lambda step: blocks.step(step.tokens, last=step.step >= step.total),
        on_log=lambda row: blocks.losses.append(float(row["loss"])),
    )
    report = training_method(config.train.method).train(engine, prepared, hooks)
    engine.save(adapter_folder(work))
    return blocks.facts() | report.extra.as_json()


def score(work: Work, session: Session) -> dict[str, Any]:
    """The engine with the adapter, as `evaluate` loads it; the run's own sampling parameters."""
    from cot_unsloth.models import registry
    from cot_unsloth.storage.run_folder import RunDir

    config, renderer = scoring.trained_run(work)
    weights = RunDir(scoring.run_folder(work)).trained_weights
    engine = registry.load(config, renderer.chat, registry.choose(config.model), weights)

    def answer(prompts: Sequence[Any]) -> list[tuple[str, int]]:
        return [(c.text, c.tokens) for c in engine.generate(prompts, config.sampling_params)]

    return scoring.answer_all(work, session, scoring.questions(work, renderer), answer)


def score_gguf(work: Work, session: Session) -> dict[str, Any]:
    """The exported file in llama.cpp, as the arm `gguf` is scored."""
    from cot_unsloth.models.llamacpp import LlamaCpp
    from cot_unsloth.storage.run_folder import RunDir

    config, renderer = scoring.trained_run(work)
    file = next(RunDir(scoring.run_folder(work)).export.glob(f"*{work.settings['gguf'].upper()}.gguf"))
    rounds = scoring.questions(work, renderer)
    longest = max(len(renderer.chat.ids(renderer.chat.prompt_text(p))) for prompts in rounds for p in prompts)
    engine = LlamaCpp(file, context=longest + config.evaluate.max_new_tokens)

    def answer(prompts: Sequence[Any]) -> list[tuple[str, int]]:
        return [(c.text, c.tokens) for c in engine.generate(prompts, config.sampling_params)]

    try:
        return scoring.answer_all(work, session, rounds, answer) | {"file": file.name}
    finally:
        engine.close()


def prepare(work: Work, session: Session) -> dict[str, Any]:
    """`Renderer.samples`: template, tokens, labels and every check of a row."""
    examples, renderer = preparation.examples(work)
    tokens = 0
    for some in preparation.slices(examples, work):
        session.start()
        rendered = renderer.samples(some)
        session.done(rows=len(rendered.samples))
        tokens += sum(len(sample.ids) for sample in rendered.samples)
    return {"tokens": tokens}
