"""An export into a folder that already holds an export: what is kept, refused or replaced, and how files are named."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import run_cli, short_run
from modelfiles import commands
from models import TINY
from safetensors.torch import load_file, save_file

from cot_unsloth.config import load_tree
from cot_unsloth.core.errors import RunDirError
from cot_unsloth.core.results.verification import read_verification
from cot_unsloth.export import file_names, plan
from cot_unsloth.export.deltas import LowRank
from cot_unsloth.prompts.tokenizer import model_path
from cot_unsloth.storage.hashes import sha256_of
from cot_unsloth.storage.lock import LOCK
from cot_unsloth.storage.run_folder import RunDir

Q8, Q4 = "tiny-base-cot-Q8_0.gguf", "tiny-base-cot-Q4_K_M.gguf"
FEW = ("--export-samples", "1")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return short_run(tmp_path_factory.mktemp("runs") / "run", "--merged", "--gguf", "q8_0", *FEW)


@pytest.fixture
def run(exported: RunDir, tmp_path: Path) -> RunDir:
    """A copy of a run whose training exported merged/ and Q8_0, for a test to change."""
    return RunDir(shutil.copytree(exported.path, tmp_path / "run"))


def checked_record(out: Path) -> dict[str, Any]:
    """The contents of verified.json, after its hashes and file names were compared with the folder."""
    record: dict[str, Any] = json.loads((out / "verified.json").read_text())
    for name, sha in record["sha256"].items():
        assert sha256_of(out / name) == sha, name
    assert {check["file"] for check in record["checks"]} <= {path.name for path in out.iterdir()}
    return record


def passed_files(record: dict[str, Any]) -> set[str]:
    return {check["file"] for check in record["checks"] if check["passed"]}


def test_verified_files_are_kept_and_missing_ones_are_written(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    """The second export command of README."""
    before = (run.export / Q8).stat()
    assert run_cli("export", str(run.path), "--gguf", "q4_k_m,q8_0", *FEW) == 0
    assert f"{Q8} already exists, verified and unchanged: kept" in capsys.readouterr().err
    assert (run.export / Q8).stat().st_mtime_ns == before.st_mtime_ns
    record = checked_record(run.export)
    assert record["status"] == "passed"
    assert passed_files(record) == {"merged", Q8, Q4}
    assert {Q8, Q4, "Modelfile"} <= set(record["sha256"])
    assert (run.export / dict(commands((run.export / "Modelfile").read_text()))["from"]).is_file()
    assert Q8 in (run.export / "README.md").read_text()
    assert run_cli("export", str(run.path), "--gguf", "q4_k_m,q8_0", "--merged", *FEW) == 2
    message = capsys.readouterr().err
    assert "merged already exists" in message
    assert "--force writes it again, --skip-existing keeps it unchanged" in message
    assert run_cli("export", str(run.path), "--gguf", "q4_k_m,q8_0", "--merged", "--skip-existing", *FEW) == 0
    message = capsys.readouterr().err
    assert message.count("already exists, verified and unchanged: kept") == 3
    assert "nothing left to write" in message
    assert checked_record(run.export) == record


def test_a_changed_file_is_refused_kept_or_replaced(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    content = (run.export / Q8).read_bytes()
    (run.export / Q8).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    changed = (run.export / Q8).read_bytes()
    both = ("export", str(run.path), "--gguf", "q4_k_m,q8_0", *FEW)
    assert run_cli(*both) == 2
    message = capsys.readouterr().err
    assert f"{Q8} already exists, and has changed since it was verified" in message
    assert "--force" in message
    assert "--skip-existing" in message
    assert not (run.export / Q4).exists()

    assert run_cli(*both, "--skip-existing") == 0
    assert "kept unchanged, unverified" in capsys.readouterr().err
    assert (run.export / Q8).read_bytes() == changed
    record = checked_record(run.export)
    assert passed_files(record) == {"merged", Q4}
    assert Q8 not in record["sha256"]
    assert Q8 not in (run.export / "README.md").read_text()

    assert run_cli(*both[:2], "--gguf", "q6_k,q8_0") == 2
    assert f"{Q8} already exists, and verified.json does not list it" in capsys.readouterr().err
    assert run_cli(*both, "--force") == 0
    assert (run.export / Q8).read_bytes() == content
    assert passed_files(checked_record(run.export)) == {"merged", Q4, Q8}


def test_a_changed_file_that_is_kept_is_removed_from_the_record(run: RunDir) -> None:
    (run.export / Q8).write_bytes(b"mine")
    assert run_cli("export", str(run.path), "--gguf", "q8_0", "--skip-existing") == 0
    assert (run.export / Q8).read_bytes() == b"mine"
    assert passed_files(checked_record(run.export)) == {"merged"}


def test_a_merged_folder_is_replaced_with_all_its_files(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    (run.merged / "stray.txt").write_text("of an older version")
    weights = (run.merged / "model.safetensors").read_bytes()
    assert run_cli("export", str(run.path), "--merged", "--export-dtype", "float32", "--gguf", "q4_k_m") == 2
    assert "merged already exists, in float16" in capsys.readouterr().err
    assert run_cli("export", str(run.path), "--merged", "--export-dtype", "float32", "--force") == 0
    assert (run.merged / "model.safetensors").stat().st_size > 1.9 * len(weights)
    assert not (run.merged / "stray.txt").exists()
    assert passed_files(checked_record(run.export)) == {"merged", Q8}
    assert [path.name for path in run.export.iterdir() if path.name.startswith(".")] == [LOCK]


def test_a_failed_replacement_keeps_the_existing_files(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    apply = LowRank.apply
    weights = (run.merged / "model.safetensors").read_bytes()
    monkeypatch.setattr(LowRank, "apply", lambda self, weight, begin=0: apply(self, weight, begin).flip(0))
    assert run_cli("export", str(run.path), "--merged", "--force") == 3
    assert (run.merged / "model.safetensors").read_bytes() == weights
    record = checked_record(run.export)
    assert passed_files(record) == {"merged", Q8}
    assert not all(check["passed"] for check in record["failed_replacement"])
    monkeypatch.undo()
    assert run_cli("export", str(run.path), "--merged", "--force") == 0
    assert "failed_replacement" not in checked_record(run.export)


def test_an_edited_modelfile_is_kept_unless_forced(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    (run.export / "Modelfile").write_text("FROM mine\n")
    assert run_cli("export", str(run.path), "--gguf", "q4_k_m", *FEW) == 0
    assert (run.export / "Modelfile").read_text() == "FROM mine\n"
    assert "is not the file that export wrote: kept" in capsys.readouterr().err
    assert run_cli("export", str(run.path), "--gguf", "q4_k_m", "--force", *FEW) == 0
    assert dict(commands((run.export / "Modelfile").read_text()))["from"] == f"./{Q4}"
    checked_record(run.export)


def test_a_folder_with_an_export_of_another_adapter_is_refused(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, out = shutil.copytree(run.adapter, tmp_path / "other"), tmp_path / "out"
    tensors = load_file(other / "adapter_model.safetensors")
    save_file({name: -t if "lora_B" in name else t for name, t in tensors.items()}, other / "adapter_model.safetensors")

    flags = ("--out", str(out), "--system-prompt", "Think first.")

    def export(adapter: Path, *more: str) -> int:
        return run_cli("export", "--model", "tiny-base", "--adapter", str(adapter), *flags, *more)

    assert export(run.adapter, "--merged") == 0
    assert export(run.adapter, "--merged") == 2
    assert export(run.adapter, "--merged", "--skip-existing") == 0
    capsys.readouterr()
    for more in (
        ("--merged", "--gguf", "q8_0"),
        ("--lora-gguf",),
        ("--merged", "--skip-existing"),
        ("--lora-gguf", "--force"),
    ):
        assert export(other, *more) == 2
        assert "holds an export of other trained weights" in capsys.readouterr().err
    assert export(run.adapter, "--merged", "--system-prompt", "Be brief.") == 2
    assert "another system prompt" in capsys.readouterr().err
    assert export(run.adapter, "--merged", "--gguf", "q8_0", "--thinking-tags", "think") == 2
    assert "other thinking tags" in capsys.readouterr().err
    weights = (out / "merged" / "model.safetensors").read_bytes()
    assert export(other, "--merged", "--force") == 0
    assert (out / "merged" / "model.safetensors").read_bytes() != weights


def test_an_empty_system_prompt_is_none(run: RunDir, tmp_path: Path) -> None:
    args = ("--model", "tiny-base", "--adapter", str(run.adapter), "--out", str(tmp_path / "out"), *FEW)
    assert run_cli("export", *args, "--lora-gguf", "--system-prompt", "") == 0
    assert run_cli("export", *args, "--merged", "--system-prompt", "null") == 0


def test_a_folder_with_an_export_of_another_tokenizer_is_refused(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file with the stop tokens of before is not the model that is exported now."""
    base, out = shutil.copytree(model_path("tiny-base"), tmp_path / "base"), tmp_path / "out"
    args = ("--model", str(base), "--adapter", str(run.adapter), "--out", str(out), *FEW)
    assert run_cli("export", *args, "--gguf", "q8_0") == 0
    settings = base / "generation_config.json"
    before = settings.read_text()
    settings.write_text(json.dumps(json.loads(before) | {"eos_token_id": [0, 1, 2, 3]}))
    assert run_cli("export", *args, "--gguf", "q8_0", "--merged") == 2
    assert "holds an export of other tokenizer or stop tokens" in capsys.readouterr().err
    settings.write_text(before)
    record = json.loads((out / "verified.json").read_text())
    del record["made_from"]["tokenizer_or_stop_tokens"]  # as an earlier version wrote it
    (out / "verified.json").write_text(json.dumps(record))
    assert run_cli("export", *args, "--gguf", "q8_0", "--merged") == 0


