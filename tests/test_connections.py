"""The network is used for a hub id or a server that was named, and for nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from helpers import started_environment

WATCHED = """
import json, socket, sys

asked = []
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def refuse(name, original):
    def connect(self, address, *more):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in LOOPBACK:
            asked.append([name, str(address)])
            raise OSError("no connection is allowed here")
        return original(self, address, *more)
    return connect


def resolve(host, *more, **named):
    if host not in (*LOOPBACK, None, ""):
        asked.append(["getaddrinfo", str(host)])
        raise socket.gaierror("no name is resolved here")
    return getaddrinfo(host, *more, **named)


for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, refuse(name, getattr(socket.socket, name)))
getaddrinfo, socket.getaddrinfo = socket.getaddrinfo, resolve

from cot_unsloth.cli import main

for command in json.loads(sys.argv[1]):
    try:
        main(command)
    except SystemExit as ended:
        print(json.dumps({"command": command[0], "code": ended.code}))
print(json.dumps({"asked": asked}))
"""
"""The lowest level that Python has: what libraries import later uses it too. llama.cpp's own server listens on loopback."""
FEW = [
    "--world-samples", "60", "--max-steps", "2", "--eval-samples", "2", "--max-new-tokens", "8", "--gguf", "q8_0",
    "--export-samples", "1",
]  # fmt: skip


def results(commands: str, at: Path) -> list[str]:
    script = at / "watched.py"
    script.write_text(WATCHED)
    # HF_HUB_OFFLINE and the variable that the command line sets against telemetry would hide what is asked without them.
    environment = {name: value for name, value in started_environment().items() if not name.startswith("HF_")}
    environment["HF_HUB_DISABLE_TELEMETRY"] = "0"
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(__file__).parent.parent), environment.get("PYTHONPATH")])
    )
    done = subprocess.run(
        [sys.executable, str(script), commands], capture_output=True, text=True, cwd=at, env=environment, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith(('{"command', '{"asked'))]


def as_json(*commands: list[str]) -> str:
    return json.dumps(commands)


def test_a_run_its_evaluation_and_export_make_no_connection(tmp_path: Path) -> None:
    commands = as_json(
        ["train", "--run-dir", "run", *FEW],
        ["evaluate", "run", "--eval-samples", "3", "--max-new-tokens", "8", "--out", "scores"],
        ["export", "run", "--merged"],
        ["check"],
        ["doctor"],
    )
    *codes, asked = results(commands, tmp_path)
    assert [line.split(": ")[-1] for line in codes[:3]] == ["0}", "0}", "0}"], codes
    assert asked == '{"asked": []}'


def test_the_watch_sees_the_connection_to_a_server_that_was_named(tmp_path: Path) -> None:
    command = ["evaluate", "--api", "http://models.invalid/v1", "--benchmark", "gsm8k", "--out", "x"]
    code, asked = results(as_json(command), tmp_path)
    assert '"code": 1' in code
    assert asked == '{"asked": [["getaddrinfo", "models.invalid"]]}'
