"""Base and adapter as GGUF files of one or several quantizations, in one pass over the base.

Decides what each tensor is named, the type that each gets, and the order of bytes. What differs between architectures is
in `architectures`, rotary positions are in `rope`. Every block of rows is read, merged with its adapter, and quantized
for all files; no 16-bit copy of the model is made, and memory does not grow with the model. What cannot be written
exactly is refused by name before the first byte is written.

A GGUF file (ggml's docs/gguf.md) is a header, key-value pairs, a list of tensors with their shapes and offsets, and the
tensors' data. Offsets are multiples of 32 bytes unless `general.alignment` says otherwise. Shapes are listed fastest
dimension first, the reverse of torch's, so a torch tensor's bytes are written as they are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType as FileType

from cot_unsloth.core.errors import ModelError
from cot_unsloth.core.progress import bar
from cot_unsloth.export.gguf.tokenizers import general_name, split_of
from cot_unsloth.export.gguf.tokens import add_tokens
from cot_unsloth.export.model import Model
from cot_unsloth.export.refusal import AS_IT_IS, not_for_gguf
from cot_unsloth.export.weights import (
    BLOCK,
    GPU_BLOCK,
    GPU_THREADS,
    MOST_THREADS,
    blocks,
    in_order,
)

QUANTS: dict[str, tuple[Type, FileType]] = {
    "f32": (Type.F32, FileType.ALL_F32),
    "f16": (Type.F16, FileType.MOSTLY_F16),
    "bf16": (Type.BF16, FileType.MOSTLY_BF16),
    "q8_0": (Type.Q8_0, FileType.MOSTLY_Q8_0),
    "q6_k": (Type.Q6_K, FileType.MOSTLY_Q6_K),
    "q5_k_m": (Type.Q5_K, FileType.MOSTLY_Q5_K_M),
    "q4_k_m": (Type.Q4_K, FileType.MOSTLY_Q4_K_M),
}
"""The supported quantizations: the type of most tensors, and `general.file_type`."""
_MIXED = ("q5_k_m", "q4_k_m")
# K-quants need columns in multiples of 256, these only of 32 (llama.cpp, `llama_tensor_get_type`). SmolLM2-135M, with
# 576 columns, falls back in most of its matrices.
_FALLBACK = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}
_DERIVED = "rotary_emb.inv_freq"
"""Rotary frequencies, which old checkpoints store although they follow from the settings."""


def check(model: Model, longest: int = 0) -> None:
    """Make sure that the model can be written to GGUF.

    Args:
        model: which.
        longest: tokens of the longest text that it is trained on or generates, if known.

    Raises:
        ModelError: its architecture, rope scaling, sliding window, tokenizer or a tensor cannot be written, which is named.
    """
    model.architecture.check(longest)
    tensors(model)
    add_tokens(_Discard(), model.chat, int(model.settings.vocab_size))


class _Discard:
    """A writer that writes nothing, to raise every error before there is a file."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file."""

    name: str
    """In the file."""
    source: str
    """In the base."""
    shape: tuple[int, ...]
    layer: int | None
    heads: int = 0
    """Number of heads of a weight whose rows are permuted in the file; see `to_pairs`. 0: not permuted."""
    offset: float = 0.0
    """Added in the file to a norm weight, if transformers multiplies by 1 + weight."""


def tensors(model: Model) -> list[Tensor]:
    """The tensors of the file, in its order: layer 10 after layer 9.

    A tied output layer is left out: llama.cpp uses the embedding if there is no `output.weight`.

    Raises:
        ModelError: the base has a tensor that GGUF has no name for, or one in 4 or 8 bits.
    """
    layers = int(model.settings.num_hidden_layers)
    # The gguf package's table, which llama.cpp's converter uses too, so no tensor of the file is named here.
    names = gguf.get_tensor_name_map(model.arch, layers)
    tensor_list = []
    for source in sorted(model.weights.shapes, key=_natural):
        if source.endswith(_DERIVED):
            continue
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        where = str(model.weights.file_of[source])
        if name is None:
            raise ModelError(f"GGUF has no name for {source}", where=where, hint=AS_IT_IS, name="not_for_gguf")
        # llama.cpp ignores tensors that it does not ask for, and would run the model without this bias.
        if name.endswith(".bias") and name.split(".")[-2] not in model.architecture.biases:
            raise not_for_gguf(f"{source}, a bias that llama.cpp does not read,", where)
        if not model.weights.is_float(source):
            raise ModelError(f"{source} is stored in 4 or 8 bits", where=where, hint="name the 16-bit base")
        # blk.N. is GGUF's prefix of layer N; only weights inside layers are permuted.
        at = re.match(r"blk\.(\d+)\.", name)
        heads = model.architecture.permuted_heads(source) if at else 0
        offset = model.architecture.norm_offset if name.endswith("norm.weight") else 0.0
        tensor_list.append(
            Tensor(name, source, model.weights.shapes[source], int(at[1]) if at else None, heads, offset)
        )
    return tensor_list


