"""What each technique gains, costs and forgets: `python bench/techniques.py --runs DIR --out bench/results/techniques.json`.

For each seed and technique one run of `train` on the same rows, in the same order, for the same number of steps, so that all see
the same tokens; scored on the same held-out problems, and before and after on a task that is not trained on. Runs that are
complete in DIR, or in the file of results with the same command, are not run again, one that was cut off is resumed, and the result
is written after each: it may be stopped at any time. `--model FOLDER` takes another model than the embedded base, with `--techniques` for some of them.

The embedded base solves no task without training, so that it has nothing to forget. So it is first taught the task of `--forgetting`
by one run of LoRA, which is merged, and all techniques begin with that model. `--model` is taken as it is.

A rate that suits LoRA is too high for every weight, for PiSSA, whose factors begin large, and for LoRA+, which multiplies it for B:
VeRA trains scales of random directions and needs a higher one. `RATE` holds fixed factors, chosen before any run. `--rates` adds other rates, each of which is reported; none is selected.

Memory is the largest resident set of the process (with imports, about 600 MB, and with scoring), and that of the optimizer's state
on disk. On a GPU `peak_gpu_bytes` is of training.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resumable import cost_of, flags_of, run_once, shown_command

from cot_unsloth.config.techniques import TECHNIQUES
from cot_unsloth.core.results import FitReport, Scorecard
from cot_unsloth.core.statistics import wilson
from cot_unsloth.models.techniques import supported
from cot_unsloth.storage.atomic import write_json
from cot_unsloth.storage.environment import environment
from cot_unsloth.storage.run_folder import RunDir

RATE = {"full": 0.1, "pissa": 0.25, "lora+": 0.125, "vera": 10.0}
"""Factors of `--rates`, for techniques that a rate of LoRA does not suit. In LoRA+ A has 1/16 of the rate of B, so twice that; in
VeRA a step changes the scale of a random direction, which is a tenth at first."""


TINY = {
    "per_device_train_batch_size": "8", "gradient_accumulation_steps": "1", "max_seq_length": "640", "max_new_tokens": "400",
    "gguf": "",
}  # fmt: skip
"""Settings of configs/tiny-cpu.yaml, which a merged folder of the embedded base would not get."""


def taught(args: argparse.Namespace) -> Path | None:
    """The model that all techniques begin with; None if it could not be trained."""
    if args.model:
        return Path(args.model)
    flags = TINY | {
        "dataset": args.forgetting, "world_samples": str(args.teach_rows), "learning_rate": "4e-3", "eval_samples": str(args.n),
        "arms": "tuned", "forgetting": "none", "merged": "true", "export_dtype": "float32",
        "system_prompt": "",  # as the problems of `--forgetting` are asked
    }  # fmt: skip
    run = run_one(args.runs / "taught", flags, args)
    return run.export / "merged" if run else None


def technique_flags(technique: str, seed: int, rate: float, model: Path, args: argparse.Namespace) -> dict[str, str]:
    """The settings of one run."""
    return ({} if args.model else TINY) | {
        "model_name_or_path": str(model), "technique": technique, "seed": str(seed),
        "learning_rate": f"{rate * RATE.get(technique, 1):g}", "dataset": args.dataset, "world_samples": str(args.rows),
        "lora_r": str(args.rank), "lora_alpha": str(2 * args.rank), "eval_samples": str(args.n),
        "eval_seed": str(args.eval_seed), "arms": "base_tags,tuned", "forgetting": args.forgetting,
        "max_new_tokens": str(args.max_new_tokens),
    }  # fmt: skip


def arguments_of(folder: Path, flags: dict[str, str], args: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """The arguments of `train`, and the names of the paths in them."""
    arguments = ["--no-gate", *flags_of({**flags, "run_dir": str(folder / "run")}), *args.more.split()]
    return arguments, {str(args.runs): "DIR", **({str(args.model): "MODEL"} if args.model else {})}


def run_one(folder: Path, flags: dict[str, str], args: argparse.Namespace) -> RunDir | None:
    """Train with these settings, or continue, or leave a run where it is complete; None if it failed."""
    return RunDir(folder / "run") if run_once(folder, "train", *arguments_of(folder, flags, args)) else None


def measured_before(file: Path) -> dict[str, dict[str, Any]]:
    """The results in a file, by the command of each."""
    results = json.loads(file.read_text("utf-8"))["results"] if file.is_file() else []
    return {row["command"]: row for row in results}


def result_of(run: RunDir) -> dict[str, Any]:
    """The figures of a run."""
    card, fit = Scorecard.read(run.scorecard), FitReport.read(run.fit_report)
    tuned, base = card.arms["tuned"], card.arms["base_tags"]
    states = sorted(run.checkpoints.glob("checkpoint-*/optimizer.pt"))
    return {
        **cost_of(run.path.parent),
        "training_seconds": fit.seconds,
        "tokens": fit.tokens,
        "steps": fit.steps,
        "loss_last": fit.loss_last,
        "trained_weights": fit.extra.trainable_parameters,
        "peak_gpu_bytes": fit.extra.peak_gpu_bytes,
        "optimizer_bytes": states[-1].stat().st_size if states else None,
        "n": card.n,
        "accuracy": tuned.accuracy,
        "ci95": list(tuned.ci95),
        "format_valid": tuned.format_valid,
        "base_accuracy": base.accuracy,
        "forgetting": card.forgetting.model_dump(mode="json") if card.forgetting else None,
    }


def pooled(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Each technique over the problems of all seeds; where it forgets, over those of the task that is not trained on."""
    summary: dict[str, Any] = {}
    for name, rate in dict.fromkeys((row["technique"], row["rate"]) for row in results):
        rows = [row for row in results if (row["technique"], row["rate"]) == (name, rate)]
        n = sum(row["n"] for row in rows)
        right = round(sum(row["n"] * row["accuracy"] for row in rows))
        lost = [row["forgetting"] for row in rows if row["forgetting"]]
        summary[f"{name} at {rate:g}"] = {
            "seeds": [row["seed"] for row in rows],
            "n": n,
            "accuracy": round(right / n, 4) if n else None,
            "ci95": [round(bound, 4) for bound in wilson(right, n)] if n else None,
            "by_seed": [row["accuracy"] for row in rows],
            "training_seconds": round(sum(row["training_seconds"] for row in rows) / len(rows), 1),
            "peak_bytes": max(row["peak_bytes"] for row in rows),
            "optimizer_bytes": rows[0]["optimizer_bytes"],
            "trained_weights": rows[0]["trained_weights"],
            "forgetting": _forgotten(lost) if lost else None,
        }
    return summary


