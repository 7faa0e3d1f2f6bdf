"""The applications on the embedded base: `python bench/applications.py --runs DIR --out bench/results/applications.json`.

For each application in examples/applications, runs its `tiny-cpu.yaml` from the command line, and asks the exported file the ten
questions of its `questions.jsonl`, each once and greedily, with the system prompt of the run. Runs that are complete in DIR are
not repeated, one that was cut off is resumed, and the result is written after each: it may be stopped at any time. Further
arguments are flags of `train`, for a trial with small sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cot_unsloth import RunDir, ask, parse
from cot_unsloth.core.results import FitReport, Scorecard
from cot_unsloth.core.results.verification import Verification
from cot_unsloth.storage.atomic import write_json
from cot_unsloth.storage.environment import environment
from cot_unsloth.storage.records import read_jsonl
from cot_unsloth.tasks import TASKS

NAMES = ("conversions", "schedules", "invoices")
FOLDER = Path("examples") / "applications"


def run_once(name: str, folder: Path, seed: int, more: list[str]) -> Path | None:
    """Train, or continue; None if the run failed."""
    run, done = folder / "run", folder / "done.json"
    if done.is_file():
        return run
    flags = [str(FOLDER / name / "tiny-cpu.yaml"), "--seed", str(seed), "--eval-seed", str(1000 + seed), *more]
    command = [sys.executable, "-m", "cot_unsloth.train", *flags, "--run-dir", str(run)]
    folder.mkdir(parents=True, exist_ok=True)
    resumed = (run / "manifest.json").is_file()
    began, cpu = time.monotonic(), os.times()
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        arguments = [*command, *["--resume"] * resumed]
        code = subprocess.run(arguments, stdout=log, stderr=log, check=False).returncode
    if code:
        print(f"{name}: exit {code}, see {folder / 'log.txt'}", file=sys.stderr)
        return None
    wall, spent = round(time.monotonic() - began, 1), os.times()
    seconds = round(sum(spent[2:4]) - sum(cpu[2:4]), 1)
    shown = " ".join(["python", "-m", "cot_unsloth.train", *flags])
    write_json(done, {"command": shown, "wall_seconds": wall, "cpu_seconds": seconds, "resumed": resumed})
    return run


def answers_of(name: str, file: Path) -> list[dict[str, Any]]:
    """What the exported file answers to the ten questions, and whether the application's task accepts it."""
    answers = []
    for row in read_jsonl(FOLDER / name / "questions.jsonl"):
        text = ask(file, str(row["question"]), max_new_tokens=500)
        output = parse(text).output or ""
        right = bool(TASKS[name].same_answer(str(row["answer"]), output))
        answers.append({**row, "text": text, "output": output, "right": right})
    return answers


def result_of(name: str, path: Path) -> dict[str, Any]:
    """The figures of a run, and the answers of its file."""
    run = RunDir.open(path)
    card, fit, done = Scorecard.read(run.scorecard), FitReport.read(run.fit_report), path.parent / "done.json"
    verified = Verification.read(run.verified)
    return {
        "name": name,
        **json.loads(done.read_text(encoding="utf-8")),
        "dataset": card.dataset,
        "n": card.n,
        "seed": card.train_seed,
        "eval_seed": card.seed,
        "interval": card.interval,
        "decoding": card.decoding.as_json(),
        "fit_seconds": fit.seconds,
        "fit_steps": fit.steps,
        "fit_tokens": fit.tokens,
        "arms": {arm: _arm(figures.as_json()) for arm, figures in card.arms.items()},
        "paired": [pair.as_json() for pair in card.paired],
        "verified": verified.status,
        "questions": answers_of(name, run.exported_models()[0]),
    }


def _arm(figures: dict[str, Any]) -> dict[str, Any]:
    return {key: figures[key] for key in ("accuracy", "ci95", "format_valid", "truncated", "mean_tokens", "by_task")}


def main() -> None:
    """Run what is missing, and write the result after each application."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="where the runs go, and are continued")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--names", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--seed", type=int, default=1)
    args, more = parser.parse_known_args()
    results: list[dict[str, Any]] = []
    for name in args.names:
        run = run_once(name, args.runs / name, args.seed, more)
        if run is None:
            continue
        results.append(result_of(name, run))
        command = " ".join(["python bench/applications.py --runs DIR --out", args.out.as_posix(), *more])
        write_json(args.out, {"command": command, "environment": environment().as_json(), "results": results})


if __name__ == "__main__":
    main()
