"""What to do next: the lines that commands end with. Each is a whole command that can be copied, and is never wrapped."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

import click

from cot_unsloth.core.terminal import printable


def command(*words: object) -> str:
    """A command of this program, as it can be typed here: with its path where its environment is not activated."""
    return shlex.join([*_program(), *map(str, words)])


def _program() -> list[str]:
    if shutil.which("cot-unsloth"):
        return ["cot-unsloth"]
    script = Path(sys.executable).with_name("cot-unsloth")
    return [_from_here(script)] if script.is_file() else [_from_here(Path(sys.executable)), "-m", "cot_unsloth"]


def _from_here(path: Path) -> str:
    """A path as it can be typed in the current folder: relative to it where it is inside."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def show(name: str, text: str | Path, *, err: bool = False) -> None:
    """Print one line, `name: text`."""
    click.echo(printable(f"{name}: {text}"), err=err)
