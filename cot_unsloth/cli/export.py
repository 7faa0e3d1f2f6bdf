"""`export`: write a model for other programs, and verify it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cot_unsloth import config as settings
from cot_unsloth.cli import next_steps, paths
from cot_unsloth.cli.options import (
    COLUMNS,
    FOLDER,
    adapter_option,
    base_option,
    command,
    given,
    out_option,
    setting_flags,
)
from cot_unsloth.core import progress
from cot_unsloth.core.errors import ConfigError
from cot_unsloth.core.logs import log_to

if TYPE_CHECKING:
    from cot_unsloth.config import Flags
    from cot_unsloth.export.plan import Existing

_OF_THE_PROMPT = ("system_prompt", "trace_layout", "thinking_tags", "max_seq_length")


@command()
@click.argument("run_dir", required=False, metavar="[RUN]", type=FOLDER)
@base_option("Export this model; with RUN, put its adapter on this base.")
@adapter_option
@out_option("Where it goes; default: RUN/export.")
@click.option("--force", is_flag=True, help="Replace existing files once the new ones are verified.")
@click.option("--skip-existing", is_flag=True, help="Keep existing files, verified or not; write the rest.")
@setting_flags("export")
@setting_flags("model", only=("model_revision", "chat_template", "pad_token", "date_string"))
@setting_flags(
    "data", only=("dataset", "dataset_config_name", "dataset_split", "data_format", *COLUMNS, *_OF_THE_PROMPT)
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
    """Write a model for other programs, and verify it.

    \b
    cot-unsloth export runs/NAME --gguf q4_k_m,q8_0          for llama.cpp and Ollama, with a Modelfile
    cot-unsloth export runs/NAME --merged --out my-model     a folder for plain transformers
    cot-unsloth export runs/NAME --lora-gguf                 the adapter alone
    cot-unsloth export runs/NAME --gguf q4_k_m --push-to-hub me/my-model
    cot-unsloth export --adapter DIR --gguf q8_0 --out DIR   an adapter, also from another trainer; add
                                                             --model if it does not name its base

    A file gets its name only after it has been read back and compared (verified.json); otherwise the exit code is 3.
    Existing files that are verified, unchanged and of the same model are kept, and the rest is written.

    Without RUN, the data flags name the rows to compare answers on. The template and tokenizer in the adapter's folder
    are used, and the system prompt of the run that trained it. A model that no run trained has no system prompt unless
    --system-prompt is given.
    """
    if force and skip_existing:
        raise ConfigError("is the opposite of --skip-existing", where="--force", hint="give one of them")
    existing: Existing = "force" if force else "skip" if skip_existing else "keep"
    progress.starting("export")
    if run_dir is None:
        _export_model(base, adapter, out, existing, given(flags))
        return
    if adapter is not None:
        raise ConfigError("needs --model; a run has its own", where="--adapter")
    _export_run(run_dir, base, out, existing, given(flags))


def _export_run(run_dir: Path, base: str | None, out: Path | None, existing: Existing, flags: Flags) -> None:
    others = sorted(leaf for leaf in flags if settings.LEAVES[leaf] != "export")
    if others and base is None:
        raise ConfigError("needs --model; a run has its own", where=settings.flag_name(others[0]))
    from cot_unsloth.export import plan
    from cot_unsloth.models.target import resolve_target
    from cot_unsloth.storage.run_folder import RunDir, is_full_model

    other_base = {} if base is None else {"model_name_or_path": base, "model_revision": None}
    run = RunDir.open(run_dir)  # a .gguf file, which is a target too, cannot be exported
    target = resolve_target(run_dir, flags={**other_base, **flags}, use="export")
    if base is not None and target.before_flags.train.full_finetuning:
        raise ConfigError("needs a run that trained an adapter; here every weight was trained", where="--model")
    config, weights = target.config, target.weights
    folder = out or run.export
    if not is_full_model(weights):
        paths.require_model(config.model.model_name_or_path)
    plan.check(config, folder, weights, existing=existing)
    from cot_unsloth.export import run as exporting

    with log_to(run.log):
        exporting.export_run(run, config, out, existing)
    _print_next(folder)


def _export_model(base: str | None, adapter: Path | None, out: Path | None, existing: Existing, flags: Flags) -> None:
    if base is None and adapter is None:
        raise ConfigError("name a run, a model with --model, or an adapter with --adapter", where="export")
    if out is None:
        raise ConfigError("say where it goes", where="--out", hint="--out exports/NAME")
    paths.require_model(base, adapter)
    from cot_unsloth.export import plan
    from cot_unsloth.models.target import resolve_target

    config = resolve_target(base=base, adapter=adapter, flags=flags, use="export").config
    plan.check(config, out, adapter, existing=existing)
    from cot_unsloth.export import run as exporting

    exporting.export_model(config, adapter, out, existing)
    _print_next(out)


def _print_next(folder: Path) -> None:
    from cot_unsloth.storage.run_folder import is_adapter_gguf

    next_steps.show("export", folder)
    modelfile = folder / "Modelfile"
    if modelfile.is_file():
        [file_name] = re.findall(r"^FROM (.+)$", modelfile.read_text("utf-8"), re.MULTILINE)[:1] or ["?"]
        next_steps.show("Modelfile", f"{modelfile} (for Ollama, from {file_name})")
    for file in sorted(folder.glob("*.gguf")):
        if not is_adapter_gguf(file.name):
            next_steps.show("chat", next_steps.command("chat", file))
            next_steps.show("serve", next_steps.command("serve", file))
