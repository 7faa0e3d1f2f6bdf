"""Does what was learned on one task help on another? `python examples/11_transfer.py`."""

from __future__ import annotations

import argparse

from cot_unsloth import CotError, load_config, transfer_adapters


def main() -> None:
    """Train an adapter for each task and one for all, score each on every task, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=["world:chains", "world:words", "world:countdown"])
    parser.add_argument("--rows", type=int, default=1200)
    parser.add_argument("--n", type=int, default=200, help="problems of each task")
    parser.add_argument("--out", default="transfers/three-tasks")
    args = parser.parse_args()
    config = load_config(world_samples=args.rows, eval_samples=args.n, gguf="")
    result = transfer_adapters(config, args.tasks, combine=["cat:0.5"], out=args.out)
    print("adapter".ljust(12), *(task.name.rjust(10) for task in result.tasks))
    for adapter in result.adapters:
        cells = {cell.task: cell.accuracy for cell in result.cells if cell.adapter == adapter.name}
        print(adapter.name.ljust(12), *(f"{cells[task.name]:10.1%}" for task in result.tasks))


if __name__ == "__main__":
    try:
        main()
    except CotError as error:
        raise SystemExit(f"error: {error}") from None
