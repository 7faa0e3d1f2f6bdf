"""Rows and tokenizers of our own in the formats of published ones, so that a fresh clone runs the same tests.

`gsm8k/` has rows in the format of GSM8K; line 7 of `train.jsonl` contradicts its answer, as some of the published rows
do. `tokenizers/` has small tokenizers with the pre-tokenizer, control tokens, chat template and files of Llama 3.2 and
Qwen2.5.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import trl
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ROWS = Path(__file__).parent / "data" / "gsm8k"
CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
FAMILIES: dict[str, dict[str, Any]] = {
    "llama3.2": {
        "template": "llama3_2", "model_type": "llama", "split": CL100K, "ignore_merges": True, "nfc": False,
        "bos": "<|begin_of_text|>", "eos": "<|eot_id|>", "pad": None,
        "special": ("<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|start_header_id|>",
                    "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"),
        "stop": ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    },
    "qwen2.5": {
        "template": "qwen2_5", "model_type": "qwen2", "split": CL100K.replace("{1,3}", ""), "ignore_merges": False,
        "nfc": True, "bos": None, "eos": "<|im_end|>", "pad": "<|endoftext|>",
        "special": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "stop": ("<|im_end|>", "<|endoftext|>"),
    },
}  # fmt: skip
VOCABULARY = 900


def build(folder: Path) -> Path:
    """Write the data set and the tokenizers into a folder."""
    shutil.copytree(ROWS, folder / "gsm8k")
    for name, family in FAMILIES.items():
        write_tokenizer(folder / "tokenizers" / name, family)
    return folder


def write_tokenizer(folder: Path, family: dict[str, Any]) -> None:
    """Train a byte-level BPE on our rows and save it in the files that the family publishes."""
    folder.mkdir(parents=True)
    backend = Tokenizer(models.BPE(ignore_merges=family["ignore_merges"]))
    if family["nfc"]:
        backend.normalizer = normalizers.NFC()
    byte_level = {"add_prefix_space": False, "use_regex": False}
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(family["split"]), "isolated"), pre_tokenizers.ByteLevel(**byte_level)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train([str(file) for file in sorted(ROWS.glob("*.jsonl"))], trainer)
    backend.add_special_tokens(list(family["special"]))  # after the tokens of the text, as in both families
    bos = family["bos"]
    backend.post_processor = (
        processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))])
        if bos
        else processors.ByteLevel(trim_offsets=False)
    )
    backend.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": family["eos"],
        "model_max_length": 131072, "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {
            str(backend.token_to_id(token)): {
                "content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                "special": True,
            }
            for token in family["special"]
        },
        "chat_template": (Path(trl.__file__).parent / "chat_templates" / f"{family['template']}.jinja").read_text(),
    }  # fmt: skip
    if family["pad"]:
        settings["pad_token"] = family["pad"]
    stop = [backend.token_to_id(token) for token in family["stop"]]
    generation = {"bos_token_id": backend.token_to_id(bos or family["pad"]), "eos_token_id": stop, "do_sample": True}
    config = {"model_type": family["model_type"], "vocab_size": backend.get_vocab_size() + 40}  # padded, as in Qwen2.5
    for name, content in (
        ("tokenizer_config.json", settings), ("generation_config.json", generation), ("config.json", config),
    ):  # fmt: skip
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
