"""`scorecard.json`: the scores, the settings they were made with, and what they show."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cot_unsloth.core.results.record import Record, Value
from cot_unsloth.core.results.shares import Accuracy, Interval, Share
from cot_unsloth.core.types import ThinkingTags

Reading = Literal["last <output>", "lenient"]
"""How an arm's answers are read: the last `<output>` alone, or any final answer that can be found."""
VerdictKind = Literal["better", "worse", "no_difference", "too_few", "not_compared"]
Tone = Literal["good", "bad", "neutral"]
"""The colour of a sentence; neutral wherever nothing was shown."""
Outcome = Literal["passed", "failed", "undecided"]


class Decoding(Value):
    """How answers were generated."""

    temperature: float
    """0 is greedy."""
    top_p: float = 1.0
    max_new_tokens: int
    """Token limit of an answer, not counting the prompt."""


class Settings(Record):
    """The settings that the figures of a scorecard depend on."""

    n: int = 0
    """Problems scored, the same for every arm."""
    seed: int = 0
    """Seed of the held-out problems, and of sampling."""
    model: str = ""
    """The model as the settings name it: a hub id, a folder, a file or its name on a server."""
    loaded: dict[str, bool | int | float | str | None] = Field(default_factory=dict)
    """How its weights were loaded: engine, dtype, quantization."""
    dataset: str = ""
    """The data set or benchmark that the problems come from."""
    score_on: Literal["held_out", "development"] = "held_out"
    """Whether the problems are held out, or training problems that were set aside to choose settings by."""
    thinking_tags: ThinkingTags = "thinking"
    """Name of the tags around reasoning; older runs had no choice."""
    train_seed: int | None = None
    decoding: Decoding = Decoding(temperature=0.0, max_new_tokens=0)
    interval: str = "Wilson, 95%"
    """Kind of interval of every accuracy and share."""
    paired_interval: str | None = None
    """Kind of interval of differences; None in older files, which used a bootstrap with 2,000 resamples."""
    test: str = "exact McNemar, two-sided"
    extraction: dict[str, Reading] = Field(default_factory=dict)
    """By arm; empty in files that do not record it."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Installed versions of the libraries that can change a figure."""


class StepsResult(Value):
    """Accuracy on the problems whose gold solution takes a given number of steps."""

    n: int
    accuracy: float
    ci95: Interval


class TaskResult(Value):
    """One arm on the problems of one task."""

    n: int
    accuracy: float
    ci95: Interval
    by_steps: dict[str, StepsResult] = Field(default_factory=dict)
    """By number of steps of the gold solution, ascending."""
    first_try: Accuracy | None = None
    """Share of all problems answered correctly without starting again; None for tasks with a single attempt."""


class ArmResult(Accuracy):
    """One arm, over all problems. Shares are of all `n`."""

    strict: float | None = None
    """Accuracy if only the last `<output>` is read. This and `lenient` are None in files with a single reading."""
    lenient: float | None = None
    """Accuracy if any final answer counts. One of the two is `accuracy`, see `Settings.extraction`."""
    format_valid: float
    """Share of complete traces: every section present, closed, in order and not empty."""
    truncated: float
    """Share that reached the token limit."""
    no_answer: float = 0.0
    """Share of completions from which no answer could be read; they count as wrong."""
    too_costly: int = 0
    """Answers whose comparison with the gold answer exceeded the time limit; they count as wrong."""
    mean_tokens: float
    """Mean tokens of an answer, including the stop token."""
    faults: dict[str, int] = Field(default_factory=dict)
    """Format faults by name, the most frequent first; a completion counts under its first fault."""
    by_task: dict[str, TaskResult] = Field(default_factory=dict)
    n: int


class Paired(Value):
    """Two arms on the same problems, compared problem by problem."""

    before: str
    after: str
    gained: int
    """Problems wrong before and right after."""
    lost: int
    """Problems right before and wrong after."""
    difference: float
    """Accuracy after minus accuracy before, -1 to 1."""
    ci95: Interval
    """See `Settings.paired_interval`."""
    mcnemar_p: float
    """Two-sided exact p value."""
    resolvable: float | None = None
    """Smallest difference that n problems detect with a power of 80%; None where they cannot detect any."""


