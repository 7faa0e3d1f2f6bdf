"""The merged folder: base weights with the adapter merged into them, for plain transformers.

The changes are computed in float32, a block of rows at a time, and written shard by shard under the base's own names;
the model is never instantiated. Numbers are rounded to the folder's type once, after the merge. Files that do not belong
to the base are not copied, so the folder holds nothing unmerged.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cot_unsloth.core.errors import ModelError
from cot_unsloth.core.json_text import parse_json
from cot_unsloth.core.progress import bar
from cot_unsloth.export.gguf.tokens import exported_template
from cot_unsloth.export.model import Model
from cot_unsloth.export.safetensors_files import WIDTHS, write_safetensors
from cot_unsloth.export.weights import blocks, in_order
from cot_unsloth.prompts.chat_template import save_tokenizer
from cot_unsloth.storage import atomic

_COPIED = ("config.json", "generation_config.json")
_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""torch's dtypes, as safetensors names them."""


def out_type(stored: str, dtype: str) -> str:
    """The type that a tensor is written in, as safetensors names it.

    Integer tensors keep theirs. `auto` keeps 16-bit types and writes 32 bits as bfloat16, whose range is that of float32:
    float16 overflows at 65,504.

    >>> out_type("F32", "auto"), out_type("F16", "auto"), out_type("BF16", "float32"), out_type("I64", "float16")
    ('BF16', 'F16', 'F32', 'I64')
    """
    if stored not in ("F64", "F32", "F16", "BF16"):
        return stored
    return _NAMES.get(dtype) or (stored if stored in ("F16", "BF16") else "BF16")


def size(model: Model, dtype: str) -> int:
    """Bytes of the merged weights."""
    return sum(_bytes(model, name, dtype) for name in model.weights.shapes)


def _bytes(model: Model, name: str, dtype: str) -> int:
    return math.prod(model.weights.shapes[name]) * WIDTHS[out_type(model.weights.types[name], dtype)]


def write(model: Model, out: Path, dtype: str) -> str:
    """Write the merged shards, their index, the settings and the tokenizer into `out`; returns the type of the weights.

    Raises:
        ModelError: a number does not fit into the type.
    """
    with bar("merge", len(model.weights.shapes)) as progress:
        for file in model.weights.files:
            _write_shard(model, model.weights.names_of(file), out / file.name, dtype, progress)
    if model.weights.index is not None:
        places = sorted(model.weights.file_of.items())
        listed = {model.weights.written_name(name): file.name for name, file in places}
        tree = {"metadata": {"total_size": size(model, dtype)}, "weight_map": listed}
        atomic.write_json(out / model.weights.index.name, tree)
    for name in _COPIED:
        if (model.weights.folder / name).is_file():
            shutil.copyfile(model.weights.folder / name, out / name)
    _set_stops(model, out)
    written = _main_type(model, dtype)
    _set_config(out / "config.json", written, tied=model.weights.stores_tied)
    _write_tokenizer(model, out)
    return written


def _main_type(model: Model, dtype: str) -> str:
    """The type of most weights, which config.json names: transformers and vLLM convert all of them to it.

    Not that of the first tensor: older checkpoints in float16 begin with rotary frequencies in float32.
    """
    counts = dict.fromkeys(_NAMES.values(), 0)
    for name, stored in model.weights.types.items():
        if (kind := out_type(stored, dtype)) in counts:
            counts[kind] += math.prod(model.weights.shapes[name])
    return max(_NAMES, key=lambda name: counts[_NAMES[name]])


def _write_shard(model: Model, names: Sequence[str], file: Path, dtype: str, progress: Any) -> None:
    weights = model.weights
    by_written = {weights.written_name(name): name for name in names}

    def chunks(written: str) -> Iterator[bytes]:
        yield from _merged(model, by_written[written], dtype)
        progress.advance(1)

    tensors = {
        written: (out_type(weights.types[name], dtype), weights.shapes[name]) for written, name in by_written.items()
    }
    write_safetensors(file, tensors, chunks)


def _merged(model: Model, name: str, dtype: str) -> Any:
    """The bytes of one tensor, block by block."""
    import torch

    weights = model.weights
    merged = model.merged(name)
    kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    # None for integers, which are copied.
    kind = kinds.get(out_type(weights.types[name], dtype))

    def work(block: tuple[int, int]) -> bytes:
        rows = merged(*block)
        if kind is not None:
            rows = rows.to(kind)
            # A bfloat16 base can hold numbers above float16's 65,504, which become infinite without an error.
            if not torch.isfinite(rows).all():
                raise ModelError(
                    f"{name} does not fit into {kind}", where=str(weights.folder), hint="--export-dtype bfloat16"
                )
        # As bytes, because numpy has no bfloat16.
        return bytes(rows.contiguous().reshape(-1).view(torch.uint8).numpy())

    return in_order(work, blocks(weights, name))


def _set_config(config: Path, dtype: str, *, tied: bool) -> None:
    """Record type and tying as written: transformers 4 ties if config.json says so, even weights that differ."""
    tree = parse_json(config.read_text(encoding="utf-8"))
    tree.pop("torch_dtype", None)  # transformers 4 wrote it under this name; two that differ would be ambiguous
    atomic.write_json(config, {**tree, "dtype": dtype, "tie_word_embeddings": tied})


def _set_stops(model: Model, out: Path) -> None:
    """Have plain transformers stop where training did: a base may have no generation_config.json, or stop elsewhere.

    A file that already says so is left unchanged. Other servers (SGLang) read `config.json`, and so does transformers if
    there is nothing else.
    """
    chat = model.chat
    first = [] if chat.turn_end is None else [chat.turn_end]
    stops = [*first, *sorted(chat.stops - set(first))]
    pad = chat.tokenizer.pad_token_id
    tree = _read_json(out / "generation_config.json")
    listed = _ids(tree.get("eos_token_id"))
    eos = [*(id_ for id_ in stops if id_ not in listed), *(id_ for id_ in listed if id_ in chat.stops)]
    changed: dict[str, int | list[int]] = {"eos_token_id": eos} if eos != listed else {}
    if tree.get("pad_token_id") in (None, *first):
        changed["pad_token_id"] = pad
    if changed:
        atomic.write_json(out / "generation_config.json", {**tree, **changed})
    config = _read_json(out / "config.json")
    # config.json only if it lacks the token: a change there is a change for every program.
    if not set(first) <= set(_ids(config.get("eos_token_id"))):
        atomic.write_json(out / "config.json", {**config, "eos_token_id": stops if len(stops) > 1 else stops[0]})


def _ids(value: Any) -> list[int]:
    """Token ids of a setting that is one id, a list of ids, or None."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _read_json(file: Path) -> dict[str, Any]:
    """The contents of a JSON file; empty if there is none."""
    tree: dict[str, Any] = parse_json(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return tree


def _write_tokenizer(model: Model, out: Path) -> None:
    """The tokenizer's files, unchanged, with the exported template, whose date is frozen."""
    save_tokenizer(model.chat, out, exported_template(model.chat))
