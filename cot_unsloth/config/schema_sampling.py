"""The settings of section `sample`: how a model's own attempts at training problems are drawn, checked and selected."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cot_unsloth.config.schema import Section

Checker = Literal["auto", "task", "math", "choice", "exact"]


class SampleConfig(Section):
    """The model's own attempts: how many, how they are checked, and which become rows; for `sample` and method rft."""

    samples_per_problem: int = Field(
        8, ge=1, description="Attempts at each training problem; problems that are solved sometimes show up with more"
    )
    rounds: int = Field(
        3, ge=1, description="Most rounds of sampling and training, with method rft; `sample` alone takes one"
    )
    continue_rounds: bool = Field(
        False,
        description="Each round of rft trains the adapter of the round before further, instead of a new one on the samples of all "
        "rounds so far",
    )
    development_problems: int = Field(
        200,
        ge=1,
        description="Training problems, at most a fifth, that rft does not sample, and judges its rounds by",
    )
    sample_temperature: float = Field(
        1.0, gt=0, description="Temperature of the attempts; low ones make attempts alike"
    )
    sample_top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling of the attempts")
    sample_max_new_tokens: int | None = Field(
        None, ge=1, description="Tokens that an attempt may have; unset: as many as max_new_tokens"
    )
    sample_problems: int | None = Field(
        None, ge=1, description="Sample at most this many of the training problems; unset: all"
    )
    max_per_problem: int = Field(
        4, ge=1, description="Most accepted attempts at one problem that become rows; the harder the problem, the more"
    )
    worked_examples: int = Field(
        2,
        ge=0,
        le=8,
        description="Training rows shown as earlier turns to a model that was not trained on our format; never in the rows "
        "that come out",
    )
    own_reflections: bool = Field(
        True,
        description="Also make rows of the model's own wrong steps: the wrong step without loss, a reflection that corrects it, "
        "and the rest of the solution",
    )
    checker: Checker = Field(
        "auto",
        description="What accepts an answer; auto: as in scoring, by the task's own check or by comparing with the gold answer; task, "
        "math or choice require that kind; exact: the same text",
    )
