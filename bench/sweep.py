"""A sweep of twelve trials that is killed twice: `python bench/sweep.py --folder DIR --out bench/results/sweep.json`.

Runs `cot-unsloth sweep` on the embedded base in a process of its own, kills it and its training (SIGKILL) in the middle of a trial
after each number of complete trials in `--kill-after`, and repeats the command until it ends. The result has the sweep's own
`sweep.json`, the kills, and the states in the database, where a trial that was continued has an entry for each process. If this
benchmark itself is stopped, the same command continues.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cot_unsloth.storage.atomic import write_json
from cot_unsloth.storage.environment import environment

DURING_TRIAL = 10.0
"""Seconds from a trial's start to the kill: its training has begun."""


def trials_of(folder: Path) -> dict[int, str]:
    """The state of every trial in the database."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if not (folder / "study.db").is_file():
        return {}
    try:
        study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder / 'study.db'}")
    except (KeyError, optuna.exceptions.StorageInternalError):  # the sweep is making its tables
        return {}
    return {trial.number: trial.state.name.lower() for trial in study.trials}


def complete(states: dict[int, str]) -> int:
    """Trials that have ended, by pruning too."""
    return sum(state in ("complete", "pruned") for state in states.values())


def run_and_kill(command: list[str], folder: Path, after: int | None, log: Path) -> dict[str, Any] | None:
    """Run the command; kill it in the trial that follows `after` complete ones. None if it ended by itself.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    with log.open("a", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        while after is not None and process.poll() is None:
            states = trials_of(folder)
            running = [number for number, state in states.items() if state == "running"]
            # The run's folder, not its state, says that training has begun.
            if complete(states) >= after and any((folder / "trials" / f"{n:03d}" / "run").is_dir() for n in running):
                time.sleep(DURING_TRIAL)
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return {"complete": complete(trials_of(folder)), "in_trials": running}
            time.sleep(1)
        if process.wait():
            raise subprocess.CalledProcessError(process.returncode, command)
    return None


def main() -> None:
    """Run, kill, repeat, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the sweep, which is continued there")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--vary", nargs="+", default=["learning_rate=4e-4:4e-2:log", "lora_r=4,8,16,32"])
    parser.add_argument("--kill-after", type=int, nargs="*", default=[3, 7], help="complete trials before each kill")
    parser.add_argument("--dataset", default="world:chains,countdown")
    parser.add_argument("--rows", type=int, default=1200)
    parser.add_argument("--n", type=int, default=300, help="held-out problems of the final comparison")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    vary = [part for text in args.vary for part in ("--vary", text)]
    flags = {
        "--trials": args.trials, "--dataset": args.dataset, "--world-samples": args.rows, "--eval-samples": args.n,
        "--max-new-tokens": 400,
    }  # fmt: skip
    shown = ["cot_unsloth", "sweep", *vary, *(str(part) for pair in flags.items() for part in pair), "--out"]
    command = [sys.executable, "-m", *shown, str(args.folder)]
    kept = args.folder / "kills.json"
    kills: list[dict[str, Any]] = json.loads(kept.read_text("utf-8")) if kept.is_file() else []
    while kill := run_and_kill(
        command,
        args.folder,
        args.kill_after[len(kills)] if len(kills) < len(args.kill_after) else None,
        args.folder / "log.txt",
    ):
        kills.append(kill)
        write_json(kept, kills)
    states = trials_of(args.folder)
    write_json(
        args.out,
        {
            "command": shlex.join(["python", "bench/sweep.py", "--folder", "DIR", *_given(sys.argv[1:])]),
            "sweep_command": shlex.join(["python", "-m", *shown, "DIR"]),
            "environment": environment().as_json(),
            "kills": kills,
            "states_in_database": {state: list(states.values()).count(state) for state in sorted(set(states.values()))},
            "sweep": json.loads((args.folder / "sweep.json").read_text("utf-8")),
        },
    )


def _given(arguments: list[str]) -> list[str]:
    """The arguments without the folder, which is this machine's."""
    at = arguments.index("--folder")
    return arguments[:at] + arguments[at + 2 :]


if __name__ == "__main__":
    main()
