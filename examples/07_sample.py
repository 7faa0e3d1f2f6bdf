"""Let a model solve problems and keep what is right, as a data set: `python examples/07_sample.py runs/first`."""

from __future__ import annotations

import argparse
from shlex import quote

from cot_unsloth import CotError, sample_run


def main() -> None:
    """Print how much was right, and the command that trains on it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a run, a .gguf file, or the name of a model")
    parser.add_argument("--dataset", default="world:words:1-3", help="problems to solve")
    parser.add_argument("--out", default="samples")
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("-k", type=int, default=8, help="attempts at each problem")
    args = parser.parse_args()
    flags = {"dataset": args.dataset, "samples_per_problem": args.k, "sample_problems": args.problems}
    made = sample_run(args.model, out=args.out, **flags)
    print(f"{made.correct} of {made.attempts} attempts at {made.problems} problems are right")
    print(f"{made.rows} rows: {made.kept} accepted answers, {made.reflections} with a corrected mistake of its own")
    print(f"cot-unsloth train --dataset {quote(args.out)} --run-dir runs/second")


if __name__ == "__main__":
    try:
        main()
    except CotError as error:
        raise SystemExit(f"error: {error}") from None
