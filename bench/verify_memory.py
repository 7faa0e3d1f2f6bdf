"""Memory of an export with its verification, by size: `python bench/verify_memory.py --tokenizer DIR --out FILE`.

For each size, makes a Llama-shaped base with random weights (bfloat16) and a LoRA adapter as `bench/export.py` does, and
runs `cot-unsloth export` on them, checks included. Measures the peak anonymous memory of that process, read every 100 ms;
pages of mapped files do not count, because the kernel can reclaim them. Growth is the difference in memory divided by the
difference in parameters. Needs Linux.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import export as costs

from cot_unsloth.core.progress import note
from cot_unsloth.core.results.verification import read_verification
from cot_unsloth.storage.atomic import write_json
from cot_unsloth.storage.environment import environment

costs.EVERY = 0.1  # one reading of a large process takes about 10 ms
KINDS = {"gguf q4_k_m": ("--gguf", "q4_k_m"), "merged": ("--merged",)}


def measure(size: str, tokenizer: Path, folder: Path) -> dict[str, Any]:
    """Parameters of a size, and for each kind of export peak memory, seconds and checks."""
    made = subprocess.run(
        [sys.executable, str(Path(costs.__file__)), "--step", "make", size, str(tokenizer), str(folder)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    result: dict[str, Any] = {"parameters": int(made.stdout.split()[-1])}
    for kind, flags in KINDS.items():
        out = folder / kind.replace(" ", "-")
        command = [
            sys.executable, "-m", "cot_unsloth", "export", "--model", str(folder / "base"),
            "--adapter", str(folder / "adapter"), "--dataset", "world:chains", "--export-samples", "2",
            *flags, "--out", str(out),
        ]  # fmt: skip
        cost = costs.run(command, folder / "log")
        record = read_verification(out)
        result[kind] = {
            "anonymous_mib": round(cost.anonymous / costs.MIB),
            "seconds": round(cost.seconds, 1),
            "status": record.status,
            "checks": [check.name for check in record.checks],
        }
        note(f"{size}, {kind}: {result[kind]}")
    return result


def main() -> None:
    """Measure all sizes and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of a tokenizer")
    parser.add_argument("--sizes", default="300M,1B", help=f"of {', '.join(costs.SHAPES)}")
    args = parser.parse_args()
    sizes: dict[str, Any] = {}
    for size in args.sizes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            sizes[size] = measure(size, args.tokenizer, Path(folder))
    first, last = (sizes[size] for size in (args.sizes.split(",")[0], args.sizes.split(",")[-1]))
    more = last["parameters"] - first["parameters"]
    growth = {
        kind: round((last[kind]["anonymous_mib"] - first[kind]["anonymous_mib"]) * costs.MIB / more, 3)
        if more
        else None
        for kind in KINDS
    }
    write_json(
        args.out,
        {
            "command": f"python bench/verify_memory.py --tokenizer {args.tokenizer.name} --sizes {args.sizes}",
            "environment": environment().as_json(),
            "sizes": sizes,
            "bytes_a_parameter": growth,
        },
    )


if __name__ == "__main__":
    main()
