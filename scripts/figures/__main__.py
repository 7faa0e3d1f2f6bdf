"""`python -m scripts.figures`: draw every plot and rewrite every page."""

from __future__ import annotations

from scripts.figures.pages import PAGES, filled
from scripts.figures.plots import IMAGES, PLOTS
from scripts.figures.results import ROOT

if __name__ == "__main__":
    for name, (draw, _) in PLOTS.items():
        draw(IMAGES / name)
    for page in PAGES:
        text = filled(page)
        (ROOT / page).write_text(text, encoding="utf-8")
