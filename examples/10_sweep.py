"""Search for a learning rate and a rank that train a better model: `python examples/10_sweep.py --trials 12`."""

from __future__ import annotations

import argparse
from shlex import quote

from cot_unsloth import CotError, load_config, sweep_settings


def main() -> None:
    """Train and score each trial, then print them, the best first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--rows", type=int, default=1200)
    parser.add_argument("--out", default="sweeps/rate-and-rank")
    args = parser.parse_args()
    config = load_config(dataset="world:words:2-3", world_samples=args.rows, gguf="")
    vary = ["learning_rate=1e-3:1e-2:log", "lora_r=8,16,32"]
    sweep = sweep_settings(config, vary, trials=args.trials, final=False, out=args.out)
    for trial in sweep.trials:
        accuracy = f"{trial.development.accuracy:.1%}" if trial.development else trial.state
        print(f"{accuracy}  {trial.settings}")
    if sweep.best is not None:
        print(f"cot-unsloth train {quote(f'{args.out}/best.yaml')}")


if __name__ == "__main__":
    try:
        main()
    except CotError as error:
        raise SystemExit(f"error: {error}") from None
