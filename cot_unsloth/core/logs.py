"""Logging: what `--verbose` and `--debug` print, and the log of a run folder.

Everything the package logs goes to the logger `cot_unsloth`. By default nothing is printed that `progress` does not
print. The command line keeps the latest records in memory, so that the log of a run, whose folder is only made once
the data have been read, begins with the command. Secrets are removed from every line.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

LOG = logging.getLogger("cot_unsloth")
LOG.addHandler(logging.NullHandler())  # without a handler, Python prints warnings to stderr itself

_REMEMBERED = 2000
"""Records kept for the start of a run's log."""
_SECRET_NAMES = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|CREDENTIALS?)$")
_SECRETS = re.compile(
    r"\bhf_\w{16,}|\bsk-[\w-]{16,}|(?<=://)[^/\s]+(?=@)|(?i:(?<=bearer )|(?<=basic ))[\w.~+/=-]{8,}"
    r"|(?i:(?<=api[-_]key)(?P<before>['\"]?[ =:]+))(?:\"[^\"]*\"|'[^']*'|\S+)"
)
"""Tokens of the hub and of OpenAI, names and passwords in addresses, authorization headers, and values of api keys."""


def without_secrets(text: str) -> str:
    """A text with tokens, keys and passwords replaced: by their form, and by the values that the environment holds.

    >>> without_secrets("--api-key swordfish-1 https://me:pw@host/v1")
    '--api-key [removed] https://[removed]@host/v1'
    >>> without_secrets("{'api_key': 'a b'} X-Api-Key: v Basic dXNlcjpwdw== http://u:p@ss@host")
    "{'api_key': [removed]} X-Api-Key: [removed] Basic [removed] http://[removed]@host"
    """
    for name, value in os.environ.items():
        # A short value, such as KEY=1, would be replaced in every line where it occurs by chance.
        if _SECRET_NAMES.search(name.upper()) and len(value) >= 8:
            text = text.replace(value, "[removed]")
    return _SECRETS.sub(lambda match: f"{match['before'] or ''}[removed]", text)


class _Formatter(logging.Formatter):
    converter = staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%SZ")

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


class _FileHandler(logging.FileHandler):
    """A log file that is abandoned, without a message on stderr, once it cannot be written any more.

    The disk may fill while a run goes on. By default logging would print a traceback for every record, and closing the
    file would raise again, in place of the run's own exception.
    """

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        if isinstance(sys.exc_info()[1], OSError):
            LOG.removeHandler(self)
            LOG.warning("the log ends here: %s cannot be written: %s", self.baseFilename, sys.exc_info()[1])
        else:
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


class _Memory(logging.Handler):
    """The latest records."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: collections.deque[logging.LogRecord] = collections.deque(maxlen=_REMEMBERED)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


_memory: _Memory | None = None
_printer: logging.Handler | None = None


def begin() -> None:
    """Start the log of one command: remember records, print none."""
    global _memory, _printer
    for handler in (_memory, _printer):
        if handler is not None:
            LOG.removeHandler(handler)
    _memory, _printer = _Memory(), None
    LOG.addHandler(_memory)
    LOG.setLevel(logging.DEBUG)


def print_level(level: int) -> None:
    """Print records of this level and above to stderr; the lower of two calls counts."""
    global _printer
    if _printer is None:
        _printer = logging.StreamHandler(sys.stderr)
        _printer.setFormatter(_Formatter())
        _printer.addFilter(lambda record: not getattr(record, "printed", False))
        LOG.addHandler(_printer)
        LOG.setLevel(logging.DEBUG)
    else:
        level = min(level, _printer.level)
    _printer.setLevel(level)


def debugging() -> bool:
    """Whether `--debug` was given."""
    return _printer is not None and _printer.level <= logging.DEBUG


@contextlib.contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Append records to a file while the block runs, and the full traceback of an exception that ends it.

    A log that cannot be written is no reason to stop a run: the block runs without it.
    """
    try:
        # Rows may hold half a surrogate pair, which cannot be encoded; a log line must not fail for that.
        handler = _FileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        LOG.warning("no log: %s cannot be written: %s", path, error)
        yield
        return
    handler.setFormatter(_Formatter())
    for record in list(_memory.records) if _memory else ():
        handler.handle(record)
    level = LOG.level
    LOG.setLevel(logging.DEBUG)
    LOG.addHandler(handler)
    try:
        yield
    except KeyboardInterrupt:
        LOG.warning("interrupted")
        raise
    except Exception as error:
        LOG.error("failed: %s", error, exc_info=True, extra={"printed": True})
        raise
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(level)
        handler.close()
