"""Parses JSON of files from elsewhere: one function, whose only error is ValueError."""

from __future__ import annotations

import json
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
