"""Twenty hand-written traces to a verified model: `python examples/04_own_data.py --run-dir runs/mine`.

Twenty rows teach the form; for what is inside it, write more of them. `--config` takes a real model.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from shlex import quote

from cot_unsloth import CotError, Part, Trace, load_config, train_run, write_traces

FILE = Path(__file__).with_name("own_data.jsonl")
ONE_MORE = Trace(
    (Part("think", "7 * 8 is 54."), Part("reflect", "7 * 8 is 7 * 7 + 7, which is 56. 56 + 1 is 57.")), "57"
)


def main() -> None:
    """Add a row of our own to the file's, train on all, and export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", default="runs/mine")
    parser.add_argument("--config", help="such as configs/llama3.2-3b.yaml; without it, the embedded tiny model")
    parser.add_argument("--epochs", type=float, default=10.0)
    args = parser.parse_args()
    data = Path(f"{args.run_dir}-data.jsonl")
    write_traces(data, [("What is 7 * 8 + 1?", ONE_MORE)])
    data.write_text(FILE.read_text(encoding="utf-8") + data.read_text(encoding="utf-8"), encoding="utf-8")
    config = load_config(args.config, run_dir=args.run_dir, dataset=data, num_train_epochs=args.epochs, gguf="q8_0")
    run, _ = train_run(config)
    print(f"verified: {run.verified}\nchat: cot-unsloth chat {quote(str(run.exported_models()[0]))}")


if __name__ == "__main__":
    try:
        main()
    except CotError as error:
        raise SystemExit(f"error: {error}") from None
