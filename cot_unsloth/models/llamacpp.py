"""The `llamacpp` engine: a GGUF file in llama.cpp, in this process.

Exports are verified and scored in it, because it is what users of llama.cpp and Ollama run. Tokenizer and chat template are
those in the file; nothing of transformers is used. `xllamacpp` is llama.cpp's server as a wheel: it listens on a free local
port, and requests go there.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from cot_unsloth.core.errors import EngineError, LogprobsError, ModelError
from cot_unsloth.core.types import (
    Completion,
    CountedText,
    Message,
    Prompt,
    SamplingParams,
    StreamedText,
    TokenLogprob,
    WrittenToken,
)
from cot_unsloth.models.gguf_header import require_whole
from cot_unsloth.models.protocols import Advance

if TYPE_CHECKING:
    import httpx

SLOTS = 8
"""Prompts answered in parallel while scoring."""
ONE_THREAD = 16 << 20
"""Largest file, in bytes, that is computed with a single thread.

The embedded model in Q8_0 (2.5 MB) generates 3,600 tokens a second with one thread of an AMD EPYC, and 1,100 to 1,800 with
two (8 slots).
"""
_NEUTRAL = {"samplers": ["temperature", "top_p"], "cache_prompt": True}
"""Only these samplers, and in this order, as in the other engines. By default llama.cpp applies top_p first, to probabilities
that temperature has not changed yet: at temperature 1.5 it keeps fewer tokens, below 1 more."""


def available() -> bool:
    """Whether xllamacpp is installed."""
    return importlib.util.find_spec("xllamacpp") is not None


class Candidate(TypedDict):
    """A candidate for the next token."""

    id: int
    token: str
    """Its text; empty for a control token."""
    logprob: float
    """In nats."""


class TokenProbabilities(Candidate):
    """A generated token, and the most likely ones in its place."""

    top_logprobs: list[Candidate]


class ServerAnswer(TypedDict):
    """What is read of an answer to `/completion`."""

    content: str
    tokens_predicted: int
    stop_type: str
    """`eos`, `word` (a stop string) or `limit`."""
    tokens: list[int]
    """Only with `return_tokens` in the request."""
    completion_probabilities: list[TokenProbabilities]
    """Only with `n_probs` in the request."""


def _threads(file: Path) -> int:
    """Threads to compute with: as many as torch has, one for a model so small that they would mostly wait for each other."""
    if file.stat().st_size <= ONE_THREAD:
        return 1
    # With more threads than free cores, every matrix product waits for the slowest thread.
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


class LlamaCpp:
    """A GGUF file, loaded.

    Raises:
        ModelError: there is no such file, xllamacpp is not installed, or llama.cpp refuses the file.
    """

    name = "llamacpp"

    def __init__(
        self, file: Path, *, context: int = 0, slots: int = SLOTS, adapters: Sequence[Path] = (), repack: bool = True
    ) -> None:
        """Load a file.

        Args:
            file: the GGUF.
            context: tokens of a conversation; 0 takes the number in the file, at most 8,192. With longrope, no more than in
                the file: llama.cpp chooses the factors by it, for short texts too.
            slots: concurrent conversations; each has a key-value cache of `context` tokens.
            adapters: LoRA adapters in GGUF to load on it.
            repack: whether llama.cpp may copy quantized weights into an order that suits the processor: faster, for the
                memory of the file once more.
        """
        import httpx

        if not file.is_file():
            raise ModelError("there is no such file", where=str(file), name="file_missing")
        if not available():
            raise ModelError("xllamacpp is not installed", where=str(file), hint="pip install xllamacpp")
        for part in (file, *adapters):  # llama.cpp ends the process where a size is absurd
            require_whole(part)
        self.file = file
        self.context = self.context_length = _context_of(file, context)
        self.slots = slots
        self._connections: set[socket.socket] = set()
        """Of requests under way."""
        self._lora: dict[str, object] = {}
        """The adapters to answer with, as a request names them; empty: all that are loaded, each in full."""
        self._adapters = len(adapters)
        self._server = self._start(adapters, repack)
        self._address = self._server.listening_address
        # Never through a proxy. Connections are not kept: the server would wait for the idle ones as it ends.
        self._client = httpx.Client(
            trust_env=False, verify=False, timeout=None, limits=httpx.Limits(max_keepalive_connections=0)
        )
        # A server whose loop has not begun misses the request to stop, and then the process waits for it without end
        # (xllamacpp 2026.10; the second of 40 engines that were dropped as soon as they were loaded). Its loop answers this.
        with self._client.stream("GET", f"{self._address}/lora-adapters"):
            pass

    def _start(self, adapters: Sequence[Path], repack: bool) -> Any:
        # Where an assertion of it fails, llama.cpp would start gdb, if there is one, to print its stack.
        os.environ.setdefault("GGML_NO_BACKTRACE", "1")
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(self.file)
        params.n_ctx = self.context * self.slots
        params.n_parallel = self.slots
        params.cpuparams.n_threads = _threads(self.file)
        params.no_extra_bufts = not repack
        params.cache_ram_mib = 0  # by default it keeps the states of up to 8 GiB of earlier prompts
        params.verbosity = -1
        params.ui = False
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(path), 1.0) for path in adapters]
        try:
            return xllamacpp.Server(params)
        except (RuntimeError, ValueError) as error:
            _context_length(self.file)
            raise ModelError(f"llama.cpp cannot load it: {error}", where=str(self.file)) from error

    def with_adapter(self, index: int | None) -> LlamaCpp:
        """The same loaded file, answering with one of its adapters alone, or None: without any.

        The server keeps each conversation's state with the adapters that it was computed with, and computes it again for
        others (llama.cpp, tools/server, `slot.lora`).
        """
        view = copy.copy(self)
        view._lora = {"lora": [{"id": i, "scale": float(i == index)} for i in range(self._adapters)]}
        return view

    def close(self) -> None:
        """Free the model's memory."""
        self._server = None

    def _post(self, path: str, body: Mapping[str, object]) -> Any:
        with self._request(path, body) as answer:
            return json.loads(answer.read())

    @contextlib.contextmanager
    def _request(self, path: str, body: Mapping[str, object]) -> Iterator[httpx.Response]:
        import httpx

        opened: list[socket.socket] = []

        def trace(event: str, info: Any) -> None:
            if event == "connection.connect_tcp.complete":
                opened.append(info["return_value"].get_extra_info("socket"))
                self._connections.update(opened)

        try:
            with self._client.stream("POST", self._address + path, json=body, extensions={"trace": trace}) as answer:
                if answer.is_error:
                    detail = answer.read().decode(errors="replace")[:300]
                    raise EngineError(f"llama.cpp refused {path}: {detail}", where=str(self.file))
                yield answer
        except httpx.HTTPError as error:
            raise EngineError(f"llama.cpp does not answer: {error}", where=str(self.file)) from error
        finally:
            self._connections.difference_update(opened)

    def ids(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of rendered text; with `special`, control tokens are recognised, and BOS is added where the file says so."""
        body = {"content": text, "add_special": special, "parse_special": special}
        return list(self._post("/tokenize", body)["tokens"])

    def text_of(self, ids: Sequence[int]) -> str:
        """Text of ids."""
        return str(self._post("/detokenize", {"tokens": list(ids)})["content"])

    def render(self, messages: Sequence[Message]) -> str:
        """A conversation in the file's own template, up to the beginning of the assistant's answer."""
        return str(self._post("/apply-template", {"messages": [dict(m) for m in messages]})["prompt"])

    def complete(self, body: Mapping[str, object]) -> ServerAnswer:
        """llama.cpp's answer to a request for `/completion`."""
        answer: ServerAnswer = self._post("/completion", {**_NEUTRAL, **self._lora, **body})
        return answer

    @functools.cached_property
    def _letter(self) -> int:
        """A token to force where only probabilities are needed: llama.cpp reports none for a token that ends inside a character."""
        return self.ids("a", special=False)[-1]

    def logprobs(self, ids: Sequence[int], most: int) -> dict[int, float]:
        """Log-probabilities (nats) of the `most` most likely tokens after `ids`."""
        body = {
            "prompt": list(ids),
            "n_predict": 1,
            "temperature": 0.0,
            "n_probs": most,
            "logit_bias": [[self._letter, 1e6]],
        }
        (first,) = self.complete(body)["completion_probabilities"]
        return {token["id"]: token["logprob"] for token in first["top_logprobs"]}

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingParams, advance: Advance = lambda done: None
    ) -> list[Completion]:
        """One completion per prompt, in the order of the prompts."""
        done: dict[int, Completion] = {}
        with self._workers() as pool:
            jobs = {pool.submit(self._answer, prompt, sampling): i for i, prompt in enumerate(prompts)}
            for job in as_completed(jobs):
                done[jobs[job]] = job.result()
                advance([done[jobs[job]]])
        return [done[i] for i in range(len(prompts))]

    @contextlib.contextmanager
    def _workers(self) -> Iterator[ThreadPoolExecutor]:
        """Threads that wait for answers; an exception also cancels answers in progress.

        An executor's own `with` waits for every prompt in its queue: Ctrl-C took 86 s to end an evaluation.
        """
        pool = ThreadPoolExecutor(self.slots)
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for connection in list(self._connections):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)  # llama.cpp stops answering whoever has gone
            raise
        finally:
            pool.shutdown()

    def _answer(self, prompt: Prompt, sampling: SamplingParams) -> Completion:
        answer = self.complete(self._body(prompt, sampling))
        stopped = answer["stop_type"] in ("eos", "word")
        text = prompt.prefix + answer["content"]
        return Completion(prompt.id, text, answer["tokens_predicted"], "stop" if stopped else "length")

    def _body(self, prompt: Prompt, sampling: SamplingParams) -> dict[str, object]:
        return {
            "prompt": self._text(prompt),
            "n_predict": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed_of(prompt.id),
            **_NEUTRAL,
            **self._lora,
        }

    def prompt_tokens(self, prompt: Prompt) -> int:
        """Tokens of a prompt."""
        return len(self.ids(self._text(prompt)))

    def _text(self, prompt: Prompt) -> str:
        return (self.render(prompt.messages) if prompt.messages else "") + prompt.prefix

    def stream(self, prompt: Prompt, sampling: SamplingParams) -> Iterator[str]:
        """The completion piece by piece, without the prefix."""
        sent = 0
        with self._request("/completion", self._body(prompt, sampling) | {"stream": True}) as answer:
            for line in _lines(answer):
                if line.startswith(b"data: "):
                    piece: ServerAnswer = json.loads(line[6:])
                    # The last piece also counts the token that ended the turn.
                    new = piece["tokens_predicted"] - (piece.get("stop_type") == "eos") - sent
                    if piece["content"] or (piece.get("stop_type") == "limit" and new):
                        yield CountedText(piece["content"], new)
                        sent += new

    has_logprobs = True

    def stream_tokens(self, prompt: Prompt, sampling: SamplingParams, most: int) -> Iterator[StreamedText]:
        """As `stream`, with the tokens; see `TokenStreamer`.

        llama.cpp reports no probability of a token that ends inside a character, and counts it: that is noticed here.
        """
        body = self._body(prompt, sampling) | {"stream": True, "n_probs": max(most, 1)}
        pending_tokens: list[WrittenToken] = []  # without text: a control token, or the one that ends the turn
        known = 0
        with self._request("/completion", body) as answer:
            for line in _lines(answer):
                if not line.startswith(b"data: "):
                    continue
                piece: ServerAnswer = json.loads(line[6:])
                pending_tokens += [_written(token, most) for token in piece.get("completion_probabilities", ())]
                known += len(piece.get("completion_probabilities", ()))
                if piece["tokens_predicted"] != known:
                    raise LogprobsError(
                        "llama.cpp does not report the probability of a token that ends inside a character, and the answer has one",
                        where=str(self.file),
                        hint="ask without logprobs",
                    )
                if piece["content"]:
                    yield StreamedText(piece["content"], tuple(pending_tokens), len(pending_tokens))
                    pending_tokens = []
                elif piece.get("stop_type") == "limit" and pending_tokens:
                    yield StreamedText("", tuple(pending_tokens), len(pending_tokens))


