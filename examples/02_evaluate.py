"""Score a run on problems it was not trained on, and harder ones: `python examples/02_evaluate.py runs/first`."""

from __future__ import annotations

import argparse

from cot_unsloth import CotError, evaluate_run


def main() -> None:
    """Print the tuned model's accuracy by difficulty, with its interval."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--n", type=int, default=100)
    args = parser.parse_args()
    for dataset in ("world:chains:2-4", "world:chains:5-8"):
        card = evaluate_run(args.run, dataset=dataset, eval_samples=args.n, eval_seed=7, arms="base_direct,tuned")
        for name, arm in card.arms.items():
            low, high = arm.ci95
            print(f"{dataset}  {name:11}  {arm.accuracy:.1%}  [{low:.1%}, {high:.1%}]  n={card.n}")


if __name__ == "__main__":
    try:
        main()
    except CotError as error:
        raise SystemExit(f"error: {error}") from None
