"""Committed results, and how their values are written in a table or a sentence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from cot_unsloth.core import arm_names
from cot_unsloth.tasks import parse_spec

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "bench" / "results"
ARMS = {
    **{arm: arm_names.title(arm) for arm in ("base_direct", "base_cot", "base_tags")},
    "tuned": f"**{arm_names.title('tuned')}**",
    "gguf": f"{arm_names.title('gguf')} (Q8_0)",
}
"""Every arm of the demo, and its label in a table."""


def load(name: str) -> Any:
    """A result by its file name under bench/results."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def share(value: float, ci95: Sequence[float]) -> str:
    """A share and its 95% interval in percent.

    >>> share(0.7614, (0.732, 0.788))
    '76.1% [73, 79]'
    """
    return f"{value:.1%} [{100 * ci95[0]:.0f}, {100 * ci95[1]:.0f}]"


def accuracy(cell: Any) -> str:
    """The accuracy of an arm, or of one row of a result, with its interval."""
    return share(cell["accuracy"], cell["ci95"])


def accuracies(arm: Any) -> list[str]:
    """An arm's accuracy on all problems, then on each task."""
    return [accuracy(cell) for cell in (arm, *arm["by_task"].values())]


def first_try(arm: Any) -> str:
    """Countdown problems that an arm solved without a retry."""
    return accuracy(arm["by_task"]["countdown"]["first_try"])


def hardware(environment: Any) -> str:
    """Processor and versions that a result was measured on."""
    versions = ", ".join(f"{name} {environment['versions'][name]}" for name in ("torch", "transformers", "trl"))
    return f"{environment['cpu_count']} cores of an {environment['cpu']} ({versions})"


def best_base(run: Any) -> str:
    """The base arm with the highest accuracy; of equals the first."""
    return max((arm for arm in run["arms"] if arm.startswith("base_")), key=lambda arm: run["arms"][arm]["accuracy"])


def paired(run: Any, before: str, after: str) -> Any:
    """The comparison of two arms on the same problems."""
    return next(pair for pair in run["paired"] if (pair["before"], pair["after"]) == (before, after))


def columns(run: Any) -> list[str]:
    """Headings of the columns that `accuracies` fills."""
    steps = {family.task.name: "–".join(map(str, sorted(set(family.steps)))) for family in parse_spec(run["dataset"])}
    return ["all", *(f"{task}, {steps[task]} steps" for task in run["arms"]["tuned"]["by_task"])]


def smallest_task(run: Any) -> int:
    """Problems of the task with the fewest."""
    return min(cell["n"] for cell in run["arms"]["tuned"]["by_task"].values())


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (headings, ["---"] * len(headings), *rows))


_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    autoescape=False,  # the pages are Markdown, the values our own
)
_TEMPLATES.filters |= {
    "percent": "{:.1%}".format,
    "points": lambda fraction: f"{100 * fraction:+.1f}",
    "thousands": "{:,.0f}".format,
    "hardware": hardware,
    "smallest_task": smallest_task,
}
_TEMPLATES.globals["table"] = table


def render(block: str, **values: Any) -> str:
    """The text of a block from its template.

    Raises:
        jinja2.UndefinedError: the template uses a value that was not given.
    """
    return _TEMPLATES.get_template(f"{block}.md.j2").render(**values).strip()
