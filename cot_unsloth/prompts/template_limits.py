"""Limits on the time and memory of a chat template, which is a program that comes with a possibly untrusted model.

Jinja's sandbox keeps a template from files and attributes, and bounds `range`, but not nested loops nor what they write. While a
template renders, a thread looks at the time and the memory that it has taken, and raises an exception in the thread that renders.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

SECONDS = 10.0
"""For one conversation, which takes microseconds."""
MOST_WRITTEN = 1 << 28
"""Characters of one conversation."""
MOST_MEMORY = 2 << 30
"""Bytes that the process may grow by meanwhile."""
_MOST_NUMBER = 100_000
"""As many steps as Jinja's sandbox allows a `range`."""
_TICK = 0.1
"""Seconds between looks."""


class TemplateLimitError(Exception):
    """A template takes too long, too much memory, or computes what no template needs."""


def prepare(source: str) -> None:
    """Reject templates in which a single Python operation could run endlessly, and limit the length of the output.

    An exception reaches a thread only between two operations: not while it joins 10 GB of text.

    Raises:
        TemplateLimitError: the template computes a power, or names a number above 100,000.
        jinja2.TemplateSyntaxError: it is not Jinja.
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template

    # transformers keeps the templates that it has compiled, and each has an environment of its own.
    environment = _compile_jinja_template(source).environment
    _check(source, environment)
    environment.concat = _concat


@functools.lru_cache(maxsize=64)
def _check(source: str, environment: Any) -> None:
    from jinja2 import nodes

    tree = environment.parse(source)
    if next(tree.find_all(nodes.Pow), None) is not None:
        raise TemplateLimitError("it computes a power (**), which no chat template needs")
    for constant in tree.find_all(nodes.Const):
        if isinstance(constant.value, int) and abs(constant.value) > _MOST_NUMBER:
            raise TemplateLimitError("it names a number above 100,000, which no chat template needs")


def _concat(pieces: Iterable[str]) -> str:
    texts, length = [], 0
    for piece in pieces:
        length += len(piece)
        if length > MOST_WRITTEN:
            raise TemplateLimitError(f"it writes more than {MOST_WRITTEN:,} characters")
        texts.append(piece)
    return "".join(texts)


@dataclass
class _Render:
    thread: int
    deadline: float
    memory: int | None = None
    """Of the process, at the look before the first that found this render."""
    exceeded: str = ""


_lock = threading.Lock()
_renders: set[_Render] = set()
_watching: threading.Thread | None = None
_Render.__hash__ = object.__hash__  # type: ignore[method-assign]


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Within the context, the limits hold for this thread.

    Raises:
        TemplateLimitError: one was exceeded.
    """
    render = _Render(threading.get_ident(), time.monotonic() + SECONDS)
    _ensure_watched()
    with _lock:
        _renders.add(render)
    try:
        yield
    except TemplateLimitError as error:  # one of the thread that watches has no text
        raise TemplateLimitError(str(error) or render.exceeded) from None
    finally:
        _forget(render)
    if render.exceeded:
        raise TemplateLimitError(render.exceeded)


def _forget(render: _Render) -> None:
    """End the watch over a render, and take back an exception that has not arrived yet."""
    while True:
        try:
            with _lock:
                _renders.discard(render)
                if render.exceeded:
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(render.thread), None)
            return
        except TemplateLimitError:  # it arrived here
            continue


def _ensure_watched() -> None:
    global _watching
    if _watching is None or not _watching.is_alive():  # a forked process has none of its parent's threads
        _watching = threading.Thread(target=_watch, daemon=True, name="template limits")
        _watching.start()


def _watch() -> None:
    import psutil

    process = psutil.Process()
    memory = process.memory_info().rss
    while True:
        time.sleep(_TICK)
        with _lock:
            before, memory = memory, process.memory_info().rss
            now = time.monotonic()
            for render in _renders:
                render.memory = before if render.memory is None else render.memory
                if now > render.deadline:
                    render.exceeded = f"it takes more than {SECONDS:.0f} s"
                elif memory - render.memory > MOST_MEMORY:
                    render.exceeded = "it takes more than 2 GiB of memory"
                if render.exceeded:  # again at each look, in case something in between caught it
                    error = ctypes.py_object(TemplateLimitError)
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(render.thread), error)
