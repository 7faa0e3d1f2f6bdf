"""Answer many prompts on a decoder: slots that are refilled, no padding, and a key-value cache written in place.

`transformers.generate` runs a batch until its last answer has ended, computes rows that have ended and padding as if they
were text, and copies the whole key-value cache for every token. Here a row leaves as soon as it has ended and the next
prompt takes its slot (continuous batching; Yu et al. 2022, "Orca"). The tokens of a step, one of each running answer and
all of each new prompt, are one row without padding (1, T); linear layers do not care which answer a token belongs to, and
an attention function of our own looks up each answer's keys and values. The beginning that all prompts share is computed
once. `packing.can_pack` decides which models this fits.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from cot_unsloth.core.types import SamplingParams
from cot_unsloth.models.devices import available_memory
from cot_unsloth.models.generation import MOST_AT_ONCE

MEMORY_SHARE = 0.25
"""Most of the free memory that the cache may take, if the settings do not say how many answers are generated at a time."""
PREFILL_TOKENS = 2048
"""Most tokens of prompts in one forward pass, if more than one prompt: bounds the memory of activations."""
ROOM = 128
"""Tokens by which the cache grows at least, so that it is copied rarely."""
_NAME = "cot_unsloth_packed"
"""The attention function, as transformers knows it. A function without a mask of its own gets none."""


def without_wrapper(model: Any) -> Any:
    """The transformers model below an adapter's wrapper; its layers keep the adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextlib.contextmanager
def packed(model: Any) -> Iterator[None]:
    """Within the context, the model's attention is that of this module."""
    before = model.config._attn_implementation
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def affordable_slots(model: Any, tokens: int) -> int:
    """Answers of so many tokens, prompts included, that memory has room for: at least one, at most `MOST_AT_ONCE`."""
    config, weight = model.config, next(model.parameters())
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    one = 2 * config.num_hidden_layers * heads * size * max(2, weight.element_size()) * tokens
    return max(1, min(MOST_AT_ONCE, int(MEMORY_SHARE * available_memory(weight.device.type) / one)))


@dataclass
class _Answer:
    """A prompt and the answer to it so far."""

    index: int
    """Of the prompt."""
    ids: list[int]
    """Tokens of the prompt and of the answer."""
    prompt: int
    """Tokens of the prompt."""
    draws: random.Random
    """Decides what is sampled. Its own, so that an answer does not depend on which others are generated beside it."""
    stored: int = 0
    """Tokens whose keys and values are in the cache."""


@dataclass(frozen=True)
class Segment:
    """Tokens of one answer in a step."""

    slot: int
    start: int
    """Position of the first of them."""
    tokens: int


