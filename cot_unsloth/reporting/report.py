"""`report.html`: a run folder, or a folder of scores, as one page.

It is made from the files in the folder; sections without a file are left out. The page has no scripts and fetches nothing, so
that it can be mailed, printed, and opened years later.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cot_unsloth.config import RunConfig
from cot_unsloth.core import arm_names, verdict
from cot_unsloth.core.results import (
    ArmResult,
    Curves,
    FitReport,
    Manifest,
    Rounds,
    Scorecard,
    StepsResult,
    TaskResult,
    TokenAccuracy,
    Tone,
)
from cot_unsloth.core.results.verification import read_verification
from cot_unsloth.core.types import Score
from cot_unsloth.models.adapter_files import read_config
from cot_unsloth.reporting import answers, curve_plots, grpo_plots, page, plots, wording
from cot_unsloth.reporting.answers import Group
from cot_unsloth.storage import atomic, records
from cot_unsloth.storage.run_folder import RunDir

_WITH_LENGTHS = ("base_tags", "start", "tuned")
"""Arms in the histogram of lengths: those with the same prompt."""


@dataclass(frozen=True)
class Bar:
    """A share with its interval, in per cent."""

    label: str
    kind: str
    value: str
    width: float
    low: float
    high: float


@dataclass(frozen=True)
class Chart:
    """Before and after at a glance."""

    bars: list[Bar]
    groups: list[Group]
    """Empty where a base and a tuned arm were not both scored."""
    says: str
    """The same in words."""


@dataclass(frozen=True)
class Over:
    """The gain of the tuned arm over another."""

    points: str
    word: str
    tone: Tone


@dataclass(frozen=True)
class TaskRow:
    """A task, or the problems of it that take so many steps, with a result for each arm of the table."""

    name: str
    n: int
    cells: Sequence[TaskResult | StepsResult]
    is_task: bool = False


@dataclass(frozen=True)
class ByTask:
    """The table of tasks."""

    arms: Sequence[str]
    rows: Sequence[TaskRow]


def write(folder: RunDir) -> Path:
    """Write the report of a folder that holds a scorecard (a run, or an evaluation); returns its path.

    Raises:
        OSError: the folder holds no scorecard, or cannot be written.
    """
    from markupsafe import Markup

    env = page.environment()
    env.filters |= {"pct": page.percent, "interval": page.interval, "points": page.points}
    env.filters |= {"title": arm_names.title}
    manifest = folder.read_manifest()
    card = Scorecard.read(folder.scorecard)
    arms = {arm: rows for arm in card.arms if (rows := records.read_completions(folder.completions(arm)))}
    rounds = Rounds.read_if_there(folder.rounds_report)
    figures = {**_figures(folder, arms), **_kept_curves(folder)}
    if rounds is not None:
        figures["rounds"] = _draw_rounds(rounds)
    corrected = card.reflection["tuned"].corrected_ids if "tuned" in card.reflection else ()
    groups = answers.groups(arms, verdict.of(card).before, corrected)
    text = env.get_template("report.html.j2").render(
        card=card,
        headline=verdict.headline(card),
        verdict=verdict.of(card),
        problems=verdict.problems(card),
        gate_lines=verdict.gate_lines(card) if card.gate else [],
        facts=_facts(folder, card, manifest),
        chart=_chart(card, groups),
        pairs=_over(card),
        by_task=_by_task(card),
        readings=verdict.readings(card),
        forgetting=verdict.forgetting(card.forgetting) if card.forgetting else "",
        wording=wording,
        gate_says=verdict.gate_in_words(card.gate) if card.gate else "",
        reasoning=_reasoning(card),
        reflecting=[arm for arm in _reasoning(card) if card.reflection[arm].n],
        rounds=rounds,
        groups=groups,
        figures={name: Markup(svg) for name, svg in figures.items()},
        captions={
            **wording.CAPTIONS,
            **_curves_captions(folder),
            "lengths": _lengths_caption(card),
            "loss": _loss_caption(folder),
        },
        verified=read_verification(folder.export) if folder.verified.is_file() else None,
        manifest=manifest.as_json() if manifest else None,
        settings=folder.config.read_text(encoding="utf-8") if folder.config.is_file() else None,
        shown=answers.shown_first(groups),
        blemishes=answers.blemishes,
        blocks=functools.partial(answers.blocks, thinking_tags=card.thinking_tags),
    )
    atomic.write_text(folder.report, text)
    return folder.report


def _facts(folder: RunDir, card: Scorecard, manifest: Manifest | None) -> list[tuple[str, str]]:
    """The facts at the top of the page: model, data, method, date, duration, and the command to chat with it."""
    facts = [("Model", card.model), ("Data", verdict.scored_on(card))]
    fit = FitReport.read_if_there(folder.fit_report)
    if folder.config.is_file():
        config = folder.read_config()
        facts.append(("Method", f"{config.train.method}, {_trained(folder, config)}, seed {config.train.seed}"))
    if manifest is not None and manifest.started is not None:
        machine = f", on {manifest.cpu}" if manifest.cpu else ""
        facts.append(("Date", f"{manifest.started[:16].replace('T', ' ')} UTC{machine}"))
    if fit is not None:
        facts.append(("Training", f"{_duration(fit.seconds)}, {fit.steps:,} steps on {fit.rows:,} rows"))
    if folder.trained_weights is not None:
        model = next(iter(folder.exported_models()), folder.path)
        facts.append(("Chat", shlex.join(["cot-unsloth", "chat", str(model)])))
    return facts


def _trained(folder: RunDir, config: RunConfig) -> str:
    """What was trained. An adapter that continues another keeps the rank of that one, whatever the settings say."""
    if config.train.full_finetuning:
        return "every weight"
    continues = config.train.init_adapter is not None and folder.adapter.is_dir()
    return f"LoRA, rank {read_config(folder.adapter).get('r') if continues else config.lora.lora_r}"


def _duration(seconds: float) -> str:
    """A time in its two largest units.

    >>> _duration(7.4), _duration(128), _duration(7510)
    ('7 s', '2 min 8 s', '2 h 5 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _chart(card: Scorecard, groups: Sequence[Group]) -> Chart | None:
    """Two bars, before and after, and below them what became of each problem."""
    reached = verdict.of(card)
    shown = [(arm, kind) for arm, kind in ((reached.before, "before"), (reached.after, "after")) if arm in card.arms]
    if len(shown) < 2 or not card.n:
        return None
    bars = [_bar(arm, kind, card.arms[arm]) for arm, kind in shown if arm is not None]
    counted = [group for group in groups if group.name in answers.GROUPS]
    says = "; ".join([*(f"{bar.label}: {bar.value}" for bar in bars), *(f"{g.name}: {g.count}" for g in counted)])
    return Chart(bars, counted, says)


def _bar(arm: str, kind: str, result: ArmResult) -> Bar:
    low, high = (100 * bound for bound in result.ci95)
    label = f"{kind.capitalize()}: {arm_names.title(arm)}"
    return Bar(label, kind, page.percent(result.accuracy), 100 * result.accuracy, low, high)


def _over(card: Scorecard) -> dict[str, Over]:
    """The tuned arm's gain over each arm that it is paired with."""
    result = {}
    for pair in verdict.over(card):
        word, tone = verdict.compared(pair)
        result[pair.before] = Over(page.points(pair.difference + 0.0), word, tone)
    return result


def _reasoning(card: Scorecard) -> list[str]:
    """The arms whose answers have thinking in them; a base that answers without any has nothing to measure."""
    shares = {arm: (aims.sequential_reasoning, aims.transparency) for arm, aims in card.aims.items()}
    return [arm for arm, measured in shares.items() if any(share.share is not None for share in measured)]


def _by_task(card: Scorecard) -> ByTask | None:
    """Accuracy by task and steps, of the base in the verdict and the tuned arm, or else of the first arms."""
    compared = [arm for arm in (verdict.of(card).before, "tuned") if arm in card.arms]
    arms = [arm for arm in (compared if len(compared) == 2 else list(card.arms)[:2]) if arm is not None]
    results = [card.arms[arm].by_task for arm in arms]
    rows = []
    for task in results[-1] if results else ():
        cells = [of_arm[task] for of_arm in results]
        rows.append(TaskRow(task, cells[0].n, cells, is_task=True))
        if len(cells[-1].by_steps) > 1:
            for steps, last in cells[-1].by_steps.items():
                rows.append(
                    TaskRow(f"{steps} step{'s' * (steps != '1')}", last.n, [cell.by_steps[steps] for cell in cells])
                )
    return ByTask(arms, rows) if len(rows) > 1 else None


def _kept_curves(folder: RunDir) -> dict[str, str]:
    """SVG plots that `curves` wrote into this folder, by name."""
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.path.glob("curves-*.svg"))}


