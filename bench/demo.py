"""The demo's figures: `python bench/demo.py --out bench/results/demo.json`.

Runs the command of `make demo` once for each pair of seeds (training seed, seed of the held-out
problems), each in a fresh process and folder, and writes down every arm's accuracy with n, seeds,
interval, wall time, hardware and versions. The tuned model of each run is then asked problems of
other lengths than it was trained on, beside the base. Figures and plots of the README come from its
result.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from cot_unsloth import score, tasks
from cot_unsloth.engines import registry
from cot_unsloth.evaluate import plan_of, score_arm
from cot_unsloth.render import open_renderer
from cot_unsloth.rundir import RunDir, environment, write_json

KEPT = ("accuracy", "ci95", "format_valid", "truncated", "mean_tokens", "by_task")
LENGTHS = {"chains": (2, 4, 6, 8, 9, 10, 11, 12, 14), "words": (2, 3, 4, 5, 6, 7, 8)}
LONGEST = 640
"""New tokens: a longer solution is not to fail for want of room."""


def by_length(run: RunDir, n: int, seed: int) -> dict[str, Any]:
    """Accuracy of the run's base and tuned model on `n` held-out problems of each length."""
    settings = run.read_config()
    renderer = open_renderer(settings.model, settings.data)
    engine = registry.load(settings, renderer.chat, registry.choose(settings.model), run.adapter)
    plan = replace(plan_of(settings), max_new_tokens=LONGEST, batch_size=n)
    found: dict[str, Any] = {}
    for name, lengths in LENGTHS.items():
        for steps in lengths:
            examples = tasks.generate(f"world:{name}:{steps}", split="test", n=n, seed=seed)
            tuned = score_arm(engine, renderer, examples, "tuned", plan)
            with engine.without_adapter():
                base = score_arm(engine, renderer, examples, "base_direct", plan)
            found.setdefault(name, {})[str(steps)] = {
                arm: {key: score.arm_summary(scores)[key] for key in ("n", "accuracy", "ci95")}
                for arm, scores in (("base_direct", base), ("tuned", tuned))
            }
    return found


def run_once(seed: int, eval_seed: int, n_length: int, more: list[str]) -> dict[str, Any]:
    """One journey; returns its figures, and those of `n_length` problems of each length.

    Raises:
        subprocess.CalledProcessError: the journey failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = ["python", "-m", "cot_unsloth.train", "--seed", str(seed), "--eval-seed", str(eval_seed), *more]
        began = time.monotonic()
        subprocess.run([sys.executable, *command[1:], "--run-dir", str(run)], check=True)
        seconds = time.monotonic() - began
        card = json.loads((run / "scorecard.json").read_text(encoding="utf-8"))
        fit = json.loads((run / "fit.json").read_text(encoding="utf-8"))
        lengths = by_length(RunDir(run), n_length, eval_seed) if n_length else {}
    return {
        "command": " ".join(command),
        "seed": seed,
        "eval_seed": eval_seed,
        "n": card["n"],
        "dataset": card["dataset"],
        "decoding": card["decoding"],
        "interval": card["interval"],
        "wall_seconds": round(seconds, 1),
        "fit_seconds": fit["seconds"],
        "arms": {arm: {key: found[key] for key in KEPT} for arm, found in card["arms"].items()},
        "paired": card["paired"],
        "by_length": lengths,
    }


def main() -> None:
    """Run all pairs of seeds and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="3407:1234,1:11,2:12", help="training seed:held-out seed, comma-separated")
    parser.add_argument("--n-length", type=int, default=100, help="problems of each length; 0 for none")
    parser.add_argument("more", nargs="*", help="further flags for train, after --")
    args = parser.parse_args()
    pairs = [tuple(map(int, pair.split(":"))) for pair in args.seeds.split(",")]
    where = environment()  # the state of the checkout as the runs begin
    runs = []
    for seed, eval_seed in pairs:
        runs.append(run_once(seed, eval_seed, args.n_length, args.more))
        write_json(args.out, {"environment": where, "runs": runs})


if __name__ == "__main__":
    main()
