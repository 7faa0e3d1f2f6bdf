"""Explanations of terms in results, shared by the report and the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cot_unsloth.core.results import ArmResult, Contamination, Scorecard, Share
from cot_unsloth.core.statistics import percent

MEASURES: Mapping[str, str] = {
    "decomposition": "answers with the task's number of steps",
    "sequential_reasoning": "steps that follow from those before them",
    "transparency": "outputs that the thinking leads to",
    "self_correction": "answers repaired minus corrupted, in points",
}
"""The goals of training, by field of `Aims`."""
CAPTIONS: Mapping[str, str] = {
    "rewards": "What the checker gives the model's attempts at training problems; training makes attempts with high rewards more likely.",
    "attempts": (
        "Attempts at training problems. A group is all attempts at one problem: if all are right, or all wrong, it has no "
        "signal and teaches nothing."
    ),
    "entropy": (
        "The model's uncertainty about its next token: 0 if it always writes the same. If it is near 0, attempts hardly "
        "differ, so there is little more to learn from them."
    ),
    "attempt length": "Tokens of an attempt; a steady rise to the limit often means that answers are cut off.",
    "loss": "How badly the model predicts the tokens of the training answers: 0 is perfect, 0.69 a choice between two.",
    "token accuracy": "With a held-out solution given up to each token: how often the model writes the next one.",
    "curves-test-time": "Share of right answers if thinking is cut at a number of tokens, and if several answers vote.",
    "curves-train-time": "Share of right answers at the checkpoints of training.",
}
"""Under the charts of a report, by name."""


def aim(name: str) -> str:
    """The name of an aim.

    >>> aim("sequential_reasoning"), aim("self_correction")
    ('sequential reasoning', 'self-correction')
    """
    return "self-correction" if name == "self_correction" else name.replace("_", " ")


def measured(card: Scorecard, arm: str, name: str) -> tuple[str, str]:
    """A measure of how an arm reasons, and of how many answers, steps or outputs; a dash and nothing where there are none."""
    share: Share = getattr(card.aims[arm], name)
    if name == "self_correction":
        counts = card.reflection[arm].n and share.share is not None
        return (f"{100 * (share.share or 0) + 0.0:+.1f}", f"of {share.of}") if counts else ("–", "")
    return ("–", "") if share.share is None else (percent(share.share), f"of {share.of}")


_NOT_SHOWN = {
    "too few": "“too few” means that so few problems would miss even a difference of 10 points",
    "no diff.": "“no diff.” means that these problems would show a difference of 10 points, but showed none",
}


def not_shown(words: Iterable[str]) -> str:
    """Explains the words beside differences that say that nothing was shown; see `verdict.compared`."""
    used = set(words)
    return "".join(f"; {says}" for word, says in _NOT_SHOWN.items() if word in used)


def overlap(found: Contamination) -> str:
    """How far training rows overlap with the problems, in a sentence that says what is counted."""
    rows = f"Of {_count(found.training_rows, 'training row')}"
    if not (found.exact or found.ngram_13 or found.ngram_8):
        return f"{rows}, none shares its question, or 8 words in a row, with one of these problems."
    return (
        f"{rows}, {found.exact:,} ask the same question as one of these problems, {found.ngram_13:,} share 13 words in a row "
        f"with one, and {found.ngram_8:,} share 8, which also happens by chance (a row can count in all three); "
        f"{found.dropped:,} were left out of training for it." + (_WORDS_KEPT if found.ngram_13 > found.dropped else "")
    )


_WORDS_KEPT = " Rows that share 13 words are left out only if the run names a benchmark (--benchmark), as rows of one file often share phrases."


def faults(card: Scorecard) -> str:
    """The format faults of the tuned arm, in a sentence."""
    tuned = card.arms.get("tuned")
    if tuned is None:
        return ""
    count = sum(tuned.faults.values())
    if not count:
        return "Every answer of the tuned model is complete."
    most = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in list(tuned.faults.items())[:3])
    others = count - sum(list(tuned.faults.values())[:3])
    most += f", {others} others" if others > 1 else ", 1 other" * others
    return (
        f"Of the tuned model's {_count(tuned.n, 'answer')}, {count} {'has' if count == 1 else 'have'} a format fault ({most}), "
        f"and {cut_off(tuned)} reached the token limit."
    )


def cut_off(arm: ArmResult) -> int:
    """Answers of an arm that reached the token limit."""
    return round(arm.truncated * arm.n)


def _count(n: int, noun: str) -> str:
    """A number of things.

    >>> _count(1, "row"), _count(1200, "row")
    ('1 row', '1,200 rows')
    """
    return f"{n:,} {noun}{'s' * (n != 1)}"
