"""Forgetting: a task that is not trained on, scored before and after, and what is said about it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from cot_unsloth import config
from cot_unsloth.core import verdict
from cot_unsloth.core.errors import ConfigError, InputError
from cot_unsloth.core.results import Scorecard
from cot_unsloth.core.types import Completion, Score
from cot_unsloth.evaluation import evaluate, forgetting, score
from cot_unsloth.storage.records import read_completions
from cot_unsloth.tasks import short_answers
from cot_unsloth.training import pipeline


def settings(**flags: str) -> config.RunConfig:
    return config.load(None, flags)


def scores(right: int, n: int) -> list[Score]:
    row = Score("", "data", "q", "g", "t", "a", True, None, 1, "stop")
    return [replace(row, id=str(i), correct=i < right) for i in range(n)]


def test_the_built_in_questions_can_be_answered_and_judged() -> None:
    questions = forgetting.problems(settings(forgetting="general"))
    assert len({q.question for q in questions}) == forgetting.PROBLEMS
    for question in questions:
        assert score.is_right(question, question.answer), question
        completion = Completion(question.id, f"The answer is {question.answer}.", 4, "stop")
        assert score.judge(question, completion, tagged=False).correct, question
    wrong = [score.is_right(q, other.answer) for q, other in itertools.pairwise(questions)]
    assert sum(wrong) < 15  # neighbours with the same answer, such as two that are 100


@pytest.mark.parametrize(
    ("part", "right", "wrong"),
    [
        ("Which ocean lies", "The ocean between them is the Atlantic Ocean.", "The Pacific Ocean."),
        ("symbol of oxygen", "The chemical symbol of oxygen is O.", "O is not a symbol."),
        ("last letter of", 'The last letter of the word "window" is "w".', "The last letter is o."),
        ("Romeo", "William Shakespeare wrote it.", "Christopher Marlowe wrote it."),
        ('past tense of "eat"', "The past tense is ate.", "The past tense is eaten."),
        ("violin", "A violin has 4 strings.", "A violin has 6 strings."),
        ("whale", "Yes, it is.", "No."),
        ("liquid at room", "B) mercury", "A) iron"),
    ],
)
def test_a_sentence_is_read_as_its_answer_before_and_after_training(part: str, right: str, wrong: str) -> None:
    [question] = [q for q in forgetting.problems(settings(forgetting="general")) if part in q.question]
    for text, correct in ((right, True), (wrong, False)):
        traced = f"<thinking>\nLet me think.\n</thinking>\n<output>{text}</output>"
        for form in (text, traced):
            assert score.judge(question, Completion("", form, 4, "stop"), tagged=False).correct == correct, form


def test_no_question_gives_its_answer_away() -> None:
    for question in forgetting.problems(settings(forgetting="general")):
        given_away = short_answers.accepts(question.problem, question.question)
        assert not given_away or question.question.startswith("Repeat"), question.question


def test_by_default_the_embedded_base_has_none() -> None:
    assert forgetting.task_of(settings()) is None
    assert forgetting.problems(settings()) == []
    assert forgetting.task_of(settings(model_name_or_path="Qwen/Qwen2.5-7B-Instruct")) == "general"
    assert forgetting.task_of(settings(model_name_or_path="Qwen/Qwen2.5-7B-Instruct", forgetting="none")) is None


def test_a_loss_is_a_warning_and_a_small_change_is_not() -> None:
    lost = forgetting.compare("general", scores(60, 100), scores(40, 100))
    assert verdict.forgetting(lost).startswith(
        "Warning: it forgot. On questions of general knowledge, which it was not trained on, 60.0% were right before training "
        "and 40.0% after"
    )
    same = forgetting.compare("general", scores(60, 100), scores(58, 100))
    assert "no significant difference" in verdict.forgetting(same)
    assert "Warning" not in verdict.forgetting(same)


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(ConfigError, match="'general', 'gsm8k'"):
        settings(forgetting="gernal")


def test_a_task_that_is_trained_on_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="chains is trained on"):
        pipeline.train(settings(run_dir=str(tmp_path / "run"), world_samples="16", forgetting="world:chains"))
    assert not (tmp_path / "run").exists()


def test_a_run_scores_it_before_and_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgetting, "PROBLEMS", 6)
    run, card = pipeline.train(
        settings(
            run_dir=str(tmp_path / "run"), dataset="world:chains:2", world_samples="16", max_steps="2", eval_samples="4",
            forgetting="world:words:2", gguf="", max_new_tokens="40",
        )
    )  # fmt: skip
    assert card.forgetting is not None
    assert (card.forgetting.task, card.forgetting.n) == ("world:words:2", 6)
    assert Scorecard.read(run.scorecard).forgetting == card.forgetting
    assert "which it was not trained on" in run.report.read_text(encoding="utf-8")
    before = read_completions(run.completions("forgetting_before"))
    assert [row.question for row in before] == [
        row.question for row in read_completions(run.completions("forgetting_after"))
    ]
    assert {row.task for row in before} == {"words"}
    again = evaluate.evaluate_run(run.path, {})
    assert again.forgetting == card.forgetting
    assert Scorecard.read(run.scorecard).forgetting == card.forgetting
    other = evaluate.evaluate_run(run.path, {"arms": "tuned", "eval_seed": 7}, tmp_path / "other")
    assert other.forgetting is not None
    assert other.forgetting.n == 6
    assert evaluate.evaluate_run(run.path, {"arms": "base_tags"}, tmp_path / "base").forgetting is None
