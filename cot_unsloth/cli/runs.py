"""`runs`: list run folders."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cot_unsloth.cli.options import FOLDER, command


@command()
@click.argument("folder", required=False, default=Path("runs"), metavar="[FOLDER]", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list with every figure.")
def runs(folder: Path, as_json: bool) -> None:
    """List the runs in a folder (runs by default), newest first.

    \b
    cot-unsloth runs
    cot-unsloth runs sweeps/rate --json

    Shows the date, model, data, method, accuracy before → after, size and state: complete, gate failed, export failed,
    running, interrupted, or damaged.
    """
    from cot_unsloth.lab import runs as listing

    listed = listing.list_runs(folder)
    if as_json:
        click.echo(json.dumps([run.as_json() for run in listed], indent=2))
        return
    listing.page(folder, listed).print()
