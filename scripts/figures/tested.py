"""docs/tested.md: answers of other programs, compared with a run's own."""

from __future__ import annotations

from typing import Any

from scripts.figures.results import load, render


def vllm_cpu() -> str:
    """What was answered in vLLM, and how many of the answers are the same text."""
    result = load("vllm_cpu.json")
    found = result["found"]
    engine, parsers = found["adapter, --fast-inference's function"], found["parsers of reasoning"]
    (real,) = (value for name, value in found.items() if name.endswith("on GSM8K"))
    rows = [
        ("merged folder behind the server", "`evaluate --api`", found["merged folder, served"]),
        ("adapter behind the server, on its base", "`evaluate --api`", found["adapter, served"]),
        ("adapter in the engine", "what `--fast-inference` calls", engine["greedy"]),
        ("the same, continuing its answers after three lines", "as budget forcing does", engine["greedy_continued_from_its_third_line"]),
        *((_parser(name), "`evaluate --api`", value)
          for name, value in parsers.items() if isinstance(value, dict)),
        ("SmolLM2-135M-Instruct, three prompts, GSM8K", "`evaluate --api`", _sum(real)),
    ]  # fmt: skip
    drawn = [
        ("`sample --api`, 16 and 3 requests at a time", found["sample --api, 16 and 3 at a time"]),
        ("the engine, prompts in reversed order", engine["drawn_in_reversed_order"]),
    ]
    return render("vllm_cpu", result=result, rows=rows, drawn=drawn)


def _parser(name: str) -> str:
    parser, _, vocabulary = name.partition(", ")
    tags = "tags are no tokens" if vocabulary else "tags are tokens"
    return f"model that writes `<think>`, whose {tags}, behind the parser `{parser}`"


def _sum(by_arm: Any) -> dict[str, int]:
    return {key: sum(counts[key] for counts in by_arm.values()) for key in ("n", "equal")}