def _natural(name: str) -> list[int | str]:
    """A sort key by which numbers in names sort as numbers."""
    return [int(piece) if piece.isdecimal() else piece for piece in re.split(r"(\d+)", name)]


def kind_of(tensor: Tensor, quant: str, model: Model) -> Type:
    """The type of one tensor in a file of a quantization.

    The mixture is llama.cpp's (`llama_tensor_get_type`), so that sizes and quality are those that users know by these
    names: Q6_K for the output layer, or for the embedding if it is tied; in the _M types also for attn_v and ffn_down, in
    the first and last eighth of the layers and every third between. Vectors and norms stay in float32: they are under
    0.1% of the weights, and ggml's operations on them read float32.
    """
    if len(tensor.shape) < 2 or "norm" in tensor.name:
        return Type.F32
    kind = QUANTS[quant][0]
    outputs = ("token_embd.weight", "output.weight") if model.tied else ("output.weight",)
    if kind in _FALLBACK and tensor.name in outputs:
        kind = Type.Q6_K
    elif quant in _MIXED and tensor.name.endswith("attn_qkv.weight"):
        kind = Type.Q6_K if kind == Type.Q5_K else Type.Q5_K  # the values' share of it, in every layer
    elif quant in _MIXED and tensor.name.endswith(("attn_v.weight", "ffn_down.weight")) and tensor.layer is not None:
        kind = Type.Q6_K if _more_bits(tensor.layer, int(model.settings.num_hidden_layers)) else kind
    columns = tensor.shape[-1]
    # ggml multiplies row by row, so a block may not reach into the next row: columns are a multiple of its size.
    if columns % gguf.GGML_QUANT_SIZES[kind][0]:
        kind = _FALLBACK.get(kind, Type.F16)
    return Type.F16 if columns % gguf.GGML_QUANT_SIZES[kind][0] else kind


def _more_bits(layer: int, layers: int) -> bool:
    # `use_more_bits` of llama.cpp, in integer division.
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def bytes_of(tensor: Tensor, kind: Type) -> int:
    """Bytes of a tensor in the file, padding left out."""
    # Q4_K: 144 bytes for a block of 256 weights. float16: 2 bytes for a block of 1.
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return math.prod(tensor.shape) // block * size


def size(model: Model, quant: str) -> int:
    """About how many bytes a file of a quant takes: its tensors, and a little for the vocabulary."""
    # Each token is stored as an 8-byte length, its text, a 4-byte type and perhaps a score; merges take about as much.
    vocabulary = 40 * int(model.settings.vocab_size)
    return vocabulary + sum(bytes_of(tensor, kind_of(tensor, quant, model)) for tensor in tensors(model))


def write(model: Model, files: Mapping[str, Path], device: str | None = None) -> None:
    """Write a file for each quant, in one pass over the base.

    Args:
        model: what is written.
        files: by quant.
        device: where it is quantized; None: on a GPU if there is one.

    Raises:
        ModelError: as `check`; or a number does not fit into the type asked for.
        OSError: a file cannot be written; what was written of it is left for the caller to remove.
    """
    import torch

    todo = tensors(model)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    # A block is merged once and quantized for every file, so 3 files cost one pass over the base.
    writers = {quant: _started(model, quant, path, todo) for quant, path in files.items()}
    try:
        with bar(f"write {', '.join(files)}", len(todo)) as progress:
            for tensor in todo:
                kinds = {quant: kind_of(tensor, quant, model) for quant in files}
                for blocks_by_type in _quantized(model, tensor, frozenset(kinds.values()), device):
                    for quant, kind in kinds.items():
                        writers[quant].write(memoryview(blocks_by_type[kind]).cast("B"))
                for quant, kind in kinds.items():
                    # The list of tensors, already written, gives the next one's offset: the next multiple of 32.
                    _pad(writers[quant], bytes_of(tensor, kind))
                progress.advance(1)
    finally:
        for file in writers.values():
            file.close()


def _quantized(model: Model, tensor: Tensor, kinds: frozenset[Type], device: str) -> Iterator[dict[Type, Any]]:
    """A tensor's blocks of rows, in each of the types."""
    from cot_unsloth.export.gguf.quantize import quantize

    merged = model.merged(tensor.source)
    # Blocks of complete heads: the permutation moves rows within a head.
    heads = model.head_dim if tensor.heads else 1
    size, threads = (BLOCK, MOST_THREADS) if device == "cpu" else (GPU_BLOCK, GPU_THREADS)

    def work(block: tuple[int, int]) -> dict[Type, Any]:
        rows = merged(*block).to(device).float()
        rows = to_file(rows, tensor, model)
        _check_range(rows, kinds, tensor, model)
        # `quantize` takes rows of blocks: a vector is one row.
        flat = rows.reshape(rows.shape[0], -1) if rows.ndim > 1 else rows.reshape(1, -1)
        return {kind: np.ascontiguousarray(quantize(flat, kind)) for kind in kinds}

    yield from in_order(work, blocks(model.weights, tensor.source, heads, size), threads)


