"""Compares mathematical expressions with math-verify, in a process that can be killed.

Run as a program by `symbolic`; imports nothing of this package. Reads one JSON object a line from stdin, `{"gold":
LaTeX, "answer": LaTeX, "seconds": limit}`, and writes one a line: `"same"`, `"different"` or `"too_costly"`.

Nothing can interrupt Python while it raises one large integer to the power of another, and SIGALRM, which math-verify
uses, is absent on Windows. So, where the system can fork, each line is answered by a child that was forked after
sympy was imported; a child that takes too long is killed, and the next one costs milliseconds, not another import
(about a second). Elsewhere this process answers itself, and `symbolic` kills and restarts it.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
from typing import IO, Any

import sympy

_MEMORY = 2 * 2**30
"""Bytes of address space that a child may allocate beyond what it starts with; more counts as too costly."""


def compare(gold: str, answer: str) -> str:
    """Whether math-verify finds two LaTeX expressions equal."""
    from math_verify import LatexExtractionConfig, parse, verify

    config = [LatexExtractionConfig()]
    parsed = [
        parse(f"${text}$", extraction_config=config, parsing_timeout=None, raise_on_error=False)
        for text in (gold, answer)
    ]
    # The last item of what it parses is the text itself, which was compared before.
    values = [[value for value in candidates if not isinstance(value, str)] for candidates in parsed]
    if not all(values):
        return "different"
    gold_values, answer_values = ([_with_imaginary_unit(value) for value in side] for side in values)
    equal = verify(gold_values, answer_values, timeout_seconds=None, raise_on_error=False)
    return "same" if equal else "different"


def _with_imaginary_unit(value: Any) -> Any:
    """math-verify parses the i of "3i + 2" and that of "2 + 3 i" as different symbols; both are sympy's I."""
    letters = [symbol for symbol in getattr(value, "free_symbols", ()) if symbol.name == "i"]
    return value.subs(dict.fromkeys(letters, sympy.I)) if letters else value


def _serve_child(requests: IO[str], replies: IO[str]) -> None:
    for line in requests:
        request = json.loads(line)
        try:
            verdict = compare(request["gold"], request["answer"])
        except (MemoryError, RecursionError):
            verdict = "too_costly"
        except Exception:  # an error of the parser or of sympy: nothing shows that they are equal
            verdict = "different"
        replies.write(verdict + "\n")
        replies.flush()


class _Child:
    """A forked process that answers until it is killed."""

    def __init__(self) -> None:
        to_child, self._requests = os.pipe()
        self._replies, from_child = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._requests)
            os.close(self._replies)
            _limit_memory()
            with os.fdopen(to_child) as requests, os.fdopen(from_child, "w") as replies:
                _serve_child(requests, replies)
            os._exit(0)  # sys.exit would run the parent's exit handlers and flush its buffers a second time
        os.close(to_child)
        os.close(from_child)

    def ask(self, line: str, seconds: float) -> str | None:
        """The reply to a line; None where it took too long, or died."""
        try:
            os.write(self._requests, line.encode())
        except OSError:
            return None
        # A reply is one short line, flushed at once, so a single read gets all of it.
        ready, _, _ = select.select([self._replies], [], [], seconds)
        reply = os.read(self._replies, 64).decode().strip() if ready else ""
        return reply or None

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._requests)
        os.close(self._replies)


def _limit_memory() -> None:
    import resource

    try:
        with open("/proc/self/statm") as file:  # noqa: PTH123  (nothing but what is needed is imported here)
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))
    except (OSError, ValueError):
        pass  # macOS has no such file, and may ignore the limit


def main() -> None:
    """Answer lines until stdin is closed."""
    import math_verify  # noqa: F401  (imported before the fork, so that every child has it)

    logging.disable(logging.CRITICAL)  # it warns that its timeouts are off
    out = sys.stdout
    sys.stdout = sys.stderr  # whatever a library prints must not be taken for a verdict
    forks = hasattr(os, "fork")
    child = _Child() if forks else None
    compare("x", "x+1")  # the grammar is built at first use
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        if child is None:
            try:
                request = json.loads(line)
                reply = compare(request["gold"], request["answer"])
            except Exception:
                reply = "different"
        else:
            verdict = child.ask(line, json.loads(line)["seconds"])
            if verdict is None:
                child.kill()
                child = _Child()
            reply = verdict or "too_costly"
        print(reply, file=out, flush=True)


if __name__ == "__main__":
    main()
