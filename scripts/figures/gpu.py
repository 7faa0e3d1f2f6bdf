"""docs/gpu.md: training side by side on one GPU, other checks made there, and a base in fewer bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from scripts.figures.results import RESULTS, accuracy, load, paired, render

MODELS = ("llama-3.2-3b", "qwen2.5-7b")
ROW_LENGTHS = {"gsm8k": "GSM8K's lengths, at most 2,048", "traces": "1,000 to 6,000 tokens, at most 8,192"}
CONTENDERS = ("ours", "ours-unpacked", "unsloth-notebook", "trl")
PEERS = ("trl", "unsloth-notebook")
BITS = {"whole": "full precision", "8": "8 bits", "4": "4 bits (NF4)"}


def _stage(name: str) -> Any | None:
    """The result of a stage of `bench/gpu.py`; None if it was not run."""
    return load(f"gpu/{name}.json") if (RESULTS / "gpu" / f"{name}.json").is_file() else None


@dataclass(frozen=True)
class Contender:
    """One way to train, on one model and one set of row lengths."""

    model: str
    lengths: str
    name: str

    @property
    def result(self) -> Any | None:
        """What was measured; None if it was not run."""
        return _stage(f"train-{self.model}-{self.lengths}-{self.name}")

    def row(self) -> list[str]:
        """Its line of the table.

        Raises:
            ValueError: it was not measured.
        """
        if self.result is None:
            raise ValueError(f"{self} was not measured")
        label = [self.model, ROW_LENGTHS[self.lengths], self.name]
        measured = self.result["found"]
        utilisation = measured.get("model_flop_utilisation")
        busy = (measured.get("profile") or {}).get("gpu_busy")
        return [
            *label,
            f"{measured['tokens_per_second']:,.0f}",
            f"{measured['peak_memory_gib']:.2f} GiB",
            f"{utilisation:.1%}" if utilisation else "—",
            f"{busy:.0%}" if busy else "—",
        ]

    def ratios(self, peer: str) -> dict[str, Any] | None:
        """Its throughput and memory over a peer's; None if either was not run."""
        other = Contender(self.model, self.lengths, peer).result
        if self.result is None or other is None:
            return None
        ours, theirs = self.result["found"], other["found"]
        return {
            "model": self.model,
            "rows": ROW_LENGTHS[self.lengths],
            "contender": self.name,
            "peer": peer,
            "speed": ours["tokens_per_second"] / theirs["tokens_per_second"],
            "memory": ours["peak_memory_gib"] / theirs["peak_memory_gib"],
        }


def gpu() -> str:
    """Every contender that was measured, what was not measured, and the ratios to its peers."""
    contenders = [Contender(*names) for names in product(MODELS, ROW_LENGTHS, CONTENDERS)]
    ours = [contender for contender in contenders if contender.name.startswith("ours")]
    ratios = [contender.ratios(peer) for contender in ours for peer in PEERS]
    measured = [contender.result for contender in contenders if contender.result is not None]
    return render(
        "gpu",
        rows=[contender.row() for contender in contenders if contender.result is not None],
        gaps=_gaps([contender for contender in contenders if contender.result is None]),
        ratios=[ratio for ratio in ratios if ratio is not None],
        first=measured[0] if measured else None,
        cards=sorted({result["gpu"]["name"] for result in measured}),
    )


def _gaps(missing: Sequence[Contender]) -> list[str]:
    """Models and row lengths that were not measured; contenders are named if only some of them are missing."""
    names: dict[str, list[str]] = {}
    for contender in missing:
        names.setdefault(f"{contender.model}, {ROW_LENGTHS[contender.lengths]}", []).append(contender.name)
    return [rows if len(who) == len(CONTENDERS) else f"{rows} ({', '.join(who)})" for rows, who in names.items()]


def gpu_checks() -> str:
    """Other stages that ran on a GPU: float16, a resume, memory caps."""
    caps = []
    for model, gib in product(MODELS, (15, 12, 8)):
        result = _stage(f"cap-{model}-{gib}")
        if result is not None:
            longest = result["found"]["longest"]
            peak = result["found"]["tried"][str(longest)]["peak_gib"]
            caps.append({"model": model, "gib": gib, "longest": longest, "peak": peak})
    return render("gpu_checks", half=_stage("fp16-llama-3.2-3b"), resumed=_stage("resume-llama-3.2-3b"), caps=caps)


def few_bits() -> str:
    """The demo with its base in 16, 8 and 4 bits, and each adapter exported onto the 16-bit base."""
    result = load("bits.json")
    runs = result["runs"]
    rows = [
        _bits_row(f"{run['seed']} / {run['eval_seed']}", label, runs[bits][index])
        for index, run in enumerate(runs["whole"])
        for bits, label in BITS.items()
    ]
    return render("few_bits", result=result, run=runs["whole"][0], rows=rows)


def _bits_row(seeds: str, label: str, run: Any) -> list[str]:
    tuned, exported, pair = run["arms"]["tuned"], run["arms"]["gguf"], paired(run, "tuned", "gguf")
    low, high = (100 * bound for bound in pair["ci95"])
    change = f"{100 * pair['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"
    return [seeds, label, accuracy(tuned), accuracy(exported), change, f"{exported['format_valid']:.1%}"]
