"""Does a run answer better if it may think longer? `python examples/08_curves.py runs/first` draws it, and prints the points."""

from __future__ import annotations

import argparse

from cot_unsloth import CotError, measure_curves


def main() -> None:
    """Accuracy with thinking that is cut at a few budgets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--budgets", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--out", default="curves")
    args = parser.parse_args()
    curves = measure_curves(
        [args.run], out=args.out, checkpoints=0, budgets=args.budgets, samples=1, eval_samples=args.n
    )
    for point in curves.test_time.sequential:
        low, high = point.ci95
        print(f"{point.name:>6} tokens of thinking: {point.accuracy:.1%}  [{low:.1%}, {high:.1%}]  n={args.n}")


if __name__ == "__main__":
    try:
        main()
    except CotError as error:
        raise SystemExit(f"error: {error}") from None
