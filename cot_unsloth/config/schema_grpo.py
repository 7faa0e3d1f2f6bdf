"""The settings of section `grpo`: how attempts are drawn and rewarded, and when training stops early."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cot_unsloth.config.section import LocalPath, Section


class GrpoConfig(Section):
    """Reinforcement learning on verifiable rewards, with method grpo."""

    num_generations: int = Field(
        8,
        ge=2,
        description="Attempts at each problem, compared with one another; 4 on a small GPU, 16 for hard problems",
    )
    generation_batch_size: int = Field(
        64,
        ge=2,
        description="Attempts per optimizer step, at this / num_generations problems; a forward pass takes "
        "per_device_train_batch_size of them, which determines gradient_accumulation_steps",
    )
    max_completion_length: int | None = Field(
        None, ge=1, description="Token limit of an attempt; unset: max_new_tokens"
    )
    rollout_temperature: float = Field(
        1.0, gt=0, description="Temperature of the attempts; at 1 they are drawn from the model's own distribution"
    )
    loss_type: Literal["dapo", "dr_grpo", "bnpo", "grpo"] = Field(
        "dapo", description="How the loss is averaged: dapo over all tokens of a step; the others as in TRL"
    )
    scale_rewards: Literal["batch", "group", "none"] = Field(
        "batch",
        description="What advantages are divided by: the standard deviation of the rewards of a step (batch), that of a problem's "
        "attempts (group), or nothing (none)",
    )
    beta: float = Field(
        0.0,
        ge=0,
        description="Weight of the KL divergence from the model that training began with; above 0 costs a forward pass",
    )
    epsilon: float = Field(
        0.2,
        gt=0,
        description="Clipping of the probability ratio; no effect here, because each step draws its own attempts",
    )
    reward_correct: float = Field(1.0, ge=0, description="Weight of a right answer (1 or 0)")
    reward_format: float = Field(
        0.1,
        ge=0,
        description="Weight of a valid trace (0, or -1 for a fault); a large weight teaches format instead of answers",
    )
    reward_reflection: float = Field(
        0.05,
        ge=0,
        description="Weight of reflecting in the right places: 0, down to -1 for missed errors and needless reflections; only for "
        "tasks that check steps",
    )
    reward_overlong: float = Field(
        0.2,
        ge=0,
        description="Weight of the length penalty: 0 up to the last overlong_share of the tokens, then down to -1",
    )
    overlong_share: float = Field(
        0.2, gt=0, le=1, description="Last share of max_completion_length over which the length penalty grows"
    )
    pass_rates: LocalPath | None = Field(
        None,
        description="Output folder of `sample`, or its problems.jsonl: train only on problems that were sometimes solved, since others "
        "give no signal",
    )
    dev_problems: int = Field(
        64,
        ge=0,
        description="Training problems held out to check that accuracy rises with the reward; never the test set",
    )
    dev_steps: int = Field(10, ge=1, description="Optimizer steps between greedy scores on these problems")
    guards: bool = Field(
        True,
        description="Stop with a reason when training no longer improves the model: no signal, no right answer, truncated answers, "
        "collapsed entropy, or rewards that rise while accuracy falls",
    )

    @property
    def problems_per_step(self) -> int:
        """Problems per optimizer step."""
        return self.generation_batch_size // self.num_generations
