"""Memory and time of preparing a run, by number of rows: `python bench/preparation.py --out bench/results/preparation.json`.

For each size, writes that many rows of about 380 tokens (of the embedded base) to a file, and prepares a training run on
them in a process of its own: it reads, splits, decontaminates and renders the rows, checks them as `train` does, hashes
them, writes `kept.jsonl`, and opens the trainer's data set. Memory is the anonymous memory of the process (`RssAnon` in
/proc/PID/status, read every 20 ms); pages of mapped files do not count, because the kernel can reclaim them. Growth is the
difference in memory between two sizes divided by the difference in rows. Needs Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cot_unsloth.core.progress import note
from cot_unsloth.core.threads import limit_spinning
from cot_unsloth.storage.atomic import write_json
from cot_unsloth.storage.environment import environment

EVERY = 0.02
"""Seconds between readings of memory."""
NAMES = [
    "Ada",
    "Ben",
    "Cleo",
    "Dan",
    "Eva",
    "Finn",
    "Gina",
    "Hugo",
    "Iris",
    "Jon",
    "Kira",
    "Leo",
    "Mona",
    "Nils",
    "Olga",
    "Paul",
]
THINGS = ["apples", "books", "coins", "pens", "stamps", "shells", "marbles", "cards", "tickets", "cups"]


def write_rows(path: Path, rows: int) -> None:
    """Write questions with worked solutions, no two alike."""
    draw = random.Random(1)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            name, other, thing = draw.choice(NAMES), draw.choice(NAMES), draw.choice(THINGS)
            first = value = draw.randrange(10, 1000)
            said, steps = [], []
            for step in range(1, 7):
                more = draw.randrange(2, 900)
                said.append(f"({step}) {other} gives {name} {more} {thing}.")
                steps.append(f"({step}) gives {more}: {value} + {more} = {value + more}")
                value += more
            question = (
                f"Problem {number}: {name} has {first} {thing}. {' '.join(said)} How many {thing} does {name} have?"
            )
            row = {"question": question, "reasoning": "\n".join(steps), "answer": str(value)}
            file.write(json.dumps(row) + "\n")


def anonymous() -> int:
    """Bytes of anonymous memory of this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


def _cpu_seconds() -> float:
    """CPU seconds of this process and of those that it started and that have ended."""
    return sum(os.times()[:4])


class Stages:
    """Measures stages that follow each other: seconds, and memory at the peak and after a garbage collection."""

    def __init__(self) -> None:
        self.measured: dict[str, Any] = {}
        self._peak = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self._peak = max(self._peak, anonymous())
            time.sleep(EVERY)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the block."""
        began, cpu, self._peak = time.monotonic(), _cpu_seconds(), anonymous()
        yield
        seconds, cpu = time.monotonic() - began, _cpu_seconds() - cpu
        peak = max(self._peak, anonymous())
        gc.collect()
        self.measured[name] = {
            "seconds": round(seconds, 1), "cpu": round(cpu, 1), "peak": peak, "after": anonymous(),
        }  # fmt: skip


def step(file: str, out: str, flags: dict[str, str]) -> dict[str, Any]:
    """Prepare a run on the rows of a file, and measure each stage."""
    limit_spinning()
    from cot_unsloth import config as settings
    from cot_unsloth.models import registry
    from cot_unsloth.storage.run_folder import RunDir
    from cot_unsloth.training import pipeline, preparation, run_record, sft

    stages = Stages()
    config = settings.load(None, {"dataset": file, "eval_samples": "200", "run_dir": out, **flags})
    with stages.stage("imports"):
        preparation.open_renderer(config.model, config.data)
    for module, name, shown in (
        (preparation, "load_examples", "read"),
        (preparation, "_decontaminate", "decontaminate"),
        (preparation.rendered_cache, "rendered", "render"),
    ):
        _measure(module, name, shown, stages)
    prepared = preparation.prepare(config)
    with stages.stage("check"):
        pipeline._check(config, prepared)
    with stages.stage("hash"):
        hashes = run_record.identity(prepared)
    with stages.stage("record"):
        facts = run_record.manifest(config, prepared, registry.choose(config.model), hashes)
        run_record.write(RunDir(Path(out)), config, prepared, facts, resume=False)
    with stages.stage("data set"):
        sft.assert_counts(sft._dataset(prepared.samples), prepared.samples)
    return {
        "stages": stages.measured,
        "rows": {"in": prepared.loaded.rows, "train": len(prepared.train), "rejected": len(prepared.rejects)},
        "tokens": int(prepared.samples.lengths.sum()),
        "hash": hashes["data_hash"],
    }


def _measure(module: Any, name: str, shown: str, stages: Stages) -> None:
    function = getattr(module, name)

    def measured(*args: Any, **kwargs: Any) -> Any:
        # Of the two splits that are rendered, the large one comes first; the other is measured apart.
        with stages.stage(shown if shown not in stages.measured else f"{shown} held out"):
            return function(*args, **kwargs)

    setattr(module, name, measured)


def measure(rows: int, flags: dict[str, str], folder: Path) -> dict[str, Any]:
    """What a number of rows costs, in a process of its own."""
    data = folder / "rows.jsonl"
    write_rows(data, rows)
    command = [sys.executable, str(Path(__file__)), "--step", str(data), str(folder / "run"), json.dumps(flags)]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "COT_UNSLOTH_CACHE": str(folder / "cache")}
    )  # fmt: skip
    return {"file": data.stat().st_size, **json.loads(done.stdout)}


def main() -> None:
    """Measure all sizes and write the result."""
    if sys.argv[1:2] == ["--step"]:
        print(json.dumps(step(sys.argv[2], sys.argv[3], json.loads(sys.argv[4]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", default="10000,50000,200000", help="numbers of rows")
    parser.add_argument("--flags", default="{}", help="settings of the run, as JSON")
    parser.add_argument("--label", default="", help="another name for the measurements, such as of an older version")
    args = parser.parse_args()
    for rows in map(int, args.sizes.split(",")):
        more = [f"--flags '{args.flags}'"] if args.flags != "{}" else []
        load = os.getloadavg()[0]
        with tempfile.TemporaryDirectory() as folder:
            measured = measure(rows, json.loads(args.flags), Path(folder))
        facts = {
            "command": " ".join(["python bench/preparation.py --sizes", str(rows), *more]),
            "environment": environment().as_json(),
            "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        }
        name = f"{args.label or 'now'}, {rows}"
        note(f"{name}: {json.dumps(measured['stages'])}")
        known = json.loads(args.out.read_text(encoding="utf-8")) if args.out.is_file() else {}
        write_json(args.out, {**known, name: {**facts, **measured}})


if __name__ == "__main__":
    main()
