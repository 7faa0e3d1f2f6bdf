"""Accuracy against compute: budget forcing continues from budget to budget, every token is counted, estimates are correct."""

from __future__ import annotations

import errno
import itertools
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers import forked, module, run_cli, short_run

from cot_unsloth import tasks
from cot_unsloth.config import DataConfig
from cot_unsloth.config.run_config import config_from
from cot_unsloth.core import trace
from cot_unsloth.core.errors import ConfigError
from cot_unsloth.core.results.curves import BudgetSettings
from cot_unsloth.core.statistics import majority_at_k, scaling, t_interval
from cot_unsloth.core.types import Completion, Example, Prompt, SamplingParams, Trace
from cot_unsloth.evaluation import budget_curve, budget_forcing, curves, score, training_curve
from cot_unsloth.evaluation.budget_forcing import ANSWER_TOKENS, budget_settings
from cot_unsloth.models.protocols import Advance
from cot_unsloth.prompts.arms import Prompter
from cot_unsloth.reporting import curve_plots
from cot_unsloth.storage import atomic
from cot_unsloth.storage.run_folder import RunDir
from cot_unsloth.tasks import gym

ROOT = Path(__file__).parent.parent
SPEC = "world:countdown"
EXAMPLES = tasks.generate(SPEC, split="test", n=12, seed=1)


class Writer:
    """A model that writes the solution of the task, one word per token; if its output is forced too early, it answers 1."""

    name = "writer"

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingParams, advance: Advance = lambda done: None
    ) -> list[Completion]:
        solutions = {example.id: trace.render(example.trace) for example in EXAMPLES}
        done = []
        for prompt in prompts:
            self.asked.append((prompt.id, sampling.max_new_tokens))
            text, written = solutions[prompt.id], prompt.prefix
            if text.startswith(written):
                rest = text[len(written) :]
            elif written.endswith("<reflection>"):
                rest = f"again.</reflection>\n</thinking>\n{text.rpartition('</thinking>')[2].strip()}"
            else:
                rest = "1</output>"
            words = re.findall(r"\s*\S+", rest)
            taken = words[: sampling.max_new_tokens]
            ended = len(taken) == len(words) < sampling.max_new_tokens  # the token that ends a turn
            tokens = len(taken) + ended
            done.append(Completion(prompt.id, written + "".join(taken), tokens, "stop" if ended else "length"))
        advance(done)
        return done


def answers(folder: Path, budgets: BudgetSettings) -> tuple[Writer, list[budget_forcing.BudgetAnswers]]:
    writer = Writer()
    result = budget_forcing.answer_at_budgets(
        writer, Prompter(DataConfig()), EXAMPLES, "tuned", SamplingParams(), budgets, RunDir(folder)
    )
    return writer, result


def test_each_budget_continues_from_the_previous_one_and_the_last_equals_an_unlimited_run(tmp_path: Path) -> None:
    writer, answered = answers(tmp_path, budget_settings((4, 16, 400), samples=1))
    lengths = {e.id: len(re.findall(r"\s*\S+", trace.render(e.trace))) + 1 for e in EXAMPLES}
    assert [answers_at.budget for answers_at in answered] == [4, 16, 400]
    for answers_at in answered:
        for example, result in zip(EXAMPLES, answers_at.scores[0], strict=True):
            if lengths[example.id] <= answers_at.budget:
                assert (result.correct, result.tokens) == (True, lengths[example.id])
            else:
                assert (result.answer, result.tokens) == ("1", answers_at.budget + 2)
    assert answered[-1].forced == 0.0
    assert answered[0].forced == 1.0
    assert max(asked for _, asked in writer.asked) == 400 - 16
    cut = answered[0].scores[0][0].text
    assert trace.parse(cut).faults == ()


def test_budgets_may_come_in_any_order_from_python() -> None:
    """A chain is continued from each to the next: an answer at a smaller one would have had the larger one's tokens."""
    assert budget_settings((400, 4, 16, 4)).budgets == (4, 16, 400)
    for none in ((), (0, 4)):
        with pytest.raises(ConfigError, match="above 0"):
            budget_settings(none)


