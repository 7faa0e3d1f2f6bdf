"""`train.method: grpo`: reinforcement learning on verifiable rewards, with TRL's GRPOTrainer.

Group Relative Policy Optimization (Shao et al. 2024, arXiv 2402.03300): the model draws several attempts at each problem, and
each attempt is reinforced by how much its reward exceeds the mean of its group. TRL computes advantages and loss. The engine
draws attempts with the same prompts and stop tokens as in scoring, and they are judged like the tuned arm. Every step draws its
own attempts, so they are always on-policy.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch
import transformers
import trl
from transformers import TrainerCallback

from cot_unsloth.core.progress import note
from cot_unsloth.core.results import FitReport
from cot_unsloth.core.statistics import mean
from cot_unsloth.core.types import Example, Prompt, SamplingParams
from cot_unsloth.evaluation.score import judge
from cot_unsloth.models.protocols import Trainable
from cot_unsloth.storage.run_folder import RunDir, checkpoint_step
from cot_unsloth.training import guards, rewards, trainers, training_problems
from cot_unsloth.training.batches import completion_log_probabilities
from cot_unsloth.training.callbacks import restart_hint
from cot_unsloth.training.development import Development, DevelopmentScore
from cot_unsloth.training.method import TrainingHooks
from cot_unsloth.training.preparation import Prepared, optimizer_steps
from cot_unsloth.training.rewards import Attempt
from cot_unsloth.training.trainers import StagedCheckpoints

datasets.disable_progress_bars()


@dataclass(frozen=True)
class Problem:
    """A problem, and its prompt for drawing attempts."""

    example: Example
    prompt: Prompt
    ids: tuple[int, ...]
    """Tokens of the prompt, as in scoring."""


class GroupRelativePolicyOptimization:
    """Reinforces the attempts whose reward is above the mean of their group."""

    name = "grpo"

    def train(self, engine: Trainable, data: Prepared, hooks: TrainingHooks) -> FitReport:
        """Train on the model's own attempts at the training problems; see `TrainingMethod`.

        Raises:
            DataError: no problem is left to train on.
            GuardError: more steps would not improve the model; see `training.guards`.
        """
        began = time.monotonic()
        config = engine.config
        train, dev = training_problems.split_for_grpo(config, data.train, data.trained_before)
        problems = [_problem(engine, data, example) for example in train]
        note(f"grpo: {len(problems)} problems to train on, {len(dev)} for development")
        transformers.set_seed(config.train.seed)  # before the adapter, whose A matrices are drawn at random
        model = engine.attach_trainable_weights()
        if config.train.full_finetuning:
            trainers.require_disk_space(model, config.train, hooks)
        trainer = _trainer(engine, model, problems, hooks)
        trainers.configure_trainer(trainer, engine, hooks)
        watch = _Watch(trainer, engine, [_problem(engine, data, example) for example in dev], hooks)
        trainer.add_callback(watch)
        trainers.run(trainer, engine, hooks, "lower --per-device-train-batch-size, or --gradient-checkpointing")
        report = _report(trainer, engine, data, began, len(problems))
        trainer.remove_reference()
        engine.training_finished()
        return report


def _problem(engine: Trainable, data: Prepared, example: Example) -> Problem:
    prompt = data.renderer.prompt(example, "tuned")
    return Problem(example, prompt, tuple(engine.chat.ids(engine.chat.prompt_text(prompt))))


class GrpoTrainer(StagedCheckpoints, trl.GRPOTrainer):
    """TRL's trainer with our checkpoints and our attempts; on a CPU, rows are joined instead of padded."""

    joins_rows = False
    best_step: Callable[[], int | None] = staticmethod(lambda: None)
    """The step whose checkpoint is never deleted."""

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        # Attempts, and the log probabilities of the reference adapter, are computed by the plain layers: the faster layers
        # hold the weights of the one adapter that was active when training began.
        with self.context.paused():
            scored = super()._generate_and_score_completions(inputs)
        # TRL's own figure is 0 or 1 where advantages are scaled by the whole batch.
        self._metrics["train"]["frac_reward_zero_std"][-1] = self._without_signal
        return scored

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> Any:
        if not self.joins_rows or self.context.is_paused:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
            )
        logps, entropies = completion_log_probabilities(
            model, input_ids, attention_mask, logits_to_keep, self.temperature
        )
        return logps, entropies, None

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        by_part = super()._calculate_rewards(*args, **kwargs)
        totals = (by_part * self.reward_weights.to(by_part.device)).sum(1).view(-1, self.num_generations)
        self._without_signal = float(torch.isclose(totals, totals[:, :1]).all(1).float().mean())
        return by_part

    def _save(self, *args: Any, **kwargs: Any) -> None:
        # The copy of the adapter that the KL divergence is measured from would be saved with it, and a resumed run would
        # then load the copy alone. It is made again from init_adapter.
        adapters = getattr(self.model, "peft_config", {})
        reference = adapters.pop("ref", None)
        try:
            super()._save(*args, **kwargs)
        finally:
            if reference is not None:
                adapters["ref"] = reference

    def remove_reference(self) -> None:
        """Remove the copy of the adapter that the KL divergence was measured from."""
        if "ref" in getattr(self.model, "peft_config", {}):
            self.model.delete_adapter("ref")

    def _is_kept(self, step: int) -> bool:
        return step == self.best_step()

    def development_metric(self, accuracy: float) -> None:
        """Add the accuracy on development problems to the metrics of this step."""
        self._metrics["train"]["development"].append(accuracy)


