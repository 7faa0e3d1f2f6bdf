"""Compare two runs on the same problems, and combine their adapters: `python examples/09_compare.py runs/a runs/b`."""

from __future__ import annotations

import argparse
from shlex import quote

from cot_unsloth import CotError, combine_adapters, compare_runs


def main() -> None:
    """Print the paired difference, then write the sum of both adapters."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs=2)
    parser.add_argument("--out", default="adapters/both")
    args = parser.parse_args()
    compared = compare_runs(args.runs)
    for run in compared.runs:
        low, high = run.ci95
        print(f"{run.name}: {run.accuracy:.1%}  [{low:.1%}, {high:.1%}]  n={compared.n}")
    print("a significant difference" if compared.pairs[0].significant else "no significant difference")
    both = combine_adapters(args.runs, out=args.out, method="cat")
    print(f"rank {both.rank}; {both.relative_error:.1e} away from the sum of both changes")
    print(f"cot-unsloth evaluate --adapter {quote(args.out)} --out scores/both")


if __name__ == "__main__":
    try:
        main()
    except CotError as error:
        raise SystemExit(f"error: {error}") from None
