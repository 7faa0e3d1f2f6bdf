"""The layout of help pages: options in groups, the most used ones first, and commands by purpose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import click

from cot_unsloth import config as settings

FIRST: Mapping[str, tuple[str, ...]] = {
    "train": (
        "run_dir", "resume", "dataset", "model_name_or_path", "method", "learning_rate", "num_train_epochs", "lora_r",
        "eval_samples", "gguf",
    ),
    "sample": ("attempts", "out", "dataset", "benchmark", "base", "adapter", "max_new_tokens"),
    "evaluate": ("benchmark", "dataset", "eval_samples", "eval_seed", "arms", "out", "base", "adapters", "api"),
    "export": ("gguf", "merged", "lora_gguf", "out", "push_to_hub", "force", "skip_existing", "base", "adapter"),
    "check": ("dataset", "model_name_or_path", "method", "max_seq_length"),
    "sweep": ("vary", "trials", "space_file", "grid", "out", "name"),
    "curves": ("budgets", "samples", "checkpoints", "out", "eval_samples"),
    "serve": ("port", "host", "api_key", "adapters", "max_thinking_tokens"),
}  # fmt: skip
"""For each command, the parameters that its help lists first."""
_TITLES = {
    "model": "Model",
    "lora": "Adapter (LoRA)",
    "data": "Data",
    "train": "Training",
    "sample": "Sampling (also with --method rft)",
    "grpo": "Reinforcement learning (--method grpo)",
    "development": "Development problems",
    "evaluate": "Scoring",
    "export": "Export",
}
_LOGGING = ("quiet", "verbose", "debug")
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "Train": ("train", "sample", "sweep", "combine"),
    "Measure": ("evaluate", "curves", "compare", "transfer", "runs", "lm-eval"),
    "Use": ("chat", "serve", "export"),
    "Look first": ("init", "check", "inspect", "doctor"),
}
"""The commands by purpose; a command in no group is listed last."""


def write_options(command: click.Command, context: click.Context, formatter: click.HelpFormatter) -> None:
    """Write the options of a command: the most used, its other options, then the settings by section."""
    groups: dict[str, list[tuple[str, str]]] = {"Used first": [], "Options": []}
    groups |= {title: [] for title in _TITLES.values()} | {"Output": []}
    first = FIRST.get(command.name or "", ())
    parameters = [one for one in command.get_params(context) if isinstance(one, click.Option)]
    for parameter in sorted(parameters, key=lambda one: first.index(one.name) if one.name in first else len(first)):
        record = parameter.get_help_record(context)
        if record is not None:
            groups["Used first" if parameter.name in first else _group(parameter)].append(record)
    for title, records in groups.items():
        if records:
            with formatter.section(title):
                formatter.write_dl(records)


def _group(parameter: click.Option) -> str:
    name = parameter.name or ""
    if name in _LOGGING or "--help" in parameter.opts:
        return "Output"
    return _TITLES[settings.LEAVES[name]] if name in settings.LEAVES else "Options"


def write_commands(group: click.Group, formatter: click.HelpFormatter) -> None:
    """Write the commands of a group in COMMANDS' groups, each with the first line of its help."""
    listed = {name for names in COMMANDS.values() for name in names}
    others = tuple(name for name in group.commands if name not in listed)
    for title, names in {**COMMANDS, "More": others}.items():
        if names:
            with formatter.section(title):
                formatter.write_dl(_summaries(group, names))


def _summaries(group: click.Group, names: Iterable[str]) -> list[tuple[str, str]]:
    return [(name, group.commands[name].get_short_help_str(64)) for name in names if name in group.commands]
