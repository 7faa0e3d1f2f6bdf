"""Scores → Scorecard: summarizes arms, compares them in pairs, and writes them with settings, verdict and gate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cot_unsloth.config import HOW_LOADED, DataConfig, RunConfig
from cot_unsloth.core import verdict
from cot_unsloth.core.results import (
    VERSION,
    Accuracy,
    ArmResult,
    Contamination,
    Decoding,
    Forgetting,
    Paired,
    Recovery,
    Scorecard,
    Settings,
    StepsResult,
    TaskResult,
)
from cot_unsloth.core.statistics import mcnemar, paired_interval, resolvable, rounded, wilson
from cot_unsloth.core.types import Example, Score
from cot_unsloth.evaluation import reflection
from cot_unsloth.evaluation.arms import Arms, named_arms, reading_of
from cot_unsloth.evaluation.gate import gate
from cot_unsloth.evaluation.problems import how_to_score_more, scored_dataset
from cot_unsloth.reporting import report
from cot_unsloth.storage import atomic, environment
from cot_unsloth.storage.run_folder import RunDir


@dataclass(frozen=True)
class Further:
    """What a scorecard holds beside its arms; None where it is not known or was not asked for."""

    contamination: Contamination | None = None
    """Overlap of the training rows with the problems."""
    recovery: Recovery | None = None
    """Scores with injected errors."""
    forgetting: Forgetting | None = None
    """Scores on a task that was not trained on."""


def write(
    folder: RunDir,
    config: RunConfig,
    examples: Sequence[Example],
    arms: Arms,
    further: Further = Further(),
    trained: bool | Mapping[str, bool] = True,
    written: Mapping[str, DataConfig] | None = None,
) -> Scorecard:
    """Write the scorecard of the arms that were scored, and the report; completions in progress are removed.

    Args:
        folder: a run, or a folder for scores.
        config: the settings under which they were scored.
        examples: the problems, in the order of the scores.
        arms: scores by arm.
        further: what else was measured.
        trained: as in `arms.reading_of`.
        written: of the arms that write in tags or a layout of their own, the settings that say in which.
    """
    formats = {arm: (written or {}).get(arm, config.data) for arm in arms}
    metrics = {
        arm: reflection.summary(examples, scores, formats[arm].thinking_tags, formats[arm].trace_layout)
        for arm, scores in arms.items()
    }
    card = compare(arms, settings_of(config, arms, trained)).model_copy(
        update={
            "reflection": {arm: reflections for arm, (reflections, _) in metrics.items()},
            "aims": {arm: aims for arm, (_, aims) in metrics.items()},
            "contamination": further.contamination,
            "recovery": further.recovery,
            "forgetting": further.forgetting,
        }
    )
    reached = verdict.of(card)
    if reached.kind == "too_few":
        reached = reached.model_copy(update={"hint": how_to_score_more(config, folder, card.n)})
    card = card.model_copy(update={"verdict": reached, "gate": gate(config, card)})
    card.write(folder.scorecard)
    report.write(folder)
    # Removed last: while it exists, the same command continues in a folder of scores; afterwards it reports an error.
    atomic.remove_tree(folder.unfinished)
    return card


def settings_of(config: RunConfig, arms: Mapping[str, Sequence[Score]], trained: bool | Mapping[str, bool]) -> Settings:
    """The settings that the figures of a scorecard depend on."""
    evaluate = config.evaluate
    return Settings(
        version=VERSION,
        n=len(next(iter(arms.values()))) if arms else 0,
        seed=evaluate.eval_seed,
        model=config.model.model_name_or_path,
        loaded={leaf: getattr(config.model, leaf) for leaf in (*HOW_LOADED, "fast_inference")},
        dataset=scored_dataset(config),
        score_on=config.development.score_on,
        thinking_tags=config.data.thinking_tags,
        train_seed=config.train.seed,
        decoding=Decoding(
            temperature=evaluate.temperature, top_p=evaluate.top_p, max_new_tokens=evaluate.max_new_tokens
        ),
        interval="Wilson, 95%",
        paired_interval="Bonett-Price, 95%",
        test="exact McNemar, two-sided",
        extraction={arm: reading_of(arm, trained) for arm in arms},
        versions=environment.versions(),
    )


def compare(arms: Mapping[str, Sequence[Score]], settings: Settings) -> Scorecard:
    """The arms and their paired comparisons; what follows from them is added by `write`.

    Args:
        arms: scores by arm, each over the same problems in the same order.
        settings: n, seed, decoding, budget and everything else that the figures depend on.

    Raises:
        ValueError: the arms were scored on different problems.
    """
    ids = {arm: [score.id for score in scores] for arm, scores in arms.items()}
    if len({tuple(ids_of_arm) for ids_of_arm in ids.values()}) > 1:
        counts = {arm: len(ids_of_arm) for arm, ids_of_arm in ids.items()}
        raise ValueError(f"arms were scored on different problems: {counts}")
    # `start` too: what training added to the adapter that it began with.
    adapter_arms = named_arms(arms)
    pairs = [(arm, "tuned") for arm in arms if "tuned" in arms and arm not in ("tuned", "gguf", *adapter_arms)]
    pairs += [("tuned", "gguf")] if {"tuned", "gguf"} <= set(arms) else []
    # Additional adapters are compared with the model's own, or with the base if it has none.
    others = ["tuned"] if "tuned" in arms else [arm for arm in arms if arm not in adapter_arms]
    pairs += [(other, name) for name in adapter_arms for other in others]
    known_settings = {
        name: getattr(settings, name) for name in Settings.model_fields if name in settings.model_fields_set
    }
    return Scorecard(
        **known_settings,
        arms={arm: arm_result(scores) for arm, scores in arms.items()},
        paired=tuple(paired(before, after, arms) for before, after in pairs),
    )


def arm_result(scores: Sequence[Score]) -> ArmResult:
    """One arm of the scorecard: shares are of all n, intervals Wilson's 95%."""
    n, accuracy = len(scores), accuracy_of(scores)
    return ArmResult(
        accuracy=accuracy.accuracy,
        ci95=accuracy.ci95,
        strict=_mean([bool(score.strict) for score in scores]),
        lenient=_mean([bool(score.lenient) for score in scores]),
        format_valid=_mean([score.fault is None for score in scores]),
        truncated=_mean([score.stopped == "length" for score in scores]),
        no_answer=_mean([score.answer is None for score in scores]),
        too_costly=sum(score.too_costly for score in scores),
        mean_tokens=round(_mean([score.tokens for score in scores]), 2),
        faults=dict(Counter(score.fault for score in scores if score.fault).most_common()),
        by_task={
            task: _task_result([score for score in scores if score.task == task])
            for task in sorted({score.task for score in scores})
        },
        n=n,
    )


