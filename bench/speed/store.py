"""The result file: every block as it was measured, and what follows from the blocks."""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path
from typing import Any

from bench.speed.plan import Measurement
from cot_unsloth.storage.atomic import write_json
from cot_unsloth.storage.environment import environment, now

PER_SECOND = {"tokens", "questions", "rows"}
"""Units whose figure is a rate; of the others it is the seconds of one."""


class Results:
    """The file of a benchmark; it is written after every block."""

    def __init__(self, path: Path) -> None:
        self._path = path
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.measurements: dict[str, Any] = known.get("measurements", {})

    def complete(self, name: str) -> bool:
        """Whether a measurement has ended; one that was interrupted is repeated."""
        return bool(self.measurements.get(name, {}).get("complete"))

    def begin(self, measurement: Measurement, command: str, pairs: int) -> None:
        """A measurement begins: replace what is known of it."""
        self.measurements[measurement.name] = {
            "suite": measurement.suite, "what": measurement.what, "unit": measurement.unit, "command": command,
            "environment": environment().as_json(), "began": now(), "load": {"begin": os.getloadavg()[0]},
            "threads": measurement.threads, "omp_wait_policy": "PASSIVE", "seed": 3407, "n": pairs,
            "warm_up": measurement.warm_up, "fresh": measurement.fresh, "settings": {key: _named(value) for key, value in measurement.settings.items()},
            "options": {c.name: c.options for c in measurement.contenders}, "blocks": {}, "facts": {}, "complete": False,
        }  # fmt: skip

    def store(self, measurement: Measurement, contender: str, at: int, block: dict[str, Any]) -> None:
        """Keep a block, or with `at` -1 the contender's facts; of fresh processes, the largest memory."""
        result = self.measurements[measurement.name]
        if at < 0:
            peaks = [result["facts"].get(contender, {}).get("peak_mib"), block.get("peak_mib")]
            result["facts"][contender] = block | {"peak_mib": max((p for p in peaks if p), default=None)}
        else:
            result["blocks"].setdefault(contender, []).append({"round": at, **block})
        self.write()

    def end(self, measurement: Measurement, failed: dict[str, str], more: dict[str, Any]) -> None:
        """A measurement has ended."""
        result = self.measurements[measurement.name]
        result["failed"] = {name: why.strip().splitlines()[-1] for name, why in failed.items()}
        result["load"]["end"] = os.getloadavg()[0]
        for name, facts in more.items():
            result["facts"].setdefault(name, {}).update(facts)
        result["summary"] = summary(result)
        result["complete"] = True
        self.write()

    def write(self) -> None:
        """Write the file."""
        write_json(self._path, {"command": "python -m bench.speed", "measurements": self.measurements})


def _named(value: Any) -> Any:
    """A setting without the folders of this machine: of a path the last part."""
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def figure(block: dict[str, Any], unit: str, clock: str) -> float:
    """What a block shows: units per second, or seconds."""
    seconds: float = max(block[clock], 1e-4)
    return block[unit] / seconds if unit in PER_SECOND else seconds


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """By contender, medians over the rounds that count; and the ratios of ours to each peer, round by round."""
    unit, warm_up = result["unit"], result["warm_up"]
    counted = {
        name: {b["round"]: b for b in blocks if b["round"] >= warm_up} for name, blocks in result["blocks"].items()
    }
    counted = {name: blocks for name, blocks in counted.items() if blocks}
    return {
        "contenders": {
            name: {
                "n": len(blocks),
                "per_cpu_second" if unit in PER_SECOND else "cpu_seconds": median(blocks, unit, "cpu"),
                "per_second" if unit in PER_SECOND else "seconds": median(blocks, unit, "wall"),
                "peak_mib": result["facts"].get(name, {}).get("peak_mib"),
            }
            for name, blocks in counted.items()
        },
        "faster": {
            f"{ours} / {peer}": ratios(counted[ours], counted[peer], unit)
            for ours in counted
            for peer in counted
            if ours.startswith("ours") and ours != peer
        },
    }


def median(blocks: dict[int, Any], unit: str, clock: str) -> float:
    """The median figure."""
    return float(f"{statistics.median(figure(block, unit, clock) for block in blocks.values()):.4g}")


def ratios(ours: dict[int, Any], peer: dict[int, Any], unit: str) -> dict[str, float]:
    """How many times faster ours is in CPU seconds: median, least and most over the rounds that both have."""
    by_round = [
        figure(ours[at], unit, "cpu") / figure(peer[at], unit, "cpu") for at in ours.keys() & peer.keys()
    ]  # fmt: skip
    faster = [ratio if unit in PER_SECOND else 1 / ratio for ratio in by_round]
    if not faster:
        return {}
    return {
        "median": round(statistics.median(faster), 3), "min": round(min(faster), 3), "max": round(max(faster), 3)
    }  # fmt: skip


def table(measurements: dict[str, Any]) -> str:
    """The summaries as text."""
    lines = []
    for name, result in measurements.items():
        if not result.get("complete"):
            continue
        load = f"load {result['load']['begin']:.1f} to {result['load']['end']:.1f}"
        lines.append(f"{name}: {result['what']}; {result['threads']} thread(s), {load}")
        for contender, row in result["summary"]["contenders"].items():
            loss = result["facts"].get(contender, {}).get("held_out_loss")
            shown = ", ".join(f"{key} {value:,}" for key, value in row.items() if value is not None)
            lines.append(f"  {contender:28} {shown}" + (f", held-out loss {loss}" if loss else ""))
        lines += [f"  {pair:40} {r['median']} ({r['min']} to {r['max']})" for pair, r in result["summary"]["faster"].items() if r]  # fmt: skip
        lines += [
            f"  {contender}: {why.splitlines()[-1] if why else ''}" for contender, why in result["failed"].items()
        ]
    return "\n".join(lines)
