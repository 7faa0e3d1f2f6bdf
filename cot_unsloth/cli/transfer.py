"""`transfer`: score the adapters of several tasks on every task."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import click

from cot_unsloth import config as settings
from cot_unsloth.cli.options import command, given, out_option, setting_flags
from cot_unsloth.config import RunConfig
from cot_unsloth.core.errors import ConfigError
from cot_unsloth.core.results.combination import CombineMethod

_METHODS = get_args(CombineMethod)


@command()
@click.argument("config_file", required=False, metavar="[CONFIG]")
@click.option(
    "--dataset", "datasets", multiple=True, metavar="[NAME=]DATA",
    help="A task: world:NAME, gym:NAME, files or a hub id. Repeatable. Default: the data sets of the runs in --adapter.",
)  # fmt: skip
@click.option(
    "--rows", multiple=True, metavar="NAME=DATA",
    help="Train that task's adapter on these rows instead, for example because gym:NAME has no solutions.",
)  # fmt: skip
@click.option(
    "--adapter", "adapters", multiple=True, metavar="NAME=RUN",
    help="An existing adapter. If NAME is a task, it is that task's adapter; otherwise it is scored as well. Repeatable.",
)  # fmt: skip
@click.option(
    "--combine", "mixtures", multiple=True, metavar="METHOD[:WEIGHT]",
    help=f"Also score a combination of all tasks' adapters: {', '.join(_METHODS)}. WEIGHT scales each one, default 1. Repeatable.",
)  # fmt: skip
@click.option("--combine-rank", "rank", type=click.IntRange(1), help="Rank of combinations.  [the sum]")
@click.option(
    "--density", type=click.FloatRange(0, 1, min_open=True),
    help="Share of each adapter's weight update that ties, dare_* and magnitude_prune keep.  [0.5]",
)  # fmt: skip
@click.option("--no-joint", is_flag=True, help="Do not train one adapter on all tasks together.")
@out_option("Folder of the matrix. Default: transfers/ and the tasks' names.")
@setting_flags("model", "lora")
@setting_flags(
    "data", only=[leaf for leaf, section in settings.LEAVES.items() if section == "data" and leaf != "dataset"]
)
@setting_flags("train", "sample", "grpo", "evaluate")
def transfer(
    config_file: str | None,
    datasets: tuple[str, ...],
    rows: tuple[str, ...],
    adapters: tuple[str, ...],
    mixtures: tuple[str, ...],
    out: Path | None,
    **more: Any,
) -> None:
    """Score each task's adapter on the problems of every task.

    \b
    cot-unsloth transfer --dataset world:chains --dataset world:words --dataset world:countdown --combine cat
    cot-unsloth transfer --adapter a=runs/A --adapter b=runs/B --combine ties --no-joint
    cot-unsloth transfer CONFIG --dataset world:words --dataset legs=gym:leg_counting --rows legs=legs.jsonl

    Trains an adapter for each task and one on all tasks, combines the tasks' adapters, and scores the base and every adapter
    on the same problems. Reports whether each adapter helps or harms, in paired comparisons with the base and with the task's
    own adapter, corrected for multiple tests. The same command continues an interrupted one.
    """
    from cot_unsloth.lab import transfer as transferring
    from cot_unsloth.lab import transfer_page, transfer_plan

    existing = {name: Path(path) for name, path in _named(adapters, "--adapter").items()}
    flags = {leaf: value for leaf, value in given(more).items() if leaf in settings.LEAVES}
    config = _config(config_file, flags, existing)
    tasks = transfer_plan.tasks_of(datasets, _named(rows, "--rows"), existing, flags)
    folder = out or Path("transfers") / "-".join(task.name for task in tasks)[:80]
    options = transfer_plan.Options(
        folder=folder,
        tasks=tasks,
        adapters=existing,
        joint=not more["no_joint"],
        mixtures=transfer_plan.mixtures_of(mixtures, more["rank"], more["density"]),
    )
    result = transferring.transfer(config, options)
    png = folder / "transfer.png"
    transfer_page.page(result, png).print()
    click.echo(f"page: {transfer_page.page(result, png, every_cell=True).write(folder / 'transfer.html')}")


def _named(values: Sequence[str], flag: str) -> dict[str, str]:
    """The values of a repeated option NAME=VALUE, by name."""
    named: dict[str, str] = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not equals or not rest or not re.fullmatch(r"[\w.-]+", name):
            raise ConfigError("is not NAME=VALUE", where=f"{flag} {value}")
        if name in named:
            raise ConfigError(f"{name} is given twice", where=flag)
        named[name] = rest
    return named


def _config(config_file: str | None, flags: settings.Flags, existing: dict[str, Path]) -> RunConfig:
    """The settings; if neither a file nor a model is given, those of the first run named, so that the base is the runs' base."""
    from cot_unsloth.storage.run_folder import RunDir

    first = next((RunDir(path) for path in existing.values() if RunDir(path).config.is_file()), None)
    if first is None or config_file is not None or "model_name_or_path" in flags:
        return settings.load(config_file, flags)
    return first.read_config().overridden(flags)
