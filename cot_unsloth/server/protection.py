"""Checks of a request before the application sees it: host, origin, key, and time limits.

Without these a web page that someone on this machine visits could use the server: by a form (refused: another origin, or no
JSON), or by a name that resolves to 127.0.0.1 (DNS rebinding; refused: another host).
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Collection
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cot_unsloth.core.progress import note
from cot_unsloth.server.requests import RequestError
from cot_unsloth.server.responses import error_body

MOST_BYTES = 4 << 20
"""Size limit of a body."""
BODY_SECONDS = 20.0
"""A body must have arrived by then."""
WRITE_SECONDS = 60.0
"""A client that takes nothing for so long is disconnected."""
OPEN_PATHS = ("/", "/health", "/favicon.ico", "/page/app.js", "/page/style.css")
"""Answered without a key: the page asks for it itself."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Access:
    """Who may use the server."""

    api_key: str | None = None
    hosts: Collection[str] | None = LOOPBACK
    """Names that the `Host` header may have, without port; None for any, which needs a key."""
    origins: Collection[str] = field(default_factory=tuple)
    """Origins of other web pages that may use it (CORS)."""


class Protection:
    """ASGI middleware that rejects requests that `Access` does not allow, and disconnects clients that stop reading."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(Request(scope))
        if refusal is not None:
            await refusal(scope, receive, send)
            return

        async def send_in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(WRITE_SECONDS):
                    await send(message)
            except TimeoutError:
                note(f"{(scope.get('client') or ('?',))[0]} took nothing for {WRITE_SECONDS:.0f} s and is disconnected")
                raise

        await self.app(scope, receive, send_in_time)

    def _refusal(self, request: Request) -> JSONResponse | None:
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if host and self.access.hosts is not None and _name(f"//{host}") not in self.access.hosts:
            return refuse(403, f"this server does not answer to the host {host!r}")
        if origin is not None and not self._may_use(origin, host):
            return refuse(403, f"pages of {origin!r} may not use this server; --cors {origin} allows them")
        # Browsers send the preflight request of CORS without a key.
        if request.method == "OPTIONS" or request.url.path in OPEN_PATHS:
            return None
        if not self._has_key(request.headers.get("authorization", "")):
            return refuse(401, "the API key is wrong or missing", {"WWW-Authenticate": "Bearer"})
        return None

    def _may_use(self, origin: str, host: str) -> bool:
        return origin in self.access.origins or "*" in self.access.origins or urlsplit(origin).netloc == host

    def _has_key(self, given: str) -> bool:
        key = self.access.api_key
        scheme, _, value = given.partition(" ")
        # Takes equally long whichever character differs.
        return key is None or (scheme.lower() == "bearer" and hmac.compare_digest(value.encode(), key.encode()))


def _name(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def refuse(status: int, message: str, headers: dict[str, str] | None = None, param: str | None = None) -> JSONResponse:
    """A refusal in the API's form."""
    return JSONResponse(error_body(message, status, param), status, headers)


async def body_of(request: Request) -> bytes:
    """The body of a request.

    Raises:
        RequestError: it is not JSON by its type, is too large, or does not arrive in time.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError("Content-Type must be application/json", status=415)
    too_large = RequestError(f"the body must have at most {MOST_BYTES} bytes", status=413)
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 12 or int(length) > MOST_BYTES):
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MOST_BYTES:
                    raise too_large
    except ClientDisconnect:
        raise RequestError("the client has left", status=499) from None
    except TimeoutError:
        raise RequestError(f"the body did not arrive within {BODY_SECONDS:.0f} s", status=408) from None
    return bytes(body)
