"""`compare`: compares two or more runs in pairs, on the problems that all of them answered, with the settings that differ."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from cot_unsloth.core.errors import ConfigError, RunDirError
from cot_unsloth.core.results import VERSION, Scorecard
from cot_unsloth.core.results.comparison import ComparedRun, Comparison
from cot_unsloth.core.results.scorecard import Tone
from cot_unsloth.core.statistics import resolvable
from cot_unsloth.core.types import Score
from cot_unsloth.core.verdict import detects
from cot_unsloth.evaluation.scorecard import arm_result
from cot_unsloth.lab.pairs import pair_grid, tested
from cot_unsloth.reporting import plots
from cot_unsloth.reporting.page import Grid, Page, interval, percent
from cot_unsloth.storage import records
from cot_unsloth.storage.run_folder import RunDir


@dataclass(frozen=True)
class _Scored:
    """A folder with scores."""

    name: str
    folder: RunDir
    card: Scorecard
    arm: str
    scores: dict[tuple[str, str, str], Score]
    """Scores by id, question and gold answer, which together identify a problem."""


def compare(paths: Sequence[Path], arm: str | None = None, names: Sequence[str] = ()) -> Comparison:
    """Compare runs, or other folders with a scorecard.

    Args:
        paths: at least two folders.
        arm: the arm to compare; None for `tuned`, or the last arm of a folder without it.
        names: names for the runs; the folders' names unless given.

    Raises:
        ConfigError: fewer than two folders, or they have no problem in common.
        RunDirError: a folder has no scores, or is damaged.
    """
    # One that is named twice (runs/A runs/*) would be compared with itself, and each pair of it be corrected for twice.
    distinct: dict[Path, Path] = {}
    for path in paths:
        distinct.setdefault(path.resolve(), path)
    paths = list(distinct.values())
    if len(paths) < 2:
        raise ConfigError("needs at least two runs", where="compare", hint="cot-unsloth compare runs/A runs/B")
    names = names or _names(paths)
    runs = [_scored(path, name, arm) for path, name in zip(paths, names, strict=True)]
    common = [key for key in runs[0].scores if all(key in run.scores for run in runs[1:])]
    if not common:
        seeds = ", ".join(f"{run.name}: {run.card.dataset}, seed {run.card.seed}" for run in runs)
        hint = "score them on the same: evaluate RUN --dataset ... --eval-seed ..., then compare RUN/evaluations/..."
        raise ConfigError(f"no problem was answered by all of them ({seeds})", where="compare", hint=hint)
    scores = {run.name: [run.scores[key] for key in common] for run in runs}
    return Comparison(
        version=VERSION,
        dataset=runs[0].card.dataset,
        n=len(common),
        runs=tuple(_compared(run, scores[run.name]) for run in runs),
        pairs=tested(list(itertools.combinations(names, 2)), scores),
        notes=tuple(_notes(runs, len(common))),
        differences=_differences(runs),
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """The folders' names; with the folders above them where these are equal."""
    for parts in range(1, 20):
        names = ["/".join(path.resolve().parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def _scored(path: Path, name: str, arm: str | None) -> _Scored:
    folder = RunDir(path)
    if not folder.scorecard.is_file():
        hint = "compare takes runs that train has finished, and folders that evaluate wrote"
        raise RunDirError("has no scorecard.json", where=str(path), hint=hint)
    card = Scorecard.read(folder.scorecard)
    arm = arm or ("tuned" if "tuned" in card.arms else next(reversed(card.arms), "tuned"))
    try:
        rows = records.read_completions(folder.completions(arm))
    except (ValueError, TypeError) as error:
        raise RunDirError(f"cannot be read: {error}", where=str(folder.completions(arm))) from error
    if not rows:
        known = f"; it has {', '.join(card.arms)}" if card.arms else ""
        raise RunDirError(f"has no completions of the arm {arm}{known}", where=str(path), hint="--arm NAME")
    return _Scored(name, folder, card, arm, {(row.id, row.question, row.gold): row for row in rows})


def _compared(run: _Scored, scores: Sequence[Score]) -> ComparedRun:
    result = arm_result(scores)
    return ComparedRun(
        accuracy=result.accuracy,
        ci95=result.ci95,
        name=run.name,
        arm=run.arm,
        mean_tokens=result.mean_tokens,
        format_valid=result.format_valid,
    )


def _notes(runs: Sequence[_Scored], common: int) -> list[str]:
    """Notes on what limits the comparison: problems that only some answered, and scores that were made differently."""
    notes = []
    if any(len(run.scores) != common for run in runs):
        answered = ", ".join(f"{run.name} {len(run.scores)}" for run in runs)
        notes.append(
            f"The runs answered different problems: only the {common} that all of them answered are compared (of {answered})."
        )
    facts: dict[str, list[object]] = {
        "temperature": [run.card.decoding.temperature for run in runs],
        "top_p": [run.card.decoding.top_p for run in runs],
        "max_new_tokens": [run.card.decoding.max_new_tokens for run in runs],
        "how answers are read": [run.card.extraction.get(run.arm, "unknown") for run in runs],
        "arm": [run.arm for run in runs],
        "model": [run.card.model for run in runs],
    }
    for name, values in facts.items():
        if len(set(values)) > 1:
            listed_values = ", ".join(f"{run.name} {value}" for run, value in zip(runs, values, strict=True))
            notes.append(f"Scored with different {name}: {listed_values}.")
    return notes


def _differences(runs: Sequence[_Scored]) -> dict[str, tuple[JsonValue, ...]]:
    """Settings that are not equal in all runs, of those that have settings."""
    if not all(run.folder.config.is_file() for run in runs):
        return {}
    configs = [run.folder.read_config() for run in runs]
    names = {name for other in configs[1:] for name in configs[0].differences(other)}
    trees = [config.model_dump(mode="json") for config in configs]
    return {
        name: tuple(tree[section][leaf] for tree in trees)
        for name in sorted(names)
        for section, _, leaf in (name.partition("."),)
    }


def page(comparison: Comparison) -> Page:
    """A comparison to print or to write as a page."""
    runs = Grid(
        f"{comparison.dataset}, n = {comparison.n} problems that all answered; 95% intervals: Wilson",
        ("run", "right", "95%", "format", "tokens"),
        [
            (run.name, percent(run.accuracy), interval(run.ci95), percent(run.format_valid), f"{run.mean_tokens:.0f}")
            for run in comparison.runs
        ],
    )
    grids = [runs, pair_grid("The same problems: Bonett and Price's interval, McNemar's exact test", comparison.pairs)]
    if comparison.differences:
        rows = [(name, *map(_shown, values)) for name, values in comparison.differences.items()]
        grids.append(Grid("Settings that differ", ("setting", *(run.name for run in comparison.runs)), rows))
    bars = [(run.name, run.accuracy, run.ci95) for run in comparison.runs]
    drawn = plots.bars("right, by run", bars, plots.Axes("95% interval: Wilson", "", share=True))
    title = f"{len(comparison.runs)} runs on {comparison.dataset}"
    return Page(title, *_sentence(comparison), notes=comparison.notes, grids=grids, figures=[drawn])


def _shown(value: object) -> str:
    return "–" if value is None else ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _sentence(comparison: Comparison) -> tuple[str, Tone]:
    """The result of the pairs in a sentence."""
    significant_pairs = [pair for pair in comparison.pairs if pair.significant]
    if not significant_pairs:
        # The pair that differs on the most problems needs the largest difference.
        share = max(pair.gained + pair.lost for pair in comparison.pairs) / comparison.n
        return f"No significant difference; {detects(comparison.n, resolvable(comparison.n, share))}.", "neutral"
    claims = [
        f"{pair.after if pair.difference > 0 else pair.before} is better than "
        f"{pair.before if pair.difference > 0 else pair.after} by {100 * abs(pair.difference):.1f} points"
        for pair in significant_pairs
    ]
    rest = len(comparison.pairs) - len(significant_pairs)
    more = f"; {rest} other pair{'s' * (rest != 1)}: no significant difference" if rest else ""
    return f"{'; '.join(claims)} (n = {comparison.n}){more}.", "neutral"


def write(comparison: Comparison, out: Path) -> Path:
    """Write `comparison.json` and `comparison.html`; returns the page."""
    comparison.write(out / "comparison.json")
    return page(comparison).write(out / "comparison.html")
