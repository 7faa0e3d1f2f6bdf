"""Options that several commands share: every setting as a flag, what to load, and how much to print."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from cot_unsloth import config as settings
from cot_unsloth.cli import help_pages
from cot_unsloth.core import logs, progress
from cot_unsloth.core.errors import ConfigError

CONTEXT = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
    # `--max_steps` is `--max-steps`: the scripts of Hugging Face and other trainers spell flags like the settings.
    "token_normalize_func": lambda name: name.replace("_", "-"),
}
FOLDER = click.Path(path_type=Path)
COLUMNS = ("question_column", "reasoning_column", "answer_column", "system_column", "messages_column")

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def _print_records(level: int) -> Callable[[click.Context, click.Parameter, bool], None]:
    def callback(context: click.Context, parameter: click.Parameter, given: bool) -> None:
        if given:
            logs.print_level(level)

    return callback


def _silence(context: click.Context, parameter: click.Parameter, given: bool) -> None:
    if given:
        progress.be_quiet()


def logging_options() -> list[click.Parameter]:
    """`--quiet`, `--verbose` and `--debug`, which the group and every command take."""
    return [
        click.Option(
            ["--quiet"],
            is_flag=True,
            expose_value=False,
            callback=_silence,
            help="Print only results and errors, no progress. NO_COLOR=1 turns colours off.",
        ),
        click.Option(
            ["--verbose"],
            is_flag=True,
            expose_value=False,
            callback=_print_records(logging.INFO),
            help="Print log records to stderr.",
        ),
        click.Option(
            ["--debug"],
            is_flag=True,
            expose_value=False,
            callback=_print_records(logging.DEBUG),
            help="Print all log records, and the traceback of an error.",
        ),
    ]


class Command(click.Command):
    """A command that takes `--quiet`, `--verbose` and `--debug` after its own options, and lists them in groups."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += logging_options()

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See `help_pages`."""
        help_pages.write_options(self, ctx, formatter)


def command(name: str | None = None) -> Callable[[Callable[..., Any]], Command]:
    """A command of the group; its help is the function's docstring."""
    return click.command(name, cls=Command, context_settings=CONTEXT)


def setting_flags(*sections: str, only: Sequence[str] = ()) -> Callable[[F], F]:
    """Every setting of the sections, or only the named ones, as a flag. A flag that is not given is None."""
    leaves = [leaf for leaf, section in settings.LEAVES.items() if section in sections and (leaf in only or not only)]

    def decorate(function: F) -> F:
        for leaf in reversed(leaves):
            function = _setting_flag(leaf)(function)
        return function

    return decorate


def _setting_flag(leaf: str) -> Callable[[F], F]:
    field, flag = settings.field_of(leaf), settings.flag_name(leaf)
    default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
    text = field.description or ""
    if default is not None and len(str(default)) < 40:
        text += f"  [{default}]"
    if settings.is_flag_pair(leaf):
        return click.option(f"{flag}/--no-{flag[2:]}", leaf, default=None, help=text)
    return click.option(flag, leaf, metavar="VALUE", default=None, help=text)


def given(values: Mapping[str, T | None]) -> dict[str, T]:
    """The options that were given on the command line."""
    return {name: value for name, value in values.items() if value is not None}


def base_option(text: str) -> Callable[[F], F]:
    """`--model`: a model to load."""
    return click.option("--model", "base", metavar="BASE", help=text)


def adapter_option(function: F) -> F:
    """`--adapter`: an adapter to load with it."""
    text = "An adapter to load on --model, or by default on the base that it names."
    return click.option("--adapter", metavar="DIR", type=FOLDER, help=text)(function)


@dataclass(frozen=True)
class Adapters:
    """The adapters that `--adapter` names: the one to load, and others beside it by name."""

    own: Path | None
    named: Mapping[str, Path]


def named_adapters_option(function: F) -> F:
    """`--adapter`, repeatable: one without a name is the adapter to load; those with a name are loaded beside it."""
    text = (
        "DIR: an adapter to load on --model, or by default on the base that it names. NAME=RUN: another adapter of the "
        "same base, under that name. Repeatable."
    )
    return click.option(
        "--adapter", "adapters", metavar="[NAME=]DIR", multiple=True, callback=_split_adapters, help=text
    )(function)


def _split_adapters(context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> Adapters:
    own: list[Path] = []
    named: dict[str, Path] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not equals or Path(value).exists() or not re.fullmatch(r"[\w.-]+", name):
            own.append(Path(value))
        elif name in named:
            raise ConfigError(f"two adapters are named {name}", where="--adapter")
        else:
            named[name] = Path(path)
    if len(own) > 1:
        raise ConfigError("takes only one adapter without a name", where="--adapter", hint=f"--adapter NAME={own[1]}")
    return Adapters(own[0] if own else None, named)


def out_option(text: str) -> Callable[[F], F]:
    """`--out`: where results go."""
    return click.option("--out", metavar="DIR", type=FOLDER, help=text)


def chat_options(function: F) -> F:
    """The model to chat with and its sampling settings, for `chat` and `serve`."""
    for decorate in (
        setting_flags("model", only=settings.HOW_LOADED),
        setting_flags("data", only=("system_prompt", "thinking_tags")),
        setting_flags("evaluate", only=("max_new_tokens", "temperature", "top_p")),
        click.option(
            "--max-thinking-tokens",
            type=click.IntRange(1),
            metavar="N",
            help="Stop the model's thinking after N tokens.",
        ),
        named_adapters_option,
        base_option("Load this model instead of a run."),
        click.argument("target", required=False, metavar="[RUN|FILE.gguf]", type=FOLDER),
    ):
        function = decorate(function)
    return function


class Budgets(click.ParamType):
    """Comma-separated whole numbers above 0, sorted."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Parse the option's text."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(sorted({int(item) for item in str(value).split(",")}))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as 64,128,256", param, ctx)
        if numbers[0] < 1:
            self.fail("a budget must be at least 1", param, ctx)
        return numbers
