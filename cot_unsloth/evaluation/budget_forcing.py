"""Budget forcing: answers of a model whose thinking is cut at given numbers of tokens.

At each budget thinking is cut and an output is forced (budget forcing; Muennighoff et al. 2025, "s1: Simple test-time
scaling", section 3). At the largest budget, thinking that ended by itself can be reopened with a reflection. Several
samples are taken of each problem; tokens of forced outputs count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

from cot_unsloth.config import AnyArm, RunConfig
from cot_unsloth.core import trace
from cot_unsloth.core.errors import ConfigError
from cot_unsloth.core.results.curves import BudgetSettings
from cot_unsloth.core.statistics import mean
from cot_unsloth.core.types import Completion, Example, SamplingParams, Score
from cot_unsloth.evaluation import score
from cot_unsloth.models.generation import complete_prompts, draft_of
from cot_unsloth.models.protocols import Generator
from cot_unsloth.prompts.arms import Prompter
from cot_unsloth.storage.run_folder import RunDir

ANSWER_TOKENS = 64
"""Token limit of a forced output."""


@dataclass(frozen=True)
class BudgetAnswers:
    """All answers at one budget."""

    name: str
    """The budget; `BUDGET+N` where thinking was reopened N times."""
    budget: int
    """Tokens of thinking."""
    scores: tuple[tuple[Score, ...], ...]
    """`scores[sample][problem]`."""
    forced: float
    """Share of answers that were forced."""

    @property
    def tokens(self) -> float:
        """Mean tokens of an answer, forced output included."""
        return mean([score_.tokens for sample in self.scores for score_ in sample])

    def of_problem(self, at: int) -> list[Score]:
        """One problem's answers."""
        return [sample[at] for sample in self.scores]


class BudgetOptions(TypedDict, total=False):
    """The fields of `BudgetSettings` that a user gave."""

    budgets: Sequence[int]
    samples: int
    temperature: float
    extend: int


def budget_settings(
    budgets: Sequence[int], *, samples: int = 8, temperature: float = 0.7, extend: int = 0
) -> BudgetSettings:
    """Settings with the defaults of `cot-unsloth curves`; each budget once, in ascending order, as a chain is continued.

    Raises:
        ConfigError: there is no budget, or one below 1.
    """
    if not budgets or min(budgets) < 1:
        raise ConfigError(f"are {list(budgets)}; give whole numbers of tokens above 0", where="budgets")
    return BudgetSettings(budgets=tuple(sorted(set(budgets))), samples=samples, temperature=temperature, extend=extend)


def default_budgets(config: RunConfig) -> tuple[int, ...]:
    """The run's own token limit, halved up to five times."""
    most = config.evaluate.max_new_tokens
    return tuple(sorted({max(1, most >> halvings) for halvings in range(6)}))


def parts(settings: BudgetSettings) -> int:
    """The largest number of prompt lists in `answer_at_budgets`: chains and outputs, for each sample at each budget."""
    return 2 * settings.samples * (len(settings.budgets) + settings.extend)


def answer_at_budgets(
    engine: Generator,
    prompter: Prompter,
    examples: Sequence[Example],
    arm: AnyArm,
    sampling: SamplingParams,
    settings: BudgetSettings,
    folder: RunDir,
    model: str = "",
) -> list[BudgetAnswers]:
    """Answers at every budget, the smallest first.

    A chain at a larger budget continues the one at the smaller budget, so a sample costs its
    largest budget, and one output for each budget.
    """
    levels: dict[str, list[tuple[Score, ...]]] = {}
    forced: dict[str, list[bool]] = {}
    budgets: dict[str, int] = {}
    for sample in range(settings.samples):
        chains = _Sample(
            engine, prompter, examples, arm, replace(sampling, temperature=settings.temperature), sample, folder, model
        )
        for name, budget, completions, cut in chains.levels(settings):
            tags = prompter.data.thinking_tags
            judged = [
                score.judge(e, c, tagged=True, thinking_tags=tags) for e, c in zip(examples, completions, strict=True)
            ]
            levels.setdefault(name, []).append(tuple(judged))
            forced.setdefault(name, []).extend(cut)
            budgets[name] = budget
    return [BudgetAnswers(name, budgets[name], tuple(scores), mean(forced[name])) for name, scores in levels.items()]