def _curves_captions(folder: RunDir) -> dict[str, str]:
    """The captions of these plots, with the problems, which need not be those of the scorecard."""
    curves = Curves.read_if_there(folder.path / "curves.json")
    if curves is None:
        return {}
    scored = f"On {curves.n} problem{'s' * (curves.n != 1)} of {curves.dataset}."
    names = [f"curves-{plot}" for plot in curve_plots.NAMES]
    return {name: f"{wording.CAPTIONS[name]} {scored}" for name in names}


def _figures(folder: RunDir, arms: Mapping[str, Sequence[Score]]) -> dict[str, str]:
    drawn: dict[str, str] = {}
    steps = [row for row in records.read_jsonl(folder.metrics) if "loss" in row]
    learning = grpo_plots.draw(steps)
    drawn |= learning
    losses = [(float(row["step"]), float(row["loss"])) for row in steps]
    if losses and not learning:  # the loss of a policy gradient says nothing about how good the model is
        axes = plots.Axes("step", "loss a supervised token (nats)", markers=len(losses) < 30, whole_x=True)
        drawn["loss"] = plots.lines("training loss", [plots.Line("loss", losses)], axes)
    token_accuracy = TokenAccuracy.read_if_there(folder.token_accuracy)
    if token_accuracy:
        axes = plots.Axes("next token right, held-out solutions", "", share=True)
        accuracies = [
            (f"{section}, {model}", share.share or 0.0, share.ci95 or (0.0, 1.0))
            for section, measured in token_accuracy.sections.items()
            for model, share in measured.by_model.items()
        ]
        drawn["token accuracy"] = plots.bars("next-token accuracy, by section", accuracies, axes)
    lengths = [
        (arm_names.title(arm), [float(row.tokens) for row in rows])
        for arm, rows in arms.items()
        if arm in _WITH_LENGTHS
    ]
    if lengths:
        drawn["lengths"] = plots.histogram("tokens of an answer", lengths, plots.Axes("tokens", "answers"))
    return drawn


