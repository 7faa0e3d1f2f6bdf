"""The verdict of a scorecard: the tuned arm is better or worse than the base, or n problems are too few to tell.

Gate, terminal, report and model card all use its sentence, so that none of them claims more than the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cot_unsloth.core import arm_names
from cot_unsloth.core.results import (
    ArmResult,
    Forgetting,
    Gate,
    Outcome,
    Paired,
    Scorecard,
    Settings,
    Tone,
    Verdict,
    VerdictKind,
)
from cot_unsloth.core.statistics import SIGNIFICANT, percent, resolvable

BASES = ("base_tags", "base_cot", "base_direct")
"""Base arms, first the one with the tuned arm's own prompt: the gate tests the first one that was scored."""
LARGE = 0.10
"""Ten points, a large difference. If n problems would miss even that in more than one case of five (`resolvable`, 80%
power), a difference that is not significant says nothing: "absence of evidence is not evidence of absence" (Altman and
Bland, BMJ 311, 1995). Many published comparisons in NLP are underpowered in this way (Card et al., EMNLP 2020)."""


def of(card: Scorecard) -> Verdict:
    """The verdict of a scorecard; computed now if the file has none because an older version wrote it."""
    if card.verdict is None:
        return reach(card.arms, card.paired, card.n)
    return card.verdict.model_copy(update={"sentence": arm_names.in_words(card.verdict.sentence)})


def problems(card: Settings) -> str:
    """What was scored, in words: held-out problems, or training problems that settings were chosen by."""
    return "development problems" if card.score_on == "development" else "held-out problems"


def scored_on(card: Settings) -> str:
    """The data that was scored, in words."""
    return f"{problems(card)} of {card.dataset}" if card.score_on == "development" else card.dataset


def headline(card: Scorecard) -> str:
    """The result in one line, such as "Better: 13.5% → 76.5% right, +63.0 points, 95% CI 55 to 70, n = 200"."""
    verdict = of(card)
    pair = next((pair for pair in card.paired if (pair.before, pair.after) == (verdict.before, verdict.after)), None)
    if pair is None:
        return _best_alone(card)
    before, after = (percent(card.arms[arm].accuracy).replace("100.0", "100") for arm in (pair.before, pair.after))
    low, high = (_points(bound) for bound in pair.ci95)
    # With a decimal, as in every table: 42.5 would be rounded to 42.
    difference = f"{100 * pair.difference + 0.0:+.1f}"
    return (
        f"{_KINDS[verdict.kind]}: {before} → {after} right, {difference} points, 95% CI {low} to {high}, n = {card.n}"
    )


def _points(share: float) -> str:
    """A bound in points, with one decimal below 10, where it may matter."""
    return f"{100 * share:.1f}" if abs(share) < 0.0995 else f"{100 * share:.0f}"


_KINDS: Mapping[VerdictKind, str] = {
    "better": "Better",
    "worse": "Worse",
    "no_difference": "No difference shown",
    "too_few": "Too few to tell",
}


def _best_alone(card: Scorecard) -> str:
    if not card.arms:
        return "Nothing was scored"
    name, arm = max(card.arms.items(), key=lambda item: item[1].accuracy)
    low, high = arm.ci95
    shares = f"{percent(arm.accuracy)} right, 95% CI {100 * low:.1f} to {100 * high:.1f}, n = {card.n}"
    title = arm_names.title(name)
    # An adapter keeps its name as it is written.
    return f"{title[0].upper() + title[1:] if name in arm_names.NAMES else title}: {shares}"


def reach(arms: Mapping[str, ArmResult], paired: Sequence[Paired], n: int) -> Verdict:
    """Compare the tuned arm with the best base arm.

    Having to beat the best of several arms makes `better` hard to reach by chance (an intersection-union test,
    Berger, Technometrics 24, 1982) and `worse` easier: with four equally good arms, simulated at n = 200, 0.2% of
    scorecards say better and 5% worse. A sentence may be wrong that often; the gate, which ends a command with an error,
    tests one arm that is fixed beforehand (2%).

    Args:
        arms: the scorecard's arms.
        paired: its pairs.
        n: problems.
    """
    start = start_pair(paired)
    pairs = base_pairs(paired) or ([start] if start else [])
    if not pairs:
        return Verdict(kind="not_compared", before=None, after=None, sentence=_not_compared(arms, n))
    # All pairs have the same tuned arm, so the smallest gain is that over the best base arm.
    best = min(pairs, key=lambda pair: pair.difference)
    # pairs[0] and `start` are the pairs that the gate tests: what fails there is never called better here.
    lost = next((pair for pair in (best, pairs[0], start) if pair and is_worse(pair)), None)
    pair = lost or best
    detectable = resolvable(n, (pair.gained + pair.lost) / n) if n else None
    kind: VerdictKind
    if lost:
        kind = "worse"
    elif pair.mcnemar_p < SIGNIFICANT:
        kind = "better"
    else:
        kind = "too_few" if detectable is None or detectable > LARGE else "no_difference"
    base = arm_names.in_sentence(pair.before) + (" (the best base arm)" if pair is best and len(pairs) > 1 else "")
    sentence = _sentence(kind, base, arms, pair, n, detectable)
    if start and pair is not start:
        sentence += f" Against the starting adapter: {_compared(arms, start, n)}."
    return Verdict(kind=kind, before=pair.before, after=pair.after, sentence=sentence)


