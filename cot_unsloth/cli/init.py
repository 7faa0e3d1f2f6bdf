"""`init`: a first settings file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import click

from cot_unsloth import config as settings
from cot_unsloth.cli import next_steps
from cot_unsloth.cli.options import COLUMNS, FOLDER, command, given, setting_flags
from cot_unsloth.config.starter import Machine, OwnData, starter
from cot_unsloth.core.errors import ConfigError, DataError
from cot_unsloth.core.progress import collected, note
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
@setting_flags("data", only=COLUMNS)
def init(
    file: Path, model: str | None, dataset: str | None, machine: Machine | None, force: bool, **columns: str | None
) -> None:
    """Write a first settings file, each line with its reason.

    \b
    cot-unsloth init
    cot-unsloth init mine.yaml --model Qwen/Qwen2.5-1.5B-Instruct --dataset mine.jsonl --machine t4

    In a terminal it asks for what is not given; elsewhere the embedded model, its tasks and a laptop are taken. Data in
    files are looked at: passes, method and held-out share are chosen for them, and a fault in them ends the command.
    """
    from cot_unsloth import tasks

    if file.exists() and not force:
        raise ConfigError("exists already", where=str(file), hint="name another file, or --force")
    model = model or _ask("Which model? A hub id, a folder, or", settings.TINY_BASE)
    dataset = dataset or _ask("Which data? A file, a folder, a hub id, or", settings.RunConfig().data.dataset)
    if machine is None:
        machine = "laptop" if model == settings.TINY_BASE else _ask_machine()
    generated = tasks.is_task_dataset(dataset)
    if dataset.startswith(tasks.PREFIX):
        tasks.parse_spec(dataset)
    own = None if generated else _look_at(dataset, given(columns))
    if own and model == settings.TINY_BASE and not own.with_reasoning:
        note(
            "these rows have no reasoning to imitate, and the embedded model solves nothing yet: take an instruct model"
        )
    text = starter(model, dataset, machine, str(file), own, generated=generated)
    atomic.write_text(file, text)
    settings.load(file)  # what is written is what can be read
    next_steps.show("settings", file)
    next_steps.show("check", next_steps.command("check", file))
    next_steps.show("train", next_steps.command("train", file))


def _look_at(dataset: str, columns: Mapping[str, str]) -> OwnData | None:
    """What the rows of files look like; None for a hub id, and for files that do not exist yet.

    Raises:
        DataError: the files exist and cannot be used.
    """
    from cot_unsloth import data
    from cot_unsloth.data.sources import find_sources

    own = settings.DataConfig(dataset=dataset, **columns)
    try:
        with collected():  # which files these are is said as they are read
            ids = [source for source in find_sources(own) if not isinstance(source, Path)]
        if ids:
            note(f"{ids[0]}: is no file here, so it is taken for a hub id, and not looked at")
            return None
    except DataError as error:
        if error.name != "file_missing":
            raise
        note(f"{error.where}: does not exist yet, so the settings are general ones")
        return None
    loaded = data.load_first_rows(own)
    note(str(loaded.columns))
    if loaded.rejects:
        note(f"{len(loaded.rejects)} of {loaded.rows} rows cannot be used: {data.count_reasons(loaded.rejects)}")
    reasoned = sum(bool(example.trace.parts) for example in loaded.examples)
    return OwnData(len(loaded.examples), reasoned, columns)


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
