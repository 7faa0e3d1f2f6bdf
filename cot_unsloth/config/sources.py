"""Names of data sets, as `data.dataset` gives them: files, globs, folders, hub ids and tasks."""

from __future__ import annotations

import re
from pathlib import Path

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_DATA_FILE = re.compile(r".+\.[a-z]\w*", re.IGNORECASE)
"""A name with a suffix; `data.formats` knows which suffixes can be read."""


def split_sources(dataset: str) -> tuple[str, ...]:
    """Split a text at the commas between names of files, globs, folders and hub ids.

    >>> split_sources("a.jsonl, b.csv.gz"), split_sources("openai/gsm8k"), split_sources("no such, file.jsonl")
    (('a.jsonl', 'b.csv.gz'), ('openai/gsm8k',), ('no such, file.jsonl',))
    """
    # A file whose name has a comma is one file: check the disk before splitting.
    if dataset.startswith(("world:", "gym:")) or "," not in dataset or _exists(dataset):
        return (dataset,)
    parts, names, first = dataset.split(","), [], 0
    while first < len(parts):
        # The longest name that exists wins, so that a file whose name has a comma counts as one.
        joined = ((end, ",".join(parts[first:end]).strip()) for end in range(len(parts), first + 1, -1))
        end, name = next(((end, name) for end, name in joined if _exists(name)), (first + 1, parts[first].strip()))
        names.append(name)
        first = end
    names = [name for name in names if name]
    known = all(_exists(n) or _DATA_FILE.fullmatch(n) or HUB_ID.fullmatch(n) or re.search(r"[*?\[]", n) for n in names)
    return tuple(names) if names and known else (dataset,)


def _exists(name: str) -> bool:
    try:
        return bool(name) and Path(name).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long for a name, a NUL, or ~ of no user
        return False
