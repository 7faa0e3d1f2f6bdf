"""Attention over rows that are joined into one sequence, row by row, so that a batch needs no padding.

transformers calls it by the name `ATTENTION`, with the rows' lengths as `row_lengths` among the keyword arguments of the
model's forward pass. Without them it is transformers' own SDPA.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

ATTENTION = "joined_rows"
"""Its name in transformers' registry, as `attn_implementation`."""
LONGEST_MATERIALIZED = 512
"""Rows up to this many tokens keep their attention probabilities for the backward pass; longer ones use SDPA.

SDPA's backward pass on a CPU is slow in bfloat16. Forward and backward for 6 heads of size 32, bfloat16, one thread of an
AMD EPYC, ms, SDPA and ours: 2.3 and 0.7 at 120 tokens, 6.1 and 2.7 at 320, 13.2 and 10.2 at 512, 28 and 40 at 1,024. A
constant rather than a measurement at the start: which one runs changes the last bits, and a resumed run must repeat them.
"""
ROW_MULTIPLE = 32
"""Such a row is padded to a multiple of this many tokens for its attention.

oneDNN compiles its products for each size, and keeps them: over 200 steps of the demo with rows of any length, memory grew
from 1.3 to 1.8 GiB; with this from 0.76 to 0.93, and a step took 11% less time.
"""


class CausalAttention(torch.autograd.Function):
    """Causal attention of one row, which keeps its probabilities: softmax(scale · Q Kᵀ + mask) V.

    Shapes: queries (heads, tokens, width), keys and values (groups, tokens, width), where `heads` is a multiple of
    `groups`. The result has the shape and type of the queries.
    """

    @staticmethod
    def forward(ctx: Any, queries: Any, keys: Any, values: Any, scale: float) -> Any:
        """See the class."""
        per_group = len(queries) // len(keys)
        keys, values = (x.repeat_interleave(per_group, 0) if per_group > 1 else x for x in (keys, values))
        # In float32, as SDPA does: in bfloat16 a score of 10 would be off by up to 0.03. It takes no longer, because the
        # softmax is faster (0.24 + 0.19 ms against 0.11 + 0.32 ms, 6 heads, 215 tokens).
        scores = torch.baddbmm(_mask(len(queries[0])), queries.float(), keys.float().mT, alpha=scale)
        probabilities = torch.softmax(scores, -1).to(queries.dtype)
        ctx.save_for_backward(queries, keys, values, probabilities)
        ctx.scale, ctx.per_group = scale, per_group
        return torch.bmm(probabilities, values)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        """Gradients of queries, keys and values."""
        queries, keys, values, probabilities = ctx.saved_tensors
        of_values = torch.bmm(probabilities.mT, gradient)
        of_probabilities = torch.bmm(gradient, values.mT)
        of_scores = torch._softmax_backward_data(of_probabilities, probabilities, -1, probabilities.dtype)
        of_queries = torch.bmm(of_scores, keys).mul_(ctx.scale)
        of_keys = torch.bmm(of_scores.mT, queries).mul_(ctx.scale)
        if ctx.per_group > 1:
            of_keys, of_values = (x.unflatten(0, (-1, ctx.per_group)).sum(1) for x in (of_keys, of_values))
        return of_queries, of_keys, of_values, None


@functools.cache
def _longest_mask() -> Any:
    return torch.full((LONGEST_MATERIALIZED,) * 2, float("-inf")).triu_(1)


def _mask(length: int) -> Any:
    """0 where a token may attend, -inf for the tokens after it; of shape (tokens, tokens)."""
    return _longest_mask()[:length, :length]