def _trainer(engine: Trainable, model: Any, problems: Sequence[Problem], hooks: TrainingHooks) -> GrpoTrainer:
    config, parts = engine.config, rewards.weighted(engine.config)
    arguments = training_arguments(engine, optimizer_steps(config, len(problems)), hooks)
    arguments.reward_weights = [weight for _, weight in parts.values()]
    order = _schedule(len(problems), arguments.max_steps * config.grpo.problems_per_step, config.train.seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are using 'rollout_func'")
        trainer = GrpoTrainer(
            model=model,
            reward_funcs=[_as_trl(name, reward) for name, (reward, _) in parts.items()],
            args=arguments,
            train_dataset=datasets.Dataset.from_dict({"prompt": [str(number) for number in order]}),
            processing_class=engine.chat.tokenizer,
            rollout_func=_Rollouts(engine, problems),
        )
    trainer.joins_rows = trainers.joins_rows(engine)
    return trainer


def _as_trl(name: str, reward: rewards.Reward) -> Any:
    def function(*, attempts: Sequence[Attempt], **_: Any) -> list[float]:
        return [reward(attempt) for attempt in attempts]

    function.__name__ = name
    return function


def _schedule(count: int, needed: int, seed: int) -> list[int]:
    """Indices of the problems in the order of the steps: all problems, shuffled anew for each pass.

    Computed in advance, because TRL's sampler draws a new order when training resumes in a later epoch.
    """
    order: list[int] = []
    generator = torch.Generator().manual_seed(seed)
    while len(order) < needed:
        order += torch.randperm(count, generator=generator).tolist()
    return order[:needed]


class _Rollouts:
    """TRL's `rollout_func`: attempts at the problems of a step, drawn by the engine."""

    def __init__(self, engine: Trainable, problems: Sequence[Problem]) -> None:
        self.engine, self.problems = engine, problems

    def __call__(self, prompts: Sequence[str], trainer: GrpoTrainer) -> dict[str, object]:
        """The attempts; `prompts` are indices of problems, each repeated once per attempt."""
        config, step = self.engine.config, trainer.state.global_step
        problems = [self.problems[int(number)] for number in prompts]
        # Sampling depends only on the seed and these names, so that a resumed run draws the same attempts.
        names = [f"{problem.example.id}|{step}|{number}" for number, problem in enumerate(problems)]
        sampling = SamplingParams(
            max_new_tokens=config.max_completion_length,
            temperature=config.grpo.rollout_temperature,
            seed=(config.train.seed + step) % 2**32,
            batch_size=config.evaluate.eval_batch_size,
        )
        answers = self.engine.answer_ids([problem.ids for problem in problems], names, sampling)
        trainer.model.train()
        tags, layout = config.data.thinking_tags, config.data.trace_layout
        return {
            "prompt_ids": [list(problem.ids) for problem in problems],
            "completion_ids": answers,
            "logprobs": None,  # of the sampler; TRL needs them only where it is another engine
            "attempts": [
                Attempt.of(problem.example, self.engine.completion(problem.prompt, ids), tags, layout)
                for problem, ids in zip(problems, answers, strict=True)
            ],
        }


class _Watch(TrainerCallback):
    """Scores the development problems every few steps, and stops training if a guard fires."""

    def __init__(
        self, trainer: GrpoTrainer, engine: Trainable, problems: Sequence[Problem], hooks: TrainingHooks
    ) -> None:
        self.trainer, self.engine, self.problems, self.hooks = trainer, engine, problems, hooks
        done = checkpoint_step(hooks.resume_from) if hooks.resume_from else 0
        self.development = Development(RunDir(hooks.checkpoints.parent).development, done)
        self._warned = self._explained = False
        trainer.best_step = lambda: self.development.best.step if self.development.scores else None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score the model that training begins with."""
        if self.problems and not self.development.scores:
            self._score(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score the development problems, and ask for a checkpoint if the score is the best so far."""
        step = state.global_step
        if not self.problems or (step % self.engine.config.grpo.dev_steps and step < state.max_steps):
            return
        self._score(step)
        if self.development.best.step == step:
            control.should_save = True

    def _score(self, step: int) -> None:
        config = self.engine.config
        sampling = SamplingParams(config.max_completion_length, batch_size=config.evaluate.eval_batch_size)
        with self.trainer.context.paused():
            answers = self.engine.generate([problem.prompt for problem in self.problems], sampling)
        self.trainer.model.train()
        tags = config.data.thinking_tags
        right = frozenset(
            problem.example.id
            for problem, answer in zip(self.problems, answers, strict=True)
            if judge(problem.example, answer, tagged=True, thinking_tags=tags).correct
        )
        self.development.add(DevelopmentScore(step, len(self.problems), right))
        if step:
            self.trainer.development_metric(len(right) / len(self.problems))

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop training if a guard fires.

        Raises:
            GuardError: with the reason, and the checkpoint to return to.
        """
        rows = [row for row in state.log_history if "loss" in row]
        if rows:
            self._explain_entropy("entropy" in rows[-1])
        if not self.engine.config.grpo.guards or not rows:
            return
        warning = guards.many_truncated(rows)
        if warning and not self._warned:
            self._warned = True
            note(f"warning, many_truncated: {warning}")
        error = guards.check(rows, self.development)
        if error is not None:
            error.message += f" (step {state.global_step})"
            error.hint = f"{error.hint}. {self._last_good()}"
            raise error

    def _explain_entropy(self, is_measured: bool) -> None:
        """Once: what it is; or that it is missing, as with Unsloth's loss on a GPU."""
        if self._explained:
            return
        self._explained = True
        note(
            "entropy (in the progress line) is the model's uncertainty about its next token; 0 means that it always writes the same"
            if is_measured
            else f"the loss of the {self.engine.name} engine does not measure entropy here, so its collapse is not detected"
        )

    def _last_good(self) -> str:
        best = self.trainer.best_step()
        path = self.hooks.checkpoints / f"checkpoint-{best}"
        if best and path.is_dir():
            return f"The best adapter on development problems is kept: --init-adapter {path} starts a new run from it"
        return restart_hint(self.hooks.checkpoints)


def training_arguments(engine: Trainable, steps: int, hooks: TrainingHooks) -> Any:
    """The trainer's arguments."""
    config, grpo = engine.config, engine.config.grpo
    attempts = grpo.generation_batch_size
    rows = max(n for n in range(1, config.train.per_device_train_batch_size + 1) if attempts % n == 0)
    arguments = trainers.training_arguments(
        trl.GRPOConfig,
        engine,
        hooks,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=attempts // rows,
        steps_per_generation=attempts // rows,  # a step is one draw of attempts
        num_iterations=1,
        num_generations=grpo.num_generations,
        max_completion_length=config.max_completion_length,
        temperature=grpo.rollout_temperature,
        loss_type=grpo.loss_type,
        scale_rewards=grpo.scale_rewards,
        beta=grpo.beta,
        epsilon=grpo.epsilon,
        epsilon_high=grpo.epsilon,
        # On a GPU, Unsloth's default with dapo is true: attempts that are cut off would carry no loss, and so no penalty.
        mask_truncated_completions=False,
        shuffle_dataset=False,  # see _schedule
        disable_dropout=True,  # attempts are drawn without dropout
        max_steps=steps,
        logging_steps=1,  # the guards look at every step
    )
    arguments.scale_rewards = grpo.scale_rewards  # with dr_grpo, Unsloth replaces "group" by "none"
    return arguments


def _report(trainer: GrpoTrainer, engine: Trainable, data: Prepared, began: float, problems: int) -> FitReport:
    """The fit report: tokens count all prompts and attempts, supervised tokens only the attempts."""
    rows = [row for row in trainer.state.log_history if "loss" in row]
    lengths = [row["completions/mean_length"] for row in rows]
    drawn = round(mean(lengths) * len(rows) * engine.config.grpo.generation_batch_size) if rows else 0
    tokens = int(trainer.state.num_input_tokens_seen)
    counts = {"rows": problems, "tokens": tokens, "supervised": drawn}
    return trainers.report(trainer, engine, data.samples, began).model_copy(update=counts)
