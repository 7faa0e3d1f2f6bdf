"""`evaluate`: score a run, a model, a GGUF file or a server on held-out problems."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cot_unsloth import config as settings
from cot_unsloth.cli import paths
from cot_unsloth.cli.old_spellings import curves_and_lm_eval
from cot_unsloth.cli.options import (
    FOLDER,
    Adapters,
    base_option,
    command,
    given,
    named_adapters_option,
    out_option,
    setting_flags,
)
from cot_unsloth.config import Flags
from cot_unsloth.core import progress
from cot_unsloth.core.errors import ConfigError

if TYPE_CHECKING:
    from cot_unsloth.core.results import Scorecard


@command()
@click.argument("runs", nargs=-1, metavar="[RUN]", type=FOLDER)
@base_option("Score this model instead of a run.")
@named_adapters_option
@out_option("Where scorecard.json and completions/ go.")
@click.option(
    "--api",
    metavar="URL,URL,...",
    help="Score a running server (vLLM, llama-server, Ollama, ...); --model is its name there. Key: OPENAI_API_KEY.",
)
@click.option(
    "--concurrency", type=click.IntRange(1, 1024), default=32, show_default=True, help="With --api: prompts at a time."
)
@setting_flags("model", only=(*settings.HOW_LOADED, "fast_inference", "gpu_memory_utilization"))
@setting_flags("data", "evaluate")
@curves_and_lm_eval
def evaluate(
    runs: tuple[Path, ...],
    base: str | None,
    adapters: Adapters,
    out: Path | None,
    api: str | None,
    concurrency: int,
    **flags: Any,
) -> None:
    """Score a run, or any model, on held-out problems.

    \b
    cot-unsloth evaluate runs/NAME
    cot-unsloth evaluate runs/NAME --eval-samples 500 --eval-seed 7
    cot-unsloth evaluate runs/NAME --adapter b=runs/B   another adapter of the same base, on the same problems
    cot-unsloth evaluate runs/NAME/export/FILE.gguf     the exported file, in llama.cpp
    cot-unsloth evaluate --api http://127.0.0.1:8000/v1 --benchmark gsm8k --out scores/served
    cot-unsloth evaluate --model Qwen/Qwen2.5-0.5B-Instruct --dataset world:words --out scores/qwen
    cot-unsloth evaluate --model Qwen/Qwen2.5-7B-Instruct --load-in-4bit --benchmark gsm8k --arms base_cot --out scores/q7

    Settings are the run's own; flags override them. With --model, settings have the defaults shown in brackets.
    """
    run = runs[0] if runs else None
    adapter = adapters.own
    if adapters.named and (api is not None or (run is not None and run.suffix == ".gguf")):
        raise ConfigError("needs weights on this machine: a run, or a model", where="--adapter NAME=RUN")
    progress.starting("evaluate")
    if api is not None:
        _score_server(api, runs, base, adapter, out, concurrency, given(flags))
    elif run is not None and (base is not None or adapter is not None):
        where = "--adapter" if adapter is not None else "--model"
        raise ConfigError("cannot be combined with a run or a file, which has its own", where=where)
    elif run is not None and run.suffix == ".gguf":
        _score_file(run, out, given(flags))
    elif run is not None:
        _score_run(run, out, given(flags), adapters.named)
    else:
        _score_model(base, adapters, out, given(flags))


def _score_server(
    api: str,
    runs: tuple[Path, ...],
    model: str | None,
    adapter: Path | None,
    out: Path | None,
    concurrency: int,
    flags: Flags,
) -> None:
    if adapter is not None:
        raise ConfigError("cannot be combined with --adapter: the server has its own weights", where="--api")
    if out is None:
        raise ConfigError("say where the scores go", where="--out", hint="--out scores/NAME")
    if len(runs) > 1:
        raise ConfigError("takes the settings of one run, or of none", where="--api")
    from cot_unsloth.evaluation import evaluate

    run = runs[0] if runs else None
    addresses = [address.strip() for address in api.split(",") if address.strip()]
    key = os.environ.get("OPENAI_API_KEY")
    _print_and_gate(evaluate.evaluate_api(addresses, model, flags, out, api_key=key, concurrency=concurrency, run=run))


def _score_file(file: Path, out: Path | None, flags: Flags) -> None:
    from cot_unsloth.evaluation import evaluate
    from cot_unsloth.reporting import tables

    tables.print_scorecard(evaluate.evaluate_file(file, flags, out))


def _score_run(run: Path, out: Path | None, flags: Flags, named: Mapping[str, Path]) -> None:
    from cot_unsloth.evaluation import evaluate

    _print_and_gate(evaluate.evaluate_run(run, flags, out, named))


def _score_model(base: str | None, adapters: Adapters, out: Path | None, flags: Flags) -> None:
    adapter = adapters.own
    if base is None and adapter is None:
        raise ConfigError("name a run, a .gguf file, a model with --model, or a server with --api", where="evaluate")
    if out is None:
        raise ConfigError("say where the scores go", where="--out", hint="--out scores/NAME")
    paths.require_model(base, adapter)
    from cot_unsloth.evaluation import evaluate
    from cot_unsloth.evaluation.named_adapters import NamedAdapters
    from cot_unsloth.models.target import resolve_target

    target = resolve_target(base=base, adapter=adapter, flags=flags, use="score")
    named = NamedAdapters.resolve(target, adapters.named, flags)
    _print_and_gate(evaluate.evaluate_model(target, out, named))


def _print_and_gate(card: Scorecard) -> None:
    from cot_unsloth.evaluation.gate import enforce_gate
    from cot_unsloth.reporting import tables

    tables.print_scorecard(card)
    enforce_gate(card)
