"""HTTP to model servers: one pool of connections, and retries with growing waits.

Import it where a request is sent: httpx brings rich, which `import cot_unsloth` does without.
Proxies are those of the environment (`http_proxy`, `https_proxy`, `no_proxy`), certificates those of the system.
"""

from __future__ import annotations

import contextlib
import queue
import random
import ssl
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from cot_unsloth.core.errors import EngineError

ATTEMPTS = 6
"""Requests per prompt before giving up; the waits between them double, from one second: half a minute in all."""
ANSWER_TIMEOUT = 1800.0
"""Seconds to wait for one answer."""
CONNECT_TIMEOUT = 60.0
"""Seconds to wait for a connection; a server that is up but busy accepts it late."""
RETRIED_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
FAILURES = (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError)
"""What a request may raise: no connection, a broken one, an address that cannot be read, or an answer without JSON."""

T = TypeVar("T")


class ApiClient:
    """Requests to one or several servers that share the work."""

    def __init__(
        self, addresses: Sequence[str], api_key: str | None, *, connections: int, wait: float = 1.0, model: str = ""
    ) -> None:
        """Prepare the connections; no request is sent yet.

        Args:
            addresses: base addresses, such as http://127.0.0.1:8000/v1.
            api_key: sent as a bearer token, if given.
            connections: most connections open at a time.
            wait: seconds before the second attempt.
            model: name for messages about a request that was cancelled.
        """
        self.addresses, self.wait, self.model = list(addresses), wait, model
        self._cancelled = threading.Event()
        self._client = open_client(
            addresses, api_key, connections, httpx.Timeout(ANSWER_TIMEOUT, connect=CONNECT_TIMEOUT, pool=None)
        )

    def __enter__(self) -> ApiClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.cancel()
        self._client.close()

    def cancel(self) -> None:
        """Send no further request; those under way are answered."""
        self._cancelled.set()

    def post(self, path: str, body: Mapping[str, object], first_server: int = 0) -> Any:
        """The JSON answer to a request, which is repeated while the server is busy or unreachable.

        Args:
            path: below the base address, such as /chat/completions.
            body: sent as JSON.
            first_server: index of the server of the first attempt, counted round; later attempts go to the next ones.

        Raises:
            EngineError: refused, not answered in any attempt, or cancelled.
        """
        for attempt in range(1, ATTEMPTS + 1):
            if self._cancelled.is_set():
                break
            # Another server on each attempt: one of them may be down for good.
            url = self.addresses[(first_server + attempt - 1) % len(self.addresses)] + path
            pause = 0.0
            try:
                response = self._client.post(url, json=body)
                if response.is_success:
                    return response.json()
                if response.status_code not in RETRIED_STATUSES or attempt == ATTEMPTS:
                    raise _refusal(response, url)
                pause = _seconds(response.headers.get("Retry-After"))
            except FAILURES as error:
                if attempt == ATTEMPTS:
                    hint = "what was answered so far is kept; run the same command again to continue"
                    raise EngineError(f"the server does not answer: {reason(error)}", where=url, hint=hint) from error
            # With jitter, so that requests that were refused together are not repeated together. No less than the server
            # asks for, and no less than the backoff: many answer `Retry-After: 0` or 1 to each of 32 requests that wait.
            backoff = self.wait * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)
            self._cancelled.wait(max(backoff, pause))
        raise EngineError("the request was cancelled", where=self.model)


_OF_LENGTH = ("max_tokens", "max_completion_tokens", "context length", "context size", "n_ctx")
"""Words of vLLM, OpenAI and llama.cpp where prompt and answer do not fit into the context."""


def _refusal(response: httpx.Response, url: str) -> EngineError:
    """The error of a request that was refused, with the server's own reason."""
    code, why = response.status_code, response.text
    with contextlib.suppress(ValueError, TypeError, KeyError):  # another form is shown as it is
        error = response.json()["error"]
        why = error if isinstance(error, str) else str(error["message"])
    hint = None
    if code in (401, 403):
        hint = "set OPENAI_API_KEY to the server's key"
    elif code == 400 and any(words in why for words in _OF_LENGTH):
        hint = "lower --max-new-tokens, or serve the model with a longer context"
    return EngineError(f"the server refused ({code}): {why[:300]}", where=url, hint=hint)


def open_client(
    addresses: Sequence[str], api_key: str | None, connections: int, timeout: httpx.Timeout
) -> httpx.Client:
    """A client for these addresses, through the proxies that the environment names for them.

    `trust_env` is off: httpx would also use ALL_PROXY, and fails if that is a SOCKS proxy. Certificates are checked against
    the system's list, which has those of a company's own authority; httpx brings a list of its own.
    """
    certificates = ssl.create_default_context()
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    return httpx.Client(
        headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
        timeout=timeout,
        limits=limits,
        verify=certificates,
        trust_env=False,
        follow_redirects=True,
        mounts={
            f"{urlsplit(address).scheme}://{urlsplit(address).netloc}": httpx.HTTPTransport(
                proxy=proxy, verify=certificates, limits=limits
            )
            for address in addresses
            if (proxy := _proxy(address))
        },
    )


def _proxy(address: str) -> str | None:
    """The proxy for an address, or None."""
    parts = urlsplit(address)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or urllib.request.proxy_bypass(parts.netloc):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def run_concurrently(jobs: Sequence[Callable[[], T]], workers: int) -> Iterator[tuple[int, T | BaseException]]:
    """Index and result (or error) of each job, in order of completion.

    The threads are daemons: an interrupted process ends at once, where those of an executor would be waited for until
    the last answer is in.
    """
    pending: queue.SimpleQueue[int] = queue.SimpleQueue()
    results: queue.SimpleQueue[tuple[int, T | BaseException]] = queue.SimpleQueue()
    for index in range(len(jobs)):
        pending.put(index)

    def work() -> None:
        while True:
            try:
                index = pending.get_nowait()
            except queue.Empty:
                return
            try:
                results.put((index, jobs[index]()))
            except BaseException as error:
                results.put((index, error))

    for _ in range(min(workers, len(jobs))):
        threading.Thread(target=work, daemon=True).start()
    for _ in jobs:
        while True:
            # A signal that comes just before a wait without a limit does not end it: measured with threads on one core, 3 of
            # 3,000 Ctrl-C had no effect until the next answer, and none with a limit.
            try:
                result = results.get(timeout=0.2)
                break
            except queue.Empty:
                continue
        yield result


def reason(error: BaseException) -> str:
    """An error in words; some of httpx's have no text."""
    return str(error) or type(error).__name__


def _seconds(retry_after: str | None) -> float:
    """Seconds of a `Retry-After` header, at most 60; 0 if it is a date (RFC 9110, 10.2.3) or missing.

    >>> _seconds("2"), _seconds("3600"), _seconds("Wed, 21 Oct 2026 07:28:00 GMT"), _seconds(None), _seconds("nan")
    (2.0, 60.0, 0.0, 0.0, 0.0)
    """
    try:
        seconds = float(retry_after or 0)
    except ValueError:
        return 0.0
    return min(60.0, seconds) if seconds > 0 else 0.0
