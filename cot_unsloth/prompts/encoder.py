"""Token ids of rendered texts, tokenizing only what is new.

A tokenizer splits a text at its control tokens before anything else, so what stands between two of them is tokenized by
itself. The system turn of a run and the opening of an answer occur in every row, and a row's question occurs in the row
and in its prompt: each is tokenized once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

Offsets = list[tuple[int, int]]
_MOST_PIECES = 256
"""Pieces to remember: far more than those of one row."""


class Encoder:
    """A tokenizer of the `tokenizers` library."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        added = [] if backend.encode_special_tokens else list(backend.get_added_tokens_decoder().values())
        # (?!) matches nowhere; an empty pattern would match everywhere.
        self._cut = re.compile("|".join(map(re.escape, safe_cuts(added))) or r"(?!)")
        self._known: dict[str, tuple[list[int], Offsets | None]] = {}
        # A tokenizer.json may ask for truncation or padding of its own.
        backend.no_truncation()
        backend.no_padding()

    def ids(self, text: str) -> list[int]:
        """The token ids of a text, without special tokens around it."""
        ids: list[int] = []
        for piece in self._pieces(text):
            ids += self._encode(piece, with_offsets=False)[0]
        return ids

    def offsets(self, text: str, first: int = 0) -> Offsets:
        """For each token, begin and end of its characters; (0, 0) where a piece ends before the character `first`."""
        offsets: Offsets = []
        at = 0
        for piece in self._pieces(text):
            end = at + len(piece)
            ids, inside = self._encode(piece, with_offsets=end > first)
            offsets += [(at + a, at + b) for a, b in inside] if inside and end > first else [(0, 0)] * len(ids)
            at = end
        return offsets

    def keep_offsets(self, text: str, first: int) -> None:
        """Tokenize so that `offsets` need not do it again after `ids`."""
        at = 0
        for piece in self._pieces(text):
            at += len(piece)
            self._encode(piece, with_offsets=at > first)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, with control tokens."""
        return str(self._backend.decode(ids, skip_special_tokens=False))

    def _pieces(self, text: str) -> Iterator[str]:
        """A text cut before each control token."""
        begin = 0
        for token in self._cut.finditer(text):
            if token.start() > begin:
                yield text[begin : token.start()]
                begin = token.start()
        yield text[begin:]

    def _encode(self, piece: str, *, with_offsets: bool) -> tuple[list[int], Offsets | None]:
        known = self._known.get(piece)
        if known is None or (with_offsets and known[1] is None):
            if len(self._known) >= _MOST_PIECES:
                self._known.clear()
            # The fast one does not keep offsets, and takes about a fifth less time.
            encode = self._backend.encode_batch if with_offsets else self._backend.encode_batch_fast
            (encoding,) = encode([piece], add_special_tokens=False)
            known = (encoding.ids, encoding.offsets if with_offsets else None)
            self._known[piece] = known
        return known


def safe_cuts(added: Sequence[Any]) -> list[str]:
    """The control tokens before which a text can be cut without changing how either part is tokenized.

    These are matched wherever their text occurs: they take no white space around them in, do not depend on what is
    beside them, and no other token that is matched in the unchanged text overlaps with them.

    Args:
        added: the tokenizer's added tokens, as `tokenizers.AddedToken`.
    """
    matched = [token.content for token in added if not token.normalized and token.content]
    safe = {
        token.content
        for token in added
        if token.special
        and token.content
        and not (token.normalized or token.single_word or token.lstrip or token.rstrip)
        # A neighbour with lstrip or rstrip would take white space, one with single_word asks for letters beside it.
        and not (token.content[0].isspace() or token.content[0].isalnum() or token.content[0] == "_")
    }
    lengths = sorted({len(content) for content in safe})
    beginnings: dict[str, set[str]] = {}
    for content in safe:
        for length in range(1, len(content)):
            beginnings.setdefault(content[:length], set()).add(content)
    for other in matched:
        for at in range(len(other)):
            if at:  # it ends in what another begins with
                safe -= beginnings.get(other[at:], set())
            # it contains another
            safe -= {inner for length in lengths if (inner := other[at : at + length]) in safe and inner != other}
    # Python tries them in this order. Numbered ones are reserved (250 in Llama 3), and no template writes them.
    return sorted(safe, key=lambda content: (any(map(str.isdigit, content)), content))
