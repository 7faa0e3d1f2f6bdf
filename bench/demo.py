"""The demo's figures: `python bench/demo.py --out bench/results/demo.json`.

Runs the command of `make demo` once for each pair of seeds (training seed, seed of the held-out
problems), each in a fresh process and folder, and writes down every arm's accuracy with n, seeds,
interval, wall time, hardware and versions. The figures of the README are copied from its result.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cot_unsloth.rundir import environment, write_json

KEPT = ("accuracy", "ci95", "format_valid", "truncated", "mean_tokens", "by_task")


def run_once(seed: int, eval_seed: int, more: list[str]) -> dict[str, Any]:
    """One journey; returns its figures.

    Raises:
        subprocess.CalledProcessError: the journey failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = ["python", "-m", "cot_unsloth.train", "--seed", str(seed), "--eval-seed", str(eval_seed), *more]
        began = time.monotonic()
        subprocess.run([sys.executable, *command[1:], "--run-dir", str(run)], check=True)
        seconds = time.monotonic() - began
        card = json.loads((run / "scorecard.json").read_text(encoding="utf-8"))
        fit = json.loads((run / "fit.json").read_text(encoding="utf-8"))
    return {
        "command": " ".join(command),
        "seed": seed,
        "eval_seed": eval_seed,
        "n": card["n"],
        "dataset": card["dataset"],
        "decoding": card["decoding"],
        "interval": card["interval"],
        "wall_seconds": round(seconds, 1),
        "fit_seconds": fit["seconds"],
        "arms": {arm: {key: found[key] for key in KEPT} for arm, found in card["arms"].items()},
        "paired": card["paired"],
    }


def main() -> None:
    """Run all pairs of seeds and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="3407:1234,1:11,2:12", help="training seed:held-out seed, comma-separated")
    parser.add_argument("more", nargs="*", help="further flags for train, after --")
    args = parser.parse_args()
    pairs = [tuple(map(int, pair.split(":"))) for pair in args.seeds.split(",")]
    where = environment()  # the state of the checkout as the runs begin
    runs = [run_once(seed, eval_seed, args.more) for seed, eval_seed in pairs]
    write_json(args.out, {"environment": where, "runs": runs})


if __name__ == "__main__":
    main()
