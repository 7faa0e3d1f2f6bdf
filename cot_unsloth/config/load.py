"""Settings from a YAML or JSON file, overridden by flags."""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cot_unsloth.config.messages import Origin, combined
from cot_unsloth.config.run_config import Flags, RunConfig, Tree, config_and_errors, config_from
from cot_unsloth.config.schema import DEFAULT_CONFIG, TINY_BASE
from cot_unsloth.config.settings import SECTIONS
from cot_unsloth.core.errors import ConfigError
from cot_unsloth.core.json_text import first_repeated
from cot_unsloth.core.logs import LOG

_MOST_BYTES = 100_000
"""Largest settings file, in bytes. PyYAML reads 100 kB a second; our files have 3 kB."""
_MOST_VALUES = 10_000


def load(path: str | Path | None = None, flags: Flags | None = None) -> RunConfig:
    """Read a YAML or JSON file; `flags` override it.

    Args:
        path: the file. None means the embedded demo's file, unless a flag names another model: the demo's rates and sizes
            suit only its tiny model, so None then means the defaults.
        flags: settings by leaf name, as given on the command line; text is converted.

    Raises:
        ConfigError: with every error, each with its line or flag.
    """
    config, errors = load_all(path, flags)
    if errors or config is None:
        raise combined(errors)
    return config


def load_all(path: str | Path | None = None, flags: Flags | None = None) -> tuple[RunConfig | None, list[ConfigError]]:
    """Like `load`, but returns the errors, together with the settings without the invalid values.

    Returns:
        The settings, or None if the file cannot be used at all; and the errors.
    """
    flags = flags or {}
    if path is None and flags.get("model_name_or_path", TINY_BASE) != TINY_BASE:
        return config_and_errors({}, flags)
    file = Path(path) if path is not None else DEFAULT_CONFIG
    LOG.debug("settings: %s, flags %s", file, ", ".join(flags) or "none")
    try:
        tree, origin = _read(file)
    except ConfigError as error:
        return None, list(error.parts) or [error]
    return config_and_errors(tree, flags, origin)


def load_all_tree(tree: Tree, flags: Flags) -> tuple[RunConfig | None, list[ConfigError]]:
    """Like `load_all`, for settings given as a tree of sections."""
    return config_and_errors(tree, flags)


def load_tree(tree: Tree, flags: Flags) -> RunConfig:
    """Like `load`, for settings given as a tree of sections.

    Raises:
        ConfigError: as `load`.
    """
    return config_from(tree, flags)


def read_file(file: Path, hint: str) -> Tree:
    """A YAML or JSON file's tree, whose names are not checked.

    Args:
        file: the file.
        hint: what to write, if it holds no names with values.

    Raises:
        ConfigError: it cannot be read, or sets a name twice.
    """
    return _read(file, hint)[0]


