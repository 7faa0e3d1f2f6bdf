"""`sample`: make a data set of a model's own attempts at training problems."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cot_unsloth import config as settings
from cot_unsloth.cli import next_steps, paths
from cot_unsloth.cli.options import adapter_option, base_option, command, given, out_option, setting_flags
from cot_unsloth.config import Flags
from cot_unsloth.core import progress
from cot_unsloth.core.errors import ConfigError

if TYPE_CHECKING:
    from cot_unsloth.models.target import Target


@command()
@click.argument("name", required=False, metavar="[RUN|MODEL|FILE.gguf]")
@click.option("-k", "attempts", metavar="N", help="The same as --samples-per-problem.")
@base_option("Sample this model; with --api, its name there.")
@adapter_option
@out_option("Where the samples go; the same command continues there. Default: RUN/samples, or samples/MODEL-DATASET.")
@click.option("--api", metavar="URL,URL,...", help="Sample a running server. Key: OPENAI_API_KEY.")
@click.option(
    "--concurrency", type=click.IntRange(1, 1024), default=32, show_default=True, help="With --api: prompts at a time."
)
@setting_flags("sample")
@setting_flags("model", only=(*settings.HOW_LOADED, "fast_inference", "gpu_memory_utilization"))
@setting_flags("data")
@setting_flags("train", only=("seed",))
@setting_flags(
    "evaluate", only=("eval_samples", "eval_seed", "benchmark", "benchmark_path", "eval_batch_size", "max_new_tokens")
)
def sample(
    name: str | None,
    attempts: str | None,
    base: str | None,
    adapter: Path | None,
    out: Path | None,
    api: str | None,
    concurrency: int,
    **flags: Any,
) -> None:
    """Let a model solve training problems, and keep its right answers.

    \b
    cot-unsloth sample runs/NAME -k 16                          the run's model on its own training problems
    cot-unsloth sample Qwen/Qwen2.5-1.5B-Instruct --dataset train.jsonl --benchmark gsm8k
    cot-unsloth sample runs/NAME/export/FILE.gguf               in llama.cpp
    cot-unsloth sample --api http://127.0.0.1:8000/v1 --dataset train.jsonl --out samples/served
    cot-unsloth sample runs/NAME --rounds 3 --out runs/NEW      sample, train and score; the same as train --method rft


    Rows need a question and an answer, but no reasoning. data.jsonl holds the rows to train on: the accepted attempts and
    corrections of the model's own mistakes. problems.jsonl holds how often each problem was solved.
    """
    chosen = given({**flags, "samples_per_problem": attempts or flags.get("samples_per_problem")})
    rounds = int(str(chosen.pop("rounds", 1))) if str(chosen.get("rounds", 1)).isdecimal() else 0
    if rounds < 1:
        raise ConfigError("must be a number of at least 1", where="--rounds")
    progress.starting("sample")
    target = _target(name, base, adapter, api, chosen)
    if rounds > 1:
        _train_in_rounds(target, rounds, out, adapter)
        return
    from cot_unsloth.reporting import tables
    from cot_unsloth.sampling.targets import sample_target

    folder, summary = sample_target(target, out, api_key=os.environ.get("OPENAI_API_KEY"), concurrency=concurrency)
    tables.print_lines(summary.described())
    click.echo(f"rows: {folder.data}")
    click.echo(f"plot: {folder.plot}")
    click.echo(f"train: {train_command(target, folder.path)}")


def _target(name: str | None, base: str | None, adapter: Path | None, api: str | None, flags: Flags) -> Target:
    """What the arguments name: a folder with a run, a GGUF file, servers, or else a model."""
    path = Path(name) if name is not None else None
    is_own = path is not None and (path.suffix == ".gguf" or (path / "config.yaml").is_file())
    if name is not None and not is_own and base is None:
        base, path = name, None
    if api is None:
        paths.require_model(base if path is None else None, adapter)
    from cot_unsloth.models.target import resolve_server, resolve_target

    if api is None:
        return resolve_target(path, base=base, adapter=adapter, flags=flags, use="score")
    if adapter is not None:
        raise ConfigError("cannot be combined with --adapter: the server has its own weights", where="--api")
    addresses = [address.strip() for address in api.split(",") if address.strip()]
    return resolve_server(addresses, base, run=path, flags=flags, api_key=os.environ.get("OPENAI_API_KEY"))


def _train_in_rounds(target: Target, rounds: int, out: Path | None, adapter: Path | None) -> None:
    """Sample and train in rounds: the same run as `train --method rft`."""
    if target.is_gguf or target.servers:
        raise ConfigError("needs weights to train: a run, or a model", where="--rounds")
    from cot_unsloth.cli.train import train_and_print

    start = target.run.path if target.run is not None and adapter is None else adapter
    # As the flag --method: the learning rate of a run of grpo is far too low for rft.
    as_rft = target.config.without_export().overridden({"method": "rft"})
    changed = as_rft.replaced(
        rounds=rounds, init_adapter=str(start) if start else None, run_dir=str(out) if out else None
    )
    train_and_print(changed, resume=out is not None and (out / "config.yaml").is_file())


def train_command(target: Target, folder: Path) -> str:
    """The command that trains the model on its samples: it continues an adapter, or else trains the base if that is known."""
    from cot_unsloth.storage.run_folder import is_full_model

    words, weights = ["train"], target.weights
    model = target.config.model.model_name_or_path
    if target.run is not None:
        weights = target.run.trained_weights if target.is_gguf or target.servers else weights
        model = target.before_flags.model.model_name_or_path
    known = target.run is not None or not (target.servers or target.is_gguf)
    if is_full_model(weights):
        model, known = str(weights), True
    elif weights is not None and not (target.is_gguf and target.run is None):
        # A run by its name; weights that --adapter names may be a checkpoint of one.
        home = target.run
        is_of_run = home is not None and weights == home.trained_weights
        words += ["--init-adapter", str(home.path if home is not None and is_of_run else weights)]
    words += ["--dataset", str(folder)]
    if "--init-adapter" in words and target.run is not None and target.before_flags.train.method != "grpo":
        # The rate of a new adapter is too high for a trained one (docs/sampling.md, "Rounds").
        words += ["--learning-rate", f"{target.before_flags.train.learning_rate / 2:g}"]
    if known and model != settings.TINY_BASE:
        words += ["--model-name-or-path", model]
    if target.config.evaluate.benchmark:
        words += ["--benchmark", target.config.evaluate.benchmark]
    words += _format_flags(target)
    return next_steps.command(*words)


def _format_flags(target: Target) -> list[str]:
    """Flags for the format of the samples, where it is not that of the default settings."""
    data, model = target.config.data, target.before_flags.model
    usual = settings.DataConfig(thinking_tags=data.thinking_tags)
    words = [] if data.thinking_tags == settings.DataConfig().thinking_tags else ["--thinking-tags", data.thinking_tags]
    words += [] if data.trace_layout == usual.trace_layout else ["--trace-layout", data.trace_layout]
    if data.system_prompt and data.system_prompt != usual.system_prompt:
        words += ["--system-prompt", data.system_prompt]
    return words + (["--chat-template", model.chat_template] if target.run is not None and model.chat_template else [])
