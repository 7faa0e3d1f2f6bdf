"""The argument of commands that take either a settings file or a data set."""

from __future__ import annotations

from pathlib import Path

from cot_unsloth.config.load import is_yaml, load, load_all, load_all_tree, load_tree
from cot_unsloth.config.run_config import Flags, RunConfig
from cot_unsloth.config.settings import SECTIONS
from cot_unsloth.core.errors import ConfigError
from cot_unsloth.core.json_text import parse_json

_MAX_SETTINGS_BYTES = 1 << 20


def is_settings_file(target: str) -> bool:
    """Whether a file holds settings, not rows: YAML always does, JSON if it has a section with a setting, or only sections."""
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
    if not isinstance(tree, dict):
        return False
    # `train` is also the name of a split: {"train": [...]} is a data set.
    sections = {name: section for name, section in tree.items() if isinstance(section, dict) and name in SECTIONS}
    has_setting = any(section.keys() & SECTIONS[name].model_fields for name, section in sections.items())
    return has_setting or (bool(tree) and len(sections) == len(tree))


def load_target(target: str | None, flags: Flags) -> RunConfig:
    """The settings of a file, or the defaults with the named data set; None means the embedded demo's settings.

    Raises:
        ConfigError: with every error.
    """
    if target is None or is_settings_file(target):
        return load(target, flags)
    return load_tree({"data": {"dataset": target}}, flags)


def load_target_all(target: str | None, flags: Flags) -> tuple[RunConfig | None, list[ConfigError]]:
    """Like `load_target`, but returns the errors, together with the settings without the invalid values."""
    if target is None or is_settings_file(target):
        return load_all(target, flags)
    return load_all_tree({"data": {"dataset": target}}, flags)
