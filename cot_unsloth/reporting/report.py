"""`report.html`: a run folder, or a folder of scores, as one page.

It is written from the files in the folder; what is not there is left out. The page has no scripts and fetches nothing, so
that it can be mailed, printed, and opened years later.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cot_unsloth.core import trace, verdict
from cot_unsloth.core.results import Rounds, Scorecard, TokenAccuracy
from cot_unsloth.core.results.verification import read_verification
from cot_unsloth.core.types import Score, ThinkingTags
from cot_unsloth.reporting import grpo_plots, page, plots
from cot_unsloth.storage import atomic, records
from cot_unsloth.storage.run_folder import RunDir

GROUPS = {
    "won": "wrong before, right now",
    "lost": "right before, wrong now",
    "both right": "right before and now",
    "both wrong": "wrong before and now",
}
_OF_A_GROUP = 3
_AIMS = {
    "decomposition": "as many steps as the solver takes",
    "sequential_reasoning": "steps that follow from those before them",
    "transparency": "outputs that the thinking leads to",
    "self_correction": "repaired minus corrupted, of all answers",
}


@dataclass(frozen=True)
class Pair:
    """Two answers to one problem."""

    base: Score | None
    """None where only one arm was scored."""
    tuned: Score


@dataclass(frozen=True)
class Group:
    """Problems with the same change from base to tuned."""

    name: str
    says: str
    count: int
    pairs: list[Pair]
    """A few of them."""


def write(folder: RunDir) -> Path:
    """Write the report of a folder that holds a scorecard (a run, or an evaluation); returns its path.

    Raises:
        OSError: the folder holds no scorecard, or cannot be written.
    """
    from markupsafe import Markup

    env = page.environment()
    env.filters |= {"pct": page.percent, "interval": page.interval, "points": page.points}
    manifest = folder.read_manifest()
    card = Scorecard.read(folder.scorecard)
    arms = {arm: rows for arm in card.arms if (rows := records.read_completions(folder.completions(arm)))}
    rounds = Rounds.read_if_there(folder.rounds_report)
    figures = {**_figures(folder, card, arms), **_kept_curves(folder)}
    if rounds is not None:
        figures["rounds"] = _draw_rounds(rounds)
    text = env.get_template("report.html.j2").render(
        card=card,
        verdict=verdict.of(card),
        gate_lines=verdict.gate_lines(card) if card.gate else [],
        readings=verdict.readings(card),
        forgetting=verdict.forgetting(card.forgetting) if card.forgetting else "",
        faults=faults(card),
        aims=_AIMS,
        rounds=rounds,
        groups=_groups(arms),
        figures={name: Markup(svg) for name, svg in figures.items()},
        verified=read_verification(folder.export) if folder.verified.is_file() else None,
        manifest=manifest.as_json() if manifest else None,
        settings=folder.config.read_text(encoding="utf-8") if folder.config.is_file() else None,
        sections=functools.partial(_sections, thinking_tags=card.thinking_tags),
    )
    atomic.write_text(folder.report, text)
    return folder.report


def faults(card: Scorecard) -> str:
    """The format faults of the tuned arm, in a sentence."""
    tuned = card.arms.get("tuned")
    if tuned is None:
        return ""
    count = sum(tuned.faults.values())
    if not count:
        return "Every completion is a complete trace."
    cut = round(tuned.truncated * tuned.n)
    most = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in list(tuned.faults.items())[:3])
    return f"{count} of {tuned.n} completions have a format fault ({most}); {cut} reached the token limit."


def _kept_curves(folder: RunDir) -> dict[str, str]:
    """SVG plots that `curves` wrote into this folder, by name."""
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.path.glob("curves-*.svg"))}


def _figures(folder: RunDir, card: Scorecard, arms: Mapping[str, Sequence[Score]]) -> dict[str, str]:
    drawn = {}
    bars = [(name, arm.accuracy, arm.ci95) for name, arm in card.arms.items()]
    if bars:
        drawn["arms"] = plots.bars("right, by arm", bars, plots.Axes("95% interval: Wilson", "", share=True))
    steps = [row for row in records.read_jsonl(folder.metrics) if "loss" in row]
    learning = grpo_plots.draw(steps)
    drawn |= learning
    losses = [(float(row["step"]), float(row["loss"])) for row in steps]
    if losses and not learning:  # the loss of a policy gradient says nothing about how good the model is
        axes = plots.Axes("step", "loss a supervised token (nats)", markers=len(losses) < 30)
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
        (arm, [float(row.tokens) for row in rows])
        for arm, rows in arms.items()
        if arm in ("base_tags", "start", "tuned")
    ]
    if lengths:
        drawn["lengths"] = plots.histogram("tokens of an answer", lengths, plots.Axes("tokens", "answers"))
    return drawn


def _draw_rounds(rounds: Rounds) -> str:
    """Accuracy over rounds: on the development problems, and of the attempts that each round's model made."""
    results = rounds.rounds
    development = [(float(one.round), one.development.accuracy) for one in results]
    lines = [plots.Line("development, greedy", development, [one.development.ci95 for one in results])]
    # The attempts that a round is trained on are those of the model before it.
    sampled = [(float(one.round - 1), one.pass_at) for one in results if one.pass_at]
    for index, label in ((0, "training, pass@1"), (-1, f"training, pass@{sampled[0][1][-1].k if sampled else 1}")):
        points = [(at, of_round[index].rate) for at, of_round in sampled]
        lines.append(plots.Line(label, points, [of_round[index].ci95 for _, of_round in sampled], dashed=True))
    axes = plots.Axes("after round", "right", share=True, whole_x=True)
    return plots.lines("rounds of sampling and training", lines, axes)


def _groups(arms: Mapping[str, Sequence[Score]]) -> list[Group]:
    """A few answers of each group: won, lost, right twice, wrong twice."""
    before = next((arm for arm in verdict.BASES if arm in arms), None)
    if before is None or "tuned" not in arms:
        rows = next(iter(arms.values()), [])
        return [Group("answers", "the first ones", len(rows), [Pair(None, score) for score in rows[:_OF_A_GROUP]])]
    group_of = {(False, True): "won", (True, False): "lost", (True, True): "both right", (False, False): "both wrong"}
    pairs_of: dict[str, list[Pair]] = {name: [] for name in GROUPS}
    for base, tuned in zip(arms[before], arms["tuned"], strict=True):
        pairs_of[group_of[base.correct, tuned.correct]].append(Pair(base, tuned))
    return [Group(name, GROUPS[name], len(pairs), _spread(pairs)) for name, pairs in pairs_of.items()]


def _spread(pairs: Sequence[Pair]) -> list[Pair]:
    """A few pairs, of different tasks where there are several, those with a reflection first."""
    reflecting = sorted(pairs, key=lambda pair: trace.tags("reflection")[0] not in pair.tuned.text)
    first_of = {pair.tuned.task: pair for pair in reversed(reflecting)}
    rest = [pair for pair in reflecting if not any(pair is first for first in first_of.values())]
    return [*first_of.values(), *rest][:_OF_A_GROUP]


def _sections(text: str, thinking_tags: ThinkingTags) -> Iterator[tuple[str, str]]:
    """A completion in segments, each with the name of its section."""
    for event in trace.scan([text], thinking_tags):
        if event.kind == "text":
            yield event.section or "outside", event.text
