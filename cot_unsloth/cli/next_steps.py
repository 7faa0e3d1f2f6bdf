"""The suggestions that commands end with. Each is a complete command to copy, on one line that is never wrapped."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

import click

from cot_unsloth.core.terminal import printable


def command(*words: object) -> str:
    """A command line of this program that works in the current shell: with a full path if the environment is not activated."""
    return shlex.join([*_program(), *map(str, words)])


def _program() -> list[str]:
    if shutil.which("cot-unsloth"):
        return ["cot-unsloth"]
    script = Path(sys.executable).with_name("cot-unsloth")
    return [_from_here(script)] if script.is_file() else [_from_here(Path(sys.executable)), "-m", "cot_unsloth"]


def _from_here(path: Path) -> str:
    """A path to type in the current folder: relative if it lies inside."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def show(name: str, text: str | Path, *, err: bool = False) -> None:
    """Print one line, `name: text`."""
    click.echo(printable(f"{name}: {text}"), err=err)
