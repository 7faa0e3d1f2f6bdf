"""docs/bases.md: the bases that were tried."""

from __future__ import annotations

import json
from typing import Any

from scripts.figures.results import ROOT, accuracy, load, render

RECIPE = ROOT / "cot_unsloth" / "assets" / "tiny-base" / "pretrain.json"


def bases() -> str:
    """Every base: its size, training texts and cost, and what it reaches before and after fine-tuning."""
    rows = [
        [
            base["name"],
            f"{base['layers']} × {base['width']}, {base['parameters'] / 1e6:.2f}M",
            base["diet"],
            f"{base['tokens'] / 1e6:.1f}M",
            base["made_with"],
            accuracy(base["base_direct"]),
            accuracy(base["tuned"]),
        ]
        for base in (*load("bases.json")["bases"], _shipped())
    ]
    return render("bases", rows=rows)


def _shipped() -> dict[str, Any]:
    pretraining = json.loads(RECIPE.read_text(encoding="utf-8"))
    recipe, arms = pretraining["stages"][0]["recipe"], load("demo.json")["runs"][0]["arms"]
    return {
        "name": "**shipped**",
        "layers": recipe["num_hidden_layers"],
        "width": recipe["hidden_size"],
        "parameters": pretraining["parameters"],
        "diet": "the same, then more lines of chains; a solution restates its start",
        "tokens": sum(stage["steps"] * stage["recipe"]["tokens_per_step"] for stage in pretraining["stages"]),
        "made_with": "as the two stages, and a third",
        "base_direct": arms["base_direct"],
        "tuned": arms["tuned"],
    }
