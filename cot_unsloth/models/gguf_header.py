"""Checks the header of a GGUF file before anything opens it: every count and size must fit into the file.

A few settings must also be in the range that llama.cpp asserts. The gguf package and llama.cpp allocate memory for a count before
they have read that much: a file of 194 bytes took 3.8 GB.
Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from pathlib import Path

from cot_unsloth.core.errors import ModelError

_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value, by the number of its type; 8 is a string, 9 an array."""
_STRING, _ARRAY, _UINT32 = 8, 9, 4
_FORMS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 10: "<Q", 11: "<q", 12: "<d"}
"""Of the numbers among them."""
_RANGES = {
    b".context_length": (1, 2**31 - 1),
    b".block_count": (1, 512),  # LLAMA_MAX_LAYERS
    b".layer_norm_rms_epsilon": (0, 1),
    b".layer_norm_epsilon": (0, 1),
}
"""Settings, by the end of their name, that llama.cpp only asserts: another value, or NaN, would end the process.

Found with bench/gguf_mutations.py, which loads damaged headers of a small file in llama.cpp.
"""
_MOST_DIMENSIONS = 4
_ALIGNMENT, _TOKENS = b"general.alignment", b"tokenizer.ggml.tokens"


class _Walk:
    """A position in the bytes of a file, which only moves inside it."""

    def __init__(self, data: mmap.mmap, at: int = 0) -> None:
        self.data, self.at = data, at

    def skip(self, count: int) -> int:
        """Move on; returns where it was."""
        before = self.at
        if count > len(self.data) - before:
            raise ValueError(
                f"it is cut off or damaged: {count:,} bytes should follow at {before:,}, but it has {len(self.data):,}"
            )
        self.at = before + count
        return before

    def number(self, form: str = "<Q") -> int:
        return int(struct.unpack_from(form, self.data, self.skip(struct.calcsize(form)))[0])

    def text(self) -> bytes:
        length = self.number()
        begin = self.skip(length)
        return self.data[begin : begin + length]

    def value(self, kind: int) -> None:
        """A value of the metadata."""
        if kind in _WIDTHS:
            self.skip(_WIDTHS[kind])
        elif kind == _STRING:
            self.skip(self.number())
        elif kind == _ARRAY:
            inner, count = self.number("<I"), self.number()
            if inner in _WIDTHS:
                self.skip(_WIDTHS[inner] * count)
            elif inner != _STRING:
                raise ValueError(f"an array holds values of type {inner}, which there is not")
            elif 8 * count > len(self.data) - self.at:  # each string has at least its length
                self.skip(8 * count)
            else:
                for _ in range(count):
                    self.skip(self.number())
        else:
            raise ValueError(f"a value is of type {kind}, which there is not")


def require_whole(file: Path) -> None:
    """Check that a file is GGUF, and has all bytes that its header announces.

    Raises:
        ModelError: it is not, or it is cut off: with the bytes that it has and should have.
    """
    try:
        with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
            expected = _expected_size(_Walk(data))
            if expected > len(data):
                raise ValueError(f"it is cut off: {len(data):,} of {expected:,} bytes")
    except (OSError, ValueError) as error:  # of an empty file, mmap raises ValueError
        raise ModelError(
            f"is not a complete GGUF file: {error}",
            where=str(file),
            hint="fetch or export it again",
            name="damaged_gguf",
        ) from error


def _expected_size(walk: _Walk) -> int:
    """Bytes up to the end of the last tensor."""
    if walk.data[:4] != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    walk.skip(4)
    version = walk.number("<I")
    if version not in (2, 3):
        raise ValueError(f"its version is {version}; 2 and 3 can be read")
    tensors, pairs, alignment = walk.number(), walk.number(), 32
    for _ in range(pairs):
        key, kind = walk.text(), walk.number("<I")
        begin = walk.at
        walk.value(kind)
        _check_range(key, kind, walk.data, begin)
        if key == _TOKENS and kind == _ARRAY:
            _check_distinct(walk.data, begin)
        if key == _ALIGNMENT and kind == _UINT32:
            alignment = int(struct.unpack_from("<I", walk.data, begin)[0])
    if not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
        raise ValueError(f"its alignment is {alignment}, not a power of two")
    ends = [_tensor_end(walk) for _ in range(tensors)]
    begin = walk.at + -walk.at % alignment
    return begin + max(ends) if ends else walk.at


def _check_range(key: bytes, kind: int, data: mmap.mmap, begin: int) -> None:
    limits = next((limits for end, limits in _RANGES.items() if key.endswith(end)), None)
    if limits is None or kind not in _FORMS:
        return
    low, high = limits
    (value,) = struct.unpack_from(_FORMS[kind], data, begin)
    if not low <= value <= high:
        raise ValueError(f"{key.decode(errors='replace')} is {value}, not between {low} and {high:,}")


def _check_distinct(data: mmap.mmap, begin: int) -> None:
    """Check that no token occurs twice, which llama.cpp asserts. It reads each up to its first NUL, and names empty ones apart."""
    walk = _Walk(data, begin)
    if walk.number("<I") != _STRING:
        return
    tokens = [walk.text().partition(b"\0")[0] for _ in range(walk.number())]
    [(token, count)] = Counter(filter(None, tokens)).most_common(1) or [(b"", 1)]
    if count > 1:
        raise ValueError(f"the token {token.decode(errors='replace')!r} is in its vocabulary {count} times")


def _tensor_end(walk: _Walk) -> int:
    """The byte after a tensor, counted from the first tensor's."""
    import gguf

    name, dimensions = walk.text(), walk.number("<I")
    if dimensions > _MOST_DIMENSIONS:
        raise ValueError(f"{name!r} has {dimensions} dimensions; there are at most {_MOST_DIMENSIONS}")
    count = 1
    for _ in range(dimensions):
        count *= walk.number()
    kind, offset = walk.number("<I"), walk.number()
    try:
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise ValueError(f"{name!r} is of type {kind}, which is not known") from None
    return offset + -(-count // block) * size
