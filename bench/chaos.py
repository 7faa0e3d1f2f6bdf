"""Kill every command at every point where it gives a file its name, and at random: `make chaos`.

Each scenario is a command of a few seconds on the tiny base. It is run once without harm. Then it is run again and again: killed
before or after one of its renames (SIGKILL in the process itself, so the point is exact), killed at a random time several times
over, ended by SIGINT or SIGTERM, with a limit on the size of files, which is how a full disk looks to a writer, or on a disk that
is full (a small tmpfs, where this user may mount one in a namespace of its own). After each of these the same command (`train` with --resume) must end with what the undisturbed one left: every tensor equal, the rows and
completions equal, the same scorecard and files, nothing half written.

The result is written after each case, and a command that is started again goes on where it was.
"""

from __future__ import annotations

import argparse
import atexit
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import psutil
import safetensors.torch
import torch

from cot_unsloth.core.progress import note
from cot_unsloth.core.threads import limit_spinning
from cot_unsloth.storage.atomic import write_json
from cot_unsloth.storage.environment import environment

_FEW = (
    "--per-device-train-batch-size", "2", "--lora-r", "4", "--eval-samples", "2", "--max-new-tokens", "8", "--save-steps", "2",
    "--logging-steps", "1", "--gguf", "", "--save-total-limit", "2",
)  # fmt: skip
_WORDS = (
    "--dataset", "world:words:1-2", "--max-new-tokens", "70", "--eval-samples", "4", "--per-device-train-batch-size", "4",
    "--gradient-accumulation-steps", "1", "--lora-r", "8", "--lora-alpha", "16", "--learning-rate", "8e-3", "--arms", "tuned",
    "--no-autocast", "--gguf", "",
)  # fmt: skip
"""A task and settings with which the tiny base learns to solve some problems in a minute: sampling needs right answers."""
_RFT = (
    *_WORDS, "--method", "rft", "--rounds", "1", "--world-samples", "16", "--samples-per-problem", "2", "--num-train-epochs", "1",
    "--development-problems", "3", "--init-adapter", "start", "--save-steps", "2",
)  # fmt: skip
_GRPO = (
    "--method", "grpo", "--dataset", "world:chains", "--world-samples", "10", "--per-device-train-batch-size", "4",
    "--num-generations", "4", "--generation-batch-size", "8", "--max-new-tokens", "24", "--dev-problems", "4", "--dev-steps", "2",
    "--arms", "tuned", "--no-guards", "--reward-overlong", "1", "--overlong-share", "1", "--learning-rate", "1e-3",
    "--max-steps", "4",
)  # fmt: skip


@dataclass(frozen=True)
class Scenario:
    """A command, how it is continued, and what it needs."""

    command: tuple[str, ...]
    again: tuple[str, ...] = ()
    """The command that continues it; the same one where it is empty."""
    needs_run: bool = False
    """Whether it works on a finished run, `run`, which is copied for each case."""
    codes: tuple[int, ...] = (0,)
    """Exit codes of the undisturbed command."""


