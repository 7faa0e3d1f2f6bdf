"""Accuracy against compute, in two curves: tokens at test time, and tokens of training.

**Test time.** A model climbs a ladder of budgets. At each, its thinking is cut where the budget ends and an
output is forced (budget forcing; N. Muennighoff and others, "s1", 2025); at the top, thinking that ended by
itself may be opened again with a reflection. The ladder is climbed by several samples, so at every rung there
are also independent answers: a majority of k of them, or any of k (pass@k), at k times the tokens, is the
parallel control. All samples count, and so do the tokens of forced outputs.

**Training time.** The checkpoints of runs that differ in their seed alone, each scored on the same problems.

Owns both measurements and `curves.json`; the drawing is `plots`'.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cot_unsloth import tasks
from cot_unsloth.config import AnyArm, RunConfig
from cot_unsloth.core import statistics, trace
from cot_unsloth.core.errors import ConfigError, DataError, RunDirError
from cot_unsloth.core.progress import note
from cot_unsloth.core.results import VERSION, Accuracy, Curves
from cot_unsloth.core.results.curves import (
    BudgetForcing,
    BudgetPoint,
    CheckpointPoint,
    Ladder,
    MeanPoint,
    ParallelPoint,
    TestTimeCurve,
    TrainingCurve,
    TriesPoint,
)
from cot_unsloth.core.types import Completion, Example, SamplingParams, Score, ThinkingTags
from cot_unsloth.evaluation import score
from cot_unsloth.evaluation.problems import held_out_problems
from cot_unsloth.models import registry
from cot_unsloth.models.generation import answers, draft_of, identity
from cot_unsloth.models.protocols import Generator
from cot_unsloth.prompts.render import Prompter
from cot_unsloth.reporting import plots, report
from cot_unsloth.storage import atomic, environment, records, run_folder
from cot_unsloth.storage.run_folder import RunDir

ANSWER_TOKENS = 64
"""Budget of an output that was forced."""


@dataclass(frozen=True)
class Rung:
    """All answers at one budget: `scores[sample][problem]`."""

    name: str
    budget: int
    scores: tuple[tuple[Score, ...], ...]
    forced: float
    """Share of answers that were forced."""

    @property
    def tokens(self) -> float:
        """Mean tokens of an answer, forced output included."""
        return _mean([each.tokens for sample in self.scores for each in sample])

    def of_problem(self, at: int) -> list[Score]:
        """One problem's answers."""
        return [sample[at] for sample in self.scores]


def make_ladder(budgets: Sequence[int], *, samples: int = 8, temperature: float = 0.7, extend: int = 0) -> Ladder:
    """A ladder with the defaults of `cot-unsloth curves`."""
    return Ladder(budgets=tuple(budgets), samples=samples, temperature=temperature, extend=extend)


def default_budgets(config: RunConfig) -> tuple[int, ...]:
    """The run's own budget, and halves of it, six rungs in all."""
    most = config.evaluate.max_new_tokens
    return tuple(sorted({max(1, most >> halvings) for halvings in range(6)}))


def climb(
    engine: Generator,
    prompter: Prompter,
    examples: Sequence[Example],
    arm: AnyArm,
    sampling: SamplingParams,
    ladder: Ladder,
    place: RunDir,
    model: str = "",
) -> list[Rung]:
    """Every rung of a ladder, the lowest first.

    A higher rung goes on from what was written at the lower one, so a climb costs its top budget and an output a rung.
    """
    rungs: dict[str, list[tuple[Score, ...]]] = {}
    forced: dict[str, list[bool]] = {}
    budgets: dict[str, int] = {}
    for sample in range(ladder.samples):
        climber = _Climber(
            engine, prompter, examples, arm, replace(sampling, temperature=ladder.temperature), sample, place, model
        )
        for name, budget, completions, cut in climber.rungs(ladder):
            tags = prompter.data.thinking_tags
            judged = [
                score.judge(e, c, tagged=True, thinking_tags=tags) for e, c in zip(examples, completions, strict=True)
            ]
            rungs.setdefault(name, []).append(tuple(judged))
            forced.setdefault(name, []).extend(cut)
            budgets[name] = budget
    return [Rung(name, budgets[name], tuple(found), _mean(forced[name])) for name, found in rungs.items()]


