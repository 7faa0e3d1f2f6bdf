"""Progress where there is no terminal: lines for a log, none of them twice."""

from __future__ import annotations

import pytest

from cot_unsloth.core import progress


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_line_now_and_then_and_a_last_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with progress.bar("score", 4) as bar:
        bar.advance(1)
        monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
        bar.advance(2, **{"tokens/s": "7"})
        monkeypatch.setattr(progress, "QUIET_SECONDS", 1e9)
        bar.advance(1)
    assert said(capsys) == ["score: 3/4 in 0 s  tokens/s 7", "score: 4/4 in 0 s  tokens/s 7"]


def test_the_last_line_is_not_said_twice(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    with progress.bar("score", 2) as bar:
        bar.advance(2)
    assert said(capsys) == ["score: 2/2 in 0 s"]


def test_what_cannot_be_counted_says_how_long_it_took(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.bar("verify x.gguf"):
        pass
    assert said(capsys) == ["verify x.gguf: 0 s"]
