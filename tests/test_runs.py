"""`runs` and `compare`: what is listed, what is paired, and what is said of differences."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers import run_cli, short_run

from cot_unsloth.core.results import Scorecard
from cot_unsloth.core.statistics import holm
from cot_unsloth.lab import compare as comparing
from cot_unsloth.lab import runs as listing
from cot_unsloth.storage import records
from cot_unsloth.storage.lock import folder_lock
from cot_unsloth.storage.run_folder import RunDir


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    short_run(folder / "a", "--eval-samples", "8")
    shutil.copytree(folder / "a", folder / "b")
    b = RunDir(folder / "b")
    b.write_config(b.read_config().replaced(learning_rate=0.001))
    return folder


def with_right(run: RunDir, right: int) -> None:
    """Make the first `right` answers of the tuned arm right, and the others wrong."""
    rows = records.read_jsonl(run.completions("tuned"))
    records.write_jsonl(run.completions("tuned"), [{**row, "correct": at < right} for at, row in enumerate(rows)])


def test_holm_orders_by_p_and_never_lowers_one() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_runs_are_compared_on_common_problems(
    two_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = RunDir(two_runs / "a"), RunDir(two_runs / "b")
    n = len(records.read_jsonl(a.completions("tuned")))
    with_right(a, 0)
    with_right(b, n)
    same = comparing.compare([a.path, b.path])
    assert (same.n, same.pairs[0].gained, same.pairs[0].lost, same.notes) == (n, n, 0, ())
    assert same.pairs[0].significant is True
    assert same.differences["train.learning_rate"] == (a.read_config().train.learning_rate, 0.001)

    fewer = tmp_path / "fewer"
    shutil.copytree(b.path, fewer)
    run = RunDir(fewer)
    records.write_jsonl(run.completions("tuned"), records.read_jsonl(run.completions("tuned"))[1:])
    card = Scorecard.read(run.scorecard)
    card.model_copy(update={"decoding": card.decoding.model_copy(update={"temperature": 0.7})}).write(run.scorecard)
    assert run_cli("compare", str(a.path), str(fewer), "--out", str(tmp_path / "out")) == 0
    printed = capsys.readouterr().out
    assert f"{n - 1} are in all of them" in " ".join(printed.split())
    assert "different temperature" in printed
    assert max(map(len, printed.splitlines()[:-1])) <= 80
    assert "learning_rate" in (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")


def test_runs_without_a_common_problem_are_refused(
    two_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(two_runs / "b", other)
    run = RunDir(other)
    rows = [{**row, "question": "another"} for row in records.read_jsonl(run.completions("tuned"))]
    records.write_jsonl(run.completions("tuned"), rows)
    assert run_cli("compare", str(two_runs / "a"), str(other)) == 2
    assert "no problem was answered by all" in capsys.readouterr().err
    assert run_cli("compare", str(two_runs / "a"), str(two_runs / "a")) == 2
    assert run_cli("compare", str(two_runs / "a"), str(tmp_path)) == 2


def test_runs_are_listed_with_their_states(two_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = tmp_path / "many"
    shutil.copytree(two_runs / "a", many / "complete")
    shutil.copytree(two_runs / "a", many / "sweep" / "trials" / "0")
    shutil.copytree(two_runs / "a", many / "interrupted")
    manifest = RunDir(many / "interrupted").manifest
    tree = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**tree, "finished": None}))
    for name, content in (("not_json", b'{"started": '), ("not_text", b"\xff\xfe"), ("other", b'{"rows": 3}')):
        shutil.copytree(two_runs / "a", many / name)
        RunDir(many / name).manifest.write_bytes(content)
    (many / "no_config").mkdir()
    (many / "no_config" / "manifest.json").write_text("{}")
    (many / "nothing").mkdir()
    shutil.copytree(two_runs / "a", many / "working")
    with folder_lock(many / "working"):
        listed = {Path(run.path).relative_to(many).as_posix(): run for run in listing.list_runs(many)}
    assert {name: run.state for name, run in listed.items()} == {
        "complete": "complete", "sweep/trials/0": "complete", "interrupted": "interrupted", "not_json": "damaged",
        "not_text": "damaged", "other": "damaged", "no_config": "damaged", "working": "running",
    }  # fmt: skip
    complete = listed["complete"]
    assert complete.after is not None
    assert complete.size > 10_000
    assert run_cli("runs", str(many)) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
    assert run_cli("runs", str(many), "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) == len(listed)
    assert run_cli("runs", str(tmp_path / "none")) == 2
