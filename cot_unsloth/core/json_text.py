"""Parses JSON of files from elsewhere, with ValueError as the only error, and finds names that are given twice."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON, holds a number of more digits than Python reads, or is nested too deep, for which
            `json.loads` raises a RecursionError.

    >>> parse_json("[1]")
    [1]
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its lists and objects are nested too deep") from error


def first_repeated(names: Iterable[str]) -> str | None:
    """The first name that comes a second time; None if all are distinct. Linear: a file may have a million columns.

    Python's JSON parser keeps the last value of a key that an object names twice, without a word.

    >>> first_repeated(["a", "b", "a", "b"])
    'a'
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
