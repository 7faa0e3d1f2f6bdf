"""docs/evaluation.md: accuracy against tokens, at test time and in training; what reflections do."""

from __future__ import annotations

from typing import Any

from scripts.figures.results import accuracy, load, render, share

MEASURES = {
    ("reflection", "first"): "right at the first answer",
    ("reflection", "final"): "right at the final answer",
    ("reflection", "repair_rate"): "wrong → right",
    ("reflection", "corruption_rate"): "right → wrong",
    ("reflection", "only_confirm"): "reflections that only confirm",
    ("reflection", "alarm_precision"): "reflections that were needed",
    ("reflection", "alarm_recall"): "wrong steps that were detected",
    ("aims", "decomposition"): "decomposition",
    ("aims", "sequential_reasoning"): "sequential reasoning",
    ("aims", "transparency"): "transparency",
}


def test_time() -> str:
    """Countdown: one chain with more tokens, against independent chains."""
    evidence = load("evidence.json")
    result, cool = evidence["countdown"], evidence["countdown_cool"]
    curves = result["test_time"]
    limit = next(iter(curves["parallel"]))
    sequential = [
        [f"one chain, cut at {row['rung']}", f"{row['tokens']:.0f}", accuracy(row)] for row in curves["sequential"]
    ]
    parallel = [
        [f"{label} of {row['k']}, each cut at {limit}", f"{row['tokens']:.0f}", accuracy(row[key])]
        for row in curves["parallel"][limit]
        for key, label in (("majority", "majority"), ("pass", "any"))
    ]
    tries = curves["by_tries"]["countdown"]
    by_tries = [
        [f"one chain, right within {row['tries']} {_tries(row['tries'])}", f"{row['tokens']:.0f}", accuracy(row)]
        for row in tries
    ]
    return render(
        "test_time",
        result=result,
        command=_command(result),
        cool=cool,
        rows=[*sequential, *parallel, *by_tries],
        most_tries=tries[-1]["tries"],
        gain=_gain_by_tries(result),
        cool_gain=_gain_by_tries(cool),
        s1=curves["s1"],
    )


def _command(result: Any) -> str:
    """How to measure a result again; those of the time when curves were a flag of `evaluate` recorded that."""
    command = str(result["command"])
    return command.replace(" evaluate ", " curves ", 1).replace(" --curves", "") if " --curves" in command else command


def _tries(count: int) -> str:
    return "try" if count == 1 else "tries"


def _gain_by_tries(result: Any) -> float:
    """Points gained from one try to the most tries."""
    tries = result["test_time"]["by_tries"]["countdown"]
    return float(100 * (tries[-1]["accuracy"] - tries[0]["accuracy"]))


def train_time() -> str:
    """All tasks: accuracy at checkpoints, over the seeds."""
    result = load("evidence.json")["training"]
    curves = result["train_time"]
    rows = [
        [
            str(mean["step"]),
            f"{mean['training_tokens']:,.0f}",
            accuracy(mean),
            *(f"{run[index]['accuracy']:.1%}" for run in curves["runs"].values()),
        ]
        for index, mean in enumerate(curves["mean"])
    ]
    return render(
        "train_time",
        result=result,
        command=_command(result),
        rows=rows,
        seeds=[f"seed {seed}" for seed in result["train_seeds"]],
    )


def reflecting() -> str:
    """Chains: what reflections do, with and without injected errors."""
    result = load("evidence.json")["chains"]
    clean, injected = result["as_written"], result["under_errors"]
    rows = [
        [label, _measured(clean[group][key]), _measured(injected[group][key])]
        for (group, key), label in MEASURES.items()
    ]
    gains = [f"{100 * arm['aims']['self_correction']['share']:+.1f}" for arm in (clean, injected)]
    rows.append(["self-correction, points", *gains])
    rows.append(["right in the end", f"{clean['accuracy']:.1%}", _measured(injected["accuracy"])])
    one = result["one_step_wrong"]
    return render(
        "reflecting", result=result, rows=rows, one=_measured(one["accuracy"]), one_detected=_measured(one["heeded"])
    )


def _measured(cell: Any) -> str:
    return "none" if cell["share"] is None else f"{share(cell['share'], cell['ci95'])} of {cell['of']}"
