"""Whether reflections on a model's own errors teach it to notice them: `python bench/reflections.py --runs DIR --out FILE`.

For each seed, the embedded base imitates solutions of chains without any reflection (`start`), and that model solves other
problems `--k` times. Then three runs continue from the start:

- `own`: its accepted attempts, and corrections of its own errors (the wrong step without loss);
- `injected`: given solutions of the same problems, in which steps are corrupted at random and corrected;
- `none`: its accepted attempts alone, those of `own`.

These are trained on the number of tokens of `own`: `injected` on as many rows as that takes, `none` in more than one pass. A fourth
run, `more`, is a second way to teach it, at more tokens: every correction that the same attempts yield, in three passes.

Measured on the same held-out problems, for greedy answers and for attempts at temperature 1: accuracy; of the model's own errors,
the share that a reflection follows at once (noticed) and the share whose reflection gives the right step (corrected); and of its
right lines, the share that a reflection follows (false alarms). Steps that are complete in DIR are not run again, one that was cut
off is resumed, and the result is written after each.
"""

from __future__ import annotations

import argparse
import itertools
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from resumable import cost_of, flags_of, run_once

from cot_unsloth import tasks
from cot_unsloth.core.results import FitReport
from cot_unsloth.core.statistics import share
from cot_unsloth.core.types import Example
from cot_unsloth.evaluation.error_injection import judged_lines
from cot_unsloth.storage.atomic import write_json
from cot_unsloth.storage.environment import environment
from cot_unsloth.storage.records import read_jsonl, write_jsonl
from cot_unsloth.storage.run_folder import RunDir

ARMS = ("start", "own", "injected", "none", "more")
TEMPERATURES = ("0", "1")
LATER = 100
"""Added to the seed of the start for the problems that are solved afterwards."""


@dataclass
class Errors:
    """Counts over the answers of one model."""

    n: int = 0
    right: int = 0
    errors: int = 0
    """Lines of thinking that are wrong."""
    noticed: int = 0
    """Of these, followed at once by a reflection."""
    corrected: int = 0
    """Of these, by one that gives the right step."""
    sound: int = 0
    """Lines of thinking that are right."""
    false_alarms: int = 0
    """Of these, followed at once by a reflection."""
    reflecting: int = 0
    """Answers with a reflection."""

    def add(self, example: Example, text: str, right: bool) -> None:
        """Count one answer."""
        assert example.problem is not None
        lines = judged_lines(example.problem, text)
        self.n, self.right = self.n + 1, self.right + right
        self.reflecting += any(kind == "reflect" for kind, _ in lines)
        for (kind, verdict), (next_kind, next_verdict) in itertools.pairwise([*lines, ("", "")]):
            if kind != "think":
                continue
            reflected = next_kind == "reflect"
            if verdict == "right":
                self.sound += 1
                self.false_alarms += reflected
            else:
                self.errors += 1
                self.noticed += reflected
                self.corrected += reflected and next_verdict == "right"

    def figures(self) -> dict[str, Any]:
        """Counts, and shares with Wilson's 95% interval."""
        pairs = {
            "accuracy": (self.right, self.n),
            "noticed_share": (self.noticed, self.errors),
            "corrected_share": (self.corrected, self.errors),
            "false_alarm_share": (self.false_alarms, self.sound),
        }
        shares = {name: share(count, of).as_json() for name, (count, of) in pairs.items()}
        return asdict(self) | shares