def test_finished_thinking_is_extended(tmp_path: Path) -> None:
    _, answered = answers(tmp_path, budget_settings((400,), samples=1, extend=2))
    assert [answers_at.name for answers_at in answered] == ["400", "400+1", "400+2"]
    for one, two in itertools.pairwise(answered):
        for a, b in zip(one.scores[0], two.scores[0], strict=True):
            assert b.correct
            assert b.fault is None
            assert b.tokens > a.tokens
            assert b.text.count("again.") == a.text.count("again.") + 1


def test_answers_at_budgets_are_not_generated_again(tmp_path: Path) -> None:
    _, first = answers(tmp_path, budget_settings((4, 16, 400), samples=2))
    again, second = answers(tmp_path, budget_settings((4, 16, 400), samples=2))
    assert again.asked == []
    assert first == second


def test_answers_at_budgets_of_another_model_are_not_reused(tmp_path: Path) -> None:
    answers(tmp_path, budget_settings((4, 16), samples=1))
    other = Writer()
    prompter, run = Prompter(DataConfig()), RunDir(tmp_path)
    budget_forcing.answer_at_budgets(
        other, prompter, EXAMPLES, "tuned", SamplingParams(), budget_settings((4, 16), samples=1), run, "other"
    )
    assert other.asked


def test_the_test_time_curve_of_answers_at_budgets(tmp_path: Path) -> None:
    _, answered = answers(tmp_path, budget_settings((4, 400), samples=4))
    result = budget_curve.budget_curve(EXAMPLES, answered, 400, "thinking")
    assert [point.accuracy for point in result.sequential] == [0.0, 1.0]
    top = result.parallel["400"]
    assert [row.k for row in top] == [1, 2, 4]
    assert all(row.majority.accuracy == row.any.accuracy == 1.0 for row in top)
    assert top[2].tokens == pytest.approx(4 * answered[1].tokens)
    assert result.s1.as_json() == {"control": 1.0, "scaling_per_1000_tokens": pytest.approx(1000 / 396), "maximum": 1.0}
    tries = result.by_tries["countdown"]
    once = sum(score.tries == 1 for score in answered[1].scores[0]) / len(EXAMPLES)
    assert tries[0].accuracy == pytest.approx(once)
    assert tries[-1].accuracy == 1.0
    assert tries[-1].tokens == pytest.approx(answered[1].tokens)
    assert all(a.tokens <= b.tokens for a, b in itertools.pairwise(tries))
    assert ANSWER_TOKENS > 20


@pytest.mark.parametrize("votes", [[0, 0, 1, 2], [0, None, 1, 1, None], [None, None], [0, 1, 1, 0, 2, 2]])
def test_majority_at_k_averages_over_all_subsets(votes: list[int | None]) -> None:
    for right, k in itertools.product(({0}, {1}, set(), {0, 2}), range(1, len(votes) + 1)):
        chances = []
        for subset in itertools.combinations(votes, k):
            given = [vote for vote in subset if vote is not None]
            leading = {vote for vote in given if given.count(vote) == max(map(given.count, given))}
            chances.append(len(leading & right) / len(leading) if leading else 0.0)
        assert majority_at_k(votes, right, k) == pytest.approx(sum(chances) / len(chances))


def test_majority_at_k_of_many_subsets_is_sampled_accurately() -> None:
    votes = [0] * 9 + [1] * 7
    assert majority_at_k(votes, {0}, 8) == pytest.approx(majority_at_k(votes, {0}, 8, seed=5), abs=0.03)
    with pytest.raises(ValueError, match="is not between 1 and n"):
        majority_at_k(votes, {0}, 17)


def test_slopes_and_t_intervals_match_published_values() -> None:
    assert scaling([(1, 0.5)]) is None
    assert scaling([(0, 0.0), (2, 1.0)]) == 0.5
    assert t_interval([0.5]) == (0.0, 1.0)
    low, high = t_interval([0.4, 0.5, 0.6, 0.5, 0.5, 0.4, 0.6, 0.5, 0.4, 0.6, 0.5, 0.5])
    assert (low + high) / 2 == pytest.approx(0.5)
    assert high - low == pytest.approx(2 * 2.201 * 0.0738549 / 12**0.5, rel=0.002)  # t of 11 degrees: 2.201


