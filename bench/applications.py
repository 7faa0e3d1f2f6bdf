"""The applications on the embedded base: `python bench/applications.py --runs DIR --out bench/results/applications.json`.

For each application in examples/applications, runs its `tiny-cpu.yaml` from the command line, and asks the exported file the ten
questions of its `questions.jsonl`, each once and greedily, with the system prompt of the run. Runs that are complete in DIR are
not repeated, one that was cut off is resumed, and the result is written after each: it may be stopped at any time. Further
arguments are flags of `train`, for a trial with small sizes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from resumable import cost_of, run_once

from cot_unsloth import RunDir, ask, parse
from cot_unsloth.core.results import FitReport, Scorecard
from cot_unsloth.core.results.verification import Verification
from cot_unsloth.storage.atomic import write_json
from cot_unsloth.storage.environment import environment
from cot_unsloth.storage.records import read_jsonl
from cot_unsloth.tasks import TASKS

NAMES = ("conversions", "schedules", "invoices")
FOLDER = Path("examples") / "applications"


def run_one(name: str, folder: Path, args: argparse.Namespace, more: list[str]) -> Path | None:
    """Train, or continue; None if the run failed."""
    run = folder / "run"
    flags = [str(FOLDER / name / "tiny-cpu.yaml"), "--seed", str(args.seed), "--eval-seed", str(1000 + args.seed)]
    arguments = [*flags, *more, "--run-dir", str(run)]
    return run if run_once(folder, "train", arguments, {str(args.runs): "DIR"}) else None


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
    card, fit = Scorecard.read(run.scorecard), FitReport.read(run.fit_report)
    verified = Verification.read(run.verified)
    return {
        "name": name,
        **cost_of(path.parent),
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
        run = run_one(name, args.runs / name, args, more)
        if run is None:
            continue
        results.append(result_of(name, run))
        seed = [f"--seed {args.seed}"] if args.seed != parser.get_default("seed") else []
        command = " ".join(["python bench/applications.py --runs DIR --out", args.out.as_posix(), *seed, *more])
        write_json(args.out, {"command": command, "environment": environment().as_json(), "results": results})


if __name__ == "__main__":
    main()
