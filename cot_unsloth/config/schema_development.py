"""The settings of section `development`: how settings are chosen without the problems that a model is scored on in the end."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cot_unsloth.config.schema import Section


class DevelopmentConfig(Section):
    """Choosing between settings, as `sweep` does in each of its trials."""

    score_on: Literal["held_out", "development"] = Field(
        "held_out",
        description="Problems that the arms answer; development: up to development_problems of the training problems, set aside, and "
        "the held-out ones are not used",
    )
    eval_steps: float | None = Field(
        None,
        gt=0,
        description="Steps between measurements of the loss on the solutions of the problems to score, or below 1 the share of all "
        "steps; with sft; unset: never",
    )
