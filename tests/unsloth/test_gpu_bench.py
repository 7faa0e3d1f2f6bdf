"""`bench/gpu.py` runs completely on a tiny model: every stage, each contender, and it continues after a stop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import UNSLOTH_FIRST, forked, module

ROOT = Path(__file__).parent.parent.parent


def bench(out: Path, work: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "bench" / "gpu.py"), "--tiny", "--out", str(out), "--work", str(work), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.slow
def test_every_stage_runs_exactly_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    script = module(ROOT / "bench" / "gpu.py")

    def bounded(command: list[str], log: Any, timeout: float | None) -> None:
        """A step in a process of its own, forked from one with Unsloth where the stage imports it."""
        stage = command[command.index("--stage") + 1] if "--stage" in command else None
        trl_alone = stage is None or script.stages(tiny=True)[stage][1].contender == "trl"
        done = forked(*command[1:], at=tmp_path, first=() if trl_alone else UNSLOTH_FIRST)
        log.write(done.stdout + done.stderr)
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, command)

    monkeypatch.setattr(script, "bounded", bounded)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny", "--out", str(out), "--work", str(tmp_path / "work")])
    with pytest.raises(SystemExit) as ended:
        script.main()
    logs = "".join(log.read_text()[-800:] for log in (out / "logs").iterdir())
    assert ended.value.code == 0, logs
    names = set(script.stages(tiny=True))
    assert {file.stem for file in out.glob("*.json")} == names
    found = {name: json.loads((out / f"{name}.json").read_text()) for name in names}
    assert all(each["tiny"] and each["gpu"] is None for each in found.values())
    trained = {name.rpartition("gsm8k-")[2]: each["found"] for name, each in found.items() if name.startswith("train")}
    assert set(trained) == set(script.CONTENDERS)
    for each in trained.values():
        assert each["tokens_per_second"] > 0
        assert all(loss == pytest.approx(6.25, abs=0.6) for loss in each["losses"]), each  # ln 512, and a little noise
    first = [trained[name]["losses"][0] for name in script.CONTENDERS]
    assert max(first) - min(first) < 0.3, "the same 4-bit base under each"
    for peer in ("unsloth-notebook", "trl"):  # the same rows in the same order
        assert trained["ours-unpacked"]["losses"] == pytest.approx(trained[peer]["losses"], abs=0.01)
    assert found["fp16-tiny"]["found"]["finite"]
    assert found["resume-tiny"]["found"]["largest_gap"] < 1e-4
    assert found["cap-tiny-15"]["found"]["longest"] == 512
    before = {file: file.stat().st_mtime_ns for file in out.glob("*.json")}
    again = bench(out, tmp_path / "work")
    assert again.returncode == 0
    assert {file: file.stat().st_mtime_ns for file in out.glob("*.json")} == before
