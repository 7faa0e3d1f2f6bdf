"""A cache of rendered rows, shared by `check`, `train` and `train --resume`, so that a data set is rendered only once.

The key of an entry is a hash of everything that decides ids, labels and rejects: the rows as they were read, the
settings of the data, tokenizer, template, stop tokens and date, this package's modules that render, and the versions of
the libraries that they call.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import cot_unsloth
from cot_unsloth.core.samples import Samples
from cot_unsloth.core.types import Example, Reject
from cot_unsloth.prompts.render import Rendered, Renderer
from cot_unsloth.storage import cache, environment
from cot_unsloth.storage.stored_rows import rows_without

KIND = "rendered"
FEWEST_ROWS = 2000
"""Smallest number of rows to cache: fewer are rendered in well under a second, and a look-up takes about a quarter of one."""
_DECIDING = ("core/types.py", "core/samples.py", "core/trace", "prompts")
"""The modules whose code determines how a row is rendered."""


class _Facts(TypedDict):
    """What is stored with the samples."""

    rejected: list[int]
    """Indices of the rejected rows."""
    rejects: list[tuple[str, str, str, str]]
    """The fields of their Rejects."""


def rendered(renderer: Renderer, rows: Sequence[Example], advance: Callable[[int], None]) -> Rendered:
    """Like `renderer.samples`, but from the cache if it holds these rows under these settings."""
    folder = cache.folder(KIND) if len(rows) >= FEWEST_ROWS else None
    key = _key(renderer, rows) if folder else None
    if folder is None or key is None:
        return renderer.samples(rows, advance)
    entry = cache.Entry(folder, key)
    kept = entry.read()
    found = _read(*kept, rows) if kept else None
    if found is None:
        return _render_into(entry, renderer, rows, advance)
    advance(len(rows))
    return found


def _render_into(
    entry: cache.Entry, renderer: Renderer, rows: Sequence[Example], advance: Callable[[int], None]
) -> Rendered:
    file = entry.begin(".arrow")
    if file is None:
        return renderer.samples(rows, advance)
    try:
        made = renderer.samples(rows, advance, into=file)
    except OSError:  # the disk is full
        file.unlink(missing_ok=True)
        return renderer.samples(rows)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    facts: _Facts = {
        "rejected": list(made.rejected),
        "rejects": [dataclasses.astuple(reject) for reject in made.rejects],
    }
    entry.finish(file, facts)
    return made


def _read(file: Path, facts: _Facts, rows: Sequence[Example]) -> Rendered | None:
    """The content of an entry; None if its facts are damaged: only the file with the samples has a digest."""
    try:
        rejected, samples = array("Q", facts["rejected"]), Samples.read(file)
        rejects = tuple(Reject(*reject) for reject in facts["rejects"])
        kept = rows_without(rows, rejected)
    except (OSError, ValueError, LookupError, TypeError, OverflowError):
        return None
    whole = len(rejects) == len(rejected) and len(samples) == len(kept)
    whole = whole and all(id_ == row.id for id_, row in zip(samples.ids, kept, strict=True))
    return Rendered(kept, samples, rejects, rejected) if whole else None


def _key(renderer: Renderer, rows: Iterable[Example]) -> str | None:
    """The hash of everything that decides the result; None if it cannot be known for this tokenizer."""
    tokenizer = renderer.chat.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    settings = {
        "versions": environment.versions(),
        "code": _code(),
        "data": renderer.data.model_dump(mode="json", exclude={"dataset_num_proc"}),
        "class": type(tokenizer).__name__,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "template": str(tokenizer.chat_template),
        "date": renderer.chat.date_string,
        "stops": sorted(renderer.chat.stops),
    }
    return environment.hash_of(_texts(settings, backend, rows))


def _texts(settings: Mapping[str, object], backend: Any, rows: Iterable[Example]) -> Iterator[str]:
    yield json.dumps(settings, sort_keys=True)
    yield backend.to_str()
    for row in rows:
        parts = [(part.kind, part.text, part.injected) for part in row.trace.parts]
        history = row.history, row.history_loss
        yield json.dumps((row.id, row.where, row.system, *history, row.question, parts, row.trace.output))


@functools.cache
def _code() -> str:
    """A hash of the modules that determine how a row is rendered."""
    root = Path(cot_unsloth.__file__).parent
    named = [root / name for name in _DECIDING]
    files = sorted(file for path in named for file in ([path] if path.is_file() else path.rglob("*.py")))
    digest = hashlib.sha256(cot_unsloth.__version__.encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()
