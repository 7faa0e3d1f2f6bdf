"""`verified.json` as a type: a file that is read and written again stays the same byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cot_unsloth.core.errors import RunDirError
from cot_unsloth.core.results.verification import VERIFIED, Check, Verification, read_verification

RECORDS = sorted((Path(__file__).parent.parent / "bench" / "results").rglob(VERIFIED))
"""Written by earlier versions, which recorded fewer keys."""


@pytest.mark.parametrize("file", RECORDS, ids=lambda file: file.parent.name)
def test_a_record_of_an_earlier_version_is_written_back_unchanged(file: Path, tmp_path: Path) -> None:
    record = read_verification(file.parent)
    record.write(tmp_path / VERIFIED)
    assert (tmp_path / VERIFIED).read_bytes() == file.read_bytes()
    assert record.passed_files == record.files
    assert record.thinking_tags == "thinking"
    assert record.made_from is None


def test_no_record_is_empty(tmp_path: Path) -> None:
    assert read_verification(tmp_path).is_empty
    assert not Verification(status="failed").is_empty


def test_unknown_keys_and_figures_are_kept(tmp_path: Path) -> None:
    tree = {
        "checks": [{"file": "a.gguf", "name": "kl", "passed": True, "mean_nats": 1e-5, "new": [1]}],
        "later": {"x": 1},
    }
    (tmp_path / VERIFIED).write_text(json.dumps(tree))
    record = read_verification(tmp_path)
    assert record.checks[0].figures == {"mean_nats": 1e-5, "new": [1]}
    record.write(tmp_path / VERIFIED)
    assert json.loads((tmp_path / VERIFIED).read_text()) == tree


def test_no_system_prompt_differs_from_a_missing_key() -> None:
    assert Verification(system_prompt=None).has_system_prompt
    assert not Verification().has_system_prompt
    assert Verification(system_prompt=None).as_json() == {"system_prompt": None}


def test_a_file_passes_if_all_of_its_checks_pass() -> None:
    checks = [("a.gguf", True), ("merged", True), ("a.gguf", False), ("b.gguf", True)]
    record = Verification(checks=tuple(Check(file=file, name="kl", passed=passed) for file, passed in checks))
    assert record.files == ["a.gguf", "merged", "b.gguf"]
    assert record.passed_files == ["merged", "b.gguf"]


def test_files_are_removed_with_their_hashes() -> None:
    checks = tuple(Check(file=file, name="kl", passed=True) for file in ("merged", "a.gguf"))
    record = Verification(checks=checks, sha256={"merged/config.json": "1", "a.gguf": "2", "README.md": "3"})
    assert record.hashes_of("merged") == {"merged/config.json": "1"}
    left = record.without_files(["merged"])
    assert left.files == ["a.gguf"]
    assert left.sha256 == {"a.gguf": "2", "README.md": "3"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "is not a record of an export"),
        ('{"checks": [{"name": "kl"}]}', "checks.0.passed"),
    ],
)
def test_a_damaged_record_is_an_error_that_names_the_key(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / VERIFIED).write_text(text)
    with pytest.raises(RunDirError, match=message):
        read_verification(tmp_path)
