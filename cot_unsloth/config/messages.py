"""Error messages for settings: unknown names with "did you mean", and pydantic's errors with their line or flag."""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cot_unsloth.config.settings import LEAVES, SECTIONS
from cot_unsloth.core.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_OTHER_NAMES = {
    "r": "lora_r", "rank": "lora_r", "lora_rank": "lora_r", "alpha": "lora_alpha", "dropout": "lora_dropout",
    "lr": "learning_rate", "batch_size": "per_device_train_batch_size", "epochs": "num_train_epochs",
    "max_length": "max_seq_length", "cutoff_len": "max_seq_length", "sequence_len": "max_seq_length",
    "base_model": "model_name_or_path", "model_name": "model_name_or_path", "output_dir": "run_dir",
    "quantization": "load_in_4bit", "scheduler": "lr_scheduler_type", "template": "chat_template",
}  # fmt: skip
"""Names of our settings in other trainers. They are not accepted, only suggested in "did you mean"."""


def flag_name(leaf: str) -> str:
    """A setting as it is written on the command line.

    >>> flag_name("learning_rate")
    '--learning-rate'
    """
    return "--" + leaf.replace("_", "-")


@dataclass(frozen=True)
class Origin:
    """Where settings come from, so that a message can name the line or the flag."""

    file: Path = Path("settings")
    lines: Mapping[tuple[str, ...], int] = field(default_factory=dict)
    """The line of each key, by its path such as ("train", "seed"); empty for JSON and for settings given in Python."""
    flags: tuple[str, ...] = ()
    """The settings given as flags."""

    def line(self, *path: str) -> str:
        """`file:line` of a key, or line 1 where it is not known."""
        return f"{self.file}:{self.lines.get(path, 1)}"

    def of(self, path: tuple[str, ...]) -> str:
        """The flag, the line or the file that a value came from."""
        if len(path) > 1 and path[1] in self.flags:
            return flag_name(path[1])
        line = self.lines.get(path[:2])
        return f"{self.file}:{line}" if line else str(self.file)


def combined(errors: Sequence[ConfigError]) -> ConfigError:
    """One error that lists several."""
    if len(errors) == 1:
        return errors[0]
    error = ConfigError(f"{len(errors)} settings cannot be used:\n" + "\n".join(map(str, errors)))
    error.parts = tuple(errors)
    return error


def unknown_names(tree: Mapping[str, object], origin: Origin) -> Iterator[ConfigError]:
    """An error for every section and setting that does not exist, and for sections that hold no settings."""
    for name, section in tree.items():
        if name not in SECTIONS:
            message = f"{name} is not a section{guess(str(name), top=True)}"
            yield ConfigError(message, where=origin.line(str(name)), name="unknown_section")
        elif section is not None and not isinstance(section, dict):
            message = f"{name} must hold settings, not {section!r}"
            yield ConfigError(message, where=origin.line(name), name="wrong_type")
        else:
            yield from _unknown_leaves(name, section or {}, origin)


def _unknown_leaves(section: str, leaves: Mapping[str, object], origin: Origin) -> Iterator[ConfigError]:
    for leaf in leaves:
        if leaf not in SECTIONS[section].model_fields:
            yield ConfigError(
                f"{section}.{leaf} is not a setting{guess(str(leaf))}",
                where=origin.line(section, str(leaf)),
                name="misplaced_setting" if leaf in LEAVES else "unknown_setting",
            )


def unknown_flag(leaf: str) -> ConfigError:
    """The error for a keyword argument or flag that is not a setting."""
    return ConfigError(f"is not a setting{guess(leaf)}", where=leaf, name="unknown_setting")


def guess(name: str, *, top: bool = False) -> str:
    """The end of a message about an unknown name: what it may have meant, or nothing.

    Args:
        name: a section, a setting, or a flag with its dashes.
        top: whether a section was expected there.

    >>> guess("lr"), guess("--lr")
    ('; did you mean train.learning_rate?', '; did you mean --learning-rate?')
    """
    if name.startswith("--"):
        leaf = _closest(name[2:].replace("-", "_"), [*LEAVES, *_OTHER_NAMES])
        return f"; did you mean {flag_name(leaf)}?" if leaf else ""
    if name in LEAVES:
        return f"; it belongs in section {LEAVES[name]}"
    match = _closest(name, [*(SECTIONS if top else ()), *LEAVES, *_OTHER_NAMES])
    if match is None:
        return f" (sections: {', '.join(SECTIONS)})" if top else ""
    return f"; did you mean {match if match in SECTIONS else f'{LEAVES[match]}.{match}'}?"


def _closest(name: str, choices: Sequence[str]) -> str | None:
    match = next(iter(difflib.get_close_matches(name, choices, 1)), None)
    return _OTHER_NAMES.get(match, match) if match else None


def invalid_value(error: ErrorDetails, origin: Origin) -> ConfigError:
    """One of pydantic's errors as ours."""
    path = tuple(str(part) for part in error["loc"])
    where = origin.of(path)
    message = error["msg"].removeprefix("Value error, ")
    if not path:  # settings that conflict: name the flags among them
        where = " ".join(flag_name(leaf) for leaf in origin.flags if leaf in message) or where
    if len(path) > 1:
        given = error["input"]
        written = str(given) if isinstance(given, datetime.date) else repr(given)
        message = f"{path[0]}.{path[1]} is {written}: {message[0].lower()}{message[1:]}"
        if error["type"] == "string_type" and isinstance(given, bool | int | float | datetime.date):
            message += "; write it in quotes"  # YAML takes a column called no, and a commit of digits, for other values
    return ConfigError(message, where=where, name=_error_name(error["type"], path))


def _error_name(kind: str, path: tuple[str, ...]) -> str:
    if not path or (kind == "value_error" and len(path) < 2):
        return "conflicting_settings"
    if kind == "literal_error":
        return "wrong_choice"
    return "wrong_type" if kind.endswith(("_type", "_parsing")) or kind == "int_from_float" else "out_of_range"