_RESUME = ("train", "--run-dir", "run", "--resume")
SCENARIOS = {
    "train sft": Scenario(("train", "--run-dir", "run", *_FEW, "--world-samples", "60", "--max-steps", "6"), _RESUME),
    "export": Scenario(
        ("export", "run", "--gguf", "q8_0", "--merged", "--export-samples", "1", "--out", "out"), needs_run=True
    ),
    "evaluate": Scenario(
        ("evaluate", "run", "--eval-samples", "3", "--max-new-tokens", "8", "--out", "out"), needs_run=True
    ),
    "sample": Scenario(
        ("sample", "run", "-k", "2", "--world-samples", "8", "--out", "out"),
        needs_run=True,
    ),
    "train with export": Scenario(
        ("train", "--run-dir", "run", *_FEW, "--world-samples", "60", "--max-steps", "2", "--gguf", "q8_0",
         "--export-samples", "1"), _RESUME,
    ),
    "train grpo": Scenario(("train", "--run-dir", "run", *_FEW, *_GRPO), _RESUME, codes=(0, 1, 3)),
    "train rft": Scenario(("train", "--run-dir", "run", *_RFT), _RESUME, codes=(0, 3)),
    "curves": Scenario(
        ("curves", "run", "--eval-samples", "2", "--budgets", "8,16", "--samples", "1", "--checkpoints", "1", "--out", "out"),
        needs_run=True,
    ),
    "sweep": Scenario(
        ("sweep", *(flag for flag in _FEW if flag not in ("--gguf", "")), "--world-samples", "60", "--max-steps", "2", "--vary", "lora_r=2,4", "--grid", "--no-final",
         "--no-prune", "--heartbeat", "1", "--out", "out"),
    ),
}  # fmt: skip


# --- one process ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Harm:
    """What happens to a process."""

    kill_at: int | None = None
    """The number of the point, from 0, at which it kills itself."""
    kill_after: float | None = None
    """Seconds."""
    signal_after: tuple[int, float] | None = None
    most_bytes: int | None = None
    """Limit on the size of files that it writes."""
    free_bytes: int | None = None
    """What is free on the disk of its folder."""


@dataclass
class Ended:
    """How a process ended."""

    code: int
    output: str
    points: list[str] = field(default_factory=list)
    """Its renames in order: `before NAME` and `after NAME`."""
    seconds: float = 0.0
    children: list[str] = field(default_factory=list)
    """The command lines of its own processes that were left when it had ended."""


def run(command: Sequence[str], folder: Path, harm: Harm = Harm()) -> Ended:
    """Run a command line in a process forked from this one, which has imported the libraries."""
    output, points = folder / ".output", folder / ".points"
    for file in (output, points):
        file.unlink(missing_ok=True)
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(command, folder, output, points, harm)
    status = None
    while status is None:
        ended, code = os.waitpid(pid, os.WNOHANG)
        if ended:
            status = code
            break
        passed = time.monotonic() - began
        if harm.kill_after is not None and passed > harm.kill_after:
            os.kill(pid, signal.SIGKILL)
        if harm.signal_after is not None and passed > harm.signal_after[1]:
            os.kill(pid, harm.signal_after[0])
            harm = Harm()
        time.sleep(0.01)
    left = [p for p in psutil.process_iter() if _session(p.pid) == pid and p.status() != psutil.STATUS_ZOMBIE]
    names = [" ".join(process.cmdline())[:80] for process in left]
    for process in left:
        process.kill()
    return Ended(
        code=os.waitstatus_to_exitcode(status),
        output=output.read_text(errors="replace") if output.is_file() else "",
        points=points.read_text().splitlines() if points.is_file() else [],
        seconds=time.monotonic() - began,
        children=names,
    )


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return -1


def _child(command: Sequence[str], folder: Path, output: Path, points: Path, harm: Harm) -> NoReturn:
    code: object = 1
    atexit._clear()  # of the parent, which would remove its folder here
    try:
        os.setsid()
        os.chdir(folder)
        handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if harm.most_bytes is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (harm.most_bytes, harm.most_bytes))
        else:
            _watch_renames(os.open(points, os.O_WRONLY | os.O_CREAT | os.O_APPEND), harm.kill_at)
        from cot_unsloth.cli import main

        main(list(command))
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    atexit._run_exitfuncs()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _watch_renames(log: int, kill_at: int | None) -> None:
    passed = 0

    def point(when: str, target: object) -> None:
        nonlocal passed
        name = re.sub(r"\.\d+-\d+$", "", Path(os.fsdecode(target)).name)  # type: ignore[arg-type]
        os.write(log, f"{when} {name}\n".encode())
        if passed == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        passed += 1

    def watched(original: Callable[..., None]) -> Callable[..., None]:
        def rename(source: object, target: object, **more: object) -> None:
            point("before", target)
            original(source, target, **more)
            point("after", target)

        return rename

    os.replace, os.rename = watched(os.replace), watched(os.rename)


