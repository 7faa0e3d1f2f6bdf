"""Hashes that show whether an export was made from the same weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from cot_unsloth.config import RunConfig
from cot_unsloth.storage.hashes import weights_hash


def source_hashes(config: RunConfig, base: Path | None, trained_weights: Path | None, template: str) -> dict[str, str]:
    """Hashes of what an export is made from, so that an export of other weights is detected.

    Args:
        config: the settings.
        base: the base's folder; None for a fully fine-tuned model, which does not need it.
        trained_weights: the folder of an adapter or of a fully fine-tuned model.
        template: the chat template.
    """
    model = config.model
    prompt_format = json.dumps([template, model.date_string, model.pad_token])
    return {
        "chat_template": hashlib.sha256(prompt_format.encode()).hexdigest(),
        "trained_weights": weights_hash(trained_weights),
        "base_weights": weights_hash(base),
    }
