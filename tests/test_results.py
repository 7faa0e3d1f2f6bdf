"""Results on disk are read as types and rewritten byte for byte, whichever version wrote them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from cot_unsloth.core import verdict
from cot_unsloth.core.errors import RunDirError
from cot_unsloth.core.results import Curves, FitReport, Manifest, Scorecard, TokenAccuracy, Verdict
from cot_unsloth.core.results.record import Record
from cot_unsloth.core.results.verification import Verification

OLD_RUN = Path(__file__).parent / "data" / "run-88b716a"
FILES: list[tuple[str, type[Record]]] = [
    ("scorecard.json", Scorecard),
    ("curves.json", Curves),
    ("fit.json", FitReport),
    ("token_accuracy.json", TokenAccuracy),
    ("manifest.json", Manifest),
    ("export/verified.json", Verification),
]


@pytest.mark.parametrize(("name", "kind"), FILES)
def test_an_old_file_is_rewritten_byte_for_byte(name: str, kind: type[Record], tmp_path: Path) -> None:
    kind.read(OLD_RUN / name).write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (OLD_RUN / name).read_bytes()
    assert kind.read(OLD_RUN / name).version == 1


@pytest.mark.parametrize(("name", "kind"), FILES)
def test_keys_of_a_newer_version_are_kept(name: str, kind: type[Record], tmp_path: Path) -> None:
    newer = {**json.loads((OLD_RUN / name).read_text()), "version": 9, "of_tomorrow": {"a": [1, None]}}
    path = tmp_path / "newer.json"
    path.write_text(json.dumps(newer))
    record = kind.read(path)
    record.write(path)
    assert record.version == 9
    assert json.loads(path.read_text()) == newer


def test_results_are_immutable() -> None:
    card = Scorecard.read(OLD_RUN / "scorecard.json")
    assert card.arms["tuned"].n == card.n == 16
    assert isinstance(verdict.of(card), Verdict)
    with pytest.raises(ValidationError, match="frozen"):
        card.n = 3


def test_fields_missing_in_older_files_have_defaults(tmp_path: Path) -> None:
    old = json.loads((OLD_RUN / "scorecard.json").read_text())
    for key in ("verdict", "gate", "recovery", "aims", "reflection", "thinking_tags", "loaded", "paired_interval"):
        old.pop(key, None)
    (tmp_path / "scorecard.json").write_text(json.dumps(old))
    card = Scorecard.read(tmp_path / "scorecard.json")
    assert (card.verdict, card.gate, card.recovery, card.paired_interval) == (None, None, None, None)
    assert (card.aims, card.reflection, card.thinking_tags) == ({}, {}, "thinking")


def test_an_invalid_file_gives_an_error_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "scorecard.json"
    for content, message in (
        (b"{", "cannot be read: Expecting"),
        (b'{"n": "\xff"}', "cannot be read: 'utf-8'"),
        (b"[]", "is not a Scorecard: Input should be"),
        (b'{"arms": {"tuned": 1}}', r"is not a Scorecard: arms\.tuned"),
    ):
        path.write_bytes(content)
        with pytest.raises(RunDirError, match=message) as caught:
            Scorecard.read(path)
        assert caught.value.where == str(path)
    assert Scorecard.read_if_there(tmp_path / "absent.json") is None
