"""Measures of reasoning and reflection, tested on known solutions and constructed texts; the gate."""

from __future__ import annotations

import dataclasses
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import run_cli

from cot_unsloth import tasks
from cot_unsloth.config import DataConfig, RunConfig, load_tree
from cot_unsloth.core import trace
from cot_unsloth.core.errors import GateError
from cot_unsloth.core.results import Scorecard, Settings, Share
from cot_unsloth.core.types import Completion, Example, Score, Trace
from cot_unsloth.data import load_problems
from cot_unsloth.evaluation import reflection, score
from cot_unsloth.evaluation.gate import enforce_gate, gate
from cot_unsloth.evaluation.scorecard import compare

EXAMPLE = Example("e", "48 apples, half are sold, twice as many are bought?", Trace((), "72"), "72")


def judged(example: Example, text: str) -> Score:
    return score.judge(example, Completion(example.id, text, 9, "stop"), tagged=True)


def read(example: Example, text: str) -> reflection.Reasoning:
    result = reflection.read(example, judged(example, text))
    assert result is not None
    return result


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("task", tasks.TASKS)
def test_solutions_of_a_task_get_perfect_measures(task: str, rate: float) -> None:
    examples = tasks.generate(f"world:{task}", split="test", n=80, seed=1)
    written = tasks.generate(f"world:{task}", split="test", n=80, seed=1, error_rate=rate)
    scores = [judged(e, trace.render(w.trace)) for e, w in zip(examples, written, strict=True)]
    metrics, aims = (values.as_json() for values in reflection.summary(examples, scores))
    assert aims["decomposition"]["share"] == aims["transparency"]["share"] == 1.0
    assert aims["sequential_reasoning"]["share"] == 1.0 if not rate else aims["sequential_reasoning"]["share"] > 0.6
    if rate or task == "countdown":
        assert metrics["alarm_precision"]["share"] == metrics["alarm_recall"]["share"] == 1.0
        assert metrics["only_confirm"]["share"] == 0.0
        assert metrics["final"]["share"] == 1.0
        assert metrics["first"]["share"] < 0.2, "first answers are right although reflections were needed"
        assert metrics["repaired"] == metrics["final"]["of"] - round(metrics["first"]["share"] * metrics["first"]["of"])
        assert metrics["corrupted"] == 0
    else:
        assert metrics["n"] == 0
        assert metrics["repair_rate"]["share"] is None


@pytest.mark.parametrize("task", tasks.TASKS)
def test_white_space_between_steps_changes_no_measure(task: str) -> None:
    examples = tasks.generate(f"world:{task}", split="test", n=20, seed=1, error_rate=0.3)
    texts = [trace.render(example.trace) for example in examples]
    plain, spaced = (
        reflection.summary(
            examples, [judged(e, text.replace("\n", end)) for e, text in zip(examples, texts, strict=True)]
        )
        for end in ("\n", " \n\n")
    )
    assert spaced == plain
    first_tries = [
        sum(judged(e, text.replace("\n", end)).tries == 1 for e, text in zip(examples, texts, strict=True))
        for end in ("\n", " \n\n")
    ]
    assert first_tries[0] == first_tries[1]


@pytest.mark.parametrize("task", tasks.TASKS)
def test_reflections_after_all_steps_belong_to_no_line(task: str) -> None:
    """In the layout `sequential`: no right solution has false alarms, undetected errors or wrong lines for its order."""
    examples = tasks.generate(f"world:{task}", split="test", n=40, seed=1, error_rate=0.3)
    scores = [judged(example, trace.render(example.trace, "sequential")) for example in examples]
    metrics, aims = reflection.summary(examples, scores, layout="sequential")
    assert metrics.n > 0
    assert (metrics.only_confirm.share, metrics.alarm_precision.share, metrics.alarm_recall.share) == (0.0, None, None)
    assert aims.transparency.share in (None, 1.0)


