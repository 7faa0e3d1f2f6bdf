"""Command lines of cot_unsloth as the resumable steps of a benchmark: each in a folder of its own, with its log and its cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cot_unsloth.storage.atomic import write_json
from cot_unsloth.storage.environment import environment


def run_once(folder: Path, verb: str, arguments: Sequence[str], paths: Mapping[str, str]) -> bool:
    """Run `python -m cot_unsloth VERB ARGUMENTS`, unless it has ended before in this folder.

    `train` is given `--resume` where its run has begun; other verbs continue by themselves.

    Args:
        folder: gets `log.txt`, and `done.json` at the end; a run of `train` is in its subfolder `run`.
        verb: of the command line.
        arguments: of the verb.
        paths: what to write into `done.json` in place of paths of this machine.

    Returns:
        False if the command failed: see the log.
    """
    if (folder / "done.json").is_file():
        return True
    folder.mkdir(parents=True, exist_ok=True)
    resumed = (folder / "run" / "manifest.json").is_file()
    command = [sys.executable, "-m", "cot_unsloth", verb, *arguments]
    began = time.monotonic()
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        more = ["--resume"] if resumed and verb == "train" else []
        process = subprocess.Popen([*command, *more], stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        print(f"{folder.name}: exit {process.returncode}, see {folder / 'log.txt'}", file=sys.stderr)
        return False
    made = {
        "command": shown_command(verb, arguments, paths),
        "seconds": {
            "wall": round(time.monotonic() - began, 1),
            "cpu": round(usage.ru_utime + usage.ru_stime, 1),
            "resumed": resumed,
        },
        "peak_bytes": usage.ru_maxrss * 1024,  # Linux counts in KiB
        "git": environment().as_json()["git"],
    }
    write_json(folder / "done.json", made)
    return True


def shown_command(verb: str, arguments: Sequence[str], paths: Mapping[str, str]) -> str:
    """A command as results name it, without paths of this machine."""
    shown = " ".join(["python", "-m", "cot_unsloth", verb, *arguments])
    for path, name in paths.items():
        shown = shown.replace(path, name)
    return shown


def cost_of(folder: Path) -> dict[str, Any]:
    """What `run_once` wrote: command, seconds, peak resident memory, commit."""
    done: dict[str, Any] = json.loads((folder / "done.json").read_text("utf-8"))
    return done


def flags_of(settings: Mapping[str, str]) -> list[str]:
    """Settings as flags; "true" and "false" are switches.

    >>> flags_of({"lora_r": "8", "own_reflections": "false", "merged": "true"})
    ['--lora-r', '8', '--no-own-reflections', '--merged']
    """
    flags: list[str] = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        flags += {"true": [f"--{flag}"], "false": [f"--no-{flag}"]}.get(value, [f"--{flag}", value])
    return flags
