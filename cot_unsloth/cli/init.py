"""`init`: a first settings file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

import click

from cot_unsloth import config as settings
from cot_unsloth.cli import next_steps
from cot_unsloth.cli.options import FOLDER, command
from cot_unsloth.config.starter import Machine, starter
from cot_unsloth.core.errors import ConfigError
from cot_unsloth.storage import atomic


@command()
@click.argument("file", required=False, default=Path("cot.yaml"), metavar="[FILE]", type=FOLDER)
@click.option("--model", metavar="ID", help="Hub id or folder, or tiny-base, which is embedded.  [asked]")
@click.option("--dataset", metavar="DATA", help="A file, a folder, a hub id, or world:NAME.  [asked]")
@click.option(
    "--machine",
    type=click.Choice(get_args(Machine)),
    help="What to size it for: no GPU, a T4 (16 GB), or a larger GPU.  [asked]",
)
@click.option("--force", is_flag=True, help="Replace FILE.")
def init(file: Path, model: str | None, dataset: str | None, machine: Machine | None, force: bool) -> None:
    """Write a first settings file, each line with its reason.

    \b
    cot-unsloth init
    cot-unsloth init mine.yaml --model Qwen/Qwen2.5-1.5B-Instruct --dataset mine.jsonl --machine t4

    In a terminal it asks for what is not given; elsewhere the embedded model, its tasks and a laptop are taken.
    """
    if file.exists() and not force:
        raise ConfigError("exists already", where=str(file), hint="name another file, or --force")
    model = model or _ask("Which model? A hub id, a folder, or", settings.TINY_BASE)
    dataset = dataset or _ask("Which data? A file, a folder, a hub id, or", settings.RunConfig().data.dataset)
    if machine is None:
        machine = "laptop" if model == settings.TINY_BASE else _ask_machine()
    text = starter(model, dataset, machine, str(file))
    atomic.write_text(file, text)
    settings.load(file)  # what is written is what can be read
    next_steps.show("settings", file)
    next_steps.show("check", next_steps.command("check", file))
    next_steps.show("train", next_steps.command("train", file))


def _ask(question: str, default: str) -> str:
    if not sys.stdin.isatty():
        return default
    return str(click.prompt(question, default=default, err=True)).strip()


def _ask_machine() -> Machine:
    if not sys.stdin.isatty():
        return "laptop"
    machine: Machine = click.prompt(
        "Where will it run?", type=click.Choice(get_args(Machine)), default="laptop", err=True
    )
    return machine
