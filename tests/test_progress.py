"""Progress when stderr is not a terminal: lines, none of them printed twice."""

from __future__ import annotations

import pytest

from cot_unsloth.core import progress


def lines_printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_lines_are_printed_at_intervals_and_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with progress.bar("score", 4) as bar:
        bar.advance(1)
        monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
        bar.advance(2, **{"tokens/s": "7"})
        monkeypatch.setattr(progress, "QUIET_SECONDS", 1e9)
        bar.advance(1)
    assert lines_printed(capsys) == ["score: 3/4 in 0 s  tokens/s 7", "score: 4/4 in 0 s  tokens/s 7"]


def test_lines_say_how_long_the_rest_takes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.bar("fit") as bar:
        bar.restart(100, done=40)  # by an earlier process
        now = 60.0
        bar.advance(10)
        now = 90.0
        bar.advance(50)
    assert lines_printed(capsys) == ["fit: 50/100 in 60 s, 5 min left", "fit: 100/100 in 90 s"]


def test_the_last_line_is_not_printed_twice(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    with progress.bar("score", 2) as bar:
        bar.advance(2)
    assert lines_printed(capsys) == ["score: 2/2 in 0 s"]


def test_work_without_a_total_prints_its_duration(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.bar("verify x.gguf"):
        pass
    assert lines_printed(capsys) == ["verify x.gguf: 0 s"]


def test_work_of_many_parts_has_one_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    with progress.whole("curves", 4):
        for number in range(3):  # a fourth was not needed
            with progress.bar(f"sample {number}", 2) as bar:
                bar.advance(2, **{"tokens/s": "7"})
    lines = lines_printed(capsys)
    assert all(line.startswith("curves: ") for line in lines)
    assert "curves: 1/4 in 0 s  now sample 1 2/2  tokens/s 7" in lines
    assert lines[-1].startswith("curves: 4/4 in 0 s")
