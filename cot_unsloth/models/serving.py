"""`serve`: a model behind the OpenAI chat API, with reasoning and answer in separate fields.

Listens on 127.0.0.1 by default. `reasoning_content` has the text between the thinking tags, reflections included, and
`content` the output; both can be streamed. Parts of the API that are not supported (tools, several choices,
log-probabilities, stop strings) are refused by name, never ignored.
"""

from __future__ import annotations

import errno
import hmac
import json
import socket
import socketserver
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cot_unsloth.config import RunConfig
from cot_unsloth.core.errors import ConfigError, CotError
from cot_unsloth.core.progress import note
from cot_unsloth.core.types import Message, Prompt, SamplingParams
from cot_unsloth.models.protocols import Streamer
from cot_unsloth.models.streaming import TextPiece, Turn, history

MOST_BYTES = 4 << 20
"""Size limit of a request."""
_REFUSED = ("tools", "functions", "stop", "logprobs", "top_logprobs", "response_format", "logit_bias")
_ROLES = ("system", "developer", "user", "assistant")


class BadRequestError(Exception):
    """A request that cannot be answered; the text says why."""


class Service:
    """Answers requests with one model. `listen` connects it to an address."""

    def __init__(
        self,
        engine: Streamer,
        config: RunConfig,
        *,
        name: str,
        api_key: str | None = None,
        max_thinking: int | None = None,
    ) -> None:
        self.engine, self.config, self.name, self.api_key = engine, config, name, api_key
        self.max_thinking = max_thinking
        # llama.cpp has a slot for each conversation; a transformers model cannot generate in two threads at once.
        self.lock: Any = nullcontext() if engine.name == "llamacpp" else threading.Lock()

    def turn(self, body: Mapping[str, object]) -> Turn:
        """The turn that a request asks for.

        Raises:
            BadRequestError: it asks for something that is not supported, or is not valid.
        """
        refused = [key for key in _REFUSED if body.get(key)]
        if refused or body.get("n", 1) != 1:
            raise BadRequestError(f"{(refused or ['n above 1'])[0]} is not supported")
        messages = self._messages(body.get("messages"))
        e = self.config.evaluate
        sampling = SamplingParams(
            max_new_tokens=_number(body, ("max_completion_tokens", "max_tokens"), e.max_new_tokens, int, 1, 1 << 20),
            temperature=_number(body, ("temperature",), e.temperature, float, 0, 2),
            top_p=_number(body, ("top_p",), e.top_p, float, 0, 1),
            seed=_number(body, ("seed",), e.eval_seed, int, 0, 2**32 - 1),
        )
        budget = _number(body, ("max_thinking_tokens",), self.max_thinking or 0, int, 0, 1 << 20)
        return Turn(self.engine, messages, sampling, budget or None, self.config.data.thinking_tags)

    def _messages(self, messages: object) -> tuple[Message, ...]:
        if not isinstance(messages, list) or not messages:
            raise BadRequestError("messages must be a list with at least one message")
        for index, message in enumerate(messages):
            if not isinstance(message, dict) or message.get("role") not in _ROLES:
                raise BadRequestError(f"messages[{index}].role must be one of {', '.join(_ROLES)}")
            parts = message.get("content")
            is_text = isinstance(parts, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in parts)
            if not isinstance(parts, str) and not is_text:
                raise BadRequestError(f"messages[{index}].content must be text")
        if messages[-1]["role"] != "user":
            raise BadRequestError("the last message must be the user's")
        roles = ({**m, "role": "system" if m["role"] == "developer" else m["role"]} for m in messages)
        turns = [history(message, self.config.data.thinking_tags) for message in roles]
        prompt = self.config.data.system_prompt
        if prompt and turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": prompt})
        return tuple(turns)

    def answer(self, turn: Turn) -> dict[str, object]:
        """The answer as one `chat.completion` object."""
        with self.lock:
            pieces = list(turn)
        reasoning, content = (
            "".join(piece.text for piece in pieces if _is_reasoning(piece) == reasoning) for reasoning in (True, False)
        )
        message = {"role": "assistant", "content": content.strip(), "reasoning_content": reasoning.strip()}
        choice = {"index": 0, "message": message, "finish_reason": turn.finish_reason}
        return self._envelope("chat.completion") | {"choices": [choice], "usage": self.usage(turn)}

    def chunks(self, turn: Turn, *, usage: bool) -> Iterator[dict[str, object]]:
        """The answer as `chat.completion.chunk` objects, while it is generated."""
        head = self._envelope("chat.completion.chunk")

        def chunk(delta: dict[str, str], reason: str | None = None) -> dict[str, object]:
            return head | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

        yield chunk({"role": "assistant"})
        trimmed = {"reasoning_content": _Trimmed(), "content": _Trimmed()}
        with self.lock:
            for piece in turn:
                key = "reasoning_content" if _is_reasoning(piece) else "content"
                text = trimmed[key].feed(piece.text)
                if text:
                    yield chunk({key: text})
        yield chunk({}, turn.finish_reason)
        if usage:
            yield head | {"choices": [], "usage": self.usage(turn)}

    def usage(self, turn: Turn) -> dict[str, int]:
        """Tokens of the prompt, of the answer, and of both."""
        prompt = self.engine.prompt_tokens(Prompt("", tuple(turn.messages)))
        return {"prompt_tokens": prompt, "completion_tokens": turn.tokens, "total_tokens": prompt + turn.tokens}

    def _envelope(self, kind: str) -> dict[str, object]:
        return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": self.name}


