"""The command line: parse, call one verb, print.

Every setting of `config` is a flag. Nothing heavy is imported before a verb runs, so `--help` is
instant. Errors of ours are printed as one message, without a traceback, and end in their exit code.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from cot_unsloth import __version__
from cot_unsloth import config as settings
from cot_unsloth.core.errors import ConfigError, CotError, DataError, ModelError
from cot_unsloth.core.threads import wait_passively

if TYPE_CHECKING:
    from cot_unsloth.export.plan import Existing

_COLUMNS = ("question_column", "reasoning_column", "answer_column", "system_column", "messages_column")
_OF_THE_PROMPT = ("system_prompt", "trace_layout", "thinking_tags", "max_seq_length")
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="cot-unsloth")
def group() -> None:
    """Teach a small open model to reason, and prove that it does.

    \b
    cot-unsloth train                              the whole journey on the embedded tiny model
    cot-unsloth train configs/llama3.2-3b.yaml     ... on Llama-3.2-3B-Instruct
    cot-unsloth check mine.jsonl                   everything that is wrong with data and settings, in seconds
    cot-unsloth inspect mine.jsonl                 rows as the model sees them
    cot-unsloth evaluate runs/NAME                 score a run again
    cot-unsloth export runs/NAME --gguf q4_k_m     a verified file for llama.cpp and Ollama
    cot-unsloth chat runs/NAME                     talk to it; serve puts it behind the OpenAI interface
    """


def setting_flags(*sections: str, only: Sequence[str] = ()) -> Callable[[Any], Any]:
    """Every leaf of the sections as a flag, or only some of them; only those given are passed on."""

    def decorate(function: Any) -> Any:
        leaves = [
            leaf for leaf, section in settings.LEAVES.items() if section in sections and (leaf in only or not only)
        ]
        for leaf in reversed(leaves):
            function = _flag(leaf)(function)
        return function

    return decorate


def _flag(leaf: str) -> Callable[[Any], Any]:
    field = settings.SECTIONS[settings.LEAVES[leaf]].model_fields[leaf]
    name, default = leaf.replace("_", "-"), field.default
    shown = ",".join(default) if isinstance(default, tuple) else default
    text = f"{field.description}  [{shown}]" if shown is not None and len(str(shown)) < 40 else field.description
    if settings.is_flag_pair(leaf):
        return click.option(f"--{name}/--no-{name}", leaf, default=None, help=text)
    return click.option(f"--{name}", leaf, metavar="VALUE", default=None, help=text)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {leaf: value for leaf, value in values.items() if value is not None}


def _program() -> list[str]:
    """How this program is called, in a command that can be copied: its own name may not be on the path."""
    return ["cot-unsloth"] if shutil.which("cot-unsloth") else [sys.executable, "-m", "cot_unsloth"]


def _refuse_missing(target: str | None) -> None:
    """Make sure that a target that looks like a path here is there, and is not looked for on a hub.

    Raises:
        DataError: its folder is here, and it is not in it.
    """
    if target is None or Path(target).exists() or re.search(r"[*?\[,:]|\.(?:ya?ml|json)$", target):
        return
    folder = Path(target).expanduser().parent
    if folder != Path() and folder.is_dir():
        raise DataError(
            "there is no such file or folder", where=target, hint=f"see what is in {folder}", name="file_missing"
        )


def _is_path(name: str) -> bool:
    """Whether a name can only be a path here, and no OWNER/NAME on a hub."""
    parent = Path(name).parent
    return (
        name.startswith((".", "~", "/"))
        or "\\" in name
        or name.count("/") > 1
        or (parent != Path() and parent.is_dir())
    )


def _no_option(error: click.NoSuchOption) -> str:
    """What is wrong with a flag: it belongs to other commands, or there is none such."""
    name = error.option_name.removeprefix("--").replace("-", "_")
    if error.ctx is not None and name in settings.LEAVES:
        command = error.ctx.command.name
        return f"{command} has no {error.option_name}, which other commands have; {command} --help lists its own"
    return f"there is no option {error.option_name}{settings.guess(error.option_name)}"


def _refuse_no_model(base: str | None, adapter: Path | None = None) -> None:
    """Make sure, before anything is imported that takes seconds, that what is named here is a model and an adapter.

    Raises:
        ModelError: it is not.
    """
    folder = Path(base or settings.TINY_BASE).expanduser()
    named = base is not None and base != settings.TINY_BASE and (folder.exists() or _is_path(base))
    if named and not (folder / "config.json").is_file():
        what = "holds no model" if folder.exists() else "there is no such folder"
        hint = "give a folder that holds a model (config.json, tokenizer, weights), or a hub id"
        raise ModelError(what, where=base, hint=hint, name="model_missing")
    if adapter is None:
        return
    name = adapter.as_posix()  # without a leading ./, and no adapter on a hub is named without its owner
    if not adapter.exists() and "/" in name and not _is_path(name):
        return
    if not any((adapter / name).is_file() for name in ("adapter_config.json", "config.json")):
        hint = "it needs adapter_config.json and adapter_model.safetensors"
        message = "holds no adapter: there is no adapter_config.json"
        raise ModelError(message, where=str(adapter), hint=hint, name="adapter_missing")


def _config_path(positional: str | None, option: str | None) -> str | None:
    if positional and option:
        raise ConfigError("two config files are given", where=f"{positional} and --config {option}", hint="give one")
    return positional or option


@group.command(context_settings=CONTEXT)
@click.argument("config_file", required=False, metavar="[CONFIG]")
@click.option("--config", "config_option", metavar="FILE", help="The same as CONFIG.")
@click.option("--resume", is_flag=True, help="Go on with the run in --run-dir, from the newest whole checkpoint.")
@click.option(
    "--dry-run", is_flag=True, help="Read, split and render the data, show a row, train nothing, write nothing."
)
@click.option("--print-config", is_flag=True, help="Print the resolved settings and stop.")
@setting_flags("model", "lora", "data", "train", "evaluate", "export")
def train(
    config_file: str | None, config_option: str | None, resume: bool, dry_run: bool, print_config: bool, **flags: Any
) -> None:
    """Score the base, fine-tune, score again, save.

    \b
    cot-unsloth train                                   the embedded tiny model, minutes on a CPU
    cot-unsloth train configs/qwen2.5-7b.yaml           Qwen2.5-7B on one GPU
    cot-unsloth train --dataset mine.jsonl --run-dir runs/mine
    cot-unsloth train --run-dir runs/mine --resume      go on after a kill

    Settings come from CONFIG (YAML or JSON; without it, those of the embedded demo). A flag outranks
    the file, the file outranks the defaults, which stand in brackets.
    """
    path, given = _config_path(config_file, config_option), _given(flags)
    if resume and path is None and "run_dir" in given and Path(given["run_dir"], "config.yaml").is_file():
        path = str(Path(given["run_dir"], "config.yaml"))
    config = settings.load(path, given)
    if print_config:
        click.echo(config.to_yaml(), nl=False)
        return
    if resume and config.train.run_dir is None:
        raise ConfigError("there is no run to resume", where="--resume", hint="name it: --run-dir runs/NAME")
    from cot_unsloth.evaluation import evaluate
    from cot_unsloth.reporting import tables
    from cot_unsloth.training import pipeline

    if dry_run:
        click.echo(pipeline.dry_run(config))
        return
    run, card = pipeline.train(config, resume=resume)
    if card.arms:
        tables.print_scorecard(card)
        tables.print_answer(run.completions("tuned"))
    click.echo(f"run: {run.path}")
    click.echo(f"report: {run.report}")
    for file in run.exported_models():
        click.echo(f"chat: {shlex.join([*_program(), 'chat', str(file)])}")
    evaluate.hold_to_gate(card)


class _Numbers(click.ParamType):
    """Whole numbers above 0, ascending, with commas between them."""

    name = "numbers"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        try:
            found = tuple(sorted({int(item) for item in str(value).split(",")}))
        except ValueError:
            self.fail(f"{value!r} is no list of numbers such as 64,128,256", param, ctx)
        if found[0] < 1:
            self.fail("a budget is at least 1", param, ctx)
        return found


@group.command(context_settings=CONTEXT)
@click.argument("runs", nargs=-1, metavar="[RUN]...", type=click.Path(path_type=Path))
@click.option("--model", "base", metavar="BASE", help="Score this model instead of a run.")
@click.option(
    "--adapter",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="An adapter, on --model or the base that it names.",
)
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), help="Where scorecard.json and completions/ go.")
@click.option(
    "--api",
    metavar="URL,URL,...",
    help="Ask a running server (vLLM, llama-server, Ollama, ...); --model is its name there. Key: OPENAI_API_KEY.",
)
@click.option(
    "--concurrency", type=click.IntRange(1, 1024), default=32, show_default=True, help="Of --api: prompts at a time."
)
@click.option(
    "--lm-eval", "harness_task", metavar="BENCHMARK", help="Print the lm-evaluation-harness command for a run."
)
@click.option("--curves", is_flag=True, help="Measure accuracy against tokens, at test time and of training.")
@click.option("--budgets", type=_Numbers(), metavar="N,N,...", help="Of --curves; default: max_new_tokens and halves.")
@click.option("--samples", type=click.IntRange(1, 64), help="Of --curves: climbs of each problem.  [8]")
@click.option("--sample-temperature", "heat", type=click.FloatRange(0), help="Of --curves.  [0.7]")
@click.option("--think-again", type=click.IntRange(0, 16), help="Of --curves: reopen ended thinking N times.  [0]")
@click.option(
    "--checkpoints", type=click.IntRange(0), help="Of --curves: at most so many a run; 0 leaves them out.  [8]"
)
@setting_flags("model", only=(*settings.HOW_LOADED, "fast_inference", "gpu_memory_utilization"))
@setting_flags("data", "evaluate")
def evaluate(  # noqa: PLR0913
    runs: tuple[Path, ...],
    base: str | None,
    adapter: Path | None,
    out: Path | None,
    api: str | None,
    concurrency: int,
    harness_task: str | None,
    curves: bool,
    budgets: tuple[int, ...] | None,
    samples: int | None,
    heat: float | None,
    think_again: int | None,
    checkpoints: int | None,
    **flags: Any,
) -> None:
    """Score a run, or any model, on held-out problems.

    \b
    cot-unsloth evaluate runs/NAME
    cot-unsloth evaluate runs/NAME --eval-samples 500 --eval-seed 7
    cot-unsloth evaluate runs/NAME/export/FILE.gguf     the exported file, in llama.cpp
    cot-unsloth evaluate --api http://127.0.0.1:8000/v1 --benchmark gsm8k --out scores/served
    cot-unsloth evaluate runs/SEED1 runs/SEED2 runs/SEED3 --curves     accuracy against compute, with plots
    cot-unsloth evaluate --model Qwen/Qwen2.5-0.5B-Instruct --dataset world:words --out scores/qwen
    cot-unsloth evaluate --model Qwen/Qwen2.5-7B-Instruct --load-in-4bit --benchmark gsm8k --arms base_cot --out scores/q7

    Flags start from the run's own settings; with --model, from the defaults in brackets.
    """
    from cot_unsloth.evaluation import evaluate
    from cot_unsloth.reporting import tables

    if harness_task is not None:
        _lm_eval(runs, harness_task)
        return
    if api is not None:
        if curves or adapter is not None or _given({"x": budgets, "y": samples, "z": checkpoints}):
            raise ConfigError("goes without --curves and its options, and without --adapter", where="--api")
        _evaluate_api(api, runs, base, out, concurrency, _given(flags))
        return
    ladder = {"budgets": budgets, "samples": samples, "temperature": heat, "extend": think_again}
    if curves:
        _curves(runs, base, _given(flags), _given(ladder), 8 if checkpoints is None else checkpoints, out)
        return
    if len(runs) > 1 or _given({**ladder, "checkpoints": checkpoints}):
        raise ConfigError("several runs, budgets and samples go with --curves", where="evaluate")
    run_dir = runs[0] if runs else None
    if run_dir is not None and run_dir.suffix == ".gguf" and base is None:
        tables.print_scorecard(evaluate.evaluate_file(run_dir, _given(flags), out))
        return
    if run_dir is not None and adapter is not None:
        raise ConfigError("cannot be combined with a run, which has its own", where="--adapter")
    if (run_dir is None) == (base is None and adapter is None):
        raise ConfigError("name a run, a .gguf file, a model with --model, or a server with --api", where="evaluate")
    if run_dir is not None:
        card = evaluate.evaluate_run(run_dir, _given(flags), out)
    else:
        if out is None:
            raise ConfigError("say where the scores go", where="--out", hint="--out scores/NAME")
        _refuse_no_model(None if base is None else str(base), adapter)
        from cot_unsloth.models.target import settings_of

        # A base alone is scored under our own prompt, too: that is what its arms are compared by.
        tree = settings_of(base, adapter, _given(flags)) if adapter else {"model": {"model_name_or_path": base}}
        config = settings.load_tree(tree, _given(flags))
        card = evaluate.evaluate_model(config, adapter, out)
    tables.print_scorecard(card)
    evaluate.hold_to_gate(card)


def _lm_eval(runs: tuple[Path, ...], benchmark: str) -> None:
    from cot_unsloth.evaluation import lm_eval_command
    from cot_unsloth.storage.run_folder import RunDir

    if benchmark not in lm_eval_command.TASKS:
        raise ConfigError(f"is none of {', '.join(lm_eval_command.TASKS)}", where=f"--lm-eval {benchmark}")
    if len(runs) != 1:
        raise ConfigError("name one run", where="--lm-eval")
    click.echo(lm_eval_command.command(RunDir.open(runs[0]), benchmark))


def _evaluate_api(
    api: str, runs: tuple[Path, ...], model: str | None, out: Path | None, concurrency: int, flags: dict[str, Any]
) -> None:
    from cot_unsloth.evaluation import evaluate
    from cot_unsloth.reporting import tables

    if out is None:
        raise ConfigError("say where the scores go", where="--out", hint="--out scores/NAME")
    if len(runs) > 1:
        raise ConfigError("takes one run's settings, or none", where="--api")
    addresses = [address.strip() for address in api.split(",") if address.strip()]
    key = os.environ.get("OPENAI_API_KEY")
    run = runs[0] if runs else None
    card = evaluate.evaluate_api(addresses, model, flags, out, api_key=key, concurrency=concurrency, run=run)
    tables.print_scorecard(card)
    evaluate.hold_to_gate(card)


def _curves(
    runs: tuple[Path, ...],
    base: str | None,
    flags: dict[str, Any],
    ladder: dict[str, Any],
    checkpoints: int,
    out: Path | None,
) -> None:
    if not runs or base is not None:
        raise ConfigError("name a run, or several that differ in their seed", where="--curves")
    from cot_unsloth.evaluation import curves
    from cot_unsloth.reporting import tables

    tables.print_curves(curves.measure(runs, flags, ladder, checkpoints, out))


@group.command(context_settings=CONTEXT)
@click.argument("run_dir", required=False, metavar="[RUN]", type=click.Path(path_type=Path))
@click.option("--model", "base", metavar="BASE", help="Export this model; with RUN, put its adapter on this base.")
@click.option(
    "--adapter",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="An adapter, on --model or the base that it names.",
)
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), help="Where it goes; default RUN/export.")
@click.option("--force", is_flag=True, help="Replace existing files once the new ones are verified.")
@click.option("--skip-existing", is_flag=True, help="Keep existing files, verified or not; write the rest.")
@setting_flags("export")
@setting_flags("model", only=("model_revision", "chat_template", "pad_token", "date_string"))
@setting_flags(
    "data", only=("dataset", "dataset_config_name", "dataset_split", "data_format", *_COLUMNS, *_OF_THE_PROMPT)
)
def export(
    run_dir: Path | None,
    base: str | None,
    adapter: Path | None,
    out: Path | None,
    force: bool,
    skip_existing: bool,
    **flags: Any,
) -> None:
    """Write a model for others to run, and verify that it is the model that was trained.

    \b
    cot-unsloth export runs/NAME --gguf q4_k_m,q8_0          for llama.cpp and Ollama, with a Modelfile
    cot-unsloth export runs/NAME --merged --out my-model     a folder for plain transformers
    cot-unsloth export runs/NAME --lora-gguf                 the adapter alone
    cot-unsloth export runs/NAME --gguf q4_k_m --push-to-hub me/my-model
    cot-unsloth export --adapter DIR --gguf q8_0 --out DIR     of other trainers, too; --model where it names no base

    Files get their names only when they have been read back and compared (verified.json); otherwise it ends in 3.
    Where some of it stands already, verified, unchanged and of the same model, that is kept and the rest written.
    Without RUN, flags of data say what is compared on. The template and tokenizer of the adapter's folder go along, and
    the system prompt of the run that trained it; an adapter or a model of others gets --system-prompt, or none.
    """
    from cot_unsloth.export import plan
    from cot_unsloth.storage.run_folder import RunDir, is_full_model

    if force and skip_existing:
        raise ConfigError("says the opposite of --skip-existing", where="--force", hint="give one of them")
    existing: plan.Existing = "force" if force else "skip" if skip_existing else "keep"
    if run_dir is None:
        _export_model(base, adapter, out, existing, _given(flags))
        return
    if adapter is not None:
        raise ConfigError("goes with --model; a run has its own", where="--adapter")
    given = _given(flags)
    foreign = sorted(leaf for leaf in given if settings.LEAVES[leaf] != "export")
    if foreign and base is None:
        raise ConfigError("goes with --model; a run has its own", where=f"--{foreign[0].replace('_', '-')}")
    run = RunDir.open(run_dir)
    before = run.read_config().without_export()
    if base is not None:
        if before.train.full_finetuning:
            raise ConfigError("goes with a run that trained an adapter; here every weight was trained", where="--model")
        before = before.replaced(model_name_or_path=base, model_revision=None)
    config, place = before.overridden(given), out or run.export
    whole = is_full_model(run.require_trained_weights())
    if not whole:
        _refuse_no_model(config.model.model_name_or_path)
    plan.check(config, place, plan.stem(config), adapter=not whole, existing=existing)
    from cot_unsloth.export import run as exporting

    exporting.export_run(run, config, out, existing)
    click.echo(f"export: {place}")


def _export_model(
    base: str | None, adapter: Path | None, out: Path | None, existing: Existing, flags: dict[str, Any]
) -> None:
    if base is None and adapter is None:
        raise ConfigError("name a run, a model with --model, or an adapter with --adapter", where="export")
    if out is None:
        raise ConfigError("say where it goes", where="--out", hint="--out exports/NAME")
    _refuse_no_model(base, adapter)
    from cot_unsloth.export import plan
    from cot_unsloth.models.target import settings_of
    from cot_unsloth.storage.run_folder import is_full_model

    config = settings.load_tree(settings_of(base, adapter, flags), flags)
    stem = plan.stem(config, tuned=adapter is not None)
    plan.check(config, out, stem, adapter=adapter is not None and not is_full_model(adapter), existing=existing)
    from cot_unsloth.export import run as exporting

    exporting.export_model(config, adapter, out, existing)
    click.echo(f"export: {out}")


def _target(function: Any) -> Any:
    """What is talked to, and how long it may think."""
    for option in (
        click.option(
            "--max-thinking-tokens", type=click.IntRange(1), metavar="N", help="End its thinking after N tokens."
        ),
        click.option(
            "--adapter",
            metavar="DIR",
            type=click.Path(path_type=Path),
            help="An adapter, on --model or the base that it names.",
        ),
        click.option("--model", "base", metavar="BASE", help="Load this model instead of a run."),
        click.argument("target", required=False, metavar="[RUN|FILE.gguf]", type=click.Path(path_type=Path)),
    ):
        function = option(function)
    return function


@group.command(context_settings=CONTEXT)
@_target
@setting_flags("evaluate", only=("max_new_tokens", "temperature", "top_p"))
@setting_flags("data", only=("system_prompt", "thinking_tags"))
@setting_flags("model", only=settings.HOW_LOADED)
def chat(
    target: Path | None, base: str | None, adapter: Path | None, max_thinking_tokens: int | None, **flags: Any
) -> None:
    """Talk to a model in the terminal, and see it think.

    \b
    cot-unsloth chat runs/NAME
    cot-unsloth chat runs/NAME/export/FILE.gguf --max-thinking-tokens 200
    cot-unsloth chat runs/NAME < question.txt             one question, of any number of lines
    """
    from cot_unsloth.cli import chat_session
    from cot_unsloth.models.target import open_target

    if base is not None or adapter is not None:
        _refuse_no_model(base, adapter)
    engine, config = open_target(target, base, adapter, _given(flags))
    chat_session.chat(engine, config, max_thinking_tokens)


@group.command(context_settings=CONTEXT)
@_target
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--api-key", envvar="COT_UNSLOTH_API_KEY", help="Ask for this key; also from COT_UNSLOTH_API_KEY.")
@setting_flags("evaluate", only=("max_new_tokens", "temperature", "top_p"))
@setting_flags("data", only=("system_prompt", "thinking_tags"))
@setting_flags("model", only=settings.HOW_LOADED)
def serve(
    target: Path | None,
    base: str | None,
    adapter: Path | None,
    max_thinking_tokens: int | None,
    host: str,
    port: int,
    api_key: str | None,
    **flags: Any,
) -> None:
    """Serve a model behind the OpenAI chat interface, its reasoning apart from its answer.

    \b
    cot-unsloth serve runs/NAME/export/FILE.gguf
    curl http://127.0.0.1:8000/v1/chat/completions -d '{"messages": [{"role": "user", "content": "What is 17 * 3?"}]}'
    """
    from cot_unsloth.models import serving
    from cot_unsloth.models.llamacpp import SLOTS
    from cot_unsloth.models.target import open_target

    if base is not None or adapter is not None:
        _refuse_no_model(base, adapter)
    with serving.bind(host, port) as server:  # before a model is loaded for minutes
        engine, config = open_target(target, base, adapter, _given(flags), slots=SLOTS)
        place = Path(os.path.normpath((target or Path(base or adapter or "")).absolute()))  # of `.`, what it is called
        named = place.stem if place.suffix == ".gguf" else place.name
        service = serving.Service(
            engine, config, name=named or "model", api_key=api_key, max_thinking=max_thinking_tokens
        )
        serving.serve(service, server)


@group.command(context_settings=CONTEXT)
@click.argument("target", required=False, metavar="[CONFIG|DATA]")
@setting_flags("model", "lora", "data", "train", "evaluate", "export")
def check(target: str | None, **flags: Any) -> None:
    """Find every fault of settings, data, template and machine at once, without loading weights.

    \b
    cot-unsloth check configs/mine.yaml
    cot-unsloth check mine.jsonl --model-name-or-path Qwen/Qwen2.5-7B-Instruct

    Ends in 2 where there is a fault; warnings alone end in 0. `train` looks for the same before it begins.
    """
    from cot_unsloth.reporting import tables
    from cot_unsloth.training import checks

    _refuse_missing(target)
    findings = checks.check_target(target, _given(flags))
    tables.print_findings(findings)
    click.echo(checks.summary(findings))
    if checks.faults(findings):
        raise click.exceptions.Exit(2)


@group.command("inspect", context_settings=CONTEXT)
@click.argument("target", required=False, metavar="[CONFIG|DATA|RUN]")
@click.option("-n", "count", type=click.IntRange(1, 1000), default=5, show_default=True, help="Rows to show.")
@click.option("--html", metavar="FILE", type=click.Path(path_type=Path), help="Write them as a page instead.")
@setting_flags("model", only=("model_name_or_path", "model_revision", "chat_template", "pad_token", "date_string"))
@setting_flags("data")
def inspect_(target: str | None, count: int, html: Path | None, **flags: Any) -> None:
    """Show rows as the model sees them: sections, what carries loss and what does not, control tokens, wrong steps.

    \b
    cot-unsloth inspect mine.jsonl
    cot-unsloth inspect configs/mine.yaml -n 10 --html rows.html
    cot-unsloth inspect runs/NAME
    """
    from cot_unsloth.prompts import inspection
    from cot_unsloth.reporting import tables
    from cot_unsloth.storage.atomic import write_text
    from cot_unsloth.storage.run_folder import RunDir
    from cot_unsloth.training.checks.examine import is_settings

    _refuse_missing(target)
    given = _given(flags)
    if target is not None and Path(target, "config.yaml").is_file():
        if given:
            raise ConfigError("goes with data or settings; a run has its own", where=f"--{next(iter(given))}")
        rows = inspection.rows_of_run(RunDir.open(target), count)
    elif target is None or is_settings(target):
        rows = inspection.rows_of_settings(settings.load(target, given), count)
    else:
        rows = inspection.rows_of_settings(settings.load_tree({"data": {"dataset": target}}, given), count)
    if html is None:
        tables.print_rows(rows)
        return
    write_text(html, inspection.render_page(rows, inspection.page_title(target)))
    click.echo(f"page: {html}")


@group.command(context_settings=CONTEXT)
@click.argument("config_file", required=False, metavar="[CONFIG]")
@setting_flags("model")
@setting_flags("train", only=("run_dir",))
def doctor(config_file: str | None, **flags: Any) -> None:
    """Look at this machine: is it fit for a run, and what would the run use?

    \b
    cot-unsloth doctor
    cot-unsloth doctor configs/llama3.2-3b.yaml

    Ends in 1 where there is something to mend; each fault comes with the line that mends it.
    """
    from cot_unsloth.models import doctor

    findings = doctor.examine(settings.load(config_file, _given(flags)))
    click.echo(doctor.report(findings))
    if any(finding.level == "fault" for finding in findings):
        raise click.exceptions.Exit(1)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; ends the process with the exit code that `errors` gives."""
    wait_passively()  # before any verb imports torch
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a pipe on Windows may not know every letter
            stream.reconfigure(errors="replace")
    try:
        code = group.main(args=args, prog_name="cot-unsloth", standalone_mode=False)
    except click.exceptions.Exit as done:
        code = done.exit_code
    except click.NoSuchOption as error:
        click.echo(f"error: {_no_option(error)}", err=True)
        code = 2
    except click.ClickException as error:
        error.show()
        code = 2
    except CotError as error:
        click.echo(f"error: {error}", err=True)
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo(
            "interrupted; a run goes on with --resume, from its newest whole checkpoint if there is one", err=True
        )
        code = 130
    except OSError as error:
        click.echo(f"error: {error}", err=True)
        code = 1
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("cot_unsloth"):
            raise
        click.echo(f"error: {error.name} is not installed\n  hint: activate .venv, or pip install -e .", err=True)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)
