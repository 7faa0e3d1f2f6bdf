"""`compare`: compare runs in pairs, on the same problems."""

from __future__ import annotations

from pathlib import Path

import click

from cot_unsloth.cli.options import FOLDER, command, out_option


@command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN [RUN...]", type=FOLDER)
@click.option("--arm", metavar="NAME", help="The arm to compare in each run. Default: tuned.")
@out_option("Also write comparison.html and comparison.json there.")
def compare(runs: tuple[Path, ...], arm: str | None, out: Path | None) -> None:
    """Compare runs on the problems that all of them answered.

    \b
    cot-unsloth compare runs/A runs/B
    cot-unsloth compare runs/A runs/B runs/C --out comparisons/rates
    cot-unsloth compare runs/A runs/A/evaluations/1f2e --arm tuned

    Shows accuracies with intervals, McNemar's test for every pair with Holm's correction, and the settings that differ.
    Problems that only some runs answered are left out. Both this and differences in decoding are reported.
    """
    from cot_unsloth.lab import compare as comparing

    comparison = comparing.compare(runs, arm)
    comparing.page(comparison).print()
    if out is not None:
        click.echo(f"page: {comparing.write(comparison, out)}")
