"""What an export costs: `python bench/export.py --tokenizer DIR --llama-cpp DIR --out bench/results/export.json`.

For each size a Llama-shaped base with random weights (bfloat16) and a LoRA adapter on it are made,
then turned into a Q4_K_M file in two ways:

- ours: base + adapter, straight to the file, without the verification;
- the chain that others take: `peft` merges into 16 bits and saves, llama.cpp's `convert_hf_to_gguf.py`
  writes a 16-bit GGUF, llama.cpp's `llama-quantize` writes the file.

Each step is a process of its own and is timed as a whole, imports included. Memory is the anonymous
memory of the process (`Anonymous` in /proc/PID/smaps_rollup, read every 20 ms): pages of mapped files
are left out, for the kernel takes those back. Disk is what the files that were written take. The two
ways take turns, after one go of each that is not counted, which leaves the base in the page cache.

It needs Linux; `llama.cpp` with `llama-quantize` built (`cmake -B build && cmake --build build --target
llama-quantize`), and a Python that has the converter's requirements (`--converter-python`); and the folder of a
tokenizer that the converter knows, Llama 3.2's for instance.
Without `--llama-cpp`, ours alone is measured.
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
    """Write a base and an adapter with random weights; returns how many parameters the base has."""
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
    """What a process took."""

    seconds: float
    anonymous: int
    """Bytes, at the most."""
    before: int = 0
    """Bytes of it that were there before the conversion began; ours alone says so."""


def anonymous(process: int | str = "self") -> int:
    """Bytes of anonymous memory of a process; 0 of one that is gone."""
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Anonymous:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def run(command: Sequence[str], log: Path) -> Cost:
    """Run a command and watch it.

    Raises:
        RuntimeError: it failed; the message holds the end of what it said.
    """
    began, most = time.perf_counter(), 0
    with log.open("w", encoding="utf-8") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        while process.poll() is None:
            most = max(most, anonymous(process.pid))
            time.sleep(EVERY)
    seconds = time.perf_counter() - began
    text = log.read_text(encoding="utf-8")
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended in {process.returncode}:\n{text[-2000:]}")
    told = [json.loads(line) for line in text.splitlines() if line.startswith('{"anonymous_before"')]
    return Cost(seconds, most, told[0]["anonymous_before"] if told else 0)


def chat_of(folder: Path) -> Any:
    """The base's tokenizer and template."""
    from cot_unsloth import config
    from cot_unsloth.prompts.opening import open_renderer

    settings = config.load_tree({"model": {"model_name_or_path": str(folder / "base")}}, {})
    return open_renderer(settings.model, settings.data).chat


def opened(folder: Path, chat: Any) -> Any:
    """Base and adapter, as ours reads them."""
    from cot_unsloth.export.model import open_model

    return open_model(folder / "base", folder / "adapter", chat, "bench")


def ours(folder: Path, out: Path) -> None:
    """Base and adapter to the file, in this process."""
    import torch  # noqa: F401  it is there before the conversion is

    from cot_unsloth.export.gguf import writer

    chat = chat_of(folder)
    print(json.dumps({"anonymous_before": anonymous()}), flush=True)
    model = opened(folder, chat)
    writer.check(model)
    writer.write(model, {"q4_k_m": out})


