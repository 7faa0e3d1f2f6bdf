"""The accuracy that quantized bases cost the demo: `python bench/bits.py --out bench/results/bits.json`.

The recipe of `make demo` with the base's weights unquantized, in 8 bits and in 4 bits (QLoRA), each in a fresh process and
folder, with the same seeds and held-out problems. `gguf` is the adapter merged into the 16-bit base, not into the
quantized weights that it was trained on: that is what users of QLoRA publish. Needs bitsandbytes.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from demo import train

from cot_unsloth.storage.atomic import write_json
from cot_unsloth.storage.environment import environment
from cot_unsloth.storage.run_folder import RunDir

LOADED = {"whole": [], "8": ["--load-in-8bit"], "4": ["--load-in-4bit"]}
"""Flags by the bits of a weight, "whole" being unquantized; the result file has these keys."""


def main() -> None:
    """Train and score all runs; write the result after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="3407:1234,1:11", help="training seed:held-out seed, comma-separated")
    parser.add_argument("--n", type=int, default=900, help="held-out problems of a run, over all tasks")
    parser.add_argument("more", nargs="*", help="further flags for train, after --")
    args = parser.parse_args()
    result: dict[str, Any] = {
        "command": f"python bench/bits.py --seeds {args.seeds} --n {args.n}",
        "environment": environment().as_json(),  # before the runs, so that it names the commit they started from
        "runs": {bits: [] for bits in LOADED},
    }
    for pair in args.seeds.split(","):
        seed, eval_seed = pair.split(":")
        for bits, flags in LOADED.items():
            settings = ["--engine", "hf", "--seed", seed, "--eval-seed", eval_seed, "--eval-samples", str(args.n)]
            with tempfile.TemporaryDirectory() as folder:
                run = RunDir(Path(folder) / "run")
                result["runs"][bits].append(train([*settings, "--eval-batch-size", "150", *flags, *args.more], run))
            write_json(args.out, result)


if __name__ == "__main__":
    main()
