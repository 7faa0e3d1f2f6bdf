"""A sweep as tables and as a page: trials by rank, the history, what matters, and accuracy over each setting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cot_unsloth.core.results.scorecard import Tone
from cot_unsloth.core.results.sweep import Sweep, TrialResult
from cot_unsloth.core.verdict import detects
from cot_unsloth.lab.pairs import pair_grid, word
from cot_unsloth.reporting import plots
from cot_unsloth.reporting.page import Grid, Page, interval, percent, points


def page(sweep: Sweep, best_file: Path) -> Page:
    """A sweep to print or to write as a page."""
    notes = [
        f"Chosen on {sweep.n} development problems, which are training problems set aside; {sweep.method}, seed {sweep.seed}."
        + (
            " The best of many trials is too high by chance: only the comparison on held-out problems counts."
            if sweep.final
            else ""
        )
    ]
    notes += [f"Best settings: {best_file}"] if sweep.best is not None else []
    notes += [f"The comparison on held-out problems failed: {sweep.final_failed}"] if sweep.final_failed else []
    notes += _exhausted(sweep)
    failed = [trial for trial in sweep.trials if trial.reason]
    notes += [f"trial {trial.number} failed: {trial.reason}" for trial in failed]
    grids = [_trials(sweep)]
    if sweep.importance:
        shares = [(name, percent(share)) for name, share in sweep.importance.items()]
        grids.append(Grid("Importance (PED-ANOVA)", ("setting", "share"), shares))
    if sweep.final:
        caption = f"Held-out problems, trained on all training rows (n = {sweep.final.n})"
        rows = [(run.name, percent(run.accuracy), interval(run.ci95)) for run in sweep.final.runs]
        grids += [Grid(caption, ("settings", "right", "95%"), rows), pair_grid("Paired", sweep.final.pairs)]
    title = "sweep" if sweep.name == "sweep" else f"sweep {sweep.name}"
    return Page(title, *_sentence(sweep), notes=notes, grids=grids, figures=_figures(sweep))


def _exhausted(sweep: Sweep) -> list[str]:
    """A note where a search has no combination left."""
    tried = {
        tuple(str(trial.settings[name]) for name in sweep.space)
        for trial in sweep.trials
        if sweep.space.keys() <= trial.settings.keys()
    }
    if sweep.combinations is None or len(tried) < sweep.combinations or sweep.method == "grid":
        return []
    more = sweep.combinations != 1
    return [f"All {sweep.combinations} combinations are tried." if more else "The only combination is tried."]


def _trials(sweep: Sweep) -> Grid:
    columns = ("trial", "settings", "right", "95%", "over 0", "p (Holm)", "loss", "")
    has_default = any(trial.number == 0 and trial.development for trial in sweep.trials)
    return Grid(
        "Trials by rank on the development problems; no difference: not significant",
        columns,
        [_row(trial, has_default) for trial in sweep.trials],
    )


def _row(trial: TrialResult, has_default: bool) -> tuple[str, ...]:
    share, pair = trial.development, trial.against_default
    says: str = trial.state
    if trial.number == 0:
        says = "default"
    elif pair:
        says = word(pair) if pair.significant else "no difference"
    elif share is not None and has_default:
        says = "other problems, not ranked"
    return (
        str(trial.number),
        "\n".join(f"{name}={_short(value)}" for name, value in trial.settings.items()),
        "" if share is None else percent(share.accuracy),
        "" if share is None else interval(share.ci95),
        points(pair.difference) if pair else "",
        f"{pair.adjusted_p:.2g}" if pair else "",
        "" if trial.loss is None else f"{trial.loss:.3f}",
        says + (f", resumed {trial.resumed}x" if trial.resumed else ""),
    )


def _short(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _sentence(sweep: Sweep) -> tuple[str, Tone]:
    """What the sweep found."""
    if sweep.best is None:
        return "No trial is complete.", "bad"
    if sweep.best == 0:
        return "No trial was better than the default on the development problems.", "neutral"
    if sweep.final is None:
        return f"Trial {sweep.best} is first on the development problems; not compared on held-out ones.", "neutral"
    pair, n = sweep.final.pairs[0], sweep.final.n
    low, high = pair.ci95
    shares = " against ".join(percent(run.accuracy) for run in reversed(sweep.final.runs))
    figures = f"{shares}, {points(pair.difference)} points (95% {100 * low:.1f} to {100 * high:.1f}, n = {n}, McNemar p = {pair.mcnemar_p:.2g})"
    if pair.significant:
        better = pair.difference > 0
        return (
            f"The best settings are {word(pair)} than the default on held-out problems: {figures}.",
            "good" if better else "bad",
        )
    return (
        f"No significant difference between best settings and default: {figures}; {detects(n, pair.resolvable)}.",
        "neutral",
    )


def _figures(sweep: Sweep) -> list[str]:
    complete = sorted((t for t in sweep.trials if t.development), key=lambda trial: trial.number)
    if not complete:
        return []
    shares = [(float(t.number), t.development.accuracy) for t in complete if t.development]
    best, running = 0.0, []
    for number, share in shares:
        best = max(best, share)
        running.append((number, best))
    intervals = [t.development.ci95 for t in complete if t.development]
    lines = [plots.Line("trial", shares, intervals), plots.Line("best so far", running, dashed=True)]
    axes = plots.Axes("trial", "development problems right", share=True, whole_x=True)
    drawn = [plots.lines("history", lines, axes)]
    if sweep.importance:
        bars = [(name, share, (share, share)) for name, share in sweep.importance.items()]
        drawn.append(plots.bars("importance", bars, plots.Axes("share (PED-ANOVA)", "", share=True)))
    drawn.append(plots.panels("each setting", _panels(sweep, complete), "development problems right"))
    return drawn


def _panels(sweep: Sweep, complete: Sequence[TrialResult]) -> list[plots.Panel]:
    panels = []
    for name, space in sweep.space.items():
        values = [(t.settings[name], t.development.accuracy) for t in complete if name in t.settings and t.development]
        drawn = [
            (value if isinstance(value, int | float) and not isinstance(value, bool) else str(value), share)
            for value, share in values
        ]
        panels.append(plots.Panel(name, drawn, log=space.endswith("logarithmic")))
    return panels
