"""`check`: find everything that is wrong with settings, data, template and machine."""

from __future__ import annotations

from typing import Any

import click

from cot_unsloth.cli import paths
from cot_unsloth.cli.options import command, given, setting_flags
from cot_unsloth.core import progress
from cot_unsloth.core.terminal import printable


@command()
@click.argument("target", required=False, metavar="[CONFIG|DATA]")
@setting_flags("model", "lora", "data", "train", "sample", "grpo", "evaluate", "export")
def check(target: str | None, **flags: Any) -> None:
    """Find what is wrong with settings, data, template and machine.

    \b
    cot-unsloth check configs/mine.yaml
    cot-unsloth check mine.jsonl --model-name-or-path Qwen/Qwen2.5-7B-Instruct

    Everything is shown at once; no weights are loaded. The exit code is 2 if there is a fault, and 0 if there are only
    warnings. `train` makes the same checks before it begins.
    """
    progress.starting("check")
    from cot_unsloth.reporting import tables
    from cot_unsloth.training import checks

    paths.require_existing(target)
    findings = checks.check_target(target, given(flags))
    tables.print_findings(findings)
    click.echo(printable(checks.summary(findings)))
    if checks.faults(findings):
        raise click.exceptions.Exit(2)