def _written(token: TokenProbabilities, most: int) -> WrittenToken:
    best = tuple(TokenLogprob(one["token"], one["logprob"]) for one in token["top_logprobs"][:most])
    return WrittenToken(token["token"], token["logprob"], best)


def _lines(response: httpx.Response) -> Iterator[bytes]:
    """Lines of a streamed answer; httpx's own `iter_lines` also splits at U+2028 and others, which JSON may contain."""
    rest = b""
    for chunk in response.iter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    yield rest


def _context_of(file: Path, asked: int) -> int:
    """Tokens of a conversation; see `LlamaCpp`."""
    if not asked:
        return min(8192, _context_length(file))  # llama.cpp allocates the key-value cache for all of it
    import gguf

    try:
        names = {tensor.name for tensor in gguf.GGUFReader(file).tensors}
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, OSError):
        return asked  # llama.cpp says what is wrong with the file
    return min(asked, _context_length(file)) if "rope_factors_long.weight" in names else asked


def _context_length(file: Path) -> int:
    """The context length (tokens) in a file's metadata.

    Raises:
        ModelError: it is truncated, is not GGUF, or is an adapter without its base.
    """
    import gguf

    require_whole(file)
    try:
        fields = gguf.GGUFReader(file).fields
        if "general.type" in fields and fields["general.type"].contents() == "adapter":
            raise ModelError(
                "is an adapter without its base",
                where=str(file),
                hint="llama-server -m BASE.gguf --lora FILE, or export a full model: cot-unsloth export RUN --gguf q8_0",
            )
        return int(fields[f"{fields['general.architecture'].contents()}.context_length"].contents())
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, OSError) as error:
        raise ModelError(f"is not a complete GGUF file: {error}", where=str(file)) from error
