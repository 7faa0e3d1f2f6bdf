"""What a model gains from its own attempts: `python bench/self_training.py --runs DIR --out bench/results/self_training.json`.

For each seed, the embedded base imitates solutions of countdown (`sft`), and from that start learns by rejection sampling
(`rft`), by GRPO (`grpo`), by two of them one after the other (`rft+grpo`, `grpo+rft`, `rft+rft`), and by more imitation (`more sft`:
other problems with their given solutions). Every stage is a run of the command line, scored on the same held-out problems with greedy
answers, and again with one answer to each at temperature 1. Stages that are complete in DIR are not run again, one that was cut off is
resumed, and the result is written after each: it may be stopped at any time.

Tokens are those that a stage processed: sampled ones, and trained ones times the passes over them. `equal compute` compares the
stages at those figures; they are not made equal beforehand.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resumable import cost_of, flags_of, run_once

from cot_unsloth.core import trace
from cot_unsloth.core.results import ArmResult, FitReport, Paired, Rounds, Scorecard
from cot_unsloth.core.statistics import wilson
from cot_unsloth.lab.compare import compare
from cot_unsloth.storage import records
from cot_unsloth.storage.atomic import write_json
from cot_unsloth.storage.environment import environment
from cot_unsloth.storage.run_folder import RunDir

LATER = 100
"""Added to the seed of the start for the problems of the stages that learn from their own attempts, once for each stage before."""

STAGES_BEFORE = {None: 0, "sft": 1, "rft": 2, "grpo": 2}
"""By the name of the stage that is continued: the problems of `rft` are solved nearly always after it."""


@dataclass(frozen=True)
class Stage:
    """One run of `train`."""

    name: str
    flags: dict[str, str]
    after: str | None = None
    """The stage whose adapter it continues."""


def stages(args: argparse.Namespace) -> list[Stage]:
    """The stages of one seed, in the order in which they can be run."""
    sft = {"dataset": args.dataset, "world_samples": str(args.rows)}
    problems = {"dataset": args.dataset, "world_samples": str(args.problems)}
    rft = {
        **problems, "method": "rft", "rounds": str(args.rounds), "samples_per_problem": str(args.k),
        "learning_rate": str(args.rft_rate), "num_train_epochs": str(args.rft_epochs), "max_per_problem": str(args.max_per_problem),
    }  # fmt: skip
    grpo = {
        **problems, "method": "grpo", "max_steps": str(args.grpo_steps), "learning_rate": str(args.grpo_rate),
        "lr_scheduler_type": "constant_with_warmup", "max_completion_length": str(args.completion_length),
        "rollout_temperature": str(args.rollout_temperature), "reward_overlong": str(args.reward_overlong),
        **dict(setting.split("=", 1) for setting in args.grpo_set),
    }  # fmt: skip
    # The problems of a task depend on how many are drawn: the first `rows` are those of the start.
    more = {
        "dataset": args.dataset, "world_samples": str(args.rows + args.more_rows), "num_train_epochs": str(args.more_epochs),
        "learning_rate": str(args.more_rate),
    }  # fmt: skip
    known = [
        Stage("sft", sft),
        Stage("rft", rft, "sft"),
        Stage("grpo", grpo, "sft"),
        Stage("rft+grpo", grpo, "rft"),
        Stage("grpo+rft", rft, "grpo"),
        Stage("rft+rft", rft, "rft"),
        Stage("more sft", more, "sft"),
    ]
    return [stage for stage in known if stage.name in args.stages]


def run_stage(stage: Stage, seed: int, args: argparse.Namespace) -> RunDir | None:
    """Run a stage, or continue it, or leave it where it is complete; None if it failed."""
    folder = args.runs / f"seed{seed}" / stage.name.replace(" ", "-")
    run = folder / "run"
    if args.only_complete and not (folder / "done.json").is_file():
        return None
    # Other problems than those that the start was trained on.
    own = seed + (0 if stage.name == "more sft" else LATER * STAGES_BEFORE[stage.after])
    flags = {
        "seed": str(own), "eval_samples": str(args.n), "eval_seed": str(args.eval_seed), "arms": "base_tags,tuned",
        "gguf": "", "max_new_tokens": str(args.max_new_tokens), "run_dir": str(run), **stage.flags,
    }  # fmt: skip
    if stage.after:
        flags["init_adapter"] = str(args.runs / f"seed{seed}" / stage.after.replace(" ", "-") / "run")
    # No path of this machine: the folder is named as in the command of the whole.
    benchmark = Path(stage.flags.get("benchmark_path", "\0/\0"))
    paths = {
        str(args.runs): "DIR", stage.flags.get("model_name_or_path", "\0"): "MODEL", str(benchmark.parent): "GSM8K",
    }  # fmt: skip
    return RunDir(run) if run_once(folder, "train", ["--no-gate", *flags_of(flags)], paths) else None


def result_of(stage: Stage, run: RunDir) -> dict[str, Any]:
    """The figures of a stage."""
    card, done = Scorecard.read(run.scorecard), cost_of(run.path.parent)
    return {
        "stage": stage.name,
        "command": done["command"],
        "seconds": done["seconds"],
        "git": done.get("git"),
        "n": card.n,
        "eval_seed": card.seed,
        "arms": {arm: _arm(figures) for arm, figures in card.arms.items()},
        "repeating": _repeating(run),
        "paired": [_pair(pair) for pair in card.paired],
        "tokens": _tokens(run),
        "forgetting": card.forgetting.model_dump(mode="json") if card.forgetting else None,
        **_curves(run),
    }


def answer_sampled(run: RunDir, args: argparse.Namespace) -> RunDir | None:
    """Let a stage's model answer the held-out problems at temperature 1; None if that failed, or is left out."""
    folder = run.path.parent / "sampled"
    if args.only_complete and not (folder / "done.json").is_file():
        return None
    flags = {"arms": "tuned", "temperature": "1", "forgetting": "none", "out": str(folder / "scores")}
    done = run_once(folder, "evaluate", [str(run.path), *flags_of(flags)], {str(args.runs): "DIR"})
    return RunDir(folder / "scores") if done else None


