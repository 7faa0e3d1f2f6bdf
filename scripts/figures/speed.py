"""docs/speed.md: cot_unsloth beside what people would use instead, as `python -m bench.speed` measured it."""

from __future__ import annotations

from typing import Any

from scripts.figures.results import RESULTS, load, render

LABELS = {
    "ours": "cot_unsloth", "ours-packed": "cot_unsloth, `--packing`", "ours-gguf": "cot_unsloth, its F16 GGUF in llama.cpp",
    "ours-f16": "cot_unsloth, F16", "ours-q8_0": "cot_unsloth, Q8_0",
    "trl-defaults": "TRL, defaults", "trl-bf16-grouped": "TRL, set well", "trl-bf16-padded-64": "TRL, set well, lengths padded to multiples of 64",
    "unsloth": "Unsloth's CPU backend", "llamafactory": "LLaMA-Factory", "trl-map": "TRL's tokenizing",
    "hf-generate": "`generate`, batches of 16", "hf-generate-adapter": "the same with the adapter beside the base",
    "transformers-continuous": "transformers' continuous batching",
}  # fmt: skip
"""How contenders are called in the tables."""
UNITS = {"tokens": "tokens", "rows": "rows", "questions": "questions"}


def speed_training() -> str:
    """Training steps, by length of the rows."""
    return _block("training-200", "training-2000", "training-smollm2", loss=True)


def speed_scoring() -> str:
    """Questions answered."""
    return _block("scoring", "preparation-demo", "preparation-gsm8k-qwen2.5", "preparation-gsm8k-llama3.2")


def speed_start() -> str:
    """What is paid once: the first step, an export, a help text."""
    return _block("first-step", "export", "export-300M", "help")


def speed_growth() -> str:
    """The same work in other amounts (rows of 2,048 tokens are above), and with two threads."""
    names = ("preparation-1x", "preparation-10x", "preparation-100x", "training-128", "training-512")
    return _block(*names, "training-threads")


def speed_variants() -> str:
    """Every variant of TRL."""
    return _block("training-variants", "training-compiled", loss=True)


def _block(*names: str, loss: bool = False) -> str:
    known = load("speed.json")["measurements"] if (RESULTS / "speed.json").is_file() else {}
    measured = [known[name] for name in names if known.get(name, {}).get("complete")]
    return render(
        "speed",
        parts=[_part(result, loss) for result in measured],
        missing=[name for name in names if not known.get(name, {}).get("complete")],
    )


def _part(result: Any, loss: bool) -> dict[str, Any]:
    """One table: a row for each contender, with ours over it."""
    contenders, rate = result["summary"]["contenders"], result["unit"] in UNITS
    order = [name for name in result["options"] if name in contenders]
    reference = next((name for name in order if name.startswith("ours")), order[0])
    headings = [
        "",
        f"{result['unit']} a CPU second" if rate else "CPU seconds",
        f"{result['unit']} a second" if rate else "seconds",
        "peak memory",
    ]
    losses = loss and any("held_out_loss" in facts for facts in result["facts"].values())
    answers = any("equal_to_hf_generate" in facts for facts in result["facts"].values())
    headings += ["held-out loss"] * losses + ["equal answers"] * answers
    compared = len(order) > 1
    headings += [f"{LABELS.get(reference, reference)} is faster by"] * compared
    return {
        "result": result,
        "headings": headings,
        "rows": [_row(name, result, rate, losses, answers) + [_faster(result, reference, name)] * compared for name in order],
        "failed": {name: why.strip().splitlines()[-1] for name, why in result["failed"].items()},
    }  # fmt: skip


def _row(name: str, result: Any, rate: bool, losses: bool, answers: bool) -> list[str]:
    row, facts = result["summary"]["contenders"][name], result["facts"].get(name, {})
    clocks = ("per_cpu_second", "per_second") if rate else ("cpu_seconds", "seconds")
    cells = [LABELS.get(name, name), *(_number(row[clock]) for clock in clocks)]
    cells.append(f"{row['peak_mib']:,.0f} MiB" if row["peak_mib"] else "—")
    if losses:
        cells.append(f"{facts['held_out_loss']:.3f}" if "held_out_loss" in facts else "—")
    if answers:
        cells.append(f"{facts['equal_to_hf_generate']} of {facts['answers']}" if "answers" in facts else "—")
    return cells


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _faster(result: Any, reference: str, name: str) -> str:
    pair = result["summary"]["faster"].get(f"{reference} / {name}")
    return f"{pair['median']:.2f} × [{pair['min']:.2f}, {pair['max']:.2f}]" if pair else "—"
