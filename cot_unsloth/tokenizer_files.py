"""The files of a tokenizer: which they are, where a model keeps them, and how they go out beside trained weights.

A tokenizer goes out as it came: its files are copied byte for byte, and only the chat template is written anew.
Saved again by transformers 5 they would name classes and fields that 4.57, and whatever is built on it, cannot read.
Also tells what differs between the tokenizer that lies beside an adapter and its base's.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VOCABULARY = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt", "tekken.json")
"""A folder with one of these holds a tokenizer."""
SETTINGS = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
FILES = (*VOCABULARY, "merges.txt", SETTINGS, "special_tokens_map.json", "added_tokens.json")
"""All that makes a tokenizer but its template."""
_NEWER_CLASS, _OLDER_CLASS = "TokenizersBackend", "PreTrainedTokenizerFast"
"""What transformers 5 and 4 call a tokenizer that is all in tokenizer.json. Version 5 reads both."""


def holds_tokenizer(folder: Path) -> bool:
    """Whether a folder has a vocabulary, beside its settings."""
    return any((folder / name).is_file() for name in VOCABULARY)


def folder_of(name: str, revision: str | None) -> Path | None:
    """Where the files of a model's tokenizer lie: its folder, or the cache of a hub once it was loaded; None where it is not there."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        found = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except Exception:  # faults of the cache share no base class
        return None
    return found if holds_tokenizer(found) else None


def are_alike(folder: Path, other: Path) -> bool:
    """Whether two folders hold the same files of a tokenizer, byte for byte; tells in no time what loading both would."""
    return all(_bytes(folder / name) == _bytes(other / name) for name in FILES)


def _bytes(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


def write(tokenizer: Any, source: Path | None, template: str, out: Path) -> None:
    """Write a tokenizer with a template: the files that it was read from, or what transformers makes of it without them.

    Args:
        tokenizer: as it was loaded.
        source: the folder that it was loaded from, where it is known.
        template: Jinja; goes into a file of its own, and where the files have it in `tokenizer_config.json` in its place
            there too, for readers that look only there.
        out: an existing folder.
    """
    if source is None:
        tokenizer.save_pretrained(out)
    else:
        for name in FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, out / name)
    (out / TEMPLATE).write_text(template, encoding="utf-8", newline="\n")
    _set_template(out / SETTINGS, template)


def _set_template(settings: Path, template: str) -> None:
    tree = read_settings(settings.parent)
    if tree.get("chat_template") not in (None, template):
        tree["chat_template"] = template
        settings.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def read_settings(folder: Path) -> dict[str, Any]:
    """What `tokenizer_config.json` holds; nothing where it is not there or no JSON object."""
    try:
        tree = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def make_readable_by_4(folder: Path) -> None:
    """Name in a tokenizer's settings what transformers 5 wrote there as 4.57 knows it; 5 reads that too."""
    tree = read_settings(folder)
    extra = tree.get("extra_special_tokens")
    if tree.get("tokenizer_class") != _NEWER_CLASS and not isinstance(extra, list):
        return
    if tree.get("tokenizer_class") == _NEWER_CLASS:
        tree["tokenizer_class"] = _OLDER_CLASS
    if isinstance(extra, list):
        del tree["extra_special_tokens"]
        tree["additional_special_tokens"] = extra
    for name in ("backend", "is_local", "local_files_only"):
        tree.pop(name, None)
    (folder / SETTINGS).write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def needs_transformers_5(folder: Path) -> bool:
    """Whether a tokenizer's settings hold what transformers before 5 cannot read."""
    tree = read_settings(folder)
    return tree.get("tokenizer_class") == _NEWER_CLASS or isinstance(tree.get("extra_special_tokens"), list)


def differences(own: Any, base: Any) -> Iterator[str]:
    """What is different in the tokenizer beside an adapter from its base's, a line each; nothing where they are alike."""
    ours, theirs = own.get_vocab(), base.get_vocab()
    added = sorted((token for token in ours if token not in theirs), key=ours.__getitem__)
    lacking = sorted((token for token in theirs if token not in ours), key=theirs.__getitem__)
    moved = sorted((token for token in ours if theirs.get(token, ours[token]) != ours[token]), key=ours.__getitem__)
    for tokens, what in (
        (added, "that its base's tokenizer has not"),
        (lacking, "fewer than its base's tokenizer"),
        (moved, "under another id than its base's tokenizer"),
    ):
        if tokens:
            shown = ", ".join(map(repr, tokens[:3])) + ", …" * (len(tokens) > 3)
            yield f"it has {len(tokens)} token{'s' * (len(tokens) != 1)} {what} ({shown})"
    for name in ("eos_token", "bos_token"):
        if getattr(own, name) != getattr(base, name):
            yield f"its {name} is {getattr(own, name)!r}, its base's {getattr(base, name)!r}"
    if not (added or lacking or moved) and _splitting(own) != _splitting(base):
        yield "it splits text in another way than its base's tokenizer"


def _splitting(tokenizer: Any) -> Any:
    """All that a fast tokenizer does to a text; the samples of one that is not fast."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [tokenizer(text)["input_ids"] for text in ("a b", " 12 345\n\n", "café, naïve 🙂")]
    tree = json.loads(backend.to_str())
    return {name: value for name, value in tree.items() if name not in ("truncation", "padding", "version")}