class Slots:
    """Keys and values of every layer and slot; tensors of (slots, key-value heads, capacity, head size)."""

    def __init__(self, slots: int, capacity: int, device: torch.device) -> None:
        self.slots, self.capacity, self.device = slots, capacity, device
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}
        self._rows: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        """Of each layer, a view of each slot's keys and values."""
        self.copies = 0
        """How often the cache was copied into a larger one."""
        self._segments: Sequence[Segment] = ()
        self._single = 0
        self._masks: dict[tuple[int, int], torch.Tensor] = {}

    def expect(self, segments: Sequence[Segment]) -> tuple[torch.Tensor, torch.Tensor]:
        """Prepare for a step of these segments, those of a single token first.

        Returns:
            The positions (1, T) of its tokens, and the indices (segments,) of the last token of each segment.
        """
        self._segments = segments
        self._masks.clear()
        self._single = sum(1 for segment in segments if segment.tokens == 1)
        longest = max(segment.start + segment.tokens for segment in segments)
        if longest > self.capacity:
            self._grow(max(longest, self.capacity + max(ROOM, self.capacity // 2)))
        slots = [segment.slot for segment in segments for _ in range(segment.tokens)]
        positions = [at for segment in segments for at in range(segment.start, segment.start + segment.tokens)]
        self._at = torch.tensor([slots, positions], device=self.device)
        ends = torch.tensor([segment.tokens for segment in segments], device=self.device).cumsum(0) - 1
        return self._at[1:], ends

    def _grow(self, capacity: int) -> None:
        self.copies += 1
        for tensors in (self.keys, self.values):
            for layer, old in tensors.items():
                tensors[layer] = old.new_zeros(*old.shape[:2], capacity, old.shape[3])
                tensors[layer][:, :, : self.capacity] = old
        self._rows.clear()
        self.capacity = capacity

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        """Store the keys and values of the step's tokens, and attend to all of each token's own answer.

        Args:
            layer: number of the layer.
            query: (1, heads, T, head size).
            key: (1, key-value heads, T, head size); `value` likewise.
            value: see `key`.
            scaling: of the scores; None for 1 / sqrt(head size).

        Returns:
            (1, T, heads, head size).
        """
        if layer not in self.keys:
            for tensors, new in ((self.keys, key), (self.values, value)):
                # Zeros: a masked position has weight 0 in `_together`, but 0 times the NaN of unused memory is NaN.
                tensors[layer] = new.new_zeros(self.slots, new.shape[1], self.capacity, new.shape[3])
        keys, values = self.keys[layer], self.values[layer]
        slots, positions = self._at
        keys[slots, :, positions] = key[0].transpose(0, 1)
        values[slots, :, positions] = value[0].transpose(0, 1)
        if layer not in self._rows:
            self._rows[layer] = list(zip(keys.split(1), values.split(1), strict=True))
        # Heads that share keys stand next to each other: as rows of one product, they need no copies of the keys.
        grouped = query[0].unflatten(0, (keys.shape[1], -1))
        parts = []
        if self._single:
            step = grouped[:, :, : self._single].permute(2, 0, 1, 3)
            attend = self._one_by_one if self.device.type == "cpu" else self._together
            parts.append(attend(layer, step, scaling).flatten(1, 2))
        start = self._single
        for segment in self._segments[self._single :]:
            part = grouped[:, :, start : start + segment.tokens]
            parts.append(self._prompt(layer, segment, part, scaling))
            start += segment.tokens
        return torch.cat(parts)[None]

    def _one_by_one(self, layer: int, queries: torch.Tensor, scaling: float | None) -> torch.Tensor:
        """Attention of answers that add one token: a call for each, which reads what it needs and no padding."""
        rows = self._rows[layer]
        outputs = []
        for query, segment in zip(queries.split(1), self._segments, strict=False):
            keys, values = rows[segment.slot]
            end = segment.start + 1
            outputs.append(
                scaled_dot_product_attention(query, keys[:, :, :end], values[:, :, :end], scale=scaling)
            )  # fmt: skip
        return torch.cat(outputs)

    def _together(self, layer: int, queries: torch.Tensor, scaling: float | None) -> torch.Tensor:
        """The same in one call over all slots, padded: on a GPU, launching calls costs more than the padding."""
        slots, positions = self._at[:, : self._single]
        width = max(segment.start for segment in self._segments[: self._single]) + 1
        ends = slots.new_zeros(self.slots).index_copy(0, slots, positions)  # a free slot sees one token, of anything
        mask = torch.arange(width, device=self.device) <= ends[:, None]
        every = queries.new_zeros(self.slots, *queries.shape[1:]).index_copy(0, slots, queries)
        keys, values = self.keys[layer][:, :, :width], self.values[layer][:, :, :width]
        return scaled_dot_product_attention(every, keys, values, mask[:, None, None], scale=scaling)[slots]

    def _prompt(self, layer: int, segment: Segment, queries: torch.Tensor, scaling: float | None) -> torch.Tensor:
        """Attention of several tokens of one answer; queries (key-value heads, heads each, tokens, head size)."""
        end = segment.start + segment.tokens
        keys, values = (
            kept[:, :, :end].expand(queries.shape[1], -1, -1, -1) for kept in self._rows[layer][segment.slot]
        )
        mask = self._mask(segment.start, segment.tokens, queries.dtype) if segment.start else None
        output = scaled_dot_product_attention(
            queries.transpose(0, 1), keys, values, mask, is_causal=mask is None, scale=scaling
        )
        return output.permute(2, 1, 0, 3).flatten(1, 2)

    def _mask(self, start: int, tokens: int, dtype: torch.dtype) -> torch.Tensor:
        """What is added to the scores (tokens, start + tokens); the same for all layers of a step."""
        if (start, tokens) not in self._masks:
            later = torch.ones(tokens, start + tokens, dtype=torch.bool, device=self.device).triu(start + 1)
            added = torch.zeros(later.shape, dtype=dtype, device=self.device)
            self._masks[start, tokens] = added.masked_fill_(later, float("-inf"))
        return self._masks[start, tokens]

    def copy_beginning(self, tokens: int, slots: Sequence[int]) -> None:
        """Copy the first tokens of slot 0 into other slots."""
        for tensors in (self.keys, self.values):
            for tensor in tensors.values():
                tensor[list(slots), :, :tokens] = tensor[:1, :, :tokens].clone()


def _packed_attention(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, *, scaling: Any = None, **more: Any
) -> Any:
    """The attention function; `Slots` arrives as a keyword argument that models hand through to it."""
    return more["slots"].attend(module.layer_idx, query, key, value, scaling), None


AttentionInterface.register(_NAME, _packed_attention)


class Decoder:
    """Answers prompts on one model. Iterate over `answers`, within `torch.inference_mode`."""

    def __init__(self, model: Any, sampling: SamplingParams, stops: frozenset[int] | set[int]) -> None:
        self.model = without_wrapper(model)
        self.sampling, self.stops = sampling, stops
        self._running: dict[int, _Answer] = {}
        """By slot."""

    def answers(self, prompts: Sequence[list[int]], names: Sequence[str]) -> Iterator[list[tuple[int, list[int]]]]:
        """Lists of finished answers, each the number of its prompt and its new ids, with the stop token.

        Args:
            prompts: token ids of each.
            names: distinct for each prompt; what is sampled depends on it and the seed alone.
        """
        # Longest first: they tend to have the longest answers, and a long one that begins last keeps the other slots empty.
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        waiting = [self._unanswered(i, prompts[i], names[i]) for i in reversed(order)]
        if not waiting:
            return
        longest = max(map(len, prompts))
        most = self.sampling.batch_size or affordable_slots(self.model, longest + self.sampling.max_new_tokens)
        count = min(most, len(prompts))
        self.slots = Slots(
            count, longest + min(ROOM, self.sampling.max_new_tokens), next(self.model.parameters()).device
        )  # fmt: skip
        with packed(self.model):
            shared = self._compute_beginning(prompts)
            while waiting or self._running:
                self._admit(waiting, shared)
                yield self._step()

    def _unanswered(self, index: int, prompt: Sequence[int], name: str) -> _Answer:
        # Also by length: budget forcing continues a prompt with the same seed, and must not draw the same numbers again.
        draws = random.Random(f"{self.sampling.seed}|{name}|{len(prompt)}")
        return _Answer(index, list(prompt), len(prompt), draws)

    def _compute_beginning(self, prompts: Sequence[list[int]]) -> int:
        """Compute the tokens that all prompts begin with, into every slot; their number, less than any prompt's."""
        shared = min(_common(min(prompts), max(prompts)), min(map(len, prompts)) - 1)
        if shared < 2 or len(prompts) == 1:
            return 0
        self.forward([Segment(0, 0, shared)], list(prompts[0][:shared]))
        self.slots.copy_beginning(shared, range(1, self.slots.slots))
        return shared

    def _admit(self, waiting: list[_Answer], shared: int) -> None:
        """Give free slots to waiting prompts, as many as one forward pass may take; `shared` tokens are in every slot."""
        tokens = 0
        for slot in range(self.slots.slots):
            if slot in self._running or not waiting:
                continue
            tokens += waiting[-1].prompt - shared
            if tokens > PREFILL_TOKENS and tokens > waiting[-1].prompt - shared:
                break
            self._running[slot] = waiting.pop()
            self._running[slot].stored = shared

    def _step(self) -> list[tuple[int, list[int]]]:
        """One forward pass; the answers that it has finished."""
        running = sorted(self._running.items(), key=lambda item: len(item[1].ids) - item[1].stored > 1)
        segments = [Segment(slot, answer.stored, len(answer.ids) - answer.stored) for slot, answer in running]
        logits = self.forward(segments, [id_ for _, answer in running for id_ in answer.ids[answer.stored :]])
        done = []
        for (slot, answer), new in zip(running, self._chosen(logits, [a for _, a in running]), strict=True):
            answer.stored = len(answer.ids)
            answer.ids.append(new)
            if new in self.stops or len(answer.ids) - answer.prompt >= self.sampling.max_new_tokens:
                done.append((answer.index, answer.ids[answer.prompt :]))
                del self._running[slot]
        return done

    def forward(self, segments: Sequence[Segment], ids: list[int]) -> torch.Tensor:
        """Logits (segments, vocabulary) after each segment."""
        positions, ends = self.slots.expect(segments)
        output = self.model(
            input_ids=torch.tensor([ids], device=self.slots.device),
            position_ids=positions,
            use_cache=False,  # the cache is ours
            logits_to_keep=ends,
            slots=self.slots,
        )
        return output.logits[0]

    def _chosen(self, logits: torch.Tensor, answers: Sequence[_Answer]) -> list[int]:
        """The next token of each answer: the most likely one, or a draw with temperature and top_p."""
        if not self.sampling.temperature:
            return logits.argmax(-1).tolist()
        draws = torch.tensor([answer.draws.random() for answer in answers], device=logits.device)
        return sample(logits, draws, self.sampling).tolist()


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two rows begin with alike. Of the first and the last in order, it is what all rows share."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(first), len(second)))


def sample(logits: torch.Tensor, draws: torch.Tensor, sampling: SamplingParams) -> torch.Tensor:
    """Draw a token for each row by inverting its distribution.

    Args:
        logits: (rows, vocabulary).
        draws: (rows,) numbers in [0, 1).
        sampling: temperature (above 0) and top_p: the fewest likeliest tokens that together have at least this probability.

    Returns:
        (rows,) token ids.
    """
    probabilities, tokens = (logits.float() / sampling.temperature).softmax(-1).sort(-1, descending=True)
    upto = probabilities.cumsum(-1)
    kept = (upto - probabilities < sampling.top_p).sum(-1, keepdim=True).clamp_min(1)
    mass = upto.gather(-1, kept - 1)
    chosen = (upto <= draws[:, None] * mass).sum(-1, keepdim=True).minimum(kept - 1)
    return tokens.gather(-1, chosen)[:, 0]
