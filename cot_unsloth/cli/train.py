"""`train`: score the base, fine-tune, score again, export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cot_unsloth import config as settings
from cot_unsloth.cli import next_steps
from cot_unsloth.cli.options import command, given, setting_flags
from cot_unsloth.config import Flags, RunConfig
from cot_unsloth.core import progress
from cot_unsloth.core.errors import ConfigError, EngineError
from cot_unsloth.core.terminal import printable

if TYPE_CHECKING:
    from cot_unsloth.core.results import Scorecard
    from cot_unsloth.storage.run_folder import RunDir


@command()
@click.argument("config_file", required=False, metavar="[CONFIG]")
@click.option("--config", "config_option", metavar="FILE", help="The same as CONFIG.")
@click.option("--resume", is_flag=True, help="Continue the run in --run-dir from its newest complete checkpoint.")
@click.option(
    "--dry-run", is_flag=True, help="Read, split and render the data and show a row; train nothing, write nothing."
)
@click.option("--print-config", is_flag=True, help="Print the resolved settings and exit.")
@setting_flags("model", "lora", "data", "train", "sample", "grpo", "development", "evaluate", "export")
def train(
    config_file: str | None, config_option: str | None, resume: bool, dry_run: bool, print_config: bool, **flags: Any
) -> None:
    """Score the base, fine-tune it, score it again, and export.

    \b
    cot-unsloth train                                   the embedded tiny model, minutes on a CPU
    cot-unsloth train configs/qwen2.5-7b.yaml           Qwen2.5-7B on one GPU
    cot-unsloth train --dataset mine.jsonl --run-dir runs/mine
    cot-unsloth train --run-dir runs/mine --resume      continue after an interruption

    Settings come from CONFIG (YAML or JSON; without one, from the embedded demo). Flags override the file,
    and the file overrides the defaults, which are shown in brackets.
    """
    config = _config(config_file, config_option, resume, given(flags))
    if print_config:
        click.echo(config.to_yaml(), nl=False)
        return
    if resume and config.train.run_dir is None:
        raise ConfigError("there is no run to resume", where="--resume", hint="name it: --run-dir runs/NAME")
    if dry_run:
        progress.starting("train --dry-run")
        from cot_unsloth.training import pipeline

        click.echo(printable(pipeline.dry_run(config)))
        return
    train_and_print(config, resume)


def _config(config_file: str | None, config_option: str | None, resume: bool, flags: Flags) -> RunConfig:
    if config_file and config_option:
        where = f"{config_file} and --config {config_option}"
        raise ConfigError("two config files are given", where=where, hint="give one")
    path = config_file or config_option
    if resume and path is None and "run_dir" in flags:
        run_config = Path(str(flags["run_dir"]), "config.yaml")
        path = str(run_config) if run_config.is_file() else None
    return settings.load(path, flags)


def train_and_print(config: RunConfig, resume: bool) -> None:
    """Run all stages, print the scorecard and the next steps, and exit with the gate's result."""
    progress.starting(f"train {config.model.model_name_or_path} on {config.data.dataset}")
    from cot_unsloth.evaluation.gate import enforce_gate
    from cot_unsloth.storage import run_names
    from cot_unsloth.training import pipeline

    folder = config.train.run_dir or str(run_names.default_run_dir(config))
    try:
        run, card = pipeline.train(config.replaced(run_dir=folder), resume=resume)
    except (EngineError, OSError):
        if Path(folder, "config.yaml").is_file():
            next_steps.show("resume", next_steps.command("train", "--run-dir", folder, "--resume"), err=True)
        raise
    _print_results(run, card)
    enforce_gate(card)


def _print_results(run: RunDir, card: Scorecard) -> None:
    from cot_unsloth.core import verdict
    from cot_unsloth.core.results import Rounds
    from cot_unsloth.reporting import tables

    if card.arms:
        tables.print_scorecard(card)
        corrected = card.reflection["tuned"].corrected_ids if "tuned" in card.reflection else ()
        tables.print_answer(run.completions("tuned"), corrected)
    if (rounds := Rounds.read_if_there(run.rounds_report)) is not None:
        tables.print_lines(rounds.described())
    next_steps.show("run", run.path)
    next_steps.show("report", run.report)
    for model in run.exported_models() or [run.path]:
        next_steps.show("chat", next_steps.command("chat", model))
    if card.arms and verdict.of(card).kind == "too_few" and _has_more_problems(run, card):
        more = next_steps.command("evaluate", run.path, "--eval-samples", max(200, 4 * card.n))
        next_steps.show("score more", more)


def _has_more_problems(run: RunDir, card: Scorecard) -> bool:
    """Whether `--eval-samples` can be raised without training again. Not for a file, which holds out only the scored rows."""
    from cot_unsloth.tasks import is_task_dataset

    config = run.read_config()
    if card.score_on == "development":
        return False
    if config.evaluate.benchmark:
        return card.n >= config.evaluate.eval_samples
    return is_task_dataset(config.data.dataset)
