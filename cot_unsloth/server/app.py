"""The addresses of the server: chat, completions, models, health, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as AsgiMessage

from cot_unsloth.config import RunConfig
from cot_unsloth.core.errors import CotError, LogprobsError, RenderError
from cot_unsloth.core.progress import note
from cot_unsloth.core.types import Prompt, SamplingParams
from cot_unsloth.models.protocols import Streamer
from cot_unsloth.models.streaming import Continuation, TextPiece, Turn
from cot_unsloth.server import logprobs, pages
from cot_unsloth.server.generation import RETRY_AFTER, Slots, unless_disconnected
from cot_unsloth.server.metrics import Metrics
from cot_unsloth.server.protection import Access, Protection, body_of, refuse
from cot_unsloth.server.requests import ChatRequest, RequestError, TextRequest, messages_of, no_such_address, parse
from cot_unsloth.server.responses import Envelope, Fields, Json, Usage, described, error_body, message_of, report


@dataclass(frozen=True)
class Served:
    """The models that a server answers with, and their settings."""

    models: Mapping[str, Streamer]
    """Models by name; the first answers requests that name none. All share one base, or one loaded file."""
    config: RunConfig
    slots: int = 1
    """Answers generated at a time; a transformers model cannot generate in two threads at once."""
    max_thinking: int | None = None
    """Thinking budget in tokens, for requests without one."""
    access: Access = field(default_factory=Access)
    configs: Mapping[str, RunConfig] = field(default_factory=dict)
    """Settings of models that have others than `config`, by name."""
    examples: Sequence[str] = ()
    """Questions that the chat page offers."""

    def config_of(self, name: str) -> RunConfig:
        """The settings of a model."""
        return self.configs.get(name, self.config)


def build_app(served: Served) -> Starlette:
    """The ASGI application."""
    server = _Endpoints(served)
    routes = [
        *pages.routes(served.examples),
        Route("/health", server.health),
        Route("/metrics", server.report_metrics),
        Route("/v1/models", server.list_models),
        Route("/v1/models/{name:path}", server.show_model),
        Route("/v1/chat/completions", server.chat, methods=["POST"]),
        Route("/v1/completions", server.complete, methods=["POST"]),
    ]
    middleware = [
        Middleware(_Log, server.metrics, {route.path for route in routes}),
        Middleware(Protection, served.access),
    ]
    if served.access.origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(served.access.origins),
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "Content-Type"],
            )
        )
    return Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={
            RequestError: _request_error,
            RenderError: _bad_request,
            LogprobsError: _bad_request,
            CotError: _failure,
            HTTPException: _http_error,
            Exception: _failure,
        },
        lifespan=server.lifespan,
    )


@dataclass(frozen=True)
class _Job:
    """A request that is ready to be answered."""

    envelope: Envelope
    answers: Sequence[Turn | Continuation]
    """One for each choice."""
    prompt_tokens: int
    stream: bool
    usage_in_stream: bool


class _Endpoints:
    """Answers requests; one method for each address."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.slots = Slots(served.slots)
        self.metrics = Metrics(self.slots)
        # Tokenizers are quick, and not safe to use in several threads at once.
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenize")

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Ends the threads with the server."""
        yield
        self.slots.close()
        self._tokenizing.shutdown(wait=False)

    async def health(self, request: Request) -> Response:
        """Whether it answers."""
        return JSONResponse({"status": "ok"})

    async def report_metrics(self, request: Request) -> Response:
        """Figures for Prometheus."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def list_models(self, request: Request) -> Response:
        """The names that a request may have in `model`."""
        return JSONResponse({"object": "list", "data": [_model(name) for name in self.served.models]})

    async def show_model(self, request: Request) -> Response:
        """One of them."""
        name = request.path_params["name"]
        if name not in self.served.models:
            raise RequestError(f"there is no model {name!r}", status=404, param="model")
        return JSONResponse(_model(name))

    async def chat(self, request: Request) -> Response:
        """/v1/chat/completions."""
        asked = parse(ChatRequest, await body_of(request))
        name, engine = self._engine(asked.model)
        config = self.served.config_of(name)
        messages = messages_of(asked, config.data)
        sampling, tokens = await self._sampling(asked, asked.most_tokens, engine, config, Prompt("", messages))
        budget = asked.max_thinking_tokens or self.served.max_thinking
        logprobs.require(asked, engine, budget)
        turns = [
            Turn(engine, messages, choice_sampling, budget, config.data.thinking_tags, asked.stops, asked.most_likely)
            for choice_sampling in _seeds(sampling, asked.n or 1)
        ]
        kind = "chat.completion.chunk" if asked.stream else "chat.completion"
        job = _Job(Envelope.new(kind, name), turns, tokens, bool(asked.stream), asked.include_usage)
        return await self._answer(request, job)

    async def complete(self, request: Request) -> Response:
        """/v1/completions."""
        asked = parse(TextRequest, await body_of(request))
        name, engine = self._engine(asked.model)
        prompt = Prompt("", (), asked.text)
        sampling, tokens = await self._sampling(asked, asked.max_tokens, engine, self.served.config_of(name), prompt)
        logprobs.require(asked, engine)
        answers = [
            Continuation(engine, prompt, one, asked.stops, asked.most_likely) for one in _seeds(sampling, asked.n or 1)
        ]
        job = _Job(Envelope.new("text_completion", name), answers, tokens, bool(asked.stream), asked.include_usage)
        return await self._answer(request, job)

    def _engine(self, name: str | None) -> tuple[str, Streamer]:
        models = self.served.models
        default = next(iter(models))
        if name in models:
            return name or default, models[name or default]
        # Many clients have a fixed name: with one model there is no doubt which is meant.
        if name is None or len(models) == 1:
            return default, models[default]
        raise RequestError(f"there is no model {name!r}; there are {', '.join(models)}", status=404, param="model")

    async def _sampling(
        self, asked: ChatRequest | TextRequest, most: int | None, engine: Streamer, config: RunConfig, prompt: Prompt
    ) -> tuple[SamplingParams, int]:
        """How to answer, within the model's context, and the tokens of the prompt."""
        e = config.evaluate
        loop = asyncio.get_running_loop()
        tokens = await loop.run_in_executor(self._tokenizing, engine.prompt_tokens, prompt)
        if not tokens:  # from which transformers cannot continue
            raise RequestError("the prompt is empty", param="prompt")
        context = engine.context_length
        if context is not None and tokens >= context:
            raise RequestError(
                f"the prompt has {tokens} tokens, and the model's context is {context}", param="messages"
            )
        most = most or e.max_new_tokens
        return (
            SamplingParams(
                max_new_tokens=most if context is None else min(most, context - tokens),
                temperature=e.temperature if asked.temperature is None else asked.sampling_temperature,
                top_p=e.top_p if asked.top_p is None else asked.top_p,
                # As in the OpenAI API: without a seed, equal requests above temperature 0 get different answers, which votes
                # and "try again" rely on.
                seed=secrets.randbelow(2**31) if asked.seed is None else asked.seed % 2**31,
            ),
            tokens,
        )

    async def _answer(self, request: Request, job: _Job) -> Response:
        self.slots.require_room()
        if job.stream:
            return StreamingResponse(
                self._events(job), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
            )
        body = await unless_disconnected(request, self._whole(job))
        # A client that has gone needs no answer; 499 is what nginx logs then.
        return Response(status_code=499) if body is None else JSONResponse(body)

    async def _whole(self, job: _Job) -> Json:
        timer = self.metrics.timer()
        pieces: list[list[TextPiece]] = [[] for _ in job.answers]
        async with contextlib.aclosing(self._pieces(job)) as arriving:
            async for index, piece in arriving:
                timer.token()
                pieces[index].append(piece)
        usage = _usage(job)
        timer.done(usage.prompt, usage.completion)
        tags = self.served.config_of(job.envelope.model).data.thinking_tags
        choices: list[Json] = []
        for index, (answer, own) in enumerate(zip(job.answers, pieces, strict=True)):
            token_log = _written(answer)
            for piece in own:
                token_log.add(piece.tokens)
            texts = [piece for piece in own if not piece.tokens]
            choice: Json = {"index": index, "finish_reason": answer.finish_reason, "logprobs": token_log.take()}
            if isinstance(answer, Turn):
                choice["message"] = message_of(texts, tags)
            else:
                choice["text"] = "".join(piece.text for piece in texts)
            choices.append(choice)
        return job.envelope.wrap(choices, usage)

    async def _events(self, job: _Job) -> AsyncGenerator[str]:
        """The answer as server-sent events."""
        try:
            async with contextlib.aclosing(self._chunks(job)) as chunks:
                async for chunk in chunks:
                    yield _event(chunk)
        except Exception as error:  # too late for a status: it has been sent
            report(error)
            yield _event(error_body(described(error), 400 if isinstance(error, LogprobsError) else 500))
        yield "data: [DONE]\n\n"

    async def _chunks(self, job: _Job) -> AsyncGenerator[Json]:
        timer = self.metrics.timer()
        is_chat = isinstance(job.answers[0], Turn)
        fields = [Fields(self.served.config_of(job.envelope.model).data.thinking_tags) for _ in job.answers]

        token_logs = [_written(answer) for answer in job.answers]

        def choice(index: int, content: Json, reason: str | None = None) -> Json:
            tokens = token_logs[index].take()
            more = {} if tokens is None else {"logprobs": tokens}
            return job.envelope.wrap([{"index": index, **content, **more, "finish_reason": reason}])

        if is_chat:
            for index in range(len(job.answers)):
                yield choice(index, {"delta": {"role": "assistant"}})
        async with contextlib.aclosing(self._pieces(job)) as arriving:
            async for index, piece in arriving:
                timer.token()
                if piece.tokens:
                    token_logs[index].add(piece.tokens)
                    continue
                if not is_chat:
                    yield choice(index, {"text": piece.text})
                    continue
                for name, text in fields[index].feed(piece):
                    if text:
                        yield choice(index, {"delta": {name: text}})
        for index, answer in enumerate(job.answers):
            yield choice(index, {"delta": {}} if is_chat else {"text": ""}, answer.finish_reason)
        usage = _usage(job)
        timer.done(usage.prompt, usage.completion)
        if job.usage_in_stream:
            yield job.envelope.wrap([], usage)

    async def _pieces(self, job: _Job) -> AsyncGenerator[tuple[int, TextPiece]]:
        """The pieces of all choices, as they arrive, each with the number of its choice."""
        arrived: asyncio.Queue[tuple[int, TextPiece] | Exception | None] = asyncio.Queue()

        async def pump(index: int, answer: Turn | Continuation) -> None:
            try:
                async with contextlib.aclosing(self.slots.iterate(answer)) as pieces:
                    async for piece in pieces:
                        arrived.put_nowait((index, piece))
                arrived.put_nowait(None)
            except Exception as error:
                arrived.put_nowait(error)

        tasks = [asyncio.create_task(pump(index, answer)) for index, answer in enumerate(job.answers)]
        try:
            left = len(tasks)
            while left:
                item = await arrived.get()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    left -= 1
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class _Log:
    """ASGI middleware: a line on stderr and a count for each request."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Collection[str]) -> None:
        self.app, self.metrics, self.paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = asyncio.get_running_loop().time(), 0

        async def remember(message: AsgiMessage) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, remember)
        except Exception:  # which Starlette answers, outside of this
            status = status or 500
            raise
        finally:
            # No label for each address that someone tries, with or without a key: labels stay in memory.
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.metrics.requests.labels(path, str(status)).inc()
            client = (scope.get("client") or ("?",))[0]
            seconds = asyncio.get_running_loop().time() - began
            note(f"{client} {scope['method']} {scope['path']!r} {status or 'disconnected'} {seconds:.2f} s")


def _seeds(sampling: SamplingParams, n: int) -> list[SamplingParams]:
    """The settings of n choices, which differ by their seeds."""
    return [replace(sampling, seed=sampling.seed + index) for index in range(n)]


def _written(answer: Turn | Continuation) -> logprobs.Written:
    return logprobs.Written(isinstance(answer, Turn), answer.most_likely is not None)


def _usage(job: _Job) -> Usage:
    return Usage(job.prompt_tokens, sum(answer.tokens for answer in job.answers))


def _model(name: str) -> Json:
    return {"id": name, "object": "model", "created": 0, "owned_by": "cot_unsloth"}


def _event(body: Json) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


async def _request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    headers = {"Retry-After": str(RETRY_AFTER)} if error.status == 503 else None
    return refuse(error.status, str(error), headers, error.param)


async def _bad_request(request: Request, error: Exception) -> Response:
    # The chat template refuses the conversation, for instance two turns of the user in a row; or see `logprobs`.
    return refuse(400, str(error))


async def _failure(request: Request, error: Exception) -> Response:
    report(error)
    return refuse(500, described(error))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    message = no_such_address(path) if error.status_code == 404 else str(error.detail)
    if error.status_code == 405:
        message = f"{path} does not take {request.method}"
    return refuse(error.status_code, message, dict(error.headers or {}))
