"""A real instruct model through every stage: `python bench/real.py --model DIR --runs DIR --out bench/results/real_stages.json`.

SmolLM2-135M-Instruct (`scripts/smollm2.py` makes the folder) is scored as it is, in three ways, and then trained in stages: on given
solutions (`sft`), on its own verified attempts from the base (`rft`) and after imitation (with few problems and with more), and by GRPO
after each. Every stage is scored on the same held-out problems, and on questions that are not trained on. Two kinds of problems: short word
problems of ours (`words`), and GSM8K's test rows (`gsm8k`, with `--gsm8k` a folder of train.jsonl and test.jsonl). The last stage is
exported as Q8_0 and scored in llama.cpp. Stages that are complete in the folder of the runs are not run again, and one that was cut off is
resumed. Results of kinds that are not asked for stay in the file.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from self_training import Stage, result_of, run_stage

from cot_unsloth.evaluation.scorecard import paired
from cot_unsloth.storage.atomic import write_json
from cot_unsloth.storage.environment import environment
from cot_unsloth.storage.records import read_completions
from cot_unsloth.storage.run_folder import RunDir

COMMON = {
    "per_device_train_batch_size": "8", "gradient_accumulation_steps": "1", "max_seq_length": "1024", "lora_r": "32",
    "lora_alpha": "64", "save_steps": "20", "arms": "tuned", "forgetting": "general",
}  # fmt: skip
BASE_ARMS = "base_direct,base_cot,base_tags,tuned"


def stages(kind: str, args: argparse.Namespace) -> list[Stage]:
    """The stages on one kind of problems."""
    common = {**COMMON, "model_name_or_path": str(args.model)}
    if kind == "words":
        common |= {"dataset": "world:words:2-3", "max_new_tokens": "200"}
        given, problems = {"world_samples": "600"}, {"world_samples": "300"}
    else:
        common |= {
            "dataset": str(args.gsm8k / "train.jsonl"), "benchmark": "gsm8k", "max_new_tokens": "256",
            "benchmark_path": str(args.gsm8k / "test.jsonl"),
        }  # fmt: skip
        given, problems = {"max_train_samples": "600"}, {"max_train_samples": "150"}
    rft = {
        **common, **problems, "method": "rft", "rounds": str(args.rounds), "samples_per_problem": "8", "worked_examples": "2",
    }  # fmt: skip
    # Half of the start's rate, as docs/sampling.md advises.
    later = {**rft, "learning_rate": "2.5e-4", "rounds": "1", **({"world_samples": "160"} if kind == "words" else {})}
    # As docs/sampling.md advises: hundreds of problems, all corrections, three passes.
    more = {**later, "world_samples": "640", "max_per_problem": "16", "num_train_epochs": "3"}
    # As many given solutions as `more` has problems, and as many passes.
    imitated = {**common, "world_samples": "512", "num_train_epochs": "3", "learning_rate": "2.5e-4"}
    grpo = {**common, **problems, "method": "grpo", "max_steps": str(args.grpo_steps), "learning_rate": "1e-4"}
    last = {"gguf": "q8_0", "export_samples": "10"}
    return [
        Stage("sft", {**common, **given, "learning_rate": "5e-4", "arms": BASE_ARMS}),
        Stage("rft", {**rft, "learning_rate": "5e-4"}),
        Stage("sft+rft", later, "sft"),
        *([Stage("sft+rft, more", more, "sft"), Stage("sft+sft", imitated, "sft")] if kind == "words" else []),
        Stage("sft+grpo", {**grpo, **last}, "sft"),
        Stage("rft+grpo", grpo, "rft"),
    ]


STAGES = ("sft", "rft", "sft+rft", "sft+rft, more", "sft+sft", "sft+grpo", "rft+grpo")


COMPARED = (("sft", "sft+rft, more"), ("sft+sft", "sft+rft, more"), ("sft", "sft+sft"))
"""Stages whose answers are compared, on the problems and on the general questions."""


def comparisons(runs: Mapping[str, RunDir]) -> list[dict[str, object]]:
    """The pairs of `COMPARED` that were run: gained, lost, the difference and the exact McNemar test."""
    rows: list[dict[str, object]] = []
    for before, after in COMPARED:
        if before not in runs or after not in runs:
            continue
        for questions, arm in (("problems", "tuned"), ("general", "forgetting_after")):
            scores = {name: read_completions(runs[name].completions(arm)) for name in (before, after)}
            pair = paired(before, after, scores).model_dump(mode="json")
            rows.append({"questions": questions, "n": len(scores[after]), **pair})
    return rows


def main() -> None:
    """Run what is missing, and write the result after each stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="the folder of SmolLM2-135M-Instruct")
    parser.add_argument("--gsm8k", type=Path, help="folder of GSM8K's train.jsonl and test.jsonl")
    parser.add_argument("--runs", type=Path, required=True, help="where the runs go, and are continued")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", choices=("words", "gsm8k"), default=["words", "gsm8k"])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--rounds", type=int, default=2, help="rounds of rejection sampling from the base")
    parser.add_argument("--grpo-steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    before = json.loads(args.out.read_text("utf-8")) if args.out.is_file() else {"commands": {}, "results": []}
    results = [row for row in before["results"] if row["problems"] not in args.kinds]
    commands = {kind: command for kind, command in before["commands"].items() if kind not in args.kinds}
    compared = {kind: rows for kind, rows in before.get("comparisons", {}).items() if kind not in args.kinds}
    for kind in args.kinds:
        commands[kind] = (
            f"python bench/real.py --model MODEL --gsm8k GSM8K --runs DIR --out {args.out} --kinds {kind} --stages "
            f"{shlex.join(args.stages)} --rounds {args.rounds} --grpo-steps {args.grpo_steps}"
        )
        settings = argparse.Namespace(
            runs=args.runs / kind,
            n=300 if kind == "words" else 500,
            eval_seed=1000,
            max_new_tokens=300,
            only_complete=False,
        )
        runs: dict[str, RunDir] = {}
        for stage in stages(kind, args):
            if stage.name not in args.stages:
                continue
            run = run_stage(stage, args.seed, settings)
            if run is None:
                continue
            results.append({"problems": kind, **result_of(stage, run)})
            runs[stage.name] = run
            compared[kind] = comparisons(runs)
            write_json(
                args.out,
                {
                    "commands": commands,
                    "model": "SmolLM2-135M-Instruct",
                    "seed": args.seed,
                    "environment": environment().as_json(),
                    "interval": "Wilson, 95%; of differences Bonett-Price, 95%",
                    "results": results,
                    "comparisons": compared,
                },
            )


if __name__ == "__main__":
    main()
