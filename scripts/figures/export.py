"""docs/export.md: what an export costs, and a real model's files compared with its adapter."""

from __future__ import annotations

from typing import Any

from scripts.figures.results import load, render


def export() -> str:
    """Time, memory and disk of an export to Q4_K_M, ours and by PEFT and llama.cpp, by size."""
    result = load("export.json")
    sizes = list(result["sizes"].values())
    rows = [
        [f"{size['parameters'] / 1e9:.2f}B", label, *_cost(size[way])]
        for size in sizes
        for label, way in (("ours", "ours"), ("peft, llama.cpp", "peer"))
        if way in size
    ]
    ratios = [size["ours_over_peer_seconds"] for size in sizes if "peer" in size]
    return render(
        "export",
        result=result,
        rows=rows,
        ratios={"min": min(r["min"] for r in ratios), "max": max(r["max"] for r in ratios)} if ratios else None,
        largest_error_ratio=max(size["agreement"]["largest_ratio_of_rmse"] for size in sizes) if ratios else None,
    )


def _cost(way: Any) -> list[str]:
    extra = way["extra_anonymous_mib"]
    memory = f"{extra} MiB above its start" if extra else f"{max(way['anonymous_mib'].values())} MiB"
    return [f"{way['seconds']:.0f} s", memory, f"{way['written_over_file']:.2f} × the file"]


def verify_memory() -> str:
    """Peak memory of an export with its verification, by size."""
    result = load("verify_memory.json")
    growth = {kind: bytes_ for kind, bytes_ in result["bytes_a_parameter"].items() if bytes_ is not None}
    rows = [
        [f"{size['parameters'] / 1e9:.2f}B", *(f"{size[kind]['anonymous_mib']:,} MiB" for kind in growth)]
        for size in result["sizes"].values()
    ]
    return render("verify_memory", result=result, growth=growth, rows=rows)


def real_model() -> str:
    """A real instruct model after a few steps: each exported file against the adapter."""
    result = load("real.json")
    checks = result["verified"]["checks"]
    by_file: dict[str, dict[str, Any]] = {}
    for check in checks:
        by_file.setdefault(check["file"], {})[check["name"]] = check
    rows = [_compared(file, named, result["answers"]) for file, named in by_file.items()]
    positions = next(check["places"] for check in checks if check["name"] == "next_token")
    return render("real_model", result=result, rows=rows, positions=positions)


def _compared(file: str, checks: dict[str, Any], answers: list[Any]) -> list[str]:
    quantization = file.rpartition("-")[2].removesuffix(".gguf")
    same = sum(answer[quantization] == answer["adapter"] for answer in answers)
    return [
        quantization,
        f"{checks['weights']['relative_rmse']:.3f}",
        f"{checks['next_token']['same_as_trained']:.0%}",
        f"{checks['kl_to_trained']['mean_nats']:.4f}",
        f"{checks['greedy']['agreement']:.1%}",
        f"{same} of {len(answers)}",
    ]
