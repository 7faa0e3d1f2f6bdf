"""Scoring: which text is the answer, whether it is right, and accuracy of an arm."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import module

from cot_unsloth import tasks
from cot_unsloth.config import DataConfig
from cot_unsloth.core import trace
from cot_unsloth.core.results import Settings
from cot_unsloth.core.types import Completion, Example, Part, Score, Trace
from cot_unsloth.data import load_problems
from cot_unsloth.evaluation import reflection, score, scorecard

ROOT = Path(__file__).parent.parent
EXAMPLE = Example("e", "how many?", Trace((Part("think", "s"),), "7"), "7", task="t")
TAGGED = "<thinking>\n3 + 4 = 7\n</thinking>\n<output>7</output>"


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("The answer is 7.", "7"),
        ("3 + 4 = 7\nAnswer: **7**", "7"),
        ("Answer: 3 + 4 = 7", "7"),
        ("The answer is 10 - 3 = 7", "7"),
        ("so \\boxed{\\frac{1}{2}} it is", "1/2"),
        ("first #### 3\nno, #### 7", "7"),
        ("there are 3, then 7", "7"),
        ("it costs $1,234.50 now", "1234.5"),
        ("between 3-7", "7"),
        ("Paris", "Paris"),
        ("It is a city.\nThe answer is Paris.", "Paris"),
        ("(B)", "B"),
        ("yes", "Yes"),
        ("10:15", "10:15"),
        ("The answer is 10:15", "10:15"),
        ("2023-01-05", "2023-01-05"),
        ("x^2", "x^2"),
        (TAGGED, "7"),
    ],
)
def test_free_text_is_read_leniently(text: str, gold: str) -> None:
    example = replace(EXAMPLE, answer=gold)
    assert score.judge(example, Completion("e", text, 5, "stop"), tagged=False).correct


@pytest.mark.parametrize(
    ("text", "gold"),
    [("7, no, 8", "7"), ("Answer: 8, and not 7", "9"), ("", "7"), ("no idea", "7"), ("10:15", "15"), (TAGGED, "3")],
)
def test_lenient_reading_does_not_accept_wrong_answers(text: str, gold: str) -> None:
    example = replace(EXAMPLE, answer=gold)
    result = score.judge(example, Completion("e", text, 5, "stop"), tagged=False)
    assert not result.correct


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("7", "7", True), ("7", "7.0", True), ("7", "17", False), ("7", "-7", False), ("-5", "\u22125", True),
        ("1000", "1,000", True), ("12", "1,2", False), ("72", "$72", True), ("$5", "5%", False), ("5%", "5", True),
        ("7", "7 apples", True), ("7", "the result is 7", True), ("7", "3 + 4 = 7", True), ("5", "10/2", True),
        ("7", "7 or 8", False), ("72", "71 or 72", False), ("5", "100; no, 5", False), ("5", "x<5", False),
        ("5", "5\u00b2", False), ("7", "", False), ("7", "10:07", False),
        ("Paris", "paris.", True), ("Paris", "London", False), ("B", "(B)", True), ("A", "(b)", False),
        ("\\frac{1}{2}", "0.5", True), ("\\frac{1}{2}", "1/2", True), ("0.5", "\\frac{1}{2}", True),
        ("1/2", "0.25", False), ("0.5", "1/2", True), ("x^2", "x \\cdot x", True), ("x^2", "2x", False),
        ("10:15", "2/3", False), ("2023-01-05", "2017", False), ("12 cm", "12 m", False),
    ],
)  # fmt: skip
def test_equal_answers_are_recognised(gold: str, answer: str, right: bool) -> None:
    assert score.same(gold, answer) is right


@pytest.mark.parametrize(
    "answer", ["9^{9^{9^{9}}}", "(10^{10})!", "99999999!", "(1+x)^{100000}", "2^{1000000007}", "2**9**9"]
)
def test_no_answer_can_block_scoring(answer: str) -> None:
    assert score.same("\\frac{1}{2}", answer) is False


def judged(text: str, *, tagged: bool, stopped: str = "stop") -> Score:
    return score.judge(EXAMPLE, Completion("e", text, 5, stopped), tagged=tagged)  # type: ignore[arg-type]


def test_an_arm_with_tags_is_scored_on_its_output_section_only() -> None:
    assert judged(TAGGED, tagged=True).correct
    bare = judged("The answer is 7", tagged=True)
    assert (bare.correct, bare.answer, bare.fault) == (False, None, "stray_text")


def test_a_base_arm_is_read_leniently_and_its_format_fault_is_still_recorded() -> None:
    result = judged("The answer is 7", tagged=False)
    assert result.correct
    assert result.fault == "stray_text"


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        (TAGGED, True, True),
        ("The answer is 7.", False, True),
        ("<output>8</output>\n7", False, False),
        ("no", False, False),
    ],
)
def test_every_arm_has_strict_and_lenient_accuracy(text: str, strict: bool, lenient: bool) -> None:
    for tagged in (True, False):
        result = score.judge(EXAMPLE, Completion("e", text, 9, "stop"), tagged=tagged)
        assert (result.strict, result.lenient) == (strict, lenient)
        assert result.correct == (strict if tagged else lenient)
    summary = scorecard.arm_result([result])
    assert (summary.strict, summary.lenient) == (strict, lenient)


def golds(published_data: Path) -> dict[str, str]:
    """The worked solutions of GSM8K's test set, and the gold answer of each."""
    lines = (published_data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    solutions = [json.loads(line)["answer"] for line in lines]
    return {solution: solution.rpartition("####")[2].strip() for solution in solutions}


def test_every_gold_answer_of_gsm8k_is_read(published_data: Path, own_data: Path) -> None:
    """From the worked solutions, and as this package stores them; the published set has 1,319."""
    result = golds(published_data)
    assert len(result) == (16 if published_data == own_data else 1319)
    for solution, gold in result.items():
        assert score.same(gold, score.readings(solution)[0])
    kept = load_problems(
        DataConfig(dataset=str(published_data / "gsm8k" / "test.jsonl")), eval_samples=2000, eval_seed=1
    )
    assert sorted(example.answer.replace(",", "") for example in kept) == sorted(
        gold.replace(",", "") for gold in result.values()
    )


def test_rewritten_gold_answers_are_right_and_near_misses_are_wrong(published_data: Path) -> None:
    for gold in sorted(set(golds(published_data).values())):
        value = int(gold.replace(",", ""))
        rewrites = [
            str(value), f"{value:,}", f"${value}.00", f"{value} apples", f"\\boxed{{{value}}}", f"x = {value}",
            f"{value}.", f"**{value}**", f" {value}\n",
        ]  # fmt: skip
        for text in rewrites:
            example = replace(EXAMPLE, answer=gold)
            tagged = f"<thinking>\ns\n</thinking>\n<output>{text}</output>"
            assert score.judge(example, Completion("e", tagged, 9, "stop"), tagged=True).correct, (gold, text)
            plain = f"Some steps with 12345678901 in them.\nThe answer is {text}"
            assert score.judge(example, Completion("e", plain, 9, "stop"), tagged=False).correct, (gold, text)
        misses = [
            value + 1,
            value - 1,
            value * 10,
            -value,
            int(f"1{abs(value)}"),
            f"{value}.5",
            f"{value}%3",
            f"1/{value}",
        ]
        for miss in misses:
            if str(miss) not in (str(value), "1/1", "-0"):
                assert not score.same(gold, str(miss)), (gold, miss)
                assert not score.same(gold, f"{miss} apples"), (gold, miss)


@pytest.mark.slow
def test_any_completion_can_be_scored() -> None:
    """bench/scorer.py scores 100,000 random completions; this test 1,500."""
    result = module(ROOT / "bench" / "scorer.py").judged(1_500, seed=6)
    assert result["exceptions"] == 0, result["first"]
    assert 0 < result["right"] < 750


def test_the_committed_results_of_the_scorer_meet_their_targets() -> None:
    result = json.loads((ROOT / "bench" / "results" / "scorer.json").read_text())
    assert result["fuzzed"]["n"] == 100_000
    assert result["fuzzed"]["exceptions"] == 0
    assert max(result["times_as_long_for_8_times_the_text"].values()) < 12  # 64 would be the square


def test_a_truncated_completion_has_no_lenient_answer() -> None:
    assert judged("3 + 4 = 7", tagged=False, stopped="length").answer is None


def rows(right: list[bool], fault: str | None = None, task: str = "t") -> list[Score]:
    return [Score(str(i), task, "q", "7", TAGGED, "7", ok, fault, 10, "stop") for i, ok in enumerate(right)]


def test_a_failed_parse_counts_as_wrong() -> None:
    scores = [*rows([True]), Score("x", "t", "q", "7", "", None, False, "missing_output", 0, "length")]
    summary = scorecard.arm_result(scores)
    assert summary.accuracy == 0.5
    assert summary.format_valid == 0.5
    assert summary.truncated == 0.5
    assert summary.no_answer == 0.5
    assert summary.faults == {"missing_output": 1}
    assert summary.by_task["t"].n == 2


def test_accuracy_is_split_by_steps_and_by_first_try() -> None:
    made = tasks.generate("world:countdown", split="test", n=40, seed=3)
    some = [e for e in made if any(part.injected for part in e.trace.parts)][:3]
    straight = [e for e in made if not any(part.injected for part in e.trace.parts)][:5]
    examples = [*some, *straight, *tasks.generate("world:chains:2,chains:5", split="test", n=4, seed=1)]
    scores = [score.judge(e, Completion(e.id, trace.render(e.trace), 9, "stop"), tagged=True) for e in examples]
    assert all(item.correct for item in scores)
    result = scorecard.arm_result(scores).by_task
    assert {steps: cell.n for steps, cell in result["chains"].by_steps.items()} == {"2": 2, "5": 2}
    assert result["chains"].first_try is None
    assert result["countdown"].first_try.accuracy == 5 / 8
    assert list(result["countdown"].by_steps) == ["2"]


def test_a_task_counts_the_steps_of_its_own_solutions(monkeypatch: pytest.MonkeyPatch) -> None:
    class Worded(type(tasks.TASKS["chains"])):  # type: ignore[misc]
        name = "worded"

        def count_steps(self, parts: Sequence[Part]) -> int:
            lines = [line for part in parts if part.kind == "think" for line in part.text.splitlines()]
            return sum(line.startswith("Step ") for line in lines)

    monkeypatch.setitem(tasks.TASKS, "worded", Worded())
    (drawn,) = tasks.generate("world:chains:3", split="test", n=1, seed=1)
    lines = ("Start: 4", "Step 1: 4 + 1 = 5", "Step 2: 5 + 2 = 7")
    solution = Trace(tuple(Part("think", line) for line in lines), "7")
    example = replace(drawn, task="worded", trace=solution)
    assert score.steps_of(example) == 2
    assert score.steps_of(replace(example, where="rows.jsonl:1")) == 3
    wrong = (Part("think", "Step 1: 4 + 1 = 6", injected=True), *solution.parts[2:])
    assert score.steps_of(replace(example, trace=Trace(wrong, "7"))) == 1
    answer = score.judge(example, Completion(example.id, trace.render(solution), 10, "stop"), tagged=True)
    measured = reflection.read(example, answer)
    assert measured is not None
    assert measured.steps_as_solved


def test_the_comparison_is_paired_by_problem() -> None:
    card = scorecard.compare(
        {"base_cot": rows([True, False, False, False]), "tuned": rows([False, True, True, False])}, Settings(n=4)
    )
    [pair] = card.paired
    assert (pair.before, pair.after, pair.gained, pair.lost, pair.mcnemar_p) == (
        "base_cot", "tuned", 2, 1, 1.0,
    )  # fmt: skip
    assert pair.difference == 0.25
    assert pair.ci95[0] < 0.25 < pair.ci95[1]
    assert pair.resolvable is None  # four problems tell nothing


def test_arms_on_different_problems_are_not_compared() -> None:
    with pytest.raises(ValueError, match="different problems"):
        scorecard.compare({"base_cot": rows([True, True]), "tuned": rows([True])}, Settings())