def _forgotten(lost: Sequence[dict[str, Any]]) -> dict[str, Any]:
    n = sum(row["n"] for row in lost)
    after = round(sum(row["n"] * row["after"]["accuracy"] for row in lost))
    return {
        "task": lost[0]["task"],
        "n": n,
        "before": sum(row["n"] * row["before"]["accuracy"] for row in lost) / n,
        "after": after / n,
        "ci95_after": [round(bound, 4) for bound in wilson(after, n)],
    }


def command_of(args: argparse.Namespace) -> str:
    """The whole command, with names in place of this machine's folders."""
    model = ["--model", "MODEL"] if args.model else []
    values = {
        "--seeds": args.seeds, "--rates": args.rates, "--rank": args.rank, "--dataset": args.dataset, "--rows": args.rows,
        "--forgetting": args.forgetting, "--teach-rows": args.teach_rows, "--n": args.n, "--eval-seed": args.eval_seed,
        "--max-new-tokens": args.max_new_tokens, **({"--more": args.more} if args.more else {}),
    }  # fmt: skip
    flags = [part for name, value in values.items() for part in (name, str(value))]
    command = ["python", "bench/techniques.py", "--runs", "DIR", "--out", str(args.out), *model]
    return shlex.join([*command, "--techniques", *args.techniques, *flags])


def main() -> None:
    """Run what is missing, and write the result after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="where the runs go, and are continued")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="a folder, instead of the embedded base")
    parser.add_argument("--techniques", nargs="+", choices=list(TECHNIQUES), default=list(supported("hf", 16)))
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--rates", default="4e-3", help="learning rates of LoRA; 2e-4 is usual with --model")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dataset", default="world:chains,countdown")
    parser.add_argument("--rows", type=int, default=2400)
    parser.add_argument(
        "--forgetting",
        default="world:words:1-2",
        help="a task that is not trained on, and that the base is taught first",
    )
    parser.add_argument("--teach-rows", type=int, default=2400)
    parser.add_argument("--n", type=int, default=300, help="held-out problems")
    parser.add_argument("--eval-seed", type=int, default=1000)
    parser.add_argument("--max-new-tokens", type=int, default=400)
    parser.add_argument("--more", default="", help="further flags of train, in one argument")
    args = parser.parse_args()
    results: list[dict[str, Any]] = []
    before = measured_before(args.out)
    model = taught(args)
    if model is None:
        sys.exit(1)
    for seed in map(int, args.seeds.split(",")):
        for rate in map(float, args.rates.split(",")):
            for technique in args.techniques:
                folder = args.runs / f"seed{seed}" / f"{technique}-{rate:g}"
                flags = technique_flags(technique, seed, rate, model, args)
                row = before.get(shown_command("train", *arguments_of(folder, flags, args)))
                if row is None:
                    run = run_one(folder, flags, args)
                    if run is None:
                        continue
                    row = {"technique": technique, "seed": seed, "rate": rate, **result_of(run)}
                results.append(row)
                write_json(
                    args.out,
                    {
                        "command": command_of(args),
                        "environment": environment().as_json(),
                        "interval": "Wilson, 95%",
                        "pooled": pooled(results),
                        "results": results,
                    },
                )


if __name__ == "__main__":
    main()