class _Sample:
    """One sample of every problem, continued from budget to budget."""

    def __init__(
        self,
        engine: Generator,
        prompter: Prompter,
        examples: Sequence[Example],
        arm: AnyArm,
        sampling: SamplingParams,
        sample: int,
        folder: RunDir,
        model: str,
    ) -> None:
        self.engine, self.folder, self.sample, self.model = engine, folder, sample, model
        self.thinking_tags, self.layout = prompter.data.thinking_tags, prompter.data.trace_layout
        # Samples of a problem have the same prompt, so only the seed distinguishes them.
        self.sampling = replace(sampling, seed=(sampling.seed + 1000 * sample) % 2**32)
        self.prompts = [prompter.prompt(example, arm) for example in examples]
        self.completions = [Completion(prompt.id, "", 0, "length") for prompt in self.prompts]

    def levels(self, settings: BudgetSettings) -> Iterator[tuple[str, int, list[Completion], list[bool]]]:
        """For each budget: its name, the budget, the answers, and which of them were forced."""
        below = 0
        for budget in settings.budgets:
            self._continue(
                [i for i, c in enumerate(self.completions) if c.stopped == "length"],
                budget - below,
                f"to {budget} tokens",
            )
            below = budget
            yield str(budget), budget, *self._with_output(f"at {budget} tokens")
        for again in range(1, settings.extend + 1):
            self._think_again()
            ended = [i for i, c in enumerate(self.completions) if c.stopped == "length"]
            self._continue(ended, below, f"think again {again}")
            yield f"{below}+{again}", below, *self._with_output(f"thought again {again}")

    def _continue(self, which: Sequence[int], tokens: int, title: str) -> None:
        for i, more in zip(
            which, self._ask(which, [self.completions[i].text for i in which], tokens, title), strict=True
        ):
            self.completions[i] = replace(more, tokens=self.completions[i].tokens + more.tokens)

    def _think_again(self) -> None:
        for i, completion in enumerate(self.completions):
            reopened = (
                trace.reopen_thinking(completion.text, self.thinking_tags, self.layout)
                if completion.stopped == "stop"
                else None
            )
            if reopened is not None:
                self.completions[i] = replace(completion, text=reopened, stopped="length")

    def _with_output(self, title: str) -> tuple[list[Completion], list[bool]]:
        """The answers so far, with an output forced on unfinished ones; and for each answer whether it was forced."""
        unfinished = [i for i, completion in enumerate(self.completions) if completion.stopped == "length"]
        texts = [trace.strip_partial_tag(self.completions[i].text, self.thinking_tags) for i in unfinished]
        texts = [text + trace.end_thinking(text, self.thinking_tags) for text in texts]
        completions = list(self.completions)
        for i, more in zip(unfinished, self._ask(unfinished, texts, ANSWER_TOKENS, f"output {title}"), strict=True):
            completions[i] = replace(more, tokens=self.completions[i].tokens + more.tokens)
        return completions, [completion.stopped == "length" for completion in self.completions]

    def _ask(self, which: Sequence[int], texts: Sequence[str], tokens: int, title: str) -> list[Completion]:
        prompts = [replace(self.prompts[i], prefix=text) for i, text in zip(which, texts, strict=True)]
        sampling = replace(self.sampling, max_new_tokens=max(1, tokens))
        name = title.replace(" ", "-")
        draft = draft_of(self.folder, f"sample{self.sample}-{name}", prompts, sampling, self.model)
        return (
            complete_prompts(self.engine, prompts, sampling, f"sample {self.sample + 1} {title}", draft)
            if prompts
            else []
        )
