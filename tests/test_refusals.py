"""Wrong input is refused at once, before torch or transformers is imported."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cot_unsloth.cli.paths import require_model
from cot_unsloth.config import load
from cot_unsloth.core.errors import ModelError

HEAVY = "torch", "transformers", "peft", "datasets", "xllamacpp"
RUN = """
import sys
from cot_unsloth.cli import main
try:
    main(sys.argv[1:])
except SystemExit as done:
    print("code", done.code, *sorted({%s} & set(sys.modules)))
""" % ", ".join(map(repr, HEAVY))  # noqa: UP031
MOST_SECONDS = 10.0
"""Limit for one command; an idle machine takes 2 s, but tests run in parallel."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of a user: `unfinished/` is a run without weights, `run/` one that looks finished and exported."""
    folder = tmp_path_factory.mktemp("refused")
    for name in ("unfinished", "run"):
        (folder / name).mkdir()
        (folder / name / "config.yaml").write_text(load(None, {}).to_yaml())
    (folder / "run" / "adapter").mkdir()
    (folder / "run" / "adapter" / "adapter_config.json").write_text("{}")
    (folder / "run" / "export" / "merged").mkdir(parents=True)
    (folder / "taken").mkdir()
    (folder / "taken" / "tiny-base-Q8_0.gguf").write_bytes(b"x")
    (folder / "other").mkdir()
    (folder / "other" / "verified.json").write_text('{"base": "Qwen/Qwen3-4B", "checks": []}')
    (folder / "empty").mkdir()
    return folder


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("export", "name a run, a model with --model, or an adapter"),
        ("export nowhere --merged", "there is no such folder"),
        ("export unfinished --merged", "has no trained weights yet"),
        ("export run", "say what to write"),
        ("export run --gguf q9", "--gguf"),
        ("export run --merged", "merged already exists"),
        ("export run --merged --gguf q8_0", "merged already exists, and verified.json does not list it"),
        ("export run --merged --force --skip-existing", "is the opposite of --skip-existing"),
        ("export --model tiny-base --out out", "say what to write"),
        ("export --model tiny-base --out out --lora-gguf", "there is no adapter to write"),
        ("export --model tiny-base --out taken --gguf q8_0", "already exists"),
        ("export --model tiny-base --out other --gguf q8_0", "holds an export of Qwen/Qwen3-4B"),
        ("export --model tiny-base --adapter ./nowhere --out out --merged", "holds no adapter"),
        ("export --model tiny-base --adapter empty --out out --merged", "holds no adapter"),
        ("export --model ./nowhere --out out --merged", "there is no such folder"),
        ("export --model empty --out out --merged", "holds no model"),
        ("chat nowhere", "there is no such folder"),
        ("chat unfinished", "has no trained weights yet"),
        ("chat --model tiny-base --adapter ./nowhere", "holds no adapter"),
        ("chat --model ./nowhere", "there is no such folder"),
        ("serve nowhere --port 0", "there is no such folder"),
        ("serve unfinished --port 0", "has no trained weights yet"),
        ("serve nowhere.gguf --port 0", "there is no such file"),
        ("serve --model tiny-base --adapter empty --port 0", "holds no adapter"),
        ("serve --model tiny-base --port TAKEN", "cannot listen there: Address already in use"),
        ("serve run --host no.such.host.invalid", "cannot listen there"),
        ("serve run --host 192.0.2.1", "cannot listen there"),
        ("evaluate nowhere", "there is no such folder"),
        ("evaluate unfinished", "has no trained weights yet"),
        ("evaluate nowhere.gguf --out scores", "there is no such file"),
        ("evaluate --model tiny-base --adapter ./nowhere --out scores", "holds no adapter"),
        ("evaluate --model ./nowhere --out scores", "there is no such folder"),
    ],
)
def test_wrong_input_is_refused_before_torch_is_imported(command: str, message: str, folders: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        args = command.replace("TAKEN", str(other.getsockname()[1])).split()
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", RUN, *args], capture_output=True, text=True, cwd=folders, check=False
        )
        took = time.monotonic() - began
    assert done.stdout == "code 2\n", done.stderr
    assert message in done.stderr
    assert done.stderr.count("error:") == 1
    assert took < MOST_SECONDS
    assert not (folders / "out").exists()


def test_a_hub_id_is_not_taken_for_a_folder(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folders)
    for name in ("Qwen/Qwen2.5-0.5B-Instruct", "gpt2", "tiny-base"):
        require_model(name, Path("owner/adapter"))
    for name in ("./Qwen", "runs/a/b", "/nowhere", "run/base", "..", "~/nowhere"):
        with pytest.raises(ModelError):
            require_model(name)


def test_port_0_prints_the_port_that_was_assigned(tmp_path: Path) -> None:
    """Starts the command with the embedded model and waits until it answers."""
    command = [sys.executable, "-m", "cot_unsloth", "serve", "--model", "tiny-base", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as server:
        assert server.stderr
        try:
            line = next(line for line in server.stderr if "/v1" in line)
            port = int(line.partition("127.0.0.1:")[2].partition("/")[0])
            with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
                client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                assert client.recv(64).startswith(b"HTTP/1.1 200")
        finally:
            server.terminate()
    shutil.rmtree(tmp_path, ignore_errors=True)