def _is_reasoning(piece: TextPiece) -> bool:
    return piece.section in ("thinking", "reflection")


class _Trimmed:
    """Strips white space around a streamed text: inner white space is passed on once more text follows."""

    def __init__(self) -> None:
        self._pending = ""
        self._has_text = False

    def feed(self, text: str) -> str:
        text = self._pending + text
        text = text if self._has_text else text.lstrip()
        ready = text.rstrip()
        self._pending = text[len(ready) :]
        self._has_text = self._has_text or bool(ready)
        return ready


def _number(body: Mapping[str, object], keys: tuple[str, ...], default: Any, kind: Any, low: float, high: float) -> Any:
    value = next((body[key] for key in keys if body.get(key) is not None), default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise BadRequestError(f"{keys[0]} must be a number from {low:g} to {high:g}")
    return kind(value)


class _Handler(BaseHTTPRequestHandler):
    service: Service
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/health":
            self._json(HTTPStatus.OK, {"status": "ok"})
        elif not self._allowed():
            self._error(HTTPStatus.UNAUTHORIZED, "the API key is wrong or missing")
        elif self.path.rstrip("/") == "/v1/models":
            model = {"id": self.service.name, "object": "model", "created": 0, "owned_by": "cot_unsloth"}
            self._json(HTTPStatus.OK, {"object": "list", "data": [model]})
        else:
            self._error(HTTPStatus.NOT_FOUND, f"there is no {self.path}")

    def do_POST(self) -> None:
        try:
            body = self._body()
            if not self._allowed():
                self._error(HTTPStatus.UNAUTHORIZED, "the API key is wrong or missing")
            elif self.path.rstrip("/") != "/v1/chat/completions":
                self._error(HTTPStatus.NOT_FOUND, f"there is no {self.path}")
            else:
                self._chat(body)
        except BadRequestError as error:
            self._error(HTTPStatus.BAD_REQUEST, str(error))
        except CotError as error:
            self._error(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        except (BrokenPipeError, ConnectionResetError):  # the client disconnected
            self.close_connection = True

    def _body(self) -> dict[str, object]:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            self.close_connection = True  # the body is not read, so the connection cannot serve another request
            raise BadRequestError(f"Content-Length must be a number of at most {MOST_BYTES}")
        try:
            body = json.loads(self.rfile.read(int(length)))
        except ValueError as error:
            raise BadRequestError(f"the body is not JSON: {error}") from error
        if not isinstance(body, dict):
            raise BadRequestError("the body must be an object")
        return body

    def _allowed(self) -> bool:
        key = self.service.api_key
        given = self.headers.get("Authorization", "")
        return key is None or hmac.compare_digest(given.encode(), f"Bearer {key}".encode())

    def _chat(self, body: dict[str, object]) -> None:
        turn = self.service.turn(body)
        if not body.get("stream"):
            self._json(HTTPStatus.OK, self.service.answer(turn))
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        options = body.get("stream_options")
        usage = isinstance(options, dict) and bool(options.get("include_usage"))
        try:
            for chunk in self.service.chunks(turn, usage=usage):
                self._event(json.dumps(chunk, ensure_ascii=False))
        except CotError as error:  # too late for a status: it has been sent
            self._event(json.dumps({"error": {"message": str(error), "type": "server_error"}}))
        self._event("[DONE]")

    def _event(self, text: str) -> None:
        self.wfile.write(f"data: {text}\n\n".encode())
        self.wfile.flush()

    def _json(self, status: HTTPStatus, value: Any) -> None:
        text = json.dumps(value, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _error(self, status: HTTPStatus, message: str) -> None:
        kind = "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
        self._json(status, {"error": {"message": message, "type": kind}})

    def log_message(self, format: str, *args: Any) -> None:
        note(f"{self.address_string()} {format % args}")


class Server(ThreadingHTTPServer):
    """Bound to an address; answers there once it has a service."""

    daemon_threads = True

    def server_bind(self) -> None:
        """Without the look-up of the host's full name in DNS that HTTPServer does: it can take seconds, and is not used."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]


def bind(host: str, port: int) -> Server:
    """Bind an address, so that one that is in use is reported before a model is loaded; port 0 takes a free one.

    Connections are refused until `start`.

    Raises:
        ConfigError: it cannot be bound.
    """
    try:
        addresses = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # IPv4 first: localhost may resolve to ::1 before 127.0.0.1, and a server on ::1 refuses clients of 127.0.0.1.
        family, *_, address = min(addresses, key=lambda info: info[0] != socket.AF_INET)
        kind = type("Server", (Server,), {"address_family": family})
        server: Server = kind(address, _Handler, bind_and_activate=False)
    except (OSError, UnicodeError) as error:
        raise _cannot_listen(host, port, error) from error
    try:
        server.server_bind()
    except OSError as error:
        server.server_close()
        raise _cannot_listen(host, port, error) from error
    return server


def _cannot_listen(host: str, port: int, error: Exception) -> ConfigError:
    hint = "--host 127.0.0.1 listens on this machine only, --host 0.0.0.0 on all its addresses"
    if isinstance(error, PermissionError):
        hint = "ports below 1024 are reserved for the system; take a higher one"
    elif isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        hint = "something else listens there; --port 0 takes any free port"
    message = getattr(error, "strerror", None) or str(error)
    return ConfigError(f"cannot listen there: {message}", where=f"{host}:{port}", hint=hint)


def start(server: Server, service: Service) -> Server:
    """Let a server accept requests for a service.

    Raises:
        ConfigError: another process listens there by now.
    """
    server.RequestHandlerClass = type("Handler", (_Handler,), {"service": service})
    try:
        server.server_activate()
    except OSError as error:
        host, port = server.server_address[:2]
        raise _cannot_listen(str(host), int(port), error) from error
    return server


def listen(service: Service, host: str, port: int) -> Server:
    """A server that accepts connections, and answers once `serve_forever` runs. Raises as `bind`."""
    return start(bind(host, port), service)


def serve(service: Service, server: Server) -> None:
    """Serve until interrupted."""
    start(server, service)
    host, port = str(server.server_address[0]), server.server_address[1]
    note(f"{service.name} at http://{f'[{host}]' if ':' in host else host}:{port}/v1 (Ctrl-C ends)")
    if host not in ("127.0.0.1", "::1") and service.api_key is None:
        note("anyone who can reach this address can use it; --api-key KEY requires a key")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        note("stopped")
