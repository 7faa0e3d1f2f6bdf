"""What a user names on the command line: a file of settings, or a data set."""

from __future__ import annotations

from pathlib import Path

from cot_unsloth.config.load import is_yaml, load, load_all, load_all_tree, load_tree
from cot_unsloth.config.run_config import Flags, RunConfig
from cot_unsloth.config.settings import SECTIONS
from cot_unsloth.core.errors import ConfigError
from cot_unsloth.core.json_text import parse_json

_MAX_SETTINGS_BYTES = 1 << 20


def is_settings_file(target: str) -> bool:
    """Whether a file has settings and not rows: YAML always, JSON if all its keys are sections with objects."""
    path = Path(target)
    if is_yaml(path):
        return True
    if path.suffix.lower() != ".json" or not path.is_file() or path.stat().st_size > _MAX_SETTINGS_BYTES:
        return False
    try:
        # utf-8-sig drops the byte order mark that Windows editors write, at which json.loads fails.
        tree = parse_json(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    sections = isinstance(tree, dict) and bool(tree) and set(tree) <= set(SECTIONS)
    # `train` is a section and a split: {"train": [...]} is a data set.
    return sections and all(isinstance(section, dict) for section in tree.values())


def load_target(target: str | None, flags: Flags) -> RunConfig:
    """The settings of a file, or defaults with the data set that is named; None takes the embedded demo's.

    Raises:
        ConfigError: with every error.
    """
    if target is None or is_settings_file(target):
        return load(target, flags)
    return load_tree({"data": {"dataset": target}}, flags)


def load_target_all(target: str | None, flags: Flags) -> tuple[RunConfig | None, list[ConfigError]]:
    """As `load_target`, but errors are returned, beside the settings without the values that are wrong."""
    if target is None or is_settings_file(target):
        return load_all(target, flags)
    return load_all_tree({"data": {"dataset": target}}, flags)