def _read(file: Path, hint: str = f"write sections: {', '.join(SECTIONS)}") -> tuple[Tree, Origin]:
    """A file's tree, and the line of each key."""
    _refuse_data(file)
    is_json = file.suffix.lower() == ".json"
    try:
        text = _read_text(file)
        # PyYAML follows YAML 1.1, where 2e-4 is text (a float needs a point, 2.0e-4), and yes, no, on and off are
        # booleans. pydantic converts the former; a text setting that got a boolean is an error with its line.
        # safe_load drops positions, so the lines of the keys are read from the tree of nodes.
        node = _json_node(text) if is_json else yaml.compose(text, Loader=yaml.SafeLoader)
        _require_few(node, {})
        lines = _lines(node, file)
        tree = _json(text, file) if is_json else yaml.safe_load(text)
        # Raises on half a surrogate pair. Keys that are not text, such as dates, are reported as unknown names later.
        json.dumps(tree, ensure_ascii=False, default=str, skipkeys=True).encode()
    except FileNotFoundError as error:
        raise ConfigError(
            "there is no such file", where=str(file), hint=_missing_hint(file), name="config_missing"
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot be read: {error}", where=str(file), name="unreadable_settings") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"is not YAML: {error.problem}", where=f"{file}:{line}", name="not_yaml") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"is not JSON: {error.msg}", where=f"{file}:{error.lineno}", name="not_json") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        in_utf8 = "write it as plain settings, in UTF-8"
        raise ConfigError(
            f"cannot be read: {error}", where=str(file), hint=in_utf8, name="unreadable_settings"
        ) from error
    if tree is None:
        return {}, Origin(file)
    if not isinstance(tree, dict):
        hint = f"{hint}; {_DATASET}" if isinstance(tree, list) and is_json else hint
        raise ConfigError("holds no settings", where=f"{file}:1", hint=hint, name="no_settings")
    return tree, Origin(file, lines)


def _json_node(text: str) -> yaml.Node | None:
    """A JSON text as YAML reads it, which nearly all JSON is, for the lines of its keys: the JSON parser gives none."""
    try:
        return yaml.compose(text.replace("\t", " "), Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return None


def _json(text: str, file: Path) -> Any:
    """A JSON text as a tree.

    Raises:
        ConfigError: a key is given twice; the parser would use the last one.
    """

    def tree(pairs: list[tuple[str, object]]) -> dict[str, object]:
        repeated = first_repeated(key for key, _ in pairs)
        if repeated is not None:
            raise ConfigError(f"{repeated} is set twice", where=str(file), name="set_twice")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=tree)


def _missing_hint(file: Path) -> str:
    """A hint for a missing settings file: a similar name, or how to get a file."""
    folder = file.parent
    names = [path.name for path in folder.iterdir() if is_yaml(path)] if folder.is_dir() else []
    similar = difflib.get_close_matches(file.name, names, 1)
    if similar:
        return f"did you mean {folder / similar[0]}?"
    if folder.name == "configs" and not folder.is_dir():
        return "configs/ is in the repository, not in the installed package: use a clone, or write a file with cot-unsloth init FILE"
    return "write one with cot-unsloth init FILE; the repository has examples in configs/"


_DATASET = "a data set is named with --dataset"
_HOLDS_ROWS = re.compile(
    r".*\.(?:jsonl|ndjson|csv|tsv|parquet|arrow)(?:\.\w+)?|.*\.json\.\w+", re.IGNORECASE | re.DOTALL
)


def _refuse_data(file: Path) -> None:
    """Report rows in place of settings: as YAML they gave "expected '<document start>'", or a key that is not a section.

    Raises:
        ConfigError: the file holds rows, by its name, or is a folder.
    """
    if file.is_dir():
        hint = f"{_DATASET} {shlex.quote(str(file))}"
        if (file / "config.yaml").is_file():
            hint = f"to continue a run: --run-dir {shlex.quote(str(file))} --resume"
        raise ConfigError("is a folder, not a settings file", where=str(file), hint=hint, name="not_settings")
    if file.is_file() and _HOLDS_ROWS.fullmatch(file.name):
        hint = f"{_DATASET} {shlex.quote(str(file))}"
        raise ConfigError("is data, not a settings file", where=str(file), hint=hint, name="not_settings")


def is_yaml(path: Path) -> bool:
    """Whether a file is YAML, by its name."""
    return path.suffix.lower() in (".yaml", ".yml")


def _read_text(file: Path) -> str:
    if file.stat().st_size > _MOST_BYTES:
        raise ValueError(f"it has {file.stat().st_size:,} bytes; a settings file has a few thousand")
    # Windows editors write a byte order mark, which the JSON parser refuses.
    return file.read_text(encoding="utf-8-sig")


def _require_few(node: yaml.Node | None, counted: dict[int, int]) -> int:
    """The number of values below a node with every alias written out; an alias of itself would never end.

    Nine lines of ten aliases each expand to a billion values, which messages and hashes would write out.
    """
    if isinstance(node, yaml.ScalarNode) or node is None:
        return 1
    if id(node) not in counted:
        counted[id(node)] = _MOST_VALUES  # until the count is known
        inner = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        counted[id(node)] = 1 + sum(_require_few(part, counted) for part in inner)
    if counted[id(node)] >= _MOST_VALUES:
        raise ValueError(f"its aliases (&, *) stand for more than {_MOST_VALUES:,} values")
    return counted[id(node)]


def _lines(root: yaml.Node | None, file: Path) -> dict[tuple[str, ...], int]:
    """The line of each key, by its path.

    Raises:
        ConfigError: a key is given twice, which YAML libraries accept, using the last one; or a number is one of YAML 1.1 alone.
    """
    lines: dict[tuple[str, ...], int] = {}
    errors: list[ConfigError] = []
    for path, line, value in _keys(root, ()):
        if path in lines:
            errors.append(ConfigError(f"{'.'.join(path)} is set twice", where=f"{file}:{line}", name="set_twice"))
        if (
            isinstance(value, yaml.ScalarNode)
            and value.tag.endswith((":int", ":float"))
            and _MISREAD.match(value.value)
        ):
            message = f"{'.'.join(path)} is {value.value}, which YAML reads as {yaml.safe_load(value.value)}"
            hint = "write a number without leading zeros and colons, or a text in quotes"
            errors.append(ConfigError(message, where=f"{file}:{line}", hint=hint, name="wrong_type"))
        lines[path] = line
    if errors:
        raise combined(errors)
    return lines


_MISREAD = re.compile(r"[-+]?(?:0[0-7_]+$|[\d_]+:)")
"""Numbers to the base 8 (010) and to the base 60 (1:30)."""


def _keys(node: yaml.Node | None, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            key_path = (*path, str(key.value))
            yield key_path, key.start_mark.line + 1, value
            yield from _keys(value, key_path)
