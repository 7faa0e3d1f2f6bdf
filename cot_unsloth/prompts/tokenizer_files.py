"""The files of a tokenizer: which they are, where a model keeps them, and how they are exported with trained weights.

A tokenizer is exported unchanged: its files are copied byte for byte, and only the chat template is written again.
If transformers 5 saved them, they would name classes and fields that 4.57, and programs built on it, cannot read.
Also reports the differences between the tokenizer in an adapter's folder and its base's.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cot_unsloth.core.json_text import parse_json

VOCABULARY = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt", "tekken.json")
"""A folder with one of these contains a tokenizer."""
SETTINGS = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
FILES = (*VOCABULARY, "merges.txt", SETTINGS, "special_tokens_map.json", "added_tokens.json")
"""All files of a tokenizer except its template."""
_NEWER_CLASS, _OLDER_CLASS = "TokenizersBackend", "PreTrainedTokenizerFast"
"""Names in transformers 5 and 4 of a tokenizer that is entirely in tokenizer.json. Version 5 reads both."""


def holds_tokenizer(folder: Path) -> bool:
    """Whether a folder has a vocabulary, and not only settings."""
    return any((folder / name).is_file() for name in VOCABULARY)


def folder_of(name: str, revision: str | None) -> Path | None:
    """Where the files of a model's tokenizer are: its folder, or the hub's cache once it was loaded; None if not there."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except Exception:  # errors of the cache have no common base class
        return None
    return folder if holds_tokenizer(folder) else None


def are_alike(folder: Path, other: Path) -> bool:
    """Whether the tokenizer files of two folders are identical, byte for byte; much faster than loading both."""
    return all(_bytes(folder / name) == _bytes(other / name) for name in FILES)


def _bytes(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


def write(tokenizer: Any, source: Path | None, template: str, out: Path) -> None:
    """Write a tokenizer with a template: the files that it was read from, or without them what transformers saves.

    Args:
        tokenizer: as it was loaded.
        source: the folder that it was loaded from, if known.
        template: Jinja; written to its own file. It also replaces a template in `tokenizer_config.json`, for programs
            that read only that.
        out: an existing folder.
    """
    if source is None:
        tokenizer.save_pretrained(out)
    else:
        for name in FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, out / name)
    # On Windows, text mode would write \r\n, and the carriage returns would be tokens of every prompt.
    (out / TEMPLATE).write_text(template, encoding="utf-8", newline="\n")
    _set_template(out / SETTINGS, template)


def _set_template(settings: Path, template: str) -> None:
    tree = read_settings(settings.parent)
    if tree.get("chat_template") not in (None, template):
        tree["chat_template"] = template
        settings.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def read_settings(folder: Path) -> dict[str, object]:
    """The contents of `tokenizer_config.json`; empty if it is missing or not a JSON object."""
    try:
        tree = parse_json((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def make_readable_by_4(folder: Path) -> None:
    """Rename what transformers 5 wrote in a tokenizer's settings to what 4.57 knows; 5 reads that too."""
    tree = read_settings(folder)
    extra = tree.get("extra_special_tokens")
    if tree.get("tokenizer_class") != _NEWER_CLASS and not isinstance(extra, list):
        return
    if tree.get("tokenizer_class") == _NEWER_CLASS:
        tree["tokenizer_class"] = _OLDER_CLASS
    # 4.57 expects an object of name and token there, and fails on a list.
    if isinstance(extra, list):
        del tree["extra_special_tokens"]
        tree["additional_special_tokens"] = extra
    for name in ("backend", "is_local", "local_files_only"):
        tree.pop(name, None)
    (folder / SETTINGS).write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def needs_transformers_5(folder: Path) -> bool:
    """Whether a tokenizer's settings contain something that transformers before 5 cannot read."""
    tree = read_settings(folder)
    return tree.get("tokenizer_class") == _NEWER_CLASS or isinstance(tree.get("extra_special_tokens"), list)


def differences(own: Any, base: Any) -> Iterator[str]:
    """How the tokenizer in an adapter's folder differs from its base's, one line each; empty if they are alike."""
    ours, theirs = own.get_vocab(), base.get_vocab()
    added = sorted((token for token in ours if token not in theirs), key=ours.__getitem__)
    lacking = sorted((token for token in theirs if token not in ours), key=theirs.__getitem__)
    moved = sorted((token for token in ours if theirs.get(token, ours[token]) != ours[token]), key=ours.__getitem__)
    for verb, tokens, what in (
        ("has", added, "that its base's tokenizer lacks"),
        ("lacks", lacking, "of its base's tokenizer"),
        ("has", moved, "with another id than in its base's tokenizer"),
    ):
        if tokens:
            token_list = ", ".join(map(repr, tokens[:3])) + ", …" * (len(tokens) > 3)
            yield f"it {verb} {len(tokens)} token{'s' * (len(tokens) != 1)} {what} ({token_list})"
    for name in ("eos_token", "bos_token"):
        if getattr(own, name) != getattr(base, name):
            yield f"its {name} is {getattr(own, name)!r}, its base's {getattr(base, name)!r}"
    if not (added or lacking or moved) and _splitting(own) != _splitting(base):
        yield "it splits text differently from its base's tokenizer"


def _splitting(tokenizer: Any) -> Any:
    """Everything that a fast tokenizer does to text; for a slow one, the ids of some samples."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [tokenizer(text)["input_ids"] for text in ("a b", " 12 345\n\n", "café, naïve 🙂")]
    # Truncation and padding are set by whoever used the tokenizer last, and do not change how text is split.
    tree = parse_json(backend.to_str())
    return {name: value for name, value in tree.items() if name not in ("truncation", "padding", "version")}