# --- what is left -----------------------------------------------------------------------------------------------------

_VOLATILE = re.compile(r"second|time|memory|runtime|per_second|^at$")
_IGNORED = re.compile(
    r"(^|/)(\.lock.*|\.output|\.points|log\.txt|start/.*|\.planning|\.finishing|study\.db.*|__pycache__.*)$"
)


def differences(whole: Path, other: Path) -> list[str]:
    """What differs between the folder of an undisturbed command and another one."""
    ours, theirs = (_files(folder) for folder in (whole, other))
    faults = [f"missing: {name}" for name in sorted(ours - theirs)] + [
        f"surplus: {name}" for name in sorted(theirs - ours)
    ]
    return faults + [
        fault for name in sorted(ours & theirs) if (fault := _difference(whole / name, other / name, name))
    ]


def _files(folder: Path) -> set[str]:
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in files if not _IGNORED.search(name)}


def _difference(one: Path, other: Path, name: str) -> str | None:
    if one.suffix == ".safetensors":
        a, b = (safetensors.torch.load_file(file) for file in (one, other))
        if a.keys() != b.keys():
            return f"{name}: other tensors"
        furthest = max(float((a[key].float() - b[key].float()).abs().max()) for key in a)
        return f"{name}: tensors differ by {furthest:g}" if furthest else None
    if one.suffix == ".jsonl":
        rows = [[_steady(json.loads(line)) for line in file.read_text().splitlines()] for file in (one, other)]
        return None if rows[0] == rows[1] else f"{name}: rows differ"
    if one.name == "curves.json":
        trees = [json.loads(file.read_text()) | {"environment": None} for file in (one, other)]
        return None if trees[0] == trees[1] else f"{name}: differs"
    if one.name == "scorecard.json" or (one.suffix == ".gguf"):
        return None if one.read_bytes() == other.read_bytes() else f"{name}: differs"
    return None


def _steady(row: object) -> object:
    return {key: value for key, value in row.items() if not _VOLATILE.search(key)} if isinstance(row, dict) else row


# --- cases ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One disturbed command."""

    scenario: str
    name: str
    harms: tuple[Harm, ...]
    """One process after another."""


