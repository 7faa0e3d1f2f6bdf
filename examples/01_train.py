"""Train the embedded model on a task, and see what it learns: `python examples/01_train.py --run-dir runs/first`."""

from __future__ import annotations

import argparse

from cot_unsloth import CotError, load_config, print_scorecard, train_run


def main() -> None:
    """Score, fine-tune, score again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", default="runs/first")
    parser.add_argument("--dataset", default="world:chains:2-4")
    parser.add_argument("--world-samples", type=int, default=2000)
    parser.add_argument("--eval-samples", type=int, default=100)
    args = parser.parse_args()
    # Without a file the settings are the demo's, whose rates fit its tiny model. Any setting goes by its name.
    config = load_config(**vars(args))
    run, card = train_run(config)
    print_scorecard(card)
    gain = card.arms["tuned"].accuracy - card.arms["base_direct"].accuracy
    print(f"{100 * gain:+.1f} points over the base asked directly; all of it is in {run.path}")


if __name__ == "__main__":
    try:
        main()
    except CotError as error:
        raise SystemExit(f"error: {error}") from None
