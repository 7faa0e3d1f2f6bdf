"""Does reflection data teach self-correction? `python bench/recovery.py --out bench/results/recovery.json`.

For each seed the embedded base is fine-tuned twice with `train`, on equally many training tokens: once on clean
solutions, once on solutions in which 20% of the steps are corrupted and then corrected in a reflection. Both models then
solve held-out problems, first undisturbed, then with each step that they write corrupted with a probability of 20%
(`cot_unsloth.evaluation.error_injection`). Such figures must be called "injected" wherever they are shown: these are not
the errors that a model makes by itself.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cot_unsloth import config, tasks
from cot_unsloth.core.progress import note
from cot_unsloth.core.threads import limit_spinning
from cot_unsloth.core.types import Sample
from cot_unsloth.evaluation.error_injection import CorruptedSolution, solve_with_errors, summarize
from cot_unsloth.models.target import Target
from cot_unsloth.prompts.opening import open_renderer
from cot_unsloth.prompts.render import Renderer
from cot_unsloth.storage.atomic import write_json
from cot_unsloth.storage.environment import environment

RATE = 0.2
LONGEST = 640
"""New tokens; corrections make a solution longer."""


def tokens_of(renderer: Renderer, dataset: str, n: int, seed: int, error_rate: float) -> list[int]:
    """The number of tokens of each training row."""
    rows = tasks.generate(dataset, split="train", n=n, seed=seed, error_rate=error_rate)
    return [len(row.ids) for row in map(renderer.sample, rows) if isinstance(row, Sample)]


def train(dataset: str, rows: int, error_rate: float, seed: int, folder: Path) -> Path:
    """Train one run; returns its adapter.

    Raises:
        subprocess.CalledProcessError: the run failed.
    """
    flags = {"dataset": dataset, "world-samples": rows, "world-error-rate": error_rate, "seed": seed}
    command = [sys.executable, "-m", "cot_unsloth.train", "--eval-samples", "0", "--run-dir", str(folder)]
    command += [text for flag, value in flags.items() for text in (f"--{flag}", str(value))]
    subprocess.run(command, check=True)
    return folder / "adapter"


def measure(adapter: Path, dataset: str, n: int, seed: int) -> dict[str, Any]:
    """The figures of one adapter, undisturbed and with injected errors."""
    settings = config.load()
    renderer, engine = Target(settings, adapter).load()
    problems = tasks.problems(dataset, split="test", n=n, seed=seed)
    examples = tasks.generate(dataset, split="test", n=n, seed=seed)
    pairs = list(zip(problems, examples, strict=True))
    sampling = replace(settings.sampling_params, batch_size=150, max_new_tokens=LONGEST)
    figures: dict[str, Any] = {}
    for name, rate in (("undisturbed", 0.0), ("injected", RATE)):
        recovered = solve_with_errors(engine, renderer, pairs, rate=rate, seed=seed, sampling=sampling)
        figures[name] = summarize(recovered, examples).as_json()
    return figures | {"shown": example_of(recovered)}


def example_of(recovered: Sequence[CorruptedSolution]) -> dict[str, Any]:
    """A solution for readers: of the first 20, the one with the most corrupted steps."""
    most = max(recovered[:20], key=lambda solution: len(solution.corrupted))
    corrupted = sorted(number + 1 for number in most.corrupted)  # lines of thinking; a restated start value is one too
    return {"question": most.problem.question, "text": most.completion.text, "made_wrong": corrupted}


def one_seed(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The figures of both models of a seed."""
    settings = config.load()
    renderer = open_renderer(settings.model, settings.data)
    # The clean run gets as many rows as fit into the tokens of the other: reflections make rows longer.
    reflecting = tokens_of(renderer, args.dataset, args.rows, seed, RATE)
    clean = list(itertools.accumulate(tokens_of(renderer, args.dataset, 2 * args.rows, seed, 0.0)))
    rows = {"with reflections": args.rows, "without": sum(total <= sum(reflecting) for total in clean)}
    tokens = {"with reflections": sum(reflecting), "without": clean[rows["without"] - 1]}
    result: dict[str, Any] = {"seed": seed, "eval_seed": args.eval_seed + seed}
    with tempfile.TemporaryDirectory() as folder:
        for arm, error_rate in (("with reflections", RATE), ("without", 0.0)):
            adapter = train(args.dataset, rows[arm], error_rate, seed, Path(folder) / arm.replace(" ", "-"))
            scores = measure(adapter, args.dataset, args.n, result["eval_seed"])
            result[arm] = {"rows": rows[arm], "tokens": tokens[arm]} | scores
            note(f"seed {seed}, {arm}: {result[arm]}")
    return result


def main() -> None:
    """Train and measure for all seeds; write the result after each."""
    limit_spinning()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dataset", default="world:chains:4-8")
    parser.add_argument("--rows", type=int, default=2400, help="training rows with reflections")
    parser.add_argument("--n", type=int, default=300, help="held-out problems")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--eval-seed", type=int, default=1000)
    args = parser.parse_args()
    started_in = environment().as_json()  # before the runs, so that it names the commit they started from
    result = {
        "command": f"python bench/recovery.py --dataset {args.dataset} --rows {args.rows} --n {args.n} "
        f"--seeds {args.seeds} --eval-seed {args.eval_seed}",
        "environment": started_in,
        "interval": "Wilson, 95%",
        "injected": f"each step is corrupted with probability {RATE}, both in training data and while solving",
        "runs": [],
    }
    for seed in map(int, args.seeds.split(",")):
        result["runs"].append(one_seed(args, seed))
        write_json(args.out, result)


if __name__ == "__main__":
    main()
