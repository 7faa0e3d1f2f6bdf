"""Next-token accuracy on held-out traces, before and after training."""

from __future__ import annotations

from collections.abc import Sequence

from cot_unsloth.core import trace
from cot_unsloth.core.results import VERSION, SectionAccuracy, TokenAccuracy
from cot_unsloth.core.statistics import share
from cot_unsloth.models.protocols import Trainable
from cot_unsloth.storage.run_folder import RunDir
from cot_unsloth.training.preparation import Prepared

SCORED_ROWS = 64
"""Most held-out rows whose next-token accuracy is measured before and after training."""


def measure(run: RunDir, prepared: Prepared, engine: Trainable) -> None:
    """Measure how often base and tuned model predict the next token of held-out traces, by section, and write it.

    Each token is predicted from the true text before it (teacher forcing), so this measures how familiar the traces are, not
    how often answers are right.
    """
    chosen = [(e, s) for e, s in zip(prepared.test, prepared.test_samples, strict=True) if e.trace.parts][:SCORED_ROWS]
    if run.token_accuracy.is_file() or not chosen:
        return
    samples = [sample for _, sample in chosen]
    where = [prepared.renderer.sections(example, sample) for example, sample in chosen]
    with engine.as_base():
        base = engine.next_token_accuracy(samples)
    tuned = engine.next_token_accuracy(samples)
    sections = {}
    for section in trace.SECTIONS:
        shares = {
            model: share(sum(hits), len(hits))
            for model, rows in (("base", base), ("tuned", tuned))
            if (hits := _hits_in(section, rows, where))
        }
        if shares:
            sections[section] = SectionAccuracy(**shares)
    TokenAccuracy(version=VERSION, rows=len(samples), sections=sections).write(run.token_accuracy)


def _hits_in(
    section: str, rows: Sequence[Sequence[bool | None]], sections: Sequence[Sequence[str | None]]
) -> list[bool]:
    """For each scored token in one section, whether it was predicted."""
    return [
        hit
        for hits, names in zip(rows, sections, strict=True)
        for hit, name in zip(hits, names, strict=True)
        if name == section and hit is not None
    ]