def sampled_result(scores: RunDir, start: RunDir | None) -> dict[str, Any]:
    """Its figures, and the difference to the start's answers at temperature 1."""
    card = Scorecard.read(scores.scorecard)
    return {
        "temperature": card.decoding.temperature,
        "n": card.n,
        **_arm(card.arms["tuned"]),
        "repeating": _repeating(scores),
        "against_start": _compared(start, scores, "start") if start else None,
    }


def _repeating(run: RunDir) -> dict[str, float | None]:
    """The share of the tuned answers that have the same thinking before two of their reflections, and how many of these are right."""
    answers = records.read_completions(run.completions("tuned"))
    again = []
    for answer in answers:
        tries = [part.text.strip() for part in trace.parse(answer.text).parts if part.kind == "think"]
        if len(set(tries)) < len(tries):
            again.append(answer)
    right = sum(answer.correct for answer in again)
    return {"share": round(len(again) / len(answers), 4), "right": round(right / len(again), 4) if again else None}


def _arm(arm: ArmResult) -> dict[str, Any]:
    first = next(iter(arm.by_task.values())).first_try if len(arm.by_task) == 1 else None
    return {
        "accuracy": arm.accuracy,
        "ci95": list(arm.ci95),
        "first_try": None if first is None else {"accuracy": first.accuracy, "ci95": list(first.ci95)},
        "format_valid": arm.format_valid,
        "truncated": arm.truncated,
        "mean_tokens": arm.mean_tokens,
    }


def _compared(before: RunDir, after: RunDir, name: str) -> dict[str, Any]:
    """The difference between the tuned answers of two folders, the first called by a name."""
    return _pair(compare([before.path, after.path], names=(name, "stage")).pairs[0])


def _pair(pair: Paired) -> dict[str, Any]:
    return {
        "before": pair.before, "after": pair.after, "difference": pair.difference, "ci95": list(pair.ci95),
        "mcnemar_p": pair.mcnemar_p,
    }  # fmt: skip


def _tokens(run: RunDir) -> dict[str, int]:
    """Tokens sampled and tokens trained on (times the passes over them) by one stage."""
    file = run.path / "rounds.json"
    if file.is_file():
        rounds = Rounds.read(file).rounds
        trained = sum(_trained(folder) for folder in sorted((run.path / "rounds").glob("*/metrics.jsonl")))
        return {"sampled": sum(each.sampled_tokens for each in rounds), "trained": trained}
    drawn = FitReport.read(run.fit_report).supervised if run.read_config().train.method == "grpo" else 0
    return {"sampled": drawn, "trained": _trained(run.metrics)}


def _trained(metrics: Path) -> int:
    rows = [row for row in records.read_jsonl(metrics) if "num_tokens" in row]
    return int(rows[-1]["num_tokens"]) if rows else 0


def _curves(run: RunDir) -> dict[str, Any]:
    file = run.path / "rounds.json"
    return {"rounds": json.loads(file.read_text("utf-8"))} if file.is_file() else {}


