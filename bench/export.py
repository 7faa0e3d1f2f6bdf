"""Time, memory and disk of an export: `python bench/export.py --tokenizer DIR --llama-cpp DIR --out bench/results/export.json`.

For each size, makes a Llama-shaped base with random weights (bfloat16) and a LoRA adapter for it, and converts them to a
Q4_K_M file in two ways:

- `ours`: base + adapter directly to the file, without verification;
- `peer`, the usual way: `peft` merges into 16 bits and saves, llama.cpp's `convert_hf_to_gguf.py` writes a 16-bit GGUF,
  and llama.cpp's `llama-quantize` writes the file.

Each step is a process of its own, timed with its imports. Memory is the anonymous memory of the process (`Anonymous` in
/proc/PID/smaps_rollup, read every 20 ms); pages of mapped files do not count, because the kernel can reclaim them. Disk is
the size of the files that were written. The two ways alternate, after one repetition of each that is not counted and
leaves the base in the page cache.

Needs Linux; llama.cpp with `llama-quantize` (`cmake -B build && cmake --build build --target llama-quantize`); a Python
with the converter's requirements (`--converter-python`); and the folder of a tokenizer that the converter knows, such as
Llama 3.2's. Without `--llama-cpp`, only `ours` is measured.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cot_unsloth.core.progress import note
from cot_unsloth.core.threads import limit_spinning
from cot_unsloth.storage.atomic import write_json
from cot_unsloth.storage.environment import environment

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4},
    "300M": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 12, "num_attention_heads": 16},
    "600M": {"hidden_size": 1536, "intermediate_size": 5632, "num_hidden_layers": 13, "num_attention_heads": 24},
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
}
"""The last is Llama-3.2-1B's."""
RANK = 16
MIB = 1 << 20
EVERY = 0.02
"""Seconds between readings of memory."""
COMPARED = 6
"""Tensors whose error is compared."""


def make(size: str, tokenizer: Path, folder: Path) -> int:
    """Write a base and an adapter with random weights; returns the number of parameters of the base."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    known = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
    rope = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    shape = SHAPES[size]
    config = LlamaConfig(
        vocab_size=len(known), num_key_value_heads=shape["num_attention_heads"] // 4, head_dim=64,
        max_position_embeddings=131072, tie_word_embeddings=True, rope_parameters=rope, rms_norm_eps=1e-5, **shape,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder / "base")
    known.save_pretrained(folder / "base")
    if (tokenizer / "generation_config.json").is_file():
        shutil.copy(tokenizer / "generation_config.json", folder / "base")
    parameters = sum(p.numel() for p in model.parameters())
    changed = peft.get_peft_model(
        model, peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    for name, parameter in changed.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    changed.save_pretrained(folder / "adapter")
    return parameters


@dataclass(frozen=True)
class Cost:
    """Time and memory of a process."""

    seconds: float
    anonymous: int
    """Bytes at the peak."""
    before: int = 0
    """Bytes before the conversion began; only `ours` reports it."""


def anonymous(process: int | str = "self") -> int:
    """Bytes of anonymous memory of a process; 0 if it has ended."""
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Anonymous:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def run(command: Sequence[str], log: Path) -> Cost:
    """Run a command and measure it.

    Raises:
        RuntimeError: it failed; the message has the end of its output.
    """
    began, most = time.perf_counter(), 0
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            most = max(most, anonymous(process.pid))
            time.sleep(EVERY)
    seconds = time.perf_counter() - began
    text = log.read_text(encoding="utf-8")
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended in {process.returncode}:\n{text[-2000:]}")
    reports = [json.loads(line) for line in text.splitlines() if line.startswith('{"anonymous_before"')]
    return Cost(seconds, most, reports[0]["anonymous_before"] if reports else 0)


def chat_of(folder: Path) -> Any:
    """The base's tokenizer and template."""
    from cot_unsloth import config
    from cot_unsloth.prompts.opening import open_renderer

    settings = config.load_tree({"model": {"model_name_or_path": str(folder / "base")}}, {})
    return open_renderer(settings.model, settings.data).chat


def load(folder: Path, chat: Any) -> Any:
    """Base and adapter, as the export reads them."""
    from cot_unsloth.export.model import open_model

    return open_model(folder / "base", folder / "adapter", chat, "bench")


