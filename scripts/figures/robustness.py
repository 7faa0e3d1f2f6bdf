"""docs/robustness.md: what bench/chaos.py, bench/fuzz.py and bench/load.py found."""

from __future__ import annotations

from collections import Counter

from scripts.figures.results import load, table

KINDS = {
    "kill": "named points",
    "random kills": "random",
    "SIGINT": "signals",
    "SIGTERM": "signals",
    "files of at most": "full disk",
    "disk with": "full disk",
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
    first = environment["git"]["commit"][:7]
    commits = Counter(case.get("commit", first) for case in result["cases"].values())
    at = ", ".join(f"{commit} ({count})" for commit, count in commits.most_common()) if len(commits) > 1 else first
    done = sum(everything[kind] for kind in ("named points", "random", "signals", "full disk"))
    planned = everything["planned"]
    rest = "" if done == planned else " They are in a shuffled order; the same command goes on with the rest."
    return "\n".join(
        [
            f"`{result['command']}`: {done} of {planned} planned cases, {everything['failed']} failed.{rest} One thread of",
            f"{environment['cpu']} that other work shared, torch {versions['torch']}, transformers {versions['transformers']}, commits (cases):",
            f"{at} ([chaos.json](../bench/results/chaos.json)).",
            "",
            table(["command", *COLUMNS], [list(map(str, row)) for row in lines]),
        ]
    )


def gguf_mutations() -> str:
    """How damaged files ended."""
    result = load("gguf_mutations.json")
    outcomes = dict(result["outcomes"])
    refused, answered = (outcomes.pop(name, 0) for name in ("refused", "answered"))
    ended = ", ".join(f"{count} {how}" for how, count in outcomes.items()) or "0 ended the process, or with a traceback"
    return (
        f"`{result['command']}`: of {result['inputs']:,} files {refused:,} refused with an error of ours, {answered:,} answered, {ended}; "
        f"xllamacpp {result['environment']['versions']['xllamacpp']} ([gguf_mutations.json](../bench/results/gguf_mutations.json))."
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


def load_test() -> str:
    """Answers, faults, latencies and memory of a server under load."""
    result = load("load.json")
    environment, clients, memory = result["environment"], result["clients"], result["memory"]
    left, mib = result["left_when_all_have_gone"], 2**20
    answered, times = result["answered"], [result["first_text_seconds"], result["answer_seconds"]]
    rows = [
        ["streamed answers", f"{answered['stream']:,}"],
        ["streams read slowly, to their end", str(answered["slow"])],
        ["clients that left in the middle", str(answered["leave"])],
        ["whole answers asked for; a quarter of the clients left before", str(answered["whole"])],
        ["bodies that never came, refused after 20 s", str(answered["stalled"])],
        ["bad requests, each refused with its status", f"{answered['bad']:,}"],
        ["faults: an answer or a status that was not as it should be", str(result["faults"])],
        ["slots taken, and requests waiting, when all clients had gone", f"{left['running']}, {left['waiting']}"],
        ["resident memory in the 2nd and in the last minute", f"{memory['early_bytes'] / mib:.0f} and {memory['late_bytes'] / mib:.0f} MiB"],
        ["its growth in the second half", f"{memory['slope_bytes_per_minute'] / mib:.2f} MiB a minute"],
        ["tokens per second of the streams", f"{result['tokens_per_second']:.0f}"],
        *(
            [name, ", ".join(f"{one[share]:.1f}" for share in ("p50", "p95", "p99"))]
            for name, one in zip(
                ("seconds to the first text (p50, p95, p99)", "seconds to the end of an answer (p50, p95, p99)"), times, strict=True
            )
        ),
    ]  # fmt: skip
    return "\n".join(
        [
            f"`{result['command']}`: {clients['stream']} clients that ask for one stream after another, and {sum(clients.values()) - clients['stream']}",
            f"others, for {result['seconds'] / 60:.0f} minutes. Server and clients shared one core of {environment['cpu']} with other work, of which the",
            f"server had {result['server_cpu_share']:.0%}: the latencies are those of a full queue on a busy machine,",
            f"xllamacpp {environment['versions']['xllamacpp']}, commit {environment['git']['commit'][:7]} ([load.json](../bench/results/load.json)).",
            "",
            table(["", ""], rows),
        ]
    )
