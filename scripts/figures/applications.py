"""docs/applications.md and the pages of examples/applications: scores of the tiny model, and what it answered."""

from __future__ import annotations

from typing import Any

from scripts.figures.results import ARMS, accuracy, best_base, hardware, load, paired, table


def _result(name: str) -> Any:
    return next(result for result in load("applications.json")["results"] if result["name"] == name)


def applications() -> str:
    """One row per application: the best base arm, the tuned model, its file, and the ten questions."""
    measured = load("applications.json")
    rows = [
        [
            f"[{result['name']}](../examples/applications/{result['name']})",
            f"`{result['dataset']}`",
            accuracy(result["arms"][best_base(result)]),
            accuracy(result["arms"]["tuned"]),
            accuracy(result["arms"]["gguf"]),
            f"{_right(result)} of {len(result['questions'])}",
            f"{result['seconds']['cpu'] / 60:.1f} min",
        ]
        for result in measured["results"]
    ]
    headings = ["application", "problems", "best base arm", "tuned", "its Q8_0 GGUF", "questions to try", "CPU time"]
    first = measured["results"][0]
    note = (
        f"n = {first['n']} held-out problems each (`--eval-seed {first['eval_seed']}`), one training seed, greedy; 95% intervals "
        f"(Wilson). One thread of {hardware(measured['environment'])}. "
        f"[applications.json](../bench/results/applications.json), from `{measured['command']}`."
    )
    return f"{table(headings, rows)}\n\n{note}"


def _right(result: Any) -> int:
    return sum(row["right"] for row in result["questions"])


def _page(name: str) -> str:
    """Scores by number of steps, and the ten questions with the answers of the exported file."""
    result = _result(name)
    best, tuned = best_base(result), result["arms"]["tuned"]
    pair = paired(result, best, "tuned")
    low, high = (100 * bound for bound in pair["ci95"])
    cells = tuned["by_task"][name]["by_steps"].items()
    by_steps = table(
        ["steps", "n", "right"], [[steps, str(cell["n"]), accuracy(cell)] for steps, cell in sorted(cells)]
    )
    scores = (
        f"Tuned: {accuracy(tuned)}; {ARMS[best]}, the best base arm: {accuracy(result['arms'][best])}; "
        f"{100 * pair['difference']:+.1f} points (95% CI {low:.1f} to {high:.1f}), n = {result['n']}, greedy. "
        f"Its GGUF file: {accuracy(result['arms']['gguf'])}, verification {result['verified']}."
    )
    rows = [
        [
            str(number),
            _cell(row["question"]),
            row["answer"],
            _cell(row["output"]) or "(none)",
            "yes" if row["right"] else "no",
        ]
        for number, row in enumerate(result["questions"], start=1)
    ]
    tried = table(["", "question", "right answer", "its answer", "right"], rows)
    return f"{scores}\n\n{by_steps}\n\n{_right(result)} of {len(rows)} questions were answered right:\n\n{tried}"


def _cell(text: str) -> str:
    """A text, which may be a model's, in one cell of a table."""
    text = text.replace("|", "\\|").replace("<", "&lt;").strip()
    return "<br>".join(text[:400].splitlines())


def conversions() -> str:
    """examples/applications/conversions/README.md."""
    return _page("conversions")


def schedules() -> str:
    """examples/applications/schedules/README.md."""
    return _page("schedules")


def invoices() -> str:
    """examples/applications/invoices/README.md."""
    return _page("invoices")
