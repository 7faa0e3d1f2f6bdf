"""Checks that the contents of a GGUF file, as read back, are what was trained.

Every tensor is compared with base and adapter, every token with the tokenizer, and in llama.cpp the ids of texts and
the template's prompts with ours. What the file predicts is compared in `predictions`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from cot_unsloth.core import trace
from cot_unsloth.core.errors import ModelError
from cot_unsloth.core.results.verification import Check
from cot_unsloth.core.types import Example, Message
from cot_unsloth.export.gguf import writer
from cot_unsloth.export.gguf.tokenizers import ids_in_a_turn, split_of
from cot_unsloth.export.gguf.tokens import adds_bos, split_reasoning
from cot_unsloth.export.gguf.writer import Tensor
from cot_unsloth.export.model import Model
from cot_unsloth.export.verify import TRICKY_TEXTS, check
from cot_unsloth.export.weights import blocks, in_order
from cot_unsloth.models.gguf_header import require_whole
from cot_unsloth.models.llamacpp import LlamaCpp
from cot_unsloth.prompts.render import Renderer

WEIGHT_ERROR = {
    Type.F32: 1e-6, Type.F16: 1e-3, Type.BF16: 5e-3, Type.Q8_0: 0.02, Type.Q6_K: 0.05,
    Type.Q5_K: 0.1, Type.Q5_0: 0.1, Type.Q5_1: 0.1, Type.Q4_K: 0.2,
}  # fmt: skip
"""Largest relative error of a tensor: root mean square of the difference over that of the weights. Normally distributed
weights were measured at 0.005 in Q8_0, 0.018 in Q6_K, 0.036 in Q5_K and 0.072 in Q4_K; outliers raise it, hence the
factor of 3 to 4. A tensor whose rows are in the wrong order is off by about 1.4."""


def read_file(file: Path) -> gguf.GGUFReader:
    """Open a file that was written.

    Raises:
        ValueError: it is not GGUF, or is cut off.
    """
    try:
        require_whole(file)
        reader = gguf.GGUFReader(file)
    except (ModelError, ValueError, IndexError, KeyError, OSError) as error:
        raise ValueError(f"cannot be read back: {error}") from error
    return reader


class GgufSource:
    """Weights of a GGUF file, by their names in the base."""

    def __init__(self, reader: gguf.GGUFReader, model: Model) -> None:
        stored = {tensor.name: tensor for tensor in reader.tensors}
        self._model = model
        self._held = {t.source: (t, stored[t.name]) for t in writer.tensors(model) if t.name in stored}

    def has(self, name: str) -> bool:
        """Whether the file holds it."""
        return name in self._held

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape in the base."""
        return self._held[name][0].shape

    def rows(self, name: str, begin: int, end: int) -> Any:
        """Its rows as float32; if the file stores heads in pairs, complete heads only."""
        import torch

        tensor, stored = self._held[name]
        vector = len(tensor.shape) < 2
        # The reader maps the file: a slice reads only the bytes of its rows.
        data = stored.data.reshape(1, -1) if vector else stored.data[begin:end]
        # By the gguf package, whose code is not that of our quantization: an error in it is not repeated here.
        numbers = np.array(gguf.quants.dequantize(data, stored.tensor_type), dtype=np.float32, copy=True)
        rows = torch.from_numpy(numbers).reshape(-1, *tensor.shape[1:])
        return writer.from_file(rows, tensor, self._model)


def check_weights(reader: gguf.GGUFReader, model: Model) -> Check:
    """Every tensor of the file against base and adapter."""
    expected = writer.tensors(model)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    missing = [tensor.name for tensor in expected if tensor.name not in stored]
    # Rope tensors belong to no weight; `rope.written` compared their frequencies.
    surplus = sorted(set(stored) - {tensor.name for tensor in expected} - set(model.architecture.rope.tensors))
    if missing or surplus:
        return check("weights", False, missing=missing, surplus=surplus)
    source = GgufSource(reader, model)
    worst, worst_name, worst_error = 0.0, "", 0.0
    for tensor in expected:
        error = _error(source, tensor, model)
        share = error / WEIGHT_ERROR[stored[tensor.name].tensor_type]
        # Written so that NaN counts as the worst.
        if not share <= worst:
            worst, worst_name, worst_error = share, tensor.name, error
    return check("weights", worst <= 1, tensors=len(expected), worst=worst_name, relative_rmse=worst_error)


