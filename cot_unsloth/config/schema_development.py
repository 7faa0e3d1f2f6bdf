"""The settings of section `development`: choosing between settings without using the held-out problems."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cot_unsloth.config.section import Section


class DevelopmentConfig(Section):
    """Choosing between settings, as `sweep` does in each of its trials."""

    score_on: Literal["held_out", "development"] = Field(
        "held_out",
        description="Problems that the arms answer; development: up to development_problems training problems, set aside; the "
        "held-out problems are then not used",
    )
    eval_steps: float | None = Field(
        None,
        gt=0,
        description="Steps between measurements of the loss on the solutions of the scored problems; below 1, a share of all "
        "steps; only with sft; unset: never",
    )
