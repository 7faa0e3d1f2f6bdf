"""How OpenMP's threads should wait, and how many there should be: `python bench/threads.py --out bench/results/threads.json`.

The embedded model trains for a few steps of the demo's batches, answers 16 questions, and answers them from a GGUF file in
llama.cpp, under each setting of the OpenMP runtime: on the machine as it is, and beside one other process that computes.
The runtime reads its settings when it is loaded, so each setting has processes of its own, which stay for all
repetitions: one for torch, one for llama.cpp, because GNU's runtime spins less once a process has more threads than
there are processors, which would hide what torch does alone. Settings alternate; figures are medians over the
repetitions, and ratios to the runtime's default are medians of the ratios within one repetition. Run it on a machine that does nothing else: the load of each repetition is recorded.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cot_unsloth import config, tasks
from cot_unsloth.config import RunConfig
from cot_unsloth.core.types import Prompt, SamplingParams
from cot_unsloth.models.protocols import Generator
from cot_unsloth.models.target import Target, resolve_target
from cot_unsloth.prompts.opening import open_renderer
from cot_unsloth.storage.atomic import write_json
from cot_unsloth.storage.environment import environment
from cot_unsloth.training.method import TrainingHooks, training_method
from cot_unsloth.training.preparation import prepare

SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spin 1,000": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"},
    "spin 3,000": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000"},
    "spin 10,000": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"},
    "spin 100,000": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "100000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
"""Environment variables. GNU's OpenMP spins 300,000 times by default; its own variable wins over the standard one."""
OMP = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
WORKS = {"train": "torch", "score": "torch", "score_gguf": "llamacpp"}
"""Each piece of work, and what does it."""
NEIGHBOURS = ("alone", "beside one busy process")
"""By the number of busy processes."""
QUESTIONS, NEW_TOKENS, TIMES = 16, 64, 4
"""The questions are answered several times: answers of a base without an adapter have 9 tokens."""


class Worker:
    """Some of the work, in a process of its own under one setting."""

    def __init__(self, setting: str, works: str, gguf: Path, steps: int) -> None:
        variables = {name: value for name, value in os.environ.items() if name not in OMP} | SETTINGS[setting]
        command = [sys.executable, __file__, "--serve", works, str(gguf), "--steps", str(steps)]
        self.process = subprocess.Popen(
            command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def ask(self, work: str) -> dict[str, float]:
        """What one piece of work took."""
        assert self.process.stdin
        assert self.process.stdout
        print(work, file=self.process.stdin, flush=True)
        return dict(json.loads(self.process.stdout.readline()))


class TorchWorks:
    """Training and scoring in torch; each returns its seconds of wall time and of CPU time, and its tokens."""

    def __init__(self, steps: int) -> None:
        self.config, self.prompts = prepared(steps)
        self.data = prepare(self.config)
        self.engine = Target(self.config).load()[1]

    def train(self) -> dict[str, float]:
        """Optimizer steps after the first, which allocates."""
        marks: list[tuple[float, float, int]] = []
        with tempfile.TemporaryDirectory() as folder:
            hooks = TrainingHooks(
                Path(folder),
                on_step=lambda step: marks.append((time.perf_counter(), time.process_time(), step.tokens)),
            )
            training_method("sft").train(Target(self.config).load()[1], self.data, hooks)
        (wall, cpu, tokens), (end, cpu_end, tokens_end) = marks[0], marks[-1]
        return {"wall": end - wall, "cpu": cpu_end - cpu, "tokens": tokens_end - tokens}

    def score(self) -> dict[str, float]:
        """Answers of the base in one batch."""
        return answer(self.engine, self.prompts)


class LlamaCppWorks:
    """Scoring in llama.cpp."""

    def __init__(self, gguf: Path) -> None:
        self.prompts = prepared(0)[1]
        self.engine = resolve_target(gguf).load_streamer(slots=4)

    def score_gguf(self) -> dict[str, float]:
        """The same answers from the file."""
        return answer(self.engine, self.prompts)


def prepared(steps: int) -> tuple[RunConfig, list[Prompt]]:
    """The demo's settings for so many steps after the first, and questions."""
    rows = 8 * (steps + 1)
    settings = config.load(None, {"world_samples": str(rows), "max_steps": str(steps + 1), "save_steps": "1000"})
    renderer = open_renderer(settings.model, settings.data)
    problems = tasks.generate("world:chains:4-8", split="test", n=QUESTIONS, seed=1)
    return settings, [renderer.prompt(problem, "tuned") for problem in problems]


def answer(engine: Generator, prompts: Sequence[Prompt]) -> dict[str, float]:
    """Greedy answers to all of them."""
    wall, cpu = time.perf_counter(), time.process_time()
    sampling = SamplingParams(max_new_tokens=NEW_TOKENS, batch_size=QUESTIONS)
    tokens = sum(answer.tokens for _ in range(TIMES) for answer in engine.generate(prompts, sampling))
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "tokens": tokens}


