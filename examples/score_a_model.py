"""Use the library from Python: score a model's arms on held-out problems and print the table.

python examples/score_a_model.py --model tiny-base --dataset world:words:2-3 --n 20
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cot_unsloth.evaluation.evaluate import evaluate_model
from cot_unsloth.models.target import resolve_target
from cot_unsloth.reporting.tables import print_scorecard


def main() -> None:
    """Score the base arms of a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-base")
    parser.add_argument("--dataset", default="world:words:2-3")
    parser.add_argument("--n", default="20")
    parser.add_argument("--out", type=Path, default=Path("scores"))
    args = parser.parse_args()
    flags = {"dataset": args.dataset, "eval_samples": args.n, "max_new_tokens": "64"}
    print_scorecard(evaluate_model(resolve_target(base=args.model, flags=flags, use="score"), args.out))


if __name__ == "__main__":
    main()
