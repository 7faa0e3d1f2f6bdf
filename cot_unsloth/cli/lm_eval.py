"""`lm-eval`: print the command that scores a run in EleutherAI's lm-evaluation-harness."""

from __future__ import annotations

from pathlib import Path

import click

from cot_unsloth.cli.options import FOLDER, command
from cot_unsloth.core.errors import ConfigError


@command("lm-eval")
@click.argument("run", metavar="RUN", type=FOLDER)
@click.argument("benchmark", metavar="BENCHMARK")
def lm_eval(run: Path, benchmark: str) -> None:
    """Print the command that scores a run in lm-evaluation-harness.

    \b
    cot-unsloth lm-eval runs/NAME gsm8k

    The command is only printed: the harness is not part of this package.
    """
    print_command((run,), benchmark)


def print_command(runs: tuple[Path, ...], benchmark: str) -> None:
    """Print the command.

    Raises:
        ConfigError: the harness has no such benchmark, or not exactly one run is named.
    """
    from cot_unsloth.evaluation import lm_eval_command
    from cot_unsloth.storage.run_folder import RunDir

    if benchmark not in lm_eval_command.TASKS:
        raise ConfigError(f"must be one of {', '.join(lm_eval_command.TASKS)}", where=f"lm-eval {benchmark}")
    if len(runs) != 1:
        raise ConfigError("name one run", where="lm-eval")
    click.echo(lm_eval_command.command(RunDir.open(runs[0]), benchmark))