def test_equal_answers_vote_together_and_no_wrong_one_with_a_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of reasoning-gym a generator says which answers are right, of which there may be several."""
    monkeypatch.setattr(gym, "accepts", lambda problem, answer: answer.strip() in ("7", "blue"))
    problem = gym.GymProblem("leg_counting", "?", {"answer": "7"})
    example = Example("g", "?", Trace((), "7"), "7", "leg_counting", "test", "gym:leg_counting#0", problem=problem)
    scores = [
        score.judge(
            example, Completion("1", f"<thinking>\na\n</thinking>\n<output>{answer}</output>", 9, "stop"), tagged=True
        )
        for answer in ("5", "5.0", "7", "blue", "7")
    ]
    votes, right = budget_curve._votes(example, scores)
    assert (votes, right) == ([0, 0, 1, 2, 1], {1, 2})
    assert majority_at_k(votes[:3], right, 3) == 0.0
    assert majority_at_k(votes[1:4], right, 3) == pytest.approx(2 / 3)


FEW = ["--save-steps", "4", "--save-total-limit", "9", "--gguf", ""]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[RunDir]:
    """Two runs that differ in their seed."""
    folder = tmp_path_factory.mktemp("curves")
    return [short_run(folder / f"r{seed}", "--seed", str(seed), *FEW) for seed in (1, 2)]


def test_the_command_writes_both_curves(runs: list[RunDir], capsys: pytest.CaptureFixture[str]) -> None:
    args = [*(str(run.path) for run in runs), "--curves", "--budgets", "4,12", "--samples", "2", "--think-again", "1"]
    capsys.readouterr()
    assert run_cli("evaluate", *args) == 0
    printed = capsys.readouterr().out
    result = json.loads((runs[0].path / "curves.json").read_text())
    assert [row["step"] for row in result["train_time"]["mean"]] == [0, 4, 8]
    assert result["train_seeds"] == [1, 2]
    tokens = [row["training_tokens"] for row in result["train_time"]["mean"]]
    assert tokens[0] == 0 < tokens[1] < tokens[2]
    for name in ("accuracy against training", "cut at 4", "within 6 tries", "maximum"):
        assert name in printed
    for name in ("curves-test-time.png", "curves-train-time.png", "curves-test-time.svg"):
        assert (runs[0].path / name).stat().st_size > 2000
    assert "accuracy against training" in runs[0].report.read_text()
    assert not (runs[0].path / "curves").exists()


def test_a_curve_of_an_earlier_command_is_not_shown_beside_a_new_one(runs: list[RunDir], tmp_path: Path) -> None:
    run = RunDir(shutil.copytree(runs[0].path, tmp_path / "run"))
    for suffix in ("png", "svg"):
        (run.path / f"curves-train-time.{suffix}").write_text("<svg>accuracy against training, of before</svg>")
    few = ("--budgets", "4", "--samples", "1", "--checkpoints", "0")
    assert run_cli("curves", str(run.path), *few, "--dataset", "world:words", "--eval-samples", "1") == 0
    assert sorted(path.name for path in run.path.glob("curves-*")) == ["curves-test-time.png", "curves-test-time.svg"]
    page = run.report.read_text()
    assert "accuracy against training" not in page
    assert "On 1 problem of world:words." in page, "the scorecard is of others"


def test_curves_that_a_full_disk_cut_off_are_continued_and_complete_ones_are_kept(
    runs: list[RunDir], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    args = ("curves", str(runs[0].path), "--budgets", "4", "--samples", "1", "--checkpoints", "0", "--out", str(out))

    def full(*given: object) -> dict[str, str]:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(curve_plots, "draw", full)
        assert run_cli(*args) == 1
    assert (out / "curves.json").is_file()
    assert run_cli(*args) == 0
    assert {"curves.json", "curves-test-time.png", "curves-test-time.svg"} <= {path.name for path in out.iterdir()}
    assert not (out / "curves").exists()
    (out / ".aside-curves.999999999-1").mkdir()  # as of a command that was killed while it removed its drafts
    capsys.readouterr()
    assert run_cli(*args) == 2
    assert not list(out.glob(".aside*"))
    assert "already holds curves" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "section", "leaf"), [("grpo", "grpo", "beta"), ("rft", "sample", "rounds"), ("sft", "", "")]
)
def test_settings_of_a_method_count_only_for_that_method(tmp_path: Path, method: str, section: str, leaf: str) -> None:
    runs = [RunDir(tmp_path / name) for name in "ab"]
    for run, more in zip(runs, ({}, {"beta": 0.5, "rounds": 7}), strict=True):
        atomic.write_text(run.config, config_from({}, {"method": method, "run_dir": str(run.path), **more}).to_yaml())
    if section:
        with pytest.raises(ConfigError, match=rf"{section}\.{leaf} is"):
            curves._same_but_seed(*runs)
    else:
        curves._same_but_seed(*runs)


def test_the_training_curve_begins_with_the_adapter_that_was_continued(runs: list[RunDir], tmp_path: Path) -> None:
    assert training_curve.scored_models(runs[0], 9)[0] is None
    other = RunDir(shutil.copytree(runs[1].path, tmp_path / "continued"))
    atomic.write_text(other.config, other.read_config().replaced(init_adapter=str(runs[0].path)).to_yaml())
    models = training_curve.scored_models(other, 1)
    assert models == {0: runs[0].adapter, 8: other.path / "checkpoints" / "checkpoint-8"}
    atomic.write_text(other.config, other.read_config().replaced(init_adapter=str(tmp_path / "gone")).to_yaml())
    assert list(training_curve.scored_models(other, 1)) == [8]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--curves"], "name a run"),
        (["a", "b"], "several runs, budgets and samples go with --curves"),
        (["a", "--samples", "3"], "go with --curves"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(
    args: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli("evaluate", *args) == 2
    assert says in capsys.readouterr().err


def test_runs_of_one_curve_may_differ_only_in_their_seed(
    runs: list[RunDir], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = runs[0], RunDir(shutil.copytree(runs[1].path, tmp_path / "other"))
    text = b.config.read_text()
    assert "lora_r: 8\n" in text
    b.config.write_text(text.replace("lora_r: 8\n", "lora_r: 4\n"))
    assert run_cli("evaluate", str(a.path), str(b.path), "--curves") == 2
    assert "lora.lora_r is 4" in capsys.readouterr().err
    development = text.replace("score_on: held_out\n", "score_on: development\n")
    assert development != text
    b.config.write_text(development)
    assert run_cli("evaluate", str(a.path), str(b.path), "--curves") == 2
    assert "development.score_on is 'development'" in capsys.readouterr().err
    b.config.write_text(text.replace("seed: 2\n", "seed: 1\n"))
    assert run_cli("curves", str(a.path), str(b.path)) == 2
    assert f"{b.path}: has the seed 1, as {a.path} has" in capsys.readouterr().err
    assert run_cli("curves", str(a.path), str(a.path)) == 2
    assert run_cli("evaluate", str(a.path), "--curves", "--budgets", "4,x") == 2
    assert "is not a list of numbers" in capsys.readouterr().err


@pytest.mark.slow
def test_the_benchmark_measures_everything_shown_in_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, script = tmp_path / "evidence.json", module(ROOT / "bench" / "evidence.py")

    def run(*args: str) -> str:
        done = forked("cot_unsloth", *args, at=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        return ""

    monkeypatch.setattr(script, "run", run)
    monkeypatch.setattr(sys, "argv", ["evidence.py", "--tiny", "--work", str(tmp_path), "--out", str(out)])
    script.main()
    result = json.loads(out.read_text())
    assert str(tmp_path) not in out.read_text()
    assert [row["step"] for row in result["training"]["train_time"]["mean"]] == [0, 4, 8]
    assert len(result["countdown"]["test_time"]["by_tries"]["countdown"]) == 6
    assert result["chains"]["under_errors"]["reflection"]["n"] <= result["chains"]["n"]
