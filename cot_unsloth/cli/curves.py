"""`curves`: accuracy against tokens, at test time and in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import click

from cot_unsloth import config as settings
from cot_unsloth.cli import next_steps
from cot_unsloth.cli.options import FOLDER, Budgets, F, command, given, out_option, setting_flags
from cot_unsloth.config import Flags
from cot_unsloth.core import progress
from cot_unsloth.core.errors import ConfigError

if TYPE_CHECKING:
    from cot_unsloth.evaluation.budget_forcing import BudgetOptions

LADDER = {"budgets": "budgets", "samples": "samples", "sample_temperature": "temperature", "think_again": "extend"}
"""Options of the test-time curve, and their names in `BudgetOptions`."""
OPTIONS = (*LADDER, "checkpoints")
"""Options of `curves` that are not settings. None may have the name of a setting that `curves` takes, such as `temperature`."""

CurveOptions: TypeAlias = Mapping[str, Any]
"""The values of those `OPTIONS` that were given."""


def curves_options(hidden: bool = False) -> Callable[[F], F]:
    """The options in `OPTIONS`; hidden for the older spelling, `evaluate --curves`."""

    def decorate(function: F) -> F:
        for option in (
            click.option(
                "--checkpoints",
                type=click.IntRange(0),
                hidden=hidden,
                help="Score at most this many checkpoints of each run; 0 leaves the training curve out.  [8]",
            ),
            click.option(
                "--think-again",
                type=click.IntRange(0, 16),
                hidden=hidden,
                help="How many times to reopen finished thinking.  [0]",
            ),
            click.option(
                "--sample-temperature",
                type=click.FloatRange(0),
                hidden=hidden,
                help="Temperature of the samples.  [0.7]",
            ),
            click.option("--samples", type=click.IntRange(1, 64), hidden=hidden, help="Samples per problem.  [8]"),
            click.option(
                "--budgets",
                type=Budgets(),
                metavar="N,N,...",
                hidden=hidden,
                help="Budgets in tokens; default: max_new_tokens, halved repeatedly.",
            ),
        ):
            function = option(function)
        return function

    return decorate


@command()
@click.argument("runs", nargs=-1, metavar="RUN...", type=FOLDER)
@out_option("Where curves.json and the plots go; default: the folder of the first run.")
@curves_options()
@setting_flags("model", only=(*settings.HOW_LOADED, "fast_inference", "gpu_memory_utilization"))
@setting_flags("data", "evaluate")
def curves(runs: tuple[Path, ...], out: Path | None, **options: Any) -> None:
    """Measure accuracy against tokens, and plot it.

    \b
    cot-unsloth curves runs/NAME
    cot-unsloth curves runs/SEED1 runs/SEED2 runs/SEED3 --out scores/curves     runs that differ in their seed
    cot-unsloth curves runs/NAME --budgets 64,128,256 --samples 4 --checkpoints 0

    There are two curves: accuracy against the length of an answer in tokens, for the first run, and accuracy against the
    tokens trained on, for the checkpoints of all runs. Settings are the run's own; flags override them.
    """
    chosen = {name: options.pop(name) for name in OPTIONS}
    measure_curves(runs, out, given(chosen), given(options))


def measure_curves(runs: tuple[Path, ...], out: Path | None, options: CurveOptions, flags: Flags) -> None:
    """Measure, and print the table.

    Args:
        runs: run folders.
        out: where results go; None for the first run's folder.
        options: how to measure.
        flags: settings that were given.

    Raises:
        ConfigError: no run is named.
    """
    if not runs:
        raise ConfigError("name a run, or several that differ in their seed", where="curves")
    progress.starting("curves")
    from cot_unsloth.evaluation import curves as measuring
    from cot_unsloth.reporting import tables

    ladder = {name: options[option] for option, name in LADDER.items() if option in options}
    budget_options = cast("BudgetOptions", ladder)
    tables.print_curves(measuring.measure(runs, flags, budget_options, options.get("checkpoints", 8), out))
    folder = out or runs[0]
    for name in ("curves-test-time.png", "curves-train-time.png", "report.html"):
        if (folder / name).is_file():
            next_steps.show(name.removesuffix(".html").removesuffix(".png"), folder / name)
