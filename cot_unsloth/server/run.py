"""The socket of the server, and its start and end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import re
import socket
from collections.abc import Sequence
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from cot_unsloth.core.errors import ConfigError
from cot_unsloth.core.progress import note
from cot_unsloth.server.app import Served, build_app
from cot_unsloth.server.protection import LOOPBACK, Access

BACKLOG = 1024
"""Connections that the system holds while the server is busy or its model is being loaded."""
MOST_CONNECTIONS = 2048
HEADER_SECONDS = 10.0
"""The headers of a request must have arrived by then."""
GRACE_SECONDS = 10
"""How long answers under way may take after Ctrl-C or SIGTERM."""


def bind(host: str, port: int) -> socket.socket:
    """Listen on an address, so that one that is in use is reported before a model is loaded; port 0 takes a free one.

    Connections wait until `serve`.

    Raises:
        ConfigError: it cannot be bound.
    """
    try:
        infos = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # IPv4 first: localhost may resolve to ::1 before 127.0.0.1, and a server on ::1 refuses clients of 127.0.0.1.
        family, kind, protocol, _, address = min(infos, key=lambda info: info[0] != socket.AF_INET)
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise _cannot_listen(host, port, error) from error
    try:
        # An address whose last connections are still closing can be taken again. One that somebody listens on cannot.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _cannot_listen(host, port, error) from error
    return listener


def _cannot_listen(host: str, port: int, error: Exception) -> ConfigError:
    hint = "--host 127.0.0.1 listens on this machine only, --host 0.0.0.0 on all its addresses"
    if isinstance(error, PermissionError):
        hint = "ports below 1024 are reserved for the system; use a higher one"
    elif isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        hint = "something else listens there; --port 0 takes any free port"
    message = getattr(error, "strerror", None) or str(error)
    return ConfigError(f"cannot listen there: {message}", where=f"{host}:{port}", hint=hint)


def access_for(listener: socket.socket, api_key: str | None, origins: Sequence[str] = ()) -> Access:
    """Who may use a server that listens there.

    Raises:
        ConfigError: other machines reach it, and there is no key; or no header can hold the key.
    """
    host = str(listener.getsockname()[0])
    is_local = ipaddress.ip_address(host.partition("%")[0]).is_loopback
    if not is_local and not api_key:
        raise ConfigError(
            "other machines reach this address, so a key is required",
            where=f"--host {host}",
            hint="--api-key KEY or COT_UNSLOTH_API_KEY sets one; --host 127.0.0.1 needs none",
        )
    if api_key is not None and not re.fullmatch("[!-~]+", api_key):
        message = "is empty, or not ASCII without spaces, so that no client could send it in a header"
        raise ConfigError(message, where="--api-key", hint="use letters and digits; without --api-key none is required")
    return Access(api_key, (*LOOPBACK, host) if is_local else None, tuple(origins))


class _Protocol(H11Protocol):
    """uvicorn's protocol, and a time limit for headers: it has none of its own."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:  # a request has begun, or the connection is at its end
            self._stop_waiting()
        elif self._deadline is None:
            self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_headers(self) -> None:
        self._deadline = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _is_not_a_late_write(record: logging.LogRecord) -> bool:
    """Whether a record is anything but asyncio's warning, logged from the fifth time on, that a client left before a write."""
    return not record.getMessage().startswith("socket.send() raised exception")


class Server(uvicorn.Server):
    """uvicorn with our limits. `should_exit = True` ends it from another thread."""

    def __init__(self, served: Served) -> None:
        # uvicorn reports to its loggers what clients did wrong. Without a handler, Python prints that to stderr.
        logging.getLogger("uvicorn").addHandler(logging.NullHandler())
        logging.getLogger("asyncio").addFilter(_is_not_a_late_write)
        super().__init__(
            uvicorn.Config(
                build_app(served),
                http=_Protocol,
                ws="none",
                loop="asyncio",
                lifespan="on",
                log_config=None,  # the application logs
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
                limit_concurrency=MOST_CONNECTIONS,
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
        )


def serve(served: Served, listener: socket.socket) -> None:
    """Serve until interrupted: answers under way may end, others are refused."""
    host, port = listener.getsockname()[:2]
    where = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    note(f"{', '.join(served.models)} at {where}/v1; chat page: {where}/ (Ctrl-C ends)")
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises either signal again once it has ended
        Server(served).run(sockets=[listener])
    note("stopped")
