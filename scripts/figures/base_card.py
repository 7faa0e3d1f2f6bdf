"""The embedded base's model card: what it can do before any fine-tuning."""

from __future__ import annotations

from typing import Any

from scripts.figures.results import load, render


def skills() -> str:
    """Problems asked directly, and each skill that it was taught."""
    result = load("base.json")
    return render("skills", result=result, direct=_rows(result["direct"]), skills=_rows(result["skills"]))


def _rows(cells: Any) -> list[list[str]]:
    return [
        [
            name.replace(" 1 steps", " 1 step"),
            f"{cell['accuracy']:.1%}",
            "–".join(f"{100 * bound:.0f}" for bound in cell["ci95"]),
            str(cell["n"]),
        ]
        for name, cell in cells.items()
    ]
