"""Names of models and data as they leave this machine: in a card, a record or an uploaded adapter no path of it is published."""

from __future__ import annotations

import json
from pathlib import Path

from cot_unsloth.config import HUB_ID, split_sources
from cot_unsloth.core.json_text import parse_json
from cot_unsloth.tasks import is_task_dataset


def public_name(model: str) -> str:
    """A model as it is named on the hub, or the last part of its path.

    >>> public_name("Qwen/Qwen2.5-7B"), public_name("tiny-base"), public_name("/home/me/models/mine")
    ('Qwen/Qwen2.5-7B', 'tiny-base', 'mine')
    """
    is_local = Path(model).exists() or not HUB_ID.fullmatch(model)
    return Path(model).resolve().name if is_local else model


def public_data(dataset: str) -> str:
    """A data set as it is named on the hub, or the last parts of its files, folders or patterns.

    >>> public_data("world:chains,words"), public_data("/home/me/data/*.jsonl,openai/gsm8k")
    ('world:chains,words', '*.jsonl, openai/gsm8k')
    """
    if is_task_dataset(dataset):
        return dataset
    sources = split_sources(dataset)
    return ", ".join(
        source if HUB_ID.fullmatch(source) and not Path(source).exists() else Path(source).name for source in sources
    )


def public_adapter_config(file: Path) -> bytes:
    """The text of an adapter_config.json with the public name of its base.

    PEFT writes the name that the base was loaded by, and loads it by that name: here a path has to stay. Elsewhere it leads
    nowhere, and whoever has the base names it.
    """
    settings = parse_json(file.read_text(encoding="utf-8"))
    named = settings.get("base_model_name_or_path")
    if not isinstance(named, str) or public_name(named) == named:
        return file.read_bytes()
    return json.dumps({**settings, "base_model_name_or_path": public_name(named)}, indent=2, sort_keys=True).encode()
