"""Schedules requests: the engine's slots, a bounded queue in front of them, and answers that stop when their client leaves.

An answer is generated in a thread, into memory: its length is bounded by the request, so a client that reads slowly never
holds the slot. When the client is gone the thread stops at its next token, and the slot is free when it has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Awaitable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from starlette.requests import Request

from cot_unsloth.server.requests import RequestError

MOST_WAITING = 256
"""Requests that may wait for a slot; more are refused, to be repeated later."""
RETRY_AFTER = 5
"""Seconds after which a refused client may try again."""

T = TypeVar("T")


class Slots:
    """Runs iterations in threads, at most `count` at a time, in the order in which they came."""

    def __init__(self, count: int) -> None:
        self.running = self.waiting = 0
        self._free = asyncio.Semaphore(count)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="generate")

    def require_room(self) -> None:
        """Refuse a request before anything of its answer is sent.

        Raises:
            RequestError: too many are waiting.
        """
        if self.waiting >= MOST_WAITING:
            raise RequestError(f"{self.waiting} requests are waiting; try again later", status=503)

    async def iterate(self, source: Iterable[T]) -> AsyncGenerator[T]:
        """The items of an iterable, which is run in a thread. Closing the iterator ends the thread at its next item."""
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        items: _Items[T] = _Items()
        job = asyncio.get_running_loop().run_in_executor(self._threads, items.run, source)
        job.add_done_callback(self._freed)
        try:
            while (item := await items.queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            items.stopping.set()

    def _freed(self, job: object) -> None:
        self.running -= 1
        self._free.release()

    def close(self) -> None:
        """Take no further work; threads end with the process."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class _Items(Generic[T]):
    """What a thread hands to the event loop: items, then None or the exception that ended them."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[T | Exception | None] = asyncio.Queue()
        self.stopping = threading.Event()
        self._loop = asyncio.get_running_loop()

    def run(self, source: Iterable[T]) -> None:
        """Iterate until the end, or until `stopping` is set. Called in the thread."""
        try:
            iterator = iter(source)
            try:
                for item in iterator:
                    if self.stopping.is_set():
                        return
                    self._put(item)
            finally:
                close = getattr(iterator, "close", None)
                if close is not None:
                    close()
            self._put(None)
        except Exception as error:  # handed to the request, which reports it
            self._put(error)

    def _put(self, item: T | Exception | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self.queue.put_nowait, item)


async def unless_disconnected(request: Request, work: Awaitable[T]) -> T | None:
    """The result of some work, which is given up when the client disconnects; None then."""

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    job, gone = asyncio.ensure_future(work), asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait((job, gone), return_when=asyncio.FIRST_COMPLETED)
        return job.result() if job.done() else None
    finally:
        for task in (job, gone):
            task.cancel()
        await asyncio.gather(job, gone, return_exceptions=True)
