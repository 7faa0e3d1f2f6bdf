"""docs/speed.md: memory and time of preparing many rows, as `bench/preparation.py` measured them."""

from __future__ import annotations

from typing import Any

from scripts.figures.results import load, render

MIB = 2**20
STAGES = {
    "read": "reading", "decontaminate": "decontamination", "render": "rendering", "check": "the checks", "hash": "the hash",
    "record": "writing `kept.jsonl`", "data set": "opening the trainer's data set",
}  # fmt: skip


def many_rows() -> str:
    """Peak memory by number of rows, now and before rows were kept on disk."""
    measured = load("preparation.json")
    names = sorted(measured, key=lambda name: (_rows(measured[name]), not name.startswith("before")))
    now = [measured[name] for name in names if not name.startswith("before")]
    before = [measured[name] for name in names if name.startswith("before")]
    return render(
        "many_rows",
        rows=[_row(name, measured[name]) for name in names],
        growth={"now": _growth(now), "before": _growth(before)},
        sizes={"now": list(map(_rows, (now[0], now[-1]))), "before": list(map(_rows, (before[0], before[-1])))},
        tokens=now[0]["tokens"] / now[0]["rows"]["train"],
        measured=[measured[name] for name in names],
        same=all(old["hash"] == new["hash"] for old in before for new in now if _rows(old) == _rows(new)),
    )


def _rows(result: Any) -> int:
    return int(result["rows"]["in"])


def _stages(result: Any) -> dict[str, Any]:
    return {shown: result["stages"][name] for name, shown in STAGES.items()}


def _peak(result: Any) -> int:
    """Most anonymous memory above that of the process before the first row was read, in bytes."""
    return int(max(stage["peak"] for stage in _stages(result).values()) - result["stages"]["imports"]["after"])


def _row(name: str, result: Any) -> list[str]:
    stages = _stages(result)
    largest = max(stages, key=lambda shown: stages[shown]["peak"])
    cpu = sum(stage["cpu"] for stage in stages.values())
    return [
        f"{_rows(result):,}", name.partition(",")[0], f"{_peak(result) / MIB:,.0f} MiB", largest,
        f"{1000 * cpu / _rows(result):.2f} ms",
    ]  # fmt: skip


def _growth(results: list[Any]) -> float:
    """Bytes of peak memory for each row more, from the smallest to the largest size."""
    first, last = results[0], results[-1]
    return (_peak(last) - _peak(first)) / (_rows(last) - _rows(first))
