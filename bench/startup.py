"""How light the way in is: `python bench/startup.py --out bench/results/startup.json`.

`python -m cot_unsloth.train --help` against the imports that no such program can do without, in
turn, as whole processes; the figure is the ratio of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from cot_unsloth.storage.atomic import write_json
from cot_unsloth.storage.environment import environment

OURS = ["-m", "cot_unsloth.train", "--help"]
FLOOR = ["-c", "import click, yaml; from pydantic import BaseModel"]


def seconds(arguments: list[str]) -> float:
    """Wall time of one process."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Measure in pairs and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=31)
    args = parser.parse_args()
    seconds(OURS), seconds(FLOOR)
    pairs = [(seconds(OURS), seconds(FLOOR)) for _ in range(args.n)]
    ours, floor = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = sorted(a / b for a, b in pairs)
    write_json(
        args.out,
        {
            "command": f"python bench/startup.py --n {args.n}",
            "environment": environment().as_json(),
            "n": args.n,
            "median_seconds": {"train --help": round(ours, 4), "click, yaml, pydantic": round(floor, 4)},
            "ratio_of_medians": round(ours / floor, 3),
            "pairwise_ratio": {"min": round(ratios[0], 3), "max": round(ratios[-1], 3)},
        },
    )


if __name__ == "__main__":
    main()
