"""Makes text from data, models and servers safe to print: without the control sequences that a terminal obeys.

An escape sequence in an answer could hide text, set the clipboard or the window's title, or forge lines. Every text from outside
passes through `printable` before it is printed; styles of our own are added afterwards.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_KEPT = "\n\t"
_CODES = [*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
"""C0 and C1 control characters, and those that change the direction of the text after them (Unicode TR 36, 2.3)."""
_SHOWN = {code: ascii(chr(code))[1:-1] for code in _CODES if chr(code) not in _KEPT}


def printable(text: str) -> str:
    r"""A text with control characters as the escapes that Python writes for them; new lines and tabs stay.

    >>> printable("a\x1b[31mb\r\n\x9bc\td\u202ee")
    'a\\x1b[31mb\n\\x9bc\td\\u202ee'
    """
    return text.replace("\r\n", "\n").translate(_SHOWN)


def console(**options: Any) -> Console:
    """A rich console whose texts are printable.

    Args:
        options: of `rich.console.Console`.
    """
    from rich.console import Console

    made = Console(highlight=False, emoji=False, **options)  # not every word between colons is an emoji
    made.push_render_hook(_hook())
    return made


@functools.cache
def _hook() -> Any:
    """Wraps what a console prints, so that rich is imported only where something is printed."""
    from rich.console import ConsoleRenderable, RenderableType, RenderHook
    from rich.segment import Segment

    class Printable:
        """A renderable whose text is printable."""

        def __init__(self, renderable: RenderableType) -> None:
            self.renderable = renderable

        def __rich_console__(self, console: Any, options: Any) -> Any:
            for segment in console.render(self.renderable, options):
                yield segment if segment.control else Segment(printable(segment.text), segment.style)

    class Hook(RenderHook):
        def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
            return [Printable(one) for one in renderables]

    return Hook()


def open_standard_streams() -> None:
    """Open those of stdin, stdout and stderr that a service manager or a shell (`>&-`) has closed, so that nothing is read or shown.

    Python sets them to None then, and the next file that is opened gets a stream's descriptor, to which libraries may write.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor, which is this one
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 (until the process ends)