class Chaos:
    """The undisturbed commands, and the cases."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.whole: dict[str, tuple[Path, Ended]] = {}
        self.planned: dict[str, int] = {}
        """Number of cases by scenario."""
        _require(run(("train", "--run-dir", "start", *_WORDS, "--world-samples", "160"), base))

    def _fresh(self, scenario: Scenario, free_bytes: int | None = None) -> Path:
        folder = Path(tempfile.mkdtemp(dir=self.base))
        if free_bytes is not None:
            taken = sum(
                -(-path.stat().st_size // _PAGE) * _PAGE for path in (self.base / "start").rglob("*") if path.is_file()
            )
            # A page more: the log of the command is in the folder too.
            _mount(folder, f"size={taken + free_bytes + 16 * _PAGE}")
        shutil.copytree(self.base / "start", folder / ("run" if scenario.needs_run else "start"))
        return folder

    def undisturbed(self, name: str) -> tuple[Path, Ended]:
        """The folder of an undisturbed command, and how it ended."""
        if name not in self.whole:
            scenario = SCENARIOS[name]
            folder = self._fresh(scenario)
            ended = run(scenario.command, folder)
            if ended.code not in scenario.codes:
                raise RuntimeError(f"{name} ended with {ended.code}: {ended.output[-2000:]}")
            self.whole[name] = folder, ended
        return self.whole[name]

    def cases(self, name: str, random_kills: int, seed: int) -> Iterator[Case]:
        """All cases of a scenario, shuffled: a kill at each named point, random kills, signals, and full disks."""
        _, whole = self.undisturbed(name)
        # Before a name is given its file is complete under another one; which name it is decides what a kill leaves.
        points = {label: at for at, label in reversed(list(enumerate(whole.points)))}
        made = [
            Case(name, f"kill {label}", (Harm(kill_at=at),))
            for label, at in sorted(points.items(), key=lambda pair: pair[1])
        ]
        rng = random.Random(f"{seed} {name}")
        for number in range(random_kills):
            times = [rng.uniform(0.05, 1.0) * whole.seconds for _ in range(rng.randrange(1, 5))]
            made.append(Case(name, f"random kills {number}", tuple(Harm(kill_after=seconds) for seconds in times)))
        for number in (signal.SIGINT, signal.SIGTERM):
            for share in (0.4, 0.8):
                harm = Harm(signal_after=(number, share * whole.seconds))
                made.append(Case(name, f"{number.name} at {share:.0%}", (harm,)))
        for size in (0, 300, 3_000, 30_000, 100_000, 300_000, 1_000_000):
            made.append(Case(name, f"files of at most {size} bytes", (Harm(most_bytes=size),)))
        for size in (0, 20_000, 100_000, 300_000, 1_000_000, 3_000_000) if may_mount() else ():
            made.append(Case(name, f"disk with {size} bytes free", (Harm(free_bytes=size),)))
        rng.shuffle(made)
        self.planned[name] = len(made)
        yield from made

    def examine(self, case: Case) -> dict[str, object]:
        """Disturb a command, continue it, and compare."""
        scenario = SCENARIOS[case.scenario]
        whole, undisturbed = self.undisturbed(case.scenario)
        free = case.harms[0].free_bytes
        folder, faults, codes = self._fresh(scenario, free), [], []
        for harm in case.harms:
            ended = run(self._command(scenario, folder), folder, harm)
            codes.append(ended.code)
            faults += _faults_of(ended, harm, undisturbed.code)
        if free is not None:
            _mount(folder, "remount,size=1g")
        # A sweep takes over what a dead process left only after some heartbeats.
        ended = run(self._command(scenario, folder), folder)
        # What is complete already may be refused by name, which is as well.
        refused = ended.code == 2 and ("already" in ended.output or "finished" in ended.output)
        if ended.code != undisturbed.code and not refused:
            faults.append(f"the command that continues ended with {ended.code}: {ended.output[-300:]}")
        faults += differences(whole, folder)
        if free is not None:
            subprocess.run(["umount", str(folder)], check=True)
        shutil.rmtree(folder)
        return {"codes": codes, "faults": faults[:5]}

    @staticmethod
    def _command(scenario: Scenario, folder: Path) -> tuple[str, ...]:
        begun = (folder / "run" / "config.yaml").is_file()
        return scenario.again if scenario.again and begun else scenario.command


def _faults_of(ended: Ended, harm: Harm, undisturbed: int) -> list[str]:
    faults = []
    if "Traceback" in ended.output:
        faults.append(f"a traceback: {ended.output.strip().splitlines()[-1][:200]}")
    if ended.children and harm.kill_at is None and harm.kill_after is None:
        faults.append(f"processes were left: {ended.children}")
    if harm.signal_after is not None and ended.code not in (undisturbed, 128 + harm.signal_after[0]):
        faults.append(f"exit code {ended.code} after signal {harm.signal_after[0]}")
    if harm.signal_after is not None and ended.code > 128 and "interrupted" not in ended.output:
        faults.append("no word about the signal")
    is_full = harm.most_bytes is not None or harm.free_bytes is not None
    if is_full and ended.code not in (1, undisturbed) and "error:" not in ended.output:
        faults.append(f"exit code {ended.code} with a full disk: {ended.output[-200:]}")
    return faults


def _require(ended: Ended) -> None:
    if ended.code != 0:
        raise RuntimeError(ended.output[-2000:])


def summary(cases: dict[str, dict[str, object]]) -> dict[str, dict[str, int]]:
    """Cases and failed cases by scenario and kind."""
    table: dict[str, dict[str, int]] = {}
    for key, outcome in cases.items():
        scenario, _, name = key.partition(": ")
        kind = next(
            kind
            for kind in ("random kills", "kill", "SIGINT", "SIGTERM", "files of at most", "disk with")
            if name.startswith(kind)
        )
        row = table.setdefault(f"{scenario}: {kind}", {"cases": 0, "processes ended": 0, "failed": 0})
        row["cases"] += 1
        codes = outcome["codes"]
        row["processes ended"] += sum(code < 0 or code > 128 for code in codes) if isinstance(codes, list) else 0
        row["failed"] += bool(outcome["faults"])
    return table


_PAGE = 4096
"""Bytes that a tmpfs takes at a time."""


def _mount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)


def may_mount() -> bool:
    """Whether this process is in a namespace of its own, in which it may mount."""
    return _IN_NAMESPACE in os.environ


_IN_NAMESPACE = "CHAOS_IN_NAMESPACE"


def _enter_namespace() -> None:
    """Start again in a namespace where this user may mount, if the system allows that; mounts end with the process."""
    command = ["unshare", "--user", "--map-root-user", "--mount"]
    if may_mount() or shutil.which("unshare") is None:
        return
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
        os.environ[_IN_NAMESPACE] = "1"
        os.execvp(command[0], [*command, sys.executable, *sys.argv])


def in_turn(of_scenarios: Iterable[Iterable[Case]]) -> Iterator[Case]:
    """One case of each scenario after another, so that a result that is not complete has some of all."""
    for cases in itertools.zip_longest(*of_scenarios):
        yield from filter(None, cases)


def main() -> None:
    """All cases, in turn through the scenarios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenarios", default=",".join(SCENARIOS))
    parser.add_argument("--random", type=int, default=50, help="cases of random kills, per scenario")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--only", default="", help="cases whose names begin so, comma-separated: kill, random, SIG, files, disk"
    )
    args = parser.parse_args()
    _enter_namespace()
    limit_spinning()
    torch.set_num_threads(1)
    os.environ |= {"HF_HUB_OFFLINE": "1", "COT_UNSLOTH_CACHE": "off", "TOKENIZERS_PARALLELISM": "false"}
    _import_libraries()
    before = json.loads(args.out.read_text()) if args.out.is_file() else {"cases": {}, "all_cases": {}}
    done: dict[str, dict[str, object]] = before["cases"]
    base = Path(tempfile.mkdtemp())  # not TemporaryDirectory: a child that ends in an unusual way would remove it
    chaos = Chaos(base)
    commit = str((environment().as_json()["git"] or {}).get("commit", ""))[:7]
    for case in in_turn([chaos.cases(name, args.random, args.seed) for name in args.scenarios.split(",")]):
        key = f"{case.scenario}: {case.name}"
        if key in done or not case.name.startswith(tuple(args.only.split(","))):
            continue
        done[key] = {**chaos.examine(case), "commit": commit}
        note(f"{key}: {done[key]}")
        write_json(
            args.out,
            {
                "command": f"python bench/chaos.py --random {args.random} --seed {args.seed}",
                "environment": before.get("environment") or environment().as_json(),
                "all_cases": before["all_cases"] | chaos.planned,
                "summary": summary(done),
                "cases": done,
            },
        )
    shutil.rmtree(base)


def _import_libraries() -> None:
    """Once, before processes are forked: a child that imported them itself would take seconds longer."""
    import gguf  # noqa: F401
    import peft  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401
    import trl.trainer.grpo_trainer
    import trl.trainer.sft_trainer  # noqa: F401
    import xllamacpp  # noqa: F401


if __name__ == "__main__":
    main()
