"""What docs/evaluation.md shows: `python bench/evidence.py --work DIR`.

Three runs of the demo with different seeds and all their checkpoints give: accuracy against tokens at test time
(countdown, where a model can try again; at two temperatures), accuracy against training tokens (all tasks), and what
reflections do on chains: as the model writes them, with one step of its right answers corrupted, and with steps corrupted
while it writes. Resumable: what is complete in DIR is not measured again. Takes about 1.5 hours on two cores.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cot_unsloth import tasks
from cot_unsloth.core.results import Curves
from cot_unsloth.core.threads import limit_spinning
from cot_unsloth.core.types import Example, Score
from cot_unsloth.evaluation import error_injection, reflection, score, scorecard
from cot_unsloth.evaluation.arms import score_arm
from cot_unsloth.models.target import Target
from cot_unsloth.storage import atomic, environment
from cot_unsloth.storage.run_folder import RunDir

RESULT = Path(__file__).parent / "results" / "evidence.json"
SEEDS = (3407, 1, 2)
BUDGETS = "70,100,140,200,280,400"
"""One try at countdown takes about 70 tokens; each budget is about 1.4 times the one before."""


def run(*args: str) -> str:
    """Run `cot-unsloth` with these arguments; returns the command line."""
    print("$", shlex.join(("cot-unsloth", *args)), file=sys.stderr)
    subprocess.run([sys.executable, "-m", "cot_unsloth", *args], check=True)
    return shlex.join(("cot-unsloth", *args))


def train(work: Path, seed: int, few: bool) -> RunDir:
    """A run of the demo with its checkpoints, trained unless it is there."""
    finished = RunDir(work / f"seed{seed}")
    if not finished.adapter.is_dir():
        less = (
            ["--max-steps", "8", "--save-steps", "4", "--world-samples", "64", "--max-new-tokens", "48"] if few else []
        )
        keep = ["--save-steps", "25", "--save-total-limit", "100", "--eval-samples", "0", "--gguf", ""]
        run("train", "--seed", str(seed), "--run-dir", str(finished.path), *keep, *less)
    return finished


def curve(work: Path, name: str, *args: str) -> dict[str, Any]:
    """The result of one `curves`, measured unless it is there, with its command."""
    out = work / name
    command = shlex.join(("cot-unsloth", "curves", *args, "--out", str(out)))
    if not (out / "curves.json").is_file():
        run("curves", *args, "--out", str(out))
    return {"command": command, **Curves.read(out / "curves.json").as_json()}


def reasoning(examples: Sequence[Example], scores: Sequence[Score]) -> dict[str, Any]:
    """What reflections do and how far the four aims are met, as JSON."""
    metrics, aims = reflection.summary(examples, scores)
    return {"reflection": metrics.as_json(), "aims": aims.as_json()}


def reflections(trained: RunDir, n: int) -> dict[str, Any]:
    """Chains as the model writes them, with one step corrupted afterwards, and with steps corrupted as it writes."""
    config = trained.read_config().overridden({"dataset": "world:chains", "eval_batch_size": 64})
    spec, seed = config.data.dataset, config.evaluate.eval_seed
    examples = tasks.generate(spec, split="test", n=n, seed=seed)
    renderer, engine = Target(config, trained.adapter).load()
    scores = score_arm(engine, renderer, examples, "tuned", config.sampling_params)
    pairs = list(zip(tasks.problems(spec, split="test", n=n, seed=seed), examples, strict=True))
    solutions = error_injection.solve_with_errors(
        engine, renderer, pairs, rate=0.2, seed=seed, sampling=config.sampling_params
    )
    scores_with_errors = [
        score.judge(example, solution.completion, tagged=True)
        for example, solution in zip(examples, solutions, strict=True)
    ]
    return {
        "n": n,
        "seed": seed,
        "as_written": {"accuracy": scorecard.arm_result(scores).accuracy, **reasoning(examples, scores)},
        "one_step_wrong": error_injection.corrupt_right_answers(
            engine, renderer, examples, scores, sampling=config.sampling_params, seed=seed
        ).as_json(),
        "rate": 0.2,
        "under_errors": {
            **error_injection.summarize(solutions, examples).as_json(),
            **reasoning(examples, scores_with_errors),
        },
    }


def main() -> None:
    """Measure what is missing, and write the result."""
    limit_spinning()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--tiny", action="store_true", help="the same code in a minute, for a test")
    args = parser.parse_args()
    n, samples, checkpoints = (6, 2, 2) if args.tiny else (args.n, 8, 8)
    budgets, few_budgets, training_budgets = (
        ("8,12,16,24,32,48", "8,16,48", "8,16,32") if args.tiny else (BUDGETS, "70,140,400", "100,200,400")
    )
    runs = [train(args.work, seed, args.tiny) for seed in SEEDS[: 2 if args.tiny else 3]]
    paths = [str(run.path) for run in runs]
    countdown = curve(
        args.work, "countdown", paths[0], "--dataset", "world:countdown", "--eval-samples", str(n),
        "--budgets", budgets, "--samples", str(samples), "--think-again", "2", "--checkpoints", "0", "--eval-batch-size", "64",
    )  # fmt: skip
    cool = curve(
        args.work, "cool", paths[0], "--dataset", "world:countdown", "--eval-samples", str(n), "--budgets", few_budgets,
        "--samples", str(samples // 2), "--sample-temperature", "0.3", "--checkpoints", "0", "--eval-batch-size", "64",
    )  # fmt: skip
    training = curve(
        args.work, "training", *paths, "--eval-samples", str(n // 2), "--samples", "2", "--budgets", training_budgets,
        "--checkpoints", str(checkpoints), "--eval-batch-size", "32",
    )  # fmt: skip
    result = {
        "command": shlex.join(["python", "bench/evidence.py", *sys.argv[1:]]),
        "environment": environment.environment().as_json(),
        "countdown": countdown,
        "countdown_cool": cool,
        "training": training,
        "chains": reflections(runs[0], n),
    }
    # Paths of the machine that measured mean nothing to readers.
    atomic.write_json(args.out, json.loads(json.dumps(result).replace(str(args.work), "DIR")))
    print(args.out)


if __name__ == "__main__":
    main()
