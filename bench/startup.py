"""Startup time: `python bench/startup.py --out bench/results/startup.json`.

Alternately runs `python -m cot_unsloth.train --help` and a process that only imports what such a program needs (click,
yaml, pydantic), each timed from start to end; the figure is the ratio of the medians.
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
IMPORTS = ["-c", "import click, yaml; from pydantic import BaseModel"]


def seconds(arguments: list[str]) -> float:
    """Wall time of one process."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Measure in pairs and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=31)
    args = parser.parse_args()
    seconds(OURS), seconds(IMPORTS)  # not counted: they fill the page cache
    pairs = [(seconds(OURS), seconds(IMPORTS)) for _ in range(args.n)]
    ours, imports = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = sorted(a / b for a, b in pairs)
    write_json(
        args.out,
        {
            "command": f"python bench/startup.py --n {args.n}",
            "environment": environment().as_json(),
            "n": args.n,
            "median_seconds": {"train --help": round(ours, 4), "click, yaml, pydantic": round(imports, 4)},
            "ratio_of_medians": round(ours / imports, 3),
            "pairwise_ratio": {"min": round(ratios[0], 3), "max": round(ratios[-1], 3)},
        },
    )


if __name__ == "__main__":
    main()
