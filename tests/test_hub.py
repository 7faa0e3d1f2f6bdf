"""Pushing to the hub: the real client of the hub against a small local server."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import redirect_stderr
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import run_cli, short_run

from cot_unsloth.prompts.tokenizer import model_path
from cot_unsloth.storage.run_folder import RunDir


class Hub(ThreadingHTTPServer):
    """A hub in this process that accepts repositories and commits for one token."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.private: dict[str, bool] = {}
        self.commits: list[tuple[str, dict[str, bytes]]] = []
        self.refuse = ""
        """A repository for which commits are refused."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def files(self) -> dict[str, dict[str, bytes]]:
        """The files of each repository after all commits."""
        contents: dict[str, dict[str, bytes]] = {}
        for name, files in self.commits:
            contents.setdefault(name, {}).update(files)
        return contents


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self, tree: Any, status: int = 200) -> None:
        body = json.dumps(tree).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _known(self) -> bool:
        if self.headers.get("Authorization") == "Bearer hf_right":
            return True
        self._answer({"error": "Invalid credentials"}, 401)
        return False

    def do_GET(self) -> None:
        if self._known():
            self._answer({"name": "me", "type": "user"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self._known():
            return
        parts = self.path.strip("/").split("/")
        if self.path == "/api/repos/create":
            request = json.loads(body)
            name = f"{request.get('organization') or 'me'}/{request['name']}"
            self.server.private.setdefault(name, request.get("visibility") == "private" or bool(request.get("private")))
            self._answer({"url": f"{self.server.address}/{name}"})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "preupload" in parts:
            files = json.loads(body)["files"]
            self._answer(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        elif "commit" in parts:
            name = "/".join(parts[2:4])
            if name == self.server.refuse:
                self._answer({"error": "no room left"}, 403)
                return
            lines = [json.loads(line) for line in body.splitlines()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines if line["key"] == "file"
            }  # fmt: skip
            self.server.commits.append((name, files))
            self._answer({"success": True, "commitUrl": f"{self.server.address}/{name}/commit/1", "commitOid": "1"})
        else:
            self._answer({"error": self.path}, 404)


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def push_in_a_new_process(hub: Hub, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user does: the client reads its environment variables when it is imported."""
    env = {
        **os.environ,
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": hub.address,
        "HF_TOKEN": "hf_right",
        "HF_HUB_DISABLE_XET": "1",
    }
    command = [sys.executable, "-m", "cot_unsloth", *args]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