class _Climber:
    """One sample of every problem, on its way up."""

    def __init__(
        self,
        engine: Generator,
        prompter: Prompter,
        examples: Sequence[Example],
        arm: AnyArm,
        sampling: SamplingParams,
        sample: int,
        place: RunDir,
        model: str,
    ) -> None:
        self.engine, self.place, self.sample, self.model = engine, place, sample, model
        self.thinking_tags = prompter.data.thinking_tags
        self.sampling = replace(sampling, seed=(sampling.seed + 1000 * sample) % 2**32)
        self.prompts = [prompter.prompt(example, arm) for example in examples]
        self.said = [Completion(prompt.id, "", 0, "length") for prompt in self.prompts]

    def rungs(self, ladder: Ladder) -> Iterator[tuple[str, int, list[Completion], list[bool]]]:
        """Of each rung its name, its budget, the answers, and which of them were forced."""
        below = 0
        for budget in ladder.budgets:
            self._go_on(
                [i for i, c in enumerate(self.said) if c.stopped == "length"], budget - below, f"to {budget} tokens"
            )
            below = budget
            yield str(budget), budget, *self._forced(f"at {budget} tokens")
        for again in range(1, ladder.extend + 1):
            self._think_again()
            ended = [i for i, c in enumerate(self.said) if c.stopped == "length"]
            self._go_on(ended, below, f"think again {again}")
            yield f"{below}+{again}", below, *self._forced(f"thought again {again}")

    def _go_on(self, which: Sequence[int], tokens: int, title: str) -> None:
        for i, more in zip(which, self._ask(which, [self.said[i].text for i in which], tokens, title), strict=True):
            self.said[i] = replace(more, tokens=self.said[i].tokens + more.tokens)

    def _think_again(self) -> None:
        for i, said in enumerate(self.said):
            reopened = trace.reopen_thinking(said.text, self.thinking_tags) if said.stopped == "stop" else None
            if reopened is not None:
                self.said[i] = replace(said, text=reopened, stopped="length")

    def _forced(self, title: str) -> tuple[list[Completion], list[bool]]:
        """The answers as they stand, an output forced on those that have not ended."""
        open_ = [i for i, said in enumerate(self.said) if said.stopped == "length"]
        texts = [trace.strip_partial_tag(self.said[i].text, self.thinking_tags) for i in open_]
        texts = [text + trace.end_thinking(text, self.thinking_tags) for text in texts]
        found = list(self.said)
        for i, more in zip(open_, self._ask(open_, texts, ANSWER_TOKENS, f"output {title}"), strict=True):
            found[i] = replace(more, tokens=self.said[i].tokens + more.tokens)
        return found, [said.stopped == "length" for said in self.said]

    def _ask(self, which: Sequence[int], texts: Sequence[str], tokens: int, title: str) -> list[Completion]:
        prompts = [replace(self.prompts[i], prefix=text) for i, text in zip(which, texts, strict=True)]
        sampling = replace(self.sampling, max_new_tokens=max(1, tokens))
        name = title.replace(" ", "-")
        draft = draft_of(self.place, f"sample{self.sample}-{name}", prompts, sampling, self.model)
        return answers(self.engine, prompts, sampling, f"sample {self.sample + 1} {title}", draft) if prompts else []


def test_time(
    examples: Sequence[Example], rungs: Sequence[Rung], top: int, thinking_tags: ThinkingTags
) -> TestTimeCurve:
    """The sequential curve and its parallel controls.

    An interval is Wilson's of as many trials as there are problems: samples of one problem are not independent.
    """
    ladder = [rung for rung in rungs if "+" not in rung.name]
    sequential = [_point(rung) for rung in rungs]
    budgets = [(float(rung.budget), point.accuracy) for rung, point in zip(ladder, sequential, strict=False)]
    slope = statistics.scaling(budgets)
    return TestTimeCurve(
        sequential=tuple(sequential),
        parallel={rung.name: _parallel(examples, rung) for rung in ladder},
        s1=BudgetForcing(
            control=_mean([c.tokens <= rung.budget + ANSWER_TOKENS for rung in ladder for s in rung.scores for c in s]),
            scaling_per_1000_tokens=None if slope is None else 1000 * slope,
            maximum=max(point.accuracy for point in sequential),
        ),
        by_tries=_by_tries(examples, rungs[[rung.budget for rung in rungs].index(top)], thinking_tags),
    )


def _point(rung: Rung) -> BudgetPoint:
    right = [_mean([s.correct for s in rung.of_problem(at)]) for at in range(len(rung.scores[0]))]
    found = _of_problems(right)
    return BudgetPoint(
        rung=rung.name,
        budget=rung.budget,
        tokens=rung.tokens,
        accuracy=found.accuracy,
        ci95=found.ci95,
        forced=rung.forced,
    )


def _of_problems(shares: Sequence[float]) -> Accuracy:
    return Accuracy(accuracy=_mean(shares), ci95=statistics.rounded(statistics.wilson(sum(shares), len(shares))))