def _loss_caption(folder: RunDir) -> str:
    """The caption of the loss plot: what the loss is, and where harder rows begin."""
    data = folder.read_config().data if folder.config.is_file() else None
    if data is None or not (data.world_clean_first and data.world_error_rate and data.dataset.startswith("world:")):
        return wording.CAPTIONS["loss"]
    return f"{wording.CAPTIONS['loss']} After {data.world_clean_first:.0%} of the steps, rows with corrected errors begin: it rises."


def _lengths_caption(card: Scorecard) -> str:
    limit = f"How long the answers are, in tokens; the limit was {card.decoding.max_new_tokens}"
    cut = {arm: wording.cut_off(result) for arm, result in card.arms.items() if arm in _WITH_LENGTHS}
    reached = ", ".join(f"{count} of {arm_names.in_sentence(arm)}" for arm, count in cut.items() if count)
    return f"{limit}, which {reached or 'none'} reached."


def _draw_rounds(rounds: Rounds) -> str:
    """Accuracy over rounds: on the development problems, and of the attempts that each round's model made."""
    results = rounds.rounds
    development = [(float(result.round), result.development.accuracy) for result in results]
    lines = [plots.Line("development, greedy", development, [result.development.ci95 for result in results])]
    # The attempts that a round is trained on are those of the model before it.
    sampled = [(float(result.round - 1), result.pass_at) for result in results if result.pass_at]
    for index, label in (
        (0, "training, one attempt"),
        (-1, f"training, any of {sampled[0][1][-1].k if sampled else 1} attempts"),
    ):
        points = [(at, of_round[index].rate) for at, of_round in sampled]
        lines.append(plots.Line(label, points, [of_round[index].ci95 for _, of_round in sampled], dashed=True))
    axes = plots.Axes("after round", "right", share=True, whole_x=True)
    return plots.lines("rounds of sampling and training", lines, axes)
