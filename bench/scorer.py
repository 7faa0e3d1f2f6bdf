"""Does the form of an answer ever change its verdict, and can any model output crash or stall the scoring?

`python bench/scorer.py --gsm8k FILE --out bench/results/scorer.json` writes every gold answer of GSM8K's test set in
30 forms that mean the same and in 30 near misses that do not, as an answer in tags and in free text. Then it judges
random completions made of tags, partial tags, LaTeX, numbers, costly expressions and odd characters, and reports
exceptions and the longest time. Last it times texts of one repeated piece at two lengths, one eight times the other: a
ratio of 8 is linear.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cot_unsloth import tasks
from cot_unsloth.core import trace
from cot_unsloth.core.answers import symbolic
from cot_unsloth.core.types import Completion, Example, Part, Trace
from cot_unsloth.evaluation import score
from cot_unsloth.storage.atomic import write_json
from cot_unsloth.storage.environment import environment

TAGS = [tag for section in trace.SECTIONS for tag in trace.tags(section)]
PIECES = [
    *TAGS, "<", ">", "</", "\\boxed{", "{", "}", "$", "\\frac{1}{2}", "7", "-7", "1,234", "1/0", "0/0", "9" * 30, "3.", ".5",
    "%", "=", "####", "Answer:", "\n", " ", "é", "\u2212", "🙂", "\x00", "\\", "^", "_", "or", "and", "(B)", "x", "**",
    "(1) add 2: 3 + 2 = 5", "!", "^{999}", "(1+i)", "\\sqrt{2}", "+", "-", "*", "(", ")", "\\Gamma", "10^{10}", "1E999999999",
    "\\choose", "\\binom{10^6}{10^5}", "\\sum_{k=1}^{10^9} k", " million ", " cm", "(a+b+c)^{60}", "\\log_2", "x^2", "\\pi",
]  # fmt: skip
"""Some of them cost hours to evaluate, alone or together."""
REPEATED = [
    *TAGS, "<thinking><reflection></reflection>", "{", "\\boxed{", "1,1", "1,111", "Answer: ", "answer is ", "7 ", "\n", "-1/",
    "<", "$", "= ", "(B) ", "#### ",
]  # fmt: skip
SHORT, TIMES = 2000, 8


def examples() -> list[Example]:
    """Problems with answers of every kind: a number, a fraction, an expression, those of the tasks."""
    one = Example("e", "how many?", Trace((Part("think", "s"),), "7"), "7", task="t")
    generated = tasks.generate("world:chains:2,words:2,countdown", split="test", n=6, seed=1)
    others = [replace(one, answer=gold) for gold in ("1/2", "x^2 + 1", "2+\\sqrt{3}", "B", "yes", "(1, \\pi)")]
    return [one, *others, *generated]


def same_forms(value: int) -> list[str]:
    """Thirty ways to write a whole number that is an answer."""
    spaced, latex = f"{value:,}".replace(",", " "), f"{value:,}".replace(",", ",\\!")
    return [
        f"{value}", f"{value:,}", spaced, latex, f"{value}.0", f"{value}.", f"+{value}", f"{value}/1", f"{2 * value} / 2",
        f"\\frac{{{2 * value}}}{{2}}", f"{value}e0", f"${value:,}.00", f"\\${value}", f"USD {value}", f"{value} dollars",
        f"{value}\\text{{ dollars}}", f"{value} apples", f"{value}%", f"{value}^\\circ", f"**{value}**", f"${value}$", f"\\[ {value} \\]",
        f"\\boxed{{{value}}}", f"\\textbf{{{value}}}", f"<answer>{value}</answer>", f'"{value}"', f"x = {value}", f"1 + {value - 1} = {value}",
        f"The answer is {value}.", f"So the final answer is ${value}$. I hope it is correct.",
    ]  # fmt: skip


def near_misses(value: int) -> list[str]:
    """Thirty answers that look like a whole number above 2, and are not it."""
    return [
        f"{value + 1}", f"{value - 1}", f"-{value}", f"- {value}", f"minus {value}", f"{value}0", f"1{value}", f".{value}", f"$.{value}",
        f"{value}.5", f"{value} million", f"{value}k", f"{value}i", f"{value}x", f"x{value}", f"sqrt({value})", f"\\sqrt{{{value}}}",
        f"{value}^2", f"{value}\u00b2", f"1/{value}", f"not {value}", f"{value} or {value + 1}", f"at least {value}", f"\\neq {value}",
        f"x > {value}", f"a = {value + 1}, b = {value}", f"({value}, {value})", f"ln {value}", f"{value}:00", f"{value} and a half",
    ]  # fmt: skip


def forms(path: Path) -> dict[str, Any]:
    """How many forms of GSM8K's gold answers are misjudged, and the time of one judgement."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    golds = sorted({row["answer"].rpartition("####")[2].strip() for row in rows})
    wrong: list[str] = []
    n, began = 0, time.perf_counter()
    for gold in golds:
        value, one = int(gold.replace(",", "")), replace(examples()[0], answer=gold)
        written = [(text, True) for text in same_forms(value)]
        written += [(text, False) for text in near_misses(value)] if value > 2 else []
        for text, right in written:
            tagged = Completion("e", f"<thinking>\ns\n</thinking>\n<output>{text}</output>", 9, "stop")
            free = Completion("e", f"Some steps with 12345678901 in them.\nFinal answer: {text}", 9, "stop")
            for completion in (tagged, free):
                n += 1
                if score.judge(one, completion, tagged=completion is tagged).correct is not right:
                    wrong.append(f"{gold} and {text!r}")
    took = time.perf_counter() - began
    return {
        "golds": len(golds), "forms": 30, "near_misses": 30, "judged": n, "misjudged": len(wrong), "first": wrong[:20],
        "mean_milliseconds": round(1000 * took / n, 3),
    }  # fmt: skip


