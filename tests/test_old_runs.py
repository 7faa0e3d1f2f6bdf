"""A run folder written by an older version opens, evaluates, exports, reports and resumes unchanged.

`data/run-88b716a` was written at commit 88b716a, by `train --dataset world:words:2-3 --world-samples 120 --eval-samples 16
--max-new-tokens 160 --save-steps 8 --lora-r 4 --gguf q8_0 --no-gate --recovery` and `evaluate --curves --samples 2
--budgets 40,80,160`. Its checkpoints, plots and GGUF file are left out.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers import run_cli

from cot_unsloth.storage.records import read_jsonl
from cot_unsloth.storage.run_folder import RunDir

OLD_RUN = Path(__file__).parent / "data" / "run-88b716a"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(Path(shutil.copytree(OLD_RUN, tmp_path / "run-88b716a")))


def texts(run: RunDir, arm: str) -> list[str]:
    return [row["text"] for row in read_jsonl(run.completions(arm))]


def test_evaluate_gives_the_same_answers_again(run: RunDir, tmp_path: Path) -> None:
    assert run_cli("evaluate", str(run.path), "--out", str(tmp_path / "again"), "--arms", "base_tags,tuned") == 0
    again = RunDir(tmp_path / "again")
    for arm in ("base_tags", "tuned"):
        old, new = texts(run, arm), texts(again, arm)
        assert len(old) == len(new) == 16
        # Greedy decoding in float32: another CPU's order of summation may change a token where two are nearly as likely.
        assert sum(before == after for before, after in zip(old, new, strict=True)) >= 14
    before, after = (json.loads(folder.scorecard.read_text(encoding="utf-8")) for folder in (run, again))
    assert set(before["arms"]["tuned"]) <= set(after["arms"]["tuned"])
    for key in ("n", "seed", "model", "dataset", "train_seed", "decoding", "interval", "test"):
        assert before[key] == after[key]


def test_its_export_is_verified(run: RunDir, tmp_path: Path) -> None:
    assert run_cli("export", str(run.path), "--gguf", "q8_0", "--merged", "--out", str(tmp_path / "out")) == 0
    verified = json.loads((tmp_path / "out" / "verified.json").read_text(encoding="utf-8"))
    assert verified["status"] == "passed"
    assert (tmp_path / "out" / "tiny-base-cot-Q8_0.gguf").is_file()
    assert (tmp_path / "out" / "merged" / "model.safetensors").is_file()


def test_inspect_shows_its_rows(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("inspect", str(run.path)) == 0
    assert "<thinking>" in capsys.readouterr().out


def test_its_report_can_be_written_again(run: RunDir) -> None:
    from cot_unsloth.reporting import report

    run.report.unlink()
    report.write(run)
    page = run.report.read_text(encoding="utf-8")
    assert "world:words:2-3" in page
    assert "curves" in page.lower()


def test_resume_trains_and_exports_nothing_again(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    """Its manifest does not say that the run finished, because that version did not record it: now it does."""
    assert run_cli("export", str(run.path), "--gguf", "q8_0", "--force") == 0  # the file that was left out
    made = [run.adapter / "adapter_model.safetensors", run.completions("tuned"), *run.export.glob("*.gguf")]
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in made]
    assert run_cli("train", "--run-dir", str(run.path), "--resume") == 0
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in made] == before
    capsys.readouterr()
    assert run_cli("train", "--run-dir", str(run.path), "--resume") == 0
    assert "is finished; nothing to do" in capsys.readouterr().err