def _attend(queries: Any, keys: Any, values: Any, scale: float, dropout: float) -> Any:
    """Causal attention of one row; shapes as in `CausalAttention`."""
    # In float32 SDPA's backward pass is as fast, and needs less memory.
    length = queries.shape[1]
    materialized = length <= LONGEST_MATERIALIZED and not dropout
    if materialized and queries.dtype == torch.bfloat16 and queries.requires_grad:
        # No token attends to the padding, which comes after it.
        fill = (0, 0, 0, -length % ROW_MULTIPLE)
        queries, keys, values = (functional.pad(x, fill) for x in (queries, keys, values))
        return CausalAttention.apply(queries, keys, values, scale)[:, :length]
    return functional.scaled_dot_product_attention(
        queries[None], keys[None], values[None], dropout_p=dropout, is_causal=True, scale=scale,
        enable_gqa=len(keys) < len(queries),
    )[0]  # fmt: skip


def joined_rows(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    *,
    scaling: float,
    dropout: float = 0.0,
    row_lengths: Sequence[int] | None = None,
    **kwargs: Any,
) -> tuple[Any, None]:
    """Attention as transformers calls it, over the rows of a joined batch.

    Args:
        module: the attention layer.
        query: of shape (1, heads, tokens, width), as `key` and `value`, which may have fewer heads.
        key: see `query`.
        value: see `query`.
        attention_mask: None for a joined batch.
        scaling: of the scores.
        dropout: share of the probabilities that are set to zero; in training, if the model's settings have it.
        row_lengths: tokens of each row, in their order; None for any other batch.
        kwargs: what else transformers passes.

    Returns:
        The output, of shape (1, tokens, heads, width), and no attention weights.

    Raises:
        ValueError: the positions are those of joined rows, and there is no `row_lengths`.
    """
    if row_lengths is None:
        positions = kwargs.get("position_ids")
        if attention_mask is None and positions is not None and int((positions[0] == 0).sum()) > 1:
            raise ValueError("joined rows without their lengths: each would attend to the rows before it")
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out, None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    rows = zip(*(x[0].to(dtype).split(list(row_lengths), 1) for x in (query, key, value)), strict=True)
    return torch.cat([_attend(q, k, v, scaling, dropout) for q, k, v in rows], 1).transpose(0, 1)[None], None


def _no_mask_for_joined_rows(*, attention_mask: Any = None, q_length: int, kv_length: int, **kwargs: Any) -> Any:
    """The mask that SDPA gets from transformers; none where the batch has no padding and no cache, as a joined batch."""
    if attention_mask is None and q_length == kv_length:
        return None
    return sdpa_mask(attention_mask=attention_mask, q_length=q_length, kv_length=kv_length, **kwargs)


AttentionInterface.register(ATTENTION, joined_rows)
AttentionMaskInterface.register(ATTENTION, _no_mask_for_joined_rows)


@contextlib.contextmanager
def attention_of_joined_rows(model: Any) -> Iterator[None]:
    """Within the context, the model's attention is `joined_rows`."""
    before = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def takes_joined_rows(model: Any, longest: int) -> bool:
    """Whether a model computes joined rows as it computes each row alone, tested with two short rows.

    Models outside transformers' attention interface drop `row_lengths`, others look beyond a row in layers of their own
    (convolutions, recurrences); for these a batch has to be padded.

    Args:
        model: as loaded, with SDPA.
        longest: tokens of the longest row that will be trained on. A sliding window that is longer changes nothing.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if config._attn_implementation != "sdpa" or (window is not None and window < longest):
        return False
    if set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}:
        return False
    rows = [torch.arange(5)[None] + 3, torch.arange(7)[None] + 11]
    with torch.inference_mode():
        alone = torch.cat([model(input_ids=row, use_cache=False).logits for row in rows], 1)
        try:
            joined = _logits_of_joined(model, rows)
        except (RuntimeError, TypeError, ValueError):  # it does not take the lengths, or does not hand them on
            return False
    return torch.allclose(alone.float(), joined.float(), rtol=1e-2, atol=1e-2)


def _logits_of_joined(model: Any, rows: Sequence[Any]) -> Any:
    lengths = [row.shape[1] for row in rows]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    with attention_of_joined_rows(model):
        ids = torch.cat(list(rows), 1)
        return model(input_ids=ids, position_ids=positions, row_lengths=lengths, use_cache=False).logits
