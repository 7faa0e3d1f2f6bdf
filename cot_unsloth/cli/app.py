"""The command line: the group of commands, and how errors are printed.

Each command has a module of its own, and imports nothing heavy before it runs, so that `--help` is instant. Errors of
ours are printed as one message without a traceback, and decide the exit code.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

from cot_unsloth import __version__
from cot_unsloth import config as settings
from cot_unsloth.cli import help_pages, next_steps
from cot_unsloth.cli.chat import chat
from cot_unsloth.cli.check import check
from cot_unsloth.cli.combine import combine
from cot_unsloth.cli.compare import compare
from cot_unsloth.cli.curves import curves
from cot_unsloth.cli.doctor import doctor
from cot_unsloth.cli.evaluate import evaluate
from cot_unsloth.cli.export import export
from cot_unsloth.cli.init import init
from cot_unsloth.cli.inspect import inspect
from cot_unsloth.cli.lm_eval import lm_eval
from cot_unsloth.cli.options import CONTEXT, logging_options
from cot_unsloth.cli.runs import runs
from cot_unsloth.cli.sample import sample
from cot_unsloth.cli.serve import serve
from cot_unsloth.cli.sweep import sweep
from cot_unsloth.cli.train import train
from cot_unsloth.cli.transfer import transfer
from cot_unsloth.core import interrupts, logs, progress
from cot_unsloth.core.errors import CotError
from cot_unsloth.core.terminal import open_standard_streams, printable
from cot_unsloth.core.threads import limit_spinning


class Commands(click.Group):
    """The top-level command; its help lists the commands grouped by purpose."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See `help_pages`."""
        help_pages.write_commands(self, formatter)


@click.group(cls=Commands, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="cot-unsloth")
def group() -> None:
    """Teach a small open model to reason, and measure whether it does.

    \b
    cot-unsloth train                              every stage, on the embedded tiny model
    cot-unsloth train configs/llama3.2-3b.yaml     the same on Llama-3.2-3B-Instruct
    cot-unsloth init                               write a first settings file, from three questions
    cot-unsloth check mine.jsonl                   find all faults in data and settings, in seconds
    cot-unsloth inspect mine.jsonl                 rows as the model sees them
    cot-unsloth sample runs/NAME -k 8              turn its right answers and corrected mistakes into a data set
    cot-unsloth evaluate runs/NAME                 score a run again
    cot-unsloth export runs/NAME --gguf q4_k_m     a verified file for llama.cpp and Ollama
    cot-unsloth chat runs/NAME                     talk to it; serve puts it behind the OpenAI API

    `train` and `export` write a log with every traceback to RUN/log.txt.
    """


group.params += logging_options()
for _command in (
    init, train, check, inspect, sample, evaluate, compare, curves, lm_eval, combine, export, chat, serve, sweep, transfer, runs, doctor,
):  # fmt: skip
    group.add_command(_command)


_arguments: list[str] = []
"""Of the command that runs."""


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line, and end the process with its exit code (see `core.errors`)."""
    open_standard_streams()
    limit_spinning()  # before a command imports torch
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a pipe on Windows may not have every character
            stream.reconfigure(errors="replace")
    logs.begin()
    progress.be_quiet(False)
    _arguments[:] = sys.argv[1:] if args is None else args
    logs.LOG.info("cot-unsloth %s: %s", __version__, " ".join(_arguments))
    try:
        with interrupts.raising_at_sigterm():
            code = group.main(args=args, prog_name="cot-unsloth", standalone_mode=False)
    except click.exceptions.Exit as done:
        code = done.exit_code
    except (Exception, KeyboardInterrupt) as error:
        code = _print_error(error)
        if code is None:
            raise
    sys.exit(code if isinstance(code, int) else 0)


def _say(message: str) -> None:
    """Print a message without control characters, and without passwords in addresses and keys."""
    click.echo(printable(logs.without_secrets(message)), err=True)


def _print_error(error: Exception | KeyboardInterrupt) -> int | None:
    """Print what went wrong; returns the exit code, or None for a bug in this program."""
    if logs.debugging():
        click.echo(logs.without_secrets("".join(traceback.format_exception(error))), err=True, nl=False)
    match error:
        case click.NoSuchOption():
            _say(f"error: {_no_such_option(error)}")
            return 2
        case KeyboardInterrupt() | click.Abort():
            cause = error if isinstance(error, KeyboardInterrupt) else error.__cause__ or error
            _say(f"interrupted{_continuation(cause)}")
            return interrupts.exit_code(cause)
        case click.exceptions.NoArgsIsHelpError():
            click.echo(error.ctx.get_help() if error.ctx else error.message, err=True)
            return 2
        case click.ClickException():
            _say(f"error: {_in_our_words(error)}")
            return 2
        case CotError():
            _say(f"error: {error}")
            return error.exit_code
        case OSError():
            return _print_system_error(error)
        case ModuleNotFoundError() if not (error.name or "").startswith("cot_unsloth"):
            hint = "activate .venv, or pip install -e ."
            click.echo(f"error: {error.name} is not installed\n  hint: {hint}", err=True)
            return 1
    return None


def _print_system_error(error: OSError) -> int:
    if error.errno == errno.ENAMETOOLONG:  # an argument: nothing was begun
        name = str(error.filename or "")
        _say(f"error: {name if len(name) <= _SHOWN else name[:_SHOWN] + '…'}: is too long for the name of a file")
        return 2
    continuation = _continuation(error).removeprefix("; ") if error.errno in _NO_SPACE else ""
    _say(f"error: {error}" + (f"\n  hint: make room; {continuation}" if continuation else ""))
    return 1


_SHOWN = 60
"""Characters of a name that is far too long."""
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Of errors of the system: after these, the same command goes on."""
_CONTINUES = ("sample", "evaluate", "curves", "sweep", "transfer")
"""Commands that keep their progress, and continue when run again."""


def _continuation(interrupted: BaseException) -> str:
    """The exact command that continues what was interrupted."""
    notes = getattr(interrupted, "__notes__", [])
    if notes:
        return f"; {notes[-1]}"
    name = next((arg for arg in _arguments if not arg.startswith("-")), "")
    return f"; {next_steps.command(*_arguments)} continues it" if name in _CONTINUES else ""


def _in_our_words(error: click.ClickException) -> str:
    """An error of click's own, laid out as ours are."""
    message = error.format_message().removesuffix(".").replace(". Did you mean", "; did you mean")
    message = message[:1].lower() + message[1:]
    command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "cot-unsloth"
    return str(CotError(message, hint=f"{command} --help"))


def _no_such_option(error: click.NoSuchOption) -> str:
    """The message for an unknown option: other commands have it, or none does."""
    name = error.option_name.removeprefix("--").replace("-", "_")
    if error.ctx is not None and name in settings.LEAVES:
        command = error.ctx.command.name
        return f"{command} has no option {error.option_name} (other commands do); {command} --help lists its options"
    guess = settings.guess(error.option_name)
    if not guess and error.possibilities:
        guess = f"; did you mean {error.possibilities[0]}?"
    return f"there is no option {error.option_name}{guess}"