def _parallel(examples: Sequence[Example], rung: Rung) -> tuple[ParallelPoint, ...]:
    """Of 1, 2, 4, ... samples the majority's and any's accuracy, at so many times the tokens."""
    n, points = len(rung.scores), []
    voted = [_votes(example, rung.of_problem(at)) for at, example in enumerate(examples)]
    for k in [2**i for i in range(n.bit_length()) if 2**i <= n]:
        majority = [statistics.majority_at_k(votes, right, k) for votes, right in voted]
        any_ = [statistics.pass_at_k(n, sum(s.correct for s in rung.of_problem(at)), k) for at in range(len(examples))]
        points.append(
            ParallelPoint(k=k, tokens=k * rung.tokens, majority=_of_problems(majority), any=_of_problems(any_))
        )
    return tuple(points)


def _votes(example: Example, scores: Sequence[Score]) -> tuple[list[int | None], int | None]:
    """Of each sample the number of its answer, and which of them is right; equal answers have equal numbers."""
    kinds: list[str] = []
    votes: list[int | None] = []
    right = None
    for each in scores:
        if each.answer is None:
            votes.append(None)
            continue
        like = (
            i
            for i, kind in enumerate(kinds)
            if kind.strip() == each.answer.strip() or score.is_right(replace(example, answer=kind), each.answer)
        )
        number = next(like, len(kinds))
        if number == len(kinds):
            kinds.append(each.answer)
        votes.append(number)
        right = number if each.correct and right is None else right
    return votes, right


def _by_tries(
    examples: Sequence[Example], rung: Rung, thinking_tags: ThinkingTags, most: int = 6
) -> dict[str, tuple[TriesPoint, ...]]:
    """Of tasks in which a solution can start again: the share of all that is right within 1, 2, ... tries, and its tokens.

    Tokens of the first tries are counted in proportion to their letters.
    """
    curves = {}
    for task in sorted({e.task for e in examples if tasks.task_of(e)}):
        scores = [s for sample in rung.scores for s in sample if s.task == task]
        if all(s.tries is None for s in scores):
            continue
        problems = len(scores) // len(rung.scores)
        curves[task] = tuple(_within_tries(scores, problems, k, thinking_tags) for k in range(1, most + 1))
    return curves


def _within_tries(scores: Sequence[Score], problems: int, k: int, thinking_tags: ThinkingTags) -> TriesPoint:
    accuracy = _mean([s.correct and (s.tries or 0) <= k for s in scores])
    return TriesPoint(
        tries=k,
        tokens=_mean([s.tokens * _part_within(s, k, thinking_tags) for s in scores]),
        accuracy=accuracy,
        ci95=statistics.rounded(statistics.wilson(accuracy * problems, problems)),
    )


def _part_within(found: Score, k: int, thinking_tags: ThinkingTags) -> float:
    """The part of an answer that its first k tries take up."""
    task = tasks.TASKS[found.task]
    begins = [
        begin
        for begin, end in trace.thinking_lines(found.text, thinking_tags)
        if task.count_tries(trace.lines_as_steps(found.text[begin:end])) == 1
    ]
    return 1.0 if len(begins) <= k else begins[k] / len(found.text)


def train_time(
    runs: Sequence[RunDir], config: RunConfig, examples: Sequence[Example], checkpoints: int, place: RunDir
) -> TrainingCurve:
    """Accuracy at each run's checkpoints, and over the runs.

    An interval over runs is Student's t of their accuracies, so it also holds what the seed changes; of one run it is
    Wilson's, which does not.

    Raises:
        RunDirError: a run has no checkpoints.
    """
    curves = {str(run.path): _checkpoints(run, config, examples, checkpoints, place) for run in runs}
    first, *others = [{point.step: point for point in curve} for curve in curves.values()]
    steps = [step for step in first if all(step in other for other in others)]
    return TrainingCurve(
        runs=curves, mean=tuple(_mean_point([points[step] for points in (first, *others)]) for step in steps)
    )


def _mean_point(points: Sequence[CheckpointPoint]) -> MeanPoint:
    """Several runs at one step; before training, all are one model, and its interval is Wilson's."""
    step, accuracies = points[0].step, [point.accuracy for point in points]
    several = step and len(points) > 1
    return MeanPoint(
        step=step,
        training_tokens=_mean([point.training_tokens for point in points]),
        accuracy=_mean(accuracies),
        ci95=statistics.rounded(statistics.t_interval(accuracies) if several else points[0].ci95),
        runs=len(points),
    )


