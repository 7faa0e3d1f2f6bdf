"""Speed and memory beside TRL, Unsloth's CPU backend, transformers and llama.cpp, on a CPU.

`python -m bench.speed --pairs 5 --out bench/results/speed.json` runs every measurement; `--only training,scoring` those
whose suite or name is in the list. Contenders do the same work in alternation, each in a process of its own: the same
model, rows, tokens, loss mask, optimizer and learning rate, one thread (unless a measurement says otherwise) and
cot_unsloth's limit on spinning threads for all. Judged are CPU seconds, because other programs may run on the machine; wall time, peak
memory and the load are recorded too. Every block is written as it is measured; a measurement that is complete in the file
is not repeated (`--again` repeats it). `--tiny` does a little of everything, to test the code.

Unsloth's CPU backend needs an environment of its own (`make venv-unsloth`), given as --unsloth-python. `make test-data`
brings SmolLM2. contenders/llamafactory.py says what LLaMA-Factory needs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from bench.speed import plan, processes
from bench.speed.plan import ROOT, Measurement
from bench.speed.store import Results, table


def main() -> None:
    """Run the measurements that are asked for."""
    args = parsed()
    results = Results(args.out)
    chosen = selected(plan.measurements(args.smollm2, args.shared_data), args)
    for measurement in chosen:
        if results.complete(measurement.name) and not args.again:
            continue
        if measurement.needs and not Path(measurement.needs).exists():
            print(f"{measurement.name}: skipped, there is no {Path(measurement.needs).name}")
            continue
        measure(measurement, args, results)
        print(table({measurement.name: results.measurements[measurement.name]}), flush=True)
    failures = [(m.name, name, why) for m in chosen for name, why in
                results.measurements.get(m.name, {}).get("failed", {}).items()]  # fmt: skip
    sys.exit(any(name.startswith("ours") for _, name, _ in failures))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m bench.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "speed.json")
    parser.add_argument("--only", default="", help="suites or names of measurements, comma-separated")
    parser.add_argument("--contenders", default="", help="only these, comma-separated")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("/tmp/cot-unsloth-speed"), help="folder for rows and models")
    parser.add_argument("--unsloth-python", type=Path, default=ROOT / ".venv-unsloth" / "bin" / "python")
    parser.add_argument("--llamafactory-python", type=Path, default=ROOT / ".venv-llamafactory" / "bin" / "python")
    parser.add_argument("--smollm2", type=Path, default=ROOT / ".test-data" / "smollm2")
    parser.add_argument(
        "--shared-data", type=Path, default=ROOT.parent / "shared" / "data", help="gsm8k/ and tokenizers/"
    )
    parser.add_argument("--tiny", action="store_true", help="one pair, few rows")
    parser.add_argument("--again", action="store_true", help="repeat measurements that are complete")
    return parser.parse_args()


def selected(measurements: list[Measurement], args: argparse.Namespace) -> list[Measurement]:
    """The measurements that are asked for, with the contenders that are asked for."""
    only, contenders = ({name for name in value.split(",") if name} for value in (args.only, args.contenders))
    chosen = [m for m in measurements if (m.name in only or ((m.suite in only or not only) and not m.extra))]
    if contenders:
        chosen = [replace(m, contenders=tuple(c for c in m.contenders if c.name in contenders)) for m in chosen]
    return [plan.tiny(m) for m in chosen] if args.tiny else chosen


def measure(measurement: Measurement, args: argparse.Namespace, results: Results) -> None:
    """One measurement, to its end."""
    pairs = 1 if args.tiny else measurement.rounds or args.pairs
    work = args.work / ("tiny" if args.tiny else "full")
    folder = work / measurement.name
    folder.mkdir(parents=True, exist_ok=True)
    make_data(measurement, work)
    remove_outputs(measurement, folder)
    place = processes.Place(folder, work / "run" / "run", pythons(args))
    results.begin(measurement, command(args, measurement, pairs), pairs)
    run = processes.fresh if measurement.fresh else processes.lockstep

    def store(contender: str, at: int, block: processes.Block) -> None:
        results.store(measurement, contender, at, block)

    failed = run(measurement, place, pairs + measurement.warm_up, store)
    more = after(measurement, folder, results.measurements[measurement.name]["blocks"])
    results.end(measurement, failed, more)
    remove_outputs(measurement, folder)


def remove_outputs(measurement: Measurement, folder: Path) -> None:
    """Remove adapters, checkpoints and exported files; logs and answers stay."""
    for contender in measurement.contenders:
        for old in folder.glob(f"*{contender.name}*"):
            if old.is_dir():
                shutil.rmtree(old, ignore_errors=True)
            elif old.suffix == ".gguf":
                old.unlink()


def pythons(args: argparse.Namespace) -> dict[str, Path]:
    """The interpreters of contenders that need an environment of their own."""
    return {"unsloth": args.unsloth_python.absolute(), "llamafactory": args.llamafactory_python.absolute()}


def make_data(measurement: Measurement, work: Path) -> None:
    """Rows, or the trained run, that the measurement needs."""
    if not measurement.data:
        return
    into = work / "run" if measurement.data == "run" else work / measurement.name / "data"
    command = ["-m", "bench.speed.data", measurement.data, str(into), json.dumps(measurement.settings)]
    environment = processes.environment_of(plan.OURS, 1)
    subprocess.run([sys.executable, *command], check=True, env=environment, stderr=subprocess.DEVNULL)


def command(args: argparse.Namespace, measurement: Measurement, pairs: int) -> str:
    """The command that repeats a measurement."""
    some = f" --contenders '{args.contenders}'" if args.contenders else ""
    return f"python -m bench.speed --only {measurement.name} --pairs {pairs}{some}" + " --tiny" * args.tiny


def after(measurement: Measurement, folder: Path, blocks: dict[str, object]) -> dict[str, dict[str, object]]:
    """What is compared once all contenders have ended: the adapters' losses on the same held-out rows, or the answers."""
    if measurement.suite == "training":
        adapters = [f"{name}={folder / f'adapter-{name}'}" for name in blocks if (folder / f"adapter-{name}").is_dir()]
        command = [
            "-m",
            "bench.speed.training",
            str(measurement.settings["base"]),
            str(folder / "data" / "test.tokens.jsonl"),
        ]
        environment = processes.environment_of(plan.OURS, 1)
        done = subprocess.run([sys.executable, *command, *adapters], check=True, env=environment, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL)  # fmt: skip
        return {name: {"held_out_loss": loss} for name, loss in json.loads(done.stdout).items()}
    if measurement.suite == "scoring":
        texts = {name: (folder / f"answers-{name}.jsonl").read_text(encoding="utf-8").splitlines() for name in blocks}
        first = next((texts[name] for name in texts if name.startswith("hf-generate")), [])
        return {name: {"answers": len(some), "equal_to_hf_generate": sum(map(str.__eq__, some, first))} for name, some in texts.items()}  # fmt: skip
    return {}


if __name__ == "__main__":
    main()
