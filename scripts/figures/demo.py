"""docs/demo.md: every run of the demo, longer solutions, recovery from injected errors, answers to read."""

from __future__ import annotations

from typing import Any

from cot_unsloth.core import trace
from cot_unsloth.core.statistics import wilson
from cot_unsloth.tasks import parse_spec
from scripts.figures.results import accuracies, best_base, columns, first_try, load, render, share


def seeds() -> str:
    """Every run of the demo, with its seeds; then the harder problems, if they were measured."""
    result = load("demo.json")
    parts = [("The demo's problems", result["runs"])]
    if "harder" in result:
        parts.append(("Harder problems", [result["harder"]]))
    return render(
        "seeds",
        result=result,
        parts=[
            {
                "title": title,
                "run": runs[0],
                "columns": [
                    "seeds, training / problems",
                    "arm",
                    *columns(runs[0]),
                    "countdown, first try",
                    "format valid",
                ],
                "rows": [row for run in runs for row in _base_and_tuned(run)],
            }
            for title, runs in parts
        ],
    )


def _base_and_tuned(run: Any) -> list[list[str]]:
    rows = []
    for label, name in (("best base arm", best_base(run)), ("tuned", "tuned")):
        arm = run["arms"][name]
        seeds_of_run = f"{run['seed']} / {run['eval_seed']}"
        rows.append([seeds_of_run, label, *accuracies(arm), first_try(arm), f"{arm['format_valid']:.1%}"])
    return rows


def pooled(task: str) -> dict[int, dict[str, tuple[int, int]]]:
    """By number of steps, the right answers and problems of each arm, summed over all runs of the demo."""
    totals: dict[int, dict[str, tuple[int, int]]] = {}
    for run in load("demo.json")["runs"]:
        for steps, arms in run["by_length"][task].items():
            for arm, cell in arms.items():
                right, n = totals.setdefault(int(steps), {}).get(arm, (0, 0))
                totals[int(steps)][arm] = (right + round(cell["accuracy"] * cell["n"]), n + cell["n"])
    return totals


def trained_steps() -> dict[str, tuple[int, int]]:
    """Fewest and most steps of each task in the demo's training data."""
    return {family.task.name: family.steps for family in parse_spec(load("demo.json")["runs"][0]["dataset"])}


def lengths() -> str:
    """Accuracy on solutions longer than those trained on."""
    runs, trained = load("demo.json")["runs"], trained_steps()
    tasks = []
    for task in runs[0]["by_length"]:
        totals = pooled(task)
        unsolved = (steps for steps, arms in totals.items() if arms["tuned"][0] / arms["tuned"][1] < 0.9)
        tasks.append(
            {
                "name": task,
                "low": trained[task][0],
                "high": trained[task][1],
                "rows": [[str(steps), *_both_arms(arms)] for steps, arms in totals.items()],
                "unsolved": next(unsolved, None),
            }
        )
    n = next(iter(pooled("chains").values()))["tuned"][1]
    return render("lengths", tasks=tasks, n=n, runs=runs)


def _both_arms(arms: dict[str, tuple[int, int]]) -> list[str]:
    return [share(arms[arm][0] / arms[arm][1], wilson(*arms[arm])) for arm in ("base_direct", "tuned")]


def recovery() -> str:
    """Accuracy with and without injected errors, by what the model was trained on."""
    result = load("recovery.json")
    rows = [
        [label, str(run["seed"]), *(share(cell["share"], cell["ci95"]) for cell in _recovery_cells(run[arm]))]
        for arm, label in (("without", "clean steps"), ("with reflections", "steps with corrected errors"))
        for run in result["runs"]
    ]
    tokens = [run[arm]["tokens"] for run in result["runs"] for arm in ("without", "with reflections")]
    return render("recovery", result=result, rows=rows, fewest_tokens=min(tokens), most_tokens=max(tokens))


def _recovery_cells(arm: Any) -> list[Any]:
    undisturbed, injected = arm["undisturbed"], arm["injected"]
    return [undisturbed["accuracy"], injected["accuracy"], injected["mended"], undisturbed["false_alarms"]]


def traces() -> str:
    """Answers of the tuned model: one per task, and one with injected errors."""
    shown = {task: answer for task, answer in load("demo.json")["runs"][0]["shown"].items() if task != "chains"}
    injected = load("recovery.json")["runs"][0]["with reflections"]["shown"]
    thoughts = [part.text for part in trace.parse(injected["text"]).parts if part.kind == "think"]
    step_numbers = [line.partition(")")[0] for thought in thoughts for line in thought.splitlines()]
    return render(
        "traces",
        answers=sorted(shown.items(), reverse=True),
        injected=injected,
        injected_steps=", ".join(f"{step_numbers[index - 1]})" for index in injected["made_wrong"]),
    )