def test_repairs_and_corruptions_are_distinguished() -> None:
    """A reflection that changes a right step, and one that only confirms it."""
    (example,) = tasks.generate("world:chains:3", split="test", n=1, seed=2)
    first, second, *rest = [part.text for part in example.trace.parts]
    confirms = read(example, f"<thinking>\n{first}\n{second}\n<reflection>{second}</reflection>\n" + "\n".join(rest)
                    + f"\n</thinking>\n<output>{example.answer}</output>")  # fmt: skip
    assert (confirms.reflections, confirms.called_for, confirms.confirming, confirms.first_right) == (1, 0, 1, True)
    assert confirms.right
    assert confirms.consistent
    spoilt = tasks.TASKS["chains"].corrupt_step(example.problem, rest[-1], random.Random(1))
    assert spoilt
    value = spoilt.rpartition(" ")[2]
    text = f"<thinking>\n{first}\n{second}\n{rest[0]}\n{rest[1]}\n<reflection>{spoilt}</reflection>\n</thinking>\n<output>{value}</output>"
    harms = read(example, text)
    assert (harms.first_right, harms.right, harms.consistent, harms.steps_as_solved) == (True, False, True, True)
    other = read(example, text.replace(f"<output>{value}", "<output>99"))
    assert other.consistent is False
    metrics, aims = reflection.summary([example] * 2, [judged(example, text)] * 2)
    assert metrics.corruption_rate.share == 1.0
    assert aims.self_correction.share == -1.0


def test_only_answers_that_correct_an_error_are_named_to_be_shown() -> None:
    """Those with the fewest reflections first; not one that confirms, guesses, or leaves an error uncorrected."""
    (example,) = tasks.generate("world:words:2", split="test", n=1, seed=2)
    first, second = (part.text for part in example.trace.parts)
    wrong = tasks.TASKS["words"].corrupt_step(example.problem, first, random.Random(1))
    fixed, fixed_twice = f"{wrong}\n<reflection>{first}</reflection>", f"{wrong}\n<reflection>{wrong}</reflection>"
    thoughts = {
        "corrects twice": f"{fixed_twice}\n<reflection>{first}</reflection>\n{second}",
        "plain": f"{first}\n{second}",
        "corrects": f"{fixed}\n{second}",
        "confirms": f"{first}\n<reflection>{first}</reflection>\n{second}",
        "guesses": f"{wrong}\n{second}",
    }
    scores = [
        dataclasses.replace(
            judged(example, f"<thinking>\n{thought}\n</thinking>\n<output>{example.answer}</output>"), id=name
        )
        for name, thought in thoughts.items()
    ]
    wrong_output = dataclasses.replace(
        judged(example, scores[2].text.replace("<output>", "<output>9")), id="wrong output"
    )
    metrics, _ = reflection.summary([example] * 6, [*scores, wrong_output])
    assert all(score.correct for score in scores)
    assert metrics.corrected_ids[0] == "corrects"
    assert set(metrics.corrected_ids) <= {"corrects", "corrects twice"}


def test_an_unnoticed_wrong_step_counts_as_due_and_not_detected() -> None:
    (example,) = tasks.generate("world:words:2", split="test", n=1, seed=2)
    lines = [part.text for part in example.trace.parts]
    wrong = tasks.TASKS["words"].corrupt_step(example.problem, lines[-1], random.Random(1))
    result = read(example, "<thinking>\n" + "\n".join([*lines[:-1], str(wrong)]) + "\n</thinking>\n<output>1</output>")
    assert (result.due, result.detected, result.first_right, result.sound) == (1, 0, None, result.lines - 1)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_a_solution_that_is_cut_off_anywhere_has_no_unnoticed_error(task: str) -> None:
    for example in tasks.generate(f"world:{task}", split="test", n=6, seed=1, error_rate=0.5):
        text = trace.render(example.trace)
        for end in range(len("<thinking>\n"), len(text), 3):
            cut = score.judge(example, Completion(example.id, text[:end], 9, "length"), tagged=True)
            measured = reflection.read(example, cut)
            assert measured is None or measured.due == measured.detected, text[:end]


def test_an_equation_that_is_cut_off_is_not_read() -> None:
    text = "<thinking>\n48 / 2 = 24, so 24 + 48 = 7"
    measured = reflection.read(EXAMPLE, score.judge(EXAMPLE, Completion("e", text, 9, "length"), tagged=True))
    assert measured is not None
    assert (measured.lines, measured.sound) == (1, 1)


def test_measures_of_other_data_come_from_the_text_alone() -> None:
    text = (
        "<thinking>\n48 / 2 = 24, so 48 + 24 = 70.\n<reflection>That is wrong: 48 + 24 = 72.</reflection>\n"
        "<reflection>72 is correct.</reflection>\n</thinking>\n<output>72</output>"
    )
    result = read(EXAMPLE, text)
    assert (result.reflections, result.confirming, result.first_right, result.right) == (2, 1, False, True)
    assert (result.lines, result.sound, result.consistent) == (3, 2, True)
    assert (result.called_for, result.due, result.detected, result.steps_as_solved) == (None, None, None, None)
    metrics, aims = reflection.summary([EXAMPLE], [judged(EXAMPLE, text)])
    assert aims.decomposition == Share(share=None, of=0, ci95=(0.0, 1.0))
    assert metrics.alarm_recall.share is None
    assert reflection.read(EXAMPLE, judged(EXAMPLE, "it is 72")) is None


