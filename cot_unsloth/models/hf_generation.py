"""Generation with a transformers model: packed if `decoding` supports it, else in batches of `generate`; also as a stream."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import torch
import transformers

from cot_unsloth.core.types import CountedText, SamplingParams, StreamedText, TokenLogprob, WrittenToken
from cot_unsloth.models.decoding import Decoder
from cot_unsloth.models.devices import out_of_memory
from cot_unsloth.models.merging import merged
from cot_unsloth.models.packing import can_pack
from cot_unsloth.models.position_table import require_positions
from cot_unsloth.prompts.chat_template import ChatTemplate

BATCH = 16
"""Prompts in a batch of `generate`, if the settings leave it open: a batch has memory for the longest of its answers."""
Finished = list[tuple[int, list[int]]]
"""Finished answers: for each the index of its prompt, and its new token ids with the stop token."""


def answers(
    model: Any, chat: ChatTemplate, prompts: Sequence[list[int]], names: Sequence[str], sampling: SamplingParams
) -> Iterator[Finished]:
    """Answers as they are finished.

    Args:
        model: with or without an adapter.
        chat: its tokenizer, and the tokens that it stops at.
        prompts: token ids of each.
        names: distinct for each prompt; with the seed, they decide what is sampled.
        sampling: how.

    Raises:
        EngineError: memory ran out, or a prompt and its answer can be longer than the model's table of positions.
    """
    model.eval()
    _require_positions(model, prompts, sampling)
    if not can_pack(model):
        yield from batches(model, chat, prompts, names, sampling)
        return
    try:
        with merged(model), torch.inference_mode():
            yield from Decoder(model, sampling, chat.stops).answers(prompts, names)
    except torch.OutOfMemoryError as error:
        raise _out_of_memory() from error


def _require_positions(model: Any, prompts: Sequence[list[int]], sampling: SamplingParams) -> None:
    longest = max(map(len, prompts), default=0)
    what = f"a prompt of {longest:,} tokens and its answer"
    # The last token of an answer is not read again.
    require_positions(model, longest + sampling.max_new_tokens - 1, what, "lower --max-new-tokens, or use another base")


def _out_of_memory() -> Exception:
    return out_of_memory("generating", hint="lower --eval-batch-size or --max-new-tokens")


def batches(
    model: Any, chat: ChatTemplate, prompts: Sequence[list[int]], names: Sequence[str], sampling: SamplingParams
) -> Iterator[Finished]:
    """Answers of `generate`, a batch at a time. Prompts of similar length share one, which needs less padding.

    A batch is seeded by the names in it, so that a command that was interrupted does not draw the same numbers again, and by the
    length of its prompts, so that budget forcing does not when it continues them.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    size = sampling.batch_size or BATCH
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        torch.manual_seed(sampling.seed_of("|".join(f"{names[i]}|{len(prompts[i])}" for i in batch)))
        yield list(zip(batch, generate_batch(model, chat, [prompts[i] for i in batch], sampling), strict=True))


def generate_batch(
    model: Any, chat: ChatTemplate, rows: list[list[int]], sampling: SamplingParams, **more: Any
) -> list[list[int]]:
    """New ids of each row, with the stop token and without padding."""
    model.eval()
    # Padding goes on the left: a decoder continues from the last position, which must be a real token.
    width, pad, device = max(map(len, rows)), chat.tokenizer.pad_token_id, model.device
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    decoding = (
        {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0} if sampling.temperature else {}
    )
    try:
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=sampling.max_new_tokens,
                do_sample=bool(sampling.temperature),
                **decoding,
                **more,
            )
    except torch.OutOfMemoryError as error:
        raise _out_of_memory() from error
    return [to_stop(row, chat) for row in out[:, width:].tolist()]


def to_stop(row: list[int], chat: ChatTemplate) -> list[int]:
    """Ids up to the first token that generation stops at."""
    end = next((at for at, id_ in enumerate(row) if id_ in chat.stops), None)
    return row if end is None else row[: end + 1]