def ours(folder: Path, out: Path) -> None:
    """Convert base and adapter to the file, in this process."""
    import torch  # noqa: F401  (imported first, so that its memory counts as before the conversion)

    from cot_unsloth.export.gguf import writer

    chat = chat_of(folder)
    print(json.dumps({"anonymous_before": anonymous()}), flush=True)
    model = load(folder, chat)
    writer.check(model)
    writer.write(model, {"q4_k_m": out})


def merge(folder: Path, out: Path) -> None:
    """Merge the adapter with peft, and save it with the tokenizer, as peft's documentation shows."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16, trust_remote_code=False)
    merged: Any = PeftModel.from_pretrained(base, str(folder / "adapter"))
    merged.merge_and_unload().save_pretrained(out)
    AutoTokenizer.from_pretrained(folder / "base", trust_remote_code=False).save_pretrained(out)


def bytes_in(path: Path) -> int:
    """The size of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def one_way(name: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One repetition of one way; its result is `folder/NAME.gguf`."""
    work = folder / "work"
    work.mkdir()
    final, this_script = folder / f"{name}.gguf", [sys.executable, str(Path(__file__).resolve())]
    final.unlink(missing_ok=True)
    if name == "ours":
        steps = {"write": [*this_script, "--step", "ours", str(folder), str(final)]}
    else:
        llama_cpp: Path = args.llama_cpp
        merged, wide = work / "merged", work / "wide.gguf"
        convert, quantize = llama_cpp / "convert_hf_to_gguf.py", llama_cpp / "build" / "bin" / "llama-quantize"
        steps = {
            "merge": [*this_script, "--step", "merge", str(folder), str(merged)],
            "convert": [args.converter_python, str(convert), str(merged), "--outfile", str(wide), "--outtype", "bf16"],
            "quantize": [str(quantize), str(wide), str(final), "Q4_K_M", str(args.threads)],
        }
    costs = {step: run(command, folder / f"{name}-{step}.log") for step, command in steps.items()}
    size = bytes_in(final)
    result = {
        "seconds": round(sum(cost.seconds for cost in costs.values()), 2),
        "steps": {step: round(cost.seconds, 2) for step, cost in costs.items()},
        "anonymous_mib": {step: round(cost.anonymous / MIB) for step, cost in costs.items()},
        "extra_anonymous_mib": round((costs["write"].anonymous - costs["write"].before) / MIB)
        if name == "ours"
        else None,
        "file_mib": round(size / MIB, 1),
        "written_over_file": round((bytes_in(work) + size) / size, 3),
    }
    shutil.rmtree(work)
    return result


def compare(folder: Path) -> dict[str, Any]:
    """Compare our file with llama.cpp's: the types of all tensors, and the quantization error of some.

    The error is the root mean square of the difference to the merged weights in float32, divided by the root mean square
    of those, for a few tensors spread over the file.
    """
    import gguf
    import numpy as np

    from cot_unsloth.export.gguf import writer

    model = load(folder, chat_of(folder))
    files = {name: {t.name: t for t in gguf.GGUFReader(folder / f"{name}.gguf").tensors} for name in ("ours", "peer")}
    kinds = {name: {t.name: t.tensor_type.name for t in tensors.values()} for name, tensors in files.items()}
    matrices = [t for t in writer.tensors(model) if len(t.shape) == 2 and t.layer is not None]
    rows = []
    for tensor in matrices[:: max(1, len(matrices) // COMPARED)][:COMPARED]:
        weights = model.merged(tensor.source)(0, tensor.shape[0]).float()
        weights = (writer.to_pairs(weights, model.head_dim) if tensor.heads else weights).numpy()
        errors = {}
        for name, tensors in files.items():
            back = gguf.dequantize(tensors[tensor.name].data, tensors[tensor.name].tensor_type)
            errors[name] = float(np.sqrt(((back - weights) ** 2).mean() / (weights**2).mean()))
        rows.append({"tensor": tensor.name, "type": kinds["ours"][tensor.name]} | errors)
    different = sorted(name for name in kinds["peer"] if kinds["ours"].get(name) != kinds["peer"][name])
    ratios = [row["ours"] / row["peer"] for row in rows]
    return {
        "tensors": len(kinds["peer"]),
        "tensors_of_another_type": different,
        "relative_rmse": rows,
        "largest_ratio_of_rmse": round(max(ratios), 4),
    }


def medians(repetitions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians of times and maxima of memory; everything else is the same in every repetition."""
    result = dict(repetitions[-1])
    result["seconds"] = statistics.median(repetition["seconds"] for repetition in repetitions)
    result["each"] = [repetition["seconds"] for repetition in repetitions]
    result["steps"] = {
        step: statistics.median(repetition["steps"][step] for repetition in repetitions) for step in result["steps"]
    }
    result["anonymous_mib"] = {
        step: max(repetition["anonymous_mib"][step] for repetition in repetitions) for step in result["anonymous_mib"]
    }  # fmt: skip
    if result["extra_anonymous_mib"] is not None:
        result["extra_anonymous_mib"] = max(repetition["extra_anonymous_mib"] for repetition in repetitions)
    return result


def measure(size: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure both ways for one size."""
    made = subprocess.run(
        [sys.executable, __file__, "--step", "make", size, str(args.tokenizer), str(folder)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    parameters = int(made.stdout.split()[-1])
    note(f"{size}: {parameters:,} parameters")
    ways = ["ours"] + ["peer"] * (args.llama_cpp is not None)
    repetitions: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for repetition in range(args.n + 1):
        for way in ways if repetition % 2 else ways[::-1]:
            measured = one_way(way, folder, args)
            note(f"{size}, {way}: {measured}")
            if repetition:  # the first repetition only fills the page cache
                repetitions[way].append(measured)
    result: dict[str, Any] = {"parameters": parameters} | {way: medians(repetitions[way]) for way in ways}
    if "peer" in repetitions:
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(repetitions["ours"], repetitions["peer"], strict=True)]
        result["ours_over_peer_seconds"] = {"median": round(statistics.median(ratios), 3)} | {
            "min": round(min(ratios), 3), "max": round(max(ratios), 3)
        }  # fmt: skip
        result["agreement"] = compare(folder)
    return result


def linear(sizes: dict[str, Any]) -> dict[str, Any]:
    """A least-squares line of seconds over parameters, and the largest relative distance of a size from it."""
    points = [(size["parameters"] / 1e9, size["ours"]["seconds"]) for size in sizes.values()]
    if len({x for x, _ in points}) < 2:
        return {}
    slope, intercept = statistics.linear_regression(*zip(*points, strict=True))
    off = max(abs(intercept + slope * x - y) / y for x, y in points)
    return {
        "seconds_per_billion": round(slope, 2),
        "seconds_at_none": round(intercept, 2),
        "farthest_off": round(off, 3),
    }


def main() -> None:
    """Measure all sizes and write the result."""
    limit_spinning()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer")
    parser.add_argument("--llama-cpp", type=Path, help="folder of llama.cpp, with llama-quantize built")
    parser.add_argument("--converter-python", default=sys.executable, help="interpreter for llama.cpp's converter")
    parser.add_argument("--sizes", default="300M,600M,1B", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--n", type=int, default=3, help="repetitions of each way")
    parser.add_argument("--threads", type=int, default=2, help="threads of llama-quantize; ours uses one per core")
    parser.add_argument("--work", type=Path, help="folder for the models, on the disk to be measured")
    args = parser.parse_args()
    if args.step:
        what, *rest = args.step
        if what == "make":
            print(make(rest[0], Path(rest[1]), Path(rest[2])))
        else:
            {"ours": ours, "merge": merge}[what](Path(rest[0]), Path(rest[1]))
        return
    if args.out is None or args.tokenizer is None:
        parser.error("--out and --tokenizer are needed")
    result: dict[str, Any] = {
        "command": f"python bench/export.py --tokenizer {args.tokenizer.name} --sizes {args.sizes} --n {args.n} "
        f"--threads {args.threads}" + " --llama-cpp DIR" * (args.llama_cpp is not None),
        "environment": environment().as_json(),
        "n": args.n,
        "rank": RANK,
        "memory": "anonymous, read every 20 ms, peak over all repetitions; extra: beyond imports and tokenizer",
        "sizes": {},
    }
    for size in args.sizes.split(","):
        with tempfile.TemporaryDirectory(dir=args.work) as folder:
            result["sizes"][size] = measure(size, args, Path(folder))
        result["linear"] = linear(result["sizes"])
        write_json(args.out, result)


if __name__ == "__main__":
    main()
