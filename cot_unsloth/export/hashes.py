"""Hashes that show whether an export was made from the same weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from cot_unsloth.config import RunConfig
from cot_unsloth.prompts import tokenizer_files
from cot_unsloth.prompts.chat_template import ChatTemplate
from cot_unsloth.storage.hashes import sha256_of, weights_hash


def source_hashes(
    config: RunConfig, base: Path | None, trained_weights: Path | None, chat: ChatTemplate
) -> dict[str, str]:
    """Hashes of what an export is made from, so that an export of other weights is detected.

    Args:
        config: the settings.
        base: the base's folder; None for a fully fine-tuned model, which does not need it.
        trained_weights: the folder of an adapter or of a fully fine-tuned model.
        chat: the tokenizer, its chat template, and the tokens that generation stops at.
    """
    model = config.model
    prompt_format = json.dumps([str(chat.tokenizer.chat_template), model.date_string, model.pad_token])
    return {
        "tokenizer_or_stop_tokens": hashlib.sha256(json.dumps(_tokenizer(chat)).encode()).hexdigest(),
        "chat_template": hashlib.sha256(prompt_format.encode()).hexdigest(),
        "trained_weights": weights_hash(trained_weights),
        "base_weights": weights_hash(base),
    }


def _tokenizer(chat: ChatTemplate) -> list[object]:
    """Its stop tokens, and its files by their hashes: another version of tokenizers would write them in other words."""
    files = [chat.files / name for name in tokenizer_files.FILES] if chat.files is not None else []
    return [sorted(chat.stops), [[file.name, sha256_of(file)] for file in files if file.is_file()]]