def fuzzed(n: int, seed: int) -> Iterator[str]:
    """Random completions."""
    rng = random.Random(seed)
    for _ in range(n):
        yield "".join(rng.choices(PIECES, k=rng.randrange(12)))


def judged(n: int, seed: int) -> dict[str, Any]:
    """How many random completions were right or too costly, exceptions, and times."""
    problems, right, costly, raised = examples(), 0, 0, []
    slowest, began = 0.0, time.perf_counter()
    for at, text in enumerate(fuzzed(n, seed)):
        completion, start = Completion("e", text, 9, "stop"), time.perf_counter()
        try:
            verdict = score.judge(problems[at % len(problems)], completion, tagged=bool(at & 1))
            right, costly = right + verdict.correct, costly + verdict.too_costly
        except Exception as error:  # the benchmark counts exceptions of any kind
            raised.append(f"{type(error).__name__} of {text!r}")
        slowest = max(slowest, time.perf_counter() - start)
    took = time.perf_counter() - began
    return {
        "n": n, "seed": seed, "right": right, "too_costly": costly, "exceptions": len(raised), "first": raised[:3],
        "slowest_seconds": round(slowest, 2), "mean_milliseconds": round(1000 * took / n, 3),
    }  # fmt: skip


def seconds(text: str) -> float:
    """Seconds to judge a text, the best of three."""
    problem, best = examples()[0], math.inf
    for _ in range(3):
        began = time.perf_counter()
        score.judge(problem, Completion("e", text, 9, "stop"), tagged=False)
        best = min(best, time.perf_counter() - began)
    return best


def growth() -> dict[str, float]:
    """By repeated piece, the time of a text divided by that of one an eighth as long."""
    texts = {piece: (piece * SHORT, piece * SHORT * TIMES) for piece in REPEATED}
    for first, second in (("<thinking>", "</output>"), ("<output>", "</thinking>"), ("{", "}")):
        texts[f"{first}… {second}…"] = tuple(first * n + second * n for n in (SHORT, SHORT * TIMES))  # type: ignore[assignment]
    return {piece: round(seconds(long) / seconds(short), 1) for piece, (short, long) in texts.items()}


def main() -> None:
    """Run all measurements and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gsm8k", type=Path, help="GSM8K's test.jsonl; without it, no forms are measured")
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()
    symbolic.start()
    results: dict[str, Any] = {"forms": forms(args.gsm8k)} if args.gsm8k else {}
    results |= {"fuzzed": judged(args.n, args.seed), "times_as_long_for_8_times_the_text": growth()}
    command = f"python bench/scorer.py --gsm8k test.jsonl --n {args.n} --seed {args.seed}"
    write_json(args.out, {"command": command, "environment": environment().as_json(), **results})


if __name__ == "__main__":
    main()