def serve(works: str, gguf: Path, steps: int) -> None:
    """Do the work that is asked for on stdin, until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    made = TorchWorks(steps) if works == "torch" else LlamaCppWorks(gguf)
    for line in sys.stdin:
        print(json.dumps(getattr(made, line.strip())()), file=answers, flush=True)


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that compute without end."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def exported(folder: Path) -> Path:
    """The embedded model as a GGUF file."""
    command = ["-m", "cot_unsloth", "export", "--model", "tiny-base", "--gguf", "q8_0", "--out", str(folder)]
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return next(folder.glob("*.gguf"))


def measure(settings: Sequence[str], counts: Sequence[int], steps: int, n: int) -> list[dict[str, Any]]:
    """One row per repetition, neighbour, setting and work."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        gguf = exported(Path(folder) / "export")
        workers = {
            (setting, by): Worker(setting, by, gguf, steps) for setting in settings for by in set(WORKS.values())
        }
        for setting, (work, by) in itertools.product(settings, WORKS.items()):
            workers[setting, by].ask(work)  # not counted: it fills caches
        for repetition in range(n):
            for processes in counts:
                load = os.getloadavg()[0]
                with busy(processes):
                    for at in range(len(settings)):
                        setting = settings[(at + repetition) % len(settings)]
                        for work, by in WORKS.items():
                            took = {name: round(value, 3) for name, value in workers[setting, by].ask(work).items()}
                            row = {
                                "n": repetition,
                                "neighbours": NEIGHBOURS[processes],
                                "setting": setting,
                                "work": work,
                            }
                            rows.append(row | took | {"load": round(load, 2)})
                            print(rows[-1], file=sys.stderr, flush=True)
        for worker in workers.values():
            worker.process.kill()
            worker.process.wait()
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians, by work, neighbours and setting; ratios to the default above 1 are faster or need less CPU time."""
    result: dict[str, Any] = {}
    for work in WORKS:
        for neighbours in NEIGHBOURS:
            chosen = [row for row in rows if (row["work"], row["neighbours"]) == (work, neighbours)]
            default = {row["n"]: row for row in chosen if row["setting"] == "default"}
            for setting in dict.fromkeys(row["setting"] for row in chosen):
                own = [row for row in chosen if row["setting"] == setting]
                figures = {
                    "wall_seconds": statistics.median(row["wall"] for row in own),
                    "cpu_seconds": statistics.median(row["cpu"] for row in own),
                    "tokens_per_second": round(statistics.median(row["tokens"] / row["wall"] for row in own)),
                }
                for name in ("wall", "cpu") if default else ():
                    ratio = statistics.median(default[row["n"]][name] / row[name] for row in own)
                    figures[f"default_{name}_over_own"] = round(ratio, 3)
                result.setdefault(work, {}).setdefault(neighbours, {})[setting] = figures
    return result


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--n", type=int, default=5, help="repetitions")
    parser.add_argument("--steps", type=int, default=4, help="training steps that are timed")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--neighbours", nargs="+", type=int, choices=(0, 1), default=[0, 1], help="busy processes")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve[0], Path(args.serve[1]), args.steps)
        return
    rows = measure(args.settings, args.neighbours, args.steps, args.n)
    write_json(
        args.out,
        {
            "command": f"python bench/threads.py {' '.join(sys.argv[1:])}",
            "environment": environment().as_json(),
            "settings": {name: SETTINGS[name] for name in args.settings},
            "n": args.n,
            "training_steps": args.steps,
            "questions": QUESTIONS,
            "times_answered": TIMES,
            "medians": summary(rows),
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
