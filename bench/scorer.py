"""Can anything that a model writes stop the scoring? `python bench/scorer.py --out bench/results/scorer.json`.

Judges random completions made of tags, halves of tags, LaTeX, numbers, marks of answers and odd letters, and
counts exceptions; then texts of one repeated piece at two lengths, of which one is eight times the other,
and the ratio of the times: 8 is linear.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cot_unsloth import score, tasks, trace
from cot_unsloth.rundir import environment, write_json
from cot_unsloth.values import Completion, Example, Part, Trace

TAGS = [tag for section in trace.SECTIONS for tag in trace.tags(section)]
PIECES = [
    *TAGS, "<", ">", "</", "\\boxed{", "{", "}", "$", "\\frac{1}{2}", "7", "-7", "1,234", "1/0", "0/0", "9" * 30, "3.", ".5",
    "%", "=", "####", "Answer:", "\n", " ", "é", "\u2212", "🙂", "\x00", "\\", "^", "_", "or", "and", "(B)", "x", "**",
    "(1) add 2: 3 + 2 = 5",
]  # fmt: skip
REPEATED = [
    *TAGS, "<thinking><reflection></reflection>", "{", "\\boxed{", "1,1", "1,111", "Answer: ", "answer is ", "7 ", "\n", "-1/",
    "<", "$", "= ", "(B) ", "#### ",
]  # fmt: skip
SHORT, TIMES = 2000, 8


def examples() -> list[Example]:
    """Problems with answers of every kind: a number, a fraction, an expression, those of the worlds."""
    one = Example("e", "how many?", Trace((Part("think", "s"),), "7"), "7", task="t")
    worlds = tasks.generate("world:chains:2,words:2,countdown", split="test", n=6, seed=1)
    return [one, replace(one, answer="1/2"), replace(one, answer="x^2 + 1"), *worlds]


def fuzzed(n: int, seed: int) -> Iterator[str]:
    """Random completions."""
    rng = random.Random(seed)
    for _ in range(n):
        yield "".join(rng.choices(PIECES, k=rng.randrange(12)))


def judged(n: int, seed: int) -> dict[str, Any]:
    """How many completions were right, and the exceptions there were."""
    problems, right, raised = examples(), 0, []
    for at, text in enumerate(fuzzed(n, seed)):
        completion = Completion("e", text, 9, "stop")
        try:
            right += score.judge(problems[at % len(problems)], completion, tagged=bool(at & 1)).correct
        except Exception as error:  # any at all is what is looked for
            raised.append(f"{type(error).__name__} of {text!r}")
    return {"n": n, "seed": seed, "right": right, "exceptions": len(raised), "first": raised[:3]}


def seconds(text: str) -> float:
    """The best of three."""
    problem, best = examples()[0], math.inf
    for _ in range(3):
        began = time.perf_counter()
        score.judge(problem, Completion("e", text, 9, "stop"), tagged=False)
        best = min(best, time.perf_counter() - began)
    return best


def growth() -> dict[str, float]:
    """How many times as long a text takes that is eight times as long, by what it is made of."""
    texts = {piece: (piece * SHORT, piece * SHORT * TIMES) for piece in REPEATED}
    for first, second in (("<thinking>", "</output>"), ("<output>", "</thinking>"), ("{", "}")):
        texts[f"{first}… {second}…"] = tuple(first * n + second * n for n in (SHORT, SHORT * TIMES))  # type: ignore[assignment]
    return {piece: round(seconds(long) / seconds(short), 1) for piece, (short, long) in texts.items()}


def main() -> None:
    """Measure and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()
    found = {"fuzzed": judged(args.n, args.seed), "times_as_long_for_8_times_the_text": growth()}
    command = f"python bench/scorer.py --n {args.n} --seed {args.seed}"
    write_json(args.out, {"command": command, "environment": environment(), **found})


if __name__ == "__main__":
    main()
