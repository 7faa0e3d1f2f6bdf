"""`combine`: merge several adapters of one base into one."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from cot_unsloth.cli.options import FOLDER, command
from cot_unsloth.core import progress
from cot_unsloth.core.errors import ConfigError
from cot_unsloth.core.results.combination import CombineMethod


@command()
@click.argument("adapters", nargs=-1, required=True, metavar="RUN_OR_ADAPTER...", type=FOLDER)
@click.option("--weights", metavar="N,N,...", help="Factor of each adapter in the sum.  [1 for each]")
@click.option(
    "--method", type=click.Choice(get_args(CombineMethod)), default="cat", show_default=True, help="See below."
)
@click.option(
    "--rank", type=click.IntRange(1), metavar="N", help="Rank of the result; not with cat, linear.  [the sum]"
)
@click.option(
    "--density",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="SHARE",
    help="Share of each adapter's weight update that ties, dare_* and magnitude_prune keep.  [0.5]",
)
@click.option("--seed", type=int, metavar="N", help="Random seed for the entries that dare_* keeps.  [0]")
@click.option("--out", required=True, metavar="DIR", type=FOLDER, help="Where the combined adapter goes.")
def combine(
    adapters: tuple[Path, ...],
    weights: str | None,
    method: CombineMethod,
    rank: int | None,
    density: float | None,
    seed: int | None,
    out: Path,
) -> None:
    """Combine several LoRA adapters of one base into one adapter.

    \b
    cot-unsloth combine runs/A runs/B --out adapters/a-and-b                the sum of both, exactly
    cot-unsloth combine runs/A runs/B --weights 1,0.5 --method svd --rank 16 --out adapters/small
    cot-unsloth evaluate --adapter adapters/a-and-b --dataset world:words --out scores/a-and-b

    \b
    cat               exactly the weighted sum of the weight updates; its rank is the sum of the ranks
    svd               the closest to that sum of a rank; exact at the sum of the ranks
    linear            sums of the factors A and B; differs from the sum of the changes
    magnitude_prune   each change without its smallest numbers, summed
    ties              the same, and of numbers of opposite signs those of the smaller sum are left out
    dare_linear       each change without numbers chosen at random, the others enlarged, summed
    dare_ties         the same with the signs of ties

    Prints how far the result is from the weighted sum. It is a plain adapter: train --init-adapter, evaluate, export,
    chat and serve take it, and combined.json in it says what it was made of.
    """
    numbers = _numbers(weights) if weights is not None else (1.0,) * len(adapters)
    progress.starting("combine")
    from cot_unsloth.lab import combine as combining
    from cot_unsloth.lab import factors
    from cot_unsloth.reporting import tables

    recipe = factors.recipe(method, rank, density, seed)
    tables.print_lines(combining.combine(adapters, numbers, recipe, out).described())
    click.echo(f"adapter: {out}")


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise ConfigError("is not a list of numbers such as 1,0.5", where=f"--weights {text}") from None