def stream_text(model: Any, chat: ChatTemplate, prompt: list[int], sampling: SamplingParams) -> Iterator[str]:
    """The text of `stream`."""
    with closing(stream(model, chat, prompt, sampling)) as pieces:
        for piece in pieces:
            yield CountedText(piece.text, piece.count)


def stream(
    model: Any, chat: ChatTemplate, prompt: list[int], sampling: SamplingParams, most: int | None = None
) -> Generator[StreamedText]:
    """The completion piece by piece. `generate` runs in a thread that ends with the iterator.

    Args:
        model: with or without an adapter.
        chat: its tokenizer, and the tokens that it stops at.
        prompt: token ids.
        sampling: how.
        most: number of the likeliest tokens to give for each; None leaves out the tokens of the pieces.
    """
    _require_positions(model, [prompt], sampling)
    recorder = None if most is None else _Recorder(chat, most)
    streamer = _TextStreamer(chat, recorder)
    stopping = threading.Event()

    def generate() -> None:
        try:
            torch.manual_seed(sampling.seed)
            more: dict[str, Any] = {} if recorder is None else {"logits_processor": [recorder]}
            stop = transformers.StoppingCriteriaList([lambda *_, **__: stopping.is_set()])
            generate_batch(model, chat, [prompt], sampling, streamer=streamer, stopping_criteria=stop, **more)
        except BaseException as error:
            streamer.pieces.put(error)

    thread = threading.Thread(target=generate, daemon=True)
    thread.start()
    try:
        while (piece := streamer.pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
    finally:
        stopping.set()
        thread.join()


class _Recorder(transformers.LogitsProcessor):
    """Keeps the log-probabilities of each step. `generate` applies temperature and top_p after processors of a caller."""

    def __init__(self, chat: ChatTemplate, most: int) -> None:
        self._chat, self._most = chat, most
        self._steps: deque[torch.Tensor] = deque()
        """Of steps whose token has not come yet: on a GPU, tokens are streamed one step late."""

    def __call__(self, input_ids: Any, scores: torch.Tensor) -> torch.Tensor:
        self._steps.append(torch.log_softmax(scores[0].float(), dim=-1))
        return scores

    def token(self, id_: int) -> WrittenToken:
        """The next token, as yet without its text."""
        step = self._steps.popleft()
        best = step.topk(self._most)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return WrittenToken(
            "", float(step[id_]), tuple(TokenLogprob(self._chat.decode([i]), value) for i, value in pairs)
        )


class _TextStreamer:
    """A streamer for `generate`: puts text into a queue as soon as its tokens end on a complete character."""

    def __init__(self, chat: ChatTemplate, recorder: _Recorder | None = None) -> None:
        self.chat = chat
        self.pieces: queue.Queue[StreamedText | BaseException | None] = queue.Queue()
        self._recorder = recorder
        self._ids: list[int] = []
        self._tokens: list[WrittenToken] = []
        """Not sent yet."""
        self._count = 0
        """Tokens that are not sent yet, recorded or not."""
        self._sent = ""
        self._is_prompt = True

    def put(self, ids: Any) -> None:
        if self._is_prompt:  # the first call brings the prompt
            self._is_prompt = False
            return
        new = [id_ for id_ in ids.reshape(-1).tolist() if id_ not in self.chat.stops]
        self._ids += new
        self._count += len(new)
        if self._recorder is not None:
            self._tokens += [self._recorder.token(id_) for id_ in new]
        text = self.chat.decode(self._ids)
        if not text.endswith("\ufffd"):  # a byte-level token may end inside a UTF-8 character
            self._send(text)

    def end(self) -> None:
        self._send(self.chat.decode(self._ids))
        self.pieces.put(None)

    def _send(self, text: str) -> None:
        if len(text) > len(self._sent) or self._count:
            new = text[len(self._sent) :]
            if self._tokens:  # earlier ones end inside a character that the last one completes
                self._tokens[-1] = replace(self._tokens[-1], text=new)
            self.pieces.put(StreamedText(new, tuple(self._tokens), self._count))
            self._sent, self._tokens, self._count = text, [], 0
