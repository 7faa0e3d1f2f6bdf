"""Fits tables into the terminal's width: figures stay whole, phrases are wrapped, and names are cut in the middle."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

_UNBROKEN = 13
"""Columns whose longest word is no longer than this are not names: dates, states, shares."""
_BETWEEN = 2
"""Characters between two columns."""
_NAME = 16
"""Preferred minimum width of a name: phrases are wrapped first."""
_FIGURES = re.compile(r"(?:[\W\d_]| to )*")
"""What has no letters of any script: 7.0% → 86.0%, or 44.9 to 53.2."""


def is_whole(cells: Sequence[str]) -> bool:
    """Whether a column is never wrapped: short cells, and figures."""
    return all(len(line) <= _UNBROKEN or _FIGURES.fullmatch(line) for cell in cells for line in cell.splitlines())


def fitted(rows: Sequence[Sequence[str]], width: int) -> list[list[str]]:
    """The rows of a table, its head first, so that it fits a width and no word is broken.

    Args:
        rows: of equal length.
        width: columns of the terminal.
    """
    columns = [list(column) for column in zip(*rows, strict=True)]
    natural = [_longest(column) for column in columns]
    room = width - _BETWEEN * (len(columns) - 1)
    if sum(natural) <= room:
        return [list(row) for row in rows]
    names = [at for at, column in enumerate(columns) if not is_whole(column) and _longest_word(column) > _UNBROKEN]
    phrases = [at for at, column in enumerate(columns) if not is_whole(column) and at not in names]
    room -= sum(need for at, need in enumerate(natural) if at not in names)
    if sum(min(natural[at], _NAME) for at in names) > room:
        for at in phrases:
            columns[at] = [_wrapped(cell, _longest_word(columns[at])) for cell in columns[at]]
            room += natural[at] - _longest(columns[at])
    shares = _shares({at: natural[at] for at in names}, room)
    heads = _short_words([columns[at][0] for at in names], min(shares.values(), default=width))
    for at, head in zip(names, heads, strict=True):
        long = len(columns[at][0]) > shares[at]
        columns[at] = [head if long else columns[at][0], *cut(columns[at][1:], shares[at])]
    return [list(row) for row in zip(*columns, strict=True)]


def _longest(cells: Sequence[str]) -> int:
    return max((len(line) for cell in cells for line in cell.splitlines()), default=0)


def _longest_word(cells: Sequence[str]) -> int:
    return max((len(word) for cell in cells for word in cell.split()), default=0)


def _shares(natural: dict[int, int], room: int) -> dict[int, int]:
    """The widths of columns of names: what they need, or else a share of the room; the first column gets two shares."""
    open_, widths = dict(natural), dict[int, int]()
    while open_:
        first = min(natural)
        parts = len(open_) + (first in open_)
        shares = {at: max(1, room // parts * (1 + (at == first))) for at in open_}
        enough = {at: need for at, need in open_.items() if need <= shares[at]}
        if not enough:
            return {**widths, **shares}
        widths |= enough
        room -= sum(enough.values())
        open_ = {at: need for at, need in open_.items() if at not in enough}
    return widths


def cut(cells: Sequence[str], width: int) -> list[str]:
    """Cells of at most a width: of two names with an arrow between them, each has half, or a line of its own."""
    lines = [line for cell in cells for line in cell.splitlines() if len(line) > width]
    words = max((len(line.split()) for line in lines), default=1)
    half = (width - 3) // 2
    limit = width if words == 1 else half if half >= _UNBROKEN else width - 2
    return [_wrapped(cell, width) for cell in _short_words(cells, limit)]


def _short_words(cells: Sequence[str], width: int) -> list[str]:
    """Cells whose words have at most a width."""
    words = list(dict.fromkeys(word for cell in cells for word in cell.split() if len(word) > width))
    short = dict(zip(words, shortened(words, width), strict=True))
    return [re.sub(r"\S+", lambda word: short.get(word[0], word[0]), cell) for cell in cells]


def _wrapped(cell: str, width: int) -> str:
    lines = (textwrap.wrap(line, max(1, width), break_on_hyphens=False) for line in cell.splitlines())
    return "\n".join(part for line in lines for part in line)


def shortened(names: Sequence[str], width: int) -> list[str]:
    """Names of at most a width, cut in the middle with …, where they stay distinct if they can.

    >>> shortened(["20261127-152910-tiny-base-chains"], 16)
    ['20261127…-chains']
    >>> shortened(["20261127-152910-tiny-base-chains", "20261127-153055-tiny-base-chains"], 20)
    ['20261127-152…-chains', '20261127-153…-chains']
    >>> shortened(["20261127-152910-tiny-base-chains", "20261127-153055-tiny-base-chains"], 12)
    ['…15291…hains', '…15305…hains']
    """
    shared = _shared(names)
    # Names that differ in the middle alone are cut before it, too.
    cuts = [*_cuts(names, width), *_cuts([f"…{name[shared:]}" for name in names], width)]
    return max(
        cuts, key=lambda cut: len(set(cut)), default=[name[: max(width, 1)] for name in names]
    )  # the first of the best


def _shared(names: Sequence[str]) -> int:
    """Characters that all names begin with, up to a separator."""
    first, last = min(names, default=""), max(names, default="")
    differs = next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    return max((at + 1 for at, letter in enumerate(first[:differs]) if letter in "-_/."), default=0)


def _cuts(names: Sequence[str], width: int) -> list[list[str]]:
    """All names cut after as many characters, in each way that leaves some at both ends; the most balanced first."""
    least = min(4, (width - 1) // 2)
    heads = sorted(range(max(least, 1), width - least), key=lambda head: abs(head - width // 2))
    return [[_without_middle(name, head, width) for name in names] for head in heads]


def _without_middle(name: str, head: int, width: int) -> str:
    return name if len(name) <= width else f"{name[:head]}…{name[len(name) - (width - 1 - head) :]}"
