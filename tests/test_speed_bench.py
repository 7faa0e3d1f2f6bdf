"""`python -m bench.speed`: the code of every suite runs with little work, and contenders do the same work."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import short_run

from bench.speed import plan, store
from bench.speed.contenders import ours, transformers
from bench.speed.session import Session, Work

ROOT = Path(__file__).parent.parent


def bench(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.speed", "--tiny", "--out", str(out), "--work", str(out.parent / "work")]
    return subprocess.run([*command, *more], capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.slow
def test_contenders_train_and_prepare_the_same_tokens(tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    names = [
        "--only",
        "training-200,preparation-demo,help",
        "--contenders",
        "ours,trl-bf16-grouped,trl-map,bare imports",
    ]
    done = bench(out, *names)
    assert done.returncode == 0, done.stderr
    measured = json.loads(out.read_text())["measurements"]
    assert set(measured) == {"training-200", "preparation-demo", "help"}
    assert all(m["complete"] and not m["failed"] for m in measured.values())
    trained = measured["training-200"]
    for name, facts in trained["facts"].items():
        assert facts["tokens"] == facts["rows_tokens"] == sum(b["tokens"] for b in trained["blocks"][name])
        assert facts["held_out_loss"] < 3
    prepared = measured["preparation-demo"]["facts"]
    # TRL keeps the line break that ChatML writes behind the stop token.
    assert prepared["trl-map"]["tokens"] == prepared["ours"]["tokens"] + sum(
        block["rows"] for block in measured["preparation-demo"]["blocks"]["ours"]
    )
    assert bench(out, *names).stdout == "", "what is complete is not repeated"


def reports_of(contender: Any, work: Work) -> list[dict[str, Any]]:
    """What a contender reports, run in this process."""
    stream = io.StringIO()
    session = Session(stream, fresh=True)
    session.end(contender(work, session))
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.slow
def test_engines_answer_the_same_questions_alike(tmp_path: Path) -> None:
    short_run(tmp_path / "run" / "run", "--gguf", "f16", "--merged", "--eval-samples", "0")
    settings = plan.tiny(plan.scoring()[0]).settings
    answers = {}
    for contender in (ours.score, ours.score_gguf, transformers.generate, transformers.continuous):
        work = Work(tmp_path / "scoring", 1, settings, {}, contender.__name__)
        block, end = reports_of(contender, work)
        assert block["block"]["questions"] == settings["questions"]
        assert end["end"]["peak_mib"] is None or end["end"]["peak_mib"] > 10
        answers[contender.__name__] = (tmp_path / "scoring" / f"answers-{contender.__name__}.jsonl").read_text()
    assert answers["score"] == answers["generate"] == answers["continuous"]
    assert len(answers["score_gguf"].splitlines()) == settings["questions"]


def test_the_summary_compares_round_by_round_without_the_warm_up() -> None:
    blocks = {
        "ours": [{"round": i, "cpu": cpu, "wall": 1.0, "tokens": 100} for i, cpu in enumerate((9.0, 1.0, 2.0))],
        "peer": [{"round": i, "cpu": cpu, "wall": 1.0, "tokens": 100} for i, cpu in enumerate((1.0, 2.0, 8.0))],
    }
    facts: dict[str, Any] = {"ours": {"peak_mib": 7.0}}
    result = store.summary({"unit": "tokens", "warm_up": 1, "blocks": blocks, "facts": facts})
    assert result["faster"] == {"ours / peer": {"median": 3.0, "min": 2.0, "max": 4.0}}
    assert result["contenders"]["ours"] == {"n": 2, "per_cpu_second": 75.0, "per_second": 100.0, "peak_mib": 7.0}
    seconds = {"unit": "processes", "warm_up": 1, "blocks": blocks, "facts": facts}
    for block in (b for some in blocks.values() for b in some):
        block["processes"] = 1
    assert store.summary(seconds)["faster"]["ours / peer"]["median"] == 3.0
