"""`runs` and `compare`: what is listed, what is paired, and what is said of differences."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from helpers import run_cli, short_run

from cot_unsloth.core.results import VERSION, Scorecard
from cot_unsloth.core.results.comparison import ComparedRun, Comparison, ListedRun
from cot_unsloth.core.statistics import holm
from cot_unsloth.evaluation.scorecard import paired_counts
from cot_unsloth.lab import compare as comparing
from cot_unsloth.lab import runs as listing
from cot_unsloth.lab.pairs import corrected
from cot_unsloth.reporting import columns
from cot_unsloth.reporting.page import Grid, Page
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


def test_a_folder_that_is_a_link_is_listed_and_links_in_it_are_not_followed(two_runs: Path, tmp_path: Path) -> None:
    """`runs`, a link to a larger disk, was said to hold no runs."""
    folder = tmp_path / "runs"
    folder.symlink_to(two_runs, target_is_directory=True)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "circle").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "inner" / "run").symlink_to(two_runs / "a", target_is_directory=True)
    assert [Path(run.path).name for run in listing.list_runs(folder)] == ["a", "b"]
    assert [Path(run.path).name for run in listing.list_runs(tmp_path / "inner")] == ["run"]


def test_a_run_that_is_named_twice_is_compared_once(two_runs: Path) -> None:
    """`compare runs/b runs/*` compared it with itself, and corrected for that pair and for a repeated one."""
    a, b = two_runs / "a", two_runs / "b"
    comparison = comparing.compare([b, a, b / "." / "", two_runs / "a" / ".." / "b"])
    assert [(pair.before, pair.after) for pair in comparison.pairs] == [("b", "a")]
    assert comparison.pairs[0].adjusted_p == comparison.pairs[0].mcnemar_p


def test_what_no_pair_shows_is_said_of_the_pair_that_needs_the_largest_difference() -> None:
    pairs = [paired_counts(*names, 200, n, n) for names, n in (("ab", 0), ("ac", 20), ("bc", 5))]
    shares = {"accuracy": 0.5, "ci95": (0.4, 0.6), "arm": "tuned", "mean_tokens": 1.0, "format_valid": 1.0}
    runs = tuple(ComparedRun(name=name, **shares) for name in "abc")
    found = Comparison(version=VERSION, dataset="d", n=200, runs=runs, pairs=corrected(pairs))
    least = pairs[1].resolvable
    assert least is not None
    assert comparing.page(found).sentence == f"No significant difference; n = 200 detects ≥ {100 * least:.1f} points."


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
    assert f"only the {n - 1} that all of them answered" in " ".join(printed.split())
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


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed_to_a_terminal(page: Page, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines of a page in a terminal of 80 columns."""
    stream = Terminal()
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stdout", stream)
    page.print()
    monkeypatch.undo()
    return stream.getvalue().splitlines()


NAMES = ("20261127-152910-tiny-base-chains", "20261127-153055-tiny-base-chains")


def test_a_run_is_one_line_of_a_terminal_and_its_name_is_whole_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        ListedRun(
            path=f"runs/{name}", state="interrupted", started="2026-11-27T15:29:10", model="tiny-base",
            dataset="world:chains,countdown", method="sft", before=0.07, after=0.86, size=7 * 2**20,
        )
        for name in NAMES
    ]  # fmt: skip
    page = listing.page(Path("runs"), runs)
    lines = printed_to_a_terminal(page, monkeypatch)
    rows = [line.split() for line in lines if "7.0% → 86.0%" in line]
    assert len(rows) == len(lines) - 4 == 2
    assert max(map(len, lines)) <= 80
    assert all("…" in row[0] and row[0][-5:] == "hains" for row in rows)
    assert rows[0][0] != rows[1][0]
    page.print()
    text = re.sub(r"\s", "", capsys.readouterr().out)
    assert "7.0%→86.0%" in text
    assert "…" not in text


def test_names_of_compared_runs_stay_distinct_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tuple(
        ComparedRun(name=name, arm="tuned", accuracy=0.5, ci95=(0.4, 0.6), mean_tokens=9, format_valid=1)
        for name in NAMES
    )
    pairs = corrected([paired_counts(*NAMES, 100, 20, 15)])
    found = Comparison(
        version=VERSION, dataset="world:chains", n=100, runs=runs, pairs=pairs,
        differences={"train.per_device_train_batch_size": (8, 16)},
    )  # fmt: skip
    lines = printed_to_a_terminal(comparing.page(found), monkeypatch)
    assert max(map(len, lines)) <= 80
    pair = next(at for at, line in enumerate(lines) if " → " in line)
    before, after = lines[pair].split()[0], lines[pair + 1].split()[0]
    assert "…" in before
    assert before != after
    setting = next(line for line in lines if line.startswith("setting")).split()
    assert len(setting) == len(set(setting)) == 3
    assert "train.per_device_train_batch_size" in "\n".join(lines)


def test_a_long_name_in_any_script_hides_no_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name without Latin letters was taken for figures: it was not wrapped, and the table was cut off at 80 columns."""
    page = Page("t", "s", grids=[Grid("", ("run", "right"), [("模型" * 20, "12.3% → 45.6%")])])
    page.print()
    text = re.sub(r"\s", "", capsys.readouterr().out)
    assert "12.3%→45.6%" in text
    assert text.count("模") == 20
    assert "12.3% → 45.6%" in "\n".join(printed_to_a_terminal(page, monkeypatch))


@pytest.mark.parametrize("width", [8, 12, 20])
def test_shortened_names_fit_and_stay_distinct(width: int) -> None:
    names = ["a/20261127-152910-x", "a/20261127-153055-x", "a/20261127-160001-longer-name", "short"]
    short = columns.shortened(names, width)
    assert max(map(len, short)) <= width
    assert len(set(short)) == len(names)