class ReflectionMetrics(Value):
    """The effect of one arm's reflections; `evaluation.reflection` defines each figure."""

    n: int
    """Completions with a reflection."""
    share: float
    """Share of all completions."""
    accuracy: float | None
    """Share of the completions with a reflection; None if there is none."""
    first: Share
    """Right before the first reflection."""
    final: Share
    """Right in the end."""
    repaired: int
    """Completions that went from wrong to right."""
    corrupted: int
    """Completions that went from right to wrong."""
    repair_rate: Share
    """Repaired, of those first wrong."""
    corruption_rate: Share
    """Corrupted, of those first right."""
    only_confirm: Share
    """Reflections that change nothing, of all reflections."""
    alarm_precision: Share
    """Reflections right after an error, of all reflections of tasks that can tell."""
    alarm_recall: Share
    """Errors that a reflection follows at once, of all errors."""
    corrected_ids: tuple[str, ...] = ()
    """Ids of a few answers that correct an error, to be shown; those with the fewest reflections first."""


class Aims(Value):
    """How one arm reasons, in one figure for each thing that training should teach."""

    decomposition: Share
    """Completions of as many steps as the task's own solution."""
    sequential_reasoning: Share
    """Lines that follow from the lines before them."""
    transparency: Share
    """Outputs that the thinking leads to."""
    self_correction: Share
    """Repaired minus corrupted completions, of all: -1 to 1, without an interval."""


class Contamination(Value):
    """Training rows that overlap with the problems, by kind of overlap; a row can be in several."""

    training_rows: int
    exact: int
    """The question is one of the problems."""
    ngram_13: int
    """13 consecutive words are in a problem's question (Brown et al. 2020, appendix C)."""
    ngram_8: int
    """8 consecutive words are; this also happens by chance."""
    dropped: int
    """Rows left out of training for it."""


class Recovery(Value):
    """Answers continued from a step that was corrupted; see `evaluation.error_injection`."""

    n: int
    """Right answers of which a step could be corrupted."""
    right: int
    """Right answers in all."""
    accuracy: Share
    """Right in the end."""
    detected: Share = Field(alias="heeded")
    """The corrupted step is followed at once by a reflection; of none in the layout sequential, where this cannot be."""


class Forgetting(Value):
    """The model before and after training, on a task that was not trained on; see `evaluation.forgetting`."""

    task: str
    """`general` (the built-in questions), a benchmark, or a generated data set."""
    n: int
    before: Accuracy
    """Of the base, or of the adapter that training began with."""
    after: Accuracy
    """Of the trained model."""
    paired: Paired
    """Of `base` or `start`, and `tuned`."""


class Verdict(Value):
    """Whether the tuned arm answers more problems correctly than the base."""

    kind: VerdictKind
    """`better`, `worse`: McNemar's exact p < 0.05. `no_difference`: p >= 0.05, where n problems detect differences of
    ten points or less. `too_few`: p >= 0.05, and they do not. `not_compared`: there is no tuned arm, or no base arm."""
    before: str | None
    """The base arm that it rests on; None where nothing was compared."""
    after: str | None
    sentence: str
    """The same in words, with both shares, the difference, its interval, n and p."""
    hint: str = ""
    """Where n is too small: how more problems are scored."""

    @property
    def tone(self) -> Tone:
        """Green is for `better` alone, red for `worse`."""
        tones: dict[VerdictKind, Tone] = {"better": "good", "worse": "bad"}
        return tones.get(self.kind, "neutral")


class Gate(Value):
    """Whether the scores meet what the settings ask for."""

    asked: bool
    """Whether a failure ends the command with exit code 3."""
    min_format_valid: float
    outcome: Outcome | None = None
    """None in older files."""
    failed: tuple[str, ...]
    """A sentence for each check that failed."""


class Scorecard(Settings):
    """All of `scorecard.json`: the settings, the arms, and what follows from them."""

    arms: dict[str, ArmResult]
    """Base arms first, then `start`, `tuned` and `gguf`; those that were scored."""
    paired: tuple[Paired, ...] = ()
    """Each base arm against `tuned`, `start` against it, then `tuned` against `gguf`."""
    reflection: dict[str, ReflectionMetrics] = Field(default_factory=dict)
    """By arm; empty in files from before it was measured, as `aims` is."""
    aims: dict[str, Aims] = Field(default_factory=dict)
    contamination: Contamination | None = None
    """None where the problems are generated by a task, or nothing is known of the training data."""
    recovery: Recovery | None = None
    """None where it was not asked for."""
    forgetting: Forgetting | None = None
    """None where it was not measured."""
    verdict: Verdict | None = None
    """None in files from before there were verdicts; `core.verdict.of` computes it."""
    gate: Gate | None = None
    """None in files from before there was a gate."""
