"""A row as a reader yields it, before any layout has read it."""

from __future__ import annotations

import json
from typing import NamedTuple

from cot_unsloth.core.types import Reject

_MAX_ROW_CHARACTERS = 2000


class SourceRow(NamedTuple):
    """One row of a data set, and where it is."""

    where: str
    """`file:line` of a text file, `file#index` of a table or list; from 1 and from 0."""
    row: object
    """The row: an object in most files, but JSON allows anything. A Reject if the reader could not read it."""


def shorten(row: object) -> str:
    """A row as text, cut to the 2,000 characters that a Reject keeps."""
    text = row if isinstance(row, str) else json.dumps(row, ensure_ascii=False, default=str)
    # Half a surrogate pair is legal in JSON and cannot be written as UTF-8.
    return text[:_MAX_ROW_CHARACTERS].encode("utf-8", "backslashreplace").decode()


def rejected(where: str, reason: str, detail: str, row: object) -> SourceRow:
    """A row that its reader could not read."""
    return SourceRow(where, Reject(where, reason, detail, shorten(row)))
