"""How adapters of one task do on others: `python bench/transfer.py --runs DIR --out bench/results/transfer.json`.

For each seed one `cot-unsloth transfer` on the embedded base: three tasks of ours and three of reasoning-gym, an adapter for each, one
for all together, and combinations of the six. The problems of reasoning-gym have no solutions to imitate; those in `SOLUTIONS` are
written here, for training problems of the same generators. A transfer that is complete in DIR is not run again, one that was cut off
continues where it was, and the result is written after each seed: it may be stopped at any time.

Pooled over the seeds, each cell has the problems of all of them; McNemar's test and Bonett and Price's interval take the sums of
gained and lost problems, and Holm's correction is over all pooled cells. The seeds differ in training and in problems.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from resumable import cost_of, run_once

from cot_unsloth import tasks
from cot_unsloth.core.results.comparison import TestedPair
from cot_unsloth.core.results.transfer import Transfer
from cot_unsloth.core.statistics import wilson
from cot_unsloth.evaluation.scorecard import paired_counts
from cot_unsloth.lab.pairs import corrected
from cot_unsloth.storage.atomic import write_json
from cot_unsloth.storage.environment import environment
from cot_unsloth.storage.records import write_jsonl

OURS = ("chains:2-5", "words:2-4", "conversions:1-2")
GYM = ("aiw", "chain_sum", "syllogism")
COMBINED = ("cat", "cat:0.5", "ties", "dare_ties", "linear", "cat:0.2", "ties:0.3")
"""Six changes of about the same size are far from each other's tasks in sum, so smaller weights are tried too."""
Entry = Mapping[str, Any]


def chain_sum(entry: Entry) -> str:
    """The whole expression before each operation, from the left, so that the last line is the answer alone."""
    value, *rest = entry["metadata"]["expression"].split()
    lines = []
    while rest:
        sign, number, *rest = rest
        result = int(value) + int(number) if sign == "+" else int(value) - int(number)
        lines.append(f"{value} {sign} {number}{' ' * bool(rest)}{' '.join(rest)}: {value} {sign} {number} = {result}")
        value = str(result)
    return "\n".join([*lines, value])


def sequence(entry: Entry) -> str:
    """The rule by its name, then the last number and the next."""
    facts = entry["metadata"]
    return f"rule: {facts['rule']}\n{facts['sequence'][-2]} -> {facts['sequence'][-1]}"


def syllogism(entry: Entry) -> str:
    """Premises and conclusion in letters, so that only their form is left."""
    facts = entry["metadata"]
    texts = [facts["premise1"], facts["premise2"], facts["conclusion"]]
    letters: dict[str, str] = {}
    lines = []
    for text in texts:
        match = re.fullmatch(r"(All|No|Some) (.+?) are (not )?(.+)", str(text))
        assert match, text
        terms = [letters.setdefault(term, "ABCD"[len(letters)]) for term in match.group(2, 4)]
        lines.append(f"{text}: {match[1]} {terms[0]} are {match[3] or ''}{terms[1]}")
    return "\n".join([*lines, "so it follows" if entry["answer"] == "Yes" else "so it does not follow"])


def sisters(entry: Entry) -> str:
    """She counts too, as a sister, friend or colleague of the one who is asked about."""
    name, answer = entry["question"].split()[0], int(entry["answer"])
    what = re.search(r"female (friends|colleagues)|sisters", entry["question"])
    assert what
    return f"{name} has {answer - 1} {what[0]}\nwith {name}: {answer - 1} + 1 = {answer}"


SOLUTIONS: Mapping[str, Callable[[Entry], str]] = {
    "aiw": sisters, "chain_sum": chain_sum, "number_sequence": sequence, "syllogism": syllogism,
}  # fmt: skip
"""Worked solutions by generator of reasoning-gym."""


def rows_file(name: str, seed: int, args: argparse.Namespace) -> Path:
    """Solutions of training problems of a generator, as a data set."""
    file = args.runs / f"seed{seed}" / f"{name}.jsonl"
    if not file.is_file():
        examples = tasks.generate(f"gym:{name}", split="train", n=args.rows, seed=seed)
        rows = [
            {"question": e.question, "reasoning": SOLUTIONS[name](e.problem.entry), "answer": e.answer}
            for e in examples
        ]
        write_jsonl(file, rows)
    return file


def arguments_of(seed: int, args: argparse.Namespace) -> list[str]:
    """The transfer of one seed."""
    command = ["--out", str(args.runs / f"seed{seed}" / "transfer")]
    for spec in args.ours:
        command += ["--dataset", f"{spec.partition(':')[0]}=world:{spec}"]
    for name in args.gym:
        command += ["--dataset", f"gym:{name}", "--rows", f"{name}={rows_file(name, seed, args)}"]
    for method in args.combine:
        command += ["--combine", method]
    flags = {
        "world_samples": args.rows, "eval_samples": args.n, "eval_seed": 1000 + seed, "seed": seed, "lora_r": args.rank,
        "lora_alpha": 2 * args.rank, "max_new_tokens": args.max_new_tokens, "world_error_rate": 0, "world_clean_first": 0,
        # Rows of a file that are held out of training; those of reasoning-gym are scored on problems that are drawn.
        "test_fraction": 0.01, "learning_rate": f"{args.rate:g}",
    }  # fmt: skip
    for name, value in flags.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    return [*command, *args.more.split()]


