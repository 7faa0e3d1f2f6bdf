"""The usual names of splits, of files, folders and keys alike."""

from __future__ import annotations

_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def split_called(name: str) -> str | None:
    """The split that a name stands for, if it is one of the usual names.

    >>> split_called("dev"), split_called("Train"), split_called("rows")
    ('validation', 'train', None)
    """
    return next((split for split, names in _SPLITS.items() if name.lower() in names), None)


def is_split(name: str, split: str) -> bool:
    """Whether a name is that of a split, or another name for it."""
    return name == split or (split_called(name) is not None and split_called(name) == split_called(split))
