"""`sweep`, and what its trials rest on: development problems and the loss on them."""

from __future__ import annotations

from pathlib import Path

from helpers import run_cli, short_run

from cot_unsloth import config as settings
from cot_unsloth.config import RunConfig
from cot_unsloth.storage import records
from cot_unsloth.training.preparation import prepare

DEVELOPMENT = {"world_samples": 60, "eval_samples": 7, "score_on": "development", "development_problems": 9}


def test_development_problems_are_training_problems_and_not_trained_on() -> None:
    final = prepare(settings.load(None, {"world_samples": 60, "eval_samples": 7}))
    ours = prepare(settings.load(None, DEVELOPMENT))
    trained, scored = ({row.id for row in rows} for rows in (ours.train, ours.test))
    assert len(scored) == 9
    assert trained | scored == {row.id for row in final.train}
    assert not scored & trained
    assert not {row.id for row in final.test} & (trained | scored)
    assert ours.loaded.rows == len(ours.train) + len(ours.test) + len(ours.rejects)


def test_further_solutions_of_a_development_problem_are_not_trained_on(tmp_path: Path) -> None:
    rows = [{"question": f"{i % 20} + 1?", "reasoning": f"way {i}", "answer": str(i % 20 + 1)} for i in range(60)]
    records.write_jsonl(tmp_path / "rows.jsonl", rows)
    more = {"dataset": str(tmp_path / "rows.jsonl"), "score_on": "development"}
    ours = prepare(settings.load(None, more))
    assert len(ours.test) == 3  # a fifth of the 19 questions that are not held out
    assert len(ours.train) == 3 * (19 - 3)
    assert not {row.id for row in ours.test} & {row.id for row in ours.train}
    assert ours.loaded.rows == 60


def test_the_new_settings_leave_hashes_of_old_runs() -> None:
    assert RunConfig().fingerprint() == RunConfig().replaced(score_on="held_out").fingerprint()
    assert RunConfig().fingerprint() != RunConfig().replaced(score_on="development").fingerprint()


def test_the_loss_on_development_problems_is_measured(tmp_path: Path) -> None:
    run = short_run(
        tmp_path / "run", "--score-on", "development", "--development-problems", "4", "--eval-steps", "0.25"
    )
    losses = {row["step"]: row["eval_loss"] for row in records.read_jsonl(run.metrics) if "eval_loss" in row}
    assert list(losses) == [2, 4, 6, 8]
    assert losses[8] < losses[2]
    before = records.read_jsonl(run.completions("tuned"))
    assert run_cli("evaluate", str(run.path), "--no-gate") == 0
    assert [row["id"] for row in records.read_jsonl(run.completions("tuned"))] == [row["id"] for row in before]
