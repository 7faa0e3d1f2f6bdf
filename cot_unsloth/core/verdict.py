"""What a scorecard shows, as one typed verdict and its sentence.

Decides whether the tuned arm is better or worse than the base, and where n problems cannot say. Gate, terminal,
report and model card repeat it, so that none of them claims more than the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cot_unsloth.core.results import ArmResult, Outcome, Paired, Scorecard, Tone, Verdict, VerdictKind
from cot_unsloth.core.statistics import SIGNIFICANT, resolvable

BASES = ("base_tags", "base_cot", "base_direct")
"""Base arms, the one under the tuned arm's own prompt first: the first of these that was scored is the gate's."""
LARGE = 0.10
"""A difference that nobody would call small. Where n problems would miss even this one more than once in five times
(resolvable, 80% power), that none was seen says nothing: "absence of evidence is not evidence of absence" (D. G. Altman
and J. M. Bland, BMJ 311, 1995). D. Card and others found many comparisons in NLP to be so (EMNLP 2020)."""


def of(card: Scorecard) -> Verdict:
    """The verdict of a scorecard: as it was stored, or, of one that is older than verdicts, reached now."""
    return card.verdict or reach(card.arms, card.paired, card.n)


def reach(arms: Mapping[str, ArmResult], paired: Sequence[Paired], n: int) -> Verdict:
    """Compare the tuned arm with the best base arm.

    Having to beat the best of several arms makes `better` hard to reach by chance (an intersection-union test, R. L.
    Berger, Technometrics 24, 1982) and `worse` easier: of four equally good arms, simulated at n = 200, 0.2% come out
    better and 5% worse. That colours a sentence; the gate, which ends a run, tests one arm that was fixed beforehand (2%).

    Args:
        arms: the scorecard's arms.
        paired: its pairs.
        n: problems.
    """
    pairs = base_pairs(paired)
    if not pairs:
        return Verdict(kind="not_compared", before=None, after=None, sentence=_not_compared(arms, n))
    best = min(pairs, key=lambda pair: pair.difference)
    lost = next((pair for pair in (best, pairs[0]) if is_worse(pair)), None)
    pair = lost or best
    detectable = resolvable(n, (pair.gained + pair.lost) / n) if n else None
    kind: VerdictKind
    if lost:
        kind = "worse"
    elif pair.mcnemar_p < SIGNIFICANT:
        kind = "better"
    else:
        kind = "too_few" if detectable is None or detectable > LARGE else "no_difference"
    base = pair.before + (" (the best base arm)" if pair is best and len(pairs) > 1 else "")
    sentence = _sentence(kind, base, arms, pair, n, detectable)
    return Verdict(kind=kind, before=pair.before, after=pair.after, sentence=sentence)


def base_pairs(paired: Sequence[Paired]) -> list[Paired]:
    """The pairs of a base arm and the tuned one, in the order of BASES; the gate tests the first."""
    found = {pair.before: pair for pair in paired if pair.after == "tuned"}
    return [found[arm] for arm in BASES if arm in found]


def is_worse(pair: Paired) -> bool:
    """Whether the second arm of a pair is worse beyond noise."""
    return pair.difference < 0 and pair.mcnemar_p < SIGNIFICANT


def detects(n: int, detectable: float | None) -> str:
    """What n problems can show.

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
    low, high = pair.ci95
    shares = f"{after:.1%} against {before:.1%}"
    figures = (
        f"{100 * pair.difference:+.1f} points (95% CI {100 * low:.1f} to {100 * high:.1f}, n = {n}, "
        f"McNemar p = {pair.mcnemar_p:.2g})"
    )
    none_right = "No answer of the tuned arm is right. " if after == 0 else ""
    if kind in ("better", "worse"):
        return f"{none_right}{kind.capitalize()} than {base}: {shares}, {figures}."
    if kind == "too_few":
        compared = f"not better than {base}, {shares}" if after <= before else f"{shares} for {base}"
        limit = detects(n, detectable).replace("detects", "detects only differences")
        return f"{none_right}Too few problems to tell: {compared}, {figures}; {limit}. Score more problems: --eval-samples, or of a file --test-fraction."
    if after <= before:
        return f"{none_right}Not better than {base}, {shares}, {figures}: no significant difference; {detects(n, detectable)}."
    return f"No significant difference from {base}: {shares}, {figures}; {detects(n, detectable)}."


def _not_compared(arms: Mapping[str, ArmResult], n: int) -> str:
    if not arms:
        return "Nothing was scored."
    name, arm = max(arms.items(), key=lambda item: item[1].accuracy)
    low, high = arm.ci95
    figures = f"{arm.accuracy:.1%} right (95% CI {100 * low:.1f} to {100 * high:.1f}, n = {n})"
    if len(arms) == 1:
        return f"Nothing was compared, as {name} alone was scored: {figures}."
    missing = "no base arm" if "tuned" in arms else "no tuned arm"
    return f"Nothing was compared, as {missing} was scored. Best of {len(arms)} arms: {name}, {figures}."


def outcome(failed: Sequence[str], verdict: Verdict) -> Outcome:
    """What the gate comes to: it passes where the tuned arm was shown to be better, and fails where something failed.

    In between nothing was shown, which ends in exit 0 and is no success.
    """
    if failed:
        return "failed"
    return "passed" if verdict.kind == "better" else "undecided"


def gate_lines(card: Scorecard) -> list[tuple[Tone, str]]:
    """What the gate says, a sentence each, with its colour."""
    failed, verdict = card.gate.failed if card.gate else (), of(card)
    if failed:
        return [("bad", f"Gate: {reason}.") for reason in failed]
    if verdict.kind == "better":
        return [("good", "Gate: passed.")]
    why = {
        "too_few": "too few problems to tell",
        "no_difference": f"no significant difference from {verdict.before}",
        "not_compared": "there was nothing to compare",
    }
    # Worse than the best base arm, yet not than the one under the same prompt, which is what the gate tests.
    gate_arm = next((pair.before for pair in base_pairs(card.paired)), None)
    reason = why.get(verdict.kind, f"no significant loss against {gate_arm}, the base under the same prompt")
    return [("neutral", f"Gate: undecided, {reason}.")]


def readings(card: Scorecard) -> str:
    """How the answers of each arm were read, in a sentence; empty where the scorecard does not say.

    Such as "Answers were read leniently (base_cot) and in the last <output> alone (tuned)."
    """
    lenient = [arm for arm in card.arms if card.extraction.get(arm) == "lenient"]
    strict = [arm for arm in card.arms if card.extraction.get(arm) == "last <output>"]
    ways = [f"leniently ({', '.join(lenient)})"] * bool(lenient)
    ways += [f"in the last <output> alone ({', '.join(strict)})"] * bool(strict)
    return f"Answers were read {' and '.join(ways)}." if ways else ""