def test_the_folder_of_a_model_or_adapter_is_refused_as_output(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The export would replace its model card."""
    base = Path(shutil.copytree(TINY, tmp_path / "base"))
    for args in (("--model", str(base)), ("--model", str(base), "--adapter", str(run.adapter))):
        for out in (base, run.adapter):
            assert run_cli("export", *args, "--gguf", "q8_0", "--force", "--out", str(out)) == 2
            assert f"error: {out}: already holds a model or an adapter" in capsys.readouterr().err


def test_a_file_that_no_export_wrote_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "tiny-base-Q8_0.gguf").write_bytes(b"mine")
    args = ("export", "--model", "tiny-base", "--gguf", "q8_0", "--out")
    assert run_cli(*args, str(out)) == 2
    assert "--force writes it again, --skip-existing keeps it unchanged" in capsys.readouterr().err
    assert (out / "tiny-base-Q8_0.gguf").read_bytes() == b"mine"
    assert run_cli(*args, str(out), "--force", "--skip-existing") == 2
    assert run_cli(*args, str(out / "tiny-base-Q8_0.gguf")) == 2
    assert "is a file, not a folder" in capsys.readouterr().err
    (out / "verified.json").write_text("{")
    assert run_cli(*args, str(out)) == 2
    assert "verified.json: cannot be read" in capsys.readouterr().err


def stem_of(model: str) -> str:
    return file_names.stem(load_tree({"model": {"model_name_or_path": model}}, {}))


def test_files_are_named_after_the_resolved_folder_of_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "My Models (2026)" / "Base v1.5"
    (base / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(base)
    monkeypatch.chdir(base)
    for model in (".", "./", str(base), f"{base}/", "../Base v1.5", "inner/..", str(tmp_path / "link"), "../../link/"):
        assert stem_of(model) == "base-v1.5-cot"
    assert stem_of("..") == "my-models-2026-cot"
    monkeypatch.chdir(base / "inner")
    assert stem_of("..") == "base-v1.5-cot"
    snapshot = (
        tmp_path / "hub" / "models--Qwen--Qwen2.5-0.5B" / "snapshots" / "a8b602d9dafd3a75d382e62757d83d89fca3be54"
    )
    snapshot.mkdir(parents=True)
    assert stem_of(str(snapshot)) == "qwen2.5-0.5b-cot"


@pytest.mark.parametrize(
    ("model", "stem"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", "qwen2.5-0.5b-instruct-cot"),
        ("tiny-base", "tiny-base-cot"),
        ("/", "model-cot"),
        ("/nowhere/a b\"c'd$e;f", "a-b-c-d-e-f-cot"),
        ("/nowhere/-rf", "rf-cot"),
        ("/nowhere/.hidden", "hidden-cot"),
        ("/nowhere/a\nb:c*?", "a-b-c-cot"),
        ("/nowhere/模型", "模型-cot"),
        ("/nowhere/" + "x" * 400, "x" * 150 + "-cot"),
    ],
)
def test_unsafe_characters_are_removed_from_file_names(model: str, stem: str) -> None:
    assert stem_of(model) == stem
    assert len(file_names.file_name(stem, "q4_k_m").encode()) < 255


def test_every_quantization_has_its_own_file_name() -> None:
    config = load_tree(
        {"model": {"model_name_or_path": "tiny-base"}}, {"gguf": "Q8_0,q8_0,q4_k_m,f16,bf16", "lora_gguf": True}
    )
    assert config.export.gguf == ("q8_0", "q4_k_m", "f16", "bf16")
    names = plan.names(config, file_names.stem(config))
    assert len(names) == len(set(map(str.lower, names))) == 5


def test_a_model_in_the_working_folder_is_exported_under_the_folder_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Path(shutil.copytree(TINY, tmp_path / "My Base"))
    monkeypatch.chdir(base)
    out = tmp_path / "out"
    out.mkdir()
    (out / "another-model.gguf").write_bytes(b"GGUF")  # a folder in which files of other programs are kept
    assert run_cli("export", "--model", ".", "--gguf", "q8_0", "--out", str(out), "--export-samples", "0") == 0
    assert sorted(path.name for path in out.glob("*.gguf")) == ["another-model.gguf", "my-base-Q8_0.gguf"]
    assert dict(commands((out / "Modelfile").read_text()))["from"] == "./my-base-Q8_0.gguf"


def test_a_system_prompt_with_special_characters_reaches_the_modelfile_unchanged(run: RunDir, tmp_path: Path) -> None:
    """Given on the command line, and read back from the Modelfile by Ollama's grammar."""
    prompt = 'Write """quotes""" and\r\n \\ and {{ .System }}\n'
    out = tmp_path / "out"
    args = ("--model", "tiny-base", "--adapter", str(run.adapter), "--lora-gguf", "--out", str(out))
    assert run_cli("export", *args, "--gguf", "q8_0", "--system-prompt", prompt, *FEW) == 0
    for name in ("Modelfile", "Modelfile.lora"):
        read = dict(commands((out / name).read_bytes().decode()))
        assert read["system"] == prompt
        assert re.fullmatch(r"\./[\w.-]+\.gguf", read["adapter" if name.endswith("lora") else "from"])


def test_a_damaged_record_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "verified.json").write_text("[]")
    with pytest.raises(RunDirError, match="is not a record of an export"):
        read_verification(tmp_path)
