"""Processes that apply one function to many chunks, and return the results in the chunks' order.

A worker is a new interpreter that gets the function and the chunks, pickled, through a pipe. It is not forked: a copy of a
process with threads (torch's, OpenMP's) or CUDA can hang. Nor does `multiprocessing` spawn it: that runs the caller's script
again, which must then be guarded by `if __name__ == "__main__"`. A worker ends when its pipe is closed, so none is left
behind, however this process ends; Ctrl-C is left to this process.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any

from cot_unsloth.core.errors import EngineError

_AHEAD = 2
"""Chunks for each worker that are under way, so that none waits for the slowest."""


def allowed_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_workers(function: bytes, chunks: Iterable[Any], workers: int, what: str) -> Iterator[Any]:
    """The results of a function for each chunk, in order. Close the iterator to end the workers before its end.

    Args:
        function: the pickled function; importing its module and calling it must start neither threads nor CUDA work here.
        chunks: its arguments.
        workers: how many processes.
        what: what they do, for messages: "render rows".

    Raises:
        EngineError: a worker ended: it was killed, or could not load the function.
        Exception: as the function raised, for the first chunk that it failed on.
    """
    started = [_Worker(function, what) for _ in range(workers)]
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in started:
        idle.put(worker)

    def apply(chunk: Any) -> Any:
        worker = idle.get()
        try:
            return worker.apply(chunk)
        finally:
            idle.put(worker)

    waiting: deque[Future[Any]] = deque()
    threads = ThreadPoolExecutor(workers)
    try:
        for chunk in chunks:
            waiting.append(threads.submit(apply, chunk))
            if len(waiting) > _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for worker in started:
            worker.kill()  # ends what its thread waits for
        threads.shutdown(cancel_futures=True)
        for worker in started:
            worker.close()


class _Worker:
    def __init__(self, function: bytes, what: str) -> None:
        self._what = what
        self._function: bytes | None = function
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  `close` closes it
        # One thread each: the processes are as many as the cores.
        threads = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)  # noqa: PTH109
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from cot_unsloth.core.workers import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": paths, **threads},
        )

    def apply(self, chunk: Any) -> Any:
        """The result of the function for a chunk. The function is sent first, from the caller's thread, as that may take a while."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            if self._function is not None:
                _send(self._process.stdin, self._function)
                self._function = None
            _send(self._process.stdin, pickle.dumps(chunk, pickle.HIGHEST_PROTOCOL))
            answer = _receive(self._process.stdout)
        except OSError:  # it does not read any more
            answer = None
        if answer is None:
            raise self._ended()
        result, error = pickle.loads(answer)
        if error is not None:
            raise error
        return result

    def _ended(self) -> EngineError:
        code = self._process.wait()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return EngineError(
            f"a process that was to {self._what} has ended ({how})" + (f": {lines[-1]}" if lines else ""),
            hint="the system may have run out of memory; fewer processes take less: --dataset-num-proc 1",
            name="worker_ended",
        )

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(OSError):  # what was not sent yet
                pipe.close()  # type: ignore[union-attr]


def _send(pipe: IO[bytes], content: bytes) -> None:
    pipe.write(len(content).to_bytes(8, "big"))
    pipe.write(content)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes | None:
    """What the other side sent; None if it has ended."""
    length = pipe.read(8)
    content = pipe.read(int.from_bytes(length, "big")) if len(length) == 8 else b""
    return content if content and len(content) == int.from_bytes(length, "big") else None


def main() -> None:
    """The work of a process, until its pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal
    source, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not be read as an answer
    function = pickle.loads(_receive(source) or pickle.dumps(None))
    while (chunk := _receive(source)) is not None:
        _send(answers, _answer(function, pickle.loads(chunk)))


def _answer(function: Any, chunk: Any) -> bytes:
    try:
        return pickle.dumps((function(chunk), None), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        error.add_note(traceback.format_exc())
        with contextlib.suppress(Exception):
            answer = pickle.dumps((None, error))
            pickle.loads(answer)  # an exception may be pickled and not be made again
            return answer
        return pickle.dumps((None, EngineError(f"{type(error).__name__}: {error}")))
