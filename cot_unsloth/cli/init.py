"""`init`: write a first settings file."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from cot_unsloth import config as settings
from cot_unsloth.cli import next_steps
from cot_unsloth.cli.options import COLUMNS, FOLDER, command, given, setting_flags
from cot_unsloth.config.starter import Machine, OwnData, starter
from cot_unsloth.core.errors import ConfigError, DataError
from cot_unsloth.core.progress import collected, note
from cot_unsloth.storage import atomic

if TYPE_CHECKING:
    from cot_unsloth.core.types import Example
    from cot_unsloth.data import Loaded


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

    In a terminal it asks for what is not given; elsewhere it assumes the embedded model, its tasks and a laptop. It reads
    data files to choose the passes, the method and the held-out share, and stops at a fault in them. It also asks for
    columns that it does not recognize, unless flags name them.
    """
    from cot_unsloth import tasks

    if file.suffix.lower() not in (".yaml", ".yml"):  # other commands would take it for JSON, or for data
        raise ConfigError("must end in .yaml", where=str(file), hint="such as mine.yaml")
    if file.exists() and not force:
        raise ConfigError("already exists", where=str(file), hint="name another file, or --force")
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
            "these rows have no reasoning to imitate, and the embedded model cannot solve them yet: choose an instruct model"
        )
    text = starter(model, dataset, machine, str(file), own, generated=generated)
    atomic.write_text(file, text)
    settings.load(file)  # make sure that the file can be read
    next_steps.show("settings", file)
    next_steps.show("check", next_steps.command("check", file))
    next_steps.show("train", next_steps.command("train", file))


def _look_at(dataset: str, columns: Mapping[str, str]) -> OwnData | None:
    """Read the first rows of data files; None for a hub id, and for files that do not exist yet.

    Raises:
        DataError: the files exist and cannot be used.
    """
    from cot_unsloth import data
    from cot_unsloth.data import checks
    from cot_unsloth.data.sources import find_sources

    own = settings.DataConfig(dataset=dataset, **columns)
    try:
        with collected():  # the notes on which files were read
            ids = [source for source in find_sources(own) if not isinstance(source, Path)]
        if ids:
            note(f"{ids[0]}: there is no such file, so it is treated as a hub id and not read")
            return None
    except DataError as error:
        if error.name != "file_missing":
            raise
        note(f"{error.where}: does not exist yet, so the settings are not fitted to it")
        return None
    own, loaded = _read_or_ask(own)
    reasoned = sum(bool(example.trace.parts) for example in loaded.examples)
    looked_at = OwnData(len(loaded.examples), reasoned, _columns_of(own))
    if looked_at.method == "sft" and reasoned < looked_at.rows:
        # Read as for imitation, so that the rows that it would reject are listed as in `check`.
        loaded = data.load_first_rows(own, to_train_on=True)
        looked_at = OwnData(reasoned, reasoned, looked_at.columns)
    note(str(loaded.columns))
    for finding in checks.rejected(loaded.rejects, loaded.rows):
        note(f"{finding.where}: {finding.message}")
    _note_few_problems(own, looked_at, loaded.examples)
    return looked_at


def _read_or_ask(own: settings.DataConfig) -> tuple[settings.DataConfig, Loaded]:
    """The first rows; in a terminal, ask for the columns that are not recognized until the rows can be read.

    Raises:
        DataError: the rows cannot be read, and nobody can be asked, or the fault is not in the columns.
    """
    from cot_unsloth import data

    asked = False
    while True:
        try:
            return own, data.load_first_rows(own)
        except DataError as error:
            about_columns = error.name in ("unknown_layout", "no_such_column")
            if not sys.stdin.isatty() or not (about_columns or (asked and own.messages_column is None)):
                raise
            note(f"{error.where}: {error.message}" if error.name == "unknown_layout" else str(error))
        asked = True
        own = settings.DataConfig(dataset=own.dataset, system_column=own.system_column, **_ask_columns(own))


def _columns_of(own: settings.DataConfig) -> dict[str, str]:
    return given({name: getattr(own, name) for name in COLUMNS})


def _ask_columns(own: settings.DataConfig) -> dict[str, str]:
    question = click.prompt(
        "Which column holds the question, or the messages of a conversation?", prompt_suffix=" ", err=True
    ).strip()
    if _holds_messages(own, question):
        return {"messages_column": question}
    reasoning = click.prompt(
        "Which column holds the reasoning? Empty for none", default="", show_default=False, err=True
    ).strip()
    answer = click.prompt("Which column holds the answer?", prompt_suffix=" ", err=True).strip()
    columns = {"question_column": question, "reasoning_column": reasoning, "answer_column": answer}
    return {name: column for name, column in columns.items() if column}


def _holds_messages(own: settings.DataConfig, column: str) -> bool:
    from cot_unsloth.data import files, layouts
    from cot_unsloth.data.layouts import cells

    with collected():
        rows = [row for _, row in itertools.islice(files.read_rows(own), 50)]
    return any(isinstance(row, dict) and cells.looks_like_list(layouts.Columns(row).value(column)) for row in rows)


_FEW_PROBLEMS = 50
"""With fewer held-out problems a score shows little: 50 detect 21 points if two arms disagree on 30% of them."""


def _note_few_problems(own: settings.DataConfig, looked_at: OwnData, examples: Sequence[Example]) -> None:
    """If few problems will be scored, say how many and what differences they can detect."""
    from cot_unsloth import data
    from cot_unsloth.training.checks import setup

    config = settings.RunConfig()
    most, seed = config.evaluate.eval_samples, config.evaluate.eval_seed
    held_out = data.held_out_ids(examples, looked_at.test_fraction, most, seed)
    problems = len({example.id for example in data.with_comparable_answers(examples)} & held_out)
    if problems < _FEW_PROBLEMS:
        config = config.model_copy(update={"data": own})
        for finding in setup.power(config, problems):
            note(f"{finding.message}: {finding.hint}")


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
