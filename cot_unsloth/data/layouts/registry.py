"""The known layouts, as `config.choices` lists them. To add one, write its file in this folder and add one line there."""

from __future__ import annotations

from cot_unsloth.config import choices
from cot_unsloth.data.layouts.base import Layout


def _load(name: str, path: str) -> Layout:
    layout = choices.import_object(f"cot_unsloth.data.layouts.{path}")
    assert isinstance(layout, Layout), path
    assert layout.name == name, f"{path} is named {layout.name}, and registered as {name}"
    return layout


BY_NAME: dict[str, Layout] = {name: _load(name, path) for name, path in choices.LAYOUTS.items()}
"""Layouts by their name in `--data-format`, in the order in which they are tried."""
LAYOUTS: tuple[Layout, ...] = tuple(BY_NAME.values())