def base_pairs(paired: Sequence[Paired]) -> list[Paired]:
    """The pairs of a base arm and the tuned one, in the order of BASES; the gate tests the first."""
    by_base = {pair.before: pair for pair in paired if pair.after == "tuned"}
    return [by_base[arm] for arm in BASES if arm in by_base]


def start_pair(paired: Sequence[Paired]) -> Paired | None:
    """The pair of the adapter that training continued and the tuned arm; None if training began with a new adapter."""
    return next((pair for pair in paired if (pair.before, pair.after) == ("start", "tuned")), None)


def over(card: Scorecard) -> list[Paired]:
    """Every pair with the tuned arm, with the tuned arm second: `difference` is its gain over the other arm."""
    pairs = [pair for pair in card.paired if "tuned" in (pair.before, pair.after)]
    return [pair if pair.after == "tuned" else _turned(pair) for pair in pairs]


def _turned(pair: Paired) -> Paired:
    low, high = pair.ci95
    update = {"before": pair.after, "after": pair.before, "gained": pair.lost, "lost": pair.gained}
    return pair.model_copy(update={**update, "difference": -pair.difference, "ci95": (-high, -low)})


def compared(pair: Paired) -> tuple[str, Tone]:
    """The result of a pair in a word or two for a table, and its colour: the second arm is `better` or `worse`."""
    if pair.mcnemar_p < SIGNIFICANT:
        return ("better", "good") if pair.difference > 0 else ("worse", "bad")
    return (
        ("no diff.", "neutral") if pair.resolvable is not None and pair.resolvable <= LARGE else ("too few", "neutral")
    )


def is_worse(pair: Paired) -> bool:
    """Whether the second arm of a pair is significantly worse."""
    return pair.difference < 0 and pair.mcnemar_p < SIGNIFICANT


def detects(n: int, detectable: float | None) -> str:
    """The smallest difference that n problems can detect, in words.

    >>> detects(500, 0.056), detects(4, None)
    ('n = 500 detects ≥ 5.6 points', 'n = 4 cannot show any difference')
    """
    return (
        f"n = {n} cannot show any difference"
        if detectable is None
        else f"n = {n} detects ≥ {100 * detectable:.1f} points"
    )


def _sentence(
    kind: VerdictKind, base: str, arms: Mapping[str, ArmResult], pair: Paired, n: int, detectable: float | None
) -> str:
    before, after = arms[pair.before].accuracy, arms[pair.after].accuracy
    shares, figures = _shares(arms, pair), _figures(pair, n)
    none_right = "No answer of the tuned arm is right. " if after == 0 else ""
    if kind in ("better", "worse"):
        return f"{none_right}{kind.capitalize()} than {base}: {shares}, {figures}."
    if kind == "too_few":
        compared = f"not better than {base}, {shares}" if after <= before else f"{shares} for {base}"
        limit = detects(n, detectable).replace("detects", "detects only differences")
        return f"{none_right}Too few problems to tell: {compared}, {figures}; {limit}."
    if after <= before:
        return f"{none_right}Not better than {base}, {shares}, {figures}: no significant difference; {detects(n, detectable)}."
    return f"No significant difference from {base}: {shares}, {figures}; {detects(n, detectable)}."


def _compared(arms: Mapping[str, ArmResult], pair: Paired, n: int) -> str:
    significant = "" if pair.mcnemar_p < SIGNIFICANT else ", no significant difference"
    return f"{_shares(arms, pair)}, {_figures(pair, n)}{significant}"


def _shares(arms: Mapping[str, ArmResult], pair: Paired) -> str:
    return f"{percent(arms[pair.after].accuracy)} against {percent(arms[pair.before].accuracy)}"


def _figures(pair: Paired, n: int) -> str:
    low, high = pair.ci95
    return (
        f"{100 * pair.difference:+.1f} points (95% CI {100 * low:.1f} to {100 * high:.1f}, n = {n}, "
        f"McNemar p = {pair.mcnemar_p:.2g})"
    )


