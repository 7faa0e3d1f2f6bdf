"""The usual names of splits, in file names, folders and JSON keys alike."""

from __future__ import annotations

_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def standard_split(name: str) -> str | None:
    """The split that a usual name stands for; None for any other name.

    >>> standard_split("dev"), standard_split("Train"), standard_split("rows")
    ('validation', 'train', None)
    """
    return next((split for split, names in _SPLITS.items() if name.lower() in names), None)


def is_split(name: str, split: str) -> bool:
    """Whether a name is that of a split, or a usual alternative (`dev` for `validation`)."""
    return name == split or (standard_split(name) is not None and standard_split(name) == standard_split(split))
