"""The default folder of a run: `runs/DATE-MODEL-DATASET`."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

from cot_unsloth.config import RunConfig


def default_run_dir(config: RunConfig) -> Path:
    """`runs/DATE-MODEL-DATASET` in the working directory, with a number where that exists."""
    model = Path(config.model.model_name_or_path).name
    data = config.data.dataset
    if data.startswith(("world:", "gym:")):
        data_name = "-".join(task.split(":")[0] for task in data.partition(":")[2].split(","))[:60]
    else:
        data_name = _data_name(config.data.sources)
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{model}-{data_name}".lower()
    path, number = Path("runs") / stem, 2
    while path.exists():
        path, number = Path("runs") / f"{stem}-{number}", number + 1
    return path


_COMPRESSED = re.compile(r"\.(gz|zst|zstd|bz2|xz)$", re.IGNORECASE)


def _data_name(sources: Sequence[str]) -> str:
    """A short name for files, globs, folders and hub ids.

    >>> _data_name(["data/rows.jsonl.gz"]), _data_name(["data/*.jsonl"]), _data_name(["a.json", "b.json", "c.json", "d.json"])
    ('rows', 'data', 'a-and-3-more')
    """
    names = list(dict.fromkeys(filter(None, map(_source_name, sources)))) or ["data"]
    joined = "-".join(names)
    if len(names) > 3 or len(joined) > 60:
        return f"{names[0][:60]}-and-{len(names) - 1}-more" if len(names) > 1 else names[0][:60]
    return joined


def _source_name(source: str) -> str:
    """The name of a file or folder without suffixes; for a glob, its last part that is not only wildcards."""
    path = Path(source).expanduser()
    if any(char in source for char in "*?[") and not path.exists():
        plain = [
            _COMPRESSED.sub("", re.sub(r"\[[^\]]*\]|[*?]", "", part)) for part in path.parts if part not in ("/", "..")
        ]
        stems = [stem for part in plain if (stem := re.sub(r"\.\w+$", "", part).strip("-_. "))]
        return stems[-1] if stems else ""
    if path.is_dir():
        return path.resolve().name
    return Path(_COMPRESSED.sub("", path.name)).stem