def _checkpoints(
    run: RunDir, config: RunConfig, examples: Sequence[Example], most: int, place: RunDir
) -> tuple[CheckpointPoint, ...]:
    found = [*run.complete_checkpoints()]
    if not found:
        raise RunDirError(
            "has no checkpoints", where=str(run.path), hint="train with --save-steps N --save-total-limit 100"
        )
    if len(found) > most:
        found = [found[round((i + 1) * len(found) / most) - 1] for i in range(most)]
    tokens = {row["step"]: row["num_tokens"] for row in records.read_jsonl(run.metrics)}
    points = []
    # A vLLM for each checkpoint would take longer to begin than it saves.
    config = config.replaced(fast_inference=False)
    for checkpoint in (None, *found):
        step = run_folder.checkpoint_step(checkpoint) if checkpoint else 0
        renderer, engine = registry.opened(config, checkpoint)
        model = identity(config, checkpoint)
        prompts = [renderer.prompt(example, "tuned") for example in examples]
        draft = draft_of(place, f"step{step}", prompts, config.sampling_params, model)
        said = answers(engine, prompts, config.sampling_params, f"score {run.path.name} at step {step}", draft)
        engine.close()
        tags = renderer.data.thinking_tags
        right = sum(
            score.judge(e, c, tagged=True, thinking_tags=tags).correct for e, c in zip(examples, said, strict=True)
        )
        points.append(
            CheckpointPoint(
                step=step,
                training_tokens=_at(tokens, step),
                accuracy=right / len(examples),
                ci95=statistics.rounded(statistics.wilson(right, len(examples))),
            )
        )
    return tuple(points)


def _at(tokens: Mapping[int, int], step: int) -> float:
    """Tokens seen at a step, between the two reports around it where none was made then."""
    known = {0: 0} | dict(tokens)
    below, above = max(s for s in known if s <= step), min((s for s in known if s >= step), default=max(known))
    if below == above:
        return float(known[below])
    return known[below] + (known[above] - known[below]) * (step - below) / (above - below)


def measure(
    paths: Sequence[Path], flags: Mapping[str, Any], ladder: Mapping[str, Any], checkpoints: int, out: Path | None
) -> Curves:
    """Both curves of one run or of several that differ in their seed; the test-time curve is the first run's.

    Writes `curves.json`, `curves-test-time.png` and `curves-train-time.png` into `out`, or into the first run's folder.

    Raises:
        ConfigError: the runs differ in more than their seed.
        RunDirError: there is no run, or it has no tuned model, or no checkpoints.
    """
    runs = [RunDir.open(path) for path in paths]
    before = runs[0].read_config()
    fitted = runs[0].require_trained_weights()
    for run in runs[1:]:
        _same_but_seed(runs[0], run)
    config = before.overridden(flags)
    trained = {id_ for run in runs[1:] for id_ in run.question_ids("train")}
    examples = [example for example in held_out_problems(runs[0], before, config) if example.id not in trained]
    if not examples:
        raise DataError("no rows are held out to score on", where=config.data.dataset, hint="raise --eval-samples")
    place = RunDir(out or runs[0].path)
    if out is not None and (out / "curves.json").exists():
        raise RunDirError("holds curves already", where=str(out), hint="name another --out")
    drafts = RunDir(place.path / "curves")  # beside an evaluation's own, which clears them when it ends
    chosen = make_ladder(**{"budgets": default_budgets(config), **ladder})
    renderer, engine = registry.opened(_with_room(config, chosen), fitted)
    rungs = climb(engine, renderer, examples, "tuned", config.sampling_params, chosen, drafts, identity(config, fitted))
    engine.close()
    curves = Curves(
        version=VERSION,
        model=config.model.model_name_or_path,
        dataset=config.data.dataset,
        n=len(examples),
        seed=config.evaluate.eval_seed,
        train_seeds=tuple(run.read_config().train.seed for run in runs),
        ladder=chosen,
        answer_tokens=ANSWER_TOKENS,
        environment=environment.environment(),
        test_time=test_time(examples, rungs, chosen.budgets[-1], config.data.thinking_tags),
        test_time_by_task=_by_task(examples, rungs, chosen, config.data.thinking_tags),
        train_time=train_time(runs, config, examples, checkpoints, drafts) if checkpoints else None,
    )
    curves.write(place.path / "curves.json")
    for name, svg in draw(curves, place.path).items():
        atomic.write_text(place.path / f"curves-{name}.svg", svg)
    if place.scorecard.is_file():
        report.write(place)
    atomic.remove_tree(drafts.path)
    note(f"curves: {place.path / 'curves.json'}")
    return curves