def _not_compared(arms: Mapping[str, ArmResult], n: int) -> str:
    if not arms:
        return "Nothing was scored."
    name, arm = max(arms.items(), key=lambda item: item[1].accuracy)
    low, high = arm.ci95
    figures = f"{percent(arm.accuracy)} right (95% CI {100 * low:.1f} to {100 * high:.1f}, n = {n})"
    if len(arms) == 1:
        return f"Nothing was compared, as {arm_names.in_sentence(name)} alone was scored: {figures}."
    missing = "no base arm" if "tuned" in arms else "no tuned arm"
    return f"Nothing was compared, as {missing} was scored. Best of {len(arms)} arms: {arm_names.in_sentence(name)}, {figures}."


def outcome(failed: Sequence[str], verdict: Verdict) -> Outcome:
    """The outcome of the gate: failed if a check failed, passed if the tuned arm is significantly better.

    Otherwise it is undecided: exit code 0, but not shown as a success.
    """
    if failed:
        return "failed"
    return "passed" if verdict.kind == "better" else "undecided"


def gate_lines(card: Scorecard) -> list[tuple[Tone, str]]:
    """The gate's outcome in sentences, each with its colour."""
    failed, verdict = card.gate.failed if card.gate else (), of(card)
    if failed:
        return [("bad", f"Gate: failed, {arm_names.in_words(reason)}.") for reason in failed]
    if verdict.kind == "better":
        return [("good", "Gate: passed.")]
    why = {
        "too_few": "too few problems to tell",
        "no_difference": f"no significant difference from {arm_names.in_sentence(verdict.before or '')}",
        "not_compared": "there was nothing to compare",
    }
    # Worse than the best base arm, but not than the base arm under the same prompt, which the gate tests.
    gate_arm = next((pair.before for pair in base_pairs(card.paired)), "base")
    reason = why.get(verdict.kind, f"no significant loss against {arm_names.in_sentence(gate_arm)}")
    return [("neutral", f"Gate: undecided, {reason}.")]


def gate_in_words(gate: Gate) -> str:
    """Explains the gate and its outcome."""
    ends = "ends the command with exit code 3" if gate.asked else "would end the command with exit code 3 (it was off)"
    outcomes: Mapping[Outcome, str] = {
        "passed": "It passes if the tuned model is significantly better.",
        "failed": "All files were kept.",
        # Also where the verdict is "worse", against another base arm than the one that the gate tests.
        "undecided": "Undecided: it did not fail, and the tuned model was not shown to be better; the exit code is 0.",
    }
    least = gate.min_format_valid
    form = f", or if less than {percent(least)} of its answers are complete" if least else ""
    test = f"The gate is a check that {ends} if training made the model significantly worse{form}."
    return f"{test} {outcomes[gate.outcome]}" if gate.outcome else test


def forgetting(figures: Forgetting) -> str:
    """The effect of training on a task that was not trained on, in a sentence."""
    pair, n = figures.paired, figures.n
    low, high = pair.ci95
    difference = (
        f"{100 * pair.difference:+.1f} points (95% CI {100 * low:.1f} to {100 * high:.1f}, n = {n}, "
        f"McNemar p = {pair.mcnemar_p:.2g})"
    )
    task = "questions of general knowledge" if figures.task == "general" else figures.task
    shares = (
        f"On {task}, which it was not trained on, {percent(figures.before.accuracy)} were right before training and "
        f"{percent(figures.after.accuracy)} after, {difference}"
    )
    if is_worse(pair):
        return f"Warning: it forgot. {shares}."
    none = "" if pair.mcnemar_p < SIGNIFICANT else f": no significant difference; {detects(n, pair.resolvable)}"
    return f"Forgetting: {shares[0].lower()}{shares[1:]}{none}."


def readings(card: Scorecard) -> str:
    """How the answers of each arm were read, in a sentence; empty where the scorecard does not say.

    Such as "Read leniently (any final answer counts): every base arm. Read in the last <output> alone: the tuned model."
    """
    ways = {"lenient": "Read leniently (any final answer counts)", "last <output>": "Read in the last <output> alone"}
    bases = [arm for arm in card.arms if arm.startswith("base")]
    sentences = []
    for way, says in ways.items():
        arms = [arm for arm in card.arms if card.extraction.get(arm) == way]
        every_base = len(bases) > 1 and set(bases) <= set(arms)
        names = ["every base arm"] * every_base
        names += [arm_names.in_sentence(arm) for arm in arms if not (every_base and arm in bases)]
        sentences += [f"{says}: {', '.join(names)}."] * bool(names)
    return " ".join(sentences)
