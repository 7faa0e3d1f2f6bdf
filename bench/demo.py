"""The demo's figures: `python bench/demo.py --out bench/results/demo.json`.

Runs the command of `make demo` unchanged, to measure its time. Then, with more held-out problems, trains once for each
pair of seeds (training seed, seed of the held-out problems) and once at another difficulty, each in a fresh process and
folder, and writes every arm's accuracy with n, seeds, interval, wall time, hardware and versions. The base and the tuned
model of each run are also scored on problems of other lengths than it was trained on. Figures and plots of README and
docs are made from the result.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from cot_unsloth import tasks
from cot_unsloth.core.results import ArmResult, FitReport, Scorecard
from cot_unsloth.core.threads import limit_spinning
from cot_unsloth.evaluation import scorecard
from cot_unsloth.evaluation.arms import score_arm
from cot_unsloth.models.target import Target
from cot_unsloth.storage.atomic import write_json
from cot_unsloth.storage.environment import environment
from cot_unsloth.storage.records import read_jsonl
from cot_unsloth.storage.run_folder import RunDir

FIGURES = ("accuracy", "ci95", "format_valid", "truncated", "mean_tokens", "by_task")
LENGTHS = {"chains": (2, 4, 6, 8, 9, 10, 11, 12), "words": (2, 3, 4, 5, 6, 7, 8)}
LONGEST = 640
"""New tokens, enough for the longest solution: none is wrong because it was cut off."""
HARDER = "world:chains:6-10,words:3-6,countdown"


def by_length(run: RunDir, n: int, seed: int) -> dict[str, Any]:
    """Accuracy of the run's base and tuned model on `n` held-out problems of each length."""
    settings = run.read_config()
    renderer, engine = Target(settings, run.adapter).load()
    sampling = replace(settings.sampling_params, max_new_tokens=LONGEST, batch_size=n)
    accuracies: dict[str, Any] = {}
    for name, lengths in LENGTHS.items():
        for steps in lengths:
            examples = tasks.generate(f"world:{name}:{steps}", split="test", n=n, seed=seed)
            tuned = score_arm(engine, renderer, examples, "tuned", sampling)
            with engine.as_base():
                base = score_arm(engine, renderer, examples, "base_direct", sampling)
            accuracies.setdefault(name, {})[str(steps)] = {
                arm: figures(scorecard.arm_result(scores), "n", "accuracy", "ci95")
                for arm, scores in (("base_direct", base), ("tuned", tuned))
            }
    return accuracies


def run_once(seed: int, eval_seed: int, n_length: int, more: list[str]) -> dict[str, Any]:
    """One run; returns its figures, and those of `n_length` problems of each length.

    Raises:
        subprocess.CalledProcessError: the run failed.
    """
    flags = ["--seed", str(seed), "--eval-seed", str(eval_seed), *more]
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder) / "run")
        result = train(flags, run)
        lengths = by_length(run, n_length, eval_seed) if n_length else {}
        return result | {"by_length": lengths, "shown": examples_of(run)}


def train(flags: list[str], run: RunDir) -> dict[str, Any]:
    """Run `train` with `flags` into `run`; returns its figures.

    Raises:
        subprocess.CalledProcessError: the run failed.
    """
    began = time.monotonic()
    command = [sys.executable, "-m", "cot_unsloth.train", *flags, "--run-dir", str(run.path)]
    subprocess.run(command, check=True)
    seconds = time.monotonic() - began
    card, fit = Scorecard.read(run.scorecard), FitReport.read(run.fit_report)
    return {
        "command": " ".join(["python", "-m", "cot_unsloth.train", *flags]),
        "seed": card.train_seed,
        "eval_seed": card.seed,
        "n": card.n,
        "dataset": card.dataset,
        "decoding": card.decoding.as_json(),
        "interval": card.interval,
        "wall_seconds": round(seconds, 1),
        "fit_seconds": fit.seconds,
        "fit_steps": fit.steps,
        "fit_tokens": fit.tokens,
        "arms": {name: figures(arm, *FIGURES) for name, arm in card.arms.items()},
        "paired": [pair.as_json() for pair in card.paired],
    }


def figures(arm: ArmResult, *keys: str) -> dict[str, Any]:
    """Some of an arm's figures, as JSON."""
    all_figures = arm.as_json()
    return {key: all_figures[key] for key in keys}


def examples_of(run: RunDir) -> dict[str, Any]:
    """For each task the first right answer, for readers; for countdown, the first that needed a second try."""
    rows = [row for row in read_jsonl(run.completions("tuned")) if row["correct"]]
    rows.sort(key=lambda row: row["task"] == "countdown" and "is not" not in row["text"])
    return {row["task"]: {"question": row["question"], "text": row["text"]} for row in reversed(rows)}


def main() -> None:
    """Train and score all runs; write the result after each."""
    limit_spinning()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="3407:1234,1:11,2:12", help="training seed:held-out seed, comma-separated")
    parser.add_argument("--n", type=int, default=900, help="held-out problems of a run, over all tasks")
    parser.add_argument("--n-length", type=int, default=100, help="problems of each length; 0 for none")
    parser.add_argument("--harder", default="3:13", help="seeds of the run at another difficulty; '' for none")
    parser.add_argument(
        "--only-demo", action="store_true", help="measure only `make demo` again, and update the result in --out"
    )
    parser.add_argument("more", nargs="*", help="further flags for train, after --")
    args = parser.parse_args()
    result: dict[str, Any] = {
        "command": f"python bench/demo.py --seeds {args.seeds} --n {args.n} --n-length {args.n_length} "
        f"--harder {shlex.quote(args.harder)}",
        "environment": environment().as_json(),  # before the runs, so that it names the commit they started from
    }
    if args.only_demo:
        result = json.loads(args.out.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        result["make_demo"] = train(args.more, RunDir(Path(folder) / "run")) | {"environment": environment().as_json()}
    write_json(args.out, result)
    if args.only_demo:
        return
    more = ["--eval-samples", str(args.n), "--eval-batch-size", "150", *args.more]
    result["runs"] = []
    for pair in args.seeds.split(","):
        seed, eval_seed = map(int, pair.split(":"))
        result["runs"].append(run_once(seed, eval_seed, args.n_length, more))
        write_json(args.out, result)
    if args.harder:
        seed, eval_seed = map(int, args.harder.split(":"))
        result["harder"] = run_once(seed, eval_seed, 0, ["--dataset", HARDER, *more])
        write_json(args.out, result)


if __name__ == "__main__":
    main()