def _check_range(rows: Any, kinds: frozenset[Type], tensor: Tensor, model: Model) -> None:
    largest = rows.abs().max().item() if rows.numel() else 0.0
    # Other types store a value, or a block's scale, as float16, whose largest number is 65,504. NaN fails both tests.
    limit = 65504.0 if kinds - {Type.F32, Type.BF16} else math.inf
    if not largest <= limit or math.isinf(largest):
        raise ModelError(
            f"{tensor.source} contains {largest:g}, which does not fit into the type",
            where=str(model.weights.folder),
            hint="--gguf bf16",
        )


def to_file(rows: Any, tensor: Tensor, model: Model) -> Any:
    """Rows as the file stores them; complete heads only, if their order changes."""
    if tensor.heads:
        return to_pairs(rows, model.head_dim)
    return rows + tensor.offset if tensor.offset else rows


def from_file(rows: Any, tensor: Tensor, model: Model) -> Any:
    """The reverse of `to_file`."""
    if tensor.heads:
        return from_pairs(rows, model.head_dim)
    return rows - tensor.offset if tensor.offset else rows


def to_pairs(rows: Any, head_dim: int) -> Any:
    """Rows of complete heads, with the two rotary halves interleaved.

    transformers rotates dimension i together with i + head_dim / 2; for the `llama` architecture ggml rotates neighbours
    (`LLAMA_ROPE_TYPE_NORM`), as Meta's original weights were stored. Of one head of width 4, rows 0 1 2 3 become 0 2 1 3.
    The same permutation as `permute` in llama.cpp's convert_hf_to_gguf.py; Qwen and Phi (`..._NEOX`) need none.
    """
    rest = rows.shape[1:]
    return rows.reshape(-1, 2, head_dim // 2, *rest).transpose(1, 2).reshape(rows.shape)


def from_pairs(rows: Any, head_dim: int) -> Any:
    """The reverse of `to_pairs`."""
    rest = rows.shape[1:]
    return rows.reshape(-1, head_dim // 2, 2, *rest).transpose(1, 2).reshape(rows.shape)


def _started(model: Model, quant: str, path: Path, todo: Sequence[Tensor]) -> Any:
    """A file with header, keys and list of tensors, open where the first tensor begins.

    GGUFWriter would keep every tensor in memory or in a temporary file, so only the beginning is written with it.
    """
    writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[model.arch])
    writer.path = path
    _add_settings(writer, model, QUANTS[quant][1])
    add_tokens(writer, model.chat, int(model.settings.vocab_size))
    factors = model.architecture.rope.tensors
    for name, values in factors.items():
        writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes, Type.F32)
    for tensor in todo:
        kind = kind_of(tensor, quant, model)
        # float32, although the data are quantized: for uint8, GGUFWriter would read the shape as bytes and not as
        # weights.
        shape = tensor.shape
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), bytes_of(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None
    file = writer.fout[0]
    # Data begin at a multiple of 32 too; the offsets in the list are counted from here.
    _pad(file, file.tell())
    for values in factors.values():
        file.write(values.tobytes())
        _pad(file, values.nbytes)
    return file


def _pad(file: Any, written: int) -> None:
    file.write(b"\0" * (-written % gguf.GGUF_DEFAULT_ALIGNMENT))


def _add_settings(writer: gguf.GGUFWriter, model: Model, file_type: FileType) -> None:
    settings = model.settings
    heads, key_heads = model.architecture.heads
    writer.add_type("model")
    writer.add_name(general_name(model.name, split_of(model.chat.tokenizer)))
    writer.add_file_type(file_type)
    # Required if any tensor is quantized (ggml's docs/gguf.md).
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    # Rows of the embedding, which may be more than the tokenizer's tokens (padded to a multiple of 64 or 128).
    writer.add_vocab_size(int(settings.vocab_size))
    writer.add_context_length(model.context)
    writer.add_embedding_length(int(settings.hidden_size))
    writer.add_block_count(int(settings.num_hidden_layers))
    writer.add_feed_forward_length(int(settings.intermediate_size))
    writer.add_head_count(heads)
    # Fewer than query heads in grouped-query attention; without the key llama.cpp assumes as many.
    writer.add_head_count_kv(key_heads)
    # Without these, llama.cpp takes hidden_size / heads, which is wrong for Qwen3 and Gemma 3.
    writer.add_key_length(model.head_dim)
    writer.add_value_length(model.head_dim)
    writer.add_layer_norm_rms_eps(float(settings.rms_norm_eps))
    model.architecture.rope.add_to(writer)
    model.architecture.add_settings(writer)