def _with_room(config: RunConfig, ladder: Ladder) -> RunConfig:
    """The settings, with an answer as long as the ladder's last rung: an engine makes room for that much."""
    longest = ladder.budgets[-1] * (1 + ladder.extend) + ANSWER_TOKENS
    return config.replaced(max_new_tokens=max(config.evaluate.max_new_tokens, longest))


def _by_task(
    examples: Sequence[Example], rungs: Sequence[Rung], ladder: Ladder, thinking_tags: ThinkingTags
) -> dict[str, TestTimeCurve]:
    """The test-time curve of each family, where there are several."""
    families = sorted({example.task for example in examples})
    if len(families) < 2:
        return {}
    found = {}
    for task in families:
        at = [i for i, example in enumerate(examples) if example.task == task]
        own = [replace(rung, scores=tuple(tuple(s[i] for i in at) for s in rung.scores)) for rung in rungs]
        found[task] = test_time([examples[i] for i in at], own, ladder.budgets[-1], thinking_tags)
    return found


def _same_but_seed(first: RunDir, other: RunDir) -> None:
    a, b = (run.read_config().model_dump(mode="json") for run in (first, other))
    place = ("run_dir", "seed", "save_total_limit", "logging_steps", "save_steps")
    for tree in (a, b):
        for leaf in place:
            tree["train"].pop(leaf)
    splits = {leaf: a["evaluate"][leaf] for leaf in ("eval_seed", "eval_samples", "benchmark", "benchmark_path")}
    for section in ("model", "lora", "data", "train", "evaluate"):
        for leaf, value in (splits if section == "evaluate" else a[section]).items():
            if b[section][leaf] != value:
                raise ConfigError(
                    f"{section}.{leaf} is {b[section][leaf]!r}, in {first.path} {value!r}",
                    where=str(other.path),
                    hint="the runs of one curve may differ in train.seed alone",
                )


def draw(curves: Curves, folder: Path) -> dict[str, str]:
    """The curves as SVG by name; as PNG files in a folder too."""
    drawn = {"test-time": draw_test_time(curves, folder / "curves-test-time.png")}
    if curves.train_time:
        drawn["train-time"] = draw_train_time(curves, folder / "curves-train-time.png")
    return drawn


def draw_test_time(curves: Curves, save: Path | None = None, source: str = "") -> str:
    """Accuracy against tokens of an answer, one chain and several, as SVG; see `plots.lines`."""
    test = curves.test_time
    control, *_, last = [*test.parallel, *test.parallel]
    points = [(point.tokens, point) for point in test.sequential]
    lines = [_line("sequential: one chain, cut at a budget", points)]
    controls = test.parallel[control]
    lines += [
        _line(f"parallel: majority of k, each cut at {control}", [(p.tokens, p.majority) for p in controls]),
        _line(f"parallel: any of k, each cut at {control}", [(p.tokens, p.any) for p in controls], dashed=True),
        _line(f"parallel: majority of k, each up to {last}", [(p.tokens, p.majority) for p in test.parallel[last]]),
    ]
    title = f"{curves.model} on {curves.n} problems: accuracy against tokens"
    axes = plots.Axes("tokens an answer, all samples counted", "right", log_x=True, share=True)
    return plots.lines(title, lines, axes, save, source)


def draw_train_time(curves: Curves, save: Path | None = None, source: str = "") -> str:
    """Accuracy against tokens trained on, each seed and their mean, as SVG; see `plots.lines`.

    Raises:
        ValueError: no checkpoints were scored.
    """
    if curves.train_time is None:
        raise ValueError("no checkpoints were scored")
    seeds, runs = curves.train_seeds, curves.train_time.runs
    mean = [point for point in curves.train_time.mean if point.step]
    label = f"mean of {len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"
    lines = [plots.Line(label, [(p.training_tokens, p.accuracy) for p in mean], [p.ci95 for p in mean])]
    if len(seeds) > 1:
        lines += [
            plots.Line(f"seed {seed}", [(p.training_tokens, p.accuracy) for p in points if p.step], dashed=True)
            for seed, points in zip(seeds, runs.values(), strict=True)
        ]
    title = f"{curves.model} on {curves.n} problems: accuracy against training"
    axes = plots.Axes("tokens trained on", "right", log_x=True, share=True)
    return plots.lines(title, lines, axes, save, source)


def _line(label: str, points: Sequence[tuple[float, Accuracy | BudgetPoint]], dashed: bool = False) -> plots.Line:
    """A line through points, given with their tokens; in ascending number of tokens."""
    ascending = sorted(points, key=lambda point: point[0])
    return plots.Line(
        label, [(tokens, point.accuracy) for tokens, point in ascending], [point.ci95 for _, point in ascending], dashed
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
