"""The settings of section `sample`: how the model's own attempts at training problems are drawn, checked and selected."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cot_unsloth.config.section import Section

Checker = Literal["auto", "task", "math", "choice", "exact"]


class SampleConfig(Section):
    """The model's own attempts: how many, how they are checked, and which become rows; for `sample` and method rft."""

    samples_per_problem: int = Field(
        8,
        ge=1,
        description="Attempts at each training problem; with more, more of the hard problems are solved at least once",
    )
    rounds: int = Field(3, ge=1, description="Most rounds of sampling and training, with method rft; `sample` runs one")
    continue_rounds: bool = Field(
        False,
        description="Each round of rft continues the adapter of the previous round, instead of training a new one on the samples of "
        "all rounds so far",
    )
    development_problems: int = Field(
        200,
        ge=1,
        description="Training problems, at most a fifth, that rft sets aside to judge its rounds by, and does not sample",
    )
    sample_temperature: float = Field(
        1.0, gt=0, description="Temperature of the attempts; if it is low, attempts are much alike"
    )
    sample_top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling of the attempts")
    sample_max_new_tokens: int | None = Field(
        None, ge=1, description="Token limit of an attempt; unset: max_new_tokens"
    )
    sample_problems: int | None = Field(
        None, ge=1, description="Sample at most this many training problems; unset: all"
    )
    max_per_problem: int = Field(
        4, ge=1, description="Most accepted attempts per problem that become rows; harder problems get more of them"
    )
    worked_examples: int = Field(
        2,
        ge=0,
        le=8,
        description="Training rows shown as earlier turns to a model that was not trained on our format; they are not part of the "
        "resulting rows",
    )
    own_reflections: bool = Field(
        True,
        description="Also make rows from the model's own wrong steps: the wrong step (without loss), a reflection that corrects it, "
        "and the rest of the solution",
    )
    checker: Checker = Field(
        "auto",
        description="How answers are checked; auto: as in scoring, by the task's own check or by comparison with the gold answer; task, "
        "math or choice require that kind; exact: the same text",
    )