def _error(source: GgufSource, tensor: Tensor, model: Model) -> float:
    """Root mean square difference from the weights that a tensor was made from, relative to theirs."""
    merged = model.merged(tensor.source)

    def work(block: tuple[int, int]) -> tuple[float, float]:
        truth = merged(*block).float()
        rows = source.rows(tensor.source, *block).reshape(truth.shape)
        # Relative to the numbers in the file: beside the 1 that is added to Gemma's norms, a weight of 0.005 is rounded.
        stored = writer.to_file(truth, tensor, model)
        return float((rows - truth).square().sum()), float(stored.square().sum())

    sums = list(in_order(work, blocks(model.weights, tensor.source, model.head_dim if tensor.heads else 1)))
    error, total = (sum(pair[i] for pair in sums) for i in (0, 1))
    return math.sqrt(error / total) if total else math.sqrt(error)


def check_tokens(reader: gguf.GGUFReader, renderer: Renderer) -> list[Check]:
    """The vocabulary, and which tokens are control."""
    chat = renderer.chat
    names = reader.fields["tokenizer.ggml.tokens"].contents()
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    vocabulary = chat.tokenizer.get_vocab()
    different = [text for text, id_ in vocabulary.items() if names[id_] != text]
    eos = int(reader.fields["tokenizer.ggml.eos_token_id"].contents())
    # llama.cpp prints nothing for tokens of these types.
    hidden = {gguf.TokenType.CONTROL, gguf.TokenType.UNUSED, gguf.TokenType.UNKNOWN}
    tag_ids = {tag: chat.ids(tag) for section in trace.SECTIONS for tag in trace.tags(section, chat.thinking_tags)}
    lost = [tag for tag, ids in tag_ids.items() if any(kinds[id_] in hidden for id_ in ids)]
    return [
        check("vocabulary", not different, tokens=len(names), different=different[:5]),
        check("stop_token", eos in chat.stops, token=names[eos]),
        check("tag_tokens", not lost, control=lost),
    ]


def check_text(llama: LlamaCpp, renderer: Renderer, examples: Sequence[Example]) -> list[Check]:
    """Token ids of plain and rendered text, and the template's prompts."""
    chat, tokenizer = renderer.chat, renderer.chat.tokenizer
    space = " " * split_of(tokenizer).space_prefix
    answers = [renderer.solution(example) for example in examples]
    # llama.cpp reads a control token that is spelled out as text, the tokenizer as the token. Rows contain none.
    tricky = [text for text in TRICKY_TEXTS if chat.control_token(text) is None]
    plain = [*tricky, *(example.question for example in examples), *answers]
    wrong = [
        text for text in plain if llama.ids(text, special=False) != ids_in_a_turn(tokenizer, _normal(tokenizer, text))
    ]
    bos = [tokenizer.bos_token_id] * adds_bos(tokenizer)
    # Once more from the beginning of a text, where some tokenizers add a token or a space.
    wrong += [text for text in TRICKY_TEXTS[:3] if llama.ids(text) != bos + ids_in_a_turn(tokenizer, text)]
    lost = [
        text for text in answers if space + _normal(tokenizer, text) != llama.text_of(llama.ids(text, special=False))
    ]
    conversations = [renderer.prompt(example, "tuned").messages for example in examples]
    for messages, answer in zip(conversations[:3], answers, strict=False):
        reasoning, content = split_reasoning(answer, chat.thinking_tags)
        again: Message = {"role": "user", "content": "And if it were one more?"}
        separated: Message = {"role": "assistant", "content": content, "reasoning_content": reasoning}
        conversations.append((*messages, separated, again))
    turns = [_differs(llama, renderer, messages) for messages in conversations]
    return [
        check("token_ids", not wrong, strings=len(plain), different=wrong[:3]),
        check("tags", not lost, texts=len(answers), different=lost[:1]),
        check("prompt", not any(turns), conversations=len(conversations), different=[t for t in turns if t][:1]),
    ]


def _normal(tokenizer: Any, text: str) -> str:
    """Text after the tokenizer's normalizer: Qwen composes letters (NFC), which llama.cpp leaves to its caller."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    if normalizer is None or split_of(tokenizer).model == "llama":  # its normalizer replaces spaces, as llama.cpp does
        return text
    return str(normalizer.normalize_str(text))


def _differs(llama: LlamaCpp, renderer: Renderer, messages: Sequence[Message]) -> str | None:
    """How llama.cpp's prompt of a conversation, or its ids, differ from ours; None if they do not."""
    tags = renderer.data.thinking_tags
    joined: list[Message] = [
        {"role": m["role"], "content": trace.assistant_turn(m["content"], m["reasoning_content"], tags)}
        if "reasoning_content" in m
        else m
        for m in messages
    ]
    ours, theirs = renderer.chat.text(joined, ask=True), llama.render(messages)
    ids = llama.ids(theirs)
    if ids == renderer.chat.ids(_normal(renderer.chat.tokenizer, ours)):
        return None
    return f"{theirs[:400]!r} is {len(ids)} ids, trained with {ours[:400]!r}, {len(renderer.chat.ids(ours))}"