@dataclass(frozen=True)
class Seed:
    """The steps of one seed."""

    seed: int
    args: argparse.Namespace

    def folder(self, name: str) -> Path:
        """Of a step."""
        return Path(self.args.runs) / f"seed{self.seed}" / name

    def train(self, name: str, settings: dict[str, str]) -> bool:
        """One run; it is not scored, as `answer` does that."""
        common = {
            "run_dir": str(self.folder(name) / "run"), "eval_samples": "0", "gguf": "", "forgetting": "none",
            "max_new_tokens": str(self.args.max_new_tokens),
        }  # fmt: skip
        return self._run(name, "train", ["--no-gate", *flags_of(common | settings)])

    def _run(self, name: str, verb: str, arguments: Sequence[str]) -> bool:
        return run_once(self.folder(name), verb, arguments, {str(self.args.runs): "DIR"})

    def prepare(self) -> bool:
        """The start, and its attempts at other problems."""
        args = self.args
        start = {
            "dataset": args.dataset, "world_samples": str(args.rows), "seed": str(self.seed), "world_error_rate": "0",
        }  # fmt: skip
        if not self.train("start", start):
            return False
        problems = {
            "dataset": args.dataset, "world_samples": str(args.problems), "seed": str(self.seed + LATER),
            "samples_per_problem": str(args.k), "max_new_tokens": str(args.max_new_tokens),
        }  # fmt: skip
        run = str(self.folder("start") / "run")
        out = {"out": str(self.samples("own"))}
        if not self._run("samples-own", "sample", [run, *flags_of(problems | out)]):
            return False
        rows = read_jsonl(self.samples("own") / "data.jsonl")
        plain = [row for row in rows if not any("reflect" in part for part in row["parts"])]
        write_jsonl(self.samples("none") / "data.jsonl", plain)
        if not self.folder("samples-more").is_dir():
            # With all that the attempts are, so that nothing is asked again.
            shutil.copytree(self.samples("own"), self.samples("more"))
        many = {"out": str(self.samples("more")), "max_per_problem": "16"}
        return self._run("samples-more", "sample", [run, *flags_of(problems | many)])

    def samples(self, arm: str) -> Path:
        """The rows of an arm that is trained on attempts."""
        return self.folder(f"samples-{arm}") / "samples"

    def settings(self, arm: str, tokens: int | None) -> dict[str, str]:
        """Of the run that continues from the start, trained on about `tokens`."""
        args = self.args
        common = {
            "init_adapter": str(self.folder("start") / "run"), "seed": str(self.seed + LATER), "learning_rate": args.rate,
        }  # fmt: skip
        if arm == "injected":
            rows = self._rows_of(tokens)
            return common | {
                "dataset": args.dataset, "world_samples": str(rows), "world_error_rate": str(args.error_rate),
            }  # fmt: skip
        data = {"dataset": str(self.samples(arm) / "data.jsonl")}
        if arm == "none":
            # Attempts at the same problems as those of `start` have the tokens of its rows.
            here = self._tokens_per_row() * len(read_jsonl(self.samples(arm) / "data.jsonl"))
            data["num_train_epochs"] = f"{(tokens or 0) / here:.3f}"
        if arm == "more":
            data["num_train_epochs"] = "3"
        return common | data

    def _rows_of(self, tokens: int | None) -> int:
        # A row has more tokens than those of the start: 1.12 times as many where a fifth of the steps are corrupted (measured).
        return max(1, round((tokens or 0) / (self._tokens_per_row() * (1 + 0.6 * self.args.error_rate))))

    def _tokens_per_row(self) -> float:
        start = FitReport.read(RunDir(self.folder("start") / "run").fit_report)
        return start.tokens / start.rows

    def answer(self, arm: str, temperature: str) -> bool:
        """Let a run's model answer the held-out problems."""
        args = self.args
        flags = {
            "eval_samples": str(args.n), "eval_seed": str(args.eval_seed), "arms": "tuned", "temperature": temperature,
            "max_new_tokens": str(args.max_new_tokens), "forgetting": "none", "dataset": args.dataset,
            "model": "tiny-base", "adapter": str(self.folder(arm) / "run" / "adapter"),
            "out": str(self.folder(f"{arm}-at-{temperature}") / "scored"),
        }  # fmt: skip
        return self._run(f"{arm}-at-{temperature}", "evaluate", flags_of(flags))

    def result(self, arm: str, temperature: str) -> dict[str, Any]:
        """The figures of one model at one temperature."""
        scored = RunDir(self.folder(f"{arm}-at-{temperature}") / "scored")
        problems = tasks.generate(self.args.dataset, split="test", n=self.args.n, seed=self.args.eval_seed)
        known = {problem.id: problem for problem in problems}
        errors = Errors()
        for row in read_jsonl(scored.completions("tuned")):
            errors.add(known[row["id"]], row["text"], bool(row["correct"]))
        return errors.figures()

    def cost(self, arm: str) -> dict[str, Any]:
        """What an arm was trained on."""
        run = RunDir(self.folder(arm) / "run")
        fit = FitReport.read(run.fit_report)
        passes = fit.steps / math.ceil(fit.rows / run.read_config().train.rows_per_step)
        return {
            "rows": fit.rows, "steps": fit.steps, "passes": round(passes, 2), "trained_tokens": round(fit.tokens * passes),
            **cost_of(self.folder(arm)),
        }  # fmt: skip


def steps_of(seed: Seed) -> Iterator[tuple[str, str]]:
    """Arm and temperature of each model that has answered; training what has to come before. Ends at the first failure."""
    if not seed.prepare():
        return
    tokens: int | None = None
    for arm in ARMS:
        if arm != "start" and not seed.train(arm, seed.settings(arm, tokens)):
            return
        if arm == "own":
            tokens = FitReport.read(RunDir(seed.folder(arm) / "run").fit_report).tokens
        for temperature in TEMPERATURES:
            if not seed.answer(arm, temperature):
                return
            yield arm, temperature


def run_all(args: argparse.Namespace) -> None:
    """Every seed; the result is written after each model."""
    results: list[dict[str, Any]] = []
    command = " ".join(["python bench/reflections.py", *sys.argv[1:]]).replace(str(args.runs), "DIR")
    for number in map(int, args.seeds.split(",")):
        seed = Seed(number, args)
        for arm, temperature in steps_of(seed):
            figures = seed.result(arm, temperature)
            results.append(
                {"seed": number, "arm": arm, "temperature": temperature, "cost": seed.cost(arm), "figures": figures}
            )
            write_json(
                args.out,
                {
                    "command": command,
                    "environment": environment().as_json(),
                    "interval": "Wilson, 95%",
                    "pooled": pooled(results),
                    "results": results,
                },
            )


def pooled(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Each arm and temperature over the answers of all seeds."""
    summary: dict[str, Any] = {}
    for arm, temperature in dict.fromkeys((row["arm"], row["temperature"]) for row in results):
        rows = [row["figures"] for row in results if (row["arm"], row["temperature"]) == (arm, temperature)]
        total = Errors(**{field.name: sum(row[field.name] for row in rows) for field in fields(Errors)})
        summary[f"{arm} at {temperature}"] = total.figures()
    return summary


def main() -> None:
    """Run what is missing, and write the result after each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="where the runs go, and are continued")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--dataset", default="world:chains")
    parser.add_argument("--rows", type=int, default=400, help="solutions that the start imitates")
    parser.add_argument("--problems", type=int, default=1000, help="problems that the start solves itself")
    parser.add_argument("--k", type=int, default=8, help="attempts at each")
    parser.add_argument("--rate", default="2e-3", help="learning rate of the runs that continue")
    parser.add_argument("--error-rate", type=float, default=0.2, help="of the steps of `injected`")
    parser.add_argument("--n", type=int, default=600, help="held-out problems")
    parser.add_argument("--eval-seed", type=int, default=1000)
    parser.add_argument("--max-new-tokens", type=int, default=400)
    args = parser.parse_args()
    run_all(args)


if __name__ == "__main__":
    main()
