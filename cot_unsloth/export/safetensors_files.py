"""Writing a safetensors file a piece at a time, so that memory does not grow with its size."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

WIDTHS = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes of a number, by the name of its type in safetensors."""


def write_safetensors(
    file: Path, tensors: Mapping[str, tuple[str, Sequence[int]]], chunks: Callable[[str], Iterable[bytes]]
) -> None:
    """Write a file: 8 bytes with the length of the header, the header as JSON, then the numbers in its order.

    The format allows no gaps between tensors (safetensors' README, "Format"); the header is padded with spaces to a
    multiple of 8 bytes, as safetensors pads it itself, so that numbers are aligned in a mapped file.

    Args:
        file: to write.
        tensors: type and shape of each tensor by name.
        chunks: the bytes of a tensor, asked for in the order of `tensors`.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (kind, shape) in tensors.items():
        end = at + math.prod(shape) * WIDTHS[kind]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as handle:
        handle.write(struct.pack("<Q", len(text)) + text)
        for name in tensors:
            for chunk in chunks(name):
                handle.write(chunk)
