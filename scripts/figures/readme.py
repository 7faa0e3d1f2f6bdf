"""README.md: what the demo reaches."""

from __future__ import annotations

from scripts.figures.results import ARMS, accuracies, best_base, columns, first_try, load, paired, render


def demo() -> str:
    """The arms of the first run, and how long `make demo` takes."""
    result = load("demo.json")
    run, *others = result["runs"]
    arms = run["arms"]
    return render(
        "demo",
        result=result,
        run=run,
        others=others,
        columns=["arm", *columns(run), "format valid"],
        rows=[[label, *accuracies(arms[arm]), f"{arms[arm]['format_valid']:.1%}"] for arm, label in ARMS.items()],
        pair=paired(run, best_base(run), "tuned"),
        first_try=first_try(arms["tuned"]),
    )
