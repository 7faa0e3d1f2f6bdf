"""`doctor`: check whether this machine can do a run."""

from __future__ import annotations

import shutil
import sys
from typing import Any

import click

from cot_unsloth import config as settings
from cot_unsloth.cli.options import command, given, setting_flags
from cot_unsloth.core import progress


@command()
@click.argument("config_file", required=False, metavar="[CONFIG]")
@setting_flags("model")
@setting_flags("lora", only=("technique",))
@setting_flags("train", only=("run_dir",))
def doctor(config_file: str | None, **flags: Any) -> None:
    """Check this machine, and show what a run would use.

    \b
    cot-unsloth doctor
    cot-unsloth doctor configs/llama3.2-3b.yaml

    The exit code is 1 if something must be fixed; each fault is shown with the command that fixes it.
    """
    progress.starting("doctor")
    from cot_unsloth.models import doctor

    findings = doctor.examine(settings.load(config_file, given(flags)))
    click.echo(doctor.report(findings, shutil.get_terminal_size().columns if sys.stdout.isatty() else None))
    if any(finding.level == "fault" for finding in findings):
        raise click.exceptions.Exit(1)
