"""docs/robustness.md: what bench/chaos.py and bench/fuzz.py found."""

from __future__ import annotations

from scripts.figures.results import load, table

KINDS = {
    "kill": "named points",
    "random kills": "random",
    "SIGINT": "signals",
    "SIGTERM": "signals",
    "files of at most": "full disk",
}
COLUMNS = ("named points", "random", "signals", "full disk", "processes ended by force", "failed", "planned")


def chaos() -> str:
    """Cases by command and kind."""
    result = load("chaos.json")
    rows = {name: dict.fromkeys(COLUMNS, 0) | {"planned": planned} for name, planned in result["all_cases"].items()}
    for key, counts in result["summary"].items():
        name, kind = key.split(": ")
        row = rows[name]
        row[KINDS[kind]] += counts["cases"]
        row["processes ended by force"] += counts["processes ended"]
        row["failed"] += counts["failed"]
    everything = {column: sum(row[column] for row in rows.values()) for column in COLUMNS}
    lines = [*([name, *row.values()] for name, row in rows.items()), ["all", *everything.values()]]
    environment = result["environment"]
    versions = environment["versions"]
    done = sum(everything[kind] for kind in ("named points", "random", "signals", "full disk"))
    return "\n".join(
        [
            f"`{result['command']}`: {done} of {everything['planned']} planned cases so far, {everything['failed']} failed. One thread of",
            f"{environment['cpu']} that other work shared, torch {versions['torch']}, transformers {versions['transformers']}, commit",
            f"{environment['git']['commit'][:7]} ([chaos.json](../bench/results/chaos.json)). The cases of a command are in a shuffled order;",
            "the same command goes on with the rest.",
            "",
            table(["command", *COLUMNS], [list(map(str, row)) for row in lines]),
        ]
    )


def fuzz() -> str:
    """Inputs by reader."""
    result = load("fuzz.json")
    environment = result["environment"]
    rows = [
        [name, f"{one['inputs']:,}", f"{one['refused']:,}", str(one["faults"]), f"{one['slowest']:.2f}"]
        for name, one in result["readers"].items()
    ]
    return "\n".join(
        [
            f"`{result['command']}`: {result['inputs']:,} inputs, {result['faults']} faults, torch {environment['versions']['torch']}, Python",
            f"{environment['python']} ([fuzz.json](../bench/results/fuzz.json)).",
            "",
            table(["reader", "inputs", "refused with an error of ours", "faults", "slowest input (CPU s)"], rows),
        ]
    )
