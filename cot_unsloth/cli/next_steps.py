"""What to do next: the lines that commands end with. Each is a whole command that can be copied, and is never wrapped."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

import click

from cot_unsloth.core.terminal import printable


def command(*words: object) -> str:
    """A command of this program; it is called as a module where `cot-unsloth` is not on the path."""
    program = ["cot-unsloth"] if shutil.which("cot-unsloth") else [sys.executable, "-m", "cot_unsloth"]
    return shlex.join([*program, *map(str, words)])


def show(name: str, text: str | Path, *, err: bool = False) -> None:
    """Print one line, `name: text`."""
    click.echo(printable(f"{name}: {text}"), err=err)