def run_one(seed: int, args: argparse.Namespace) -> Transfer | None:
    """Run, continue, or read a transfer; None if it failed."""
    folder = args.runs / f"seed{seed}"
    done = run_once(folder, "transfer", arguments_of(seed, args), {str(args.runs): "DIR"})
    return Transfer.read(folder / "transfer" / "transfer.json") if done else None


def pooled(results: Sequence[Transfer]) -> list[dict[str, Any]]:
    """Every cell over the problems of all seeds."""
    first = results[0]
    names = [row.name for row in first.adapters if all(row.name in {r.name for r in one.adapters} for one in results)]
    keys = [(adapter, task.name) for adapter in names for task in first.tasks]
    tested = {against: _tested(results, keys, against) for against in ("against_base", "against_own")}
    lines = []
    for key in keys:
        cells = [one.cell(*key) for one in results]
        counts = [next(task.n for task in one.tasks if task.name == key[1]) for one in results]
        right = round(sum(n * cell.accuracy for n, cell in zip(counts, cells, strict=True)))
        lines.append(
            {
                "adapter": key[0],
                "task": key[1],
                "n": sum(counts),
                "accuracy": round(right / sum(counts), 4),
                "ci95": [round(bound, 4) for bound in wilson(right, sum(counts))],
                "by_seed": [cell.accuracy for cell in cells],
                **{name: pairs[key].as_json() if key in pairs else None for name, pairs in tested.items()},
            }
        )
    return lines


def _tested(
    results: Sequence[Transfer], keys: Sequence[tuple[str, str]], against: str
) -> dict[tuple[str, str], TestedPair]:
    plain = {}
    for key in keys:
        pairs = [getattr(one.cell(*key), against) for one in results]
        if any(pair is None for pair in pairs):
            continue
        n = sum(next(task.n for task in one.tasks if task.name == key[1]) for one in results)
        gained, lost = (sum(getattr(pair, name) for pair in pairs) for name in ("gained", "lost"))
        plain[key] = paired_counts(pairs[0].before, pairs[0].after, n, gained, lost)
    return dict(zip(plain, corrected(list(plain.values())), strict=True))


def command_shown(args: argparse.Namespace) -> str:
    """The whole command, with a name in place of this machine's folder."""
    values = {
        "--seeds": args.seeds, "--rows": args.rows, "--n": args.n, "--rank": args.rank, "--rate": f"{args.rate:g}",
        "--max-new-tokens": args.max_new_tokens, **({"--more": args.more} if args.more else {}),
    }  # fmt: skip
    flags = [part for name, value in values.items() for part in (name, str(value))]
    lists = ["--ours", *args.ours, "--gym", *args.gym, "--combine", *args.combine]
    return shlex.join(["python", "bench/transfer.py", "--runs", "DIR", "--out", str(args.out), *lists, *flags])


def _without_paths(transfer: Transfer, args: argparse.Namespace) -> Any:
    """A transfer as JSON, in which DIR stands for the folder of the runs."""
    return json.loads(json.dumps(transfer.as_json()).replace(str(args.runs), "DIR"))


def main() -> None:
    """Run what is missing, and write the result after each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="where the transfers go, and are continued")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--ours", nargs="+", default=OURS, metavar="NAME:STEPS")
    parser.add_argument("--gym", nargs="+", choices=SOLUTIONS, default=GYM)
    parser.add_argument("--combine", nargs="*", default=COMBINED)
    parser.add_argument(
        "--rows", type=int, default=1600, help="of each task; the joint adapter learns from all of them"
    )
    parser.add_argument("--n", type=int, default=100, help="held-out problems of each task and seed")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--max-new-tokens", type=int, default=250)
    parser.add_argument("--more", default="", help="further flags of transfer, in one argument")
    args = parser.parse_args()
    results: dict[int, Transfer] = {}
    for seed in map(int, args.seeds.split(",")):
        one = run_one(seed, args)
        if one is None:
            continue
        results[seed] = one
        write_json(
            args.out,
            {
                "command": command_shown(args),
                "environment": environment().as_json(),
                "intervals": "shares: Wilson, 95%; differences: Bonett-Price, 95%",
                "test": "exact McNemar, Holm's correction over all cells against the base, and over all against own adapters",
                "pooled": pooled(list(results.values())),
                "seeds": {
                    seed: cost_of(args.runs / f"seed{seed}") | {"transfer": _without_paths(one, args)}
                    for seed, one in results.items()
                },
            },
        )


if __name__ == "__main__":
    main()