def _task_result(scores: Sequence[Score]) -> TaskResult:
    accuracy = accuracy_of(scores)
    return TaskResult(
        n=len(scores),
        accuracy=accuracy.accuracy,
        ci95=accuracy.ci95,
        by_steps=_by_steps(scores),
        first_try=_first_try(scores),
    )


def _by_steps(scores: Sequence[Score]) -> dict[str, StepsResult]:
    """Accuracy by how many steps the gold solution takes."""
    groups: dict[int, list[Score]] = {}
    for score in scores:
        if score.steps is not None:
            groups.setdefault(score.steps, []).append(score)
    results = {}
    for steps, group in sorted(groups.items()):
        accuracy = accuracy_of(group)
        results[str(steps)] = StepsResult(n=len(group), accuracy=accuracy.accuracy, ci95=accuracy.ci95)
    return results


def _first_try(scores: Sequence[Score]) -> Accuracy | None:
    """Share of all problems answered correctly without starting again; None for tasks with a single attempt."""
    if all(score.tries is None for score in scores):
        return None
    return accuracy_of([replace(score, correct=score.correct and score.tries == 1) for score in scores])


def accuracy_of(scores: Sequence[Score]) -> Accuracy:
    """Share of the answers that are right, with Wilson's 95% interval."""
    right, n = sum(score.correct for score in scores), len(scores)
    return Accuracy(accuracy=right / n if n else 0.0, ci95=rounded(wilson(right, n)))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def paired(before: str, after: str, arms: Mapping[str, Sequence[Score]]) -> Paired:
    """Two arms on the same problems, compared problem by problem."""
    old = {score.id: score.correct for score in arms[before]}
    new = {score.id: score.correct for score in arms[after]}
    gained = sum(new[key] and not old[key] for key in new)
    lost = sum(old[key] and not new[key] for key in new)
    return paired_counts(before, after, len(new), gained, lost)


def paired_counts(before: str, after: str, n: int, gained: int, lost: int) -> Paired:
    """Two arms on `n` problems, given how many problems were gained and lost from one to the other."""
    least = resolvable(n, (gained + lost) / n) if n else None
    return Paired(
        before=before,
        after=after,
        gained=gained,
        lost=lost,
        difference=(gained - lost) / n if n else 0.0,
        ci95=rounded(paired_interval(n, gained, lost)),
        mcnemar_p=mcnemar(gained, lost),
        resolvable=None if least is None else round(least, 4),
    )
