"""Error injection: steps of a solution are corrupted while a model writes it, and corrections are counted correctly."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest

from cot_unsloth import tasks
from cot_unsloth.config import DataConfig, ModelConfig
from cot_unsloth.core import trace
from cot_unsloth.core.results import Share
from cot_unsloth.core.types import Completion, Example, Prompt, SamplingParams, Trace
from cot_unsloth.evaluation import score
from cot_unsloth.evaluation.error_injection import (
    CorruptedSolution,
    _corrupt_next_step,
    _corrupted_prefix,
    corrupt_right_answers,
    judged_lines,
    solve_with_errors,
    summarize,
)
from cot_unsloth.models.protocols import Advance
from cot_unsloth.prompts.arms import Prompter
from cot_unsloth.prompts.opening import open_renderer
from cot_unsloth.tasks.chained import Problem, step_line

SPEC = "world:chains:3-8,words:2-5"
PROBLEMS = tasks.problems(SPEC, split="test", n=60, seed=1)
PAIRS = list(zip(PROBLEMS, tasks.generate(SPEC, split="test", n=60, seed=1), strict=True))


def test_a_corrupted_step_has_the_number_that_it_is_counted_by() -> None:
    """A line beside a tag counts too: another step than the corrupted one was looked for a correction."""
    problem = tasks.generate("world:chains", split="test", n=1, seed=1)[0].problem
    solution = tasks.TASKS["chains"].solve(problem, random.Random(1))
    text = trace.render(solution).replace("<thinking>\n", "<thinking>")
    changed = _corrupt_next_step(problem, text, 0, 1.0, 7, "thinking")
    assert changed is not None
    prefix, number = changed
    judged = judged_lines(problem, prefix)
    assert (number, len(judged)) == (1, 2)
    assert judged[number][1] != "right"


def test_blank_lines_do_not_shift_the_corrupted_steps() -> None:
    problem, example = PAIRS[0]
    lines = [part.text for part in example.trace.parts]
    wrong = tasks.TASKS[problem.task].corrupt_step(problem, lines[1], random.Random(1))
    text = "<thinking>\n" + "\n\n".join([lines[0], str(wrong), *lines[2:]]) + "\n</thinking>\n<output>0</output>"
    correction = f"<reflection>{lines[1]}</reflection>"
    text = text.replace(str(wrong), f"{wrong}\n{correction}")
    solution = CorruptedSolution(problem, Completion("1", text, 9, "stop"), frozenset({1}))
    assert summarize([solution], [example]).corrected == Share(share=1.0, of=1, ci95=(0.2065, 1.0))


class Solver:
    """Continues any prefix from its last value, as a model does."""

    name = "solver"

    def __init__(self, corrects: bool, alarmed: bool = False) -> None:
        self.corrects, self.alarmed = corrects, alarmed
        self.rounds = 0

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingParams, advance: Advance = lambda done: None
    ) -> list[Completion]:
        self.rounds += 1
        known = {problem.id: problem for problem in PROBLEMS}
        return [Completion(p.id, self._write(known[p.id], p.prefix), 1, "stop") for p in prompts]

    def _write(self, problem: object, prefix: str) -> str:
        assert isinstance(problem, Problem)
        text = prefix or "<thinking>\n"
        done = len(list(trace.thinking_lines(text)))
        value = int(re.findall(r"-?\d+", text)[-1]) if done else problem.start
        if done and self.corrects:
            start = int(re.findall(r": (-?\d+) [-+*/]", text)[-1])
            truth = problem.reduce(problem.ops[done - 1].raw(start))
            if truth != value:
                text += f"<reflection>wrong. {step_line(problem, done, start)}</reflection>\n"
                value = truth
        for index in range(done + 1, len(problem.ops) + 1):
            text += step_line(problem, index, value) + "\n"
            if self.alarmed:
                text += f"<reflection>{step_line(problem, index, value)}</reflection>\n"
            value = problem.reduce(problem.ops[index - 1].raw(value))
        return f"{text}</thinking>\n<output>{value}</output>"


def measured(solver: Solver, rate: float) -> tuple[dict, list]:  # type: ignore[type-arg]
    renderer = open_renderer(ModelConfig(), DataConfig())
    result = solve_with_errors(solver, renderer, PAIRS, rate=rate, seed=1, sampling=SamplingParams())
    return summarize(result, [example for _, example in PAIRS]), result


def test_a_solver_that_corrects_errors_is_right_and_one_that_does_not_is_wrong() -> None:
    correcting, _ = measured(Solver(corrects=True), 0.3)
    uncorrecting, _ = measured(Solver(corrects=False), 0.3)
    assert correcting.accuracy.share == correcting.corrected.share == 1.0
    assert uncorrecting.corrected.share == 0.0
    assert uncorrecting.accuracy.share < 0.5
    assert correcting.false_alarms.share == 0.0
    assert correcting.corrected.of == uncorrecting.corrected.of


def test_steps_are_corrupted_at_the_given_rate_and_none_at_zero() -> None:
    steps = sum(len(problem.ops) for problem in PROBLEMS if isinstance(problem, Problem))
    result, _ = measured(Solver(corrects=True), 0.2)
    assert 0.13 < result.corrected.of / steps < 0.27
    solver = Solver(corrects=True)
    clean, _ = measured(solver, 0.0)
    assert clean.corrected == Share(share=None, of=0, ci95=(0.0, 1.0))
    assert clean.accuracy.share == 1.0
    assert solver.rounds == 1


@pytest.mark.parametrize(("corrects", "least", "most"), [(True, 1.0, 1.0), (False, 0.0, 0.5)])
def test_one_step_of_each_right_answer_is_corrupted(corrects: bool, least: float, most: float) -> None:
    examples = [example for _, example in PAIRS]
    solver, prompter = Solver(corrects=corrects), Prompter(DataConfig())
    completions = solver.generate([prompter.prompt(example, "tuned") for example in examples], SamplingParams())
    scores = [score.judge(e, c, tagged=True) for e, c in zip(examples, completions, strict=True)]
    scores[0] = replace(scores[0], correct=False)
    result = corrupt_right_answers(solver, prompter, examples, scores, sampling=SamplingParams(), seed=1)
    assert (result.n, result.right) == (len(examples) - 1, len(examples) - 1)
    assert least <= result.accuracy.share <= most
    assert result.detected.share == (1.0 if corrects else 0.0)
    assert corrupt_right_answers(solver, prompter, examples, scores, sampling=SamplingParams(), seed=1) == result
    # Where reflections follow all steps, that none follows the corrupted one at once says nothing.
    prompter = Prompter(prompter.data.model_copy(update={"trace_layout": "sequential"}))
    result = corrupt_right_answers(solver, prompter, examples, scores, sampling=SamplingParams(), seed=1)
    assert (result.detected.share, result.detected.of) == (None, 0)


def test_in_other_data_the_last_number_of_a_line_is_changed() -> None:
    example = Example("e", "?", Trace((), "72"), "72")
    text = "<thinking>\nwords alone\n48 / 2 = 24 clips.\n</thinking>\n<output>72</output>"
    prefix = _corrupted_prefix(example, text, random.Random(1))
    assert prefix is not None
    assert re.fullmatch(r"<thinking>\nwords alone\n48 / 2 = (?!24)\d+ clips\.\n", prefix)
    assert _corrupted_prefix(example, "<thinking>\nwords\n</thinking>", random.Random(1)) is None


def test_a_reflection_on_a_right_step_is_a_false_alarm() -> None:
    result, _ = measured(Solver(corrects=True, alarmed=True), 0.0)
    assert result.false_alarms.share == result.accuracy.share == 1.0
    assert result.false_alarms.of == sum(len(p.ops) for p in PROBLEMS if isinstance(p, Problem))


def test_a_solution_with_blank_lines_is_measured() -> None:
    text = "<thinking>\nso\n\nthen\n<reflection>no\n\nyes</reflection>\n</thinking>\n<output>1</output>"
    problem, example = PAIRS[0]
    result = CorruptedSolution(problem, Completion(problem.id, text, 1, "stop"), frozenset({1}))
    assert summarize([result], [example]).corrected.of == 1


@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_corrupted_step_is_wrong_and_differs_from_the_original(name: str) -> None:
    task, rng = tasks.TASKS[name], random.Random(2)
    for _ in range(200):
        problem = task.draw(rng, 2)
        parts = task.solve(problem, rng).parts
        lines = [line for part in parts for line in part.text.splitlines()]
        # Not every line can be: a conversion may turn out to be impossible in the first.
        line, wrong = next(((line, w) for line in lines if (w := task.corrupt_step(problem, line, rng))), (None, None))
        if line is None:
            assert not any(line.startswith("(") for line in lines)
            continue
        assert wrong != line
        assert task.judge(problem, [type(parts[0])("think", wrong)]) == ["wrong_result"]
        again = task.corrupt_step(problem, wrong, rng)
        assert again not in (None, line, wrong)
    assert task.corrupt_step(problem, "and so on", rng) is None