def push(
    hub: Hub, *args: str, token: str = "hf_right", offline: bool = False, address: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, which saves the 12 s that imports take, with what the client read from these variables."""
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch, redirect_stderr(StringIO()) as err:
        patch.setattr(constants, "HF_HUB_OFFLINE", offline)
        patch.setattr(constants, "ENDPOINT", address or hub.address)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setenv("HF_TOKEN", token)
        code = run_cli(*args)
    return subprocess.CompletedProcess(args, code, "", err.getvalue())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = short_run(tmp_path_factory.mktemp("hub") / "run", "--export-samples", "2")
    assert run_cli("export", str(run.path), "--merged") == 0
    return run


def test_merged_folder_gguf_and_adapter_each_get_a_private_repository(exported: RunDir, hub: Hub) -> None:
    done = push_in_a_new_process(hub, "export", str(exported.path), "--push-to-hub", "me/reasoner")
    assert done.returncode == 0, done.stderr
    assert hub.private == dict.fromkeys(("me/reasoner", "me/reasoner-GGUF", "me/reasoner-LoRA"), True)
    merged, ggufs, lora = (hub.files[f"me/reasoner{suffix}"] for suffix in ("", "-GGUF", "-LoRA"))
    [gguf] = exported.exported_models()
    assert ggufs[gguf.name] == gguf.read_bytes()
    assert {"Modelfile", "README.md", "verified.json"} < set(ggufs)
    assert merged["model.safetensors"] == (exported.merged / "model.safetensors").read_bytes()
    assert {"config.json", "tokenizer.json", "chat_template.jinja", "README.md", "verified.json"} < set(merged)
    assert lora["adapter_model.safetensors"] == (exported.adapter / "adapter_model.safetensors").read_bytes()
    assert not any(name.endswith(".gguf") for name in (*merged, *lora))
    assert not any(str(exported.path).encode() in files["README.md"] for files in (merged, ggufs, lora))
    libraries = [yaml.safe_load(files["README.md"].split(b"---")[1])["library_name"] for files in (merged, ggufs, lora)]
    assert libraries == ["transformers", "gguf", "peft"]
    assert len(hub.commits) == 3
    assert done.stderr.count(f"pushed to {hub.address}/me/reasoner") == 3


def test_repositories_are_public_if_requested(exported: RunDir, hub: Hub) -> None:
    assert push(hub, "export", str(exported.path), "--push-to-hub", "me/x", "--no-hub-private-repo").returncode == 0
    assert set(hub.private.values()) == {False}


def test_a_file_changed_after_verification_is_not_pushed(exported: RunDir, hub: Hub) -> None:
    [gguf] = exported.exported_models()
    content = gguf.read_bytes()
    try:
        gguf.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        done = push(hub, "export", str(exported.path), "--push-to-hub", "me/x")
    finally:
        gguf.write_bytes(content)
    assert done.returncode == 3
    assert f"changed since it was verified: {gguf.name}" in done.stderr
    assert not hub.commits


def test_an_invalid_token_stops_before_the_run_starts(tmp_path: Path, hub: Hub) -> None:
    done = push(hub, "train", "--run-dir", str(tmp_path / "run"), "--push-to-hub", "me/x", token="hf_wrong")
    assert done.returncode == 2
    assert "the hub rejects your login" in done.stderr
    assert "hint: hf auth login" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_disabled_or_unreachable_hub_is_reported(exported: RunDir, hub: Hub, tmp_path: Path) -> None:
    args = ("export", str(exported.path), "--push-to-hub", "me/x")
    assert "switched off by HF_HUB_OFFLINE" in push(hub, *args, offline=True).stderr
    done = push(hub, *args, address="http://127.0.0.1:9")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_refused_push_keeps_the_export_and_can_be_repeated(exported: RunDir, hub: Hub) -> None:
    hub.refuse = "me/x-GGUF"
    args = ("export", str(exported.path), "--push-to-hub", "me/x")
    done = push(hub, *args)
    assert done.returncode == 1
    assert "me/x-GGUF cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert exported.exported_models()
    hub.refuse = ""
    assert push(hub, *args).returncode == 0
    assert set(hub.files) == {"me/x", "me/x-GGUF", "me/x-LoRA"}


def test_a_run_pushes_its_export_and_a_resume_repeats_a_failed_push(tmp_path: Path, hub: Hub) -> None:
    settings = [
        "train", "--run-dir", str(tmp_path / "run"), "--world-samples", "16", "--max-steps", "2", "--lora-r", "4",
        "--eval-samples", "0", "--gguf", "q8_0", "--export-samples", "0", "--push-to-hub", "me/trained",
    ]  # fmt: skip
    hub.refuse = "me/trained-LoRA"
    assert push(hub, *settings).returncode == 1
    hub.refuse = ""
    done = push(hub, "train", "--run-dir", str(tmp_path / "run"), "--resume")
    assert done.returncode == 0, done.stderr
    assert set(hub.files) == {"me/trained-GGUF", "me/trained-LoRA"}


def test_an_invalid_repository_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("train", "--push-to-hub", "reasoner") == 2
    assert "push_to_hub" in capsys.readouterr().err


@pytest.fixture
def copied(exported: RunDir, tmp_path: Path) -> RunDir:
    return RunDir(shutil.copytree(exported.path, tmp_path / "run"))


def test_missing_files_are_skipped_and_a_failed_file_does_not_stop_the_push(copied: RunDir, hub: Hub) -> None:
    copied.exported_models()[0].unlink()
    record = json.loads(copied.verified.read_text())
    record["status"] = "failed"
    record["checks"].append({"file": "tiny-base-cot-Q4_K_M.gguf", "name": "kl", "passed": False})
    copied.verified.write_text(json.dumps(record))
    done = push(hub, "export", str(copied.path), "--push-to-hub", "me/x")
    assert done.returncode == 0, done.stderr
    assert set(hub.files) == {"me/x", "me/x-LoRA"}
    assert "tiny-base-cot-Q8_0.gguf is not there" in done.stderr


@pytest.mark.parametrize("name", ["merged/chat_template.jinja", "Modelfile"])
def test_every_file_of_an_export_is_compared_with_its_verified_hash(name: str, copied: RunDir, hub: Hub) -> None:
    file = copied.export / name
    file.write_text(file.read_text() + " ")
    done = push(hub, "export", str(copied.path), "--push-to-hub", "me/x")
    assert done.returncode == 3
    assert f"changed since it was verified: {name}" in done.stderr
    assert not hub.commits


def test_only_the_adapter_is_pushed_from_a_folder_of_another_trainer(copied: RunDir, hub: Hub, tmp_path: Path) -> None:
    (copied.adapter / "optimizer.pt").write_bytes(b"pickle")
    (copied.adapter / "checkpoint-5").mkdir()
    args = ("--model", "tiny-base", "--adapter", str(copied.adapter), "--out", str(tmp_path / "out"))
    done = push(hub, "export", *args, "--push-to-hub", "me/x")
    assert done.returncode == 0, done.stderr
    assert set(hub.files) == {"me/x-LoRA"}
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= set(hub.files["me/x-LoRA"])
    assert "optimizer.pt" not in hub.files["me/x-LoRA"]


def test_exports_of_two_bases_do_not_share_a_folder(
    copied: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = shutil.copytree(model_path("tiny-base"), tmp_path / "another")
    assert run_cli("export", str(copied.path), "--model", str(base), "--gguf", "f16") == 2
    assert "holds an export of tiny-base" in capsys.readouterr().err


def test_no_path_of_this_machine_leaves_it(tmp_path: Path, hub: Hub) -> None:
    """Neither in a file of an export nor in one that is uploaded, for a base, data and a run in folders of this machine."""
    home = tmp_path / "a-private-name"
    shutil.copytree(model_path("tiny-base"), home / "mybase")
    rows = [{"question": f"{n} + 1?", "reasoning": f"{n} + 1 = {n + 1}", "answer": str(n + 1)} for n in range(40)]
    (home / "mine.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    run = short_run(
        home / "run", "--model-name-or-path", str(home / "mybase"), "--dataset", str(home / "mine.jsonl"),
        "--export-samples", "2", "--merged", "--gguf", "q8_0", "--lora-gguf",
    )  # fmt: skip
    assert "a-private-name" in (run.adapter / "adapter_config.json").read_text()  # PEFT loads the base by it
    assert push(hub, "export", str(run.path), "--push-to-hub", "me/x").returncode == 0
    exported = {
        path.name: path.read_bytes() for path in run.export.rglob("*") if path.is_file() and path.name != ".lock"
    }
    uploaded = {f"{name}: {file}": text for name, files in hub.files.items() for file, text in files.items()}
    leaks = [name for name, content in (exported | uploaded).items() if b"a-private-name" in content]
    assert not leaks
    assert len(uploaded) > 15
    settings = json.loads(hub.files["me/x-LoRA"]["adapter_config.json"])
    assert settings == json.loads((run.adapter / "adapter_config.json").read_text()) | {
        "base_model_name_or_path": "mybase"
    }
    assert json.loads((run.export / "verified.json").read_text())["base"] == "mybase"
    # An older record, with the path: the export is still this base's, and the path stays here.
    record = json.loads(run.verified.read_text()) | {"base": str(home / "mybase")}
    run.verified.write_text(json.dumps(record))
    assert push(hub, "export", str(run.path), "--push-to-hub", "me/y").returncode == 0
    assert json.loads(hub.files["me/y-GGUF"]["verified.json"])["base"] == "mybase"