def test_equations_of_real_solutions_are_recognised_as_correct(published_data: Path, own_data: Path) -> None:
    data = DataConfig(dataset=str(published_data / "gsm8k" / "test.jsonl"), data_format="gsm8k")
    examples = load_problems(data, eval_samples=1319, eval_seed=1)
    _, aims = reflection.summary(examples, [judged(e, trace.render(e.trace)) for e in examples])
    assert aims.sequential_reasoning.of > (20 if published_data == own_data else 3000)
    assert aims.sequential_reasoning.share > 0.97
    assert aims.transparency.share > 0.97


@pytest.mark.parametrize("text", ["(1) 9" + "9" * 5000, "1 + " * 3000 + "1 = 1", "<reflection>" * 50, "9 = 9 = " * 999])
def test_any_text_of_a_model_is_accepted(text: str) -> None:
    for task in tasks.TASKS:
        (example,) = tasks.generate(f"world:{task}", split="test", n=1, seed=3)
        for item in (example, EXAMPLE):
            reflection.read(item, judged(item, f"<thinking>\n{text}\n<reflection>{text}</reflection></thinking>"))


def scorecard(better: int, worse: int, n: int = 100, fault: str | None = None) -> tuple[RunConfig, Scorecard]:
    base = [judged(replace(EXAMPLE, id=str(i)), f"<output>{72 if i < worse else 1}</output>") for i in range(n)]
    tuned = [replace(item, correct=n - better <= i, fault=fault) for i, item in enumerate(base)]
    return RunConfig(), compare({"base_tags": base, "tuned": tuned}, Settings(n=n))


@pytest.mark.parametrize(("better", "worse", "fails"), [(20, 0, False), (3, 6, False), (3, 20, True), (0, 5, False)])
def test_the_gate_fails_only_if_the_tuned_arm_is_worse_beyond_noise(better: int, worse: int, fails: bool) -> None:
    config, card = scorecard(better, worse)
    result = gate(config, card)
    assert bool(result.failed) is fails
    if fails:
        with pytest.raises(GateError, match=r"worse than the base under our system prompt by 17\.0 points"):
            enforce_gate(card.model_copy(update={"gate": result}))
        enforce_gate(card.model_copy(update={"gate": result.model_copy(update={"asked": False})}))


def test_a_run_that_fails_its_gate_exits_with_3_and_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--world-samples", "8", "--max-steps", "1", "--eval-samples", "4", "--max-new-tokens", "8", "--lora-r", "4"]
    run = ["--run-dir", str(tmp_path / "r"), *few, "--min-format-valid", "0.5", "--gguf", ""]
    assert run_cli("train", *run) == 3
    output = capsys.readouterr()
    assert "gate: 0.0% of the tuned arm's completions are complete traces; min_format_valid is 50.0%" in output.err
    assert "run: " in output.out
    card = json.loads((tmp_path / "r" / "scorecard.json").read_text())
    assert card["gate"]["failed"]
    assert set(card["aims"]["tuned"]) == set(reflection.AIMS)
    assert run_cli("evaluate", str(tmp_path / "r"), "--no-gate") == 0
    assert not (tmp_path / "r" / "evaluations").exists(), "settings of the gate must not create a separate evaluation"


def test_the_gate_can_be_set_by_flags() -> None:
    assert load_tree({}, {"gate": False, "min_format_valid": "0.9"}).evaluate.min_format_valid == 0.9


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("0.05 * 200 = 10 and 2 * 1.05 = 2.10 and 100 * 1.08 = 108", [True] * 3),
        ("2 * 3 = 12 - 6", []),
        ("2x + 3 - 1 = 7; 2^10 - 1 = 1023; (1 + 2) - 4 / 2 = 1", []),
        ("007 + 1 = 8. So 48 + 24 = 71.", [True, False]),
        ("1+" * 40_000 + "1 = 5", []),
    ],
)
def test_only_complete_equations_are_checked(text: str, holds: list[bool]) -> None:
    assert list(reflection._equations(text)) == holds