def merge(folder: Path, out: Path) -> None:
    """The adapter merged by peft, and saved with the tokenizer, as its documentation shows."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16, trust_remote_code=False)
    merged: Any = PeftModel.from_pretrained(base, str(folder / "adapter"))
    merged.merge_and_unload().save_pretrained(out)
    AutoTokenizer.from_pretrained(folder / "base", trust_remote_code=False).save_pretrained(out)


def bytes_in(path: Path) -> int:
    """Of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def one_way(name: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One go of one way; its file stands at `folder/NAME.gguf` then."""
    work = folder / "work"
    work.mkdir()
    final, itself = folder / f"{name}.gguf", [sys.executable, str(Path(__file__).resolve())]
    final.unlink(missing_ok=True)
    if name == "ours":
        steps = {"write": [*itself, "--step", "ours", str(folder), str(final)]}
    else:
        llama_cpp: Path = args.llama_cpp
        merged, wide = work / "merged", work / "wide.gguf"
        convert, quantize = llama_cpp / "convert_hf_to_gguf.py", llama_cpp / "build" / "bin" / "llama-quantize"
        steps = {
            "merge": [*itself, "--step", "merge", str(folder), str(merged)],
            "convert": [args.converter_python, str(convert), str(merged), "--outfile", str(wide), "--outtype", "bf16"],
            "quantize": [str(quantize), str(wide), str(final), "Q4_K_M", str(args.threads)],
        }
    costs = {step: run(command, folder / f"{name}-{step}.log") for step, command in steps.items()}
    size = bytes_in(final)
    found = {
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
    return found


def compare(folder: Path) -> dict[str, Any]:
    """Our file and llama.cpp's: whether the types of all tensors are the same, and some of their errors.

    The error is the root of the mean square of what quantizing changed, relative to that of the
    weights, over a few tensors spread over the file; its measure is the base with the adapter folded
    in, in float32.
    """
    import gguf
    import numpy as np

    from cot_unsloth.export.gguf import writer

    model = opened(folder, chat_of(folder))
    files = {name: {t.name: t for t in gguf.GGUFReader(folder / f"{name}.gguf").tensors} for name in ("ours", "peer")}
    kinds = {name: {t.name: t.tensor_type.name for t in found.values()} for name, found in files.items()}
    matrices = [t for t in writer.tensors(model) if len(t.shape) == 2 and t.layer is not None]
    rows = []
    for tensor in matrices[:: max(1, len(matrices) // COMPARED)][:COMPARED]:
        whole = model.merged(tensor.source)(0, tensor.shape[0]).float()
        whole = (writer.to_pairs(whole, model.head_dim) if tensor.heads else whole).numpy()
        errors = {}
        for name, found in files.items():
            back = gguf.dequantize(found[tensor.name].data, found[tensor.name].tensor_type)
            errors[name] = float(np.sqrt(((back - whole) ** 2).mean() / (whole**2).mean()))
        rows.append({"tensor": tensor.name, "type": kinds["ours"][tensor.name]} | errors)
    different = sorted(name for name in kinds["peer"] if kinds["ours"].get(name) != kinds["peer"][name])
    ratios = [row["ours"] / row["peer"] for row in rows]
    return {
        "tensors": len(kinds["peer"]),
        "tensors_of_another_type": different,
        "relative_rmse": rows,
        "largest_ratio_of_rmse": round(max(ratios), 4),
    }


def medians(goes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median of the times, the most of memory; the rest is the same in every go."""
    found = dict(goes[-1])
    found["seconds"] = statistics.median(go["seconds"] for go in goes)
    found["each"] = [go["seconds"] for go in goes]
    found["steps"] = {step: statistics.median(go["steps"][step] for go in goes) for step in found["steps"]}
    found["anonymous_mib"] = {
        step: max(go["anonymous_mib"][step] for go in goes) for step in found["anonymous_mib"]
    }  # fmt: skip
    if found["extra_anonymous_mib"] is not None:
        found["extra_anonymous_mib"] = max(go["extra_anonymous_mib"] for go in goes)
    return found


def measured(size: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both ways for one size."""
    made = subprocess.run(
        [sys.executable, __file__, "--step", "make", size, str(args.tokenizer), str(folder)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    parameters = int(made.stdout.split()[-1])
    note(f"{size}: {parameters:,} parameters")
    ways = ["ours"] + ["peer"] * (args.llama_cpp is not None)
    goes: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for go in range(args.n + 1):
        for way in ways if go % 2 else ways[::-1]:
            found = one_way(way, folder, args)
            note(f"{size}, {way}: {found}")
            if go:
                goes[way].append(found)
    result: dict[str, Any] = {"parameters": parameters} | {way: medians(goes[way]) for way in ways}
    if "peer" in goes:
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(goes["ours"], goes["peer"], strict=True)]
        result["ours_over_peer_seconds"] = {"median": round(statistics.median(ratios), 3)} | {
            "min": round(min(ratios), 3), "max": round(max(ratios), 3)
        }  # fmt: skip
        result["agreement"] = compare(folder)
    return result


def linear(sizes: dict[str, Any]) -> dict[str, Any]:
    """Seconds as a line over parameters, by least squares, and how far the sizes lie off it."""
    points = [(each["parameters"] / 1e9, each["ours"]["seconds"]) for each in sizes.values()]
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
    """Measure and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer")
    parser.add_argument("--llama-cpp", type=Path, help="folder of llama.cpp, with llama-quantize built")
    parser.add_argument("--converter-python", default=sys.executable, help="interpreter for llama.cpp's converter")
    parser.add_argument("--sizes", default="300M,600M,1B", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--n", type=int, default=3, help="goes of each way")
    parser.add_argument("--threads", type=int, default=2, help="of llama-quantize; ours takes one for each core")
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
        "memory": "anonymous, read every 20 ms, the most of all goes; extra: beyond what imports and the tokenizer took",
        "sizes": {},
    }
    for size in args.sizes.split(","):
        with tempfile.TemporaryDirectory(dir=args.work) as folder:
            result["sizes"][size] = measured(size, args, Path(folder))
        result["linear"] = linear(result["sizes"])
        write_json(args.out, result)


if __name__ == "__main__":
    main()
