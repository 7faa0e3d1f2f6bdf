"""The Dockerfile, as far as it can be checked without building it: what it copies, installs and runs exists."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def instructions(name: str) -> list[list[str]]:
    """The arguments of every instruction of that name, in order."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    return [line.split()[1:] for line in text.splitlines() if line.startswith(f"{name} ")]


def test_everything_it_copies_exists_and_is_sent_to_the_build() -> None:
    copied = {source for arguments in instructions("COPY") for source in arguments[:-1]}
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
    assert ignored[1] == "*"
    assert [source for source in copied if not (ROOT / source).exists()] == []


def test_it_installs_the_gpu_requirements_with_their_constraints() -> None:
    installs = [" ".join(arguments) for arguments in instructions("RUN") if "pip" in arguments]
    assert len(installs) == 2
    assert "-r requirements.txt -c constraints-gpu.txt" in installs[1]
    assert "-e ." in (ROOT / "requirements.txt").read_text(encoding="utf-8")
    copied = [source for arguments in instructions("COPY") for source in arguments[:-1]]
    assert {"requirements.txt", "constraints-gpu.txt"} <= set(copied)
    # What the build of the package reads.
    assert {"pyproject.toml", "README.md", "cot_unsloth"} <= set(copied)


def test_it_runs_the_training_command_as_an_ordinary_user_on_a_pinned_base() -> None:
    [[base]] = instructions("FROM")
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu24\.04", base)
    [[user]] = instructions("USER")
    assert user.split(":")[0] not in ("0", "root")
    [entry] = instructions("ENTRYPOINT")
    command = json.loads(" ".join(entry))
    assert command[:2] == ["python", "-m"]
    assert importlib.util.find_spec(command[2]) is not None


def test_the_documented_commands_mount_the_folders_that_it_writes_to() -> None:
    text = (ROOT / "docs" / "howto.md").read_text(encoding="utf-8")
    [line] = re.findall(r"^docker run .*$", text, flags=re.MULTILINE)
    mounted = set(re.findall(r'-v "?[^\s:]+:([^\s"]+)', line))
    assert mounted == {"/cache", "/app/runs"}
    [config] = re.findall(r"cot-unsloth (configs/\S+)", line)
    assert (ROOT / config).is_file()
    [home] = [value for arguments in instructions("ENV") for value in arguments if value.startswith("HOME=")]
    assert home == "HOME=/cache"
