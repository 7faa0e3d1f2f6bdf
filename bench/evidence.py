"""What docs/evaluation.md shows: `python bench/evidence.py --work DIR`.

Three trainings of the demo that differ in their seed, with their checkpoints; accuracy against tokens at test
time (countdown, where one can try again; at two temperatures) and against tokens of training (all families); and what reflections do
on chains, as the model writes them, with one step of its right answers made wrong, and with steps made wrong under
its pen. Resumable: what stands in DIR whole is not measured again. About an hour and a half on two cores.
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
from cot_unsloth.core.types import Example, Score
from cot_unsloth.evaluation import error_injection, reflection, score, scorecard
from cot_unsloth.evaluation.arms import score_arm
from cot_unsloth.models.target import Target
from cot_unsloth.storage import atomic, environment
from cot_unsloth.storage.run_folder import RunDir

RESULT = Path(__file__).parent / "results" / "evidence.json"
SEEDS = (3407, 1, 2)
BUDGETS = "70,100,140,200,280,400"
"""A try at countdown, and multiples of about 1.4 of it."""


def run(*args: str) -> str:
    """Run a command of ours unless its result stands already; returns it as one types it."""
    print("$", shlex.join(("cot-unsloth", *args)), file=sys.stderr)
    subprocess.run([sys.executable, "-m", "cot_unsloth", *args], check=True)
    return shlex.join(("cot-unsloth", *args))


def trained(work: Path, seed: int, few: bool) -> RunDir:
    """A run of the demo with its checkpoints."""
    place = RunDir(work / f"seed{seed}")
    if not place.adapter.is_dir():
        less = (
            ["--max-steps", "8", "--save-steps", "4", "--world-samples", "64", "--max-new-tokens", "48"] if few else []
        )
        keep = ["--save-steps", "25", "--save-total-limit", "100", "--eval-samples", "0", "--gguf", ""]
        run("train", "--seed", str(seed), "--run-dir", str(place.path), *keep, *less)
    return place


def curve(work: Path, name: str, *args: str) -> dict[str, Any]:
    """One `evaluate --curves`, and its command."""
    out = work / name
    command = shlex.join(("cot-unsloth", "evaluate", *args, "--curves", "--out", str(out)))
    if not (out / "curves.json").is_file():
        run("evaluate", *args, "--curves", "--out", str(out))
    return {"command": command, **Curves.read(out / "curves.json").as_json()}


def reasoning(examples: Sequence[Example], scores: Sequence[Score]) -> dict[str, Any]:
    """What reflections do and how the four aims are met, as the result file holds them."""
    metrics, aims = reflection.summary(examples, scores)
    return {"reflection": metrics.as_json(), "aims": aims.as_json()}


def reflections(place: RunDir, n: int) -> dict[str, Any]:
    """Chains as the model writes them, with one step made wrong afterwards, and with steps made wrong as it writes."""
    before = place.read_config()
    config = before.overridden({"dataset": "world:chains", "eval_batch_size": 64})
    spec, seed = config.data.dataset, config.evaluate.eval_seed
    examples = tasks.generate(spec, split="test", n=n, seed=seed)
    renderer, engine = Target(config, place.adapter).load()
    scores = score_arm(engine, renderer, examples, "tuned", config.sampling_params)
    pairs = list(zip(tasks.problems(spec, split="test", n=n, seed=seed), examples, strict=True))
    found = error_injection.solve_with_errors(
        engine, renderer, pairs, rate=0.2, seed=seed, sampling=config.sampling_params
    )
    under = [score.judge(e, r.completion, tagged=True) for e, r in zip(examples, found, strict=True)]
    return {
        "n": n,
        "seed": seed,
        "as_written": {"accuracy": scorecard.arm_result(scores).accuracy, **reasoning(examples, scores)},
        "one_step_wrong": error_injection.corrupt_right_answers(
            engine, renderer, examples, scores, sampling=config.sampling_params, seed=seed
        ).as_json(),
        "rate": 0.2,
        "under_errors": {
            **error_injection.summarize(found, examples).as_json(),
            **reasoning(examples, under),
        },
    }


def main() -> None:
    """Measure what is not there yet, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--tiny", action="store_true", help="the same code in a minute, for a test")
    given = parser.parse_args()
    n, samples, checkpoints = (6, 2, 2) if given.tiny else (given.n, 8, 8)
    budgets, few_budgets, training_budgets = (
        ("8,12,16,24,32,48", "8,16,48", "8,16,32") if given.tiny else (BUDGETS, "70,140,400", "100,200,400")
    )
    runs = [trained(given.work, seed, given.tiny) for seed in SEEDS[: 2 if given.tiny else 3]]
    paths = [str(place.path) for place in runs]
    countdown = curve(
        given.work, "countdown", paths[0], "--dataset", "world:countdown", "--eval-samples", str(n),
        "--budgets", budgets, "--samples", str(samples), "--think-again", "2", "--checkpoints", "0", "--eval-batch-size", "64",
    )  # fmt: skip
    cool = curve(
        given.work, "cool", paths[0], "--dataset", "world:countdown", "--eval-samples", str(n), "--budgets", few_budgets,
        "--samples", str(samples // 2), "--sample-temperature", "0.3", "--checkpoints", "0", "--eval-batch-size", "64",
    )  # fmt: skip
    training = curve(
        given.work, "training", *paths, "--eval-samples", str(n // 2), "--samples", "2", "--budgets", training_budgets,
        "--checkpoints", str(checkpoints), "--eval-batch-size", "32",
    )  # fmt: skip
    found = {
        "command": shlex.join(["python", "bench/evidence.py", *sys.argv[1:]]),
        "environment": environment.environment().as_json(),
        "countdown": countdown,
        "countdown_cool": cool,
        "training": training,
        "chains": reflections(runs[0], n),
    }
    # A result holds no path of the machine that it was made on.
    atomic.write_json(given.out, json.loads(json.dumps(found).replace(str(given.work), "DIR")))
    print(given.out)


if __name__ == "__main__":
    main()