def pooled(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy of each stage over the problems of all seeds, and its gain over the start in each seed."""
    summary: dict[str, Any] = {}
    for name in dict.fromkeys(row["stage"] for row in results):
        rows = [row for row in results if row["stage"] == name]
        n = sum(row["n"] for row in rows)
        right = round(sum(row["n"] * row["arms"]["tuned"]["accuracy"] for row in rows))
        starts = {row["seed"]: row["arms"]["tuned"]["accuracy"] for row in results if row["stage"] == "sft"}
        summary[name] = {
            "seeds": [row["seed"] for row in rows],
            "n": n,
            "accuracy": right / n,
            "ci95": [round(bound, 4) for bound in wilson(right, n)],
            "gains": [
                round(row["arms"]["tuned"]["accuracy"] - starts[row["seed"]], 4)
                for row in rows
                if row["seed"] in starts
            ],
            "first_try": _first_try(rows),
            "format_valid": sum(row["arms"]["tuned"]["format_valid"] for row in rows) / len(rows),
        }
    return summary


def _first_try(rows: Sequence[dict[str, Any]]) -> float | None:
    shares = [row["arms"]["tuned"]["first_try"] for row in rows]
    return sum(share["accuracy"] for share in shares) / len(shares) if all(shares) else None


def _changed(parser: argparse.ArgumentParser, args: argparse.Namespace) -> str:
    """The options of the stages that differ from their defaults, as they are written."""
    own = ("runs", "out", "seeds", "stages", "only_complete")
    changed = {
        name: value for name, value in vars(args).items() if name not in own and value != parser.get_default(name)
    }
    values = {name: value if isinstance(value, list) else [value] for name, value in changed.items()}
    return "".join(f" --{name.replace('_', '-')} {' '.join(map(str, value))}" for name, value in values.items())


def _parser() -> argparse.ArgumentParser:
    names = ("sft", "rft", "grpo", "rft+grpo", "grpo+rft", "rft+rft", "more sft")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="where the runs go, and are continued")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--stages", nargs="+", choices=names, default=list(names))
    parser.add_argument("--dataset", default="world:countdown")
    parser.add_argument("--rows", type=int, default=1800, help="solutions that the start imitates")
    parser.add_argument("--more-rows", type=int, default=1800)
    parser.add_argument("--more-epochs", type=float, default=1, help="passes of `more sft` over its rows")
    parser.add_argument("--more-rate", type=float, default=2e-3, help="learning rate of `more sft`")
    parser.add_argument("--problems", type=int, default=1200, help="problems of rft and grpo")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--k", type=int, default=8, help="attempts at each problem")
    parser.add_argument("--rft-rate", type=float, default=2e-3)
    parser.add_argument("--rft-epochs", type=float, default=1, help="passes over its rows in a round")
    parser.add_argument("--max-per-problem", type=int, default=4, help="rows that rft may keep of a problem")
    parser.add_argument("--grpo-steps", type=int, default=300)
    parser.add_argument("--grpo-rate", type=float, default=5e-4)
    parser.add_argument("--completion-length", type=int, default=256, help="tokens of an attempt of grpo")
    parser.add_argument("--rollout-temperature", type=float, default=1, help="of the attempts of grpo")
    parser.add_argument("--reward-overlong", type=float, default=0.2, help="weight of the length penalty of grpo")
    parser.add_argument(
        "--grpo-set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="other settings of grpo, such as dev_problems=128",
    )
    parser.add_argument("--n", type=int, default=600, help="held-out problems")
    parser.add_argument("--eval-seed", type=int, default=1000)
    parser.add_argument("--max-new-tokens", type=int, default=400)
    parser.add_argument(
        "--only-complete", action="store_true", help="run nothing: collect the stages that are complete"
    )
    return parser


def main() -> None:
    """Run what is missing, and write the result after each stage."""
    parser = _parser()
    args = parser.parse_args()
    results: list[dict[str, Any]] = []
    sampled: dict[tuple[int, str], RunDir | None] = {}
    starts: dict[int, RunDir] = {}
    made_in = environment().as_json()  # before the result is written, which changes the working tree
    for seed in map(int, args.seeds.split(",")):
        for stage in stages(args):
            run = run_stage(stage, seed, args)
            if run is None:
                continue
            results.append({"seed": seed, **result_of(stage, run)})
            if stage.name == "sft":
                starts[seed] = run
            elif stage.after != "sft" and seed in starts:
                results[-1]["against_sft"] = _compared(starts[seed], run, "sft")
            sampled[seed, stage.name] = answered = answer_sampled(run, args)
            if answered:
                start = sampled.get((seed, "sft")) if stage.name != "sft" else None
                results[-1]["sampled"] = sampled_result(answered, start)
            write_json(
                args.out,
                {
                    "command": f"python bench/self_training.py --runs DIR --out {args.out} --seeds {args.seeds} "
                    f"--stages {' '.join(map(shlex.quote, args.stages))}"
                    + _changed(parser, args)
                    + " --only-complete" * args.only_complete,
                    "environment": made_in,
                    "interval": "Wilson, 95%; of differences Bonett-Price, 95%",
                    "pooled": pooled(results),
                    "results": results,
                },
            )


if __name__ == "__main__":
    main()
